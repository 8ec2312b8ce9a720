//! One suite for every backend and every stack of them, and what only the local backend can be asked.
//!
//! Each stack prints one closing line with the number of its cases (`cargo test --test conformance -- --nocapture`).

#![allow(clippy::unwrap_used, missing_docs)]

mod backend;
mod cached;
mod cached_freshness;
mod cached_races;
mod cached_suites;
mod concurrent_writer;
mod copies;
#[path = "../support/dev_s3.rs"]
mod dev_s3;
mod encoded_suites;
mod encrypted_suites;
mod engine;
mod fallback;
mod fallback_conflict;
mod fallback_engine;
mod fallback_foreign;
mod fallback_kill;
mod fallback_list;
mod fallback_model;
mod fallback_sync;
mod forwarding;
mod gcs;
mod housekeeping;
mod legacy;
mod local;
mod outage;
mod proof;
mod quotas;
mod random_faults;
mod retry;
mod rotation;
mod s3;
mod s3_faults;
mod scripted;
mod stack;
mod support;
mod unreliable_bucket;
mod versions;
mod wires;
mod xor;
mod xor_suites;

use std::path::Path;
use std::sync::Arc;
use std::time::Duration;

use backend::Profile;
use filestorage::provider::BackendKind;
use filestorage::storage::{Backend, Engine, Local, Memory, Metered, Retry, RetryOptions};
use filestorage::telemetry::{self, Metrics};
use support::{Tally, scratch};

/// Puts retries before a backend, as before a bucket.
fn retried(inner: Arc<dyn Backend>) -> Arc<dyn Backend> {
    let options = RetryOptions { max_retries: 3, timeout: Duration::from_secs(30) };
    Arc::new(Retry::new(inner, options, telemetry::BackendLabel::Memory, Metrics::new()))
}

/// Measures a backend.
fn metered(inner: Arc<dyn Backend>) -> Arc<dyn Backend> {
    Arc::new(Metered::new(inner, telemetry::BackendLabel::Memory, Metrics::new()))
}

fn local(root: &Path) -> Arc<dyn Backend> {
    Arc::new(Local::open(root.join("a/b/objects")).unwrap())
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn memory_backend() {
    let memory: Arc<dyn Backend> = Arc::new(Memory::new());
    let tally = Tally::new("memory");
    backend::suite(&memory, &memory, Profile::NEAR, &tally).await;
    tally.close();
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn local_backend_by_two_instances_on_one_root() {
    let root = scratch();
    let (one, other) = (local(root.path()), local(root.path()));
    let tally = Tally::new("local, two instances on one root");
    backend::suite(&one, &other, Profile::NEAR, &tally).await;
    tally.close();
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn retry_over_memory() {
    let stack = retried(Arc::new(Memory::new()));
    let tally = Tally::new("retry over memory");
    backend::suite(&stack, &stack, Profile::NEAR, &tally).await;
    tally.close();
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn metered_over_retry_over_metered_over_local() {
    let root = scratch();
    let stack = || metered(retried(metered(local(root.path()))));
    let tally = Tally::new("metered over retry over metered over local, two instances on one root");
    backend::suite(&stack(), &stack(), Profile::NEAR, &tally).await;
    tally.close();
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn engine_over_metered_over_retry_over_memory() {
    let tally = Tally::new("engine over metered over retry over memory");
    engine::suite(&Engine::new(metered(retried(Arc::new(Memory::new()))), BackendKind::Local), Profile::NEAR, &tally)
        .await;
    tally.close();
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn engine_over_memory() {
    let tally = Tally::new("engine over memory");
    engine::suite(&Engine::new(Arc::new(Memory::new()), BackendKind::Local), Profile::NEAR, &tally).await;
    tally.close();
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn engine_over_local() {
    let root = scratch();
    let tally = Tally::new("engine over local");
    engine::suite(&Engine::new(Arc::new(Local::open(root.path()).unwrap()), BackendKind::Local), Profile::NEAR, &tally)
        .await;
    tally.close();
}
