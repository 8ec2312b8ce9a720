//! Counts how often a place was asked on behalf of one command.

use std::cell::Cell;
use std::future::Future;

tokio::task_local! {
    static COUNT: Cell<u32>;
}

/// Runs one command's work; returns its outcome and how often a place was asked for it.
///
/// Layers below say so with `note`; they run in the task that asked, so nothing has to be handed through them.
pub async fn counted<T>(work: impl Future<Output = T>) -> (T, u32) {
    let counting = async {
        let outcome = work.await;
        (outcome, COUNT.with(Cell::get))
    };
    COUNT.scope(Cell::new(0), counting).await
}

/// Counts one attempt at a place; nothing happens where nobody counts.
pub(in crate::storage) fn note() {
    // Nobody counts in start-up, synchronization and health.
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
