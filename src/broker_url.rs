//! Parses `CELERY_BROKER_URL` by kombu's rules, for the settings and for sessions with the broker.

use std::{fmt, time::Duration};

use percent_encoding::percent_decode_str;

use crate::redact;

/// The address and login of one broker; `Display` and `Debug` leave out the password.
#[derive(Clone, PartialEq, Eq)]
pub struct BrokerUrl {
    tls: bool,
    host: String,
    port: u16,
    user: String,
    password: String,
    vhost: String,
    login_method: Option<LoginMethod>,
    connect_timeout: Option<Duration>,
}

/// The SASL mechanism by which a session logs in.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum LoginMethod {
    /// User and password.
    Plain,
    /// User and password, in the encoding of AMQP.
    Amqplain,
    /// The client certificate.
    External,
}

impl LoginMethod {
    /// Returns the name of the mechanism.
    #[must_use]
    pub const fn as_str(self) -> &'static str {
        match self {
            Self::Plain => "PLAIN",
            Self::Amqplain => "AMQPLAIN",
            Self::External => "EXTERNAL",
        }
    }

    fn parse(text: &str) -> Result<Self, UrlError> {
        let known = [Self::Plain, Self::Amqplain, Self::External];
        known.into_iter().find(|method| method.as_str().eq_ignore_ascii_case(text)).ok_or_else(|| {
            let known = OTHER_METHODS.iter().find(|method| method.eq_ignore_ascii_case(text));
            let shown = known.map_or(String::new(), |method| format!(" {method}"));
            UrlError(format!("the broker url's login_method{shown} is not supported: use PLAIN, AMQPLAIN or EXTERNAL"))
        })
    }
}

/// The reason why a URL cannot be used; its text never repeats the login.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
#[error("{0}")]
pub struct UrlError(String);

impl BrokerUrl {
    /// Parses `CELERY_BROKER_URL`, one or several URLs joined by `;`.
    ///
    /// - Empty items of the list, as behind a last `;`, are skipped.
    /// - Schemes are `amqp` and `pyamqp`, and with TLS `amqps` and `pyamqps`. The option `ssl` also asks for TLS.
    /// - Host, user, password and virtual host are percent-decoded. Their defaults are `localhost`, `guest`, `guest` and
    ///   `/`. The default port is 5672, with TLS 5671.
    /// - The virtual host is the path after its first slash. A missing path and the path `//` mean the virtual host `/`.
    /// - Of kombu's other options, `connect_timeout` (seconds) and `login_method` take effect. `heartbeat` and `insist` are
    ///   accepted without effect, because a session has its own heartbeat.
    ///
    /// # Errors
    ///
    /// [`UrlError`] names the fault and what is supported instead.
    pub fn parse_all(text: &str) -> Result<Vec<Self>, UrlError> {
        let urls = text.split(';').map(str::trim).filter(|url| !url.is_empty()).map(Self::parse);
        let urls: Vec<Self> = urls.collect::<Result<_, _>>()?;
        if urls.is_empty() {
            return Err(UrlError("the broker url is empty: write amqp://user:password@host:5672//".to_owned()));
        }
        Ok(urls)
    }

