//! The decision whether a write takes effect or is abandoned.

use std::sync::Arc;
use std::sync::atomic::{AtomicU8, Ordering};

const OPEN: u8 = 0;
const ABANDONED: u8 = 1;
const COMMITTED: u8 = 2;

/// Decides once, between the caller that waits for a write and the backend that writes, whether the write happens.
///
/// A backend calls [`CommitGuard::commit`] right before the step that makes a write or delete visible. A worker that
/// lost its session, or whose time limit has passed, calls [`CommitGuard::abandon`]. Exactly one of the two wins. So an
/// abandoned command never takes effect later, and a command that took effect is never answered as abandoned.
#[derive(Clone, Debug, Default)]
pub struct CommitGuard(Arc<AtomicU8>);

impl CommitGuard {
    /// Passes the commit point. Returns `false` for an abandoned write, which must not happen.
    ///
    /// A retried attempt of the same write may call this again: a committed write stays committed.
    #[must_use]
    pub fn commit(&self) -> bool {
        match self.0.compare_exchange(OPEN, COMMITTED, Ordering::AcqRel, Ordering::Acquire) {
            Ok(_) | Err(COMMITTED) => true,
            Err(_) => false,
        }
    }

    /// Forbids the commit. Returns `false` when the commit point has been passed and the outcome must be awaited.
    #[must_use]
    pub fn abandon(&self) -> bool {
        match self.0.compare_exchange(OPEN, ABANDONED, Ordering::AcqRel, Ordering::Acquire) {
            Ok(_) | Err(ABANDONED) => true,
            Err(_) => false,
        }
    }
}
