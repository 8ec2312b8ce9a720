//! How long nothing has moved.

use std::future::Future;
use std::pin::pin;
use std::sync::{Arc, Mutex, PoisonError};
use std::time::Duration;

use tokio::time::{Instant, timeout, timeout_at};

use super::error::GcsFault;

/// When something last moved; cheap to clone and shared by who moves and who waits.
#[derive(Clone, Debug)]
pub(super) struct UploadProgress(Arc<Mutex<Instant>>);

impl UploadProgress {
    pub(super) fn new() -> Self {
        Self(Arc::new(Mutex::new(Instant::now())))
    }

    /// Says that something moved just now.
    pub(super) fn note(&self) {
        *self.0.lock().unwrap_or_else(PoisonError::into_inner) = Instant::now();
    }

    fn last(&self) -> Instant {
        *self.0.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Waits for work that says when it moves, but never so long without that it moved.
    pub(super) async fn watch<T>(&self, patience: Duration, work: impl Future<Output = T>) -> Result<T, GcsFault> {
        self.note();
        let mut work = pin!(work);
        loop {
            let seen = self.last();
            match timeout_at(seen + patience, &mut work).await {
                Ok(done) => return Ok(done),
                Err(_) if self.last() > seen => {}
                Err(_) => return Err(GcsFault::Stalled(patience)),
            }
        }
    }
}

/// Waits for a single move.
pub(super) async fn within<T>(patience: Duration, work: impl Future<Output = T>) -> Result<T, GcsFault> {
    timeout(patience, work).await.map_err(|_| GcsFault::Stalled(patience))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[tokio::test]
    async fn work_that_moves_may_last_and_work_that_stands_still_may_not() {
        let (patience, progress) = (Duration::from_millis(20), UploadProgress::new());
        let moving = async {
            let begun = Instant::now();
            while begun.elapsed() < 5 * patience {
                progress.note();
                tokio::task::yield_now().await;
            }
            "done"
        };
        assert_eq!(progress.watch(patience, moving).await.unwrap(), "done");
        let stopping = async {
            tokio::task::yield_now().await;
            progress.note();
            std::future::pending::<()>().await;
        };
        assert!(
            matches!(progress.watch(patience, stopping).await, Err(GcsFault::Stalled(waited)) if waited == patience)
        );
        assert!(matches!(within(patience, std::future::pending::<()>()).await, Err(GcsFault::Stalled(_))));
    }
}
