//! What can go wrong between us and the broker, and which of it waiting mends: told apart in one place.

use lapin::ErrorKind as Lapin;

use super::{BrokerUrl, LoginMethod};
use crate::redact::redact;

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
    /// A limit of the broker is reached, of connections or queues for example, until others make room.
    Full,
    /// Nobody answers: connection refused, unknown host, silence.
    Unreachable,
    /// The session is over.
    Lost,
}

impl Error {
    /// Makes a fault of this kind; secrets in the message are hidden.
    #[must_use]
    pub fn new(kind: ErrorKind, message: impl Into<String>) -> Self {
        Self { kind, message: redact(&message.into()).into_owned() }
    }

    /// Makes the fault of a session that is over.
    #[must_use]
    pub fn lost(reason: impl Into<String>) -> Self {
        Self::new(ErrorKind::Lost, reason)
    }

    /// Says what was being done when the fault came.
    pub(crate) fn during(self, what: &str) -> Self {
        Self { message: format!("{what}: {}", self.message), ..self }
    }

    /// Adds a remark behind cause and mend.
    pub(crate) fn noting(self, remark: &str) -> Self {
        Self { message: format!("{}; {remark}", self.message), ..self }
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

/// Says that the broker takes none of the login methods that it was to be asked with.
pub(crate) fn not_offered(url: &BrokerUrl, methods: &[LoginMethod], offered: &[String]) -> Error {
    let asked: Vec<&str> = methods.iter().map(|method| method.as_str()).collect();
    let (asked, offered) = (asked.join(", "), offered.join(", "));
    let mend = "name one that it offers in the URL (?login_method=PLAIN, AMQPLAIN or EXTERNAL), or let it offer another \
                (auth_mechanisms, the plugin rabbitmq_auth_mechanism_ssl for EXTERNAL)";
    let text = format!("cannot open a session on {url}: the broker does not offer {asked} but {offered}: {mend}");
    Error::new(ErrorKind::Login, text)
}

/// Says why no session came about; a refusal is about the login here, whatever else its code may mean.
pub(crate) fn opening(error: &lapin::Error, url: &BrokerUrl, method: LoginMethod) -> Error {
    let (kind, mut mend) = refused_login(reply(error).as_ref(), url, method);
    if is_plain(error) {
        "that port does not speak TLS: write amqp://, or name the one that does, 5671 by custom".clone_into(&mut mend);
    }
    let fault = classify(error).to_string();
    // RabbitMQ ends some of its texts with a stop.
    Error::new(kind, format!("cannot open a session on {url}: {}: {mend}", fault.trim_end_matches('.')))
}

/// Tells what kind of fault keeps a session from being opened, and its mend.
fn refused_login(reply: Option<&Reply>, url: &BrokerUrl, method: LoginMethod) -> (ErrorKind, String) {
    let (user, vhost) = (url.user(), url.vhost());
    match reply {
        Some(reply) if is_full(reply) => {
            let mend = "close connections that nobody uses, or raise the limit (rabbitmqctl set_vhost_limits, \
                        set_user_limits, connection_max); tried again until there is room";
            (ErrorKind::Full, mend.to_owned())
        }
        Some(reply) if has_expired(reply) => {
            (ErrorKind::Login, format!("give user '{user}' credentials that have not expired"))
        }
        Some(Reply { code: 403, text }) if text.contains("via localhost") => (
            ErrorKind::Login,
            format!("use another user: '{user}' may connect from the broker's own host only (loopback_users)"),
        ),
        Some(Reply { code: 403, .. }) if method == LoginMethod::External => {
            let mend = "show a client certificate (broker_tls_certificate_file) whose name is a user of the broker";
            (ErrorKind::Login, mend.to_owned())
        }
        Some(Reply { code: 403, .. }) => (ErrorKind::Login, format!("check user '{user}' and its password")),
        Some(Reply { code: 402 | 530, text }) if text.contains("not found") => (
            ErrorKind::Login,
            format!("create vhost '{vhost}' (rabbitmqctl add_vhost) and give user '{user}' access to it"),
        ),
        Some(Reply { code: 402 | 530, .. }) => (
            ErrorKind::Login,
            format!(
                "give user '{user}' access to vhost '{vhost}' (rabbitmqctl set_permissions), if it is the right one"
            ),
        ),
        _ if url.is_tls() => {
            (ErrorKind::Unreachable, "is the broker up, does it speak TLS there, is its authority trusted?".to_owned())
        }
        _ => {
            let mend = "is the broker up and its address right? a port that wants TLS needs amqps://";
            (ErrorKind::Unreachable, mend.to_owned())
        }
    }
}

/// Tells whether something else than TLS came back from where TLS was begun.
fn is_plain(error: &lapin::Error) -> bool {
    matches!(error.kind(), Lapin::IOError(error) if error.to_string().contains("InvalidContentType"))
}

/// What RabbitMQ says with 404 of a queue that is there: its node is down, it was stopped, it crashed, it does not answer.
const DOWN: [&str; 4] =
    ["down or inaccessible", "stopped by supervisor", "has crashed and failed to restart", "due to timeout"];

/// Tells whether a limit is reached that others may free: of connections (of a vhost, a user, a node), channels, queues,
/// consumers. RabbitMQ says so with 530, 406 or 403, which else are permanent.
fn is_full(reply: &Reply) -> bool {
    reply.text.contains("limit") && (reply.text.contains("is reached") || reply.text.contains("has reached"))
}

/// Tells whether credentials were right and have expired, which the next ones have not: an OAuth token's.
fn has_expired(reply: &Reply) -> bool {
    reply.text.contains("expired") && reply.text.contains("oken")
}

/// Tells whether the broker will take what it refuses now: once there is room, or in a session with fresh credentials.
pub(crate) fn passes(reply: &Reply) -> bool {
    is_full(reply) || has_expired(reply)
}

/// Codes of AMQP 0-9-1, part 1.2; RabbitMQ's texts where one code means two things.
fn kind_of(reply: &Reply) -> ErrorKind {
    match reply.code {
        403 | 406 | 530 if is_full(reply) => ErrorKind::Full,
        // The next session logs in anew.
        403 if has_expired(reply) => ErrorKind::Lost,
        // Another connection consumes it alone.
        403 if reply.text.contains("in exclusive use") => ErrorKind::Down,
        403 => ErrorKind::Denied,
        404 if DOWN.iter().any(|words| reply.text.contains(words)) => ErrorKind::Down,
        404 => ErrorKind::Missing,
        // Another connection's exclusive queue.
        405 => ErrorKind::Down,
        // A delivery unsettled for too long, or a settlement that came too late, not an argument.
        406 if ["timed out", "unknown delivery tag"].iter().any(|words| reply.text.contains(words)) => ErrorKind::Lost,
        406 | 540 => ErrorKind::Arguments,
        _ => ErrorKind::Lost,
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn reply(code: u16, text: &str) -> Reply {
        Reply { code, text: text.to_owned() }
    }

    #[test]
    fn one_code_with_two_causes_is_told_by_its_text() {
        use ErrorKind::{Arguments, Denied, Down, Full, Lost, Missing};
        for (code, text, kind) in [
            (311, "CONTENT_TOO_LARGE", Lost),
            (320, "CONNECTION_FORCED - broker forced connection closure with reason 'shutdown'", Lost),
            (402, "INVALID_PATH", Lost),
            (403, "ACCESS_REFUSED - access to queue 'q' in vhost '/' refused for user 'u'", Denied),
            (403, "ACCESS_REFUSED - queue 'q' in vhost '/' in exclusive use", Down),
            (403, "ACCESS_REFUSED - Provided JWT token has expired at timestamp 1 (validated at 2)", Lost),
            (404, "NOT_FOUND - no queue 'q' in vhost '/'", Missing),
            (404, "NOT_FOUND - home node 'r@h' of durable queue 'q' in vhost '/' is down or inaccessible", Down),
            (404, "NOT_FOUND - queue 'q' in vhost '/' process is stopped by supervisor", Down),
            (404, "NOT_FOUND - failed to perform operation on queue 'q' in vhost '/' due to timeout", Down),
            (405, "RESOURCE_LOCKED - cannot obtain exclusive access to locked queue 'q' in vhost '/'", Down),
            (406, "PRECONDITION_FAILED - inequivalent arg 'x-max-priority' for queue 'q' in vhost '/'", Arguments),
            (
                406,
                "PRECONDITION_FAILED - delivery acknowledgement on channel 1 timed out. Timeout value used: 1 ms",
                Lost,
            ),
            (406, "PRECONDITION_FAILED - unknown delivery tag 7", Lost),
            (406, "PRECONDITION_FAILED - cannot declare queue 'q': queue limit in vhost '/' (5) is reached", Full),
            (406, "PRECONDITION_FAILED - message size 9 is larger than configured max size 8", Arguments),
            (501, "FRAME_ERROR", Lost),
            (506, "RESOURCE_ERROR", Lost),
            (
                530,
                "NOT_ALLOWED - number of channels opened for user 'u' has reached the maximum allowed user limit of (1)",
                Full,
            ),
            (540, "NOT_IMPLEMENTED - basic.qos", Arguments),
            (541, "INTERNAL_ERROR", Lost),
        ] {
            assert_eq!(kind_of(&reply(code, text)), kind, "{code} {text}");
        }
    }

    #[test]
    fn a_session_that_is_refused_is_refused_for_good_or_for_now() {
        use ErrorKind::{Full, Login, Unreachable};
        let url = BrokerUrl::parse_all("amqp://u:p@h/v").unwrap().remove(0);
        for (answer, kind, mend) in [
            (
                Some((403, "ACCESS_REFUSED - Login was refused using authentication mechanism PLAIN.")),
                Login,
                "password",
            ),
            (Some((403, "ACCESS_REFUSED - user 'u' can only connect via localhost")), Login, "loopback_users"),
            (Some((530, "NOT_ALLOWED - vhost v not found")), Login, "add_vhost"),
            (Some((530, "NOT_ALLOWED - access to vhost 'v' refused for user 'u'")), Login, "set_permissions"),
            (
                Some((530, "NOT_ALLOWED - access to vhost 'v' refused for user 'u': connection limit (1) is reached")),
                Full,
                "set_vhost_limits",
            ),
            (
                Some((530, "NOT_ALLOWED - connection refused for user 'u': user connection limit (1) is reached")),
                Full,
                "set_user_limits",
            ),
            (
                Some((530, "NOT_ALLOWED - connection refused: node connection limit (9) is reached")),
                Full,
                "connection_max",
            ),
            (
                Some((541, "INTERNAL_ERROR - access to vhost 'v' refused for user 'u': vhost 'v' is down")),
                Unreachable,
                "up",
            ),
            (Some((320, "CONNECTION_FORCED")), Unreachable, "up"),
            (None, Unreachable, "amqps"),
        ] {
            let answer = answer.map(|(code, text)| reply(code, text));
            let (found, words) = refused_login(answer.as_ref(), &url, LoginMethod::Plain);
            assert_eq!(found, kind, "{answer:?}");
            assert!(words.contains(mend), "{answer:?}: {words}");
            assert_eq!(Error::new(found, "").is_permanent(), kind == Login);
        }
    }
}