    fn parse(url: &str) -> Result<Self, UrlError> {
        let Some((scheme, rest)) = url.split_once("://") else {
            return Err(UrlError("the broker url has no scheme: write amqp://user:password@host:5672//".to_owned()));
        };
        let mut tls = match scheme.to_ascii_lowercase().as_str() {
            "amqp" | "pyamqp" => false,
            "amqps" | "pyamqps" => true,
            other => {
                let named = if OTHER_SCHEMES.contains(&other) { format!(" {other:?}") } else { String::new() };
                return Err(UrlError(format!(
                    "the broker scheme{named} is not supported: use amqp, amqps, pyamqp or pyamqps"
                )));
            }
        };
        // A blank or a line break is a sign of several values, of which one may not be a URL.
        if rest.contains(|character: char| character.is_whitespace() || character.is_control()) {
            let remedy = "URLs are joined by ';', and a blank in a password is written %20";
            return Err(UrlError(format!("the broker url holds a blank or a line break: {remedy}")));
        }
        if rest.contains('#') {
            return Err(UrlError("the broker url holds a '#': write it as %23".to_owned()));
        }
        let (rest, query) = rest.split_once('?').unwrap_or((rest, ""));
        let (authority, path) = rest.split_once('/').unwrap_or((rest, ""));
        let (mut login_method, mut connect_timeout) = (None, None);
        for option in query.split('&').filter(|option| !option.is_empty()) {
            let (name, value) = option.split_once('=').unwrap_or((option, ""));
            // An option without a value has no effect, as in Python.
            match (name, value) {
                ("ssl", value) => {
                    let no = ["", "0", "false", "no", "off", "none"];
                    tls |= !no.contains(&value.to_ascii_lowercase().as_str());
                }
                (name, "") if OPTIONS.contains(&name) => {}
                ("login_method", value) => login_method = Some(LoginMethod::parse(value)?),
                ("connect_timeout", value) => {
                    let within = seconds(name, value)?;
                    connect_timeout = Some(within).filter(|within| !within.is_zero());
                }
                ("heartbeat", value) => drop(seconds(name, value)?),
                ("insist", _) => {}
                (name, _) => {
                    let named = if OTHER_OPTIONS.contains(&name) { format!(" {name:?}") } else { String::new() };
                    let remedy = if name.starts_with("ssl_") {
                        "certificates have settings of their own, broker_tls_ca_file, broker_tls_certificate_file and \
                         broker_tls_key_file"
                    } else {
                        "take it out; a '?' in a password is written %3F"
                    };
                    let known = OPTIONS.join(", ");
                    return Err(UrlError(format!(
                        "the broker url option{named} is not supported, only {known} are: {remedy}"
                    )));
                }
            }
        }

        let (login, host_port) = authority.rsplit_once('@').unwrap_or(("", authority));
        let (user, password) = login.split_once(':').unwrap_or((login, ""));
        let (host, port) = split_port(host_port)?;
        // A password equal to the user's name is not hidden: messages about missing rights show the user's name.
        if password != user {
            redact::remember(password);
        }
        let (user, password) = (decode(user, "user", "guest")?, decode(password, "password", "guest")?);
        if password != user {
            redact::remember(&password);
        }
        Ok(Self {
            tls,
            host: decode(host, "host", "localhost")?,
            port: port.unwrap_or(if tls { 5671 } else { 5672 }),
            user,
            password,
            vhost: decode(path, "virtual host", "/")?,
            login_method,
            connect_timeout,
        })
    }

    /// Returns the host name.
    #[must_use]
    pub fn host(&self) -> &str {
        &self.host
    }

    /// Returns the virtual host.
    #[must_use]
    pub fn vhost(&self) -> &str {
        &self.vhost
    }

    /// Returns the user.
    #[must_use]
    pub fn user(&self) -> &str {
        &self.user
    }

    /// Tells whether the connection is encrypted.
    #[must_use]
    pub const fn is_tls(&self) -> bool {
        self.tls
    }

    /// Returns the port.
    #[must_use]
    pub const fn port(&self) -> u16 {
        self.port
    }

    /// Returns the password in plain text.
    #[must_use]
    pub fn password(&self) -> &str {
        &self.password
    }

    /// Returns the login method that the URL asks for.
    #[must_use]
    pub const fn login_method(&self) -> Option<LoginMethod> {
        self.login_method
    }

    /// Returns the longest time to wait for a connection, where the URL names one.
    #[must_use]
    pub const fn connect_timeout(&self) -> Option<Duration> {
        self.connect_timeout
    }
}

/// The options of kombu that a URL may have.
const OPTIONS: [&str; 5] = ["ssl", "login_method", "connect_timeout", "heartbeat", "insist"];

// The words in the following lists are repeated when they are refused. Any other word may be a piece of a password.

/// The schemes of other transports.
const OTHER_SCHEMES: [&str; 10] =
    ["redis", "rediss", "sentinel", "sqs", "memory", "http", "https", "kafka", "mongodb", "filesystem"];

