//! Tests of the state machine, step by step, and of the reports of its handle.

use super::*;

const TIMEOUT: Duration = Duration::from_secs(30);

/// A circuit, and the time that is passed to it.
struct Case {
    circuit: Circuit,
    now: Instant,
}

impl Case {
    fn new() -> Self {
        // The longest interval of every draw, so that the numbers below are whole.
        Self { circuit: Circuit::new(TIMEOUT, || 1.0), now: Instant::now() }
    }

    fn pass(&mut self, seconds: f64) {
        self.now += Duration::from_secs_f64(seconds);
    }

    /// Ends an attempt without an answer that began so many seconds ago.
    fn unanswered(&mut self, seconds: f64, last: bool) -> Option<u64> {
        self.circuit.unanswered(self.now - Duration::from_secs_f64(seconds), self.now, last)
    }

    fn answered(&mut self) {
        self.circuit.answered(self.now);
    }

    fn admit(&mut self) -> Admission<u64> {
        self.circuit.admit(self.now)
    }

    fn probed(&mut self, probe: u64, end: End) {
        self.circuit.probed(probe, end, self.now);
    }

    /// Makes a circuit that three operations opened, which failed at once.
    fn open() -> Self {
        let mut case = Self::new();
        for _ in 0..FAILURES {
            assert_eq!(case.admit(), Admission::Pass);
            assert_eq!(case.unanswered(0.0, true), None);
        }
        assert!(case.circuit.state.is_open());
        case
    }
}

fn refused(silence: f64, probe_in: Option<f64>) -> Admission<u64> {
    let (silence, probe_in) = (Duration::from_secs_f64(silence), probe_in.map(Duration::from_secs_f64));
    Admission::Refuse(Outage { silence, probe_in })
}

#[test]
fn three_failed_operations_in_a_row_open_the_breaker() {
    let mut case = Case::new();
    for _ in 0..2 {
        assert_eq!(case.unanswered(0.0, true), None);
    }
    // An attempt that is not the last of its operation does not count.
    for _ in 0..9 {
        assert_eq!(case.unanswered(0.0, false), None);
    }
    case.answered();
    for _ in 0..2 {
        assert_eq!(case.unanswered(0.0, true), None);
        assert_eq!(case.admit(), Admission::Pass);
    }
    assert_eq!(case.unanswered(0.0, true), None);
    assert_eq!(case.admit(), refused(0.0, Some(1.0)));
}

#[test]
fn the_interval_between_probes_doubles() {
    let mut case = Case::open();
    let mut silence = 0.0;
    for interval in [1.0, 2.0, 4.0, 8.0, 16.0, 30.0, 30.0] {
        assert_eq!(case.admit(), refused(silence, Some(interval)));
        case.pass(interval - 0.5);
        assert_eq!(case.admit(), refused(silence + interval - 0.5, Some(0.5)));
        case.pass(0.5);
        silence += interval;
        let Admission::Probe(probe) = case.admit() else { panic!("a probe is due") };
        // Only one caller probes.
        assert_eq!(case.admit(), refused(silence, None));
        case.pass(5.0);
        silence += 5.0;
        assert_eq!(case.admit(), refused(silence, None));
        case.probed(probe, End::Unanswered);
    }
    assert_eq!(case.admit(), refused(silence, Some(30.0)));
}

#[test]
fn the_interval_is_drawn_below_its_length() {
    for (chance, seconds) in [(0.0, 0.75), (0.5, 0.875), (1.0, 1.0)] {
        let mut case = Case::new();
        case.circuit.chance = match chance {
            0.0 => || 0.0,
            0.5 => || 0.5,
            _ => || 1.0,
        };
        for _ in 0..FAILURES {
            assert_eq!(case.unanswered(0.0, true), None);
        }
        assert_eq!(case.admit(), refused(0.0, Some(seconds)));
    }
}

#[test]
fn an_answer_closes_the_breaker_and_resets_it() {
    let mut case = Case::open();
    case.pass(1.0);
    let Admission::Probe(probe) = case.admit() else { panic!("a probe is due") };
    case.probed(probe, End::Answered);
    assert_eq!(case.admit(), Admission::Pass);
    for _ in 0..FAILURES {
        assert!(!case.circuit.state.is_open());
        assert_eq!(case.unanswered(0.0, true), None);
    }
    assert_eq!(case.admit(), refused(0.0, Some(1.0)));
    // An attempt that began before the breaker opened is answered after all.
    case.answered();
    assert_eq!(case.admit(), Admission::Pass);
}

#[test]
fn a_probe_that_an_answer_has_overtaken_changes_nothing() {
    let mut case = Case::open();
    case.pass(1.0);
    let Admission::Probe(probe) = case.admit() else { panic!("a probe is due") };
    case.answered();
    for end in [End::Unanswered, End::Dropped] {
        case.probed(probe, end);
        assert_eq!(case.admit(), Admission::Pass);
    }
    let Some(newer) = case.unanswered(0.0, false).or_else(|| {
        case.pass(30.0);
        case.unanswered(0.0, false)
    }) else {
        panic!("silent for long")
    };
    case.probed(probe, End::Unanswered);
    assert_eq!(case.admit(), Admission::Wait);
    case.probed(newer, End::Unanswered);
    assert_eq!(case.admit(), refused(30.0, Some(1.0)));
}

