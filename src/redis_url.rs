//! Parses the URL of a Redis in `CELERY_RESULT_BACKEND`, and its options, by the rules of kombu and Celery, for the settings and for connections.

mod options;

use std::fmt;
use std::path::PathBuf;

use percent_encoding::percent_decode_str;

use crate::redact;

pub use options::{RedisLayout, RedisOptions, SentinelLogin};

/// The port of Redis.
const PORT: u16 = 6379;

/// The options of redis-py and of Celery that have no effect here: connections have limits of their own.
const IGNORED: [&str; 10] = [
    "socket_timeout",
    "socket_connect_timeout",
    "socket_keepalive",
    "retry_on_timeout",
    "max_connections",
    "health_check_interval",
    "client_name",
    "protocol",
    "ssl_check_hostname",
    "timeout",
];

/// The schemes of Celery's other result backends, which may be repeated when they are refused: no other word may.
const OTHER_SCHEMES: [&str; 13] = [
    "socket",
    "redis+socket",
    "db",
    "cache",
    "memcache",
    "mongodb",
    "file",
    "filesystem",
    "s3",
    "gs",
    "amqp",
    "elasticsearch",
    "cassandra",
];

/// The address and login of a Redis; `Display` and `Debug` leave out the password.
#[derive(Clone, PartialEq, Eq)]
pub struct RedisUrl {
    /// TLS, where the scheme is `rediss`.
    tls: Option<RedisTls>,
    /// The server, or the first sentinel.
    node: RedisNode,
    user: Option<String>,
    password: Option<String>,
    database: i64,
    sentinels: Option<Box<Sentinels>>,
}

/// The address of a server or of a sentinel.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct RedisNode {
    /// The host name or address.
    pub host: String,
    /// The port.
    pub port: u16,
}

/// The sentinels that know which server is the primary.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Sentinels {
    /// Their addresses, at least one.
    pub nodes: Vec<RedisNode>,
    /// The name of the primary.
    pub master_name: String,
    /// The login at the sentinels.
    pub login: SentinelLogin,
    /// How many other sentinels a sentinel must know that is believed.
    pub min_other: u64,
}

/// How a connection over TLS checks the server, and who it says it is.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct RedisTls {
    /// `ssl_ca_certs`: the certificate authorities to trust instead of the system's, PEM.
    pub authorities: Option<PathBuf>,
    /// `ssl_certfile` and `ssl_keyfile`: the client certificate and its key, PEM.
    pub identity: Option<(PathBuf, PathBuf)>,
}

/// Where answers go.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum ResultUrl {
    /// `rpc://`: to the reply queues of the clients.
    Rpc,
    /// `redis://`, `rediss://` or `sentinel://`: into a Redis.
    Redis(RedisUrl),
}

/// The reason why a URL cannot be used; its text never repeats the login.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
#[error("{0}")]
pub struct RedisUrlError(String);

fn wrong<T>(text: impl Into<String>) -> Result<T, RedisUrlError> {
    Err(RedisUrlError(text.into()))
}

impl ResultUrl {
    /// Parses `CELERY_RESULT_BACKEND`, with the options of `CELERY_RESULT_BACKEND_TRANSPORT_OPTIONS`.
    ///
    /// # Errors
    ///
    /// As [`ResultUrl::parse`], and sentinels need the name of the primary.
    pub fn with_options(text: &str, options: &RedisOptions) -> Result<Self, RedisUrlError> {
        let mut url = Self::parse(text)?;
        if let Self::Redis(RedisUrl { sentinels: Some(sentinels), .. }) = &mut url {
            let Some(master_name) = options.master_name.clone() else {
                return wrong(
                    r#"sentinels need the name of the primary: celery_result_backend_transport_options = '{"master_name": "mymaster"}'"#,
                );
            };
            sentinels.master_name = master_name;
            sentinels.login = options.sentinel_login.clone();
            sentinels.min_other = options.min_other_sentinels;
        }
        Ok(url)
    }