/// The options of kombu, of its TLS and of RabbitMQ's own URLs that are not supported.
const OTHER_OPTIONS: [&str; 18] = [
    "ssl_ca_certs",
    "ssl_certfile",
    "ssl_keyfile",
    "ssl_cert_reqs",
    "ssl_version",
    "ca_certs",
    "cert_reqs",
    "cacertfile",
    "certfile",
    "keyfile",
    "verify",
    "connection_timeout",
    "auth_mechanism",
    "channel_max",
    "frame_max",
    "transport",
    "virtual_host",
    "failover_strategy",
];

/// The login methods of RabbitMQ's plugins and of other brokers.
const OTHER_METHODS: [&str; 6] = ["GSSAPI", "ANONYMOUS", "CRAM-MD5", "RABBIT-CR-DEMO", "XOAUTH2", "SCRAM-SHA-256"];

/// Reads a number of seconds; the text `None` means 0.
fn seconds(name: &str, value: &str) -> Result<Duration, UrlError> {
    if value.eq_ignore_ascii_case("none") {
        return Ok(Duration::ZERO);
    }
    let seconds = value.parse().ok().and_then(|seconds| Duration::try_from_secs_f64(seconds).ok());
    seconds.ok_or_else(|| UrlError(format!("the broker url option {name:?} is no number of seconds: write {name}=30")))
}

/// Splits `host:port`; an IPv6 address stands in brackets.
fn split_port(host_port: &str) -> Result<(&str, Option<u16>), UrlError> {
    let (host, port) = match host_port.strip_prefix('[').and_then(|inner| inner.split_once(']')) {
        Some((host, rest)) => (host, rest.strip_prefix(':').unwrap_or(rest)),
        None => host_port.split_once(':').unwrap_or((host_port, "")),
    };
    if port.is_empty() {
        return Ok((host, None));
    }
    // The port is not repeated: an unescaped slash in a password puts a piece of it here.
    let port = port.parse().map_err(|_| {
        UrlError(
            "the broker url's port is not a number (a '/', '?', '@' or ':' in a password is written in percent)"
                .to_owned(),
        )
    })?;
    Ok((host, Some(port)))
}

fn decode(text: &str, what: &str, default: &str) -> Result<String, UrlError> {
    if text.is_empty() {
        return Ok(default.to_owned());
    }
    let decoded = percent_decode_str(text).decode_utf8();
    let decoded = decoded.map_err(|_| UrlError(format!("the broker url's {what} is not utf-8 once decoded")))?;
    // AMQP cannot carry a longer virtual host.
    if decoded.len() > 255 {
        return Err(UrlError(format!("the broker url's {what} is longer than 255 bytes")));
    }
    Ok(decoded.into_owned())
}

impl fmt::Display for BrokerUrl {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let scheme = if self.tls { "amqps" } else { "amqp" };
        let (open, close) = if self.host.contains(':') { ("[", "]") } else { ("", "") };
        write!(f, "{scheme}://{}@{open}{}{close}:{}/{}", self.user, self.host, self.port, self.vhost)
    }
}

impl fmt::Debug for BrokerUrl {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{self}")
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn parts(url: &str) -> (bool, String, u16, String, String, String) {
        let mut urls = BrokerUrl::parse_all(url).unwrap();
        assert_eq!(urls.len(), 1);
        let url = urls.remove(0);
        (url.tls, url.host, url.port, url.user, url.password, url.vhost)
    }

    fn expect(url: &str, tls: bool, host: &str, port: u16, login: (&str, &str), vhost: &str) {
        let wanted = (tls, host.to_owned(), port, login.0.to_owned(), login.1.to_owned(), vhost.to_owned());
        assert_eq!(parts(url), wanted, "{url}");
    }

    #[test]
    fn urls_mean_what_kombu_says() {
        let guest = ("guest", "guest");
        expect("amqp://guest:guest@localhost:5672//", false, "localhost", 5672, guest, "/");
        expect("amqp://host/vhost", false, "host", 5672, guest, "vhost");
        expect("amqp://host", false, "host", 5672, guest, "/");
        expect("amqp://host/", false, "host", 5672, guest, "/");
        expect("amqp://u:p%40w@h:1/a%2Fb", false, "h", 1, ("u", "p@w"), "a/b");
        expect("amqp://u@h//x", false, "h", 5672, ("u", "guest"), "/x");
        expect("amqp://h///", false, "h", 5672, guest, "//");
        expect("amqp://h/a/b/", false, "h", 5672, guest, "a/b/");
        expect("amqp://", false, "localhost", 5672, guest, "/");
        expect("amqp://:5673", false, "localhost", 5673, guest, "/");
        expect("amqps://h", true, "h", 5671, guest, "/");
        expect("pyamqp://h/v?ssl=1", true, "h", 5671, guest, "v");
        expect("pyamqps://h", true, "h", 5671, guest, "/");
        expect("amqp://u:p@[::1]:5673/x", false, "::1", 5673, ("u", "p"), "x");
        expect("amqp://u:a:b@h/x", false, "h", 5672, ("u", "a:b"), "x");
    }

