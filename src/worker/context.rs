//! What all sessions of a worker share.

use crate::broker::{OpenSession, State};
use crate::commands::{Budget, Engine, KnownOutcomes};
use crate::telemetry::{self, Component, ComponentState, Metrics, Readiness};
use crate::worker::WorkerOptions;
use crate::worker::consumed_queues::ConsumedQueues;
use crate::worker::dead_bound::DeadBound;
use crate::worker::delivery::destinations::Destinations;
use crate::worker::invalidations::Coherence;
use crate::worker::journal::Journal;
use crate::worker::own_queues::OwnQueues;
use crate::worker::remote::{Monitor, TaskLimits};
use crate::worker::signals::Stop;

/// What outlives a session.
#[derive(Debug)]
pub(super) struct WorkerContext {
    pub(super) options: WorkerOptions,
    pub(super) engine: Engine,
    /// Bytes of commands in memory.
    pub(super) budget: Budget,
    pub(super) journal: Journal,
    /// What commands may ask the journals.
    pub(super) outcomes: KnownOutcomes,
    pub(super) metrics: Metrics,
    pub(super) readiness: Readiness,
    pub(super) destinations: Destinations,
    /// How the worker's own queues stand.
    pub(super) own_queues: OwnQueues,
    /// Which of the queues to be consumed are missing.
    pub(super) consumed_queues: ConsumedQueues,
    /// What monitors are told.
    pub(super) monitor: Monitor,
    /// Why they are not, where that was said.
    pub(super) unheard: Option<String>,
    /// The limits of single tasks.
    pub(super) limits: TaskLimits,
    /// What remote control asked for.
    pub(super) shutdown: Stop,
    /// Whether this user may make delay queues was looked at.
    pub(super) knows_rights: bool,
    /// The task that sends and receives the announcements of changed keys in this session.
    pub(super) coherence: Option<Coherence>,
    /// The task that removes surplus dead copies in this session.
    pub(super) dead_bound: Option<DeadBound>,
}

impl WorkerContext {
    /// Begins to send and to receive announcements of changed keys, where values are in a bucket or there is a cache.
    pub(super) async fn begin_coherence(&mut self, session: &OpenSession) {
        // First the end of the last one, which disables the cache.
        if let Some(last) = self.coherence.take() {
            last.stop().await;
        }
        let is_shared = self.options.is_shared;
        self.coherence = (is_shared || self.engine.cache().is_some()).then(|| {
            let (announcer, cache) = (self.options.announcer.clone(), self.engine.cache().cloned());
            Coherence::begin(session.share(), announcer, cache, is_shared, self.readiness.clone())
        });
    }

    /// Begins to remove the oldest dead copies above `dead_max_messages`, where that is set.
    pub(super) fn begin_dead_bound(&mut self, session: &OpenSession) {
        let bound = self.options.dead_max_messages;
        self.dead_bound = bound.map(|most| DeadBound::begin(session.share(), most, self.metrics.clone()));
    }

    /// Says how the broker stands and returns whether it is blocked.
    ///
    /// # Errors
    ///
    /// Why the session is lost.
    pub(super) fn note_state(&self, state: &State) -> Result<bool, String> {
        match state {
            State::Open => {
                self.readiness.set(Component::Broker, ComponentState::Ready);
                self.metrics.record_session(telemetry::Session::Connected);
                Ok(false)
            }
            State::Blocked(reason) => {
                let condition = ComponentState::Unready(format!("blocked by the broker: {reason}"));
                self.readiness.set(Component::Broker, condition);
                self.metrics.record_session(telemetry::Session::Blocked);
                Ok(true)
            }
            State::Lost(reason) => Err(reason.clone()),
        }
    }

    /// Counts publications that were confirmed, returned, refused, and not confirmed.
    pub(super) fn count_publishes(&self, [confirmed, returned, refused, unconfirmed]: [u64; 4]) {
        self.metrics.record_publishes(telemetry::Publish::Confirmed, confirmed);
        self.metrics.record_publishes(telemetry::Publish::Returned, returned);
        self.metrics.record_publishes(telemetry::Publish::Refused, refused);
        self.metrics.record_publishes(telemetry::Publish::Unconfirmed, unconfirmed);
    }

    /// Writes the journal, and says so where it cannot be written.
    pub(super) fn commit_journal(&mut self) {
        let committed = self.journal.commit();
        self.metrics.record_journal_size(self.journal.size());
        match committed {
            Ok(()) if self.journal.is_full() => {
                let reason = "the journal is full of what runs or is not acknowledged yet, so nothing more begins: see why answers \
                              are not taken, or raise journal_max_bytes";
                self.readiness.set(Component::Journal, ComponentState::Unready(reason.to_owned()));
            }
            Ok(()) if self.journal.was_remade() => {
                let reason = "the journal was deleted, and is made anew; what was answered and not acknowledged then may run again";
                self.readiness.set(Component::Journal, ComponentState::Degraded(reason.to_owned()));
            }
            Ok(()) => self.readiness.set(Component::Journal, ComponentState::Ready),
            Err(error) => {
                let reason = format!("the journal cannot be written: {error}; a crash may repeat what ran meanwhile");
                self.readiness.set(Component::Journal, ComponentState::Degraded(reason));
            }
        }
    }
}
