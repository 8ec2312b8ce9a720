//! Waiting for what may not be there.

use futures_util::future::BoxFuture;
use tokio::time::Instant;

use crate::worker::own_queues::Looked;

/// Waits for the end of a look, for ever where none is under way.
pub(in crate::worker) async fn looked(looking: &mut Option<BoxFuture<'static, Looked>>) -> Looked {
    match looking {
        Some(looking) => looking.await,
        None => std::future::pending().await,
    }
}

/// Waits until what is told was sent, for ever where nothing is; returns why it was not.
pub(in crate::worker) async fn notified(notifying: &mut Option<BoxFuture<'static, Option<String>>>) -> Option<String> {
    match notifying {
        Some(notifying) => notifying.await,
        None => std::future::pending().await,
    }
}

/// Waits until a deadline, for ever where there is none.
pub(in crate::worker) async fn sleep_until(deadline: Option<Instant>) {
    match deadline {
        Some(deadline) => tokio::time::sleep_until(deadline).await,
        None => std::future::pending().await,
    }
}
