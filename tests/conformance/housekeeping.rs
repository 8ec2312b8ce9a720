//! Cleanup, usage and what a listing tells, over any backend.

use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::time::Duration;

use filestorage::provider::BackendKind;
use filestorage::storage::{
    Backend, CleanupProgress, CleanupReport, CleanupRequest, DeleteRequest, Engine, Entry, Error, ErrorKind, Key,
    Memory, Operation, Result, StoreOptions, Value,
};
use filestorage::telemetry::Metrics;
use futures_util::future::join_all;
use jiff::{SignedDuration, Timestamp};

use crate::backend::Profile;
use crate::forwarding::{Ask, Forwarding, Hook};
use crate::support::{Tally, key};

pub(crate) async fn suite(engine: &Engine, profile: Profile, tally: &Tally) {
    facts(engine, tally).await;
    removals(engine, tally).await;
    if profile.conditional_delete {
        stored_anew(engine, profile, tally).await;
    } else {
        println!(
            "conformance: left out values stored anew during a cleanup: the place enforces no condition of a removal"
        );
    }
}

fn text(size: usize) -> Value {
    Value::Text("x".repeat(size))
}

async fn put(engine: &Engine, name: &str, size: usize, expires_at: Option<Timestamp>) {
    engine.store(&key(name), text(size), StoreOptions { expires_at, ..StoreOptions::default() }).await.unwrap();
}

async fn entries(engine: &Engine, prefix: &str) -> Vec<Entry> {
    let (mut walk, mut all) = (engine.walk(prefix, None), Vec::new());
    while let Some(page) = walk.next_page().await.unwrap() {
        all.extend(page);
    }
    all
}

async fn names(engine: &Engine, prefix: &str) -> Vec<String> {
    entries(engine, prefix).await.into_iter().map(|entry| entry.key.as_str().to_owned()).collect()
}

/// What a listing tells is what `stat` tells of each value.
async fn facts(engine: &Engine, tally: &Tally) {
    let later = Timestamp::from_second(Timestamp::now().as_second() + 3600).ok();
    for (name, size, expires_at) in [("hk/a", 1, None), ("hk/b/c", 5, later), ("hk/b/d", 5_000, None)] {
        put(engine, name, size, expires_at).await;
    }
    put(engine, "hk/b/gone", 70, Some(Timestamp::now())).await;
    let listed = entries(engine, "hk/").await;
    let expired = &listed[3];
    tally.equal((expired.key.as_str(), expired.is_expired(Timestamp::now())), ("hk/b/gone", true));
    for entry in &listed[..3] {
        let receipt = engine.stat(&entry.key).await.unwrap().unwrap().receipt;
        tally.equal(entry.size, receipt.size);
        tally.equal(entry.stored_size, Some(receipt.stored_size));
        tally.equal(entry.stored_at, Some(receipt.stored_at));
        tally.equal(entry.expires_at, receipt.expires_at);
        tally.equal(entry.generation.clone(), Some(receipt.generation));
        tally.equal(entry.compression.clone(), receipt.compression);
        tally.equal(entry.encrypted, Some(receipt.encrypted));
        tally.equal(entry.labelled, true);
    }
    let usage = engine.usage("hk/").await.unwrap();
    tally.equal((usage.file_count, usage.total_size_bytes), (3, 5_006));
    tally.equal(usage.stored_size_bytes, listed[..3].iter().filter_map(|entry| entry.stored_size).sum());
    let usage = engine.usage("hk/b").await.unwrap();
    tally.equal((usage.file_count, usage.total_size_bytes), (2, 5_005));
    tally.equal(engine.usage("none").await.unwrap().file_count, 0);
}

fn below(prefix: &str) -> CleanupRequest {
    CleanupRequest { prefix: Some(prefix.to_owned()), expired: true, ..CleanupRequest::default() }
}

async fn cleanup(engine: &Engine, request: CleanupRequest) -> (u64, Vec<String>) {
    let CleanupReport { deleted, bytes, mut keys, failed, first_failure } = engine.cleanup(request, &()).await.unwrap();
    assert_eq!((failed, first_failure.is_none()), (0, true));
    assert_eq!((deleted, bytes > 0 || deleted == 0), (keys.len() as u64, true));
    keys.sort_unstable();
    (deleted, keys.iter().map(|key| key.as_str().to_owned()).collect())
}

