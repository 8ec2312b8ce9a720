//! One suite for every backend and every stack of them, and what only the local backend can be asked.
//!
//! Each stack prints one closing line with the number of its cases (`cargo test --test conformance -- --nocapture`).

#![allow(clippy::unwrap_used, missing_docs)]

mod backend;
mod bucket;
mod engine;
mod fallback;
mod fallback_conflict;
mod fallback_engine;
mod fallback_foreign;
mod fallback_kill;
mod fallback_list;
mod fallback_model;
mod fallback_sync;
mod interloper;
mod local;
mod support;

use std::sync::Arc;

use backend::Profile;
use filestorage::storage::{Backend, Engine, Local, Memory, Place};
use support::{Tally, scratch};

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
    let one: Arc<dyn Backend> = Arc::new(Local::open(root.path().join("a/b/objects")).unwrap());
    let other: Arc<dyn Backend> = Arc::new(Local::open(root.path().join("a/b/objects")).unwrap());
    let tally = Tally::new("local, two instances on one root");
    backend::suite(&one, &other, Profile::NEAR, &tally).await;
    tally.close();
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn engine_over_memory() {
    let tally = Tally::new("engine over memory");
    engine::suite(&Engine::new(Arc::new(Memory::new()), Place::Local), &tally).await;
    tally.close();
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn engine_over_local() {
    let root = scratch();
    let tally = Tally::new("engine over local");
    engine::suite(&Engine::new(Arc::new(Local::open(root.path()).unwrap()), Place::Local), &tally).await;
    tally.close();
}
