//! What all sessions of a worker share.

use std::collections::{BTreeMap, BTreeSet};
use std::time::{Duration, Instant};

use super::desk::DEAD_QUEUE;
use super::journal::Journal;
use super::outbox::{Parcel, Role};
use super::silences::Silences;
use super::{METRICS_QUEUE, WorkerOptions};
use crate::broker::Error;
use crate::commands::Engine;
use crate::telemetry::{Component, Condition, Metrics, Readiness};

/// How old the view of siblings' journals may be. Two that begin the same command within that time both run it.
const FOLLOW: Duration = Duration::from_millis(20);

/// What outlives a session.
#[derive(Debug)]
pub(super) struct Bench {
    pub(super) options: WorkerOptions,
    pub(super) engine: Engine,
    pub(super) journal: Journal,
    pub(super) metrics: Metrics,
    pub(super) readiness: Readiness,
    pub(super) silences: Silences,
    /// When the siblings' journals were last followed.
    pub(super) followed: Option<Instant>,
    /// Consumed queues that are there but gave no consumer, with the reason: left out until a trial gets one.
    pub(super) stalled: BTreeMap<String, Error>,
    /// Those of our own queues that took nothing when something was last sent there, whatever a look at them says.
    pub(super) held_back: BTreeSet<Component>,
}

impl Bench {
    /// Says of our own queues that something for them is held back.
    pub(super) fn hold_back(&mut self, parcel: &mut Parcel, reason: &str) {
        // An event that was sent and is still owed was not taken.
        let events = parcel.told && parcel.event.is_some();
        let queues =
            [(Component::DeadQueue, DEAD_QUEUE, parcel.owes(Role::Dead)), (Component::Events, METRICS_QUEUE, events)];
        for (component, queue, _) in queues.into_iter().filter(|(.., owes)| *owes) {
            parcel.held = true;
            self.held_back.insert(component);
            self.readiness.set(component, Condition::Degraded(format!("{queue}: {reason}; held back")));
        }
    }

    /// Says that what was held back has been taken.
    pub(super) fn let_go(&mut self) {
        for component in std::mem::take(&mut self.held_back) {
            self.readiness.set(component, Condition::Ready);
        }
    }

    /// Takes in what siblings did, unless it was just done: with a backlog it would be done for each command.
    pub(super) fn follow_journal(&mut self) {
        if self.followed.is_some_and(|followed| followed.elapsed() < FOLLOW) {
            return;
        }
        self.followed = Some(Instant::now());
        if let Err(error) = self.journal.follow() {
            tracing::error!(%error, "the journals of other workers cannot be read");
        }
    }

    /// Writes the journal, and says so where it cannot be written.
    pub(super) fn commit_journal(&mut self) {
        let committed = self.journal.commit();
        self.metrics.record_journal_size(self.journal.size());
        match committed {
            Ok(()) if self.journal.is_full() => {
                let reason = "the journal is full of what runs or is not acknowledged yet, so nothing more begins: see why answers \
                              are not taken, or raise journal_max_bytes";
                self.readiness.set(Component::Journal, Condition::Unready(reason.to_owned()));
            }
            Ok(()) => self.readiness.set(Component::Journal, Condition::Ready),
            Err(error) => {
                let reason = format!("the journal cannot be written: {error}; a crash may repeat what ran meanwhile");
                self.readiness.set(Component::Journal, Condition::Degraded(reason));
            }
        }
    }
}
