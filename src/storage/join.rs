//! Waiting for a task.

use tokio::task::JoinHandle;

/// Waits for a task and passes its panic on; `None` when the runtime ends before the task does.
pub(super) async fn joined<T>(task: JoinHandle<T>) -> Option<T> {
    match task.await {
        Ok(outcome) => Some(outcome),
        Err(error) => match error.try_into_panic() {
            Ok(panic) => std::panic::resume_unwind(panic),
            Err(_) => None,
        },
    }
}
