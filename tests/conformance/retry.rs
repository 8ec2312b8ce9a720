//! What is tried again and how, on paused time.

use std::future::Future;
use std::sync::Arc;
use std::time::Duration;

use filestorage::storage::{
    Attributes, Backend, Breaker, CommitGuard, Condition, CopySource, DeleteOptions, Error, ErrorKind, GetOptions,
    Grant, Method, Operation, Page, PutOptions, Retry, RetryOptions, VersionsRequest,
};
use filestorage::telemetry::{self, Metrics};
use tokio::time::{Instant, sleep, timeout};

use crate::scripted::{Scripted, Turn};
use crate::support::{Rest, bytes, counted, key, object, rest};

pub(crate) const TIMEOUT: Duration = Duration::from_secs(30);

/// Longest that a look takes.
pub(crate) const LOOK: Duration = Duration::from_secs(5);

/// A scripted place behind retries: three after the first attempt, 30 s each.
pub(crate) struct Case {
    pub(crate) place: Arc<Scripted>,
    pub(crate) retry: Arc<Retry>,
    pub(crate) breaker: Breaker,
    metrics: Metrics,
}

impl Case {
    pub(crate) fn new() -> Self {
        Self::with(3)
    }

    fn with(max_retries: u32) -> Self {
        let (place, metrics) = (Scripted::new(), Metrics::new());
        let options = RetryOptions { max_retries, timeout: TIMEOUT };
        let inner = Arc::clone(&place) as Arc<dyn Backend>;
        let retry = Arc::new(Retry::new(inner, options, telemetry::BackendLabel::Gcs, metrics.clone()));
        let breaker = retry.breaker();
        Self { place, retry, breaker, metrics }
    }

    /// Asks for an operation; returns how it ended and in how many attempts.
    async fn ask(&self, operation: Operation) -> (Result<(), Error>, u32) {
        let it = key("it");
        counted(async {
            match operation {
                Operation::Store => self.retry.put(&it, &object("x"), &PutOptions::default()).await.map(drop),
                Operation::Copy => {
                    let source = CopySource { key: key("source"), generation: "g".to_owned() };
                    let attributes = object("x").attributes;
                    self.retry.copy(&source, &it, &attributes, &PutOptions::default()).await.map(drop)
                }
                Operation::Retrieve => self.retry.get(&it, GetOptions::default()).await.map(drop),
                Operation::Stat => self.retry.stat(&it).await.map(drop),
                Operation::Delete => self.retry.delete(&it, &DeleteOptions::default()).await.map(drop),
                Operation::Versions => {
                    self.retry.versions(&it, &VersionsRequest { generation: None, limit: 1 }).await.map(drop)
                }
                Operation::List => self.retry.list(&Page::default()).await.map(drop),
                Operation::Probe => self.retry.probe().await.map(drop),
                Operation::Sign => {
                    let grant = Grant { method: Method::Get, lifetime: Duration::from_secs(60) };
                    self.retry.sign(&it, &grant).await.map(drop)
                }
            }
        })
        .await
    }

    async fn put(&self, condition: Condition, payload: &'static str) -> (Result<Rest, Error>, u32) {
        let how = PutOptions { condition, ..PutOptions::default() };
        let (it, object) = (key("it"), object(payload));
        counted(async { self.retry.put(&it, &object, &how).await.map(rest) }).await
    }

    async fn found(&self) -> Option<Vec<u8>> {
        match self.place.inner.get(&key("it"), GetOptions::default()).await.unwrap() {
            Some(object) => Some(bytes(object).await.to_vec()),
            None => None,
        }
    }
}

/// Operations that ask the place.
const ASKING: [Operation; 7] = [
    Operation::Store,
    Operation::Copy,
    Operation::Retrieve,
    Operation::Stat,
    Operation::Delete,
    Operation::List,
    Operation::Probe,
];

/// Runs something and tells how long it took, by the paused clock.
pub(crate) async fn timed<T>(work: impl Future<Output = T>) -> (T, Duration) {
    let begin = Instant::now();
    let outcome = work.await;
    (outcome, begin.elapsed())
}

