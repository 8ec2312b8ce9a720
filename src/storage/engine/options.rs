//! Options of the engine's operations.

use jiff::Timestamp;

use crate::storage::backend::{ByteRange, Condition, GetOptions};
use crate::storage::commit_guard::CommitGuard;
use crate::storage::object::{ContentType, Metadata};

/// Options of a store.
#[derive(Clone, Debug, Default)]
pub struct StoreOptions {
    /// The caller's metadata.
    pub metadata: Option<Metadata>,
    /// MIME type; by default that of the value's kind.
    pub content_type: Option<ContentType>,
    /// When the object expires, if ever.
    pub expires_at: Option<Timestamp>,
    /// The condition that must hold for the write to happen.
    pub condition: Condition,
    /// The identity of the command that writes, which is kept in the object.
    pub operation_id: Option<String>,
    /// Set for a write that may have been tried before, without any record of how the first try ended.
    pub redelivered: Option<Redelivered>,
    /// The guard that is asked right before the write becomes visible.
    pub commit_guard: CommitGuard,
}

/// Options of a read.
#[derive(Clone, Debug, Default)]
pub struct StateOptions {
    /// The generation token of the state that is read, present or earlier; by default the present state.
    pub generation: Option<String>,
    /// Which bytes are read, and in what form.
    pub bytes: GetOptions,
}

impl From<GetOptions> for StateOptions {
    fn from(bytes: GetOptions) -> Self {
        Self { generation: None, bytes }
    }
}

/// Options of a retrieval to another place.
#[derive(Clone, Debug, Default)]
pub struct RetrieveOptions {
    /// The generation token of the state that is read, present or earlier; by default the present state.
    pub generation: Option<String>,
    /// Only these bytes of a text or bytes value; the whole by default.
    pub range: Option<ByteRange>,
    /// The identity of the command that writes, which is kept in an object of a bucket.
    pub operation_id: Option<String>,
    /// The guard that is asked right before the write becomes visible.
    pub commit_guard: CommitGuard,
}

/// Options of a delete.
#[derive(Clone, Debug, Default)]
pub struct DeleteRequest {
    /// Only this state of the object may be removed. A missing object is a success.
    pub generation: Option<String>,
    /// Set for a delete that may have been tried before, without any record of how the first try ended.
    pub redelivered: Option<Redelivered>,
    /// The guard that is asked right before the object is removed.
    pub commit_guard: CommitGuard,
}

/// A write or delete that was delivered again without a record of how the first try ended.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Redelivered {
    /// When the first try began, if known. An object written later is newer than this command.
    pub started_at: Option<Timestamp>,
}

/// The keys that a list returns.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct ListRequest {
    /// Only keys that begin with this text (any text, not only whole segments).
    pub prefix: Option<String>,
    /// Only keys after this text, in byte order.
    pub start_after: Option<String>,
    /// The largest number of keys.
    pub limit: Option<usize>,
}
