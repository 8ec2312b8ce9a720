//! Writers over a place that fails at random, before or after it has done what it was asked.

use std::future::Future;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::sync::{Arc, Mutex};
use std::time::Duration;

use filestorage::storage::{
    Attributes, Backend, Condition, DeleteOptions, Error, ErrorKind, GetOptions, Key, Memory, Object, Operation, Page,
    PutOptions, Result, Retry, RetryOptions,
};
use filestorage::telemetry::{self, Metrics};
use futures_util::future::join_all;
use rand::rngs::StdRng;
use rand::{RngExt as _, SeedableRng as _};
use tokio::time::sleep;

use crate::forwarding::{Ask, Forwarding, Hook};
use crate::support::{Tally, bytes, key, object};

/// Objects in memory, with faults drawn from a seed.
type Flaky = Forwarding<RandomFaults>;

/// Draws the faults, and keeps which writes were carried out.
#[derive(Debug)]
struct RandomFaults {
    draws: Mutex<StdRng>,
    written: Mutex<Vec<String>>,
    /// Requests that were carried out without an answer.
    lost: AtomicUsize,
}

impl RandomFaults {
    fn draw(&self, most: u32) -> u32 {
        self.draws.lock().unwrap().random_range(0..most)
    }

    fn was_written(&self, token: &str) -> usize {
        self.written.lock().unwrap().iter().filter(|written| *written == token).count()
    }

    async fn turn<T>(&self, operation: Operation, work: impl Future<Output = Result<T>> + Send) -> Result<T> {
        let fault = |kind| Err(Error::new(kind, operation, None, "as drawn; draw again"));
        sleep(Duration::from_millis(self.draw(40).into())).await;
        let answer = match self.draw(100) {
            0..20 => return fault(ErrorKind::Unavailable),
            20..25 => return fault(ErrorKind::Throttled),
            25..28 => std::future::pending().await,
            28..31 if operation == Operation::Retrieve => return fault(ErrorKind::Integrity),
            31..46 => {
                drop(work.await);
                self.lost.fetch_add(1, Ordering::Relaxed);
                fault(ErrorKind::Unavailable)
            }
            46..49 => {
                drop(work.await);
                self.lost.fetch_add(1, Ordering::Relaxed);
                std::future::pending().await
            }
            _ => work.await,
        };
        sleep(Duration::from_millis(self.draw(40).into())).await;
        answer
    }
}

impl Hook for RandomFaults {
    async fn around<T: Send, F: Future<Output = Result<T>> + Send>(
        &self,
        _: &dyn Backend,
        ask: Ask,
        _: Option<&Key>,
        work: impl Fn() -> F + Send + Sync,
    ) -> Result<T> {
        if ask == Ask::Flush { work().await } else { self.turn(ask.operation(), work()).await }
    }

    async fn put(&self, place: &dyn Backend, key: &Key, object: &Object, options: &PutOptions) -> Result<Attributes> {
        let work = async {
            let stored = place.put(key, object, options).await?;
            self.written.lock().unwrap().push(object.attributes.generation.clone());
            Ok(stored)
        };
        self.turn(Operation::Store, work).await
    }
}

/// A place of a seed and retries before it.
fn stack(seed: u64) -> (Arc<Flaky>, Arc<Retry>) {
    let faults = RandomFaults {
        draws: Mutex::new(StdRng::seed_from_u64(seed)),
        written: Mutex::default(),
        lost: AtomicUsize::new(0),
    };
    let place = Forwarding::over(Arc::new(Memory::new()), faults);
    let options = RetryOptions { max_retries: 3, timeout: Duration::from_secs(10) };
    let inner = Arc::clone(&place) as Arc<dyn Backend>;
    let retry = Arc::new(Retry::new(inner, options, telemetry::BackendLabel::Gcs, Metrics::new()));
    (place, retry)
}

/// Tells that an error leaves open whether the write has happened.
fn is_open(error: &Error) -> bool {
    assert!(matches!(error.kind, ErrorKind::Unavailable | ErrorKind::Throttled), "{error}");
    true
}

