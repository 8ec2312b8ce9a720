//! Counts what the layers do for each command: attempts at a backend, and lookups in the cache.

use std::cell::Cell;
use std::future::Future;

use crate::telemetry::CacheLookup;

tokio::task_local! {
    static COUNTS: Cell<CommandCounts>;
}

/// What the layers did for one command.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct CommandCounts {
    /// The number of attempts at a backend.
    pub attempts: u32,
    /// The result of the lookup in the cache; of several, a miss. `None` when the command looked nothing up.
    pub cache: Option<CacheLookup>,
}

/// Runs the work of one command and returns its outcome and what was counted for it.
///
/// The layers below count with `note` and `note_lookup`. They run in the task that called them, so no counter has to be
/// passed through them.
pub async fn counted<T>(work: impl Future<Output = T>) -> (T, CommandCounts) {
    let counting = async {
        let outcome = work.await;
        (outcome, COUNTS.with(Cell::get))
    };
    COUNTS.scope(Cell::default(), counting).await
}

/// Counts one attempt at a backend. Nothing happens outside [`counted`].
pub(in crate::storage) fn note() {
    update(|counts| counts.attempts = counts.attempts.saturating_add(1));
}

/// Counts one lookup in the cache. Nothing happens outside [`counted`].
pub(in crate::storage) fn note_lookup(lookup: CacheLookup) {
    update(|counts| {
        if counts.cache != Some(CacheLookup::Miss) {
            counts.cache = Some(lookup);
        }
    });
}

fn update(change: impl FnOnce(&mut CommandCounts)) {
    let changed = |counts: &Cell<CommandCounts>| {
        let mut present = counts.get();
        change(&mut present);
        counts.set(present);
    };
    // Start-up, the sync loop and health checks are not counted.
    if COUNTS.try_with(changed).is_err() {}
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
        let counts = CommandCounts { attempts: 2, cache: None };
        assert_eq!(tokio::join!(one, none), (("one", counts), ((), CommandCounts::default())));
    }

    #[tokio::test]
    async fn of_several_lookups_a_miss_counts() {
        use CacheLookup::{Hit, Miss};
        note_lookup(Hit);
        for (lookups, counted_as) in [(&[][..], None), (&[Hit, Hit], Some(Hit)), (&[Hit, Miss, Hit], Some(Miss))] {
            let ((), counts) = counted(async { lookups.iter().copied().for_each(note_lookup) }).await;
            assert_eq!(counts.cache, counted_as);
        }
    }
}