/// Removes exactly what is asked for: what `facts` has left, and more.
async fn removals(engine: &Engine, tally: &Tally) {
    put(engine, "hj/gone", 3, Some(Timestamp::now())).await;
    put(engine, "hk/gone", 3, Some(Timestamp::now())).await;
    let gone = vec!["hk/b/gone".to_owned(), "hk/gone".to_owned()];
    tally.equal(cleanup(engine, CleanupRequest { dry_run: true, ..below("hk/") }).await, (2, gone.clone()));
    tally.equal(names(engine, "hk/").await.len(), 5);
    tally.equal(cleanup(engine, CleanupRequest { expired: false, ..below("hk/") }).await.0, 0);
    tally.equal(cleanup(engine, below("hk/")).await, (2, gone));
    tally.equal(cleanup(engine, below("hk/")).await.0, 0);
    tally.equal(names(engine, "h").await, ["hj/gone", "hk/a", "hk/b/c", "hk/b/d"].map(str::to_owned).to_vec());
    let everywhere = CleanupRequest { prefix: None, ..below("") };
    tally.equal(cleanup(engine, everywhere.clone()).await, (1, vec!["hj/gone".to_owned()]));
    // By age.
    let older = |prefix: Option<&str>, age| CleanupRequest {
        prefix: prefix.map(str::to_owned),
        older_than: Some(age),
        expired: false,
        ..CleanupRequest::default()
    };
    let refused = engine.cleanup(older(None, Duration::ZERO), &()).await.unwrap_err();
    tally.equal(refused.kind, ErrorKind::Invalid);
    for age in [Duration::from_secs(3600), Duration::from_secs(u64::MAX)] {
        tally.equal(cleanup(engine, older(Some(""), age)).await.0, 0);
    }
    tally.equal(cleanup(engine, older(Some("hk/b"), Duration::ZERO)).await.0, 2);
    tally.equal(cleanup(engine, older(Some(""), Duration::ZERO)).await, (1, vec!["hk/a".to_owned()]));
    tally.equal(names(engine, "h").await.len(), 0);
}

/// Values that are stored while a cleanup runs are never removed.
///
/// At S3, a store of the same bytes in the instant between look and removal is not noticed, so other bytes are stored there.
async fn stored_anew(engine: &Engine, profile: Profile, tally: &Tally) {
    let size = if profile.same_bytes { 1 } else { 2 };
    let all: Vec<String> = (0..60).map(|number| format!("anew/{number:02}")).collect();
    for _ in 0..3 {
        join_all(all.iter().map(|name| put(engine, name, 1, Some(Timestamp::now())))).await;
        let anew = join_all(all.iter().map(|name| put(engine, name, size, None)));
        let (cleaned, _) = tokio::join!(engine.cleanup(below("anew/"), &()), anew);
        cleaned.unwrap();
        tally.equal(engine.usage("anew/").await.unwrap().file_count, 60);
    }
    join_all(all.iter().map(async |name| engine.delete(&key(name), DeleteRequest::default()).await.unwrap())).await;
}

/// Stores every second listed key anew, with the same bytes, between the listing and the removals.
#[derive(Debug)]
struct StoresAnew {
    engine: Engine,
    pages: AtomicUsize,
}

impl Hook for StoresAnew {
    async fn around<T: Send, F: Future<Output = Result<T>> + Send>(
        &self,
        _: &dyn Backend,
        ask: Ask,
        _: Option<&Key>,
        work: impl Fn() -> F + Send + Sync,
    ) -> Result<T> {
        let outcome = work().await;
        if ask == Ask::List {
            self.pages.fetch_add(1, Ordering::Relaxed);
            for number in (0..40).step_by(2) {
                put(&self.engine, &format!("k/{number:02}"), 1, None).await;
            }
        }
        outcome
    }
}

/// The same at the worst moment, for cleanup by expiry and by age.
#[tokio::test]
async fn what_is_stored_after_the_listing_stays() {
    renewals(Arc::new(Memory::new()), BackendKind::Local).await;
}

