//! Cleanup after uploads, which goes on when nobody waits for the upload any more.
//!
//! A program that ends waits a little for the cleanup ([`wait_for_cleanup`]). Otherwise a bucket keeps uploads that are
//! never completed, and somebody pays for them.

use std::sync::atomic::{AtomicBool, AtomicUsize, Ordering};
use std::time::Duration;

use tokio::sync::Notify;
use tokio::task::JoinHandle;

/// The number of pieces of work under way.
static UNDER_WAY: AtomicUsize = AtomicUsize::new(0);
/// Notified when a piece of work has ended.
static ENDED: Notify = Notify::const_new();

/// Whether the program is about to end. Work that only sends more data is then cancelled.
static SHUTTING_DOWN: AtomicBool = AtomicBool::new(false);
static SHUTDOWN: Notify = Notify::const_new();

/// Counts one piece of work as long as it exists, also when it panics or its runtime is gone.
struct Counted;

impl Drop for Counted {
    fn drop(&mut self) {
        UNDER_WAY.fetch_sub(1, Ordering::AcqRel);
        ENDED.notify_waiters();
    }
}

/// Starts a piece of cleanup work; needs a runtime.
pub(in crate::storage) fn spawn<T: Send + 'static>(work: impl Future<Output = T> + Send + 'static) -> JoinHandle<T> {
    UNDER_WAY.fetch_add(1, Ordering::AcqRel);
    let counted = Counted;
    tokio::spawn(async move {
        let done = work.await;
        drop(counted);
        done
    })
}

/// Waits until the program is about to end.
pub(in crate::storage) async fn shutting_down() {
    loop {
        let notified = SHUTDOWN.notified();
        if SHUTTING_DOWN.load(Ordering::Acquire) {
            return;
        }
        notified.await;
    }
}

/// Waits at most `within` for all cleanup work and tells whether all has ended. Work that can be cancelled is, after a
/// fifth of that time.
pub async fn wait_for_cleanup(within: Duration) -> bool {
    if all_ended(within / 5).await {
        return true;
    }
    SHUTTING_DOWN.store(true, Ordering::Release);
    SHUTDOWN.notify_waiters();
    all_ended(within / 5 * 4).await
}

async fn all_ended(within: Duration) -> bool {
    let all = async {
        loop {
            let ended = ENDED.notified();
            if UNDER_WAY.load(Ordering::Acquire) == 0 {
                return;
            }
            ended.await;
        }
    };
    tokio::time::timeout(within, all).await.is_ok()
}
