//! The kinds of values that settings take, with the parser of each kind.

use std::time::Duration;

use crate::broker_url::BrokerUrl;
use crate::encryption_key::EncryptionKey;
use crate::provider::Provider;
use crate::queue_name::{self, MAX_BYTES, NOT_RESERVED};
use crate::quota_rule::QuotaRule;
use crate::redis_url::{RedisOptions, ResultUrl};

/// The kind of value that a setting takes.
#[derive(Clone, Copy, Debug, PartialEq)]
pub enum SettingKind {
    /// A boolean.
    Bool,
    /// A whole number within bounds.
    Integer {
        /// The smallest allowed number.
        min: u64,
        /// The largest allowed number.
        max: u64,
    },
    /// A number of seconds, fractions allowed, above zero.
    Seconds {
        /// The largest allowed number of seconds.
        max: u32,
    },
    /// A number of seconds, fractions allowed, or 0.
    Pause {
        /// The largest allowed number of seconds.
        max: u32,
    },
    /// Any text that is not empty.
    Text,
    /// A name of the form that clouds use for projects, regions and locations.
    Name,
    /// One of these words; the case of letters does not matter.
    Choice(&'static [&'static str]),
    /// The name of a bucket of this provider.
    Bucket(Provider),
    /// An `http` or `https` URL.
    Url,
    /// An `http` or `https` URL, or only a host and a port.
    Emulator,
    /// The path of a folder.
    Path,
    /// The path of a file that is read.
    File,
    /// Absolute paths of folders, joined by `:`.
    Paths,
    /// Buckets as `gs://name` or `s3://name`, joined by commas.
    Buckets,
    /// Queue names joined by commas.
    Queues,
    /// One queue name.
    Queue,
    /// Names of serializers joined by commas: JSON, MessagePack, YAML.
    Content,
    /// AMQP URLs joined by `;`.
    BrokerUrls,
    /// The URL of a result backend.
    ResultUrl,
    /// The options of a result backend, as a JSON object.
    ResultOptions,
    /// Encryption keys joined by commas.
    EncryptionKeys,
    /// Quotas joined by `;`.
    Quotas,
}

/// A value that was parsed.
#[derive(Clone, Debug, PartialEq)]
pub(super) enum Parsed {
    Bool(bool),
    Integer(u64),
    Seconds(Duration),
    Text(String),
    List(Vec<String>),
}

/// A value as it was given.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) enum Raw {
    /// The text of a flag, of an environment variable, or of one TOML value.
    Text(String),
    /// A TOML array.
    List(Vec<String>),
}

impl Raw {
    pub(super) fn show(&self) -> String {
        match self {
            Self::Text(text) => text.clone(),
            Self::List(items) => items.join(","),
        }
    }
}

impl SettingKind {
    /// Describes the allowed values, as the end of a sentence that begins with "must be".
    #[must_use]
    pub fn allowed(self) -> String {
        match self {
            Self::Bool => "true, false, 1, 0, yes, no, on or off".to_owned(),
            Self::Integer { min, max } => format!("a whole number from {min} to {max}"),
            Self::Seconds { max } => format!("a number of seconds above 0, at most {max}"),
            Self::Pause { max } => format!("a number of seconds, at most {max}, or 0"),
            Self::Text => "text that is not empty".to_owned(),
            Self::Name => "a name of letters, digits, `-`, `_`, `.` and `:`".to_owned(),
            Self::Choice(words) => format!("one of {}", words.join(", ")),
            Self::Bucket(provider) => provider.rule().to_owned(),
            Self::Url => "an http:// or https:// URL, without user and password".to_owned(),
            Self::Emulator => "host:port or an http:// URL of these".to_owned(),
            Self::Path | Self::File => "a path".to_owned(),
            Self::Paths => "absolute paths joined by `:`".to_owned(),
            Self::Buckets => "buckets as gs://name or s3://name, whole and joined by commas".to_owned(),
            Self::Queues => format!("queue names of 1 to {MAX_BYTES} bytes joined by commas, {NOT_RESERVED}"),
            Self::Queue => format!("a queue name of 1 to {MAX_BYTES} bytes, {NOT_RESERVED}"),
            Self::Content => {
                "json, msgpack or yaml, several joined by commas; pickle runs code of whoever sends it, so set task_serializer = \"json\" in the producer"
                    .to_owned()
            }
            Self::BrokerUrls => "amqp:// or amqps:// URLs, several joined by `;`".to_owned(),
            Self::ResultUrl => "rpc://, a redis:// or rediss:// URL, or sentinel:// URLs joined by `;`".to_owned(),
            Self::ResultOptions => "a JSON object".to_owned(),
            Self::Quotas => {
                "prefix=bytes or prefix=bytes,objects, joined by `;`, with sizes like 500MB or 10GiB".to_owned()
            }
            Self::EncryptionKeys => "base64 of 32 bytes, several joined by commas".to_owned(),
        }
    }

