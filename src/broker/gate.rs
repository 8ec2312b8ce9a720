//! How far the reading of a connection is ahead of those who take its messages.

use std::{
    sync::{Arc, Mutex, MutexGuard, PoisonError},
    task::{Context, Poll, Waker},
    time::{Duration, Instant},
};

/// Bytes of bodies read and not yet taken above which the connection is left unread. The library would keep them in memory
/// without a bound.
const WINDOW: u64 = 16 << 20;
/// Bytes read and not yet taken that keep an answer behind them waiting.
const MUCH: u64 = 1 << 20;
/// How long it is left unread at a time: the broker ends a connection that takes nothing for 30 s, and what it says of itself
/// lies behind the bodies.
pub(super) const PAUSE: Duration = Duration::from_secs(2);
/// Bytes that are read all the same after each pause.
const SIP: u64 = 2 << 20;

/// Holds the reading of a connection up while nobody takes what was read; clones share it.
#[derive(Clone, Debug, Default)]
pub(super) struct Gate(Arc<Mutex<Inner>>);

#[derive(Debug, Default)]
struct Inner {
    /// Bytes of bodies read and not taken.
    ahead: u64,
    /// Let in above the window, since nobody took anything during a pause.
    sips: u64,
    /// Somebody takes what is read.
    is_armed: bool,
    /// Since when the connection is left unread.
    closed: Option<Instant>,
    /// When it last was, or much was read.
    busy: Option<Instant>,
    reader: Option<Waker>,
}

/// Bytes of a body that was read; dropping it says that they are somebody's else to count.
#[derive(Debug, Default)]
pub struct Inflow {
    gate: Option<Gate>,
    bytes: u64,
}

impl Gate {
    fn lock(&self) -> MutexGuard<'_, Inner> {
        self.0.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Begins to hold reads up.
    pub(super) fn arm(&self) {
        self.lock().is_armed = true;
    }

    /// Tells whether the connection was left unread or much was read at some time in this last while: an answer may lie behind.
    pub(super) fn is_busy(&self, age: Duration) -> bool {
        self.lock().busy.is_some_and(|busy| busy.elapsed() < age)
    }

    /// Notes that so many bytes of bodies were read.
    pub(super) fn note(&self, bytes: u64) {
        if bytes > 0 {
            let mut inner = self.lock();
            inner.ahead += bytes;
            if inner.ahead >= MUCH {
                inner.busy = Some(Instant::now());
            }
        }
    }

    /// Tells that more may be read; else the reader is woken when it may, and has to ask again after a [`PAUSE`] by itself.
    pub(super) fn poll_open(&self, context: &Context<'_>) -> Poll<()> {
        self.poll_after(PAUSE, context)
    }

    fn poll_after(&self, pause: Duration, context: &Context<'_>) -> Poll<()> {
        let mut inner = self.lock();
        if inner.is_open() {
            inner.closed = None;
            return Poll::Ready(());
        }
        if inner.closed.get_or_insert_with(Instant::now).elapsed() >= pause {
            inner.sips = inner.ahead.saturating_sub(WINDOW) + SIP;
            inner.closed = None;
            return Poll::Ready(());
        }
        inner.busy = Some(Instant::now());
        inner.reader = Some(context.waker().clone());
        Poll::Pending
    }

    /// Hands over the count of a body that was taken out of the library.
    pub(super) fn inflow(&self, bytes: usize) -> Inflow {
        Inflow { gate: Some(self.clone()), bytes: bytes as u64 }
    }
}

impl Inner {
    const fn is_open(&self) -> bool {
        !self.is_armed || self.ahead < WINDOW + self.sips
    }
}

impl Drop for Inflow {
    fn drop(&mut self) {
        let Some(gate) = &self.gate else { return };
        let mut inner = gate.lock();
        inner.ahead = inner.ahead.saturating_sub(self.bytes);
        if inner.ahead < WINDOW {
            inner.sips = 0;
        }
        let reader = if inner.is_open() { inner.reader.take() } else { None };
        drop(inner);
        if let Some(reader) = reader {
            reader.wake();
        }
    }
}

#[cfg(test)]
mod tests {
    use std::sync::atomic::{AtomicUsize, Ordering};
    use std::task::Wake;

    use super::*;

    #[derive(Default)]
    struct Woken(AtomicUsize);

    impl Wake for Woken {
        fn wake(self: Arc<Self>) {
            self.0.fetch_add(1, Ordering::Relaxed);
        }
    }

    #[test]
    fn what_nobody_takes_holds_the_reading_up_until_it_is_taken() {
        let (gate, woken) = (Gate::default(), Arc::new(Woken::default()));
        gate.arm();
        let waker = Waker::from(Arc::clone(&woken));
        let context = Context::from_waker(&waker);
        gate.note(WINDOW - 1);
        assert!(gate.poll_open(&context).is_ready());
        gate.note(5);
        assert!(gate.poll_open(&context).is_pending());
        drop(gate.inflow(2));
        assert_eq!(woken.0.load(Ordering::Relaxed), 0);
        drop(gate.inflow(3));
        assert_eq!(woken.0.load(Ordering::Relaxed), 1);
        assert!(gate.poll_open(&context).is_ready());
    }

    #[test]
    fn a_closed_gate_opens_a_little_after_two_seconds() {
        let gate = Gate::default();
        let context = Context::from_waker(Waker::noop());
        gate.arm();
        gate.note(WINDOW);
        for (milliseconds, is_open) in [(0, false), (1_900, false), (2_000, true)] {
            gate.lock().closed = Instant::now().checked_sub(Duration::from_millis(milliseconds));
            assert_eq!(gate.poll_open(&context).is_ready(), is_open, "{milliseconds}");
        }
    }

    #[test]
    fn after_a_pause_a_little_is_read_all_the_same() {
        let gate = Gate::default();
        let context = Context::from_waker(Waker::noop());
        gate.note(1);
        assert!(!gate.is_busy(PAUSE));
        gate.note(3 * WINDOW);
        assert!(gate.poll_open(&context).is_ready(), "nobody takes anything yet");
        gate.arm();
        assert!(gate.poll_open(&context).is_pending());
        assert!(gate.poll_after(Duration::ZERO, &context).is_ready());
        assert!(gate.is_busy(PAUSE));
        assert!(gate.poll_open(&context).is_ready(), "not one read only");
        gate.note(SIP);
        assert!(gate.poll_open(&context).is_pending());
        drop(gate.inflow(usize::MAX));
        gate.note(WINDOW);
        assert!(gate.poll_open(&context).is_pending(), "once all was taken the window is what it was");
    }
}
