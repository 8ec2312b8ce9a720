//! Every suite with the cache on: nothing shows it but speed.

use std::path::Path;
use std::sync::Arc;
use std::time::Duration;

use filestorage::provider::BackendKind;
use filestorage::storage::{
    Backend, Cached, Codec, Compression, Deferral, Encoded, EncodedDeferral, Encryption, Engine, GetOptions, Keyring,
    Local, Memory, NoSiblings, PutOptions, Redelivered, Spool, StoreOptions, Value,
};
use jiff::Timestamp;

use crate::backend::{self, Profile};
use crate::dev_s3::Bucket as S3Bucket;
use crate::engine;
use crate::fallback_sync::until;
use crate::gcs::BUCKET as GCS;
use crate::gcs::site::{Site, open};
use crate::s3::SEAWEEDFS;
use crate::stack::impatient;
use crate::support::{Tally, key, object, scratch};
use crate::unreliable_bucket::Bucket;
use crate::wires::{Wires, cache};

const KEY: &str = "AQEBAQEBAQEBAQEBAQEBAQEBAQEBAQEBAQEBAQEBAQE=";

/// All codecs of a worker, as they stand below the cache.
fn codecs(inner: Arc<dyn Backend>) -> Encoded {
    Encoded::new(inner, Spool::new(env!("CARGO_TARGET_TMPDIR")))
        .with_compression(Some(Compression { codec: Codec::Gzip, level: 1, threshold: 0 }))
        .with_encryption(Encryption::on(Keyring::parse(KEY).unwrap()))
}

const ENCODED: Profile = Profile { compressing: true, encrypting: true, ..Profile::NEAR };

/// What one of several processes has over a local store.
fn files(root: &Path) -> Arc<Cached> {
    let local = Arc::new(Local::open(root.join("objects")).unwrap());
    Arc::new(Cached::over_files(Arc::clone(&local) as Arc<dyn Backend>, cache(64 << 20), local))
}

