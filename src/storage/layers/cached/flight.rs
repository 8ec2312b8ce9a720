//! Reads that are under way, so that concurrent reads of a key share one.

use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Arc, OnceLock};

use tokio::sync::watch;

use crate::storage::files::FileIdentity;
use crate::storage::object::Object;

/// What a read has found, for those who wait for it.
#[derive(Clone, Debug)]
pub(super) struct Landing {
    /// The moment in the sequence at which the read began.
    pub(super) begun: u64,
    pub(super) found: ReadResult,
}

/// The result of a shared read.
#[derive(Clone, Debug)]
pub(super) enum ReadResult {
    /// The whole value, and the version of the file that it was read from, if that proves anything.
    Value(Arc<Object>, Option<FileIdentity>),
    /// The key has no object.
    Nothing,
    /// The read failed, or its result is no value that can be shared: everyone reads for himself.
    Apart,
}

/// A read that others may join.
#[derive(Debug)]
pub(super) struct Flight {
    landing: watch::Receiver<Option<Landing>>,
    /// The read that those share for whom this one was too early, or whose reader is gone.
    next: OnceLock<Arc<Self>>,
}

/// The end of a flight that the reading task holds. Dropping it without a landing lets another task read.
#[derive(Debug)]
pub(super) struct Pilot {
    pub(super) flight: Arc<Flight>,
    landing: watch::Sender<Option<Landing>>,
}

impl Pilot {
    pub(super) fn new() -> Self {
        let (landing, joined) = watch::channel(None);
        Self { flight: Arc::new(Flight { landing: joined, next: OnceLock::new() }), landing }
    }

    pub(super) fn land(&self, landing: Landing) {
        self.landing.send_replace(Some(landing));
    }
}

impl Flight {
    /// Waits for the landing; `None` when the reading task was cancelled.
    pub(super) async fn landing(&self) -> Option<Landing> {
        let mut landing = self.landing.clone();
        let landed = landing.wait_for(Option::is_some).await;
        landed.ok().and_then(|landing| landing.clone())
    }
}

impl Flight {
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
