//! An object: bytes plus attributes, as a backend keeps it.

use std::fmt;

use jiff::Timestamp;
use serde_json::value::RawValue;
use uuid::Uuid;

use super::{Foreign, Payload, clock};

/// Bytes and what is known about them.
#[derive(Clone, Debug)]
pub struct Object {
    /// What is known about the payload.
    pub attributes: Attributes,
    /// The bytes as they are kept (after codecs, where a layer applied one).
    pub payload: Payload,
}

/// Which of the three types a value has.
#[derive(Clone, Copy, Debug, PartialEq, Eq, serde::Serialize, serde::Deserialize, schemars::JsonSchema)]
#[serde(rename_all = "lowercase")]
pub enum Kind {
    /// A string.
    Text,
    /// Bytes.
    Bytes,
    /// Any other JSON value.
    Json,
}

impl Kind {
    /// Returns the MIME type of a value that is given none.
    #[must_use]
    pub const fn content_type(self) -> &'static str {
        match self {
            Self::Text => "text/plain; charset=utf-8",
            Self::Bytes => "application/octet-stream",
            Self::Json => "application/json",
        }
    }
}

/// Everything kept beside the payload; the same fields on every backend.
#[derive(Clone, Debug, serde::Serialize, serde::Deserialize)]
pub struct Attributes {
    /// Type of the value.
    pub kind: Kind,
    /// MIME type.
    pub content_type: String,
    /// Bytes of the value, before codecs.
    pub size: u64,
    /// CRC32C of the value, before codecs.
    pub checksum: Checksum,
    /// Bytes kept, after codecs.
    pub stored_size: u64,
    /// CRC32C of the bytes kept.
    pub stored_checksum: Checksum,
    /// Name of the compression codec, when one was used.
    pub compression: Option<String>,
    /// Whether the payload is encrypted.
    pub encrypted: bool,
    /// Random token of this state of the key; what conditions compare.
    pub generation: String,
    /// What stands for the identity of the command that wrote this state, when a queue was involved; the earlier version
    /// kept the id as it came.
    pub operation_id: Option<String>,
    /// Caller's metadata: a JSON object, kept to the letter.
    #[serde(default)]
    pub metadata: Option<Box<RawValue>>,
    /// When the object was written.
    pub stored_at: Timestamp,
    /// When the object stops being there, if ever.
    pub expires_at: Option<Timestamp>,
    /// Id of the overlay whose workers wrote it: their stamps can be compared, whatever the bucket's clock says.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub origin: Option<String>,
    /// In an overlay: the key was deleted, and the bucket has still to be told. Nowhere else.
    #[serde(default, skip_serializing_if = "is_false")]
    pub tombstone: bool,
    /// What another tool said of its object; nothing of values stored here.
    #[serde(default, skip_serializing_if = "Foreign::is_empty")]
    pub foreign: Foreign,
    /// What the place says of the object it gave; not kept in it.
    #[serde(skip)]
    pub seen: Seen,
}

/// What a place says of an object beside what is kept in it.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Seen {
    /// It lies in the overlay and has still to be sent to the bucket.
    pub pending: bool,
    /// When the place received it, by the place's own clock, where that is known.
    pub received_at: Option<Timestamp>,
}

#[expect(clippy::trivially_copy_pass_by_ref, reason = "serde asks so")]
const fn is_false(flag: &bool) -> bool {
    !*flag
}

impl Attributes {
    /// Makes those of a new state that is written now: without codecs, metadata and expiry.
    pub(super) fn new(kind: Kind, content_type: String, size: u64, checksum: Checksum) -> Self {
        Self {
            kind,
            content_type,
            size,
            checksum,
            stored_size: size,
            stored_checksum: checksum,
            compression: None,
            encrypted: false,
            generation: Uuid::new_v4().simple().to_string(),
            operation_id: None,
            metadata: None,
            stored_at: clock::stamp(),
            expires_at: None,
            origin: None,
            tombstone: false,
            foreign: Foreign::default(),
            seen: Seen::default(),
        }
    }

    /// Tells whether the object is past its time.
    #[must_use]
    pub fn is_expired(&self, now: Timestamp) -> bool {
        self.expires_at.is_some_and(|expires_at| expires_at <= now)
    }
}

/// A CRC32C, written as Google writes it: `crc32c:` and base64 of the four big-endian bytes.
#[derive(Clone, Copy, PartialEq, Eq)]
pub struct Checksum(pub u32);

impl Checksum {
    /// Computes the checksum of bytes.
    #[must_use]
    pub fn of(bytes: &[u8]) -> Self {
        Self(crc32c::crc32c(bytes))
    }

    /// Returns the checksum of what this one is of, with more bytes behind it.
    #[must_use]
    pub(super) fn append(self, bytes: &[u8]) -> Self {
        Self(crc32c::crc32c_append(self.0, bytes))
    }
}

impl fmt::Display for Checksum {
    fn fmt(&self, formatter: &mut fmt::Formatter<'_>) -> fmt::Result {
        use base64::Engine as _;
        let encoded = base64::engine::general_purpose::STANDARD.encode(self.0.to_be_bytes());
        write!(formatter, "crc32c:{encoded}")
    }
}

impl fmt::Debug for Checksum {
    fn fmt(&self, formatter: &mut fmt::Formatter<'_>) -> fmt::Result {
        fmt::Display::fmt(self, formatter)
    }
}

impl std::str::FromStr for Checksum {
    type Err = String;

    fn from_str(text: &str) -> Result<Self, Self::Err> {
        use base64::Engine as _;
        let encoded = text.strip_prefix("crc32c:").ok_or_else(|| format!("checksum {text:?} is not crc32c:…"))?;
        let bytes = base64::engine::general_purpose::STANDARD
            .decode(encoded)
            .map_err(|error| format!("checksum {text:?} is not base64: {error}"))?;
        let bytes: [u8; 4] = bytes.try_into().map_err(|_| format!("checksum {text:?} has not four bytes"))?;
        Ok(Self(u32::from_be_bytes(bytes)))
    }
}

impl serde::Serialize for Checksum {
    fn serialize<S: serde::Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
        serializer.collect_str(self)
    }
}

impl<'de> serde::Deserialize<'de> for Checksum {
    fn deserialize<D: serde::Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        let text = std::borrow::Cow::<'de, str>::deserialize(deserializer)?;
        text.parse().map_err(serde::de::Error::custom)
    }
}
