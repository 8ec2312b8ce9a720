//! What a synchronization tells of itself, while it runs and when it is done.

use crate::storage::error::Error;
use crate::storage::object::Key;
use crate::telemetry::SyncOutcome;

/// Is told how a synchronization gets on, for a progress bar.
pub trait SyncProgress: Send + Sync {
    /// It begins, with so many entries and so many bytes of payload.
    fn total(&self, entries: u64, bytes: u64);

    /// One entry of so many bytes is dealt with.
    fn step(&self, outcome: SyncOutcome, bytes: u64);

    /// The entry of this key cannot be sent and stays, for this reason; its step follows.
    fn failed(&self, key: &Key, error: Error);
}

/// Nobody watches, so what fails is logged.
impl SyncProgress for () {
    fn total(&self, _: u64, _: u64) {}

    fn step(&self, _: SyncOutcome, _: u64) {}

    fn failed(&self, key: &Key, error: Error) {
        tracing::warn!(%key, %error, "a pending entry cannot be sent; it stays");
    }
}

/// What one pass of synchronization has done.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, serde::Serialize, schemars::JsonSchema)]
pub struct SyncReport {
    /// Writes that the bucket now has.
    pub sent: u64,
    /// Deletes that the bucket has done, or had nothing to do for.
    pub deleted: u64,
    /// Writes that the bucket had already: an earlier answer was lost.
    pub already_there: u64,
    /// Writes set aside and deletes dropped, because somebody else had changed the key in the bucket since.
    pub conflicts: u64,
    /// Entries that were refused, wait for the bucket's patience with their key, or are damaged; they stay.
    pub failed: u64,
    /// Entries in the overlay when the pass was over: those that failed, and what was written meanwhile.
    pub remaining: u64,
}

impl SyncReport {
    pub(super) fn count(&mut self, outcome: SyncOutcome) {
        let number = match outcome {
            SyncOutcome::Sent => &mut self.sent,
            SyncOutcome::Deleted => &mut self.deleted,
            SyncOutcome::AlreadyThere => &mut self.already_there,
            SyncOutcome::Conflict => &mut self.conflicts,
            SyncOutcome::Failed => &mut self.failed,
        };
        *number += 1;
    }
}
