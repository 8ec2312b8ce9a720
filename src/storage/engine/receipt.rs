//! The receipts that describe stored objects to callers.

use jiff::Timestamp;

use crate::provider::BackendKind;
use crate::storage::object::{Attributes, Checksum, Key, Kind, Metadata};

/// The description of an object as it is stored after one write.
#[derive(Clone, Debug, PartialEq, Eq, serde::Serialize, schemars::JsonSchema)]
pub struct Receipt {
    /// The key of the object.
    #[serde(serialize_with = "key_text")]
    #[schemars(with = "String", length(min = 1, max = 1024))]
    pub key: Key,
    /// The backend that holds the object.
    pub backend: BackendKind,
    /// Whether the object still waits on the local disk to be sent to the bucket.
    pub pending_sync: bool,
    /// The number of bytes of the value. Null for an object that another tool encoded and that was not read whole.
    pub size: Option<u64>,
    /// The number of stored bytes, after compression and encryption.
    pub stored_size: u64,
    /// The compression codec of the stored bytes, or null when they are not compressed.
    pub compression: Option<String>,
    /// Whether the stored bytes are encrypted.
    pub encrypted: bool,
    /// The CRC32C of the value: `crc32c:` and the base64 of its four bytes in big-endian order. Null where the size is, and
    /// for an earlier version of another tool whose checksum the bucket does not tell.
    #[schemars(with = "Option<String>", regex(pattern = "^crc32c:[A-Za-z0-9+/]{6}==$"))]
    pub checksum: Option<Checksum>,
    /// An opaque token that every write of the object changes. `if_generation` compares it.
    pub generation: String,
    /// The MIME type of the value.
    pub content_type: String,
    /// The type of the value.
    pub kind: Kind,
    /// When the object was written: ISO 8601 in UTC with microseconds and offset.
    #[serde(serialize_with = "iso")]
    #[schemars(with = "String", extend("format" = "date-time"))]
    pub stored_at: Timestamp,
    /// When the object expires: ISO 8601 in UTC with microseconds and offset, or null when it never expires.
    #[serde(serialize_with = "iso_or_null")]
    #[schemars(with = "Option<String>", extend("format" = "date-time"))]
    pub expires_at: Option<Timestamp>,
}

impl Receipt {
    /// Makes the receipt of attributes that are stored in a backend, or in its overlay.
    pub(in crate::storage) fn of(key: &Key, place: BackendKind, attributes: &Attributes) -> Self {
        let is_known = attributes.is_value_known();
        Self {
            key: key.clone(),
            backend: if attributes.info.pending { BackendKind::Local } else { place },
            pending_sync: attributes.info.pending,
            size: is_known.then_some(attributes.size),
            stored_size: attributes.stored_size,
            compression: attributes.compression.clone(),
            encrypted: attributes.encrypted,
            checksum: (is_known && !attributes.info.unread).then_some(attributes.checksum),
            generation: attributes.generation.clone(),
            content_type: attributes.content_type.clone(),
            kind: attributes.kind,
            stored_at: attributes.stored_at,
            expires_at: attributes.expires_at,
        }
    }
}

/// The receipt of an object together with the caller's metadata.
#[derive(Clone, Debug, PartialEq, Eq, serde::Serialize, schemars::JsonSchema)]
pub struct Stat {
    /// The receipt, whose members are written inline.
    #[serde(flatten)]
    pub receipt: Receipt,
    /// The metadata exactly as it was stored, or null when none was given.
    pub metadata: Option<Metadata>,
}

impl Stat {
    /// Describes an object by its attributes.
    pub(in crate::storage) fn of(key: &Key, place: BackendKind, attributes: Attributes) -> Self {
        let receipt = Receipt::of(key, place, &attributes);
        Self { receipt, metadata: attributes.metadata.map(Metadata::from_kept) }
    }
}

/// The receipt of one version of an object.
#[derive(Clone, Debug, PartialEq, Eq, serde::Serialize, schemars::JsonSchema)]
pub struct KeptVersion {
    /// The receipt, whose members are written inline.
    #[serde(flatten)]
    pub receipt: Receipt,
    /// Whether the version is the present state of the key.
    pub is_current: bool,
}

/// Formats a time for receipts: ISO 8601 in UTC, with six decimals and the offset `+00:00`.
#[must_use]
pub fn format_timestamp(timestamp: Timestamp) -> String {
    timestamp.strftime("%Y-%m-%dT%H:%M:%S%.6f+00:00").to_string()
}

pub(super) fn key_text<S: serde::Serializer>(key: &Key, serializer: S) -> Result<S::Ok, S::Error> {
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
