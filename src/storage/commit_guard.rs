//! The gate before a write's commit point.

use std::sync::Arc;
use std::sync::atomic::{AtomicU8, Ordering};

const OPEN: u8 = 0;
const ABANDONED: u8 = 1;
const COMMITTED: u8 = 2;

/// Decides once, between the one who waits for a write and the one who writes, whether the write happens.
///
/// A backend asks [`CommitGuard::commit`] right before the step that makes a write or delete visible. A worker that lost
/// its session or whose time limit passed asks [`CommitGuard::abandon`]. Exactly one of the two wins, so an abandoned
/// command never takes effect later, and one that took effect is never answered as abandoned.
#[derive(Clone, Debug, Default)]
pub struct CommitGuard(Arc<AtomicU8>);

impl CommitGuard {
    /// Passes the commit point; `false` when the write was abandoned and must not happen.
    ///
    /// May be asked again by the same write (a retried attempt): once committed it stays so.
    #[must_use]
    pub fn commit(&self) -> bool {
        match self.0.compare_exchange(OPEN, COMMITTED, Ordering::AcqRel, Ordering::Acquire) {
            Ok(_) | Err(COMMITTED) => true,
            Err(_) => false,
        }
    }

    /// Forbids the commit; `false` when it has already been passed and the outcome must be waited for.
    #[must_use]
    pub fn abandon(&self) -> bool {
        match self.0.compare_exchange(OPEN, ABANDONED, Ordering::AcqRel, Ordering::Acquire) {
            Ok(_) | Err(ABANDONED) => true,
            Err(_) => false,
        }
    }
}
