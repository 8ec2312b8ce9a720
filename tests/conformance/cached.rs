//! What a cache keeps, for how long, how much, and what it says of changes.

use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::Duration;

use bytes::Bytes;
use filestorage::provider::BackendKind;
use filestorage::storage::{
    Backend, ByteRange, Cache, CacheOptions, Cached, DeleteOptions, Engine, ErrorKind, FileIdentities, FileIdentity,
    GetOptions, Key, Kind, Local, Memory, NoSiblings, Object, Payload, PutOptions, StateOptions, StoreOptions, Value,
};
use filestorage::telemetry::Metrics;
use jiff::{SignedDuration, Timestamp};

use crate::support::{bytes, expired, key, noise, object, scratch};
use crate::unreliable_bucket::{Ask, Bucket, Fate};
use crate::wires::{Wires, cache};

/// Longer than the clock of any file system takes to tick.
const TICK: Duration = Duration::from_millis(40);

async fn get(of: &dyn Backend, name: &str) -> Option<Bytes> {
    match of.get(&key(name), GetOptions::default()).await.unwrap() {
        Some(object) => Some(bytes(object).await),
        None => None,
    }
}

async fn put(of: &dyn Backend, name: &str, object: &Object) {
    of.put(&key(name), object, &PutOptions::default()).await.unwrap();
}

fn worker(bucket: &Arc<Bucket>, cache: &Cache) -> Cached {
    Cached::over_bucket(Arc::clone(bucket) as Arc<dyn Backend>, Some(cache.clone()), Arc::new(NoSiblings), None)
}

fn gets(bucket: &Bucket) -> usize {
    bucket.requests().iter().filter(|request| request.ask == Ask::Get).count()
}

#[tokio::test]
async fn the_second_read_is_a_hit_and_so_is_a_read_of_a_write() {
    let (bucket, cache) = (Bucket::new(), cache(1 << 20));
    let top = worker(&bucket, &cache);
    put(&*bucket.inner, "there", &object("value")).await;
    put(&top, "written", &object("value")).await;
    for name in ["there", "written"] {
        for _ in 0..3 {
            assert_eq!(get(&top, name).await, Some("value".into()));
        }
    }
    assert_eq!((gets(&bucket), cache.counts().hits, cache.counts().misses), (1, 5, 1));
    assert_eq!(get(&top, "missing").await, None);
    assert_eq!(get(&top, "missing").await, None);
    assert_eq!(gets(&bucket), 2, "that there is nothing is never remembered");
}

