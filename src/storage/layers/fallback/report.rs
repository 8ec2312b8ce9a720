//! The reports of a sync pass, while it runs and at its end.

use crate::storage::error::Error;
use crate::storage::object::Key;
use crate::telemetry::SyncOutcome;

/// Receives the progress of a sync pass, for a progress bar.
pub trait SyncProgress: Send + Sync {
    /// The pass begins, with this many entries and this many bytes of payload.
    fn total(&self, entries: u64, bytes: u64);

    /// One entry of this many bytes was handled.
    fn step(&self, outcome: SyncOutcome, bytes: u64);

    /// The entry of this key cannot be sent and stays, for this reason. Its step follows.
    fn failed(&self, key: &Key, error: Error);
}

/// Logs failures, where no progress bar is shown.
impl SyncProgress for () {
    fn total(&self, _: u64, _: u64) {}

    fn step(&self, _: SyncOutcome, _: u64) {}

    fn failed(&self, key: &Key, error: Error) {
        tracing::warn!(%key, %error, "a pending entry cannot be sent and stays in the overlay");
    }
}

/// The counts of one sync pass.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, serde::Serialize, schemars::JsonSchema)]
pub struct SyncReport {
    /// Writes that the bucket now has.
    pub sent: u64,
    /// Deletes that the bucket carried out, or for which it had no object.
    pub deleted: u64,
    /// Writes that the bucket had already, because an earlier answer was lost.
    pub already_there: u64,
    /// Writes moved to quarantine and deletes dropped, because somebody else had changed the key in the bucket since.
    pub conflicts: u64,
    /// Entries that stay: the bucket refused or throttled them, or they are damaged.
    pub failed: u64,
    /// Entries in the overlay at the end of the pass: those that failed, and those written meanwhile.
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
