//! What callers store: text, bytes, or any JSON value. Nothing is guessed from content.

use bytes::Bytes;

use super::Kind;

/// A value with its own type.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Value {
    /// A string.
    Text(String),
    /// Bytes.
    Bytes(Bytes),
    /// Any other JSON value as its compact UTF-8 text (numbers exactly as they came, see `json`).
    Json(String),
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
            Self::Text(text) | Self::Json(text) => Bytes::from(text),
            Self::Bytes(bytes) => bytes,
        }
    }
}
