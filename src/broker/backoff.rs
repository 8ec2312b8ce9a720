//! How long to wait before the next session.

use std::time::Duration;

use rand::RngExt;

/// Exponential waiting times with full jitter: each is drawn between zero and a ceiling that doubles from `first` to `last`.
#[derive(Clone, Debug)]
pub struct Backoff {
    first: Duration,
    last: Duration,
    attempt: u32,
}

impl Default for Backoff {
    /// 0.1 s to 1 s: a broker that is back is not left waiting.
    fn default() -> Self {
        Self::new(Duration::from_millis(100), Duration::from_secs(1))
    }
}

impl Backoff {
    /// Starts at the ceiling `first` and never waits longer than `last`.
    #[must_use]
    pub const fn new(first: Duration, last: Duration) -> Self {
        Self { first, last, attempt: 0 }
    }

    /// Draws the next waiting time.
    pub fn next_wait(&mut self) -> Duration {
        let ceiling = self.ceiling();
        self.attempt = self.attempt.saturating_add(1);
        ceiling.mul_f64(rand::rng().random::<f64>())
    }

    /// Starts over after a session was good.
    pub const fn reset(&mut self) {
        self.attempt = 0;
    }

    fn ceiling(&self) -> Duration {
        let doubled = 2_u32.checked_pow(self.attempt).unwrap_or(u32::MAX);
        self.first.saturating_mul(doubled).min(self.last)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_ceiling_doubles_up_to_the_last() {
        let mut backoff = Backoff::default();
        let mut ceilings = Vec::new();
        for _ in 0..70 {
            ceilings.push(backoff.ceiling());
            let ceiling = backoff.ceiling();
            assert!(backoff.next_wait() <= ceiling);
        }
        assert_eq!(ceilings[0], Duration::from_millis(100));
        assert_eq!(ceilings[3], Duration::from_millis(800));
        assert_eq!(ceilings[69], Duration::from_secs(1));
        backoff.reset();
        assert_eq!(backoff.ceiling(), Duration::from_millis(100));
    }
}
