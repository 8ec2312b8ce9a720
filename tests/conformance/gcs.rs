//! Buckets of Google Cloud Storage, by an emulator behind the proxy that keeps the real service's rules.

mod access;
mod faults;
pub(crate) mod large;
mod objects;
mod sessions;
pub(crate) mod site;
mod throttle_waiting;

use filestorage::provider::BackendKind;
use filestorage::storage::{Backend, Engine, Gcs, GcsOptions, Page, Spool};
use std::sync::Arc;

use self::site::{Site, open};
use self::throttle_waiting::ThrottleWaiting;
use crate::backend::{self, Profile};
use crate::engine;
use crate::forwarding::Forwarding;
use crate::support::Tally;

/// A bucket over the wire, whose uploads are refused only once they are under way.
pub(crate) const BUCKET: Profile =
    Profile { conditional_delete: true, condition_before_guard: false, remote: true, ..Profile::NEAR };

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn bucket_by_two_instances() {
    let site = Site::start();
    let options = site.options();
    let (one, other) = (open(options.clone()).await, open(options).await);
    let tally = Tally::new("gcs");
    backend::suite(&one, &other, BUCKET, &tally).await;
    tally.close();
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn bucket_whose_every_upload_is_a_session() {
    let site = Site::start();
    let gcs = Gcs::open(site.options()).await.unwrap().with_resumable_from(1);
    let bucket: Arc<dyn Backend> = Arc::new(gcs);
    let tally = Tally::new("gcs, every upload resumable");
    backend::suite(&bucket, &bucket, BUCKET, &tally).await;
    tally.close();
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn engine_over_bucket() {
    let site = Site::start();
    let tally = Tally::new("engine over gcs");
    engine::suite(&Engine::new(open(site.options()).await, BackendKind::Local), BUCKET, &tally).await;
    tally.close();
}

/// With the credentials of this machine; the bucket must be empty and is so again at the end.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn real_bucket() {
    let Ok(bucket) = std::env::var("FILESTORAGE_TEST_BUCKET") else {
        println!("skipped: gcs::real_bucket - FILESTORAGE_TEST_BUCKET names no bucket");
        return;
    };
    let options = GcsOptions {
        bucket,
        project: None,
        location: "US".to_owned(),
        credentials: None,
        // Where there is no real one, its stand-in shows that the suite would run.
        endpoint: std::env::var("FILESTORAGE_TEST_BUCKET_SERVER").ok(),
        proxy: None,
        timeout: std::time::Duration::from_secs(30),
        spool: Spool::new(std::env::temp_dir()),
    };
    let real: Arc<dyn Backend> = Forwarding::over(Arc::new(Gcs::open(options).await.unwrap()), ThrottleWaiting);
    let present = real.list(&Page { limit: Some(1), ..Page::default() }).await.unwrap();
    assert!(present.entries.is_empty() && !present.more, "the bucket is not empty; name one of the tests' own");
    let tally = Tally::new("gcs, a real bucket");
    backend::suite(&real, &real, BUCKET, &tally).await;
    tally.close();
    let tally = Tally::new("engine over gcs, a real bucket");
    engine::suite(&Engine::new(real, BackendKind::Local), BUCKET, &tally).await;
    tally.close();
}