    /// Parses a value; returns `None` for a value that [`SettingKind::allowed`] does not describe.
    pub(super) fn parse(self, raw: &Raw) -> Option<Parsed> {
        let Raw::Text(text) = raw else { return self.parse_list(raw) };
        let text = text.trim();
        match self {
            Self::Bool => match text.to_ascii_lowercase().as_str() {
                "true" | "1" | "yes" | "on" => Some(Parsed::Bool(true)),
                "false" | "0" | "no" | "off" => Some(Parsed::Bool(false)),
                _ => None,
            },
            Self::Integer { min, max } => {
                let number = text.parse().ok()?;
                (min..=max).contains(&number).then_some(Parsed::Integer(number))
            }
            Self::Seconds { max } | Self::Pause { max } => {
                let seconds: f64 = text.parse().ok()?;
                let is_off = matches!(self, Self::Pause { .. }) && seconds == 0.0;
                let in_bounds = is_off || (seconds > 0.0 && seconds <= f64::from(max));
                in_bounds.then(|| Parsed::Seconds(Duration::from_secs_f64(seconds)))
            }
            Self::Choice(words) => {
                let word = words.iter().find(|word| word.eq_ignore_ascii_case(text))?;
                Some(Parsed::Text((*word).to_owned()))
            }
            Self::Bucket(provider) => provider.allows(text).then(|| Parsed::Text(text.to_owned())),
            Self::Url => is_url(text).then(|| Parsed::Text(text.to_owned())),
            Self::Emulator => {
                let url = if text.contains("://") { text.to_owned() } else { format!("http://{text}") };
                let url = url.trim_end_matches('/');
                // Only scheme, host and port are allowed: three parts, of which the middle one is empty.
                (is_url(url) && url.split('/').count() == 3).then(|| Parsed::Text(url.to_owned()))
            }
            Self::Text | Self::Path | Self::File => (!text.is_empty()).then(|| Parsed::Text(text.to_owned())),
            Self::Name => is_name(text).then(|| Parsed::Text(text.to_owned())),
            Self::Queue => queue_name::can_be_declared(text).then(|| Parsed::Text(text.to_owned())),
            Self::Queues | Self::Content | Self::Buckets => list(text, ',').and_then(|items| self.check_list(items)),
            Self::Paths => list(text, ':').and_then(|items| self.check_list(items)),
            Self::ResultUrl => ResultUrl::parse(text).ok().map(|_| Parsed::Text(text.to_owned())),
            Self::ResultOptions => RedisOptions::parse(text).ok().map(|_| Parsed::Text(text.to_owned())),
            Self::Quotas => QuotaRule::parse_all(text).ok().map(|_| Parsed::Text(text.to_owned())),
            Self::EncryptionKeys => EncryptionKey::parse_all(text).ok().map(|_| Parsed::Text(text.to_owned())),
            Self::BrokerUrls => self.check_list(urls(text)).filter(|urls| *urls != Parsed::List(Vec::new())),
        }
    }

    /// Names the first wrong entry of a list and its fault, without repeating the entry.
    ///
    /// Returns `None` for kinds whose faults cannot be described without repeating the entry.
    pub(super) fn flaw(self, raw: &Raw) -> Option<String> {
        if self == Self::EncryptionKeys {
            return EncryptionKey::parse_all(&raw.show()).err().map(|fault| fault.to_string());
        }
        if self == Self::ResultUrl {
            return ResultUrl::parse(raw.show().trim()).err().map(|fault| fault.to_string());
        }
        if self == Self::ResultOptions {
            return RedisOptions::parse(&raw.show()).err();
        }
        if self == Self::Quotas {
            let text = match raw {
                Raw::Text(text) => text.clone(),
                Raw::List(items) => items.join(";"),
            };
            return QuotaRule::parse_all(&text).err().map(|fault| fault.to_string());
        }
        let (separator, fault): (char, fn(&str) -> Option<String>) = match self {
            Self::Buckets => (',', |item| bucket(item).err()),
            Self::BrokerUrls => {
                (';', |item| BrokerUrl::parse_all(item).err().map(|fault| format!("is wrong: {fault}")))
            }
            _ => return None,
        };
        let items: Vec<&str> = match raw {
            Raw::Text(text) => text.split(separator).map(str::trim).collect(),
            Raw::List(items) => items.iter().map(String::as_str).collect(),
        };
        // An empty entry, as behind a last `;`, is skipped.
        let skipped = |item: &str| self == Self::BrokerUrls && item.is_empty();
        let items = items.iter().filter(|item| !skipped(item)).enumerate();
        items.into_iter().find_map(|(index, item)| fault(item).map(|why| format!("entry {} {why}", index + 1)))
    }

