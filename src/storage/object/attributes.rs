//! The attributes of an object: everything that is kept besides its payload.

use jiff::Timestamp;
use serde_json::value::RawValue;
use uuid::Uuid;

use crate::storage::object::{Checksum, Codec, Envelope, Foreign, clock};

/// The type of a value.
#[derive(Clone, Copy, Debug, PartialEq, Eq, serde::Serialize, serde::Deserialize, schemars::JsonSchema)]
#[serde(rename_all = "lowercase")]
pub enum Kind {
    /// The value is text.
    Text,
    /// The value is bytes.
    Bytes,
    /// The value is any other JSON value.
    Json,
}

impl Kind {
    /// Returns the MIME type of a value for which the caller names none.
    #[must_use]
    pub const fn content_type(self) -> &'static str {
        match self {
            Self::Text => "text/plain; charset=utf-8",
            Self::Bytes => "application/octet-stream",
            Self::Json => "application/json",
        }
    }
}

/// Everything that is kept besides the payload. The fields are the same on every backend.
#[derive(Clone, Debug, serde::Serialize, serde::Deserialize)]
pub struct Attributes {
    /// Type of the value.
    pub kind: Kind,
    /// MIME type.
    pub content_type: String,
    /// The number of bytes of the value, before codecs.
    pub size: u64,
    /// CRC32C of the value, before codecs.
    pub checksum: Checksum,
    /// The number of bytes that are stored, after codecs.
    pub stored_size: u64,
    /// CRC32C of the stored bytes.
    pub stored_checksum: Checksum,
    /// Name of the compression codec, when one was used.
    pub compression: Option<String>,
    /// Whether the payload is encrypted.
    pub encrypted: bool,
    /// Random token of this state of the key, which conditions compare.
    pub generation: String,
    /// The identity of the command that wrote this state, when a queue was involved. The previous version of this
    /// program stored the task id unchanged.
    pub operation_id: Option<String>,
    /// The generation token of what was copied, where a copy or a move made this state from another key.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub copied_from: Option<String>,
    /// The caller's metadata: a JSON object, kept byte for byte.
    #[serde(default)]
    pub metadata: Option<Box<RawValue>>,
    /// When the object was written.
    pub stored_at: Timestamp,
    /// When the object expires, if ever.
    pub expires_at: Option<Timestamp>,
    /// Writer id: the id of the overlay whose workers wrote the object. Stamps with one writer id can be compared
    /// whatever the bucket's clock says.
    #[serde(rename = "origin", default, skip_serializing_if = "Option::is_none")]
    pub writer_id: Option<String>,
    /// Set only in an overlay: the key was deleted, and the delete is not yet in the bucket.
    #[serde(default, skip_serializing_if = "is_false")]
    pub tombstone: bool,
    /// The properties of an object that another tool wrote; empty for a value stored by this program.
    #[serde(default, skip_serializing_if = "Foreign::is_empty")]
    pub foreign: Foreign,
    /// How the object is encrypted, while these attributes are sealed: the value's checksum and metadata are hidden then.
    /// Attributes that were opened have none, and are [`encrypted`](Self::encrypted) all the same.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub encryption: Option<Envelope>,
    /// What the place reported when it returned the object; not stored in the object.
    #[serde(skip)]
    pub info: ObjectInfo,
}

/// What a place reports about an object, beyond what is stored in it.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct ObjectInfo {
    /// Whether the object is in an overlay and not yet in the bucket.
    pub pending: bool,
    /// Whether the payload that came with these attributes is decoded: bytes of the value, not the stored bytes.
    pub decoded: bool,
    /// When the place received the object, by the place's own clock, if known.
    pub received_at: Option<Timestamp>,
    /// Whether the checksum of the value in these attributes is none, since nobody has read the bytes, or no key opens it.
    pub unread: bool,
    /// Whether the checksum was computed from all bytes, because the place does not know it. To ask for the attributes
    /// then takes as long as reading the object.
    pub computed_checksum: bool,
    /// Set for a file of the Python class `FileStorage`.
    pub legacy: Option<LegacyFile>,
}

/// What cannot be told for sure of a file that the Python class `FileStorage` wrote.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct LegacyFile {
    /// No sidecar names a content type.
    pub untyped: bool,
    /// The file is taken for compressed by its first bytes, since no sidecar says anything.
    pub assumed_gzip: bool,
    /// There is a sidecar that cannot be read.
    pub unreadable_sidecar: bool,
    /// The value is taken for a text and may have been bytes, which the class wrote alike.
    pub text_or_bytes: bool,
    /// The value is a text that is JSON: the class itself returned it parsed.
    pub json_text: bool,
    /// JSON does not keep all types of the value: tuples and sets are arrays, keys of dicts are texts.
    pub types_changed: bool,
    /// The value is the bytes of a pickle that cannot be read as data.
    pub kept_pickle: bool,
}