#[test]
fn silence_leads_to_a_probe_before_the_breaker_opens() {
    let mut case = Case::new();
    let probe = case.unanswered(30.0, false).unwrap();
    // One caller probes and all others wait for the result. Further unanswered attempts change nothing.
    assert_eq!(case.admit(), Admission::Wait);
    assert_eq!(case.unanswered(30.0, false), None);
    assert_eq!(case.unanswered(30.0, true), None);
    assert_eq!(case.admit(), Admission::Wait);
    case.pass(5.0);
    case.probed(probe, End::Unanswered);
    assert_eq!(case.admit(), refused(35.0, Some(1.0)));

    let mut case = Case::new();
    let probe = case.unanswered(30.0, false).unwrap();
    case.probed(probe, End::Answered);
    assert_eq!(case.admit(), Admission::Pass);
    // Silence counts from the last answer, not from the beginning of an attempt.
    case.pass(29.0);
    assert_eq!(case.unanswered(40.0, false), None);
    case.pass(1.0);
    assert!(case.unanswered(0.0, false).is_some());
}

#[test]
fn silence_opens_the_breaker_after_a_last_attempt() {
    let mut case = Case::new();
    assert_eq!(case.unanswered(30.0, true), None);
    assert_eq!(case.admit(), refused(30.0, Some(1.0)));
}

#[test]
fn time_without_attempts_is_no_silence() {
    let mut case = Case::new();
    case.answered();
    case.pass(3_600.0);
    assert_eq!(case.unanswered(0.1, false), None);
    case.pass(29.0);
    assert_eq!(case.unanswered(0.1, false), None);
    case.pass(0.9);
    assert!(case.unanswered(0.1, false).is_some());
}

#[test]
fn a_cancelled_probe_blocks_nobody() {
    let mut case = Case::new();
    let probe = case.unanswered(30.0, false).unwrap();
    case.probed(probe, End::Dropped);
    assert_eq!(case.admit(), Admission::Pass);
    let again = case.unanswered(0.0, false).unwrap();
    assert_ne!(probe, again);
    case.probed(again, End::Unanswered);
    case.pass(1.0);
    let Admission::Probe(probe) = case.admit() else { panic!("a probe is due") };
    case.pass(3.0);
    case.probed(probe, End::Dropped);
    // The next caller probes an interval later.
    assert_eq!(case.admit(), refused(34.0, Some(1.0)));
    case.pass(1.0);
    assert!(matches!(case.admit(), Admission::Probe(_)));
}

#[tokio::test(start_paused = true)]
async fn waiting_callers_and_the_gauge_follow_the_state() {
    let metrics = Metrics::new();
    let breaker = Breaker::new(TIMEOUT, telemetry::BackendLabel::Gcs, metrics.clone());
    let gauge =
        |open| metrics.encode().contains(&format!("filestorage_storage_breaker_open{{backend=\"gcs\"}} {open}\n"));
    assert!(gauge(0));
    breaker.closed().await;
    let waiting = tokio::spawn({
        let breaker = breaker.clone();
        async move {
            breaker.opened().await;
            breaker.closed().await;
        }
    });
    for _ in 0..FAILURES {
        assert_eq!(breaker.state(), BreakerState::Closed);
        assert!(breaker.unanswered(Instant::now(), true).is_none());
    }
    assert_eq!(breaker.state(), BreakerState::Open);
    assert!(gauge(1));
    // An operation that waits for its next attempt ends its wait at once.
    let since = Instant::now();
    assert!(!breaker.pause(Duration::from_secs(60)).await);
    assert_eq!(since.elapsed(), Duration::ZERO);
    tokio::time::sleep(Duration::from_secs(1)).await;
    let Admission::Probe(probe) = breaker.admit() else { panic!("a probe is due") };
    assert_eq!(breaker.state(), BreakerState::HalfOpen);
    assert!(gauge(1) && !waiting.is_finished());
    probe.end(true);
    waiting.await.unwrap();
    assert_eq!(breaker.state(), BreakerState::Closed);
    assert!(gauge(0));
}

#[tokio::test(start_paused = true)]
async fn a_pause_lasts_until_the_probe_has_ended() {
    for answered in [true, false] {
        let breaker = Breaker::new(TIMEOUT, telemetry::BackendLabel::Gcs, Metrics::new());
        let began = Instant::now();
        tokio::time::sleep(TIMEOUT).await;
        let probe = breaker.unanswered(began, false).unwrap();
        let waiting = tokio::spawn({
            let breaker = breaker.clone();
            async move { breaker.pause(Duration::from_secs(1)).await }
        });
        tokio::time::sleep(Duration::from_secs(4)).await;
        assert!(!waiting.is_finished());
        assert_eq!(breaker.state(), BreakerState::Closed);
        probe.end(answered);
        assert_eq!(waiting.await.unwrap(), answered);
    }
}
