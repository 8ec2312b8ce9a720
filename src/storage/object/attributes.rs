//! Everything kept beside an object's payload.

use jiff::Timestamp;
use serde_json::value::RawValue;
use uuid::Uuid;

use crate::storage::object::{Checksum, Foreign, clock};

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
    #[serde(rename = "origin", default, skip_serializing_if = "Option::is_none")]
    pub writer_id: Option<String>,
    /// In an overlay: the key was deleted, and the bucket has still to be told. Nowhere else.
    #[serde(default, skip_serializing_if = "is_false")]
    pub tombstone: bool,
    /// What another tool said of its object; nothing of values stored here.
    #[serde(default, skip_serializing_if = "Foreign::is_empty")]
    pub foreign: Foreign,
    /// What the place says of the object it gave; not kept in it.
    #[serde(skip)]
    pub info: ObjectInfo,
}

/// What is known of an object beside what is kept in it.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct ObjectInfo {
    /// The object lies in an overlay and has still to be sent to the bucket.
    pub pending: bool,
    /// The payload beside these attributes was decoded: it has bytes of the value, not of what is kept.
    pub decoded: bool,
    /// When the place received it, by the place's own clock, where that is known.
    pub received_at: Option<Timestamp>,
}

#[expect(clippy::trivially_copy_pass_by_ref, reason = "serde asks so")]
const fn is_false(flag: &bool) -> bool {
    !*flag
}

impl Attributes {
    /// Makes the attributes of a new state that is written now: without codecs, metadata and expiry.
    #[must_use]
    pub fn new(kind: Kind, content_type: String, size: u64, checksum: Checksum) -> Self {
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
            writer_id: None,
            tombstone: false,
            foreign: Foreign::default(),
            info: ObjectInfo::default(),
        }
    }

    /// Tells whether the bytes kept are not the value's own, so that some layer has to decode them.
    #[must_use]
    pub const fn is_encoded(&self) -> bool {
        self.compression.is_some() || self.encrypted
    }

    /// Tells whether size and checksum are those of the value; of what another tool has encoded they are not known.
    pub(in crate::storage) fn is_value_known(&self) -> bool {
        !self.is_encoded() || self.size != self.stored_size || self.checksum != self.stored_checksum
    }

    /// Tells whether the object that is present was written by the command that would write these attributes now.
    ///
    /// The operation id holds the command as it was sent. What a reference names may have changed since, and what was
    /// written before `began`, when this command began, was written by an equal command: each is another write. A time to
    /// live counts from each attempt, so of two expiries only whether there is one can be compared.
    pub(in crate::storage) fn is_same_write(&self, present: &Self, began: Option<Timestamp>) -> bool {
        self.operation_id.is_some()
            && self.operation_id == present.operation_id
            && (self.kind, self.size, self.checksum) == (present.kind, present.size, present.checksum)
            && self.content_type == present.content_type
            && self.expires_at.is_some() == present.expires_at.is_some()
            && self.metadata.as_ref().map(|text| text.get()) == present.metadata.as_ref().map(|text| text.get())
            && present.is_since(began)
    }

    /// Tells whether the object was written at this time or later.
    ///
    /// Writes are stamped in whole microseconds, and a write may fall into the microsecond in which its command began.
    pub(in crate::storage) fn is_since(&self, began: Option<Timestamp>) -> bool {
        began.is_none_or(|began| self.stored_at.as_microsecond() >= began.as_microsecond())
    }

    /// Tells whether the object is past its time.
    #[must_use]
    pub fn is_expired(&self, now: Timestamp) -> bool {
        self.expires_at.is_some_and(|expires_at| expires_at <= now)
    }
}