    /// Parses `CELERY_RESULT_BACKEND` alone, which does not say whom sentinels are asked for.
    ///
    /// - `rpc://` has no other part.
    /// - Of a Redis, user and password are percent-decoded, and either may be missing. The host is `localhost` and the port 6379
    ///   unless named. The path, or else the option `virtual_host`, is the number of the database, 0 unless named.
    /// - `ssl_cert_reqs`, `ssl_ca_certs`, `ssl_certfile` and `ssl_keyfile` are options of `rediss` only. The server's
    ///   certificate is always checked.
    /// - `sentinel://host:port` is a sentinel, and several are joined by `;`. User, password and database are those of the Redis, and
    ///   stand in the first one. The name of the primary is one of the options.
    /// - Other options of redis-py are accepted without effect.
    ///
    /// # Errors
    ///
    /// [`RedisUrlError`] names the fault and what is supported instead.
    pub fn parse(text: &str) -> Result<Self, RedisUrlError> {
        let Some((scheme, rest)) = text.split_once("://") else {
            // Celery takes the bare name as well.
            if text.eq_ignore_ascii_case("rpc") {
                return Ok(Self::Rpc);
            }
            return wrong("it has no scheme: write rpc:// or redis://:password@host:6379/0");
        };
        match scheme.to_ascii_lowercase().as_str() {
            "rpc" if rest.trim_matches('/').is_empty() => Ok(Self::Rpc),
            "rpc" => wrong("rpc:// has no other part: answers go over the broker of the commands"),
            "redis" => RedisUrl::parse(rest, None).map(Self::Redis),
            "rediss" => RedisUrl::parse(rest, Some(RedisTls::default())).map(Self::Redis),
            "sentinel" => RedisUrl::parse_sentinels(text).map(Self::Redis),
            other => {
                let named = if OTHER_SCHEMES.contains(&other) { format!(" {other:?}") } else { String::new() };
                wrong(format!("the scheme{named} is not supported: use rpc, redis, rediss or sentinel"))
            }
        }
    }
}

impl RedisUrl {
    fn parse_sentinels(text: &str) -> Result<Self, RedisUrlError> {
        let (mut first, mut nodes) = (None, Vec::new());
        for url in text.split(';').map(str::trim).filter(|url| !url.is_empty()) {
            let url = match url.split_once("://") {
                Some((scheme, rest)) if scheme.eq_ignore_ascii_case("sentinel") => Self::parse(rest, None)?,
                _ => return wrong("behind each ';' stands sentinel://host:port"),
            };
            nodes.push(url.node.clone());
            first.get_or_insert(url);
        }
        let Some(first) = first else { return wrong("it names no sentinel") };
        let login = SentinelLogin::default();
        Ok(Self {
            sentinels: Some(Box::new(Sentinels { nodes, master_name: String::new(), login, min_other: 0 })),
            ..first
        })
    }

