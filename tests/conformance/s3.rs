//! The bucket backend over SeaweedFS, and what only it can be asked.

use std::sync::Arc;

use filestorage::storage::{Backend, Engine, Key, Place};

use crate::backend::{self, Profile};
use crate::dev_s3::Bucket;
use crate::engine;
use crate::support::Tally;

/// What SeaweedFS does differently; keys as on a file system, since it keeps its names in folders.
const SEAWEEDFS: Profile = Profile { condition_before_fence: false, remote: true, unfit, ..Profile::NEAR };

fn unfit(key: &Key) -> Option<&'static str> {
    if key.as_str().split('/').any(|segment| segment.len() > 255) {
        return Some("SeaweedFS takes segments of 255 bytes at most");
    }
    key.as_str().contains('\\').then_some("SeaweedFS takes a backslash for a slash")
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn s3_backend_by_two_instances_on_one_bucket() {
    let bucket = Bucket::make().await;
    let (one, other): (Arc<dyn Backend>, Arc<dyn Backend>) = (Arc::new(bucket.open()), Arc::new(bucket.open()));
    let tally = Tally::new("s3 (SeaweedFS), two instances on one bucket");
    backend::suite(&one, &other, SEAWEEDFS, &tally).await;
    tally.close();
    bucket.remove().await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn engine_over_s3() {
    let bucket = Bucket::make().await;
    let tally = Tally::new("engine over s3 (SeaweedFS)");
    engine::suite(&Engine::new(Arc::new(bucket.open()), Place::S3), SEAWEEDFS, &tally).await;
    tally.close();
    bucket.remove().await;
}
