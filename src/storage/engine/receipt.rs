//! The receipts that callers get about an object.

use jiff::Timestamp;

use crate::provider::BackendKind;
use crate::storage::object::{Attributes, Checksum, Key, Kind, Metadata};

/// One state of one object: what a store answers.
#[derive(Clone, Debug, PartialEq, Eq, serde::Serialize, schemars::JsonSchema)]
pub struct Receipt {
    /// Its key.
    #[serde(serialize_with = "key_text")]
    #[schemars(with = "String", length(min = 1, max = 1024))]
    pub key: Key,
    /// Where it is kept.
    pub backend: BackendKind,
    /// Whether it still waits to be sent to the bucket.
    pub pending_sync: bool,
    /// Bytes of the value.
    pub size: u64,
    /// Bytes kept.
    pub stored_size: u64,
    /// Compression codec of the bytes kept, if any.
    pub compression: Option<String>,
    /// Whether the bytes kept are encrypted.
    pub encrypted: bool,
    /// CRC32C of the value's bytes: `crc32c:` and base64 of the four big-endian bytes.
    #[schemars(with = "String", regex(pattern = "^crc32c:[A-Za-z0-9+/]{6}==$"))]
    pub checksum: Checksum,
    /// Opaque token of this state; what `if_generation` compares.
    pub generation: String,
    /// MIME type.
    pub content_type: String,
    /// Type of the value.
    pub kind: Kind,
    /// When it was written: ISO 8601 in UTC with microseconds and offset.
    #[serde(serialize_with = "iso")]
    #[schemars(with = "String", extend("format" = "date-time"))]
    pub stored_at: Timestamp,
    /// When it stops being there, in the same form, or null.
    #[serde(serialize_with = "iso_or_null")]
    #[schemars(with = "Option<String>", extend("format" = "date-time"))]
    pub expires_at: Option<Timestamp>,
}

impl Receipt {
    /// Makes the receipt of attributes that are stored in a backend, or in its overlay.
    pub(in crate::storage) fn of(key: &Key, place: BackendKind, attributes: &Attributes) -> Self {
        Self {
            key: key.clone(),
            backend: if attributes.info.pending { BackendKind::Local } else { place },
            pending_sync: attributes.info.pending,
            size: attributes.size,
            stored_size: attributes.stored_size,
            compression: attributes.compression.clone(),
            encrypted: attributes.encrypted,
            checksum: attributes.checksum,
            generation: attributes.generation.clone(),
            content_type: attributes.content_type.clone(),
            kind: attributes.kind,
            stored_at: attributes.stored_at,
            expires_at: attributes.expires_at,
        }
    }
}

/// A receipt with the caller's metadata: what `stat` answers.
#[derive(Clone, Debug, PartialEq, Eq, serde::Serialize, schemars::JsonSchema)]
pub struct Stat {
    /// The receipt, its members inline.
    #[serde(flatten)]
    pub receipt: Receipt,
    /// The metadata exactly as it was given, or null.
    pub metadata: Option<Metadata>,
}

/// Writes a time as receipts do: ISO 8601, UTC, six decimals, offset `+00:00`.
#[must_use]
pub fn format_timestamp(timestamp: Timestamp) -> String {
    timestamp.strftime("%Y-%m-%dT%H:%M:%S%.6f+00:00").to_string()
}

fn key_text<S: serde::Serializer>(key: &Key, serializer: S) -> Result<S::Ok, S::Error> {
    serializer.serialize_str(key.as_str())
}

fn iso<S: serde::Serializer>(timestamp: &Timestamp, serializer: S) -> Result<S::Ok, S::Error> {
    serializer.serialize_str(&format_timestamp(*timestamp))
}

fn iso_or_null<S: serde::Serializer>(timestamp: &Option<Timestamp>, serializer: S) -> Result<S::Ok, S::Error> {
    match timestamp {
        Some(timestamp) => iso(timestamp, serializer),
        None => serializer.serialize_none(),
    }
}
