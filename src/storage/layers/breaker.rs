//! The circuit breaker of a backend: it stops operations while the backend cannot be reached, and probes once an
//! interval.
//!
//! ```text
//!                    three failed operations
//!    ┌──────────────────────────────────────────┐
//!    │      silence              unanswered     ▼      due
//!  Closed ──────────► Doubted ────────────────► Open ◄─────► HalfOpen
//!    ▲ ▲                │                           unanswered  │
//!    │ └── answered ────┘                                       │
//!    └──────────────────────────────────────────── answered ────┘
//! ```
//!
//! `Circuit` decides from the time that is passed to it. [`Breaker`] is the handle that all operations share.

use std::fmt;
use std::sync::{Arc, Mutex, PoisonError};
use std::time::Duration;

use rand::RngExt as _;
use tokio::sync::watch;
use tokio::time::Instant;

use crate::telemetry::{self, Metrics};

/// The breaker opens after this many operations in a row that ended without an answer.
const FAILURES: u32 = 3;

/// Shortest and longest time from one probe to the next. The time doubles in between.
const INTERVALS: (Duration, Duration) = (Duration::from_secs(1), Duration::from_secs(30));

/// Whether operations are sent to the backend.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum BreakerState {
    /// Operations are sent to the backend.
    Closed,
    /// The backend cannot be reached, and operations fail at once.
    Open,
    /// As [`BreakerState::Open`], while one caller probes whether the backend can be reached again.
    HalfOpen,
}

impl BreakerState {
    /// Returns the name of the state.
    #[must_use]
    pub const fn as_str(self) -> &'static str {
        match self {
            Self::Closed => "closed",
            Self::Open => "open",
            Self::HalfOpen => "half_open",
        }
    }
}

/// The decision about an operation that is about to begin. A probe is a number for the state machine, and a turn for
/// the caller.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(in crate::storage) enum Admission<P = ProbeTurn> {
    /// The operation may use the backend.
    Pass,
    /// The operation must probe first.
    Probe(P),
    /// A probe of a doubted backend is under way. [`Breaker::probe_ended`] waits for its end.
    Wait,
    /// The operation fails at once.
    Refuse(Outage),
}

/// An outage of a backend.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(in crate::storage) struct Outage {
    /// How long the backend has not answered.
    pub(in crate::storage) silence: Duration,
    /// How long it is until the next probe; `None` while a probe is under way.
    pub(in crate::storage) probe_in: Option<Duration>,
}

