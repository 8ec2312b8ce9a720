//! What a place that cannot be reached costs, on paused time.

use std::sync::Arc;
use std::time::Duration;

use filestorage::storage::{Backend, BreakerState, Error, ErrorKind, Operation, Probe};
use futures_util::future::join_all;
use tokio::time::{Instant, sleep, timeout};

use crate::retry::{Case, LOOK, TIMEOUT, timed};
use crate::scripted::Turn;
use crate::support::{counted, key};

const AWAY: Turn = Turn::Fails(ErrorKind::Unavailable);

impl Case {
    async fn stat(&self) -> (Result<(), Error>, u32) {
        counted(async { self.retry.stat(&key("it")).await.map(drop) }).await
    }

    /// Cannot be reached, and the breaker knows.
    async fn opened() -> Self {
        let case = Self::new();
        case.place.always(AWAY);
        for _ in 0..3 {
            assert_eq!(case.breaker.state(), BreakerState::Closed);
            let (outcome, made) = case.stat().await;
            assert_eq!((outcome.unwrap_err().kind, made), (ErrorKind::Unavailable, 4));
        }
        assert_eq!(case.breaker.state(), BreakerState::Open);
        case.place.reset();
        case
    }
}

#[tokio::test(start_paused = true)]
async fn while_it_is_open_nothing_is_asked() {
    let case = Case::opened().await;
    let ((outcome, made), took) = timed(case.stat()).await;
    let error = outcome.unwrap_err();
    assert_eq!((error.kind, error.operation, made, took), (ErrorKind::Unavailable, Operation::Stat, 0, Duration::ZERO));
    for part in ["script(memory) has not been reached for ", "next look whether it can be is due in 1 s"] {
        assert!(error.message().contains(part), "{error}");
    }
    assert!(error.retry_after.is_some_and(|after| after <= Duration::from_secs(1)));
    assert_eq!(case.place.reset(), 0);
    sleep(Duration::from_secs(1)).await;
    // The first one to come looks, and goes on when there is an answer; a refusal is one.
    case.place.next(Operation::Probe, [Turn::Fails(ErrorKind::Denied)]);
    case.place.next(Operation::Stat, [Turn::Done]);
    let (outcome, made) = case.stat().await;
    assert!(outcome.is_ok());
    assert_eq!((made, case.breaker.state()), (1, BreakerState::Closed));
    assert_eq!((case.place.asked(Operation::Probe).len(), case.place.reset()), (1, 2));
}

#[tokio::test(start_paused = true)]
async fn a_probe_looks_only_when_that_is_due() {
    let case = Case::opened().await;
    let error = case.retry.probe().await.unwrap_err();
    assert_eq!((error.kind, case.place.reset()), (ErrorKind::Unavailable, 0));
    sleep(Duration::from_secs(1)).await;
    assert_eq!(case.retry.probe().await.unwrap_err().message(), "as written; look there");
    assert_eq!(case.retry.probe().await.unwrap_err().operation, Operation::Probe);
    assert_eq!(case.place.reset(), 1);
    sleep(Duration::from_secs(2)).await;
    case.place.always(Turn::Done);
    assert_eq!(case.retry.probe().await.unwrap(), Probe::default());
    assert_eq!((case.breaker.state(), case.place.reset()), (BreakerState::Closed, 1));
}

#[tokio::test(start_paused = true)]
async fn a_look_is_short() {
    let case = Case::opened().await;
    sleep(Duration::from_secs(1)).await;
    case.place.always(Turn::Hangs);
    let ((outcome, made), took) = timed(case.stat()).await;
    assert_eq!((outcome.unwrap_err().kind, made), (ErrorKind::Unavailable, 0));
    assert!(took >= LOOK && took < LOOK + Duration::from_secs(1), "{took:?}");
    assert_eq!((case.place.asked(Operation::Probe).len(), case.place.reset()), (1, 1));
}

