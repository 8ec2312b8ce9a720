//! Work that tidies up behind an upload: it goes on when nobody waits for the upload any more.
//!
//! A program that ends waits for it a little ([`settled`]), so that no bucket keeps, and is paid for, what nobody will ever
//! complete.

use std::sync::atomic::{AtomicBool, AtomicUsize, Ordering};
use std::time::Duration;

use tokio::sync::Notify;
use tokio::task::JoinHandle;

/// So much of it is under way.
static UNDER_WAY: AtomicUsize = AtomicUsize::new(0);
/// Some of it has ended.
static ENDED: Notify = Notify::const_new();

/// The program is about to end: what only sends more is broken off.
static HURRIED: AtomicBool = AtomicBool::new(false);
static HURRY: Notify = Notify::const_new();

/// Counts one piece of work as long as it lives, also when it panics or its runtime is gone.
struct Counted;

impl Drop for Counted {
    fn drop(&mut self) {
        UNDER_WAY.fetch_sub(1, Ordering::AcqRel);
        ENDED.notify_waiters();
    }
}

/// Starts such work; needs a runtime.
pub(in crate::storage) fn spawn<T: Send + 'static>(work: impl Future<Output = T> + Send + 'static) -> JoinHandle<T> {
    UNDER_WAY.fetch_add(1, Ordering::AcqRel);
    let counted = Counted;
    tokio::spawn(async move {
        let done = work.await;
        drop(counted);
        done
    })
}

/// Waits until the program is in a hurry to end.
pub(in crate::storage) async fn hurried() {
    loop {
        let told = HURRY.notified();
        if HURRIED.load(Ordering::Acquire) {
            return;
        }
        told.await;
    }
}

/// Waits until all of it has ended, at most so long; tells whether it has. What can be broken off is, after a fifth of that.
pub async fn settled(within: Duration) -> bool {
    if all_ended(within / 5).await {
        return true;
    }
    HURRIED.store(true, Ordering::Release);
    HURRY.notify_waiters();
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
