//! Buckets of Google Cloud Storage, by an emulator behind the proxy that keeps the real service's rules.

mod site;

use std::sync::Arc;

use filestorage::storage::{Backend, Engine, Gcs, Place};

use self::site::{Site, open};
use crate::backend::{self, Profile};
use crate::engine;
use crate::support::Tally;

/// A bucket over the wire, whose uploads are refused only once they are under way.
const BUCKET: Profile =
    Profile { conditional_delete: true, condition_before_fence: false, remote: true, ..Profile::NEAR };

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
    engine::suite(&Engine::new(open(site.options()).await, Place::Local), BUCKET, &tally).await;
    tally.close();
}
