//! What a Redis said instead of taking a result: whether that passes, and what a person does.

use std::time::Duration;

use redis::{ErrorKind, RedisError, Value};

use crate::redis_url::RedisNode;

/// The words of a server with which it refuses whatever this login sends.
const LOGIN: [&str; 3] = ["NOAUTH", "WRONGPASS", "NOPERM"];

/// Why a Redis did not take what it was sent. What was sent is kept, whatever it is.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
#[error("{words}")]
pub(super) struct Fault {
    words: String,
    /// A person has to change the login or the URL; waiting does not help.
    is_login: bool,
}

impl Fault {
    /// A fault that may pass by itself.
    pub(super) const fn passing(words: String) -> Self {
        Self { words, is_login: false }
    }

    /// It said nothing for so long.
    pub(super) fn silent(limit: Duration) -> Self {
        Self::passing(format!("it did not answer within {} s", limit.as_secs()))
    }

    /// Reads an error of the connection.
    pub(super) fn of(error: &RedisError) -> Self {
        if error.is_timeout() {
            return Self::passing("it did not answer in time".to_owned());
        }
        if error.kind() == ErrorKind::AuthenticationFailed {
            return Self { words: explain("WRONGPASS", "it refuses the login"), is_login: true };
        }
        let code = error.code().unwrap_or_default();
        Self { words: explain(code, &error.to_string()), is_login: LOGIN.contains(&code) }
    }

    /// Reads the answer to one command; `None` when it was executed.
    pub(super) fn of_value(value: &Value) -> Option<Self> {
        let error = match value {
            Value::ServerError(error) => error,
            Value::Array(values) => return values.iter().find_map(Self::of_value),
            // EXEC of a transaction that was not executed.
            Value::Nil => return Some(Self::passing("it did not execute a transaction".to_owned())),
            _ => return None,
        };
        let (code, detail) = (error.code(), error.details().unwrap_or_default());
        Some(Self { words: explain(code, &format!("{code} {detail}")), is_login: LOGIN.contains(&code) })
    }

    /// Reads the answer to one command as [`Fault::of_value`] does, where another connection may do better: the server refuses
    /// whatever this login sends, or is no primary any more.
    pub(super) fn of_connection(value: &Value) -> Option<Self> {
        match value {
            Value::ServerError(error) if error.code() == "READONLY" => Self::of_value(value),
            Value::ServerError(_) => Self::of_value(value).filter(|fault| fault.is_login),
            Value::Array(values) => values.iter().find_map(Self::of_connection),
            _ => None,
        }
    }

    /// Says which sentinel it was.
    pub(super) fn of_sentinel(self, node: &RedisNode) -> Self {
        let mut words = self.words;
        if self.is_login {
            // What is to be done at the Redis does not help here.
            let said = words.split_once("; ").map_or(words.as_str(), |(said, _)| said);
            words = format!("{said}; correct sentinel_kwargs in CELERY_RESULT_BACKEND_TRANSPORT_OPTIONS");
        }
        Self { words: format!("the sentinel {node}: {words}"), ..self }
    }

    /// Tells whether a person has to change the login.
    pub(super) const fn is_login(&self) -> bool {
        self.is_login
    }
}

/// Adds what a person does about the words of a server.
fn explain(code: &str, words: &str) -> String {
    let mend = match code {
        "OOM" => "it has no memory left: raise maxmemory, or let it evict with maxmemory-policy volatile-ttl",
        "READONLY" => "it is a replica: name the primary, or its sentinels, in CELERY_RESULT_BACKEND",
        "MISCONF" => "it cannot write its snapshot to disk: see its log",
        "LOADING" => "it still reads its data",
        "NOAUTH" | "WRONGPASS" => "correct the user and password in CELERY_RESULT_BACKEND",
        "NOPERM" => {
            "let its user do +get +getrange +mget +set +setex +expire +exists +del +type +publish +multi +exec +eval +evalsha \
             +script|load, with sentinels +role +wait, and the rest of @sortedset, @list and @set, on celery-* behind its \
             global_keyprefix, with ACL SETUSER"
        }
        _ => return words.to_owned(),
    };
    format!("{words}; {mend}")
}

#[cfg(test)]
mod tests {
    use super::*;

    fn refused(code: &str) -> Fault {
        let error = redis::make_extension_error(code.to_owned(), Some("words".to_owned()));
        Fault::of(&error)
    }

    #[test]
    fn the_login_of_a_sentinel_is_another_one() {
        let node = RedisNode { host: "h".to_owned(), port: 1 };
        let fault = refused("WRONGPASS").of_sentinel(&node);
        assert!(
            fault.is_login()
                && fault.to_string().ends_with("correct sentinel_kwargs in CELERY_RESULT_BACKEND_TRANSPORT_OPTIONS")
        );
        assert!(!fault.to_string().contains("password in CELERY_RESULT_BACKEND"), "{fault}");
    }

    #[test]
    fn only_a_login_needs_a_person_first() {
        for code in ["NOAUTH", "WRONGPASS", "NOPERM"] {
            assert!(refused(code).is_login(), "{code}");
        }
        for code in ["OOM", "READONLY", "MISCONF", "LOADING", "BUSY", "MASTERDOWN", "ERR", "NOREPLICAS"] {
            assert!(!refused(code).is_login(), "{code}");
        }
    }

    #[test]
    fn what_a_person_does_is_said() {
        for (code, mend) in [("OOM", "maxmemory"), ("READONLY", "primary"), ("WRONGPASS", "CELERY_RESULT_BACKEND")] {
            assert!(refused(code).to_string().contains(mend), "{code}");
        }
    }

    #[test]
    fn a_transaction_is_as_good_as_its_worst_command() {
        assert_eq!(Fault::of_value(&Value::Okay), None);
        assert_eq!(Fault::of_value(&Value::Array(vec![Value::Okay, Value::Int(0)])), None);
        assert!(Fault::of_value(&Value::Nil).is_some(), "not executed");
    }
}
