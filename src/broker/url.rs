//! `CELERY_BROKER_URL` by kombu's rules.

use std::fmt;

/// One broker's address and login.
#[derive(Clone, PartialEq, Eq)]
pub struct BrokerUrl {
    /// `amqps`.
    pub(super) tls: bool,
    pub(super) host: String,
    pub(super) port: u16,
    pub(super) user: String,
    pub(super) password: String,
    pub(super) vhost: String,
}

/// Why a URL cannot be used; never repeats the password.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
#[error("{0}")]
pub struct UrlError(String);

impl BrokerUrl {
    /// Reads `CELERY_BROKER_URL`: several URLs are joined by `;`, `//` is the virtual host `/`.
    ///
    /// # Errors
    /// Names what is wrong and what is supported.
    pub fn parse_all(text: &str) -> std::result::Result<Vec<Self>, UrlError> {
        todo!()
    }
}

impl fmt::Display for BrokerUrl {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let scheme = if self.tls { "amqps" } else { "amqp" };
        write!(f, "{scheme}://{}@{}:{}/{}", self.user, self.host, self.port, self.vhost)
    }
}

impl fmt::Debug for BrokerUrl {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{self}")
    }
}