/// A writer alone on its key: what it reads is what it wrote last, or what it was not told about.
async fn alone(retry: &Retry, it: &Key, mut draws: StdRng, tally: &Tally) {
    // The tokens that may be there; `None` is no object.
    let mut states: Vec<Option<String>> = vec![None];
    for _ in 0..120 {
        sleep(Duration::from_millis(100)).await;
        let known = (states.len() == 1).then(|| states[0].clone());
        match (draws.random_range(0..8), known) {
            (0..3, known) => {
                let (condition, met) = match (known, draws.random_range(0..3)) {
                    (Some(Some(token)), 0) => (Condition::Generation(token), true),
                    (Some(None), 0) => (Condition::Generation("none".to_owned()), false),
                    (Some(there), 1) => (Condition::Absent, there.is_none()),
                    _ => (Condition::Always, true),
                };
                let mine = object("x");
                let token = Some(mine.attributes.generation.clone());
                match retry.put(it, &mine, &PutOptions { condition, ..PutOptions::default() }).await {
                    Ok(_) => {
                        assert!(met);
                        states = vec![token];
                    }
                    Err(error) if error.kind == ErrorKind::Precondition => assert!(!met, "{error}"),
                    Err(error) => {
                        if is_open(&error) && met {
                            states.push(token);
                        }
                    }
                }
            }
            (3, known) => {
                let generation = known.flatten();
                match retry.delete(it, &DeleteOptions { generation, ..DeleteOptions::default() }).await {
                    Ok(_) => states = vec![None],
                    Err(error) => {
                        if is_open(&error) {
                            states.push(None);
                        }
                    }
                }
            }
            (4, _) => {
                let page = Page { prefix: it.as_str().to_owned(), ..Page::default() };
                if let Ok(listing) = retry.list(&page).await {
                    states.retain(|state| state.is_some() == (listing.entries.len() == 1));
                }
            }
            (5, _) => {
                if let Ok(found) = retry.stat(it).await {
                    let found = found.map(|attributes| attributes.generation);
                    states.retain(|state| *state == found);
                }
            }
            _ => {
                if let Ok(found) = retry.get(it, GetOptions::default()).await {
                    let found = found.map(|object| object.attributes.generation);
                    states.retain(|state| *state == found);
                }
            }
        }
        states.dedup();
        assert!(!states.is_empty(), "{it:?} has a state nobody has written");
        tally.case();
    }
}

/// Counts up by reading and writing on condition; returns how many writes were confirmed.
async fn count_up(place: &Flaky, retry: &Retry, it: &Key, tally: &Tally) -> u64 {
    let mut confirmed = 0;
    for _ in 0..40 {
        let (condition, count) = match retry.get(it, GetOptions::default()).await {
            Err(error) => {
                sleep(error.retry_after.unwrap_or(Duration::from_millis(100))).await;
                continue;
            }
            Ok(None) => (Condition::Absent, 0),
            Ok(Some(object)) => {
                let token = object.attributes.generation.clone();
                let count: u64 = std::str::from_utf8(&bytes(object).await).unwrap().parse().unwrap();
                (Condition::Generation(token), count)
            }
        };
        let next = object((count + 1).to_string());
        let token = next.attributes.generation.clone();
        let outcome = retry.put(it, &next, &PutOptions { condition, ..PutOptions::default() }).await;
        let written = place.was_written(&token);
        match outcome {
            Ok(_) => {
                assert_eq!(written, 1);
                confirmed += 1;
            }
            Err(error) if error.kind == ErrorKind::Precondition => {
                // Or it was written and replaced before it could be recognized.
                let there = place.inner.stat(it).await.unwrap().unwrap();
                assert!(written == 0 || there.generation != token);
            }
            Err(error) => assert!(is_open(&error) && written <= 1),
        }
        tally.case();
    }
    confirmed
}

/// Several writers on the same condition: never two of them win, and one does if all of them know how it ended.
async fn race(place: &Flaky, retry: &Retry, it: &Key, tally: &Tally) {
    let condition = match place.inner.stat(it).await.unwrap() {
        None => Condition::Absent,
        Some(present) => Condition::Generation(present.generation),
    };
    let contenders: Vec<_> = (0..4).map(|_| object("x")).collect();
    let how = PutOptions { condition, ..PutOptions::default() };
    let outcomes = join_all(contenders.iter().map(|object| retry.put(it, object, &how))).await;
    let winners: Vec<_> = (0..4).filter(|&number| outcomes[number].is_ok()).collect();
    let unknown = outcomes
        .iter()
        .filter_map(|outcome| outcome.as_ref().err())
        .filter(|error| error.kind != ErrorKind::Precondition && is_open(error));
    assert!(winners.len() == 1 || (winners.is_empty() && unknown.count() > 0), "{outcomes:?}");
    if let Some(&winner) = winners.first() {
        let there = place.inner.stat(it).await.unwrap().unwrap();
        assert_eq!(there.generation, contenders[winner].attributes.generation);
    }
    tally.case();
}

#[tokio::test(start_paused = true)]
async fn promises_hold_over_a_place_that_fails_at_random() {
    let tally = Tally::new("retry over a place that fails at random");
    for seed in 0..20 {
        println!("seed {seed}");
        let (place, retry) = stack(seed);
        join_all((0..4).map(|writer| {
            let (retry, tally) = (&retry, &tally);
            async move {
                alone(retry, &key(&format!("own/{writer}")), StdRng::seed_from_u64(seed * 10 + writer), tally).await
            }
        }))
        .await;
        let it = key("counter");
        let before = place.written.lock().unwrap().len();
        let confirmed: u64 = join_all((0..3).map(|_| count_up(&place, &retry, &it, &tally))).await.into_iter().sum();
        let counted = place.inner.get(&it, GetOptions::default()).await.unwrap().unwrap();
        let counted: u64 = std::str::from_utf8(&bytes(counted).await).unwrap().parse().unwrap();
        // Nothing confirmed was lost, and nothing was carried out twice.
        assert!(confirmed > 0 && confirmed <= counted);
        tally.equal(counted as usize, place.written.lock().unwrap().len() - before);
        for round in 0..40 {
            race(&place, &retry, &key(&format!("race/{}", round % 3)), &tally).await;
        }
        assert!(place.lost.load(Ordering::Relaxed) > 50, "the faults were drawn");
    }
    tally.close();
}
