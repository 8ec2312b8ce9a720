//! The name of an object, checked once where it enters the program.

use std::fmt;

use crate::redact::redact;

/// A legal key: 1 to 1024 bytes of UTF-8, no control character, no empty, `.` or `..` segment.
///
/// The rule is the same on every backend, so the code behind this check meets no leading, trailing or doubled `/` and
/// no drive form. Keys are ordered by bytes, which is the order of listings.
#[derive(Clone, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct Key(std::sync::Arc<str>);

/// The reason why a text is no legal key. The message names the fault and the rule.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
#[error("{0}")]
pub struct KeyError(String);

impl Key {
    /// Longest key in bytes.
    pub const MAX_BYTES: usize = 1024;

    /// Checks a text against the key rule.
    ///
    /// # Errors
    ///
    /// [`KeyError`] with the fault and the rule.
    pub fn parse(text: &str) -> std::result::Result<Self, KeyError> {
        let fault = |why: String| Err(KeyError(redact(&why).into_owned()));
        if text.is_empty() {
            return fault("the key is empty; a key has 1 to 1024 bytes".to_owned());
        }
        if text.len() > Self::MAX_BYTES {
            return fault(format!("the key has {} bytes; a key has 1 to 1024 bytes of UTF-8", text.len()));
        }
        if let Some(control) = text.chars().find(|character| character.is_control()) {
            return fault(format!("key {text:?} holds the control character U+{:04X}; remove it", u32::from(control)));
        }
        if text.starts_with('\\') || is_drive(text) {
            return fault(format!("key {text:?} looks like an absolute Windows path; keys are relative, with `/`"));
        }
        for segment in text.split('/') {
            match segment {
                "" => return fault(format!("key {text:?} has an empty segment: no leading, trailing or doubled `/`")),
                "." | ".." => return fault(format!("key {text:?} has the segment {segment:?}, which no key may have")),
                _ => {}
            }
        }
        Ok(Self(text.into()))
    }

    /// Returns the key's text.
    #[must_use]
    pub fn as_str(&self) -> &str {
        &self.0
    }
}

/// Tells whether a text begins with a drive: a letter, `:` and a slash of either kind.
fn is_drive(text: &str) -> bool {
    let bytes = text.as_bytes();
    bytes.len() >= 3 && bytes[0].is_ascii_alphabetic() && bytes[1] == b':' && matches!(bytes[2], b'\\' | b'/')
}

/// Hash and order of a key are those of its text, so maps can be searched with a text.
impl std::borrow::Borrow<str> for Key {
    fn borrow(&self) -> &str {
        &self.0
    }
}

impl fmt::Display for Key {
    fn fmt(&self, formatter: &mut fmt::Formatter<'_>) -> fmt::Result {
        formatter.write_str(&self.0)
    }
}

impl fmt::Debug for Key {
    fn fmt(&self, formatter: &mut fmt::Formatter<'_>) -> fmt::Result {
        fmt::Debug::fmt(&self.0, formatter)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn keys_follow_the_rule() {
        for text in ["a", "a/b", "…", "a b", "~", "a..b", ".hidden", "C:", "a\\b", "c:d", "%2e%2e", "a:b/c", "🦀/é"]
        {
            assert_eq!(Key::parse(text).unwrap().as_str(), text);
        }
        let longest = "x".repeat(1024);
        assert!(Key::parse(&longest).is_ok());
        let too_long = "x".repeat(1025);
        for text in [
            "",
            "/a",
            "a/",
            "a//b",
            ".",
            "..",
            "a/../b",
            "./a",
            "a\n",
            "a\0",
            "\u{7f}",
            "a\u{85}",
            "C:\\x",
            "c:/x",
            "\\x",
            "\\\\host\\x",
            &too_long,
        ] {
            assert!(Key::parse(text).is_err(), "{text:?}");
        }
    }
}
