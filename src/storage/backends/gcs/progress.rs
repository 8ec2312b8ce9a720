//! Progress of transfers, and the limit of a wait without any.

use std::future::Future;
use std::pin::pin;
use std::sync::{Arc, Mutex, PoisonError};
use std::time::Duration;

use tokio::time::{Instant, timeout, timeout_at};

use super::error::GcsFault;

/// The time of the last progress; cheap to clone, shared by the transfer and its waiter.
#[derive(Clone, Debug)]
pub(super) struct UploadProgress(Arc<Mutex<Instant>>);

impl UploadProgress {
    pub(super) fn new() -> Self {
        Self(Arc::new(Mutex::new(Instant::now())))
    }

    /// Notes progress at the present time.
    pub(super) fn note(&self) {
        *self.0.lock().unwrap_or_else(PoisonError::into_inner) = Instant::now();
    }

    fn last(&self) -> Instant {
        *self.0.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Waits for work that notes its progress; fails after `idle_limit` without progress.
    pub(super) async fn watch<T>(&self, idle_limit: Duration, work: impl Future<Output = T>) -> Result<T, GcsFault> {
        self.note();
        let mut work = pin!(work);
        loop {
            let seen = self.last();
            match timeout_at(seen + idle_limit, &mut work).await {
                Ok(done) => return Ok(done),
                Err(_) if self.last() > seen => {}
                Err(_) => return Err(GcsFault::Stalled(idle_limit)),
            }
        }
    }
}

/// Waits for one step at most `idle_limit`.
pub(super) async fn within<T>(idle_limit: Duration, work: impl Future<Output = T>) -> Result<T, GcsFault> {
    timeout(idle_limit, work).await.map_err(|_| GcsFault::Stalled(idle_limit))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[tokio::test]
    async fn work_with_progress_may_last_and_stalled_work_fails() {
        let (idle_limit, progress) = (Duration::from_millis(20), UploadProgress::new());
        let moving = async {
            let begun = Instant::now();
            while begun.elapsed() < 5 * idle_limit {
                progress.note();
                tokio::task::yield_now().await;
            }
            "done"
        };
        assert_eq!(progress.watch(idle_limit, moving).await.unwrap(), "done");
        let stopping = async {
            tokio::task::yield_now().await;
            progress.note();
            std::future::pending::<()>().await;
        };
        assert!(
            matches!(progress.watch(idle_limit, stopping).await, Err(GcsFault::Stalled(waited)) if waited == idle_limit)
        );
        assert!(matches!(within(idle_limit, std::future::pending::<()>()).await, Err(GcsFault::Stalled(_))));
    }
}
