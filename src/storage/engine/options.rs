//! Options of the engine's operations.

use jiff::Timestamp;

use crate::storage::backend::{ByteRange, Condition};
use crate::storage::commit_guard::CommitGuard;
use crate::storage::object::{ContentType, Metadata};

/// How to store.
#[derive(Clone, Debug, Default)]
pub struct StoreOptions {
    /// The caller's metadata.
    pub metadata: Option<Metadata>,
    /// MIME type; by default that of the value's kind.
    pub content_type: Option<ContentType>,
    /// When the object stops being there, if ever.
    pub expires_at: Option<Timestamp>,
    /// What must hold for the write to happen.
    pub condition: Condition,
    /// What stands for the identity of the command that writes, kept in the object.
    pub operation_id: Option<String>,
    /// Set when this write may have been tried before and nothing else remembers how that ended.
    pub redelivered: Option<Redelivered>,
    /// Asked right before the write becomes visible.
    pub commit_guard: CommitGuard,
}

/// How to retrieve to another place.
#[derive(Clone, Debug, Default)]
pub struct RetrieveOptions {
    /// Only these bytes of a text or bytes value; the whole by default.
    pub range: Option<ByteRange>,
    /// What stands for the identity of the command that writes, kept in an object of a bucket.
    pub operation_id: Option<String>,
    /// Asked right before the write becomes visible.
    pub commit_guard: CommitGuard,
}

/// How to delete.
#[derive(Clone, Debug, Default)]
pub struct DeleteRequest {
    /// Only this state of the object may be removed; a missing object is fine.
    pub generation: Option<String>,
    /// Set when this delete may have been tried before and nothing else remembers how that ended.
    pub redelivered: Option<Redelivered>,
    /// Asked right before the object goes.
    pub commit_guard: CommitGuard,
}

/// A write or delete that came again without a record of how the first try ended.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Redelivered {
    /// When the first try began, if that is known: an object written later is newer than this command.
    pub started_at: Option<Timestamp>,
}

/// Which keys.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct ListRequest {
    /// Only keys that begin with this text (any text, not only whole segments).
    pub prefix: Option<String>,
    /// Only keys after this text, in byte order.
    pub start_after: Option<String>,
    /// At most so many keys.
    pub limit: Option<usize>,
}
