//! The wall clock of a worker.

use jiff::Timestamp;
use tokio::time::Instant;

/// Tells the date and the time of day: those of the operating system, or in tests those that tokio's clock has reached.
#[derive(Clone, Copy, Debug, Default)]
pub struct WallClock {
    /// What the clock showed, and when.
    start: Option<(Timestamp, Instant)>,
}

impl WallClock {
    /// Makes a clock that shows `start` now and advances with tokio's clock, so that it stands still while that one is paused.
    #[must_use]
    pub fn starting_at(start: Timestamp) -> Self {
        Self { start: Some((start, Instant::now())) }
    }

    /// Returns the present time.
    #[must_use]
    pub fn now(self) -> Timestamp {
        match self.start {
            None => Timestamp::now(),
            Some((start, since)) => start.checked_add(since.elapsed()).unwrap_or(Timestamp::MAX),
        }
    }
}

#[cfg(test)]
mod tests {
    use std::time::Duration;

    use super::*;

    #[test]
    fn the_clock_follows_the_pause_of_tokio_or_the_operating_system() {
        let runtime = tokio::runtime::Builder::new_current_thread().enable_time().start_paused(true).build().unwrap();
        runtime.block_on(async {
            let start = Timestamp::UNIX_EPOCH;
            let clock = WallClock::starting_at(start);
            assert_eq!(clock.now(), start);
            tokio::time::sleep(Duration::from_secs(3600)).await;
            assert_eq!(clock.now().as_second(), 3600);
            let (before, system, after) = (Timestamp::now(), WallClock::default().now(), Timestamp::now());
            assert!(before <= system && system <= after);
        });
    }
}
