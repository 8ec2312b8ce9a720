//! The caller's metadata and the MIME type, checked once where they enter the program.

use serde_json::value::RawValue;

use crate::json;

/// A legal metadata object: the caller's JSON byte for byte, without blanks between tokens.
#[derive(Clone, Debug, serde::Serialize)]
#[serde(transparent)]
pub struct Metadata(Box<RawValue>);

/// The reason why a text is no legal metadata or content type. The message names the fault and the rule.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
#[error("{0}")]
pub struct OptionError(String);

impl Metadata {
    /// Longest metadata, in bytes of compact ASCII-escaped JSON (`\u00e9` counts six).
    pub const MAX_BYTES: usize = 4096;

    /// Checks the JSON text of an object.
    ///
    /// # Errors
    ///
    /// [`OptionError`] when the text is no JSON object, contains `NaN` or an infinity, is too long or nested deeper than [`json::MAX_DEPTH`].
    pub fn parse(text: &str) -> Result<Self, OptionError> {
        let fault = |why: String| Err(OptionError(why));
        let compact = without_blanks(text);
        if !compact.starts_with('{') {
            return fault("metadata is no JSON object; give a dict or nothing".to_owned());
        }
        let size: usize = compact.chars().map(escaped_length).sum();
        if size > Self::MAX_BYTES {
            let limit = Self::MAX_BYTES;
            return fault(format!("metadata has {size} bytes of ASCII-escaped JSON; at most {limit} are kept"));
        }
        if let Err(error) = json::check(&compact)
            && error.kind == json::ErrorKind::TooDeep
        {
            return fault(format!("metadata is {error}; give flatter metadata"));
        }
        match RawValue::from_string(compact) {
            Ok(raw) => Ok(Self(raw)),
            Err(error) => fault(format!("metadata is not valid JSON (NaN and infinities are not): {error}")),
        }
    }

    /// Returns the JSON text.
    #[must_use]
    pub fn get(&self) -> &str {
        self.0.get()
    }

    /// Removes the blanks between the tokens of a JSON object of any size; `None` for anything else.
    pub(in crate::storage) fn compact(text: &str) -> Option<Box<RawValue>> {
        let compact = without_blanks(text);
        if compact.starts_with('{') { RawValue::from_string(compact).ok() } else { None }
    }

    /// Wraps metadata that a backend stored, which passed [`Metadata::parse`] when it was written.
    pub(in crate::storage) const fn from_kept(raw: Box<RawValue>) -> Self {
        Self(raw)
    }

    /// Returns the text for the attributes of an object.
    pub(in crate::storage) fn into_raw(self) -> Box<RawValue> {
        self.0
    }
}

impl PartialEq for Metadata {
    fn eq(&self, other: &Self) -> bool {
        self.get() == other.get()
    }
}

impl Eq for Metadata {}

impl<'de> serde::Deserialize<'de> for Metadata {
    fn deserialize<D: serde::Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        let raw = Box::<RawValue>::deserialize(deserializer)?;
        Self::parse(raw.get()).map_err(serde::de::Error::custom)
    }
}

impl schemars::JsonSchema for Metadata {
    fn schema_name() -> std::borrow::Cow<'static, str> {
        "Metadata".into()
    }

    fn json_schema(_: &mut schemars::SchemaGenerator) -> schemars::Schema {
        schemars::json_schema!({
            "type": "object",
            "description": "Any JSON object of at most 4096 bytes of compact ASCII-escaped JSON.",
        })
    }
}

/// Removes blanks outside strings. A line break between tokens would end the header line of a local file.
fn without_blanks(text: &str) -> String {
    let mut compact = String::with_capacity(text.len());
    let (mut quoted, mut escaped) = (false, false);
    for character in text.chars() {
        if quoted || !matches!(character, ' ' | '\t' | '\n' | '\r') {
            compact.push(character);
        }
        if !escaped && character == '"' {
            quoted = !quoted;
        }
        escaped = quoted && !escaped && character == '\\';
    }
    compact
}

/// Counts the bytes of one character in JSON that writes everything outside ASCII as `\uXXXX`.
const fn escaped_length(character: char) -> usize {
    if character.is_ascii() { 1 } else { 6 * character.len_utf16() }
}