#[tokio::test(start_paused = true)]
async fn only_what_may_pass_is_tried_again() {
    for operation in ASKING {
        for (kind, attempts) in [
            (ErrorKind::Unavailable, 4),
            (ErrorKind::Throttled, 4),
            (
                ErrorKind::Integrity,
                if matches!(operation, Operation::Store | Operation::Copy | Operation::Retrieve) { 4 } else { 1 },
            ),
            (ErrorKind::Denied, 1),
            (ErrorKind::Precondition, 1),
            (ErrorKind::Invalid, 1),
            (ErrorKind::NoSpace, 1),
            (ErrorKind::Abandoned, 1),
            (ErrorKind::Io, 1),
        ] {
            let case = Case::new();
            case.place.next(operation, [Turn::Fails(kind); 9]);
            let (outcome, made) = case.ask(operation).await;
            let error = outcome.unwrap_err();
            assert_eq!((error.kind, error.operation, made), (kind, operation, attempts), "{error}");
            assert_eq!(case.place.asked(operation).len(), attempts as usize);
            let wanted = if attempts == 4 { "as written; look there; tried 4 times" } else { "as written; look there" };
            assert_eq!(error.message(), wanted);
            let label = match operation {
                Operation::Store => "put",
                Operation::Retrieve => "get",
                other => other.as_str(),
            };
            let retries = format!(
                "filestorage_storage_retries_total{{operation=\"{label}\",backend=\"gcs\"}} {}\n",
                attempts - 1
            );
            assert_eq!(case.metrics.encode().contains(&retries), attempts > 1, "{retries}");

            case.place.reset();
            let (outcome, made) = case.ask(operation).await;
            assert!(outcome.is_ok());
            assert_eq!(made, 1);
            if attempts == 4 {
                case.place.next(operation, [Turn::Fails(kind); 3]);
                let (outcome, made) = case.ask(operation).await;
                assert!(outcome.is_ok());
                assert_eq!(made, 4);
            }
        }
    }
}

#[tokio::test(start_paused = true)]
async fn an_error_without_retries_says_so() {
    let case = Case::with(0);
    for (kind, message) in [
        (ErrorKind::Throttled, "as written; look there; tried once"),
        (ErrorKind::Unavailable, "as written; look there; tried once"),
        (ErrorKind::Denied, "as written; look there"),
    ] {
        case.place.next(Operation::Stat, [Turn::Fails(kind)]);
        let (outcome, made) = case.ask(Operation::Stat).await;
        assert_eq!((outcome.unwrap_err().message(), made), (message, 1));
    }
    let case = Case::new();
    case.place.next(Operation::Stat, [Turn::Fails(ErrorKind::Unavailable), Turn::Fails(ErrorKind::Denied)]);
    let (outcome, made) = case.ask(Operation::Stat).await;
    let error = outcome.unwrap_err();
    assert_eq!((error.kind, error.message(), made), (ErrorKind::Denied, "as written; look there; tried 2 times", 2));
}

#[tokio::test(start_paused = true)]
async fn waits_double_and_are_drawn() {
    let mut drawn = Vec::new();
    for _ in 0..20 {
        let case = Case::with(9);
        case.place.next(Operation::Stat, [Turn::Fails(ErrorKind::Throttled); 9]);
        assert!(case.ask(Operation::Stat).await.0.is_ok());
        let asked = case.place.asked(Operation::Stat);
        let waits: Vec<_> = asked.windows(2).map(|pair| (pair[1] - pair[0]).as_millis()).collect();
        for (wait, middle) in waits.iter().zip([100, 200, 400, 800, 1_600, 3_200, 5_000, 5_000, 5_000]) {
            // The clock of the runtime ticks in milliseconds.
            assert!((middle / 2..=(middle * 3 / 2 + 2).min(5_002)).contains(wait), "{waits:?}");
        }
        drawn.push(waits);
    }
    drawn.dedup();
    assert!(drawn.len() > 1);
}

