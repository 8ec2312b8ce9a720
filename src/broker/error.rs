//! What can go wrong between us and the broker, and which of it waiting mends: told apart in one place.

use lapin::{ErrorKind as Lapin, protocol::AMQPErrorKind};

/// The room's result.
pub type Result<T> = std::result::Result<T, Error>;

/// A fault of the broker, with its cause and, where there is one, its mend; never a password.
#[derive(Clone, Debug, thiserror::Error)]
#[error("{message}")]
pub struct Error {
    kind: ErrorKind,
    message: String,
}

/// What kind of fault; the kind alone decides whether trying again can help.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum ErrorKind {
    /// The broker refuses the login: wrong user or password, no such virtual host, or no access to it.
    Login,
    /// The user lacks a permission on a queue or an exchange.
    Denied,
    /// The broker refuses an argument: what is declared differs from what is there, or is not supported.
    Arguments,
    /// A setting of ours cannot be used: a certificate file that is not one.
    Setting,
    /// No such queue or exchange.
    Missing,
    /// The queue is there, but its node of the cluster is down, or another connection holds it.
    Down,
    /// Nobody answers: connection refused, unknown host, silence.
    Unreachable,
    /// The session is over.
    Lost,
}

impl Error {
    pub(crate) fn new(kind: ErrorKind, message: impl Into<String>) -> Self {
        Self { kind, message: message.into() }
    }

    pub(crate) fn lost(reason: impl Into<String>) -> Self {
        Self::new(ErrorKind::Lost, reason)
    }

    /// Says what was being done when the fault came.
    pub(crate) fn during(self, what: &str) -> Self {
        Self { message: format!("{what}: {}", self.message), ..self }
    }

    /// Returns the kind.
    #[must_use]
    pub const fn kind(&self) -> ErrorKind {
        self.kind
    }

    /// Tells whether only a person can mend this: waiting and trying again will not.
    #[must_use]
    pub const fn is_permanent(&self) -> bool {
        matches!(self.kind, ErrorKind::Login | ErrorKind::Denied | ErrorKind::Arguments | ErrorKind::Setting)
    }
}

/// A channel's or a connection's end in the broker's own words.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) struct Reply {
    pub(crate) code: u16,
    pub(crate) text: String,
    /// Only the channel ended; the connection lives.
    pub(crate) soft: bool,
}

/// Returns the broker's own words when it was the broker that refused.
pub(crate) fn reply(error: &lapin::Error) -> Option<Reply> {
    let Lapin::ProtocolError(error) = error.kind() else { return None };
    Some(Reply {
        code: error.get_id(),
        text: error.get_message().to_string(),
        soft: matches!(error.kind(), AMQPErrorKind::Soft(_)),
    })
}

/// Turns the library's error into ours.
pub(crate) fn classify(error: &lapin::Error) -> Error {
    let kind = match (reply(error), error.kind()) {
        (Some(reply), _) => kind_of(&reply),
        (None, Lapin::IOError(_)) => ErrorKind::Unreachable,
        (None, _) => ErrorKind::Lost,
    };
    let message = match (reply(error), error.kind()) {
        (Some(reply), _) => format!("the broker answered {} {}", reply.code, reply.text),
        (None, Lapin::IOError(error)) => error.to_string(),
        (None, _) => error.to_string(),
    };
    Error::new(kind, message)
}

/// Codes of AMQP 0-9-1, part 1.2; RabbitMQ's texts where one code means two things.
fn kind_of(reply: &Reply) -> ErrorKind {
    match (reply.code, reply.soft) {
        (403, true) => ErrorKind::Denied,
        (403 | 530, false) => ErrorKind::Login,
        (404, _) if reply.text.contains("down or inaccessible") => ErrorKind::Down,
        (404, _) => ErrorKind::Missing,
        (405, _) => ErrorKind::Down,
        (406, _) if reply.text.contains("timeout") => ErrorKind::Lost,
        (406 | 540, _) => ErrorKind::Arguments,
        _ => ErrorKind::Lost,
    }
}