/// A legal MIME type: printable ASCII `type/subtype`, at most 255 bytes, parameters allowed.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct ContentType(String);

impl ContentType {
    /// Longest content type in bytes.
    pub const MAX_BYTES: usize = 255;

    /// Checks the text of a content type.
    ///
    /// # Errors
    ///
    /// [`OptionError`] with the fault and the rule.
    pub fn parse(text: &str) -> Result<Self, OptionError> {
        // No header keeps blanks at its end.
        let text = text.trim_end_matches(' ');
        let fault = |why: &str| {
            Err(OptionError(format!("content type {text:?} {why}; write it as `type/subtype`, e.g. `text/csv`")))
        };
        if text.len() > Self::MAX_BYTES {
            return fault("is longer than 255 bytes");
        }
        if !text.bytes().all(|byte| matches!(byte, b' '..=b'~')) {
            return fault("holds something else than printable ASCII");
        }
        let essence = text.split_once(';').map_or(text, |(essence, _)| essence).trim_end_matches(' ');
        match essence.split_once('/') {
            Some((kind, subtype)) if is_token(kind) && is_token(subtype) => Ok(Self(text.to_owned())),
            _ => fault("is no MIME type"),
        }
    }

    /// Returns the text.
    #[must_use]
    pub fn as_str(&self) -> &str {
        &self.0
    }

    /// Returns the text as an owned string.
    pub(in crate::storage) fn into_string(self) -> String {
        self.0
    }
}

/// Tells whether a text is a `token` of RFC 9110.
fn is_token(text: &str) -> bool {
    !text.is_empty() && text.bytes().all(|byte| byte.is_ascii_alphanumeric() || b"!#$%&'*+-.^_`|~".contains(&byte))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn metadata_is_kept_to_the_letter() {
        for text in [r"{}", r#"{"a":1e400,"b":[1.0,"x \" y\\"],"ü":{"n":null}}"#, r#"{"big":1180591620717411303424}"#]
        {
            assert_eq!(Metadata::parse(text).unwrap().get(), text);
        }
        assert_eq!(Metadata::parse(" { \"a\\\" b\" :\n[ 1 ,\t2 ] } ").unwrap().get(), r#"{"a\" b":[1,2]}"#);
    }

    #[test]
    fn metadata_that_is_no_json_object_is_refused() {
        for text in ["", "[]", "1", "null", "{", "{\"a\":NaN}", "{\"a\":-Infinity}", "{}{}", "{\"a\":\"\n\"}"] {
            assert!(Metadata::parse(text).is_err(), "{text:?}");
        }
    }

    #[test]
    fn the_limit_counts_escaped_characters() {
        let frame = r#"{"a":""}"#.len();
        let with = |filler: &str, count: usize| Metadata::parse(&format!(r#"{{"a":"{}"}}"#, filler.repeat(count)));
        assert!(with("x", 4096 - frame).is_ok());
        assert!(with("x", 4097 - frame).is_err());
        assert!(with("é", (4096 - frame) / 6).is_ok());
        assert!(with("é", (4096 - frame) / 6 + 1).is_err());
        assert!(with("🦀", (4096 - frame) / 12 + 1).is_err());
    }

    #[test]
    fn metadata_may_be_as_deep_as_a_value() {
        let nested = |levels: usize| format!(r#"{{"a":{}{}}}"#, "[".repeat(levels - 1), "]".repeat(levels - 1));
        assert_eq!(Metadata::parse(&nested(json::MAX_DEPTH)).unwrap().get(), nested(json::MAX_DEPTH));
        let error = Metadata::parse(&nested(json::MAX_DEPTH + 1)).unwrap_err().to_string();
        assert!(error.contains("512"), "{error}");
    }

    #[test]
    fn content_types_are_checked() {
        for text in ["text/plain", "text/plain; charset=utf-8", "application/vnd.api+json;v=\"1, 2\"", "image/svg+xml"]
        {
            assert_eq!(ContentType::parse(text).unwrap().as_str(), text);
        }
        let long = format!("text/{}", "x".repeat(251));
        for text in ["", "text", "/plain", "text/", "text/a b", "text/ü", "a/b\r\nX: y", "a/b/c", "; a/b", &long] {
            assert!(ContentType::parse(text).is_err(), "{text:?}");
        }
    }
}