#[tokio::test(start_paused = true)]
async fn what_the_place_asks_to_wait_is_waited() {
    for kind in [ErrorKind::Throttled, ErrorKind::Unavailable] {
        let case = Case::new();
        let asks = Duration::from_secs(7);
        case.place.next(Operation::Stat, [Turn::Asks(kind, asks), Turn::Asks(kind, Duration::from_millis(1))]);
        assert!(case.ask(Operation::Stat).await.0.is_ok());
        let asked = case.place.asked(Operation::Stat);
        let waits: Vec<_> = asked.windows(2).map(|pair| pair[1] - pair[0]).collect();
        assert!(waits[0] >= asks && waits[0] < asks + Duration::from_millis(5), "{waits:?}");
        // Less than our own wait is no reason to hurry.
        assert!(waits[1] >= Duration::from_millis(100), "{waits:?}");

        // Four attempts of 30 s have 120 s in all.
        case.place.next(Operation::Stat, [Turn::Asks(kind, Duration::from_secs(121))]);
        let ((outcome, made), took) = timed(case.ask(Operation::Stat)).await;
        let error = outcome.unwrap_err();
        assert_eq!((error.kind, made, took), (kind, 1, Duration::ZERO));
        assert_eq!(error.message(), "as written; look there; tried once, since it asks to wait 121s");
        assert_eq!(error.retry_after, Some(Duration::from_secs(121)));
    }
}

#[tokio::test(start_paused = true)]
async fn all_attempts_together_have_a_time() {
    let case = Case::with(9);
    // Ten attempts of 30 s are 300 s, which is enough for four pairs of 29 s and 50 s but not for the last one's wait.
    let slowly = Turn::SlowlyFails(Duration::from_secs(29), ErrorKind::Throttled);
    let asks = Turn::Asks(ErrorKind::Throttled, Duration::from_secs(50));
    case.place.next(Operation::Stat, [slowly, asks].repeat(9));
    let ((outcome, made), took) = timed(case.ask(Operation::Stat)).await;
    assert_eq!((outcome.unwrap_err().kind, made), (ErrorKind::Throttled, 8));
    assert!(took > Duration::from_secs(250) && took <= Duration::from_secs(300), "{took:?}");

    // The last attempt has no more time than is left.
    let case = Case::new();
    case.place.next(Operation::Stat, [Turn::Asks(ErrorKind::Throttled, Duration::from_secs(110)), Turn::Hangs]);
    case.place.next(Operation::Probe, [Turn::Hangs]);
    let ((outcome, made), took) = timed(case.ask(Operation::Stat)).await;
    let error = outcome.unwrap_err();
    assert_eq!((error.kind, made), (ErrorKind::Unavailable, 2));
    assert!(error.message().starts_with("no answer within 10s; "), "{error}");
    assert!(took <= Duration::from_secs(120), "{took:?}");
}

#[tokio::test(start_paused = true)]
async fn an_attempt_has_the_time_it_needs() {
    let it = key("it");
    let case = Case::with(0);
    for operation in ASKING {
        case.place.next(operation, [Turn::Slow(TIMEOUT - Duration::from_secs(1)), Turn::Slow(TIMEOUT * 2)]);
        assert!(case.ask(operation).await.0.is_ok());
        let ((outcome, _), took) = timed(case.ask(operation)).await;
        let error = outcome.unwrap_err();
        assert_eq!(error.kind, ErrorKind::Unavailable);
        assert!(error.message().contains("30s") && error.message().contains("timeout_seconds"), "{error}");
        assert!(took >= TIMEOUT && took < TIMEOUT + Duration::from_secs(1), "{took:?}");
        sleep(Duration::from_secs(1)).await;
        assert!(case.retry.probe().await.is_ok());
    }
    // A second more for each MiB.
    let large = || object(vec![0; 4 << 20]);
    for (slow, fine) in [(33, true), (35, false)] {
        case.place.next(Operation::Store, [Turn::Slow(Duration::from_secs(slow))]);
        assert_eq!(case.retry.put(&it, &large(), &PutOptions::default()).await.is_ok(), fine);
    }
    sleep(Duration::from_secs(1)).await;
    // Two for each MiB that may have to be read and written.
    case.retry.put(&it, &large(), &PutOptions::default()).await.unwrap();
    let seen = case.retry.stat(&it).await.unwrap().unwrap();
    for (slow, fine) in [(37, true), (39, false)] {
        case.place.next(Operation::Copy, [Turn::Slow(Duration::from_secs(slow))]);
        let copied = case.retry.copy(&CopySource::of(&it, &seen), &key("to"), &seen, &PutOptions::default()).await;
        assert_eq!(copied.is_ok(), fine);
    }
    sleep(Duration::from_secs(1)).await;
    // What may come as a file takes as long as it takes.
    let spooled = GetOptions { spooled: true, ..GetOptions::default() };
    case.place.next(Operation::Retrieve, [Turn::Slow(Duration::from_secs(3_600))]);
    assert!(case.retry.get(&it, spooled.clone()).await.unwrap().is_some());
    let case = Case::new();
    let broken = Turn::SlowlyFails(Duration::from_secs(3_600), ErrorKind::Unavailable);
    case.place.next(Operation::Retrieve, [broken, broken, broken]);
    assert!(case.retry.get(&it, spooled.clone()).await.unwrap().is_none());
    // Each of them was silence enough to look.
    assert_eq!(case.place.asked(Operation::Probe).len(), 3);
}

