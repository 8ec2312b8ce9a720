//! How old a cached value may be: by its age, by what waits in the overlay, and by what the bucket carries out late.

use std::sync::Arc;
use std::time::Duration;

use bytes::Bytes;
use filestorage::storage::{
    Backend, Cache, CacheOptions, Cached, Deferral, DeleteOptions, ErrorKind, GetOptions, NoSiblings, PutOptions,
};
use filestorage::telemetry::Metrics;
use tokio::sync::Semaphore;

use crate::fallback_sync::until;
use crate::stack::impatient;
use crate::support::{bytes, key, object, scratch};
use crate::unreliable_bucket::{Ask, Bucket, Fate};
use crate::wires::{Wires, cache};

async fn get(of: &dyn Backend) -> Option<Bytes> {
    match of.get(&key("it"), GetOptions::default()).await.unwrap() {
        Some(object) => Some(bytes(object).await),
        None => None,
    }
}

async fn put(of: &dyn Backend, value: &'static str) {
    of.put(&key("it"), &object(value), &PutOptions::default()).await.unwrap();
}

fn over(bucket: &Arc<Bucket>, cache: &Cache, revalidate: Option<Duration>) -> Arc<Cached> {
    let inner = Arc::clone(bucket) as Arc<dyn Backend>;
    Arc::new(Cached::over_bucket(inner, Some(cache.clone()), Arc::new(NoSiblings), revalidate))
}

/// A command of the shell stores into the overlay and announces nothing.
#[tokio::test]
async fn a_hit_looks_into_the_overlay_first() {
    let (bucket, folder, cache) = (Bucket::new(), scratch(), cache(1 << 20));
    let place = Arc::clone(&bucket) as Arc<dyn Backend>;
    let (fallback, shell) = (impatient(&place, folder.path()), impatient(&place, folder.path()));
    let inner = Arc::clone(&fallback) as Arc<dyn Backend>;
    let top = Cached::over_bucket(inner, Some(cache.clone()), Arc::new(NoSiblings), None);
    let top = Arc::new(top.with_deferral(fallback as Arc<dyn Deferral>));
    put(&*top, "old").await;
    assert_eq!((get(&*top).await, cache.counts().hits), (Some("old".into()), 1));
    bucket.leave();
    put(&*shell, "new").await;
    for _ in 0..2 {
        assert_eq!(get(&*top).await, Some("new".into()));
    }
    shell.delete(&key("it"), &DeleteOptions::default()).await.unwrap();
    assert_eq!(get(&*top).await, None);
    assert_eq!((cache.counts().hits, cache.counts().entries), (1, 0), "what the overlay has replaced is let go");
}

/// Whoever comes after the store in the shell must not join a read that began before it.
#[tokio::test]
async fn nobody_joins_a_read_that_the_overlay_overtook() {
    let (bucket, folder, cache) = (Bucket::new(), scratch(), cache(1 << 20));
    let place = Arc::clone(&bucket) as Arc<dyn Backend>;
    let (fallback, shell) = (impatient(&place, folder.path()), impatient(&place, folder.path()));
    let inner = Arc::clone(&fallback) as Arc<dyn Backend>;
    let top = Cached::over_bucket(inner, Some(cache.clone()), Arc::new(NoSiblings), None);
    let top = Arc::new(top.with_deferral(fallback as Arc<dyn Deferral>));
    put(&*bucket.inner, "old").await;
    let gate = Arc::new(Semaphore::new(0));
    let held = Arc::clone(&gate);
    bucket.weather(move |request| match request.ask {
        Ask::Get => Fate::ReplyHeld(Arc::clone(&held)),
        _ => Fate::Refused(ErrorKind::Unavailable),
    });
    let read = || {
        let top = Arc::clone(&top);
        tokio::spawn(async move { get(&*top).await })
    };
    let first = read();
    until(async || !bucket.requests().is_empty()).await;
    put(&*shell, "new").await;
    let second = read();
    until(async || cache.counts().misses == 2).await;
    gate.add_permits(2);
    assert_eq!(first.await.unwrap(), Some("old".into()), "it began before the store");
    assert_eq!(second.await.unwrap(), Some("new".into()));
    assert_eq!(get(&*top).await, Some("new".into()));
}

