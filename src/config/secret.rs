//! Text that never shows itself.

use std::fmt;

/// A text that must not be seen: `Debug` and `Display` write `***`.
#[derive(Clone, PartialEq, Eq)]
pub struct Secret(String);

impl Secret {
    /// Wraps a text.
    pub fn new(text: impl Into<String>) -> Self {
        Self(text.into())
    }

    /// Returns the text itself, for the one place that needs it.
    #[must_use]
    pub fn expose(&self) -> &str {
        &self.0
    }
}

impl fmt::Debug for Secret {
    fn fmt(&self, formatter: &mut fmt::Formatter<'_>) -> fmt::Result {
        formatter.write_str("***")
    }
}

impl fmt::Display for Secret {
    fn fmt(&self, formatter: &mut fmt::Formatter<'_>) -> fmt::Result {
        formatter.write_str("***")
    }
}

/// Hides the passwords of URLs joined by `;`, keeping everything else readable.
///
/// Works on text that is no URL as well: whatever stands before the last `@` and after the first `:` of the user part
/// is hidden.
#[must_use]
pub fn redact_urls(urls: &str) -> String {
    urls.split(';').map(redact_url).collect::<Vec<_>>().join(";")
}

fn redact_url(url: &str) -> String {
    let (scheme, rest) = url.split_once("://").map_or(("", url), |(scheme, rest)| (scheme, rest));
    let separator = if url.contains("://") { "://" } else { "" };
    match rest.rsplit_once('@') {
        Some((user, place)) => {
            let user = user.split(':').next().unwrap_or_default();
            format!("{scheme}{separator}{user}:***@{place}")
        }
        None => url.to_owned(),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_secret_shows_stars() {
        let secret = Secret::new("hunter2");
        assert_eq!(format!("{secret} {secret:?} {:?}", Some(&secret)), "*** *** Some(***)");
        assert_eq!(secret.expose(), "hunter2");
    }

    #[test]
    fn only_the_password_of_a_url_is_hidden() {
        for (url, shown) in [
            ("amqp://guest:guest@localhost:5672//", "amqp://guest:***@localhost:5672//"),
            ("amqp://u:p@ss/w:rd@host/v", "amqp://u:***@host/v"),
            ("amqp://a:x@one;amqps://b:y@two/v", "amqp://a:***@one;amqps://b:***@two/v"),
            ("amqp://localhost", "amqp://localhost"),
            ("guest:secret@host", "guest:***@host"),
            ("user@host", "user:***@host"),
        ] {
            assert_eq!(redact_urls(url), shown);
        }
    }
}
