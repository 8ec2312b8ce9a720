//! Keeps operations away from a place that cannot be reached, and looks once an interval whether it can be again.
//!
//! ```text
//!                    three operations in vain
//!    ┌──────────────────────────────────────────┐
//!    │      silence              unanswered     ▼      due
//!  Closed ──────────► Doubted ────────────────► Open ◄─────► HalfOpen
//!    ▲ ▲                │                           unanswered  │
//!    │ └── answered ────┘                                       │
//!    └──────────────────────────────────────────── answered ────┘
//! ```
//!
//! `Circuit` decides and is handed the time; [`Breaker`] is the handle that all share.

use std::fmt;
use std::sync::{Arc, Mutex, PoisonError};
use std::time::Duration;

use rand::RngExt as _;
use tokio::sync::watch;
use tokio::time::Instant;

use crate::telemetry::{self, Metrics};

/// So many operations in a row that ended without an answer open it.
const FAILURES: u32 = 3;

/// Shortest and longest time from one look to the next; it doubles in between.
const INTERVALS: (Duration, Duration) = (Duration::from_secs(1), Duration::from_secs(30));

/// Whether a place is asked.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum BreakerState {
    /// It is asked.
    Closed,
    /// It cannot be reached, and operations fail at once.
    Open,
    /// As [`BreakerState::Open`], while one caller looks whether it can be reached again.
    HalfOpen,
}

impl BreakerState {
    /// Names the state.
    #[must_use]
    pub const fn as_str(self) -> &'static str {
        match self {
            Self::Closed => "closed",
            Self::Open => "open",
            Self::HalfOpen => "half_open",
        }
    }
}

/// What an operation that asks to be let through is told.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Verdict {
    Pass,
    Look(u64),
    Wait,
    Refuse(Outage),
}

/// What is known of a place that cannot be reached.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(in crate::storage) struct Outage {
    /// How long it has not answered.
    pub(in crate::storage) silence: Duration,
    /// When it is looked at next; `None` while somebody looks.
    pub(in crate::storage) look_in: Option<Duration>,
}

/// How a look ended.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum End {
    Answered,
    Unanswered,
    /// The one who looked was cancelled.
    Dropped,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum State {
    /// Operations in a row that ended without an answer, and since when attempts have been in vain.
    Closed {
        failures: u32,
        silent_since: Option<Instant>,
    },
    /// Silent for long, maybe by chance: one stuck request is no outage. Who noticed looks, the others wait for that.
    Doubted {
        silent_since: Instant,
        look: u64,
    },
    Open {
        silent_since: Instant,
        interval: Duration,
        look_at: Instant,
    },
    HalfOpen {
        silent_since: Instant,
        interval: Duration,
        look: u64,
    },
}

impl State {
    const CLOSED: Self = Self::Closed { failures: 0, silent_since: None };

    const fn is_open(self) -> bool {
        matches!(self, Self::Open { .. } | Self::HalfOpen { .. })
    }

    fn silence(self, now: Instant) -> Duration {
        match self {
            Self::Closed { silent_since, .. } => silent_since.map_or(Duration::ZERO, |since| now - since),
            Self::Doubted { silent_since, .. }
            | Self::Open { silent_since, .. }
            | Self::HalfOpen { silent_since, .. } => now - silent_since,
        }
    }
}

/// The state machine.
#[derive(Debug)]
struct Circuit {
    state: State,
    /// Silence that makes it doubt.
    patience: Duration,
    alive_at: Option<Instant>,
    looks: u64,
    /// A random number from 0 to 1, so that several processes do not look in step.
    chance: fn() -> f64,
}

impl Circuit {
    fn new(patience: Duration, chance: fn() -> f64) -> Self {
        Self { state: State::CLOSED, patience, alive_at: None, looks: 0, chance }
    }

    fn admit(&mut self, now: Instant) -> Verdict {
        let silence = self.state.silence(now);
        match self.state {
            State::Closed { .. } => Verdict::Pass,
            State::Doubted { .. } => Verdict::Wait,
            State::Open { silent_since, interval, look_at } if look_at <= now => {
                let look = self.next_look();
                self.state = State::HalfOpen { silent_since, interval, look };
                Verdict::Look(look)
            }
            State::Open { look_at, .. } => Verdict::Refuse(Outage { silence, look_in: Some(look_at - now) }),
            State::HalfOpen { .. } => Verdict::Refuse(Outage { silence, look_in: None }),
        }
    }