    fn parse(rest: &str, mut tls: Option<RedisTls>) -> Result<Self, RedisUrlError> {
        if rest.contains(|character: char| character.is_whitespace() || character.is_control()) {
            return wrong("it holds a blank or a line break: a blank in a password is written %20");
        }
        if rest.contains('#') {
            return wrong("it holds a '#': write it as %23");
        }
        let (rest, query) = rest.split_once('?').unwrap_or((rest, ""));
        let (login, rest) = rest.rsplit_once('@').unwrap_or(("", rest));
        let (authority, path) = rest.split_once('/').unwrap_or((rest, ""));
        if login.contains('/') {
            return wrong("a '/' in a password is written %2F");
        }
        let (user, password) = login.split_once(':').unwrap_or((login, ""));
        if !password.is_empty() {
            redact::remember(password);
        }
        let (user, password) = (decode(user, "user")?, decode(password, "password")?);
        if let Some(password) = &password {
            redact::remember(password);
        }
        let mut database = path.trim_matches('/').to_owned();
        let (mut certificate, mut key) = (None, None);
        for option in query.split('&').filter(|option| !option.is_empty()) {
            let (name, value) = option.split_once('=').unwrap_or((option, ""));
            match (name, &mut tls) {
                ("virtual_host", _) if database.is_empty() => value.trim_matches('/').clone_into(&mut database),
                ("virtual_host", _) => {}
                ("ssl_cert_reqs" | "ssl_ca_certs" | "ssl_certfile" | "ssl_keyfile", None) => {
                    return wrong(format!(
                        "the option {name} asks for TLS: the scheme is rediss then, and sentinels are not asked over TLS"
                    ));
                }
                ("ssl_cert_reqs", Some(_)) => match value {
                    // For the side that connects both mean the same.
                    "CERT_REQUIRED" | "required" | "CERT_OPTIONAL" | "optional" => {}
                    "CERT_NONE" | "none" => {
                        return wrong(
                            "ssl_cert_reqs=CERT_NONE is not supported, certificates are always checked: name the authority \
                             that signed the server's by ssl_ca_certs",
                        );
                    }
                    _ => return wrong("ssl_cert_reqs must be CERT_REQUIRED or CERT_OPTIONAL"),
                },
                ("ssl_ca_certs", Some(tls)) => tls.authorities = decode(value, name)?.map(PathBuf::from),
                ("ssl_certfile", Some(_)) => certificate = decode(value, name)?.map(PathBuf::from),
                ("ssl_keyfile", Some(_)) => key = decode(value, name)?.map(PathBuf::from),
                (name, _) if IGNORED.contains(&name) => {}
                _ => {
                    return wrong(
                        "it has an option that is not supported: ssl_cert_reqs, ssl_ca_certs, ssl_certfile, ssl_keyfile and \
                         virtual_host are; a '?' in a password is written %3F",
                    );
                }
            }
        }
        match (certificate, key, &mut tls) {
            (Some(certificate), Some(key), Some(tls)) => tls.identity = Some((certificate, key)),
            (None, None, _) => {}
            _ => return wrong("a client certificate needs both ssl_certfile and ssl_keyfile"),
        }
        let database = if database.is_empty() { Some(0) } else { database.parse().ok().filter(|number| *number >= 0) };
        let Some(database) = database else {
            return wrong("the path is no number of a database: write redis://host:6379/0");
        };
        let (host, port) = match authority.strip_prefix('[').and_then(|inner| inner.split_once(']')) {
            Some((host, rest)) => (host, rest.strip_prefix(':').unwrap_or(rest)),
            None => authority.split_once(':').unwrap_or((authority, "")),
        };
        let port = if port.is_empty() { Ok(PORT) } else { port.parse() };
        let Ok(port) = port else {
            return wrong("the port is not a number (a '/', '?', '@' or ':' in a password is written in percent)");
        };
        let host = decode(host, "host")?.unwrap_or_else(|| "localhost".to_owned());
        Ok(Self { tls, node: RedisNode { host, port }, user, password, database, sentinels: None })
    }

    /// Returns TLS, where the scheme is `rediss`.
    #[must_use]
    pub const fn tls(&self) -> Option<&RedisTls> {
        self.tls.as_ref()
    }

    /// Returns the address of the server; with sentinels, that of the first of them.
    #[must_use]
    pub const fn node(&self) -> &RedisNode {
        &self.node
    }

    /// Returns the sentinels that know the server, where they are asked.
    #[must_use]
    pub fn sentinels(&self) -> Option<&Sentinels> {
        self.sentinels.as_deref()
    }

    /// Returns the user, where one is named.
    #[must_use]
    pub fn user(&self) -> Option<&str> {
        self.user.as_deref()
    }

    /// Returns the password in plain text, where there is one.
    #[must_use]
    pub fn password(&self) -> Option<&str> {
        self.password.as_deref()
    }

    /// Returns the number of the database.
    #[must_use]
    pub const fn database(&self) -> i64 {
        self.database
    }
}

/// Decodes percent signs; returns `None` for an empty text.
fn decode(text: &str, what: &str) -> Result<Option<String>, RedisUrlError> {
    if text.is_empty() {
        return Ok(None);
    }
    match percent_decode_str(text).decode_utf8() {
        Ok(text) => Ok(Some(text.into_owned())),
        Err(_) => wrong(format!("the {what} is not utf-8 once decoded")),
    }
}

impl fmt::Display for RedisUrl {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let Some(sentinels) = &self.sentinels else {
            let scheme = if self.tls.is_some() { "rediss" } else { "redis" };
            return write!(f, "{scheme}://{}/{}", self.node, self.database);
        };
        for (index, node) in sentinels.nodes.iter().enumerate() {
            let separator = if index > 0 { ";" } else { "" };
            write!(f, "{separator}sentinel://{node}/{}", self.database)?;
        }
        Ok(())
    }
}

impl fmt::Display for RedisNode {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let (open, close) = if self.host.contains(':') { ("[", "]") } else { ("", "") };
        write!(f, "{open}{}{close}:{}", self.host, self.port)
    }
}