    fn parse_list(self, raw: &Raw) -> Option<Parsed> {
        let Raw::List(items) = raw else { return None };
        if self == Self::EncryptionKeys {
            return self.parse(&Raw::Text(items.join(",")));
        }
        if self == Self::Quotas {
            return self.parse(&Raw::Text(items.join(";")));
        }
        match self {
            Self::Queues | Self::Content | Self::Buckets | Self::Paths | Self::BrokerUrls if !items.is_empty() => {
                self.check_list(items.clone())
            }
            _ => None,
        }
    }

    fn check_list(self, mut items: Vec<String>) -> Option<Parsed> {
        let good = match self {
            Self::Queues => {
                let mut seen = std::collections::HashSet::new();
                items.retain(|item| seen.insert(item.clone()));
                items.iter().all(|item| queue_name::can_be_declared(item))
            }
            Self::Buckets => {
                for item in &mut items {
                    let (provider, name) = bucket(item).ok()?;
                    *item = format!("{}://{name}", provider.scheme());
                }
                true
            }
            Self::Content => items.iter().all(|item| {
                let names =
                    ["json", "application/json", "msgpack", "application/x-msgpack", "yaml", "application/x-yaml"];
                names.contains(&item.as_str())
            }),
            Self::Paths => items.iter().all(|item| std::path::Path::new(item).is_absolute()),
            Self::BrokerUrls => items.iter().all(|item| BrokerUrl::parse_all(item).is_ok()),
            _ => false,
        };
        good.then_some(Parsed::List(items))
    }
}

/// Splits a list and trims its items; returns `None` when an item is empty.
fn list(text: &str, separator: char) -> Option<Vec<String>> {
    let items: Vec<String> = text.split(separator).map(|item| item.trim().to_owned()).collect();
    items.iter().all(|item| !item.is_empty()).then_some(items)
}

/// Reads `gs://name` or `s3://name`, with or without a slash at the end.
///
/// The error describes the fault, as the end of a sentence that begins with "entry 1".
pub(super) fn bucket(item: &str) -> Result<(Provider, &str), String> {
    let split = item.split_once("://").and_then(|(scheme, rest)| Some((Provider::of_scheme(scheme)?, rest)));
    let Some((provider, rest)) = split else {
        return Err(
            "begins with neither gs:// nor s3://; write gs://name for a bucket of Google, s3://name for one of S3"
                .to_owned(),
        );
    };
    match rest.strip_suffix('/').unwrap_or(rest) {
        name if name.contains('/') => Err(
            "names an object or folder in a bucket, but a bucket is listed whole; write the name of the bucket alone"
                .to_owned(),
        ),
        name if provider.allows(name) => Ok((provider, name)),
        _ => Err(format!("names no bucket; after {}:// comes {}", provider.scheme(), provider.rule())),
    }
}

/// Splits a list of URLs at `;` and skips empty items.
fn urls(text: &str) -> Vec<String> {
    text.split(';').map(str::trim).filter(|url| !url.is_empty()).map(str::to_owned).collect()
}

/// Tells whether a text has the form of names of projects, regions and locations in clouds.
fn is_name(text: &str) -> bool {
    !text.is_empty() && text.bytes().all(|byte| byte.is_ascii_alphanumeric() || b"-_.:".contains(&byte))
}

/// Tells whether a text is an HTTP URL with a host, without a login, a query or a fragment, and with a valid port if any.
fn is_url(text: &str) -> bool {
    let Some((scheme, rest)) = text.split_once("://") else { return false };
    let authority = rest.split('/').next().unwrap_or_default();
    let (host, port) = match authority.rsplit_once(']') {
        Some((host, port)) => (host, port.strip_prefix(':').unwrap_or(port)),
        None => authority.split_once(':').unwrap_or((authority, "")),
    };
    matches!(scheme.to_ascii_lowercase().as_str(), "http" | "https")
        && !host.is_empty()
        && (port.is_empty() || port.parse::<u16>().is_ok())
        && !rest.contains(|character: char| matches!(character, '@' | '?' | '#') || character.is_whitespace())
}

#[cfg(test)]
mod tests {
    use super::*;

    fn parse(kind: SettingKind, text: &str) -> Option<Parsed> {
        kind.parse(&Raw::Text(text.to_owned()))
    }

    fn list(items: &[&str]) -> Option<Parsed> {
        Some(Parsed::List(items.iter().map(|&item| item.to_owned()).collect()))
    }

