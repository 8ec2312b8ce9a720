//! Creates the options of broker sessions from the settings.

use super::failure::{Code, Failure};
use crate::broker::{BrokerOptions, BrokerUrl, QueueType, TlsFiles};
use crate::config::{self, QueueSettings};

/// Creates the options for a session, and reads the files of certificates for it.
pub(crate) fn broker_options(queue: &QueueSettings, node: &str) -> Result<BrokerOptions, Failure> {
    let tls = tls_files(queue).read();
    Ok(BrokerOptions {
        urls: broker_urls(queue)?,
        is_default: queue.broker_is_default,
        tls: tls.map_err(|error| Failure::new(Code::Configuration, format!("broker_tls_…: {error}")))?,
        connection_name: node.to_owned(),
        queue_type: queue_type(queue.queue_type),
        max_priority: queue.max_priority,
        ..BrokerOptions::default()
    })
}

/// Parses the URLs of the broker.
pub(crate) fn broker_urls(queue: &QueueSettings) -> Result<Vec<BrokerUrl>, Failure> {
    let urls: Vec<&str> = queue.broker_urls.iter().map(crate::config::Secret::expose).collect();
    BrokerUrl::parse_all(&urls.join(";"))
        .map_err(|error| Failure::new(Code::Configuration, format!("celery_broker_url: {error}")))
}

/// Returns the paths of the files of certificates.
pub(crate) fn tls_files(queue: &QueueSettings) -> TlsFiles {
    let identity = queue.tls_identity.as_ref();
    TlsFiles {
        ca_file: queue.tls_ca_file.clone(),
        certificate_file: identity.map(|identity| identity.certificate_file.clone()),
        key_file: identity.map(|identity| identity.key_file.clone()),
    }
}

pub(crate) const fn queue_type(configured: config::QueueType) -> QueueType {
    match configured {
        config::QueueType::Classic => QueueType::Classic,
        config::QueueType::Quorum => QueueType::Quorum,
    }
}