pub(crate) async fn renewals(place: Arc<dyn Backend>, kind: BackendKind) {
    for expired in [true, false] {
        let engine = Engine::new(Arc::clone(&place), kind);
        for number in 0..40 {
            put(&engine, &format!("k/{number:02}"), 1, expired.then(Timestamp::now)).await;
        }
        let hook = StoresAnew { engine: engine.clone(), pages: AtomicUsize::new(0) };
        let place = Forwarding::over(Arc::clone(&place), hook);
        let racing = Engine::new(Arc::clone(&place) as Arc<dyn Backend>, kind);
        let older_than = (!expired).then_some(Duration::ZERO);
        let report = racing.cleanup(CleanupRequest { expired, older_than, ..below("") }, &()).await.unwrap();
        assert_eq!((report.deleted, report.failed, report.bytes), (20, 0, 20));
        assert_eq!(engine.usage("").await.unwrap().total_size_bytes, 20);
        assert_eq!(place.pages.load(Ordering::Relaxed), 1);
    }
}

/// Refuses to remove one key, and after some removals everything.
#[derive(Debug)]
struct Refuses {
    removals: AtomicUsize,
    end: usize,
    /// Every removal is refused, as to an identity without the right.
    denies_all: bool,
}

impl Hook for Refuses {
    async fn around<T: Send, F: Future<Output = Result<T>> + Send>(
        &self,
        _: &dyn Backend,
        _: Ask,
        _: Option<&Key>,
        work: impl Fn() -> F + Send + Sync,
    ) -> Result<T> {
        work().await
    }

    async fn delete(
        &self,
        place: &dyn Backend,
        key: &Key,
        options: &filestorage::storage::DeleteOptions,
    ) -> Result<filestorage::storage::Removal> {
        let kind = match self.removals.fetch_add(1, Ordering::SeqCst) {
            number if number >= self.end => ErrorKind::Unavailable,
            _ if self.denies_all || key.as_str() == "k/07" => ErrorKind::Denied,
            _ => return place.delete(key, options).await,
        };
        Err(Error::new(kind, Operation::Delete, Some(key), "no"))
    }
}

#[derive(Debug, Default)]
struct Counts {
    listed: AtomicUsize,
    removed: AtomicUsize,
    failed: AtomicUsize,
    stops: bool,
}

impl CleanupProgress for Counts {
    fn listed(&self, objects: u64) {
        self.listed.fetch_add(objects as usize, Ordering::Relaxed);
    }

    fn removed(&self, _: &Key, _: u64) {
        self.removed.fetch_add(1, Ordering::Relaxed);
    }

    fn failed(&self, _: &Key, _: &Error) {
        self.failed.fetch_add(1, Ordering::Relaxed);
    }

    /// Ends after the first removal where that is asked.
    fn is_stopped(&self) -> bool {
        self.stops && self.removed.load(Ordering::Relaxed) > 0
    }
}

async fn refusing(end: usize) -> Engine {
    over_expired(Refuses { removals: AtomicUsize::new(0), end, denies_all: false }).await.0
}

/// Makes an engine over 40 expired values whose requests pass a hook.
async fn over_expired<H: Hook>(hook: H) -> (Engine, Arc<Forwarding<H>>) {
    let memory: Arc<dyn Backend> = Arc::new(Memory::new());
    let engine = Engine::new(Arc::clone(&memory), BackendKind::Local);
    for number in 0..40 {
        put(&engine, &format!("k/{number:02}"), 1, Some(Timestamp::now())).await;
    }
    let place = Forwarding::over(memory, hook);
    (Engine::new(Arc::clone(&place) as Arc<dyn Backend>, BackendKind::Local), place)
}

#[tokio::test]
async fn a_refused_removal_leaves_the_others_alone() {
    let (engine, counts) = (refusing(usize::MAX).await, Counts::default());
    let report = engine.cleanup(below(""), &counts).await.unwrap();
    assert_eq!((report.deleted, report.failed), (39, 1));
    assert_eq!(report.first_failure.unwrap().key, Some(key("k/07")));
    assert_eq!(names(&engine, "").await, ["k/07"]);
    let counted = [counts.listed, counts.removed, counts.failed].map(AtomicUsize::into_inner);
    assert_eq!(counted, [40, 39, 1]);
}

#[tokio::test]
async fn a_place_that_goes_away_ends_a_cleanup() {
    let engine = refusing(10).await;
    let error = engine.cleanup(below(""), &()).await.unwrap_err();
    assert_eq!(error.kind, ErrorKind::Unavailable);
    assert!(error.message().contains("9 objects had been removed before"), "{error}");
    assert_eq!(names(&engine, "").await.len(), 31);
}

