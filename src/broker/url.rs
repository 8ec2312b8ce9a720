//! `CELERY_BROKER_URL` by kombu's rules.

use std::{fmt, time::Duration};

use lapin::uri::{AMQPAuthority, AMQPQueryString, AMQPScheme, AMQPUri, AMQPUserInfo};
use percent_encoding::percent_decode_str;

/// One broker's address and login; shown without the password.
#[derive(Clone, PartialEq, Eq)]
pub struct BrokerUrl {
    tls: bool,
    host: String,
    port: u16,
    user: String,
    password: String,
    vhost: String,
}

/// Why a URL cannot be used; never repeats the login.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
#[error("{0}")]
pub struct UrlError(String);

impl BrokerUrl {
    /// Reads `CELERY_BROKER_URL`: several URLs are joined by `;`; a missing or `//` path is the virtual host `/`, any other
    /// is the virtual host after the first slash; host, user, password and virtual host are percent-decoded and default to
    /// `localhost`, `guest`, `guest` and `/`; the port to 5672, with TLS 5671. Schemes: `amqp`, `pyamqp`, and `amqps`,
    /// `pyamqps` for TLS, as the option `ssl` asks for it too.
    ///
    /// # Errors
    /// Names what is wrong and what is supported.
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
                return Err(UrlError(format!(
                    "the broker scheme {other:?} is not supported: use amqp, amqps, pyamqp or pyamqps"
                )));
            }
        };
        if rest.contains('#') {
            return Err(UrlError("the broker url holds a '#': write it as %23".to_owned()));
        }
        let (rest, query) = rest.split_once('?').unwrap_or((rest, ""));
        let (authority, path) = rest.split_once('/').unwrap_or((rest, ""));
        for option in query.split('&').filter(|option| !option.is_empty()) {
            match option.split_once('=').unwrap_or((option, "")) {
                ("ssl", value) => tls |= !matches!(value.to_ascii_lowercase().as_str(), "" | "0" | "false"),
                (name, _) => {
                    return Err(UrlError(format!(
                        "the broker url option {name:?} is not supported: only ssl is, certificates have settings of their own"
                    )));
                }
            }
        }

        let (login, place) = authority.rsplit_once('@').unwrap_or(("", authority));
        let (user, password) = login.split_once(':').unwrap_or((login, ""));
        let (host, port) = split_port(place)?;
        Ok(Self {
            tls,
            host: decode(host, "host", "localhost")?,
            port: port.unwrap_or(if tls { 5671 } else { 5672 }),
            user: decode(user, "user", "guest")?,
            password: decode(password, "password", "guest")?,
            vhost: decode(path, "virtual host", "/")?,
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

    pub(super) fn to_lapin(&self, heartbeat: u16, connect_within: Duration) -> AMQPUri {
        AMQPUri {
            scheme: if self.tls { AMQPScheme::AMQPS } else { AMQPScheme::AMQP },
            authority: AMQPAuthority {
                userinfo: AMQPUserInfo { username: self.user.clone(), password: self.password.clone() },
                host: self.host.clone(),
                port: self.port,
            },
            vhost: self.vhost.clone(),
            query: AMQPQueryString {
                heartbeat: Some(heartbeat),
                // RabbitMQ's own default. Without it the library grows its four buffers to 4 MiB each by writing zeros.
                frame_max: Some(128 << 10),
                connection_timeout: u64::try_from(connect_within.as_millis()).ok(),
                ..AMQPQueryString::default()
            },
        }
    }
}

/// Splits `host:port`; an IPv6 address stands in brackets.
fn split_port(place: &str) -> Result<(&str, Option<u16>), UrlError> {
    let (host, port) = match place.strip_prefix('[').and_then(|inner| inner.split_once(']')) {
        Some((host, rest)) => (host, rest.strip_prefix(':').unwrap_or(rest)),
        None => place.split_once(':').unwrap_or((place, "")),
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
    // A longer virtual host cannot be said in AMQP.
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
    fn several_urls_keep_their_order() {
        let urls = BrokerUrl::parse_all("amqp://a//;amqp://b/v; amqp://c").unwrap();
        let hosts: Vec<_> = urls.iter().map(BrokerUrl::host).collect();
        assert_eq!(hosts, ["a", "b", "c"]);
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
            ("amqp://u:secret@h/v?ssl_ca_certs=x", "ssl_ca_certs"),
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