#[expect(clippy::trivially_copy_pass_by_ref, reason = "serde asks so")]
const fn is_false(flag: &bool) -> bool {
    !*flag
}

impl Attributes {
    /// Makes the attributes of a new state that is written now, without codecs, metadata and expiry.
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
            generation: Self::new_generation(),
            operation_id: None,
            copied_from: None,
            metadata: None,
            stored_at: clock::stamp(),
            expires_at: None,
            writer_id: None,
            tombstone: false,
            foreign: Foreign::default(),
            encryption: None,
            info: ObjectInfo::default(),
        }
    }

    /// Makes the token of a new state.
    pub(in crate::storage) fn new_generation() -> String {
        Uuid::new_v4().simple().to_string()
    }

    /// Takes kind, sizes and checksums of a value whose bytes are at hand, so that they can be stored as they are.
    #[must_use]
    pub(in crate::storage) fn into_value_of(self, value: &Self) -> Self {
        Self {
            kind: value.kind,
            size: value.size,
            checksum: value.checksum,
            stored_size: value.size,
            stored_checksum: value.checksum,
            compression: None,
            encrypted: false,
            encryption: None,
            foreign: value.foreign.clone(),
            ..self
        }
    }

    /// Tells whether the stored bytes are not those of the value, so that a layer has to decode them.
    #[must_use]
    pub const fn is_encoded(&self) -> bool {
        self.compression.is_some() || self.encrypted
    }

    /// Tells whether size and checksum are those of the value, which is unknown for an object that another tool
    /// encoded.
    pub(in crate::storage) fn is_value_known(&self) -> bool {
        !self.is_encoded() || self.encrypted || self.size != self.stored_size || self.checksum != self.stored_checksum
    }

    /// Tells whether the checksum and the metadata of the value are hidden until a key opens them.
    #[must_use]
    pub const fn is_sealed(&self) -> bool {
        self.encryption.is_some()
    }

    /// Tells whether another tool has encoded the bytes in a way that this program cannot decode.
    pub(in crate::storage) fn has_unknown_coding(&self) -> bool {
        let unknown = self.compression.as_deref().is_some_and(|codec| Codec::named(codec).is_none());
        self.foreign.other_tool && !self.encrypted && unknown
    }

    /// Tells whether the present object was written by the command that would write these attributes now.
    ///
    /// The operation id identifies the command as it was sent, but two cases are another write all the same: the source
    /// that a reference names may have changed since, and an object that was written before `began`, the start of this
    /// command, was written by an equal command. A time to live counts from each attempt, so expiries are only compared
    /// by whether there is one. Of sealed attributes, which are different each time, the operation id stands for checksum and
    /// metadata, too.
    pub(in crate::storage) fn is_same_write(&self, present: &Self, began: Option<Timestamp>) -> bool {
        self.operation_id.is_some()
            && self.operation_id == present.operation_id
            && (self.kind, self.size) == (present.kind, present.size)
            && self.content_type == present.content_type
            && self.expires_at.is_some() == present.expires_at.is_some()
            && self.is_same_value(present)
            && present.is_since(began)
    }

    fn is_same_value(&self, present: &Self) -> bool {
        if self.is_sealed() || present.is_sealed() {
            return self.is_sealed() && present.is_sealed();
        }
        self.checksum == present.checksum
            && self.metadata.as_ref().map(|text| text.get()) == present.metadata.as_ref().map(|text| text.get())
    }

    /// Tells whether the object was written at this time or later.
    ///
    /// Writes are stamped in whole microseconds, and a write may have the same microsecond as the start of its command.
    pub(in crate::storage) fn is_since(&self, began: Option<Timestamp>) -> bool {
        began.is_none_or(|began| self.stored_at.as_microsecond() >= began.as_microsecond())
    }

    /// Returns when the place received this state of the object, by the place's own clock, if known.
    ///
    /// An object whose data key was wrapped again since is still in the same state.
    pub(in crate::storage) fn received_at(&self) -> Option<Timestamp> {
        self.encryption.as_ref().and_then(|envelope| envelope.received_at).or(self.info.received_at)
    }

    /// Tells whether the object has expired.
    #[must_use]
    pub fn is_expired(&self, now: Timestamp) -> bool {
        self.expires_at.is_some_and(|expires_at| expires_at <= now)
    }
}