#[tokio::test]
async fn a_refused_identity_does_not_try_all_removals() {
    let refuses = Refuses { removals: AtomicUsize::new(0), end: usize::MAX, denies_all: true };
    let ((engine, place), counts) = (over_expired(refuses).await, Counts::default());
    let error = engine.cleanup(below(""), &counts).await.unwrap_err();
    assert_eq!(error.kind, ErrorKind::Denied);
    let (tried, failed) = (place.removals.load(Ordering::SeqCst), counts.failed.into_inner());
    assert!(tried == failed && (16..24).contains(&tried), "{tried} tried, {failed} failed");
    assert!(error.message().contains(&format!("all of the first {failed} removals failed")), "{error}");
    assert_eq!(names(&engine, "").await.len(), 40);
}

/// Fails the first removal at once, while the others are under way.
#[derive(Debug)]
struct FailsFirst(AtomicUsize);

impl Hook for FailsFirst {
    async fn around<T: Send, F: Future<Output = Result<T>> + Send>(
        &self,
        _: &dyn Backend,
        _: Ask,
        _: Option<&Key>,
        work: impl Fn() -> F + Send + Sync,
    ) -> Result<T> {
        work().await
    }

    async fn delete(
        &self,
        place: &dyn Backend,
        key: &Key,
        options: &filestorage::storage::DeleteOptions,
    ) -> Result<filestorage::storage::Removal> {
        if self.0.fetch_add(1, Ordering::SeqCst) == 0 {
            return Err(Error::new(ErrorKind::Unavailable, Operation::Delete, Some(key), "no"));
        }
        for _ in 0..10 {
            tokio::task::yield_now().await;
        }
        place.delete(key, options).await
    }
}

#[tokio::test]
async fn removals_under_way_are_finished_and_counted() {
    let ((engine, _), counts) = (over_expired(FailsFirst(AtomicUsize::new(0))).await, Counts::default());
    let error = engine.cleanup(below(""), &counts).await.unwrap_err();
    assert_eq!(error.kind, ErrorKind::Unavailable);
    assert!(error.message().contains("7 objects had been removed before"), "{error}");
    assert_eq!((counts.removed.into_inner(), names(&engine, "").await.len()), (7, 33));
}

#[tokio::test]
async fn a_stopped_cleanup_finishes_what_is_under_way() {
    let (engine, counts) = (refusing(usize::MAX).await, Counts { stops: true, ..Counts::default() });
    let report = engine.cleanup(below(""), &counts).await.unwrap();
    // Of the eight that had begun, one was refused.
    assert_eq!((report.deleted, report.failed), (7, 1));
    assert_eq!(names(&engine, "").await.len(), 33);
}

/// Two sweepers side by side remove each expired value once, whatever is stored meanwhile.
#[tokio::test(start_paused = true)]
async fn sweepers_share_the_work_and_count_it_once() {
    let memory: Arc<dyn Backend> = Arc::new(Memory::new());
    let engine = Engine::new(memory, BackendKind::Local);
    let metrics = [Metrics::new(), Metrics::new()];
    let interval = Duration::from_secs(60);
    let sweepers = metrics.clone().map(|metrics| {
        let engine = engine.clone();
        tokio::spawn(async move { engine.sweep_loop(interval, &metrics).await })
    });
    for number in 0..25 {
        let expiry = Timestamp::now() - SignedDuration::from_secs(301);
        put(&engine, &format!("k/{number:02}"), 2, Some(expiry)).await;
    }
    put(&engine, "live", 2, None).await;
    // What has just expired is often about to be stored anew.
    put(&engine, "expired", 2, Some(Timestamp::now() - SignedDuration::from_secs(200))).await;
    tokio::time::sleep(interval * 2).await;
    assert_eq!(names(&engine, "").await, ["expired", "live"]);
    let swept = |metrics: &Metrics, name: &str| -> u64 {
        let text = metrics.encode();
        let line = text.lines().find_map(|line| line.strip_prefix(name)).unwrap();
        line.trim().parse().unwrap()
    };
    for (name, wanted) in [("filestorage_swept_objects_total", 25), ("filestorage_swept_bytes_total", 50)] {
        assert_eq!(metrics.iter().map(|metrics| swept(metrics, name)).sum::<u64>(), wanted);
    }
    for sweeper in sweepers {
        sweeper.abort();
    }
}
