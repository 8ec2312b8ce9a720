//! The clock that stamps writes.

use std::sync::atomic::{AtomicI64, Ordering};

use jiff::Timestamp;

static LAST: AtomicI64 = AtomicI64::new(0);

/// Returns the present time in whole microseconds, later than every earlier result in this process.
///
/// So two writes of one process never have the same stamp, and a wall clock that is set back does not make the later
/// write look older. Between processes of one machine the order is that of the wall clock. Between machines the order
/// is as good as their clocks agree.
pub(in crate::storage) fn stamp() -> Timestamp {
    let wall = Timestamp::now().as_microsecond();
    let after = |last: i64| wall.max(last.saturating_add(1));
    let last = LAST.update(Ordering::AcqRel, Ordering::Acquire, after);
    Timestamp::from_microsecond(after(last)).unwrap_or(Timestamp::MAX)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn stamps_strictly_increase_across_threads() {
        let take = || (0..10_000).map(|_| stamp()).collect::<Vec<_>>();
        let mut all = std::thread::scope(|scope| {
            let threads: Vec<_> = (0..4).map(|_| scope.spawn(take)).collect();
            threads.into_iter().map(|thread| thread.join().unwrap()).collect::<Vec<_>>()
        });
        assert!(all.iter().all(|stamps| stamps.is_sorted_by(|earlier, later| earlier < later)));
        let mut flat: Vec<_> = all.drain(..).flatten().collect();
        flat.sort_unstable();
        flat.dedup();
        assert_eq!(flat.len(), 40_000);
    }
}
