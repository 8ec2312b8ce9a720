//! When a connection was last heard.

use std::{
    sync::{
        Arc,
        atomic::{AtomicU64, Ordering},
    },
    time::{Duration, Instant},
};

/// When something was last read from one connection; clones share it.
#[derive(Clone, Debug)]
pub(super) struct Heard {
    began: Instant,
    /// Milliseconds after `began`.
    last: Arc<AtomicU64>,
}

impl Heard {
    /// Counts the beginning as heard.
    pub(super) fn new() -> Self {
        Self { began: Instant::now(), last: Arc::default() }
    }

    /// Notes that something was read.
    pub(super) fn note(&self) {
        self.last.store(self.age(), Ordering::Relaxed);
    }

    /// Tells how long nothing was read.
    pub(super) fn silence(&self) -> Duration {
        Duration::from_millis(self.age().saturating_sub(self.last.load(Ordering::Relaxed)))
    }

    fn age(&self) -> u64 {
        u64::try_from(self.began.elapsed().as_millis()).unwrap_or(u64::MAX)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn silence_lasts_from_what_was_last_read() {
        let heard = Heard::new();
        std::thread::sleep(Duration::from_millis(30));
        assert!(heard.silence() >= Duration::from_millis(30));
        heard.clone().note();
        assert!(heard.silence() < Duration::from_millis(30));
    }
}