impl fmt::Debug for RedisUrl {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{self}")
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn redis(text: &str) -> RedisUrl {
        match ResultUrl::parse(text) {
            Ok(ResultUrl::Redis(url)) => url,
            other => panic!("{text}: {other:?}"),
        }
    }

    #[test]
    fn urls_mean_what_celery_says() {
        for (text, shown, user, password) in [
            ("redis://", "redis://localhost:6379/0", None, None),
            ("redis://h", "redis://h:6379/0", None, None),
            ("REDIS://h:1/2", "redis://h:1/2", None, None),
            ("redis://:p%40ss@h:1//3", "redis://h:1/3", None, Some("p@ss")),
            ("redis://u:p@[::1]:1/", "redis://[::1]:1/0", Some("u"), Some("p")),
            ("redis://h?virtual_host=4&socket_timeout=3", "redis://h:6379/4", None, None),
            ("redis://h/5?virtual_host=4", "redis://h:6379/5", None, None),
            ("rediss://h/0", "rediss://h:6379/0", None, None),
            ("sentinel://:p@h:1/2;sentinel://i:3", "sentinel://h:1/2;sentinel://i:3/2", None, Some("p")),
        ] {
            let url = redis(text);
            assert_eq!(url.to_string(), shown, "{text}");
            assert_eq!((url.user(), url.password()), (user, password), "{text}");
        }
        for text in ["rpc://", "rpc", "RPC:///"] {
            assert_eq!(ResultUrl::parse(text), Ok(ResultUrl::Rpc), "{text}");
        }
    }

    #[test]
    fn sentinels_need_the_name_of_the_primary() {
        let text = "sentinel://h:1;sentinel://i:2";
        let options = RedisOptions::default();
        assert!(ResultUrl::with_options(text, &options).unwrap_err().to_string().contains("master_name"));
        assert!(ResultUrl::with_options("redis://h", &options).is_ok());
        let options = RedisOptions { master_name: Some("m".to_owned()), min_other_sentinels: 1, ..options };
        let Ok(ResultUrl::Redis(url)) = ResultUrl::with_options(text, &options) else { panic!() };
        let sentinels = url.sentinels().unwrap();
        assert_eq!((sentinels.nodes.len(), sentinels.master_name.as_str(), sentinels.min_other), (2, "m", 1));
    }

    #[test]
    fn certificates_are_always_checked() {
        for text in ["rediss://h", "rediss://h?ssl_cert_reqs=CERT_OPTIONAL", "rediss://h?ssl_cert_reqs=required"] {
            assert_eq!(redis(text).tls(), Some(&RedisTls::default()));
        }
        assert!(ResultUrl::parse("rediss://h?ssl_cert_reqs=CERT_NONE").is_err());
        let url =
            redis("rediss://h?ssl_ca_certs=%2Fca.pem&ssl_certfile=/c.pem&ssl_keyfile=/k.pem&ssl_cert_reqs=required");
        let tls = url.tls().unwrap();
        assert_eq!(tls.authorities.as_deref(), Some("/ca.pem".as_ref()));
        assert_eq!(tls.identity, Some(("/c.pem".into(), "/k.pem".into())));
    }

    #[test]
    fn a_refused_url_never_shows_its_login() {
        for text in [
            "hunter2",
            "hunter2://h",
            "rpc://u:hunter2@h",
            "redis://u:hunter2@h:x",
            "redis://u:hunter2@h/x",
            "redis://u:hunter2@h/-1",
            "redis://u:hunter2@h?hunter2=1",
            "redis://u:hunter2@h?ssl_cert_reqs=CERT_NONE",
            "rediss://u:hunter2@h?ssl_cert_reqs=hunter2",
            "rediss://u:hunter2@h?ssl_certfile=/c",
            "redis://u:hunt er2@h",
            "redis://u:hunter2#@h",
            "redis://u:a/hunter2@h",
            "sentinel://h;redis://u:hunter2@h",
            "sentinel://h;hunter2",
            "sentinel://h?ssl_ca_certs=hunter2",
        ] {
            let fault = ResultUrl::parse(text).unwrap_err().to_string();
            assert!(!fault.contains("hunter2"), "{fault}");
        }
        assert_eq!(format!("{:?}", redis("redis://u:hunter2@h")), "redis://h:6379/0");
    }
}
