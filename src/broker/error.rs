//! What can go wrong between us and the broker, and which of it waiting mends: told apart in one place.

use lapin::ErrorKind as Lapin;

use super::{BrokerUrl, LoginMethod};

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
    /// The queue is there, but its node of the cluster is down, or it was stopped, or it has no majority, or another
    /// connection holds it.
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
}

/// Returns the broker's own words when it was the broker that refused.
pub(crate) fn reply(error: &lapin::Error) -> Option<Reply> {
    let Lapin::ProtocolError(error) = error.kind() else { return None };
    Some(Reply { code: error.get_id(), text: error.get_message().to_string() })
}

/// Turns the library's error into ours.
pub(crate) fn classify(error: &lapin::Error) -> Error {
    match (reply(error), error.kind()) {
        (Some(reply), _) => Error::new(kind_of(&reply), format!("the broker answered {} {}", reply.code, reply.text)),
        (None, Lapin::IOError(error)) => Error::new(ErrorKind::Unreachable, error.to_string()),
        (None, Lapin::ParsingError(_)) => Error::lost("a frame of the broker cannot be read"),
        (None, _) => Error::lost(error.to_string()),
    }
}

/// Tells whether the broker does not know the login method.
pub(crate) fn lacks_method(error: &lapin::Error) -> bool {
    reply(error).is_some_and(|reply| reply.code == 503 && reply.text.contains("authentication mechanism"))
}

/// Says why no session came about; a refusal is about the login here, whatever else its code may mean.
pub(crate) fn opening(error: &lapin::Error, url: &BrokerUrl, method: LoginMethod) -> Error {
    let (user, vhost) = (url.user(), url.vhost());
    let (kind, mend) = match reply(error).map(|reply| reply.code) {
        Some(503) if lacks_method(error) => {
            let mend = "name one that it offers in the URL, ?login_method=PLAIN, AMQPLAIN or EXTERNAL";
            (ErrorKind::Login, format!("it does not offer {}: {mend}", method.as_str()))
        }
        Some(403) if method == LoginMethod::External => {
            let mend = "show a client certificate (broker_tls_certificate_file) whose name is a user of the broker";
            (ErrorKind::Login, mend.to_owned())
        }
        Some(403) => (ErrorKind::Login, format!("check user '{user}' and its password")),
        Some(530) => (
            ErrorKind::Login,
            format!("create vhost '{vhost}' (rabbitmqctl add_vhost) and give user '{user}' access to it"),
        ),
        _ if url.is_tls() => {
            (ErrorKind::Unreachable, "is the broker up, does it speak TLS there, is its authority trusted?".to_owned())
        }
        _ => {
            let mend = "is the broker up and its address right? a port that wants TLS needs amqps://";
            (ErrorKind::Unreachable, mend.to_owned())
        }
    };
    let fault = classify(error).to_string();
    // RabbitMQ ends some of its texts with a stop.
    Error::new(kind, format!("cannot open a session on {url}: {}: {mend}", fault.trim_end_matches('.')))
}

/// What RabbitMQ says with 404 of a queue that is there: its node is down, it was stopped, it crashed, it does not answer.
const DOWN: [&str; 4] =
    ["down or inaccessible", "stopped by supervisor", "has crashed and failed to restart", "due to timeout"];

/// Codes of AMQP 0-9-1, part 1.2; RabbitMQ's texts where one code means two things.
fn kind_of(reply: &Reply) -> ErrorKind {
    match reply.code {
        403 => ErrorKind::Denied,
        404 if DOWN.iter().any(|words| reply.text.contains(words)) => ErrorKind::Down,
        404 => ErrorKind::Missing,
        // Another connection's exclusive queue.
        405 => ErrorKind::Down,
        // A delivery unsettled for too long, not an argument.
        406 if reply.text.contains("timed out") => ErrorKind::Lost,
        406 | 540 => ErrorKind::Arguments,
        _ => ErrorKind::Lost,
    }
}