    #[test]
    fn words_and_numbers() {
        for (text, value) in [("true", true), ("YES", true), ("1", true), ("on", true), ("off", false), ("No", false)] {
            assert_eq!(parse(SettingKind::Bool, text), Some(Parsed::Bool(value)), "{text}");
        }
        for text in ["", "2", "maybe", "truee"] {
            assert_eq!(parse(SettingKind::Bool, text), None, "{text}");
        }
        let port = SettingKind::Integer { min: 0, max: 65_535 };
        assert_eq!(parse(port, " 8002 "), Some(Parsed::Integer(8002)));
        for text in ["-1", "65536", "8e3", "", "1.0", "99999999999999999999999"] {
            assert_eq!(parse(port, text), None, "{text}");
        }
        let seconds = SettingKind::Seconds { max: 60 };
        assert_eq!(parse(seconds, "1.5"), Some(Parsed::Seconds(Duration::from_millis(1500))));
        for text in ["0", "-1", "61", "nan", "inf", "x"] {
            assert_eq!(parse(seconds, text), None, "{text}");
        }
        let levels = SettingKind::Choice(&["INFO", "ERROR"]);
        assert_eq!(parse(levels, "info"), Some(Parsed::Text("INFO".to_owned())));
        assert_eq!(parse(levels, "LOUD"), None);
    }

    #[test]
    fn urls() {
        for text in ["http://s3", "https://minio.example.org:9000", "HTTP://[::1]:9000/path/"] {
            assert_eq!(parse(SettingKind::Url, text), Some(Parsed::Text(text.to_owned())));
        }
        for text in
            ["", "minio:9000", "ftp://h", "http://", "http://:1", "http://u:p@h", "http://h?x", "http://h:99999"]
        {
            assert_eq!(parse(SettingKind::Url, text), None, "{text}");
        }
        for (text, url) in [
            ("localhost:4443", "http://localhost:4443"),
            ("http://localhost:4443/", "http://localhost:4443"),
            ("https://gcs", "https://gcs"),
            ("[::1]:4443", "http://[::1]:4443"),
        ] {
            assert_eq!(parse(SettingKind::Emulator, text), Some(Parsed::Text(url.to_owned())));
        }
        for text in ["localhost:x", "http://h/storage/v1", "h/p", "://h", "a b"] {
            assert_eq!(parse(SettingKind::Emulator, text), None, "{text}");
        }
    }

    #[test]
    fn lists() {
        assert_eq!(parse(SettingKind::Queues, "a, b,a"), list(&["a", "b"]));
        assert_eq!(parse(SettingKind::Queues, "a,,b"), None);
        assert_eq!(parse(SettingKind::Queue, &"x".repeat(256)), None);
        assert_eq!(parse(SettingKind::Queue, "amq.mine"), None);
        assert_eq!(parse(SettingKind::Queues, "a,amq.gen-1"), None);
        assert!(SettingKind::Queues.allowed().contains("`amq.`"));
        assert_eq!(SettingKind::Queues.parse(&Raw::List(vec!["a,b".to_owned()])), list(&["a,b"]));
        assert_eq!(SettingKind::Bool.parse(&Raw::List(vec!["true".to_owned()])), None);
        assert_eq!(parse(SettingKind::Content, "json"), list(&["json"]));
        assert_eq!(parse(SettingKind::Content, "json, msgpack,yaml"), list(&["json", "msgpack", "yaml"]));
        assert_eq!(parse(SettingKind::Content, "json,pickle"), None);
        assert!(SettingKind::Content.allowed().contains("task_serializer"));
        assert_eq!(parse(SettingKind::Paths, "/a:/b"), list(&["/a", "/b"]));
        assert_eq!(parse(SettingKind::Paths, "/a:b"), None);
        let urls = "amqp://guest:guest@localhost:5672//;amqps://b/v";
        assert_eq!(parse(SettingKind::BrokerUrls, urls), list(&["amqp://guest:guest@localhost:5672//", "amqps://b/v"]));
        for text in [
            "redis://localhost",
            "localhost",
            "",
            "amqp://h:99999999",
            ";",
            "amqp://u:p@h:x/v",
            "amqp://h/v#x",
            "amqp://h?ssl_ca_certs=/x",
            "amqp://h?login_method=GSSAPI",
        ] {
            assert_eq!(parse(SettingKind::BrokerUrls, text), None, "{text}");
        }
        assert_eq!(parse(SettingKind::BrokerUrls, "amqp://h;"), list(&["amqp://h"]));
        let fault = SettingKind::BrokerUrls.flaw(&Raw::Text("amqp://u:hunter2@h?frame_max=1".to_owned())).unwrap();
        assert!(fault.contains("\"frame_max\"") && !fault.contains("hunter2"), "{fault}");
        for text in [
            "amqp://",
            "amqp://:5673",
            "pyamqp://u:p%40@h/v",
            "amqps://[::1]:5671//",
            "AMQP://h?ssl=1",
            "amqp://h?heartbeat=30&connect_timeout=4",
        ] {
            assert_eq!(parse(SettingKind::BrokerUrls, text), list(&[text]));
        }
    }
}
