//! Reads that are under way, so that concurrent reads of a key share one.

use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Arc, OnceLock};

use tokio::sync::watch;
use tokio::time::Instant;

use crate::storage::files::FileIdentity;
use crate::storage::object::Object;

/// The outcome of a read, for those who wait for it.
#[derive(Clone, Debug)]
pub(super) struct ReadOutcome {
    /// The moment in the sequence at which the read began.
    pub(super) begun: u64,
    /// The time at which the read began.
    pub(super) begun_at: Instant,
    pub(super) found: ReadResult,
}

/// The result of a shared read.
#[derive(Clone, Debug)]
pub(super) enum ReadResult {
    /// The whole value, and the version of the file that it was read from, if that proves anything.
    Value(Arc<Object>, Option<FileIdentity>),
    /// The key has no object.
    Nothing,
    /// The read failed, or its result is no value that can be shared: each caller reads separately.
    NotShared,
}

/// A read that others may join.
#[derive(Debug)]
pub(super) struct SharedRead {
    outcome: watch::Receiver<Option<ReadOutcome>>,
    /// The read that those share for whom this one was too early, or whose reader is gone.
    next: OnceLock<Arc<Self>>,
}

impl SharedRead {
    /// Begins a read; returns also the sender of its outcome.
    pub(super) fn begin() -> (Arc<Self>, watch::Sender<Option<ReadOutcome>>) {
        let (sender, outcome) = watch::channel(None);
        (Arc::new(Self { outcome, next: OnceLock::new() }), sender)
    }

    /// Waits for the outcome; `None` when the reading task was cancelled.
    pub(super) async fn outcome(&self) -> Option<ReadOutcome> {
        let mut outcome = self.outcome.clone();
        let told = outcome.wait_for(Option::is_some).await;
        told.ok().and_then(|outcome| outcome.clone())
    }

    /// Returns the read that follows this one, which is `begin` unless one has begun already.
    pub(super) fn next(&self, begin: impl FnOnce() -> Arc<Self>) -> &Arc<Self> {
        self.next.get_or_init(begin)
    }
}

/// Orders the beginnings of reads and the arrivals of those who want to join one.
#[derive(Debug, Default)]
pub(super) struct Sequence(AtomicU64);

impl Sequence {
    pub(super) fn next(&self) -> u64 {
        self.0.fetch_add(1, Ordering::SeqCst)
    }
}