    /// Takes note of any answer: the place is there, whoever asked.
    fn answered(&mut self, now: Instant) {
        self.alive_at = Some(now);
        self.state = State::CLOSED;
    }

    /// Takes note of an attempt that got no answer.
    ///
    /// The last one of an operation may open it, another one may make its caller look before it goes on.
    fn unanswered(&mut self, began: Instant, now: Instant, last: bool) -> Option<u64> {
        let State::Closed { failures, silent_since } = self.state else { return None };
        // An attempt that began before the last sign of life says nothing of the time before that.
        let began = self.alive_at.map_or(began, |alive_at| alive_at.max(began));
        let since = silent_since.map_or(began, |since| since.min(began));
        let failures = failures + u32::from(last);
        let doubtful = now - since >= self.patience;
        if last && (doubtful || failures >= FAILURES) {
            self.open(since, INTERVALS.0, now);
        } else if doubtful {
            let look = self.next_look();
            self.state = State::Doubted { silent_since: since, look };
            return Some(look);
        } else {
            self.state = State::Closed { failures, silent_since: Some(since) };
        }
        None
    }

    /// Takes note of how a look ended; one that an answer has overtaken says nothing new.
    fn looked(&mut self, ended: u64, end: End, now: Instant) {
        match (self.state, end) {
            (_, End::Answered) => self.answered(now),
            (State::Doubted { silent_since, look }, End::Unanswered) if look == ended => {
                self.open(silent_since, INTERVALS.0, now);
            }
            (State::Doubted { silent_since, look }, End::Dropped) if look == ended => {
                self.state = State::Closed { failures: 0, silent_since: Some(silent_since) };
            }
            (State::HalfOpen { silent_since, interval, look }, End::Unanswered) if look == ended => {
                self.open(silent_since, (interval * 2).min(INTERVALS.1), now);
            }
            // Or commands that end sooner than their look would look one after another.
            (State::HalfOpen { silent_since, interval, look }, End::Dropped) if look == ended => {
                self.open(silent_since, interval, now);
            }
            (_, End::Unanswered | End::Dropped) => {}
        }
    }

    fn open(&mut self, silent_since: Instant, interval: Duration, now: Instant) {
        let look_at = now + interval.mul_f64(0.75 + (self.chance)() / 4.0);
        self.state = State::Open { silent_since, interval, look_at };
    }

    const fn next_look(&mut self) -> u64 {
        self.looks += 1;
        self.looks
    }
}

/// Keeps operations away from a place that cannot be reached; cheap to clone.
///
/// # Contract
///
/// - It opens when three operations in a row ended without an answer after all their attempts, and when nothing was
///   answered for one timeout in which attempts failed and the look that follows is not answered either.
/// - While it is open, operations fail at once, and one caller an interval (1 s doubling to 30 s) looks.
/// - Any answer closes it: a refusal, too, or a request for patience.
#[derive(Clone)]
pub struct Breaker(Arc<Inner>);

struct Inner {
    circuit: Mutex<Circuit>,
    state: watch::Sender<State>,
    label: telemetry::BackendLabel,
    metrics: Metrics,
}

impl Breaker {
    /// Makes a closed one; `patience` is how long a place may be silent before it is doubted.
    pub(in crate::storage) fn new(patience: Duration, label: telemetry::BackendLabel, metrics: Metrics) -> Self {
        metrics.record_breaker(label, false);
        let circuit = Mutex::new(Circuit::new(patience, || rand::rng().random::<f64>()));
        Self(Arc::new(Inner { circuit, state: watch::Sender::new(State::CLOSED), label, metrics }))
    }

    /// Tells whether the place is asked.
    #[must_use]
    pub fn state(&self) -> BreakerState {
        match *self.0.state.borrow() {
            State::Closed { .. } | State::Doubted { .. } => BreakerState::Closed,
            State::Open { .. } => BreakerState::Open,
            State::HalfOpen { .. } => BreakerState::HalfOpen,
        }
    }

    /// Waits until the place is asked; returns at once if it is.
    pub async fn closed(&self) {
        self.until(|state| !state.is_open()).await;
    }

