//! Waits for tasks.

use tokio::task::JoinHandle;

/// Waits for a task and passes its panic on. Returns `None` when the runtime ends before the task.
pub(super) async fn joined<T>(task: JoinHandle<T>) -> Option<T> {
    match task.await {
        Ok(outcome) => Some(outcome),
        Err(error) => match error.try_into_panic() {
            Ok(panic) => std::panic::resume_unwind(panic),
            Err(_) => None,
        },
    }
}
