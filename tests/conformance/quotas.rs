//! Quotas: nothing is written beyond them, and the count stays true.

use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::Duration;

use filestorage::provider::BackendKind;
use filestorage::quota_rule::QuotaRule;
use filestorage::storage::{
    Amount, Backend, CleanupRequest, CopyOptions, DeleteRequest, Engine, Error, ErrorKind, Fallback, Key, Memory,
    Operation, Page, Quota, Result, StoreOptions, Value,
};
use filestorage::telemetry::Metrics;
use futures_util::future::join_all;
use jiff::Timestamp;

use crate::backend::{self, Profile};
use crate::engine;
use crate::forwarding::{Ask, Forwarding, Hook};
use crate::support::{Tally, key, random, scratch};

fn quota(inner: &Arc<dyn Backend>, rules: &str) -> Arc<Quota> {
    Arc::new(Quota::new(Arc::clone(inner), QuotaRule::parse_all(rules).unwrap(), 7))
}

fn memory() -> Arc<dyn Backend> {
    Arc::new(Memory::new())
}

fn over(quota: &Arc<Quota>) -> Engine {
    Engine::new(Arc::clone(quota) as Arc<dyn Backend>, BackendKind::Local)
}

async fn put(engine: &Engine, name: &str, size: usize) -> Result<()> {
    engine.store(&key(name), Value::Text("x".repeat(size)), StoreOptions::default()).await.map(drop)
}

async fn gone(engine: &Engine, name: &str) {
    engine.delete(&key(name), DeleteRequest::default()).await.unwrap();
}

fn kind(outcome: Result<()>) -> Option<ErrorKind> {
    outcome.err().map(|error| error.kind)
}

fn used(quota: &Quota) -> Vec<(i64, i64)> {
    quota.fill().unwrap().iter().map(|fill| (fill.used.bytes, fill.used.objects)).collect()
}