    #[test]
    fn kombu_s_options_are_read() {
        let read = |query: &str| BrokerUrl::parse_all(&format!("amqp://u:p@h/v?{query}")).unwrap().remove(0);
        for query in ["heartbeat=30", "heartbeat=0", "heartbeat=2.5", "heartbeat=None", "insist=1", "heartbeat=", ""] {
            let url = read(query);
            assert_eq!((url.login_method(), url.connect_timeout(), url.is_tls()), (None, None, false), "{query}");
        }
        for (query, method) in [
            ("login_method=PLAIN", LoginMethod::Plain),
            ("login_method=AMQPLAIN", LoginMethod::Amqplain),
            ("heartbeat=30&login_method=external&ssl=true", LoginMethod::External),
        ] {
            assert_eq!(read(query).login_method(), Some(method), "{query}");
        }
        assert_eq!(read("connect_timeout=2.5").connect_timeout(), Some(Duration::from_millis(2500)));
        assert_eq!(read("connect_timeout=0&ssl=False").connect_timeout(), None);
        assert!(read("ssl=True&heartbeat=60").is_tls());
    }

    #[test]
    fn several_urls_keep_their_order() {
        let urls = BrokerUrl::parse_all("amqp://a//;amqp://b/v; amqp://c").unwrap();
        let hosts: Vec<_> = urls.iter().map(BrokerUrl::host).collect();
        assert_eq!(hosts, ["a", "b", "c"]);
        for text in ["amqp://a//;", ";amqp://a", "amqp://a;;", "amqp://a ; "] {
            assert_eq!(BrokerUrl::parse_all(text).unwrap().len(), 1, "{text}");
        }
    }

    #[test]
    fn faults_are_named_and_hold_no_password() {
        for (url, word) in [
            ("redis://:secret@h", "amqps"),
            ("secret", "no scheme"),
            ("", "empty"),
            (" ; ", "empty"),
            ("amqp://u:secret/word@h/v", "percent"),
            ("amqp://u:secret#word@h/v", "%23"),
            ("amqp://u:p@h//\nsecret", "line break"),
            ("amqp://u:secret word@h//", "%20"),
            ("secret://u:p@h//", "scheme is not"),
            ("amqp://u:p@h//?secret=1", "take it out"),
            ("amqp://u:p@h//?login_method=secret", "login_method is not"),
            ("amqp://u:secret@h/v?ssl_ca_certs=x", "broker_tls_ca_file"),
            ("amqp://u:secret@h/v?hearbeat=30", "heartbeat"),
            ("amqp://u:p?secret=1@h/v", "%3F"),
            ("amqp://u:p@h/v?heartbeat=secret", "heartbeat=30"),
            ("amqp://u:secret@h/v?login_method=GSSAPI", "GSSAPI"),
            ("amqp://u:secret@h/v?connect_timeout=-1", "connect_timeout"),
            ("amqp://u:secret@a//;redis://b", "amqps"),
            ("amqp://u:secret%ff@h/v", "password"),
        ] {
            let error = BrokerUrl::parse_all(url).unwrap_err().to_string();
            assert!(error.contains(word), "{url}: {error}");
            assert!(!error.contains("secret"), "{error}");
        }
    }

    #[test]
    fn neither_display_nor_debug_holds_the_password() {
        let urls = BrokerUrl::parse_all("amqp://me:secret@[::1]/v").unwrap();
        assert_eq!(format!("{}", urls[0]), "amqp://me@[::1]:5672/v");
        assert_eq!(format!("{urls:?}"), "[amqp://me@[::1]:5672/v]");
    }
}
