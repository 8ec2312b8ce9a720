//! When a connection was last heard, and when it was not.

use std::{
    collections::VecDeque,
    sync::{
        Arc, Mutex, OnceLock, PoisonError,
        atomic::{AtomicU64, Ordering},
    },
    time::Duration,
};

use tokio::time::Instant;

use super::greeting;

/// A broker that has said nothing for so long may have been given up by its cluster, or may have given us up: what it
/// handed out may be with somebody else. Brokers of a cluster give each other up after 6 s at the earliest
/// (`net_ticktime` 8); we give them up after 12.
pub const DOUBT: Duration = Duration::from_millis(5500);
/// What comes so soon after such a silence may have been handed out during it: a RabbitMQ node that is back in its cluster goes
/// through what it missed, and sends its consumers what they were given then, as if it were new.
const LATE: Duration = Duration::from_secs(60);
/// Silences kept.
const GAPS: usize = 16;

/// When something was last read from one connection; clones share it.
#[derive(Clone, Debug)]
pub(super) struct LastRead {
    began: Instant,
    /// Milliseconds after `began`.
    last: Arc<AtomicU64>,
    /// The last silences of [`DOUBT`] that ended, in order: from when until when.
    gaps: Arc<Mutex<VecDeque<(Instant, Instant)>>>,
    /// Login methods that the broker offers, once it has said so.
    offered: Arc<OnceLock<Vec<String>>>,
}

impl LastRead {
    /// Counts the beginning as heard.
    pub(super) fn new() -> Self {
        Self { began: Instant::now(), last: Arc::default(), gaps: Arc::default(), offered: Arc::default() }
    }

    /// Notes what the broker said first.
    pub(super) fn note_greeting(&self, bytes: &[u8]) {
        if let Some(offered) = greeting::mechanisms(bytes) {
            // Said once in a connection.
            self.offered.get_or_init(|| offered);
        }
    }

    /// Returns the login methods that the broker offers, or `None` where it has not said.
    pub(super) fn offered(&self) -> Option<&[String]> {
        self.offered.get().map(Vec::as_slice)
    }

    /// Notes that something was read.
    pub(super) fn note(&self) {
        self.note_after(DOUBT);
    }

    fn note_after(&self, doubt: Duration) {
        let silence = self.silence();
        if silence >= doubt {
            let now = Instant::now();
            let from = now.checked_sub(silence).unwrap_or(self.began);
            let mut gaps = self.gaps.lock().unwrap_or_else(PoisonError::into_inner);
            gaps.push_back((from, now));
            if gaps.len() > GAPS
                && let Some((first, _)) = gaps.pop_front()
                && let Some((from, _)) = gaps.front_mut()
            {
                // Two that become one say too much rather than too little.
                *from = first;
            }
        }
        self.last.store(self.age(), Ordering::Relaxed);
    }

    /// Tells how long nothing was read.
    pub(super) fn silence(&self) -> Duration {
        Duration::from_millis(self.age().saturating_sub(self.last.load(Ordering::Relaxed)))
    }

    /// Tells since when the connection was first silent after what was received at this time was sent; a silence that still
    /// lasts counts.
    pub(super) fn late_since(&self, received: Instant) -> Option<Instant> {
        let gaps = self.gaps.lock().unwrap_or_else(PoisonError::into_inner);
        let ended = gaps.iter().find(|(_, until)| received < *until + LATE).map(|(from, _)| *from);
        let silence = self.silence();
        ended.or_else(|| Instant::now().checked_sub(silence).filter(|_| silence >= DOUBT))
    }

    fn age(&self) -> u64 {
        u64::try_from(self.began.elapsed().as_millis()).unwrap_or(u64::MAX)
    }
}

#[cfg(test)]
mod tests {
    use tokio::time::advance;

    use super::*;

    const PAUSE: Duration = Duration::from_millis(30);

    #[tokio::test(start_paused = true)]
    async fn silence_lasts_from_what_was_last_read() {
        let last_read = LastRead::new();
        advance(PAUSE).await;
        assert!(last_read.silence() >= PAUSE);
        last_read.clone().note();
        assert!(last_read.silence() < PAUSE);
    }

    #[tokio::test(start_paused = true)]
    async fn what_comes_a_minute_after_a_silence_is_not_late() {
        for (silence, is_long) in [(5_499, false), (5_500, true)] {
            let last_read = LastRead::new();
            advance(Duration::from_millis(silence)).await;
            last_read.note();
            let heard = Instant::now();
            for (later, is_late) in [(0, is_long), (59_999, is_long), (60_000, false)] {
                let received = heard + Duration::from_millis(later);
                assert_eq!(last_read.late_since(received).is_some(), is_late, "{silence} {later}");
            }
        }
    }

    #[tokio::test(start_paused = true)]
    async fn what_comes_around_a_long_silence_is_late_and_what_comes_well_after_is_not() {
        let last_read = LastRead::new();
        let received = Instant::now();
        advance(PAUSE).await;
        last_read.note();
        assert_eq!(last_read.late_since(received), None, "a short silence is none");
        let silent = Instant::now();
        advance(2 * PAUSE).await;
        last_read.clone().note_after(PAUSE);
        let heard_again = Instant::now();
        for received in [received, silent, heard_again, heard_again + LATE / 2] {
            let since = last_read.late_since(received).unwrap();
            assert!(since + PAUSE > silent && since < silent + PAUSE, "{received:?}: {since:?} {silent:?}");
        }
        assert_eq!(last_read.late_since(heard_again + LATE), None);
        for _ in 0..2 * GAPS {
            last_read.note_after(Duration::ZERO);
        }
        assert_eq!(last_read.gaps.lock().unwrap().len(), GAPS);
        let since = last_read.late_since(received).unwrap();
        assert!(since + PAUSE > silent && since < silent + PAUSE, "the first silence counts, whatever came after");
    }
}