#[tokio::test(start_paused = true)]
async fn who_is_cancelled_while_looking_has_had_its_look() {
    let case = Case::opened().await;
    case.place.always(Turn::Hangs);
    for looks in 1..4 {
        sleep(Duration::from_secs(1)).await;
        assert!(timeout(Duration::from_secs(1), case.stat()).await.is_err());
        assert_eq!((case.breaker.state(), case.place.under_way()), (BreakerState::Open, 0));
        assert_eq!(case.stat().await.1, 0);
        assert_eq!(case.place.asked(Operation::Probe).len(), looks);
    }
    sleep(Duration::from_secs(1)).await;
    case.place.always(Turn::Done);
    assert!(case.stat().await.0.is_ok());
}

#[tokio::test(start_paused = true)]
async fn an_outage_costs_one_look_an_interval() {
    for look in [AWAY, Turn::Hangs] {
        let case = Arc::new(Case::opened().await);
        let begin = Instant::now();
        case.place.always(look);
        let callers = join_all((0..64).map(|caller| {
            let case = Arc::clone(&case);
            tokio::spawn(async move {
                let mut refused = 0;
                // Each comes back several times a second, for ten minutes, and then until it is served.
                loop {
                    sleep(Duration::from_millis(100 + caller)).await;
                    match case.stat().await {
                        (Ok(()), made) => return (refused, made),
                        (Err(error), made) => assert_eq!((error.kind, made), (ErrorKind::Unavailable, 0), "{error}"),
                    }
                    refused += 1;
                }
            })
        }));
        let end = {
            let case = Arc::clone(&case);
            tokio::spawn(async move {
                sleep(Duration::from_secs(600)).await;
                assert!(case.place.asked(Operation::Stat).is_empty());
                case.place.always(Turn::Done);
                Instant::now()
            })
        };
        let (callers, end) = tokio::join!(callers, end);
        for caller in callers {
            let (refused, made) = caller.unwrap();
            assert!(refused > 1_000 && made == 1, "{refused} times, then in {made} attempts");
        }
        let looks = case.place.asked(Operation::Probe);
        // From its end to the next look: at least three quarters of the interval, and no longer than until one comes by.
        let took = if matches!(look, Turn::Hangs) { LOOK } else { Duration::ZERO };
        let late = Duration::from_millis(200);
        let mut interval = Duration::from_secs(1);
        assert!(looks[0] - begin >= interval.mul_f64(0.75) && looks[0] - begin <= interval + late);
        for pair in looks.windows(2) {
            interval = (interval * 2).min(Duration::from_secs(30));
            let waited = pair[1] - pair[0] - took;
            assert!(waited >= interval.mul_f64(0.75) && waited <= interval + late, "{waited:?} of {interval:?}");
        }
        // The one that was answered is the last one, and all were served then.
        assert!(*looks.last().unwrap() >= end.unwrap());
        assert_eq!(case.place.asked(Operation::Stat).len(), 64);
        assert_eq!(case.breaker.state(), BreakerState::Closed);
    }
}

#[tokio::test(start_paused = true)]
async fn a_black_hole_costs_one_timeout_and_a_look() {
    let case = Case::new();
    assert!(case.stat().await.0.is_ok());
    case.place.reset();
    case.place.always(Turn::Hangs);
    let begin = Instant::now();
    let first = join_all((0..64).map(|number| {
        let case = &case;
        async move {
            sleep(Duration::from_millis(number * 10)).await;
            timed(case.stat()).await
        }
    }));
    // One that comes while the others wait for the look waits for it, too, instead of for a timeout of its own.
    let late = async {
        sleep(TIMEOUT + Duration::from_secs(2)).await;
        timed(case.stat()).await
    };
    let (first, ((outcome, made), took)) = tokio::join!(first, late);
    let most = TIMEOUT + LOOK + Duration::from_secs(1);
    for ((outcome, made), took) in first {
        assert_eq!((outcome.unwrap_err().kind, made), (ErrorKind::Unavailable, 1));
        assert!(took >= TIMEOUT && took <= most, "{took:?}");
    }
    assert_eq!((outcome.unwrap_err().kind, made), (ErrorKind::Unavailable, 0));
    assert!(took <= LOOK);
    assert!(begin.elapsed() <= most, "{:?}", begin.elapsed());
    assert_eq!((case.place.asked(Operation::Probe).len(), case.place.reset()), (1, 65));
    assert_eq!((case.breaker.state(), case.place.under_way()), (BreakerState::Open, 0));
    let ((_, made), took) = timed(case.stat()).await;
    assert_eq!((made, took), (0, Duration::ZERO));
}

