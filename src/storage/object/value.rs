//! The values that callers store: text, bytes, or any JSON value. The type is never guessed from the content.

use bytes::Bytes;

use crate::storage::object::{JsonText, Kind, Payload};

/// A value with its type.
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

    /// Returns the number of the value's bytes before any codec.
    #[must_use]
    pub fn size(&self) -> u64 {
        let bytes = match self {
            Self::Text(text) => text.len(),
            Self::Json(json) => json.as_str().len(),
            Self::Bytes(bytes) => bytes.len(),
        };
        bytes as u64
    }

    /// Returns the value's bytes before any codec, which `size` and `checksum` of a receipt describe.
    #[must_use]
    pub fn into_bytes(self) -> Bytes {
        match self {
            Self::Text(text) => Bytes::from(text),
            Self::Json(json) => Bytes::from(json),
            Self::Bytes(bytes) => bytes,
        }
    }
}

/// The bytes of a value before any codec, in memory or in a file, with the type of the value.
#[derive(Clone, Debug)]
pub struct Content {
    /// Type of the value.
    pub kind: Kind,
    /// The bytes. Text and JSON are in UTF-8.
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

/// Removes a byte order mark from JSON. Some tools write one before UTF-8, and UTF-16 is recognized by its own.
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