#[tokio::test(start_paused = true)]
async fn an_own_write_whose_answer_was_lost_is_recognized() {
    let lost = [Turn::Lost(ErrorKind::Unavailable), Turn::Swallows];
    for turn in lost {
        for conditional in [false, true] {
            let case = Case::new();
            let first = object("old");
            let generation = first.attributes.generation.clone();
            let condition = if conditional {
                case.place.inner.put(&key("it"), &first, &PutOptions::default()).await.unwrap();
                Condition::Generation(generation)
            } else {
                Condition::Absent
            };
            case.place.next(Operation::Store, [turn]);
            let (outcome, made) = case.put(condition, "mine").await;
            // The write, the write again, and the look at what is there.
            assert_eq!((outcome.unwrap(), made), (Rest::Bucket, 3));
            assert_eq!(case.found().await.unwrap(), b"mine");
        }
    }
    // Nothing but lost answers: the look at the end tells.
    let case = Case::with(1);
    case.place.next(Operation::Store, [lost[0], Turn::Fails(ErrorKind::Unavailable)]);
    let (outcome, made) = case.put(Condition::Absent, "mine").await;
    assert_eq!((outcome.unwrap(), made), (Rest::Bucket, 3));
    // And if that has no answer either, or nothing is there yet, the write may still happen: the outcome is unknown.
    for (write, look) in
        [(lost[0], Turn::Fails(ErrorKind::Unavailable)), (Turn::Fails(ErrorKind::Unavailable), Turn::Done)]
    {
        let case = Case::with(1);
        case.place.next(Operation::Store, [write, Turn::Fails(ErrorKind::Unavailable)]);
        case.place.next(Operation::Stat, [look]);
        let (outcome, made) = case.put(Condition::Absent, "mine").await;
        let error = outcome.unwrap_err();
        assert_eq!((error.kind, made), (ErrorKind::Unavailable, 3));
        assert_eq!((error.operation, error.message()), (Operation::Store, "as written; look there; tried 2 times"));
    }
    // A condition that never held is not met, and what cannot be looked at is not known.
    for (look, kind) in [(Turn::Done, ErrorKind::Precondition), (Turn::Fails(ErrorKind::Denied), ErrorKind::Denied)] {
        let case = Case::new();
        case.place.inner.put(&key("it"), &object("other"), &PutOptions::default()).await.unwrap();
        case.place.next(Operation::Store, [Turn::Fails(ErrorKind::Unavailable)]);
        case.place.next(Operation::Stat, [look]);
        let (outcome, made) = case.put(Condition::Absent, "mine").await;
        let error = outcome.unwrap_err();
        assert_eq!((error.kind, error.operation, made), (kind, Operation::Store, 3));
        assert_eq!(case.found().await.unwrap(), b"other");
    }
    // Nor is it met any more once another writer has replaced what was written without an answer.
    let case = Case::new();
    case.place.next(Operation::Store, [Turn::Swallows]);
    let other = async {
        sleep(Duration::from_secs(1)).await;
        assert_eq!(case.found().await.unwrap(), b"mine");
        case.place.inner.put(&key("it"), &object("other"), &PutOptions::default()).await.unwrap();
    };
    let ((outcome, made), ()) = tokio::join!(case.put(Condition::Absent, "mine"), other);
    assert_eq!((outcome.unwrap_err().kind, made), (ErrorKind::Precondition, 3));
    // Without an unknown attempt there is nothing to recognize.
    let case = Case::new();
    case.place.inner.put(&key("it"), &object("other"), &PutOptions::default()).await.unwrap();
    case.place.next(Operation::Store, [Turn::Fails(ErrorKind::Throttled)]);
    let (outcome, made) = case.put(Condition::Absent, "mine").await;
    assert_eq!((outcome.unwrap_err().kind, made), (ErrorKind::Precondition, 2));
}