#[tokio::test(start_paused = true)]
async fn a_stuck_request_is_no_outage() {
    let case = Case::new();
    case.place.next(Operation::Stat, [Turn::Hangs; 3]);
    let (outcome, made) = case.stat().await;
    assert!(outcome.is_ok());
    assert_eq!((made, case.breaker.state()), (4, BreakerState::Closed));
    assert_eq!(case.place.asked(Operation::Probe).len(), 3);
    // Nor is it looked at where others are answered meanwhile.
    case.place.reset();
    case.place.next(Operation::Retrieve, [Turn::Hangs]);
    let it = key("it");
    let stuck = case.retry.get(&it, filestorage::storage::GetOptions::default());
    let others = async {
        for _ in 0..7 {
            sleep(Duration::from_secs(5)).await;
            assert!(case.stat().await.0.is_ok());
        }
    };
    let (stuck, ()) = tokio::join!(stuck, others);
    assert!(stuck.unwrap().is_none());
    assert_eq!(case.place.asked(Operation::Probe).len(), 0);
}

#[tokio::test(start_paused = true)]
async fn a_request_for_patience_never_opens_it() {
    let case = Case::new();
    case.place.always(Turn::Fails(ErrorKind::Throttled));
    for _ in 0..40 {
        let (outcome, made) = case.stat().await;
        assert_eq!((outcome.unwrap_err().kind, made), (ErrorKind::Throttled, 4));
        sleep(Duration::from_secs(5)).await;
        assert_eq!(case.breaker.state(), BreakerState::Closed);
    }
    assert_eq!(case.place.asked(Operation::Probe).len(), 0);
}

#[tokio::test(start_paused = true)]
async fn any_answer_starts_the_count_over() {
    for kind in [ErrorKind::Denied, ErrorKind::Precondition, ErrorKind::Throttled, ErrorKind::Integrity] {
        let case = Case::new();
        for _ in 0..4 {
            for _ in 0..2 {
                case.place.next(Operation::Stat, [AWAY; 4]);
                assert_eq!(case.stat().await.0.unwrap_err().kind, ErrorKind::Unavailable);
            }
            case.place.next(Operation::Stat, [Turn::Fails(kind); 4]);
            assert_eq!(case.stat().await.0.unwrap_err().kind, kind);
            case.place.reset();
        }
        assert_eq!(case.breaker.state(), BreakerState::Closed);
    }
}

#[tokio::test(start_paused = true)]
async fn who_waits_to_try_again_stops_when_it_opens() {
    let case = Case::new();
    case.place.next(Operation::List, [Turn::Asks(ErrorKind::Unavailable, Duration::from_secs(60))]);
    case.place.next(Operation::Stat, [AWAY; 12]);
    let page = filestorage::storage::Page::default();
    let waiting = timed(counted(case.retry.list(&page)));
    let others = async {
        for _ in 0..3 {
            assert_eq!(case.stat().await.1, 4);
        }
    };
    let (((outcome, made), took), ()) = tokio::join!(waiting, others);
    let error = outcome.unwrap_err();
    assert_eq!((error.message(), made), ("as written; look there; tried once", 1));
    assert!(took < Duration::from_secs(10), "{took:?}");
    assert_eq!(case.breaker.state(), BreakerState::Open);
}

#[tokio::test(start_paused = true)]
async fn an_answer_to_one_who_asked_before_closes_it() {
    let case = Case::new();
    case.place.next(Operation::List, [Turn::Slow(Duration::from_secs(20))]);
    case.place.next(Operation::Stat, [AWAY; 12]);
    let page = filestorage::storage::Page::default();
    let slow = async {
        case.retry.list(&page).await.unwrap();
        assert_eq!(case.breaker.state(), BreakerState::Closed);
    };
    let others = async {
        for _ in 0..3 {
            assert!(case.stat().await.0.is_err());
        }
        assert_eq!(case.breaker.state(), BreakerState::Open);
        case.breaker.closed().await;
    };
    tokio::join!(slow, others);
    assert_eq!(case.place.asked(Operation::Probe).len(), 0);
}
