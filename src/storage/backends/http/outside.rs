//! The parts of an answer that may be shown, for answers that the bucket itself cannot have given.

use std::fmt;

use http::{HeaderMap, StatusCode, header};
use reqwest::Url;

/// The largest number of characters that are shown of a content type.
const LONGEST_TYPE: usize = 80;

/// The outside of an answer: status, content type, and the target of a redirect. It has no text, no query and no path.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(in crate::storage) struct Outside {
    pub(in crate::storage) status: StatusCode,
    content_type: Option<String>,
    /// Scheme, host and port of the target; `None` without a `Location` that can be parsed.
    location: Option<String>,
}

impl Outside {
    /// Reads status and headers of an answer of the server at the URL `asked`.
    pub(in crate::storage) fn of(status: StatusCode, headers: &HeaderMap, asked: &str) -> Self {
        let text = |name| headers.get(name).and_then(|value| value.to_str().ok());
        let plain = |text: &str| text.chars().filter(|each| !each.is_control()).take(LONGEST_TYPE).collect();
        let location = text(header::LOCATION).and_then(|location| {
            // Without the URL that was asked, only an absolute location has a host.
            let target = Url::parse(asked).map_or_else(|_| Url::parse(location), |asked| asked.join(location)).ok()?;
            let port = target.port().map(|port| format!(":{port}")).unwrap_or_default();
            Some(format!("{}://{}{port}", target.scheme(), target.host_str()?))
        });
        Self { status, content_type: text(header::CONTENT_TYPE).map(plain), location }
    }

    /// Returns the server that the answer redirects to.
    pub(in crate::storage) fn location(&self) -> Option<&str> {
        self.location.as_deref()
    }

    /// Says which server may have answered instead of the bucket. One answer may have several causes.
    pub(in crate::storage) fn suspicion(&self, asked: &str) -> String {
        match &self.location {
            Some(location) if self.status.is_redirection() => {
                let secure = asked.strip_prefix("http://").and_then(|remainder| remainder.split('/').next());
                if secure.is_some_and(|host| *location == format!("https://{}", host.split(':').next().unwrap_or(host)))
                {
                    "it wants to be asked with https://".to_owned()
                } else {
                    format!("a log-in page, a web server or a moved service redirects to {location}")
                }
            }
            _ if self.is_page() => "a web page of a log-in, a console, maintenance or a proxy".to_owned(),
            _ => "another service, or a server in between".to_owned(),
        }
    }

    fn is_page(&self) -> bool {
        self.content_type.as_ref().is_some_and(|given| given.to_ascii_lowercase().contains("html"))
    }
}

impl fmt::Display for Outside {
    fn fmt(&self, formatter: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(formatter, "{}", self.status)?;
        match &self.content_type {
            Some(content_type) => write!(formatter, " with content type {content_type}")?,
            None => formatter.write_str(" without a content type")?,
        }
        match &self.location {
            Some(location) => write!(formatter, " and Location {location}"),
            None => Ok(()),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn outside(status: u16, headers: &[(&'static str, &str)]) -> Outside {
        let headers = headers.iter().map(|(name, value)| (name.parse().unwrap(), value.parse().unwrap())).collect();
        Outside::of(StatusCode::from_u16(status).unwrap(), &headers, "http://store.example:9000/bucket")
    }

    #[test]
    fn a_location_is_shown_without_path_query_and_user() {
        for (given, told) in [
            ("https://login.example/secret-path?token=secret", "https://login.example"),
            ("/login?token=secret", "http://store.example:9000"),
            ("https://u:secret@sso.example:8443/x#secret", "https://sso.example:8443"),
            ("//other.example/secret", "http://other.example"),
        ] {
            let found = outside(302, &[("location", given), ("content-type", "text/html")]);
            assert_eq!(found.location(), Some(told), "{given}");
            let text = format!("{found} {}", found.suspicion("http://store.example:9000/bucket"));
            assert!(text.contains(told) && text.contains("302") && !text.contains("secret"), "{text}");
        }
        assert_eq!(outside(302, &[("location", "http://[")]).location(), None);
    }

    #[test]
    fn one_status_has_several_causes() {
        let asked = "http://store.example:9000/bucket";
        let secure = outside(301, &[("location", "https://store.example/bucket")]);
        assert!(secure.suspicion(asked).contains("https://"), "{}", secure.suspicion(asked));
        assert!(outside(301, &[("location", "https://sso/x")]).suspicion(asked).contains("log-in"));
        assert!(outside(200, &[("content-type", "text/HTML; charset=utf-8")]).suspicion(asked).contains("web page"));
        assert!(outside(200, &[("content-type", "application/json")]).suspicion(asked).contains("another service"));
        let long = outside(200, &[("content-type", &"x".repeat(5000))]);
        assert!(long.to_string().len() < 200);
    }
}
