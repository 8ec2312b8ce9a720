//! Parses Celery's `result_backend_transport_options`, as far as they concern a Redis, for the settings and for connections.

use std::fmt;

use serde_json::{Map, Value};

use crate::redact;

/// The characters behind one of which a key prefix of Celery ends; behind any other it gets a `_`.
const ENDS: [char; 4] = [':', '_', '-', '.'];

/// The options of Celery and redis-py that have no effect here: connections and attempts have limits of their own.
const IGNORED: [&str; 10] = [
    "additional_connection_errors",
    "health_check_interval",
    "max_connections",
    "retry_on_timeout",
    "retry_policy",
    "socket_connect_timeout",
    "socket_keepalive",
    "socket_timeout",
    "polling_interval",
    "visibility_timeout",
];

/// How results are kept in a Redis, and how its primary is found by Sentinel.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct RedisOptions {
    /// How keys and chords are laid out.
    pub layout: RedisLayout,
    /// The name of the primary at the sentinels.
    pub master_name: Option<String>,
    /// The login at the sentinels, which is not that of the Redis.
    pub sentinel_login: SentinelLogin,
    /// How many other sentinels a sentinel must know that is believed.
    pub min_other_sentinels: u64,
}

/// How keys and chords are laid out in a Redis; all clients and workers must have the same.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct RedisLayout {
    /// What stands before each key, with its end.
    pub key_prefix: String,
    /// The members of a chord are kept in the order of its header, not in the order of their ends.
    pub is_ordered: bool,
}

impl Default for RedisLayout {
    fn default() -> Self {
        Self { key_prefix: String::new(), is_ordered: true }
    }
}

/// The login at the sentinels; `Debug` leaves out the password.
#[derive(Clone, Default, PartialEq, Eq)]
pub struct SentinelLogin {
    /// The user, where one is named.
    pub user: Option<String>,
    /// The password in plain text, where there is one.
    pub password: Option<String>,
}

impl fmt::Debug for SentinelLogin {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("SentinelLogin").field("user", &self.user).finish_non_exhaustive()
    }
}

impl RedisOptions {
    /// Parses a JSON object with the options by their names in Celery: `global_keyprefix`, `result_chord_ordered`, `master_name`,
    /// `min_other_sentinels`, and `sentinel_kwargs` with `username` and `password`. Empty text has none.
    ///
    /// # Errors
    ///
    /// A text names the fault and the remedy; it never repeats a value.
    pub fn parse(text: &str) -> Result<Self, String> {
        if text.trim().is_empty() {
            return Ok(Self::default());
        }
        let Ok(Value::Object(options)) = serde_json::from_str(text) else {
            return Err(r#"it is no JSON object such as {"global_keyprefix": "app1_"}"#.to_owned());
        };
        let mut parsed = Self::default();
        for (name, value) in options {
            match (name.as_str(), value) {
                (_, Value::Null) => {}
                ("global_keyprefix", Value::String(prefix)) => parsed.layout.key_prefix = with_end(prefix)?,
                ("result_chord_ordered", Value::Bool(ordered)) => parsed.layout.is_ordered = ordered,
                ("master_name", Value::String(name)) if !name.is_empty() => parsed.master_name = Some(name),
                ("min_other_sentinels", Value::Number(number)) if number.is_u64() => {
                    parsed.min_other_sentinels = number.as_u64().unwrap_or_default();
                }
                ("sentinel_kwargs", Value::Object(login)) => parsed.sentinel_login = SentinelLogin::parse(login)?,
                ("global_keyprefix" | "master_name", _) => return Err(format!("{name} must be a text")),
                ("result_chord_ordered", _) => return Err("result_chord_ordered must be true or false".to_owned()),
                ("min_other_sentinels", _) => return Err("min_other_sentinels must be a whole number".to_owned()),
                ("sentinel_kwargs", _) => return Err("sentinel_kwargs must be an object".to_owned()),
                (name, _) if IGNORED.contains(&name) => {}
                _ => {
                    return Err(
                        "it has an option that is not supported: global_keyprefix, result_chord_ordered, master_name, \
                                min_other_sentinels and sentinel_kwargs are"
                            .to_owned(),
                    );
                }
            }
        }
        Ok(parsed)
    }
}

impl SentinelLogin {
    fn parse(options: Map<String, Value>) -> Result<Self, String> {
        let mut login = Self::default();
        for (name, value) in options {
            match (name.as_str(), value) {
                (_, Value::Null) | ("ssl", Value::Bool(false)) => {}
                ("username", Value::String(user)) => login.user = Some(user),
                ("password", Value::String(password)) => {
                    redact::remember(&password);
                    login.password = Some(password);
                }
                (name, _) if IGNORED.contains(&name) => {}
                _ => {
                    return Err(
                        "sentinel_kwargs has an option that is not supported: the texts username and password are; \
                                sentinels are asked without TLS"
                            .to_owned(),
                    );
                }
            }
        }
        Ok(login)
    }
}

/// Ends a prefix as Celery does.
fn with_end(mut prefix: String) -> Result<String, String> {
    if prefix.chars().any(char::is_control) {
        return Err("global_keyprefix holds a control character".to_owned());
    }
    if !prefix.is_empty() && !prefix.ends_with(ENDS) {
        prefix.push('_');
    }
    Ok(prefix)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn options_mean_what_celery_says() {
        for (given, prefix) in [("a", "a_"), ("a:", "a:"), ("a_", "a_"), ("a-", "a-"), ("a.", "a."), ("", "")] {
            let parsed = RedisOptions::parse(&format!(r#"{{"global_keyprefix": "{given}"}}"#)).unwrap();
            assert_eq!(parsed.layout, RedisLayout { key_prefix: prefix.to_owned(), is_ordered: true });
        }
        for nothing in ["", " ", "{}", r#"{"master_name": null, "retry_policy": {"timeout": 5.0}}"#] {
            assert_eq!(RedisOptions::parse(nothing), Ok(RedisOptions::default()), "{nothing}");
        }
        let text = r#"{"result_chord_ordered": false, "master_name": "m", "min_other_sentinels": 1,
                       "sentinel_kwargs": {"username": "u", "password": "hunter2", "socket_timeout": 1, "ssl": false}}"#;
        let parsed = RedisOptions::parse(text).unwrap();
        assert!(!parsed.layout.is_ordered && parsed.min_other_sentinels == 1);
        assert_eq!(parsed.master_name.as_deref(), Some("m"));
        assert_eq!(parsed.sentinel_login.password.as_deref(), Some("hunter2"));
        assert!(!format!("{parsed:?}").contains("hunter2"));
    }

    #[test]
    fn a_refused_text_never_shows_its_values() {
        for text in [
            "hunter2",
            "[\"hunter2\"]",
            r#"{"hunter2": 1}"#,
            r#"{"global_keyprefix": "hunter2\n"}"#,
            r#"{"master_name": ["hunter2"]}"#,
            r#"{"result_chord_ordered": "hunter2"}"#,
            r#"{"min_other_sentinels": "hunter2"}"#,
            r#"{"sentinel_kwargs": "hunter2"}"#,
            r#"{"sentinel_kwargs": {"password": "hunter2", "ssl": true}}"#,
        ] {
            let fault = RedisOptions::parse(text).unwrap_err();
            assert!(!fault.contains("hunter2"), "{fault}");
        }
    }
}
