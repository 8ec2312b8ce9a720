//! What all sessions of a worker share.

use super::WorkerOptions;
use super::journal::Journal;
use super::silences::Silences;
use crate::commands::Engine;
use crate::telemetry::{Component, Condition, Metrics, Readiness};

/// What outlives a session.
#[derive(Debug)]
pub(super) struct Bench {
    pub(super) options: WorkerOptions,
    pub(super) engine: Engine,
    pub(super) journal: Journal,
    pub(super) metrics: Metrics,
    pub(super) readiness: Readiness,
    pub(super) silences: Silences,
}

impl Bench {
    /// Takes in what siblings did.
    pub(super) fn follow_journal(&mut self) {
        if let Err(error) = self.journal.follow() {
            tracing::error!(%error, "the journals of other workers cannot be read");
        }
    }

    /// Writes the journal, and says so where it cannot be written.
    pub(super) fn commit_journal(&mut self) {
        let committed = self.journal.commit();
        self.metrics.record_journal_size(self.journal.size());
        match committed {
            Ok(()) => self.readiness.set(Component::Journal, Condition::Ready),
            Err(error) => {
                let reason = format!("the journal cannot be written: {error}; a crash may repeat what ran meanwhile");
                self.readiness.set(Component::Journal, Condition::Degraded(reason));
            }
        }
    }
}