#[tokio::test(start_paused = true)]
async fn a_repeated_write_keeps_its_token() {
    let case = Case::new();
    let it = key("it");
    let mine = object("mine");
    case.place.next(Operation::Store, [Turn::Swallows, Turn::Fails(ErrorKind::Throttled)]);
    let (outcome, made) = counted(case.retry.put(&it, &mine, &PutOptions::default())).await;
    assert_eq!((rest(outcome.unwrap()), made), (Rest::Bucket, 3));
    let found = case.place.inner.stat(&it).await.unwrap().unwrap();
    assert_eq!(found.generation, mine.attributes.generation);
}

#[tokio::test(start_paused = true)]
async fn a_delete_whose_answer_was_lost_is_repeated() {
    let it = key("it");
    for turn in [Turn::Lost(ErrorKind::Unavailable), Turn::Swallows] {
        for conditional in [false, true] {
            let case = Case::new();
            let there = object("x");
            let generation = conditional.then(|| there.attributes.generation.clone());
            case.place.inner.put(&it, &there, &PutOptions::default()).await.unwrap();
            case.place.next(Operation::Delete, [turn]);
            let how = DeleteOptions { generation, ..DeleteOptions::default() };
            let (outcome, made) = counted(case.retry.delete(&it, &how)).await;
            assert_eq!((rest(outcome.unwrap()), made), (Rest::Bucket, 2));
            assert!(case.found().await.is_none());
        }
    }
}

#[tokio::test(start_paused = true)]
async fn damage_is_read_and_written_again() {
    let case = Case::new();
    case.place.inner.put(&key("it"), &object("x"), &PutOptions::default()).await.unwrap();
    case.place.next(Operation::Retrieve, [Turn::Fails(ErrorKind::Integrity)]);
    assert!(case.ask(Operation::Retrieve).await.0.is_ok());
    case.place.next(Operation::Retrieve, [Turn::Fails(ErrorKind::Integrity); 4]);
    let (outcome, made) = case.ask(Operation::Retrieve).await;
    assert_eq!((outcome.unwrap_err().kind, made), (ErrorKind::Integrity, 4));
    case.place.next(Operation::Store, [Turn::Lost(ErrorKind::Integrity)]);
    assert!(case.put(Condition::Always, "y").await.0.is_ok());
    // Kept though it came damaged: that is ours, and no success.
    let generation = case.place.inner.stat(&key("it")).await.unwrap().unwrap().generation;
    case.place.next(Operation::Store, [Turn::Lost(ErrorKind::Integrity)]);
    let (outcome, made) = case.put(Condition::Generation(generation), "z").await;
    assert_eq!((outcome.unwrap_err().kind, made), (ErrorKind::Integrity, 3));
}

#[tokio::test(start_paused = true)]
async fn an_abandoned_write_is_not_tried_again() {
    let it = key("it");
    for committed in [false, true] {
        let case = Case::new();
        let asks = Duration::from_secs(9);
        let first = if committed { Turn::Swallows } else { Turn::Asks(ErrorKind::Unavailable, asks) };
        case.place.next(Operation::Store, [first]);
        let commit_guard = CommitGuard::default();
        let how =
            PutOptions { condition: Condition::Absent, commit_guard: commit_guard.clone(), ..PutOptions::default() };
        let writing = tokio::spawn({
            let (retry, it) = (Arc::clone(&case.retry), it.clone());
            async move { counted(retry.put(&it, &object("mine"), &how)).await }
        });
        sleep(Duration::from_secs(1)).await;
        // Once it may have been carried out, its outcome is waited for.
        assert_eq!(commit_guard.abandon(), !committed);
        let (outcome, made) = writing.await.unwrap();
        if committed {
            assert_eq!((rest(outcome.unwrap()), made), (Rest::Bucket, 3));
        } else {
            assert_eq!((outcome.unwrap_err().kind, made), (ErrorKind::Abandoned, 2));
        }
        assert_eq!(case.found().await.is_some(), committed);
    }
}

