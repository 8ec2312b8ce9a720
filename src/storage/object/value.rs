//! What callers store: text, bytes, or any JSON value. Nothing is guessed from content.

use bytes::Bytes;

use crate::storage::object::{JsonText, Kind, Payload};

/// A value with its own type.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Value {
    /// A string.
    Text(String),
    /// Bytes.
    Bytes(Bytes),
    /// Any other JSON value, numbers exactly as they came (see `json`).
    Json(JsonText),
}

impl Value {
    /// Tells the value's kind.
    #[must_use]
    pub const fn kind(&self) -> Kind {
        match self {
            Self::Text(_) => Kind::Text,
            Self::Bytes(_) => Kind::Bytes,
            Self::Json(_) => Kind::Json,
        }
    }

    /// Returns the value's bytes before any codec: what `size` and `checksum` of a receipt speak of.
    #[must_use]
    pub fn into_bytes(self) -> Bytes {
        match self {
            Self::Text(text) => Bytes::from(text),
            Self::Json(json) => Bytes::from(json),
            Self::Bytes(bytes) => bytes,
        }
    }
}

/// A value's bytes before any codec, in memory or in a file, and its type.
#[derive(Clone, Debug)]
pub struct Content {
    /// Type of the value.
    pub kind: Kind,
    /// The bytes; text and JSON in UTF-8.
    pub payload: Payload,
    /// Somebody has parsed the JSON already.
    pub(in crate::storage) is_parsed: bool,
}

impl Content {
    /// Takes bytes of which nobody has looked yet whether they are of this kind.
    #[must_use]
    pub const fn new(kind: Kind, payload: Payload) -> Self {
        Self { kind, payload, is_parsed: false }
    }
}

impl From<Value> for Content {
    fn from(value: Value) -> Self {
        Self { kind: value.kind(), payload: value.into_bytes().into(), is_parsed: true }
    }
}

/// Takes a byte order mark off the beginning of JSON, which some tools write; UTF-16 shows by its own.
pub(in crate::storage) fn unmarked(json: Bytes) -> Bytes {
    if json.starts_with(b"\xef\xbb\xbf") {
        return json.slice(3..);
    }
    if json.starts_with(b"\xff\xfe") || json.starts_with(b"\xfe\xff") {
        let charset = crate::charset::Charset::Utf16 { big: false };
        return charset.decode(&json).map_or_else(|| json.clone(), |text| text.into_owned().into());
    }
    json
}