    /// Waits until the place is not asked; returns at once if it is not.
    pub async fn opened(&self) {
        self.until(State::is_open).await;
    }

    /// Waits until nobody looks at a place that is only doubted.
    pub(in crate::storage) async fn settled(&self) {
        self.until(|state| !matches!(state, State::Doubted { .. })).await;
    }

    /// Waits between two attempts; `false`, at once, when the place is not asked any more.
    pub(in crate::storage) async fn pause(&self, wait: Duration) -> bool {
        tokio::select! {
            () = self.opened() => return false,
            () = tokio::time::sleep(wait) => {}
        }
        self.settled().await;
        self.state() == BreakerState::Closed
    }

    /// Asks to be let through.
    pub(in crate::storage) fn admit(&self) -> Admission {
        match self.change(Circuit::admit) {
            Verdict::Pass => Admission::Pass,
            Verdict::Look(id) => Admission::Look(self.look(id)),
            Verdict::Wait => Admission::Wait,
            Verdict::Refuse(outage) => Admission::Refuse(outage),
        }
    }

    /// Takes note of a sign of life.
    pub(in crate::storage) fn answered(&self) {
        self.change(Circuit::answered);
    }

    /// Takes note of an attempt that got no answer; its operation, unless that was its `last` one, may have to look
    /// before it goes on.
    pub(in crate::storage) fn unanswered(&self, began: Instant, last: bool) -> Option<Look> {
        self.change(|circuit, now| circuit.unanswered(began, now, last)).map(|id| self.look(id))
    }

    fn look(&self, id: u64) -> Look {
        Look { breaker: self.clone(), id, end: End::Dropped }
    }

    async fn until(&self, wanted: impl Fn(State) -> bool) {
        // Whoever waits holds the sender, so it is never gone.
        if self.0.state.subscribe().wait_for(|state| wanted(*state)).await.is_err() {}
    }

    fn change<T>(&self, step: impl FnOnce(&mut Circuit, Instant) -> T) -> T {
        // Every step leaves the machine whole, so a panic elsewhere does too.
        let mut circuit = self.0.circuit.lock().unwrap_or_else(PoisonError::into_inner);
        let (before, now) = (circuit.state, Instant::now());
        let told = step(&mut circuit, now);
        let after = circuit.state;
        if before != after {
            self.tell(before, after, now);
            self.0.state.send_replace(after);
        }
        told
    }

    fn tell(&self, before: State, after: State, now: Instant) {
        let backend = self.0.label.as_str();
        let silent_seconds = before.silence(now).max(after.silence(now)).as_secs_f64();
        match (before.is_open(), after.is_open()) {
            (false, true) => {
                tracing::warn!(backend, silent_seconds, "cannot be reached; from now on it is only looked at");
            }
            (true, false) => tracing::info!(backend, silent_seconds, "can be reached again"),
            (true, true) | (false, false) => return,
        }
        self.0.metrics.record_breaker(self.0.label, after.is_open());
    }
}

impl fmt::Debug for Breaker {
    fn fmt(&self, formatter: &mut fmt::Formatter<'_>) -> fmt::Result {
        formatter.debug_tuple("Breaker").field(&self.state()).finish()
    }
}

/// What becomes of an operation that asks to be let through.
#[derive(Debug)]
pub(in crate::storage) enum Admission {
    /// It may ask the place.
    Pass,
    /// It is to look first.
    Look(Look),
    /// Somebody looks at a doubted place; [`Breaker::settled`] tells when to ask again.
    Wait,
    /// It fails at once.
    Refuse(Outage),
}

/// The one look that is under way; dropped without an end, it was taken by one who was cancelled.
#[derive(Debug)]
#[must_use]
pub(in crate::storage) struct Look {
    breaker: Breaker,
    id: u64,
    end: End,
}

impl Look {
    /// Ends the look.
    pub(in crate::storage) fn end(mut self, answered: bool) {
        self.end = if answered { End::Answered } else { End::Unanswered };
    }
}

impl Drop for Look {
    fn drop(&mut self) {
        self.breaker.change(|circuit, now| circuit.looked(self.id, self.end, now));
    }
}

#[cfg(test)]
mod tests;