#[tokio::test(start_paused = true)]
async fn who_is_cancelled_leaves_nothing_behind() {
    let case = Case::new();
    // In an attempt, between two, and in a look at a doubted place.
    for (turn, cancelled_at) in [(Turn::Hangs, 1), (Turn::Asks(ErrorKind::Throttled, TIMEOUT), 1), (Turn::Hangs, 32)] {
        case.place.always(turn);
        let asking = tokio::spawn({
            let retry = Arc::clone(&case.retry);
            async move { retry.stat(&key("it")).await }
        });
        sleep(Duration::from_secs(cancelled_at)).await;
        assert!(case.place.asked(Operation::Stat).len() == 1);
        assert_eq!(case.place.asked(Operation::Probe).len(), usize::from(cancelled_at > 30));
        asking.abort();
        assert!(asking.await.unwrap_err().is_cancelled());
        assert_eq!(case.place.under_way(), 0);
        case.place.always(Turn::Done);
        let next = timeout(TIMEOUT, case.ask(Operation::Stat)).await;
        assert!(next.expect("nobody waits for one who is gone").0.is_ok());
        case.place.reset();
    }
}

#[tokio::test(start_paused = true)]
async fn signing_is_no_question_to_the_place() {
    let case = Case::new();
    case.place.next(Operation::Sign, [Turn::Fails(ErrorKind::Unavailable), Turn::Hangs, Turn::Done]);
    for took in [Duration::ZERO, TIMEOUT] {
        let ((outcome, made), elapsed) = timed(case.ask(Operation::Sign)).await;
        assert_eq!((outcome.unwrap_err().kind, made), (ErrorKind::Unavailable, 0));
        assert!(elapsed >= took && elapsed <= took + Duration::from_secs(1));
    }
    assert!(case.ask(Operation::Sign).await.0.is_ok());
    assert_eq!(case.place.reset(), 3);
}

/// A copy onto itself whose answer was lost finds the state that it has made itself.
#[tokio::test(start_paused = true)]
async fn a_copy_onto_itself_knows_its_own_write() {
    let lost = ErrorKind::Unavailable;
    let case = Case::new();
    let it = key("it");
    let before = case.retry.put(&it, &object("x"), &PutOptions::default()).await.unwrap();
    let attributes = Attributes { generation: "copy".to_owned(), ..before.clone() };
    case.place.next(Operation::Copy, [Turn::Lost(lost)]);
    let source = CopySource::of(&it, &before);
    let copied = case.retry.copy(&source, &it, &attributes, &PutOptions::default()).await.unwrap();
    assert_eq!(copied.map(|stored| stored.generation).as_deref(), Some("copy"));
    // Somebody else's state is none of its own.
    case.place.next(Operation::Copy, [Turn::Fails(lost)]);
    let attributes = Attributes { generation: "later".to_owned(), ..before.clone() };
    let copied = case.retry.copy(&source, &it, &attributes, &PutOptions::default()).await.unwrap();
    assert!(copied.is_none());
    // Neither is a copy under a condition that was carried out, and whose answer was lost, refused.
    let to = key("to");
    let (now, absent) = (case.retry.stat(&it).await.unwrap().unwrap(), Condition::Absent);
    case.place.next(Operation::Copy, [Turn::Lost(lost)]);
    let options = PutOptions { condition: absent, ..PutOptions::default() };
    let attributes = Attributes { generation: "there".to_owned(), ..now.clone() };
    let copied = case.retry.copy(&CopySource::of(&it, &now), &to, &attributes, &options).await.unwrap();
    assert_eq!(copied.map(|stored| stored.generation).as_deref(), Some("there"));
}
