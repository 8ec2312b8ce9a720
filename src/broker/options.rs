//! What the worker tells this room.

use std::{fmt, path::PathBuf, time::Duration};

use super::BrokerUrl;

/// Everything a session needs to know.
#[derive(Clone, Debug)]
pub struct BrokerOptions {
    /// Tried in turn, first to last.
    pub urls: Vec<BrokerUrl>,
    /// Nobody chose the URLs: faults say so.
    pub is_default: bool,
    /// Certificates for `amqps`.
    pub tls: Tls,
    /// Shown by the broker's management beside `consume` and `publish`.
    pub connection_name: String,
    /// Longest wait for any one answer of the broker: 10 s.
    pub timeout: Duration,
    /// Type of the queues this worker creates.
    pub queue_type: QueueType,
    /// `x-max-priority` of the task queues this worker creates.
    pub max_priority: Option<u8>,
    /// Confirming channels at most, and so batches on their way at once: [`CHANNELS`].
    pub channels: usize,
}

impl Default for BrokerOptions {
    /// No URL yet; otherwise the values named at the fields.
    fn default() -> Self {
        Self {
            urls: Vec::new(),
            is_default: false,
            tls: Tls::default(),
            connection_name: "filestorage".to_owned(),
            timeout: Duration::from_secs(10),
            queue_type: QueueType::Classic,
            max_priority: None,
            channels: CHANNELS,
        }
    }
}

/// Confirming channels of a connection, each made when it is first needed.
pub const CHANNELS: usize = 16;

/// Certificates for `amqps`, in PEM, as [`TlsFiles::read`] found them.
#[derive(Clone, Default, PartialEq, Eq)]
pub struct Tls {
    /// Authorities to trust beside those of the system.
    pub(super) authorities: Option<String>,
    /// Certificate chain of this client, and its key.
    pub(super) identity: Option<(String, String)>,
}

/// Shows no secret.
impl fmt::Debug for Tls {
    fn fmt(&self, formatter: &mut fmt::Formatter<'_>) -> fmt::Result {
        let (authorities, identity) = (self.authorities.is_some(), self.identity.is_some());
        formatter.debug_struct("Tls").field("authorities", &authorities).field("identity", &identity).finish()
    }
}

/// The files that certificates for `amqps` are read from, in PEM.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct TlsFiles {
    /// Authorities to trust beside those of the system.
    pub ca_file: Option<PathBuf>,
    /// Certificate chain of this client; needs `key_file`.
    pub certificate_file: Option<PathBuf>,
    /// Private key of this client, PKCS#8; needs `certificate_file`.
    pub key_file: Option<PathBuf>,
}

/// Type of a queue that is created.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum QueueType {
    /// Declared without `x-queue-type`, as Celery does.
    #[default]
    Classic,
    /// Replicated.
    Quorum,
}