/// The end of a probe.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum End {
    Answered,
    Unanswered,
    /// The caller that probed was cancelled.
    Dropped,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum State {
    /// The number of operations in a row that ended without an answer, and the time since which no attempt was
    /// answered.
    Closed {
        failures: u32,
        silent_since: Option<Instant>,
    },
    /// No answer for long, which may be chance: one stuck request is no outage. The operation that noticed probes, and
    /// the others wait for the result.
    Doubted {
        silent_since: Instant,
        probe: u64,
    },
    Open {
        silent_since: Instant,
        interval: Duration,
        probe_at: Instant,
    },
    HalfOpen {
        silent_since: Instant,
        interval: Duration,
        probe: u64,
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

/// The state machine of the breaker, without a clock and without I/O.
#[derive(Debug)]
struct Circuit {
    state: State,
    /// The length of a silence that makes the backend doubtful.
    silence_limit: Duration,
    alive_at: Option<Instant>,
    probes: u64,
    /// Returns a random number from 0 to 1, so that several processes do not probe at the same time.
    chance: fn() -> f64,
}

impl Circuit {
    fn new(silence_limit: Duration, chance: fn() -> f64) -> Self {
        Self { state: State::CLOSED, silence_limit, alive_at: None, probes: 0, chance }
    }

    fn admit(&mut self, now: Instant) -> Admission<u64> {
        let silence = self.state.silence(now);
        match self.state {
            State::Closed { .. } => Admission::Pass,
            State::Doubted { .. } => Admission::Wait,
            State::Open { silent_since, interval, probe_at } if probe_at <= now => {
                let probe = self.next_probe();
                self.state = State::HalfOpen { silent_since, interval, probe };
                Admission::Probe(probe)
            }
            State::Open { probe_at, .. } => Admission::Refuse(Outage { silence, probe_in: Some(probe_at - now) }),
            State::HalfOpen { .. } => Admission::Refuse(Outage { silence, probe_in: None }),
        }
    }

    /// Notes an answer to any request: the backend can be reached.
    fn answered(&mut self, now: Instant) {
        self.alive_at = Some(now);
        self.state = State::CLOSED;
    }

    /// Notes an attempt that got no answer.
    ///
    /// The last attempt of an operation may open the breaker. Another attempt may make its caller probe before it goes
    /// on.
    fn unanswered(&mut self, began: Instant, now: Instant, last: bool) -> Option<u64> {
        let State::Closed { failures, silent_since } = self.state else { return None };
        // An attempt that began before the last answer shows nothing about the time before that answer.
        let began = self.alive_at.map_or(began, |alive_at| alive_at.max(began));
        let since = silent_since.map_or(began, |since| since.min(began));
        let failures = failures + u32::from(last);
        let doubtful = now - since >= self.silence_limit;
        if last && (doubtful || failures >= FAILURES) {
            self.open(since, INTERVALS.0, now);
        } else if doubtful {
            let probe = self.next_probe();
            self.state = State::Doubted { silent_since: since, probe };
            return Some(probe);
        } else {
            self.state = State::Closed { failures, silent_since: Some(since) };
        }
        None
    }

    /// Notes the end of a probe. A probe that an answer to another request has overtaken changes nothing.
    fn probed(&mut self, ended: u64, end: End, now: Instant) {
        match (self.state, end) {
            (_, End::Answered) => self.answered(now),
            (State::Doubted { silent_since, probe }, End::Unanswered) if probe == ended => {
                self.open(silent_since, INTERVALS.0, now);
            }
            (State::Doubted { silent_since, probe }, End::Dropped) if probe == ended => {
                self.state = State::Closed { failures: 0, silent_since: Some(silent_since) };
            }
            (State::HalfOpen { silent_since, interval, probe }, End::Unanswered) if probe == ended => {
                self.open(silent_since, (interval * 2).min(INTERVALS.1), now);
            }
            // The interval is kept: otherwise commands that are cancelled during their probe would probe one after
            // another.
            (State::HalfOpen { silent_since, interval, probe }, End::Dropped) if probe == ended => {
                self.open(silent_since, interval, now);
            }
            (_, End::Unanswered | End::Dropped) => {}
        }
    }

    fn open(&mut self, silent_since: Instant, interval: Duration, now: Instant) {
        let probe_at = now + interval.mul_f64(0.75 + (self.chance)() / 4.0);
        self.state = State::Open { silent_since, interval, probe_at };
    }

    const fn next_probe(&mut self) -> u64 {
        self.probes += 1;
        self.probes
    }
}

/// Stops operations while a backend cannot be reached; cheap to clone.
///
/// # Contract
///
/// - The breaker opens when three operations in a row ended without an answer after all their attempts. It also opens
///   when no request was answered for one timeout in which attempts failed, and the probe that follows is not answered
///   either.
/// - While the breaker is open, operations fail at once, and one caller an interval (1 s doubling to 30 s) probes.
/// - Any answer closes the breaker, also a refusal or a request to slow down.
#[derive(Clone)]
pub struct Breaker(Arc<Inner>);

struct Inner {
    circuit: Mutex<Circuit>,
    state: watch::Sender<State>,
    label: telemetry::BackendLabel,
    metrics: Metrics,
}

impl Breaker {
    /// Makes a closed breaker. `silence_limit` is how long a backend may be silent before it is doubted.
    pub(in crate::storage) fn new(silence_limit: Duration, label: telemetry::BackendLabel, metrics: Metrics) -> Self {
        metrics.record_breaker(label, false);
        let circuit = Mutex::new(Circuit::new(silence_limit, || rand::rng().random::<f64>()));
        Self(Arc::new(Inner { circuit, state: watch::Sender::new(State::CLOSED), label, metrics }))
    }

    /// Returns whether operations are sent to the backend.
    #[must_use]
    pub fn state(&self) -> BreakerState {
        match *self.0.state.borrow() {
            State::Closed { .. } | State::Doubted { .. } => BreakerState::Closed,
            State::Open { .. } => BreakerState::Open,
            State::HalfOpen { .. } => BreakerState::HalfOpen,
        }
    }

    /// Waits until the breaker is closed; returns at once if it is.
    pub async fn closed(&self) {
        self.until(|state| !state.is_open()).await;
    }

    /// Waits until the breaker is open; returns at once if it is.
    pub async fn opened(&self) {
        self.until(State::is_open).await;
    }

    /// Waits while a doubted backend is being probed.
    pub(in crate::storage) async fn probe_ended(&self) {
        self.until(|state| !matches!(state, State::Doubted { .. })).await;
    }

    /// Waits between two attempts. Returns `false`, at once, when the breaker opens.
    pub(in crate::storage) async fn pause(&self, wait: Duration) -> bool {
        tokio::select! {
            () = self.opened() => return false,
            () = tokio::time::sleep(wait) => {}
        }
        self.probe_ended().await;
        self.state() == BreakerState::Closed
    }

    /// Decides about an operation that is about to begin.
    pub(in crate::storage) fn admit(&self) -> Admission {
        match self.change(Circuit::admit) {
            Admission::Pass => Admission::Pass,
            Admission::Probe(id) => Admission::Probe(self.probe(id)),
            Admission::Wait => Admission::Wait,
            Admission::Refuse(outage) => Admission::Refuse(outage),
        }
    }

    /// Notes an answer of the backend.
    pub(in crate::storage) fn answered(&self) {
        self.change(Circuit::answered);
    }

    /// Notes an attempt that got no answer. Unless the attempt was its `last`, the operation may have to probe before
    /// it goes on.
    pub(in crate::storage) fn unanswered(&self, began: Instant, last: bool) -> Option<ProbeTurn> {
        self.change(|circuit, now| circuit.unanswered(began, now, last)).map(|id| self.probe(id))
    }

    fn probe(&self, id: u64) -> ProbeTurn {
        ProbeTurn { breaker: self.clone(), id, end: End::Dropped }
    }

    async fn until(&self, wanted: impl Fn(State) -> bool) {
        // The caller holds the sender, so the channel cannot be closed.
        if self.0.state.subscribe().wait_for(|state| wanted(*state)).await.is_err() {}
    }

    fn change<T>(&self, step: impl FnOnce(&mut Circuit, Instant) -> T) -> T {
        // Every step leaves the machine in a consistent state, also after a panic elsewhere.
        let mut circuit = self.0.circuit.lock().unwrap_or_else(PoisonError::into_inner);
        let (before, now) = (circuit.state, Instant::now());
        let outcome = step(&mut circuit, now);
        let after = circuit.state;
        if before != after {
            self.tell(before, after, now);
            self.0.state.send_replace(after);
        }
        outcome
    }

    fn tell(&self, before: State, after: State, now: Instant) {
        let backend = self.0.label.as_str();
        let silent_seconds = before.silence(now).max(after.silence(now)).as_secs_f64();
        match (before.is_open(), after.is_open()) {
            (false, true) => {
                tracing::warn!(
                    backend,
                    silent_seconds,
                    "the backend cannot be reached; only probes are sent until it answers"
                );
            }
            (true, false) => tracing::info!(backend, silent_seconds, "the backend can be reached again"),
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

/// The one probe that is under way. If it is dropped without an end, its caller was cancelled.
#[derive(Debug)]
#[must_use]
pub(in crate::storage) struct ProbeTurn {
    breaker: Breaker,
    id: u64,
    end: End,
}

impl ProbeTurn {
    /// Ends the probe.
    pub(in crate::storage) fn end(mut self, answered: bool) {
        self.end = if answered { End::Answered } else { End::Unanswered };
    }
}

impl Drop for ProbeTurn {
    fn drop(&mut self) {
        self.breaker.change(|circuit, now| circuit.probed(self.id, self.end, now));
    }
}

#[cfg(test)]
mod tests;