/// The bucket carries out a request after its writer has been told that it failed, or is gone.
#[tokio::test(start_paused = true)]
async fn a_write_that_comes_late_is_announced_again() {
    for (is_delete, is_given_up) in [(false, false), (true, false), (false, true)] {
        let (bucket, wires) = (Bucket::new(), Arc::new(Wires::default()));
        let (own, one) = wires.worker(Arc::clone(&bucket) as Arc<dyn Backend>);
        let (sibling, other) = wires.worker(Arc::clone(&bucket) as Arc<dyn Backend>);
        put(&*one, "old").await;
        wires.announced();
        bucket.weather(|request| match request.ask {
            Ask::Put | Ask::Delete => Fate::Late,
            _ => Fate::Served,
        });
        let it = key("it");
        let error = if is_delete {
            one.delete(&it, &DeleteOptions::default()).await.unwrap_err()
        } else {
            one.put(&it, &object("new"), &PutOptions::default()).await.unwrap_err()
        };
        assert_eq!(error.kind, ErrorKind::Unavailable);
        if is_given_up {
            tokio::time::sleep(Duration::from_secs(100)).await;
            bucket.weather(|request| match request.ask {
                Ask::Put => Fate::Slow(Duration::from_secs(1000)),
                _ => Fate::Served,
            });
            let (held, it) = (Arc::clone(&one), it.clone());
            let held = tokio::spawn(async move { held.put(&it, &object("new"), &PutOptions::default()).await });
            until(async || bucket.writing() == 1).await;
            held.abort();
            assert!(held.await.unwrap_err().is_cancelled());
            tokio::time::sleep(Duration::from_secs(1)).await;
        }
        for top in [&one, &other] {
            assert_eq!(get(&**top).await, Some("old".into()));
        }
        bucket.catch_up().await;
        wires.announced();
        assert_eq!((sibling.counts().entries, own.counts().entries), (1, 1), "both have the old value");
        tokio::time::sleep(Duration::from_secs(31)).await;
        assert_eq!(wires.announced(), [it]);
        let wanted = (!is_delete).then(|| Bytes::from("new"));
        for top in [&one, &other] {
            assert_eq!(get(&**top).await, wanted);
        }
        tokio::time::sleep(Duration::from_secs(1000)).await;
        assert_eq!(wires.announced(), [], "not more than once");
    }
}

/// The object may change while its bytes come, so the age of a value counts from the beginning.
#[tokio::test(start_paused = true)]
async fn the_age_of_a_value_counts_from_the_beginning() {
    let seconds = Duration::from_secs;
    for (ttl, revalidate) in [(seconds(3600), Some(seconds(5))), (seconds(5), None)] {
        for is_write in [false, true] {
            let bucket = Bucket::new();
            let cache = Cache::new(CacheOptions { bytes: 1 << 20, ttl }, Metrics::new());
            let top = over(&bucket, &cache, revalidate);
            put(&*bucket.inner, "old").await;
            bucket.weather(move |request| match request.ask {
                Ask::Get | Ask::Put => Fate::Slow(seconds(30)),
                _ => Fate::Served,
            });
            if is_write {
                put(&*top, "old").await;
            } else {
                assert_eq!(get(&*top).await, Some("old".into()));
            }
            bucket.come_back();
            put(&*bucket.inner, "new").await;
            assert_eq!(get(&*top).await, Some("new".into()), "write: {is_write}, ttl: {ttl:?}");
        }
    }
}

#[tokio::test(start_paused = true)]
async fn nobody_joins_a_read_that_began_too_long_ago() {
    for (waited, is_joined) in [(4, true), (20, false)] {
        let (bucket, cache) = (Bucket::new(), cache(1 << 20));
        let top = over(&bucket, &cache, Some(Duration::from_secs(5)));
        put(&*bucket.inner, "old").await;
        let gate = Arc::new(Semaphore::new(0));
        let held = Arc::clone(&gate);
        bucket.weather(move |_| Fate::ReplyHeld(Arc::clone(&held)));
        let read = || {
            let top = Arc::clone(&top);
            tokio::spawn(async move { get(&*top).await })
        };
        let first = read();
        until(async || !bucket.requests().is_empty()).await;
        put(&*bucket.inner, "new").await;
        tokio::time::sleep(Duration::from_secs(waited)).await;
        let second = read();
        until(async || cache.counts().misses == 2).await;
        gate.add_permits(3);
        assert_eq!(first.await.unwrap(), Some("old".into()));
        assert_eq!(second.await.unwrap(), Some(if is_joined { "old" } else { "new" }.into()));
    }
}

/// To compare such an object on a hit, an S3 store would have to send all of it.
#[tokio::test]
async fn what_is_compared_only_by_reading_it_is_not_kept() {
    for (revalidate, is_kept) in [(None, true), (Some(Duration::ZERO), false), (Some(Duration::from_secs(5)), false)] {
        let (bucket, cache) = (Bucket::new(), cache(1 << 20));
        let top = over(&bucket, &cache, revalidate);
        let mut foreign = object("value");
        foreign.attributes.info.computed_checksum = true;
        bucket.inner.put(&key("it"), &foreign, &PutOptions::default()).await.unwrap();
        for _ in 0..2 {
            assert_eq!(get(&*top).await, Some("value".into()));
        }
        assert_eq!((cache.counts().entries, cache.counts().hits), (u64::from(is_kept), u64::from(is_kept)));
        let stats = bucket.requests().iter().filter(|request| request.ask == Ask::Stat).count();
        assert_eq!(stats, 0);
    }
}