#[tokio::test]
async fn a_hit_is_what_the_place_would_answer() {
    let (bucket, cache) = (Bucket::new(), cache(1 << 20));
    let top = worker(&bucket, &cache);
    let mut text = object("a text of bytes");
    text.attributes.kind = Kind::Text;
    let mut json = object(r#"{"a":1}"#);
    json.attributes.kind = Kind::Json;
    for (name, value) in [("text", text), ("bytes", object("some bytes")), ("json", json)] {
        put(&top, name, &value).await;
        for range in [None, Some((0, None)), (Some((3, Some(4)))), Some((7, None)), Some((99, Some(1)))] {
            for limit in [None, Some(100), Some(4)] {
                let range = range.map(|(offset, length)| ByteRange { offset, length });
                let options = GetOptions { range, limit, ..GetOptions::default() };
                let before = cache.counts().hits;
                let (hit, place) =
                    (top.get(&key(name), options.clone()).await, bucket.inner.get(&key(name), options.clone()).await);
                assert_eq!(cache.counts().hits, before + 1);
                match (hit, place) {
                    (Ok(Some(hit)), Ok(Some(place))) => {
                        assert_eq!(crate::support::all(&hit.attributes), crate::support::all(&place.attributes));
                        assert_eq!(bytes(hit).await, bytes(place).await, "{name} {options:?}");
                    }
                    (Err(hit), Err(place)) => assert_eq!(hit.to_string(), place.to_string()),
                    other => panic!("{name} {options:?}: {other:?}"),
                }
            }
        }
    }
    let stat = top.stat(&key("text")).await.unwrap().unwrap();
    assert_eq!(stat.size, 15);
    assert!(bucket.requests().iter().any(|request| request.ask == Ask::Stat), "a stat asks the place");
}

/// A large value of a local store is announced, then read into the cache, and is in memory from then on.
#[tokio::test]
async fn an_announced_value_is_kept_once_it_is_read() {
    let (root, cache) = (scratch(), cache(64 << 20));
    let local: Arc<dyn Backend> = Arc::new(Local::open(root.path()).unwrap());
    let top = Cached::over_bucket(local, Some(cache.clone()), Arc::new(NoSiblings), None);
    let value = object(noise(2 << 20, 1));
    let mut stored = value.clone();
    let mut file = tempfile::tempfile().unwrap();
    std::io::Write::write_all(&mut file, value.payload.as_memory().unwrap()).unwrap();
    stored.payload = Payload::file(Arc::new(file), 0, 2 << 20);
    put(&top, "large", &stored).await;
    let announced = GetOptions { announced: true, spooled: true, ..GetOptions::default() };
    for _ in 0..2 {
        let large = key("large");
        let (first, other) = tokio::join!(top.get(&large, announced.clone()), top.get(&large, announced.clone()));
        assert!(first.unwrap().unwrap().payload.is_announced() && other.unwrap().unwrap().payload.is_announced());
    }
    assert_eq!((cache.counts().hits, cache.counts().misses), (0, 0), "nothing was looked for in vain yet");
    let read = top.get(&key("large"), GetOptions::default()).await.unwrap().unwrap();
    assert!(bytes(read).await == noise(2 << 20, 1));
    assert_eq!(cache.counts().misses, 1);
    let hit = top.get(&key("large"), announced.clone()).await.unwrap().unwrap();
    assert!(hit.payload.as_memory().is_some() && cache.counts().hits == 1);
}

#[tokio::test]
async fn what_must_not_be_kept_is_not() {
    let (bucket, cache) = (Bucket::new(), cache(1 << 20));
    let top = worker(&bucket, &cache);
    let large = object(noise((1 << 20) / 8, 1));
    let mut pending = object("pending");
    pending.attributes.info.pending = true;
    let mut legacy = object("legacy");
    legacy.attributes.info.legacy = Some(filestorage::storage::LegacyFile::default());
    for (name, value) in [("large", large), ("expired", expired("expired")), ("pending", pending), ("legacy", legacy)] {
        put(&top, name, &value).await;
        assert!(get(&top, name).await.is_some());
        assert_eq!(cache.counts().entries, 0, "{name}");
    }
    put(&top, "fits", &object(noise((1 << 20) / 8 - 4096, 1))).await;
    assert_eq!(cache.counts().entries, 1);
    bucket.requests();
    let part = GetOptions { range: Some(ByteRange { offset: 1, length: Some(2) }), ..GetOptions::default() };
    cache.clear();
    assert!(top.get(&key("fits"), part).await.unwrap().is_some());
    assert_eq!(cache.counts().entries, 0, "the rest is not read only to be kept");
}

/// A large value passes through files, and is not read into memory only to be kept.
#[tokio::test]
async fn a_value_in_a_file_is_not_kept() {
    let (root, cache) = (scratch(), cache(64 << 20));
    let local: Arc<dyn Backend> = Arc::new(Local::open(root.path()).unwrap());
    let top = Cached::over_bucket(local, Some(cache.clone()), Arc::new(NoSiblings), None);
    let content = noise(2 << 20, 5);
    let mut file = tempfile::tempfile().unwrap();
    std::io::Write::write_all(&mut file, &content).unwrap();
    let payload = Payload::file(Arc::new(file), 0, content.len() as u64);
    put(&top, "it", &Object { payload, ..object(content.clone()) }).await;
    for _ in 0..2 {
        let options = GetOptions { spooled: true, ..GetOptions::default() };
        let found = top.get(&key("it"), options).await.unwrap().unwrap();
        assert!(found.payload.as_memory().is_none() && bytes(found).await == content);
    }
    assert_eq!(cache.counts().entries, 0);
    assert_eq!(get(&top, "it").await, Some(content.into()));
    assert_eq!(cache.counts().entries, 1, "whoever wants it in memory has it there already");
}

#[tokio::test]
async fn what_has_expired_is_not_answered() {
    let (bucket, cache) = (Bucket::new(), cache(1 << 20));
    let engine = Engine::new(Arc::new(worker(&bucket, &cache)), BackendKind::Local).with_cache(Some(cache.clone()));
    let soon = Timestamp::now() + SignedDuration::from_millis(400);
    let options = StoreOptions { expires_at: Some(soon), ..StoreOptions::default() };
    engine.store(&key("it"), Value::Text("value".to_owned()), options).await.unwrap();
    assert!(engine.retrieve(&key("it"), GetOptions::default()).await.unwrap().is_some());
    assert_eq!(cache.counts().hits, 1);
    crate::fallback_sync::until(async || Timestamp::now() >= soon).await;
    assert!(engine.retrieve(&key("it"), GetOptions::default()).await.unwrap().is_none());
    assert_eq!(cache.counts().hits, 1);
    crate::fallback_sync::until(async || cache.counts().entries == 0).await;
}

#[tokio::test(start_paused = true)]
async fn an_entry_stays_for_its_time_to_live() {
    let bucket = Bucket::new();
    let cache = Cache::new(CacheOptions { bytes: 1 << 20, ttl: Duration::from_secs(10) }, Metrics::new());
    let top = worker(&bucket, &cache);
    put(&top, "it", &object("old")).await;
    // Another tool, which announces nothing.
    put(&*bucket.inner, "it", &object("new")).await;
    tokio::time::advance(Duration::from_millis(9_900)).await;
    assert_eq!(get(&top, "it").await, Some("old".into()));
    tokio::time::advance(Duration::from_millis(200)).await;
    assert_eq!(get(&top, "it").await, Some("new".into()));
}

#[tokio::test]
async fn a_cache_never_exceeds_its_bound() {
    const BOUND: u64 = 8 << 20;
    let metrics = Metrics::new();
    let cache = Cache::new(CacheOptions { bytes: BOUND, ttl: Duration::from_secs(60) }, metrics.clone());
    let bucket: Arc<dyn Backend> = Arc::new(Memory::new());
    let top = Arc::new(Cached::over_bucket(bucket, Some(cache.clone()), Arc::new(NoSiblings), None));
    let done = Arc::new(AtomicBool::new(false));
    let watcher = {
        let (cache, done) = (cache.clone(), Arc::clone(&done));
        std::thread::spawn(move || {
            let mut most = 0;
            while !done.load(Ordering::Relaxed) {
                most = most.max(cache.counts().bytes);
            }
            most
        })
    };
    let mut state = 7;
    let (mut written, mut number) = (0_u64, 0);
    while written < 64 << 20 {
        let size = [200, 4_000, 60_000, 900_000][crate::support::random(&mut state) as usize % 4];
        put(&*top, &format!("key/{number}"), &object(noise(size, number))).await;
        assert!(cache.counts().bytes <= BOUND);
        (written, number) = (written + size as u64, number + 1);
    }
    done.store(true, Ordering::Relaxed);
    let most = watcher.join().unwrap();
    assert!(most <= BOUND && cache.counts().bytes > BOUND / 2, "{most} {:?}", cache.counts());
    let last = key(&format!("key/{}", number - 1));
    let before = cache.counts().hits;
    assert!(top.get(&last, GetOptions::default()).await.unwrap().is_some());
    assert_eq!(cache.counts().hits, before + 1, "what was written last is there");
    let text = metrics.encode();
    let evicted =
        text.lines().find_map(|line| line.strip_prefix(r#"filestorage_cache_evictions_total{reason="size"} "#));
    assert!(evicted.unwrap().parse::<u64>().unwrap() > 10, "{text}");
    assert!(text.contains(&format!("filestorage_cache_size_bytes {}\n", cache.counts().bytes)), "{text}");
    let counts = cache.counts();
    assert_eq!((cache.clear(), cache.counts().entries, cache.counts().bytes), (counts.entries, 0, 0));
}

#[tokio::test]
async fn the_least_recently_used_goes_first() {
    let (bucket, cache) = (Bucket::new(), cache(80_000));
    let top = worker(&bucket, &cache);
    for number in 0..7 {
        put(&top, &format!("key/{number}"), &object(noise(8_000, number))).await;
    }
    for number in [7, 8, 9, 10, 11] {
        get(&top, "key/0").await;
        put(&top, &format!("key/{number}"), &object(noise(8_000, number))).await;
    }
    bucket.requests();
    get(&top, "key/0").await;
    assert_eq!(gets(&bucket), 0, "it was used all the time");
    get(&top, "key/1").await;
    assert_eq!(gets(&bucket), 1, "it was not used since it came");
}

#[tokio::test]
async fn every_change_that_may_have_happened_is_announced() {
    let (bucket, wires) = (Bucket::new(), Arc::new(Wires::default()));
    let (_, with) = wires.worker(Arc::clone(&bucket) as Arc<dyn Backend>);
    let siblings = wires.join(&cache(1));
    let without = Arc::new(Cached::over_bucket(Arc::clone(&bucket) as Arc<dyn Backend>, None, siblings, None));
    let it = key("it");
    for top in [with, without] {
        put(&*top, "it", &object("value")).await;
        assert_eq!(wires.announced(), [key("it")]);
        top.delete(&it, &DeleteOptions::default()).await.unwrap();
        assert_eq!(wires.announced(), [key("it")]);
        top.flush(&it).await.unwrap();
        assert_eq!(wires.announced(), [key("it")]);
        for (fate, is_announced) in [
            (Fate::ReplyLost, true),
            (Fate::Refused(ErrorKind::Unavailable), true),
            (Fate::Refused(ErrorKind::Throttled), true),
            (Fate::Refused(ErrorKind::Io), true),
            // Such an error concerns the last attempt; an earlier one may have changed the bucket.
            (Fate::Refused(ErrorKind::Denied), true),
            (Fate::Refused(ErrorKind::NoSpace), true),
            (Fate::Refused(ErrorKind::Integrity), true),
            (Fate::Refused(ErrorKind::Abandoned), true),
            (Fate::Refused(ErrorKind::Precondition), false),
            (Fate::Refused(ErrorKind::Invalid), false),
        ] {
            bucket.weather(move |_| fate.clone());
            top.put(&it, &object("value"), &PutOptions::default()).await.unwrap_err();
            assert_eq!(wires.announced().len(), usize::from(is_announced));
            top.delete(&it, &DeleteOptions::default()).await.unwrap_err();
            assert_eq!(wires.announced().len(), usize::from(is_announced));
        }
        // A command that is given up while its write is under way.
        bucket.weather(|_| Fate::Held(Arc::new(tokio::sync::Semaphore::new(0))));
        let held = {
            let top = Arc::clone(&top);
            tokio::spawn(async move { put(&*top, "it", &object("value")).await })
        };
        crate::fallback_sync::until(async || bucket.writing() == 1).await;
        held.abort();
        crate::fallback_sync::until(async || wires.announced() == [key("it")]).await;
        bucket.come_back();
    }
}

#[tokio::test]
async fn a_bucket_that_is_asked_each_time_answers_nothing_old() {
    let bucket = Bucket::new();
    let strict = || {
        let cache = cache(1 << 20);
        let inner = Arc::clone(&bucket) as Arc<dyn Backend>;
        (cache.clone(), Cached::over_bucket(inner, Some(cache), Arc::new(NoSiblings), Some(Duration::ZERO)))
    };
    let ((_, writer), (cache, reader)) = (strict(), strict());
    let mut old = 0;
    for number in 0..1000 {
        put(&writer, "it", &object(format!("value {number}"))).await;
        for _ in 0..2 {
            old += usize::from(get(&reader, "it").await != Some(format!("value {number}").into()));
        }
    }
    assert_eq!((old, cache.counts().hits), (0, 1000));
    // Another tool keeps the token of the object that it replaces.
    let mut copied = bucket.inner.get(&key("it"), GetOptions::default()).await.unwrap().unwrap();
    copied.payload = Bytes::from("other bytes").into();
    let checksum = filestorage::storage::Checksum::of(b"other bytes");
    (copied.attributes.size, copied.attributes.stored_size) = (11, 11);
    (copied.attributes.checksum, copied.attributes.stored_checksum) = (checksum, checksum);
    put(&*bucket.inner, "it", &copied).await;
    assert_eq!(get(&reader, "it").await, Some("other bytes".into()));
    bucket.leave();
    let error = reader.get(&key("it"), GetOptions::default()).await.unwrap_err();
    assert_eq!(error.kind, ErrorKind::Unavailable, "a bucket that cannot be asked is no reason for an old value");
}

#[tokio::test(start_paused = true)]
async fn a_bucket_is_asked_after_the_age_of_the_settings() {
    let (bucket, cache) = (Bucket::new(), cache(1 << 20));
    let inner = Arc::clone(&bucket) as Arc<dyn Backend>;
    let age = Some(Duration::from_secs(5));
    let top = Cached::over_bucket(inner, Some(cache.clone()), Arc::new(NoSiblings), age);
    put(&top, "it", &object("value")).await;
    let stats = async || {
        assert_eq!(get(&top, "it").await, Some("value".into()));
        bucket.requests().iter().filter(|request| request.ask == Ask::Stat).count()
    };
    assert_eq!(stats().await, 0);
    tokio::time::advance(Duration::from_secs(5)).await;
    assert_eq!((stats().await, stats().await), (1, 0), "an answer holds for as long");
    tokio::time::advance(Duration::from_secs(5)).await;
    put(&*bucket.inner, "it", &object("other")).await;
    assert_eq!(get(&top, "it").await, Some("other".into()));
}

#[tokio::test]
async fn a_stat_that_sees_another_state_drops_the_entry() {
    let (bucket, cache) = (Bucket::new(), cache(1 << 20));
    let top = worker(&bucket, &cache);
    put(&top, "it", &object("old")).await;
    put(&*bucket.inner, "it", &object("new")).await;
    assert_eq!(get(&top, "it").await, Some("old".into()), "another tool announces nothing");
    top.stat(&key("it")).await.unwrap();
    assert_eq!(get(&top, "it").await, Some("new".into()));
}

#[tokio::test]
async fn a_suspended_cache_keeps_and_answers_nothing() {
    let (bucket, cache) = (Bucket::new(), cache(1 << 20));
    let engine = Engine::new(Arc::new(worker(&bucket, &cache)), BackendKind::Local).with_cache(Some(cache.clone()));
    let it = key("it");
    engine.store(&it, Value::Text("value".to_owned()), StoreOptions::default()).await.unwrap();
    assert!(engine.stats().cache_enabled && engine.stats().cache_size == 1);
    cache.suspend();
    assert_eq!((cache.counts().entries, engine.stats().cache_enabled), (0, false));
    for _ in 0..2 {
        let (found, counts) = filestorage::storage::counted(engine.retrieve(&it, GetOptions::default())).await;
        assert!(found.unwrap().is_some() && counts.cache.is_none());
    }
    assert_eq!(cache.counts().entries + cache.counts().hits + cache.counts().misses, 0);
    cache.resume();
    let look = async || filestorage::storage::counted(engine.retrieve(&it, GetOptions::default())).await.1.cache;
    let looked = [look().await, look().await].map(|lookup| lookup.unwrap().as_str());
    assert_eq!(looked, ["miss", "hit"]);
    let stats = engine.stats();
    assert!(stats.cache_enabled && stats.cache_size == 1, "{stats:?}");
    let metrics = stats.metrics;
    assert_eq!((metrics.cache_hits, metrics.cache_misses), (1, 1));
    assert!((metrics.cache_hit_rate - 0.5).abs() < 1e-9);
}

/// Two processes on one folder, one of which may also be the shell.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn no_write_of_another_process_is_missed() {
    let root = scratch();
    let open = || {
        let local = Arc::new(Local::open(root.path()).unwrap());
        let cache = cache(1 << 20);
        let cached = Cached::over_files(Arc::clone(&local) as Arc<dyn Backend>, cache.clone(), local);
        (cache, Engine::new(Arc::new(cached), BackendKind::Local))
    };
    let ((_, one), (cache, other)) = (open(), open());
    let it = key("it");
    let mut old = 0;
    let read = async || match other.retrieve(&it, GetOptions::default()).await.unwrap().unwrap().value {
        Value::Text(text) => text,
        value => panic!("{value:?}"),
    };
    for number in 0..1000 {
        // Values of one length, so that only the times and the inode can tell.
        let text = format!("{number:04}");
        one.store(&it, Value::Text(text.clone()), StoreOptions::default()).await.unwrap();
        if number % 50 == 0 {
            tokio::time::sleep(TICK).await;
        }
        for _ in 0..3 {
            old += usize::from(read().await != text);
        }
    }
    assert_eq!(old, 0);
    let hits = cache.counts().hits;
    assert!(hits >= 40, "{hits}: of each file that is old enough, the second and the third read are hits");
    one.delete(&it, filestorage::storage::DeleteRequest::default()).await.unwrap();
    assert!(other.retrieve(&it, GetOptions::default()).await.unwrap().is_none());
}

/// A store of files whose identities the test decides.
#[derive(Debug)]
struct Files(std::sync::Mutex<Vec<Option<FileIdentity>>>);

impl FileIdentities for Files {
    fn identity(&self, _: &Key) -> Option<FileIdentity> {
        let mut answers = self.0.lock().unwrap();
        if answers.len() > 1 { answers.remove(0) } else { answers[0] }
    }
}

#[tokio::test]
async fn a_read_whose_file_is_uncertain_is_not_kept() {
    let long_ago = Timestamp::now().as_second() - 100;
    let version =
        |number| Some(FileIdentity { inode: (1, number), size: 5, modified: (long_ago, 0), changed: (long_ago, 0) });
    let now = Timestamp::now().as_second() + 1;
    let young = Some(FileIdentity { changed: (now, 0), ..version(1).unwrap() });
    for (before, after, is_kept) in [
        (version(1), version(1), true),
        (version(1), version(2), false),
        (version(1), None, false),
        (None, version(1), false),
        (None, None, false),
        (young, young, false),
    ] {
        let files = Arc::new(Files(std::sync::Mutex::new(vec![before, after])));
        let cache = cache(1 << 20);
        let memory: Arc<dyn Backend> = Arc::new(Memory::new());
        put(&*memory, "it", &object("value")).await;
        let top = Cached::over_files(memory, cache.clone(), Arc::clone(&files) as Arc<dyn FileIdentities>);
        get(&top, "it").await;
        assert_eq!(cache.counts().entries, u64::from(is_kept), "{before:?} {after:?}");
        get(&top, "it").await;
        assert_eq!(cache.counts().hits, u64::from(is_kept));
        if is_kept {
            *files.0.lock().unwrap() = vec![version(2)];
            get(&top, "it").await;
            assert_eq!(cache.counts().hits, 1, "another file");
        }
    }
}

/// A thousand reads right after a write, when nothing proves that the first of them saw the last version.
#[tokio::test]
async fn reads_of_a_young_file_share_two_reads() {
    let bucket = Bucket::new();
    put(&*bucket.inner, "it", &object("value")).await;
    let cache = cache(1 << 20);
    let files = Arc::new(Files(std::sync::Mutex::new(vec![None])));
    let top = Arc::new(Cached::over_files(Arc::clone(&bucket) as Arc<dyn Backend>, cache.clone(), files));
    let gate = Arc::new(tokio::sync::Semaphore::new(0));
    let held = Arc::clone(&gate);
    bucket.weather(move |_| Fate::Held(Arc::clone(&held)));
    let read = || {
        let top = Arc::clone(&top);
        tokio::spawn(async move { get(&*top, "it").await })
    };
    let first = read();
    crate::fallback_sync::until(async || cache.counts().misses == 1).await;
    let others: Vec<_> = (0..999).map(|_| read()).collect();
    crate::fallback_sync::until(async || cache.counts().misses == 1000).await;
    gate.add_permits(1000);
    for found in futures_util::future::join_all(others.into_iter().chain([first])).await {
        assert_eq!(found.unwrap(), Some("value".into()));
    }
    assert_eq!(gets(&bucket), 2);
}

#[tokio::test]
async fn a_verification_reads_the_place_itself() {
    let (bucket, cache) = (Bucket::new(), cache(1 << 20));
    let engine = Engine::new(Arc::new(worker(&bucket, &cache)), BackendKind::Gcs);
    engine.store(&key("a"), Value::Text("value".to_owned()), StoreOptions::default()).await.unwrap();
    assert!(engine.retrieve(&key("a"), StateOptions::default()).await.unwrap().is_some());
    assert_eq!(cache.counts().hits, 1);
    assert!(engine.verify(&key("a")).await.unwrap().unwrap().ok);
    assert_eq!((gets(&bucket), cache.counts().hits), (1, 1));
    bucket.inner.delete(&key("a"), &DeleteOptions::default()).await.unwrap();
    assert!(engine.verify(&key("a")).await.unwrap().is_none());
}
