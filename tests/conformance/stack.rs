//! Buckets below everything that stands before them in a worker: retries, measures and the fallback.

use std::io::Write as _;
use std::path::Path;
use std::sync::Arc;
use std::time::Duration;

use filestorage::storage::{
    Backend, DeleteOptions, Fallback, GetOptions, Metered, Object, Payload, PutOptions, Retry, RetryOptions, S3,
    S3Options,
};
use filestorage::telemetry::{self, Metrics};
use serde_json::Value;

use crate::backend::{self, Profile};
use crate::fallback_sync::{report, until};
use crate::gcs::BUCKET;
use crate::gcs::site::Site;
use crate::s3::SEAWEEDFS;
use crate::support::{Rest, Tally, all, bytes, key, noise, object, rest, scratch, text};
use crate::{dev_s3, gcs};

/// Builds what a worker builds over a bucket, with an overlay in the folder.
fn stack(bucket: &Arc<dyn Backend>, label: telemetry::BackendLabel, folder: &Path) -> Arc<Fallback> {
    fallback_over(bucket, label, folder, 1)
}

/// Builds what a worker builds over a bucket of this process, whose faults are not retried.
pub(crate) fn impatient(bucket: &Arc<dyn Backend>, folder: &Path) -> Arc<Fallback> {
    fallback_over(bucket, telemetry::BackendLabel::Memory, folder, 0)
}

fn fallback_over(
    bucket: &Arc<dyn Backend>,
    label: telemetry::BackendLabel,
    folder: &Path,
    max_retries: u32,
) -> Arc<Fallback> {
    let options = RetryOptions { max_retries, timeout: Duration::from_secs(10) };
    let metrics = Metrics::new();
    let retry = Retry::new(Arc::clone(bucket), options, label, metrics.clone());
    let primary = Arc::new(Metered::new(Arc::new(retry), label, metrics.clone()));
    Arc::new(Fallback::open(primary, folder.join("overlay"), metrics).unwrap())
}

/// Runs the short suite with the bucket there, by two workers that share an overlay.
async fn there(bucket: Arc<dyn Backend>, label: telemetry::BackendLabel, profile: Profile, name: &'static str) {
    let folder = scratch();
    let worker = || stack(&bucket, label, folder.path());
    let (one, other) = (worker(), worker());
    let tally = Tally::new(name);
    let stacks = (Arc::clone(&one) as Arc<dyn Backend>, other as Arc<dyn Backend>);
    backend::short_suite(&stacks.0, &stacks.1, profile, &tally).await;
    tally.equal(one.pending().await.unwrap().entries, 0);
    tally.close();
}

/// An object whose bytes lie in a file.
fn file(content: &[u8]) -> Object {
    let mut source = tempfile::tempfile().unwrap();
    source.write_all(content).unwrap();
    let payload = Payload::file(Arc::new(source), 0, content.len() as u64);
    Object { payload, ..object(content.to_vec()) }
}

/// Values of every form are put, and one is removed, while the bucket is away; then they are sent.
async fn away(proxy: &Site, bucket: Arc<dyn Backend>, label: telemetry::BackendLabel, name: &'static str) {
    let folder = scratch();
    let fallback = stack(&bucket, label, folder.path());
    let tally = Tally::new(name);
    let gone = key("gone");
    let present = fallback.put(&gone, &object("before"), &PutOptions::default()).await.unwrap();
    tally.equal(rest(present), Rest::Bucket);

    proxy.tell("down", Value::Null).await;
    let large = noise(9 << 20, 9);
    let values = [("empty", object("")), ("in memory", object(large.clone())), ("in a file", file(&large))];
    for (name, value) in &values {
        let stored = fallback.put(&key(name), value, &PutOptions::default()).await.unwrap();
        tally.equal(rest(&stored), Rest::Overlay);
        tally.equal(Some(all(&stored)), fallback.stat(&key(name)).await.unwrap().map(|found| all(&found)));
    }
    tally.equal(rest(fallback.delete(&gone, &DeleteOptions::default()).await.unwrap()), Rest::Overlay);
    tally.equal(fallback.pending().await.unwrap().entries, 4);

    proxy.tell("up", Value::Null).await;
    // The breaker looks again when that is due.
    until(async || match fallback.sync(&()).await {
        Ok(sent) => {
            tally.equal(sent, report(3, 1, 0, 0));
            true
        }
        Err(error) => {
            assert!(error.is_transient(), "{error}");
            false
        }
    })
    .await;
    tally.equal(fallback.pending().await.unwrap().entries, 0);
    tally.equal(bucket.stat(&gone).await.unwrap().is_none(), true);
    for (name, value) in values {
        let found = bucket.get(&key(name), GetOptions::default()).await.unwrap().unwrap();
        tally.equal(text(&found.attributes), text(&value.attributes));
        tally.equal(bytes(found).await == bytes(value).await, true);
    }
    tally.close();
}

/// A bucket of the store that speaks S3, reached by a proxy.
fn s3_behind(proxy: &Site, bucket: &dev_s3::Bucket) -> Arc<dyn Backend> {
    let options = S3Options { endpoint: Some(proxy.url.clone()), ..bucket.options() };
    Arc::new(S3::open(options).unwrap())
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn fallback_over_metered_over_retry_over_gcs() {
    let site = Site::start();
    let bucket = gcs::site::open(site.options()).await;
    there(bucket, telemetry::BackendLabel::Gcs, BUCKET, "fallback over metered over retry over gcs").await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn fallback_over_metered_over_retry_over_s3() {
    let bucket = dev_s3::Bucket::make().await;
    let name = "fallback over metered over retry over s3 (SeaweedFS)";
    there(Arc::new(bucket.open()), telemetry::BackendLabel::S3, SEAWEEDFS, name).await;
    bucket.remove().await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn gcs_gone_and_back() {
    let site = Site::start();
    let bucket = gcs::site::open(site.options()).await;
    away(&site, bucket, telemetry::BackendLabel::Gcs, "fallback over gcs, gone and back").await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn s3_gone_and_back() {
    let (proxy, bucket) = (Site::before(&dev_s3::store().url, &["--enforce", "s3"]), dev_s3::Bucket::make().await);
    let behind = s3_behind(&proxy, &bucket);
    away(&proxy, behind, telemetry::BackendLabel::S3, "fallback over s3 (SeaweedFS), gone and back").await;
    bucket.remove().await;
}