async fn stored(place: &dyn Backend, prefix: &str) -> Amount {
    let listed = place.list(&Page { prefix: prefix.to_owned(), ..Page::default() }).await.unwrap().entries;
    let bytes: u64 = listed.iter().filter_map(|entry| entry.stored_size).sum();
    Amount { bytes: bytes as i64, objects: listed.len() as i64 }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn quotas_over_memory() {
    let stack: Arc<dyn Backend> = quota(&memory(), "=1TiB; many/=1GiB,1000000");
    let tally = Tally::new("quotas over memory");
    backend::suite(&stack, &stack, Profile::NEAR, &tally).await;
    let wide = quota(&memory(), "=1TiB");
    engine::suite(&over(&wide), Profile::NEAR, &tally).await;
    tally.close();
    assert_eq!(used(&wide), [(0, 0)], "everything was removed");
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_thousand_stores_at_the_edge_never_exceed() {
    for rules in ["=5000", "=1GiB,500"] {
        let place = memory();
        let quota = quota(&place, rules);
        let engine = over(&quota);
        let stores = (0..1_000).map(|number| {
            let engine = engine.clone();
            tokio::spawn(async move { put(&engine, &format!("k/{number}"), 10).await })
        });
        let outcomes: Vec<_> = join_all(stores).await.into_iter().map(|joined| kind(joined.unwrap())).collect();
        assert_eq!(outcomes.iter().filter(|kind| kind.is_none()).count(), 500, "{rules}");
        assert_eq!(outcomes.iter().filter(|kind| **kind == Some(ErrorKind::QuotaExceeded)).count(), 500);
        assert_eq!(stored(&*place, "").await, Amount { bytes: 5_000, objects: 500 });
        assert_eq!(used(&quota), [(5_000, 500)]);
    }
}

#[tokio::test]
async fn replacements_count_the_difference_and_deletes_give_back() {
    let place = memory();
    put(&Engine::new(Arc::clone(&place), BackendKind::Local), "a/before", 10).await.unwrap();
    let quota = quota(&place, "a/=100,3; =120");
    let engine = over(&quota);
    put(&engine, "a/1", 50).await.unwrap();
    assert_eq!(used(&quota), [(60, 2), (60, 2)], "what was there before was counted");
    let error = put(&engine, "a/2", 41).await.unwrap_err();
    assert_eq!(error.kind, ErrorKind::QuotaExceeded);
    let words = "the quota of the prefix \"a/\" is 100 stored bytes, of which 60 are used, and this needs 41 more";
    assert!(error.message().contains(words), "{error}");
    assert!(place.stat(&key("a/2")).await.unwrap().is_none());
    put(&engine, "a/1", 90).await.unwrap();
    assert_eq!(kind(put(&engine, "a/1", 91).await), Some(ErrorKind::QuotaExceeded));
    put(&engine, "a/2", 0).await.unwrap();
    assert_eq!(kind(put(&engine, "a/3", 0).await), Some(ErrorKind::QuotaExceeded), "three objects");
    assert_eq!(kind(put(&engine, "b", 21).await), Some(ErrorKind::QuotaExceeded), "all keys");
    put(&engine, "b", 20).await.unwrap();
    put(&engine, "a/1", 1).await.unwrap();
    assert_eq!(used(&quota), [(11, 3), (31, 4)]);
    gone(&engine, "a/1").await;
    gone(&engine, "a/1").await;
    assert_eq!(used(&quota), [(10, 2), (30, 3)]);
    // A copy counts like a store, and a refused one leaves nothing.
    engine.copy(&key("b"), &key("a/b"), CopyOptions::default()).await.unwrap();
    assert_eq!(used(&quota), [(30, 3), (50, 4)]);
    let refused = engine.copy(&key("b"), &key("a/c"), CopyOptions::default()).await.unwrap_err();
    assert_eq!(refused.kind, ErrorKind::QuotaExceeded);
    // So do removals of a cleanup; an expired object counts until then.
    let expired = StoreOptions { expires_at: Some(Timestamp::now()), ..StoreOptions::default() };
    engine.store(&key("c"), Value::Text("12345".to_owned()), expired).await.unwrap();
    assert_eq!(used(&quota), [(30, 3), (55, 5)]);
    let all = CleanupRequest { expired: true, ..CleanupRequest::default() };
    assert_eq!(engine.cleanup(all, &()).await.unwrap().deleted, 1);
    assert_eq!(used(&quota), [(30, 3), (50, 4)]);
    quota.count().await.unwrap();
    assert_eq!(used(&quota), [(30, 3), (50, 4)]);
}

/// Two processes know of each other's writes after the next count.
#[tokio::test]
async fn another_process_is_seen_by_the_next_count() {
    let place = memory();
    let quotas = [quota(&place, "=100"), quota(&place, "=100")];
    let [one, other] = [&quotas[0], &quotas[1]].map(over);
    put(&one, "1", 60).await.unwrap();
    put(&other, "2", 40).await.unwrap();
    assert_eq!((used(&quotas[0]), used(&quotas[1])), (vec![(60, 1)], vec![(100, 2)]));
    // The window: what the other has stored since the own count comes on top.
    put(&one, "3", 40).await.unwrap();
    assert_eq!(stored(&*place, "").await.bytes, 140);
    for quota in &quotas {
        quota.count().await.unwrap();
        assert_eq!(used(quota), [(140, 3)]);
    }
    for engine in [&one, &other] {
        assert_eq!(kind(put(engine, "4", 1).await), Some(ErrorKind::QuotaExceeded));
        put(engine, "3", 39).await.unwrap();
    }
}

/// Yields at every request, so that counts and writes meet in every order.
#[derive(Debug)]
struct Interleaved;

impl Hook for Interleaved {
    async fn around<T: Send, F: Future<Output = Result<T>> + Send>(
        &self,
        _: &dyn Backend,
        ask: Ask,
        _: Option<&Key>,
        work: impl Fn() -> F + Send + Sync,
    ) -> Result<T> {
        tokio::task::yield_now().await;
        let outcome = work().await;
        if ask == Ask::List {
            for _ in 0..5 {
                tokio::task::yield_now().await;
            }
        }
        outcome
    }
}

#[tokio::test]
async fn a_count_beside_writes_is_never_too_low() {
    let mut seed = 5;
    for round in 0..40 {
        let place = memory();
        let slow: Arc<dyn Backend> = Forwarding::over(Arc::clone(&place), Interleaved);
        let quota = quota(&slow, "k/=1GiB");
        let engine = over(&quota);
        for number in 0..40 {
            put(&engine, &format!("k/{number:02}"), 10).await.unwrap();
        }
        let plan: Vec<(String, Option<usize>)> = (0..120)
            .map(|_| {
                let name = format!("k/{:02}", random(&mut seed) % 60);
                let size = random(&mut seed) as usize % 40;
                (name, (size > 10).then_some(size))
            })
            .collect();
        let writes = plan.iter().map(async |(name, size)| match size {
            Some(size) => put(&engine, name, *size).await.unwrap(),
            None => gone(&engine, name).await,
        });
        let counts = async {
            for _ in 0..4 {
                quota.count().await.unwrap();
            }
        };
        tokio::join!(join_all(writes), counts);
        let (fill, truth) = (used(&quota)[0], stored(&*place, "").await);
        assert!(fill.0 >= truth.bytes && fill.1 >= truth.objects, "round {round}: {fill:?} of {truth:?}");
        quota.count().await.unwrap();
        assert_eq!(used(&quota), [(truth.bytes, truth.objects)]);
    }
}

/// A place that fails while it is told to.
#[derive(Debug, Default)]
struct Away(AtomicBool);

impl Hook for Away {
    async fn around<T: Send, F: Future<Output = Result<T>> + Send>(
        &self,
        _: &dyn Backend,
        ask: Ask,
        key: Option<&Key>,
        work: impl Fn() -> F + Send + Sync,
    ) -> Result<T> {
        if self.0.load(Ordering::SeqCst) {
            return Err(Error::new(ErrorKind::Unavailable, ask.operation(), key, "away"));
        }
        work().await
    }

    async fn put(
        &self,
        place: &dyn Backend,
        key: &Key,
        object: &filestorage::storage::Object,
        options: &filestorage::storage::PutOptions,
    ) -> Result<filestorage::storage::Attributes> {
        self.around(place, Ask::Put, Some(key), || place.put(key, object, options)).await
    }
}

#[tokio::test]
async fn an_outage_keeps_the_numbers_and_counts_the_overlay() {
    let folder = scratch();
    let bucket = Forwarding::over(memory(), Away::default());
    let primary = Arc::clone(&bucket) as Arc<dyn Backend>;
    let fallback: Arc<dyn Backend> =
        Arc::new(Fallback::open(primary, folder.path().to_owned(), Metrics::new()).unwrap());
    let quota = quota(&fallback, "=100");
    let engine = over(&quota);
    put(&engine, "a", 50).await.unwrap();
    bucket.0.store(true, Ordering::SeqCst);
    put(&engine, "b", 30).await.unwrap();
    assert_eq!(kind(put(&engine, "c", 21).await), Some(ErrorKind::QuotaExceeded));
    assert_eq!(quota.count().await.unwrap_err().kind, ErrorKind::Unavailable);
    // What is replaced cannot be seen, so the new object counts in full until the next count.
    assert_eq!(kind(put(&engine, "a", 21).await), Some(ErrorKind::QuotaExceeded));
    put(&engine, "a", 20).await.unwrap();
    assert_eq!(used(&quota), [(100, 3)]);
    bucket.0.store(false, Ordering::SeqCst);
    quota.count().await.unwrap();
    assert_eq!(used(&quota), [(50, 2)], "the overlay hides the object of the bucket");
}

#[tokio::test]
async fn a_write_of_unknown_outcome_stays_reserved() {
    let bucket = Forwarding::over(memory(), Away::default());
    let quota = quota(&(Arc::clone(&bucket) as Arc<dyn Backend>), "=100");
    let engine = over(&quota);
    put(&engine, "a", 50).await.unwrap();
    bucket.0.store(true, Ordering::SeqCst);
    assert_eq!(kind(put(&engine, "b", 30).await), Some(ErrorKind::Unavailable));
    assert_eq!(used(&quota), [(80, 2)]);
    bucket.0.store(false, Ordering::SeqCst);
    quota.count().await.unwrap();
    assert_eq!(used(&quota), [(50, 1)]);
    // One that was refused has not happened.
    let absent = StoreOptions { condition: filestorage::storage::Condition::Absent, ..StoreOptions::default() };
    let refused = engine.store(&key("a"), Value::Text("x".repeat(90)), absent).await.unwrap_err();
    assert_eq!((refused.kind, used(&quota)), (ErrorKind::Precondition, vec![(50, 1)]));
}

#[tokio::test(start_paused = true)]
async fn a_worker_that_cannot_count_refuses_stores() {
    let bucket = Forwarding::over(memory(), Away(AtomicBool::new(true)));
    let quota = quota(&(Arc::clone(&bucket) as Arc<dyn Backend>), "a/=100");
    let counting = Arc::clone(&quota);
    let background = tokio::spawn(async move { counting.count_loop(Duration::from_secs(60)).await });
    tokio::task::yield_now().await;
    let engine = over(&quota);
    let error = put(&engine, "a/1", 1).await.unwrap_err();
    assert!(error.kind == ErrorKind::Unavailable && error.message().contains("not been counted"), "{error}");
    let waiting = tokio::spawn({
        let engine = engine.clone();
        async move { put(&engine, "a/1", 1).await }
    });
    tokio::time::sleep(Duration::from_secs(5)).await;
    bucket.0.store(false, Ordering::SeqCst);
    waiting.await.unwrap().unwrap();
    // Later, another process's writes are found by themselves.
    put(&Engine::new(Arc::clone(&bucket) as Arc<dyn Backend>, BackendKind::Local), "a/2", 99).await.unwrap();
    put(&engine, "a/3", 1).await.unwrap();
    tokio::time::sleep(Duration::from_secs(61)).await;
    assert_eq!(kind(put(&engine, "a/4", 1).await), Some(ErrorKind::QuotaExceeded));
    background.abort();
    assert_eq!(Operation::Store.as_str(), error.operation.as_str());
}
