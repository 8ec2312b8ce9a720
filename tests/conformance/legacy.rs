//! Every suite over the layers of old files, and what only they can be asked together with an overlay.

use std::fs;
use std::path::Path;
use std::sync::Arc;

use filestorage::provider::BackendKind;
use filestorage::storage::{
    Backend, CommitGuard, Deferral, DeleteOptions, DeleteRequest, Encoded, Engine, ErrorKind, Fallback, GetOptions,
    LegacyFiles, LegacyValues, Local, Memory, OwnEntries, PutOptions, Redelivered, Spool, StoreOptions, Value,
};
use filestorage::telemetry::Metrics;
use jiff::Timestamp;

use crate::backend::{self, Profile};
use crate::engine;
use crate::support::{Rest, Tally, key, object, rest, scratch};
use crate::unreliable_bucket::{Bucket, Fate};

const OWN: &[&str] = &["objects", "overlay"];

/// A local store, behind it a root that has to be looked through and holds no key.
fn local(root: &Path) -> Arc<dyn Backend> {
    fs::create_dir_all(root.join("old/and/empty")).unwrap();
    fs::write(root.join("old/orphan.metadata"), "{}").unwrap();
    values(LegacyFiles::new(
        Arc::new(Local::open(root.join("objects")).unwrap()),
        root,
        OwnEntries::new(OWN, &[]),
        Spool::new(std::env::temp_dir()),
    ))
}

fn values(files: LegacyFiles) -> Arc<dyn Backend> {
    let spool = || Spool::new(env!("CARGO_TARGET_TMPDIR"));
    Arc::new(LegacyValues::new(Arc::new(Encoded::new(Arc::new(files), spool())), spool()).and_objects())
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn legacy_layers_over_local_by_two_instances_on_one_root() {
    let root = scratch();
    let tally = Tally::new("legacy values over encoded over legacy files over local, two instances on one root");
    backend::suite(&local(root.path()), &local(root.path()), Profile::NEAR, &tally).await;
    tally.close();
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn engine_over_legacy_layers_over_local() {
    let root = scratch();
    let tally = Tally::new("engine over legacy values over encoded over legacy files over local");
    engine::suite(&Engine::new(local(root.path()), BackendKind::Local), Profile::NEAR, &tally).await;
    tally.close();
}

/// What a worker has over a bucket, in a folder with old files.
fn over(bucket: &Arc<Bucket>, root: &Path) -> (Engine, Arc<Fallback>) {
    let fallback = Fallback::open(Arc::clone(bucket) as Arc<dyn Backend>, root.join("overlay"), Metrics::new());
    let fallback = Arc::new(fallback.unwrap());
    let deferral = Arc::clone(&fallback) as Arc<dyn Deferral>;
    let files = LegacyFiles::new(
        Arc::clone(&fallback) as Arc<dyn Backend>,
        root,
        OwnEntries::new(OWN, &[]),
        Spool::new(std::env::temp_dir()),
    )
    .with_deferral(deferral);
    let engine = Engine::new(values(files.clone()), BackendKind::Gcs)
        .with_deferral(Arc::new(files))
        .with_fallback(Arc::clone(&fallback));
    (engine, fallback)
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_bucket_that_is_away_makes_no_old_value_the_answer() {
    let (bucket, folder) = (Bucket::new(), scratch());
    let root = folder.path();
    for name in ["read", "stored", "deleted", "deferred store", "deferred delete"] {
        fs::write(root.join(name), "old").unwrap();
    }
    let (engine, fallback) = over(&bucket, root);
    let read = async |name: &str| engine.retrieve(&key(name), GetOptions::default()).await;
    let old = Value::Text("old".to_owned());
    assert_eq!(read("read").await.unwrap().unwrap().value, old);

    bucket.weather(|_| Fate::Refused(ErrorKind::Unavailable));
    assert_eq!(read("read").await.unwrap_err().kind, ErrorKind::Unavailable, "the bucket may have a newer one");
    let new = || Value::Text("new".to_owned());
    let again = Some(Redelivered { started_at: Some(Timestamp::now()) });
    engine.store(&key("stored"), new(), StoreOptions::default()).await.unwrap();
    engine.delete(&key("deleted"), DeleteRequest::default()).await.unwrap();
    let options = StoreOptions { redelivered: again, operation_id: Some("one".to_owned()), ..StoreOptions::default() };
    engine.store(&key("deferred store"), new(), options).await.unwrap();
    let request = DeleteRequest { redelivered: again, ..DeleteRequest::default() };
    assert!(engine.delete(&key("deferred delete"), request).await.unwrap(), "it waits in the overlay");
    assert_eq!(fallback.pending().await.unwrap().entries, 4);
    for (name, wanted) in
        [("stored", Some(new())), ("deleted", None), ("deferred store", Some(new())), ("deferred delete", None)]
    {
        assert_eq!(read(name).await.unwrap().map(|read| read.value), wanted, "{name}");
        assert!(!root.join(name).exists(), "{name}");
    }

    bucket.weather(|_| Fate::Served);
    fallback.sync(&()).await.unwrap();
    assert_eq!(fallback.pending().await.unwrap().entries, 0);
    for name in ["deleted", "deferred delete"] {
        assert_eq!(read(name).await.unwrap().map(|read| read.value), None, "{name}");
    }
    assert_eq!(read("read").await.unwrap().unwrap().value, old);
}

#[tokio::test]
async fn an_abandoned_delete_of_the_overlay_leaves_the_file() {
    let folder = scratch();
    fs::write(folder.path().join("k"), "old").unwrap();
    let fallback = Fallback::open(Arc::new(Memory::new()), folder.path().join("overlay"), Metrics::new()).unwrap();
    let fallback = Arc::new(fallback);
    let deferral = Arc::clone(&fallback) as Arc<dyn Deferral>;
    let files = LegacyFiles::new(fallback, folder.path(), OwnEntries::new(OWN, &[]), Spool::new(std::env::temp_dir()))
        .with_deferral(deferral);
    let guard = CommitGuard::default();
    assert!(guard.abandon());
    let error = files.defer_delete(&key("k"), Timestamp::now(), &guard).await.unwrap_err();
    assert_eq!(error.kind, ErrorKind::Abandoned);
    assert!(folder.path().join("k").exists());
    let stored = files.put(&key("k"), &object("new"), &PutOptions::default()).await.unwrap();
    assert_eq!(rest(&stored), Rest::Bucket);
    assert!(!files.is_pending(&key("k")).await.unwrap() && !folder.path().join("k").exists());
    assert!(files.delete(&key("k"), &DeleteOptions::default()).await.unwrap().found);
}
