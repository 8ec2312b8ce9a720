//! How long to wait before the next session.

use std::hash::{DefaultHasher, Hash as _, Hasher as _};
use std::time::Duration;

/// The first ceiling.
const FIRST: Duration = Duration::from_millis(100);
/// The last ceiling: a broker that is back is not left waiting.
const LAST: Duration = Duration::from_secs(1);

/// Exponential waiting times with full jitter: each lies between zero and a ceiling that doubles from 0.1 s to 1 s.
///
/// The jitter comes from the name of the worker, so that workers do not return all at once, and one worker waits the same
/// times in every run.
#[derive(Clone, Debug)]
pub struct Backoff {
    name: String,
    attempt: u32,
    drawn: u64,
}

impl Backoff {
    /// Starts at the first ceiling, for a worker of this name.
    #[must_use]
    pub fn new(name: &str) -> Self {
        Self { name: name.to_owned(), attempt: 0, drawn: 0 }
    }

    /// Draws the next waiting time.
    pub fn next_wait(&mut self) -> Duration {
        let ceiling = self.ceiling();
        self.attempt = self.attempt.saturating_add(1);
        self.drawn += 1;
        let mut hasher = DefaultHasher::new();
        (&self.name, self.drawn).hash(&mut hasher);
        // The upper half of the digest is a fraction of 2³².
        ceiling.mul_f64((hasher.finish() >> 32) as f64 / f64::from(u32::MAX))
    }

    /// Starts over after a session was good.
    pub const fn reset(&mut self) {
        self.attempt = 0;
    }

    fn ceiling(&self) -> Duration {
        let doubled = 2_u32.checked_pow(self.attempt).unwrap_or(u32::MAX);
        FIRST.saturating_mul(doubled).min(LAST)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_ceiling_doubles_up_to_the_last() {
        let mut backoff = Backoff::new("w@h");
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

    #[test]
    fn workers_wait_different_times_and_one_worker_the_same_in_every_run() {
        let waits = |name| {
            let mut backoff = Backoff::new(name);
            (0..1000).map(|_| backoff.next_wait()).collect::<Vec<_>>()
        };
        let (first, second) = (waits("a@h"), waits("b@h"));
        assert_eq!(first, waits("a@h"));
        assert!(first.iter().zip(&second).all(|(first, second)| first != second));
        let mean = first.iter().skip(4).sum::<Duration>() / 996;
        assert!(mean > Duration::from_millis(450) && mean < Duration::from_millis(550), "{mean:?}");
    }
}
