//! Counts the attempts at a backend for each command.

use std::cell::Cell;
use std::future::Future;

tokio::task_local! {
    static COUNT: Cell<u32>;
}

/// Runs the work of one command and returns its outcome and the number of attempts at a backend.
///
/// The layers below count with `note`. They run in the task that called them, so no counter has to be passed through
/// them.
pub async fn counted<T>(work: impl Future<Output = T>) -> (T, u32) {
    let counting = async {
        let outcome = work.await;
        (outcome, COUNT.with(Cell::get))
    };
    COUNT.scope(Cell::new(0), counting).await
}

/// Counts one attempt at a backend. Nothing happens outside [`counted`].
pub(in crate::storage) fn note() {
    // Start-up, the sync loop and health checks are not counted.
    if COUNT.try_with(|count| count.set(count.get().saturating_add(1))).is_err() {}
}

#[cfg(test)]
mod tests {
    use super::*;

    #[tokio::test]
    async fn each_command_has_its_own_count() {
        note();
        let one = counted(async {
            note();
            tokio::task::yield_now().await;
            note();
            "one"
        });
        let none = counted(async { tokio::task::yield_now().await });
        assert_eq!(tokio::join!(one, none), (("one", 2), ((), 0)));
    }
}