/// What one of several workers has over a bucket that it asks each time, and whose changes nobody announces.
fn asking(inner: Arc<dyn Backend>) -> Arc<dyn Backend> {
    Arc::new(Cached::over_bucket(inner, Some(cache(64 << 20)), Arc::new(NoSiblings), Some(Duration::ZERO)))
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn cache_over_a_bucket_by_two_workers() {
    let bucket: Arc<dyn Backend> = Arc::new(Memory::new());
    let wires = Arc::new(Wires::default());
    let worker = || wires.worker(Arc::clone(&bucket)).1 as Arc<dyn Backend>;
    let tally = Tally::new("cache over memory, two workers that announce their changes");
    backend::suite(&worker(), &worker(), Profile::NEAR, &tally).await;
    tally.close();
    let tally = Tally::new("engine over cache over memory");
    let (cache, top) = wires.worker(Arc::new(Memory::new()));
    engine::suite(&Engine::new(top, BackendKind::Local), Profile::NEAR, &tally).await;
    assert!(cache.counts().hits > 10, "{:?}", cache.counts());
    tally.close();
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn cache_that_asks_a_bucket_by_two_workers() {
    let bucket: Arc<dyn Backend> = Arc::new(Memory::new());
    let tally = Tally::new("cache over memory that asks each time, two workers that announce nothing");
    backend::suite(&asking(Arc::clone(&bucket)), &asking(bucket), Profile::NEAR, &tally).await;
    tally.close();
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn cache_over_local_by_two_processes() {
    let root = scratch();
    let (one, other) = (files(root.path()) as Arc<dyn Backend>, files(root.path()) as Arc<dyn Backend>);
    let tally = Tally::new("cache over local, two instances on one root");
    backend::suite(&one, &other, Profile::NEAR, &tally).await;
    tally.close();
    let tally = Tally::new("engine over cache over local");
    engine::suite(&Engine::new(files(scratch().path()), BackendKind::Local), Profile::NEAR, &tally).await;
    tally.close();
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn cache_over_all_codecs() {
    let root = scratch();
    let local = || {
        let local = Arc::new(Local::open(root.path().join("objects")).unwrap());
        let codecs = Arc::new(codecs(Arc::clone(&local) as Arc<dyn Backend>));
        Arc::new(Cached::over_files(codecs, cache(64 << 20), local)) as Arc<dyn Backend>
    };
    let tally = Tally::new("cache over gzip over encryption over local, two instances on one root");
    backend::suite(&local(), &local(), ENCODED, &tally).await;
    tally.close();
    let (bucket, wires): (Arc<dyn Backend>, _) = (Arc::new(Memory::new()), Arc::new(Wires::default()));
    let worker = || wires.worker(Arc::new(codecs(Arc::clone(&bucket)))).1 as Arc<dyn Backend>;
    let tally = Tally::new("cache over gzip over encryption over memory, two workers");
    backend::suite(&worker(), &worker(), ENCODED, &tally).await;
    tally.close();
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn cache_over_gcs() {
    let site = Site::start();
    let (options, wires) = (site.options(), Arc::new(Wires::default()));
    let worker = async || wires.worker(open(options.clone()).await).1 as Arc<dyn Backend>;
    let tally = Tally::new("cache over gcs");
    backend::short_suite(&worker().await, &worker().await, GCS, &tally).await;
    tally.close();
    let tally = Tally::new("cache over gcs that asks each time");
    let worker = async || asking(open(options.clone()).await);
    backend::short_suite(&worker().await, &worker().await, GCS, &tally).await;
    tally.close();
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn cache_over_s3() {
    let (bucket, wires) = (S3Bucket::make().await, Arc::new(Wires::default()));
    let worker = || wires.worker(Arc::new(bucket.open())).1 as Arc<dyn Backend>;
    let tally = Tally::new("cache over s3 (SeaweedFS)");
    backend::short_suite(&worker(), &worker(), SEAWEEDFS, &tally).await;
    tally.close();
    bucket.remove().await;
}

/// All of a worker over a bucket that goes away: what waits is never kept, and what is sent is announced.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn pending_values_are_not_kept_and_are_announced_when_sent() {
    let (bucket, folder, wires) = (Bucket::new(), scratch(), Arc::new(Wires::default()));
    let (sibling, elsewhere) = wires.worker(Arc::clone(&bucket) as Arc<dyn Backend>);
    let own = cache(1 << 20);
    let siblings = wires.join(&own);
    let fallback = impatient(&(Arc::clone(&bucket) as Arc<dyn Backend>), folder.path());
    let told = filestorage::storage::CacheInvalidation::new(Some(own.clone()), Arc::clone(&siblings));
    let fallback = Arc::new(Arc::into_inner(fallback).unwrap().with_invalidation(Some(Arc::new(told))));
    let codecs = Arc::new(codecs(Arc::clone(&fallback) as Arc<dyn Backend>));
    let deferral = Arc::new(EncodedDeferral::new(Arc::clone(&codecs), Arc::clone(&fallback) as _));
    let top = Arc::new(Cached::over_bucket(codecs, Some(own.clone()), siblings, None).with_deferral(deferral));
    let engine = Engine::new(Arc::clone(&top) as Arc<dyn Backend>, BackendKind::Local)
        .with_fallback(Arc::clone(&fallback))
        .with_deferral(top as Arc<dyn Deferral>);

    let (first, again) = (key("first"), key("again"));
    for it in [&first, &again] {
        elsewhere.put(it, &object("old"), &PutOptions::default()).await.unwrap();
    }
    assert_eq!((sibling.counts().entries, own.counts().entries), (2, 0));
    wires.announced();
    bucket.leave();
    let redelivered = Some(Redelivered { started_at: Some(Timestamp::now()) });
    let deferred = StoreOptions { redelivered, operation_id: Some("id".to_owned()), ..Default::default() };
    for (it, options) in [(&first, StoreOptions::default()), (&again, deferred)] {
        let receipt = engine.store(it, Value::Text("new".to_owned()), options).await.unwrap();
        assert!(receipt.pending_sync);
        assert!(wires.announced().contains(it), "a worker on the same folder must look into the overlay");
        for _ in 0..2 {
            let found = engine.retrieve(it, GetOptions::default()).await.unwrap().unwrap();
            assert_eq!((found.value, found.receipt.pending_sync), (Value::Text("new".to_owned()), true));
        }
    }
    assert_eq!((sibling.counts().entries, own.counts()), (0, own.counts()));
    assert_eq!((own.counts().entries, own.counts().hits), (0, 0));
    bucket.come_back();
    for it in [&first, &again] {
        // Elsewhere the old value is the right one until the new one is sent.
        assert!(elsewhere.get(it, GetOptions::default()).await.unwrap().is_some());
    }
    assert_eq!(sibling.counts().entries, 2);
    until(async || fallback.sync(&()).await.is_ok_and(|report| report.sent == 2)).await;
    let mut announced = wires.announced();
    announced.sort();
    assert_eq!((announced, sibling.counts().entries), (vec![again.clone(), first.clone()], 0));
    for it in [&first, &again] {
        for _ in 0..2 {
            let found = engine.retrieve(it, GetOptions::default()).await.unwrap().unwrap();
            assert_eq!((found.value, found.receipt.pending_sync), (Value::Text("new".to_owned()), false));
        }
    }
    assert_eq!((own.counts().entries, own.counts().hits), (2, 2));
}
