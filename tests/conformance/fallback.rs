//! What a bucket with a fallback answers while the bucket is there, away, or refuses.

use filestorage::provider::BackendKind;
use filestorage::storage::{
    Attributes, Backend, ByteRange, CommitGuard, Condition, Deferral, DeleteOptions, Engine, ErrorKind, Fallback,
    GetOptions, Grant, Key, Local, Method, Page, Pending, PutOptions, Removal, Result,
};
use filestorage::telemetry::Metrics;
use jiff::Timestamp;
use std::fs;
use std::path::Path;
use std::sync::Arc;
use std::time::Duration;
use tempfile::TempDir;

use crate::backend::{self, Profile};
use crate::engine;
use crate::support::{Rest, Small, Tally, all, bytes, expired, key, noise, object, rest, scratch, text};
use crate::unreliable_bucket::{Ask, Bucket, Fate};

/// A worker of its own on the folder.
pub(crate) fn open(bucket: &Arc<Bucket>, folder: &Path) -> Arc<Fallback> {
    let primary = Arc::clone(bucket) as Arc<dyn Backend>;
    Arc::new(Fallback::open(primary, folder.to_owned(), Metrics::new()).unwrap())
}

pub(crate) fn site() -> (Arc<Bucket>, Arc<Fallback>, TempDir) {
    let (bucket, folder) = (Bucket::new(), scratch());
    let fallback = open(&bucket, &folder.path().join("overlay"));
    (bucket, fallback, folder)
}

pub(crate) fn when(condition: Condition) -> PutOptions {
    PutOptions { condition, ..PutOptions::default() }
}

pub(crate) fn exactly(generation: &str) -> PutOptions {
    when(Condition::Generation(generation.to_owned()))
}

pub(crate) fn only(generation: &str) -> DeleteOptions {
    DeleteOptions { generation: Some(generation.to_owned()), ..DeleteOptions::default() }
}

pub(crate) fn kind<T: std::fmt::Debug>(result: Result<T>) -> ErrorKind {
    result.unwrap_err().kind
}

/// Reads what is under the key as text.
pub(crate) async fn read(backend: &dyn Backend, key: &Key) -> Option<String> {
    let found = backend.get(key, GetOptions::default()).await.unwrap()?;
    Some(String::from_utf8(bytes(found).await.to_vec()).unwrap())
}

/// Puts, and returns the generation.
pub(crate) async fn put(backend: &dyn Backend, key: &Key, payload: &'static str) -> (Rest, String) {
    let mut object = object(payload);
    object.attributes.stored_at = Timestamp::now();
    let generation = object.attributes.generation.clone();
    (rest(backend.put(key, &object, &PutOptions::default()).await.unwrap()), generation)
}

pub(crate) async fn pending(fallback: &Fallback) -> u64 {
    fallback.pending().await.unwrap().entries
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn backend_suite_with_the_bucket_there() {
    let (bucket, one, folder) = site();
    let other = open(&bucket, &folder.path().join("overlay"));
    let tally = Tally::new("fallback, two workers on one overlay, the bucket there");
    let (one, other) = (one as Arc<dyn Backend>, other as Arc<dyn Backend>);
    backend::suite(&one, &other, Profile { condition_before_guard: false, ..Profile::NEAR }, &tally).await;
    tally.close();
}

/// Every unconditional write lands in the overlay, which is sent all the while; everything else reaches the bucket.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn backend_suite_with_an_overlay_that_drains() {
    let (bucket, one, folder) = site();
    let other = open(&bucket, &folder.path().join("overlay"));
    bucket.weather(|request| match (request.ask, &request.condition) {
        (Ask::Put, Condition::Always) => Fate::Refused(ErrorKind::Unavailable),
        _ => Fate::Served,
    });
    let draining = tokio::spawn({
        let (one, other) = (Arc::clone(&one), Arc::clone(&other));
        async move {
            let mut sent = 0;
            loop {
                for fallback in [&one, &other] {
                    let report = fallback.sync(&()).await.unwrap();
                    assert_eq!((report.failed, report.conflicts, report.already_there), (0, 0, 0), "{report:?}");
                    sent += report.sent + report.deleted;
                }
                if Arc::strong_count(&one) == 2 {
                    return sent;
                }
            }
        }
    });
    let tally = Tally::new("fallback, two workers on one overlay, drained all the while");
    // Fewer combinations: what matters here is what happens at once.
    let profile = Profile { condition_before_guard: false, remote: true, ..Profile::NEAR };
    let (first, second) = (Arc::clone(&one) as Arc<dyn Backend>, Arc::clone(&other) as Arc<dyn Backend>);
    backend::suite(&first, &second, profile, &tally).await;
    drop((first, second, other));
    let sent = draining.await.unwrap();
    assert!(sent > 1_000, "{sent} entries were sent");
    one.sync(&()).await.unwrap();
    assert_eq!(pending(&one).await, 0);
    assert_eq!(bucket.inner.list(&Page::default()).await.unwrap().entries.len(), 0);
    tally.close();
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn engine_suite_with_the_bucket_there() {
    let (_bucket, fallback, _folder) = site();
    let tally = Tally::new("engine over fallback, the bucket there");
    engine::suite(&Engine::new(fallback, BackendKind::Local), Profile::NEAR, &tally).await;
    tally.close();
}

#[tokio::test]
async fn writes_during_an_outage_are_kept_locally_and_read_back() {
    let (bucket, fallback, folder) = site();
    let (it, there, deleted) = (key("it"), key("there"), key("deleted"));
    assert_eq!(put(&*fallback, &there, "kept").await.0, Rest::Bucket);
    assert_eq!(put(&*fallback, &deleted, "old").await.0, Rest::Bucket);
    bucket.leave();
    let wanted = object("new");
    assert_eq!(rest(fallback.put(&it, &wanted, &PutOptions::default()).await.unwrap()), Rest::Overlay);
    let removal = fallback.delete(&deleted, &DeleteOptions::default()).await.unwrap();
    assert_eq!(removal, Removal { found: false, pending: true });
    let sibling = open(&bucket, &folder.path().join("overlay"));
    for worker in [&fallback, &sibling] {
        let found = worker.get(&it, GetOptions::default()).await.unwrap().unwrap();
        assert!(found.attributes.info.pending && worker.stat(&it).await.unwrap().unwrap().info.pending);
        assert_eq!(text(&found.attributes), text(&wanted.attributes));
        assert_eq!(&*bytes(found).await, b"new");
        let range = Some(ByteRange { offset: 1, length: Some(1) });
        let part = worker.get(&it, GetOptions { range, ..GetOptions::default() }).await.unwrap().unwrap();
        assert_eq!(&*bytes(part).await, b"e");
        assert_eq!((read(&**worker, &deleted).await, worker.stat(&deleted).await.unwrap().is_none()), (None, true));
        for unknown in [&there, &key("never")] {
            assert_eq!(kind(worker.get(unknown, GetOptions::default()).await), ErrorKind::Unavailable);
            assert_eq!(kind(worker.stat(unknown).await), ErrorKind::Unavailable);
            assert_eq!(kind(worker.flush(unknown).await), ErrorKind::Unavailable);
        }
        worker.flush(&it).await.unwrap();
        worker.flush(&deleted).await.unwrap();
        assert_eq!(kind(worker.list(&Page::default()).await), ErrorKind::Unavailable);
        assert_eq!((worker.is_pending(&it).await.unwrap(), pending(worker).await), (true, 2));
        assert!(worker.probe().await.unwrap().skew.is_none());
    }
    // An entry that was there takes writes and deletes without asking the bucket.
    bucket.requests();
    assert_eq!(fallback.delete(&it, &DeleteOptions::default()).await.unwrap(), Removal { found: true, pending: true });
    assert_eq!(fallback.delete(&it, &DeleteOptions::default()).await.unwrap(), Removal { found: false, pending: true });
    assert_eq!(put(&*fallback, &deleted, "back").await.0, Rest::Overlay);
    assert!(bucket.requests().is_empty());
    bucket.come_back();
    assert_eq!(read(&*sibling, &it).await, None);
    assert_eq!(put(&*sibling, &it, "again").await.0, Rest::Overlay, "until it was sent");
    let report = sibling.sync(&()).await.unwrap();
    assert_eq!((report.sent, report.remaining), (2, 0), "{report:?}");
    for (key, value) in [(&it, "again"), (&there, "kept"), (&deleted, "back")] {
        assert_eq!(read(&*bucket.inner, key).await.as_deref(), Some(value));
        assert!(!fallback.stat(key).await.unwrap().unwrap().info.pending);
    }
    assert_eq!(put(&*fallback, &it, "direct").await.0, Rest::Bucket);
}

/// However a write lands, what is answered is what is found then.
#[tokio::test]
async fn what_lands_is_answered_as_it_is_found() {
    let (bucket, fallback, folder) = site();
    let (it, that, damaged) = (key("it"), key("that"), key("damaged"));
    put(&*fallback, &it, "in the bucket").await;
    bucket.leave();
    let found = async |key: &Key, stored: Attributes| {
        let found = fallback.stat(key).await.unwrap().unwrap();
        assert_eq!(all(&stored), all(&found));
        assert!(stored.info == found.info && stored.info.pending && found.writer_id.is_some(), "{stored:?}");
    };
    // Where nothing waits, where another waits, and on its condition.
    let second = object("2");
    for (object, options) in [
        (object("1"), PutOptions::default()),
        (second.clone(), PutOptions::default()),
        (object("3"), exactly(&second.attributes.generation)),
        (expired("4"), PutOptions::default()),
        (object("5"), when(Condition::Absent)),
    ] {
        found(&it, fallback.put(&it, &object, &options).await.unwrap()).await;
    }
    // In the place of a delete that waits, and of what cannot be read.
    fallback.delete(&it, &DeleteOptions::default()).await.unwrap();
    found(&it, fallback.put(&it, &object("6"), &when(Condition::Absent)).await.unwrap()).await;
    let path = folder.path().join("overlay/damaged.obj");
    fs::write(&path, "not ours").unwrap();
    found(&damaged, fallback.put(&damaged, &object("7"), &PutOptions::default()).await.unwrap()).await;
    fs::write(&path, "not ours").unwrap();
    found(&damaged, fallback.defer_put(&damaged, &object("8"), &CommitGuard::default()).await.unwrap()).await;
    found(&that, fallback.defer_put(&that, &object("9"), &CommitGuard::default()).await.unwrap()).await;
    // The one that waits is newer than any that came again.
    let later = fallback.defer_put(&that, &object("10"), &CommitGuard::default()).await;
    assert_eq!(kind(later), ErrorKind::Precondition);
}

#[tokio::test]
async fn only_a_bucket_that_cannot_be_reached_is_stood_in_for() {
    let (bucket, fallback, _folder) = site();
    let it = key("it");
    for refusal in [ErrorKind::Denied, ErrorKind::Invalid, ErrorKind::Integrity, ErrorKind::Io, ErrorKind::Abandoned] {
        bucket.weather(move |_| Fate::Refused(refusal));
        assert_eq!(kind(fallback.put(&it, &object("x"), &PutOptions::default()).await), refusal);
        assert_eq!(kind(fallback.delete(&it, &DeleteOptions::default()).await), refusal);
        assert_eq!(kind(fallback.get(&it, GetOptions::default()).await), refusal);
        assert_eq!(kind(fallback.probe().await), refusal);
        assert_eq!(pending(&fallback).await, 0, "{refusal:?}");
    }
    bucket.weather(|_| Fate::Refused(ErrorKind::Throttled));
    assert_eq!(put(&*fallback, &it, "x").await.0, Rest::Overlay);
    assert_eq!(rest(fallback.delete(&key("other"), &DeleteOptions::default()).await.unwrap()), Rest::Overlay);
    assert_eq!(kind(fallback.get(&key("third"), GetOptions::default()).await), ErrorKind::Throttled);
    // What the bucket could never keep is refused at once, not when it is to be sent.
    bucket.leave();
    let mut impossible = object("x");
    impossible.attributes.operation_id = Some("x".repeat(2_000));
    assert_eq!(kind(fallback.put(&key("no"), &impossible, &PutOptions::default()).await), ErrorKind::Invalid);
    assert_eq!(kind(fallback.put(&it, &impossible, &PutOptions::default()).await), ErrorKind::Invalid);
    assert_eq!(pending(&fallback).await, 2);
}

#[tokio::test]
async fn a_condition_is_decided_where_the_newest_state_is() {
    let (bucket, fallback, _folder) = site();
    let it = key("it");
    let (_, first) = put(&*fallback, &it, "first").await;
    bucket.leave();
    for condition in [Condition::Absent, Condition::Generation(first.clone())] {
        let error = fallback.put(&it, &object("x"), &when(condition)).await.unwrap_err();
        assert!(error.kind == ErrorKind::Unavailable && error.message().contains("only the bucket"), "{error}");
        assert_eq!(error.key.as_ref(), Some(&it));
    }
    let error = fallback.delete(&it, &only(&first)).await.unwrap_err();
    assert!(error.kind == ErrorKind::Unavailable && error.message().contains("only the bucket"), "{error}");
    assert_eq!(pending(&fallback).await, 0);

    let (_, second) = put(&*fallback, &it, "second").await;
    assert_eq!(kind(fallback.put(&it, &object("x"), &when(Condition::Absent)).await), ErrorKind::Precondition);
    assert_eq!(kind(fallback.put(&it, &object("x"), &exactly(&first)).await), ErrorKind::Precondition);
    assert_eq!(kind(fallback.delete(&it, &only(&first)).await), ErrorKind::Precondition);
    let third = object("third");
    let generation = third.attributes.generation.clone();
    assert_eq!(rest(fallback.put(&it, &third, &exactly(&second)).await.unwrap()), Rest::Overlay);
    assert!(fallback.delete(&it, &only(&generation)).await.unwrap().found);
    // A tombstone is nothing, whatever the bucket still has.
    assert_eq!(kind(fallback.put(&it, &object("x"), &exactly(&first)).await), ErrorKind::Precondition);
    assert_eq!(fallback.delete(&it, &only(&first)).await.unwrap(), Removal { found: false, pending: true });
    assert_eq!(rest(fallback.put(&it, &object("4"), &when(Condition::Absent)).await.unwrap()), Rest::Overlay);
    // So is what has expired, except that a clean-up can name it.
    let past = expired("5");
    let generation = past.attributes.generation.clone();
    fallback.put(&it, &past, &PutOptions::default()).await.unwrap();
    assert_eq!(kind(fallback.put(&it, &object("x"), &exactly(&generation)).await), ErrorKind::Precondition);
    assert_eq!(rest(fallback.put(&it, &object("6"), &when(Condition::Absent)).await.unwrap()), Rest::Overlay);
    assert_eq!(kind(fallback.delete(&it, &only(&generation)).await), ErrorKind::Precondition);
    fallback.put(&it, &past, &PutOptions::default()).await.unwrap();
    assert!(fallback.delete(&it, &only(&generation)).await.unwrap().found);
    bucket.come_back();
    assert_eq!(read(&*bucket.inner, &it).await.as_deref(), Some("first"));
    assert_eq!(fallback.sync(&()).await.unwrap().deleted, 1);
    assert_eq!(read(&*bucket.inner, &it).await, None);
}

#[tokio::test]
async fn an_abandoned_write_or_delete_lands_nowhere() {
    let (bucket, fallback, _folder) = site();
    let (it, that) = (key("it"), key("that"));
    bucket.leave();
    put(&*fallback, &that, "kept").await;
    let abandoned = || {
        let commit_guard = CommitGuard::default();
        assert!(commit_guard.abandon());
        commit_guard
    };
    for key in [&it, &that] {
        let how = PutOptions { commit_guard: abandoned(), ..PutOptions::default() };
        assert_eq!(kind(fallback.put(key, &object("x"), &how).await), ErrorKind::Abandoned);
        let how = DeleteOptions { commit_guard: abandoned(), ..DeleteOptions::default() };
        assert_eq!(kind(fallback.delete(key, &how).await), ErrorKind::Abandoned);
    }
    assert_eq!((pending(&fallback).await, read(&*fallback, &that).await.as_deref()), (1, Some("kept")));
    fallback.delete(&that, &DeleteOptions::default()).await.unwrap();
    let how = DeleteOptions { commit_guard: abandoned(), ..only("gone") };
    assert_eq!(kind(fallback.delete(&that, &how).await), ErrorKind::Abandoned);
    // What was committed when the request left may land here when the request fails.
    bucket.weather(|_| Fate::Late);
    let commit_guard = CommitGuard::default();
    let how = PutOptions { commit_guard: commit_guard.clone(), ..PutOptions::default() };
    assert_eq!(rest(fallback.put(&it, &object("x"), &how).await.unwrap()), Rest::Overlay);
    assert!(!commit_guard.abandon());
}

#[tokio::test]
async fn a_url_is_signed_only_for_what_the_bucket_has() {
    let (bucket, fallback, _folder) = site();
    let it = key("it");
    let grant = Grant { method: Method::Get, lifetime: Duration::from_secs(60) };
    assert_eq!(fallback.sign(&it, &grant).await.unwrap(), "signed://it");
    bucket.leave();
    put(&*fallback, &it, "x").await;
    fallback.delete(&key("gone"), &DeleteOptions::default()).await.unwrap();
    bucket.come_back();
    for waiting in [&it, &key("gone")] {
        let error = fallback.sign(waiting, &grant).await.unwrap_err();
        assert!(error.kind == ErrorKind::Unavailable && error.message().contains("waits"), "{error}");
    }
    fallback.sync(&()).await.unwrap();
    assert_eq!(fallback.sign(&it, &grant).await.unwrap(), "signed://it");
}

#[tokio::test]
async fn a_damaged_entry_is_an_error_until_it_is_replaced() {
    let (bucket, fallback, folder) = site();
    let root = folder.path().join("overlay");
    bucket.leave();
    let names = ["read", "stored", "deleted", "kept"];
    for name in names {
        put(&*fallback, &key(name), "x").await;
        fs::write(root.join(format!("{name}.obj")), "not ours").unwrap();
    }
    assert_eq!(kind(fallback.get(&key("read"), GetOptions::default()).await), ErrorKind::Integrity);
    assert_eq!(kind(fallback.put(&key("stored"), &object("y"), &when(Condition::Absent)).await), ErrorKind::Integrity);
    assert_eq!(put(&*fallback, &key("stored"), "y").await.0, Rest::Overlay);
    assert_eq!(kind(fallback.delete(&key("deleted"), &only("g")).await), ErrorKind::Integrity);
    assert!(fallback.delete(&key("deleted"), &DeleteOptions::default()).await.unwrap().found);
    assert_eq!(fallback.pending().await.unwrap().entries, 4);
    bucket.come_back();
    let report = fallback.sync(&()).await.unwrap();
    assert_eq!((report.sent, report.deleted, report.failed, report.remaining), (1, 1, 2, 2), "{report:?}");
    assert_eq!(read(&*bucket.inner, &key("stored")).await.as_deref(), Some("y"));
}

#[tokio::test]
async fn a_full_overlay_is_a_full_disk() {
    let folder = scratch();
    let _small = match Small::mount(folder.path()) {
        Ok(small) => small,
        Err(why) => {
            println!("skipped: a small file system cannot be mounted here ({why})");
            return;
        }
    };
    let bucket = Bucket::new();
    let fallback = open(&bucket, &folder.path().join("overlay"));
    put(&*fallback, &key("home"), "kept").await;
    bucket.leave();
    fallback.put(&key("a"), &object(noise(200_000, 1)), &PutOptions::default()).await.unwrap();
    for name in ["a", "b", "home"] {
        let error = fallback.put(&key(name), &object(noise(600_000, 2)), &PutOptions::default()).await.unwrap_err();
        assert_eq!(error.kind, ErrorKind::NoSpace, "{error}");
    }
    let found = fallback.get(&key("a"), GetOptions::default()).await.unwrap().unwrap();
    assert!(bytes(found).await == noise(200_000, 1));
    let waits = fallback.pending().await.unwrap();
    assert_eq!((waits.entries, waits.bytes), (1, 200_000));
    // To the bucket there is room.
    bucket.come_back();
    fallback.put(&key("b"), &object(noise(600_000, 2)), &PutOptions::default()).await.unwrap();
    assert_eq!(fallback.sync(&()).await.unwrap().sent, 1);
    assert_eq!(read(&*bucket.inner, &key("home")).await.as_deref(), Some("kept"));
    assert!(
        bytes(bucket.inner.get(&key("a"), GetOptions::default()).await.unwrap().unwrap()).await == noise(200_000, 1)
    );
}

#[tokio::test]
async fn the_folder_says_what_waits_and_who_it_is() {
    let (bucket, fallback, folder) = site();
    let root = folder.path().join("overlay");
    assert_eq!(fallback.pending().await.unwrap(), Pending::default());
    put(&*fallback, &key("home"), "x").await;
    bucket.leave();
    let mut old = object("12345");
    old.attributes.stored_at = Timestamp::from_second(1_700_000_000).unwrap();
    fallback.put(&key("old"), &old, &PutOptions::default()).await.unwrap();
    put(&*fallback, &key("new"), "678").await;
    fallback.delete(&key("gone"), &DeleteOptions::default()).await.unwrap();
    let waits = Pending { entries: 3, bytes: 8, oldest: Some(Timestamp::from_second(1_700_000_000).unwrap()) };
    let primary = || Arc::clone(&bucket) as Arc<dyn Backend>;
    let metrics = Metrics::new();
    let reader = Fallback::open_existing(primary(), root.clone(), metrics.clone()).unwrap().unwrap();
    assert_eq!((fallback.pending().await.unwrap(), reader.pending().await.unwrap()), (waits, waits));
    let shown = metrics.encode();
    for line in ["filestorage_pending_sync_entries 3.0", "filestorage_pending_sync_bytes 8.0"] {
        assert!(shown.lines().any(|shown| shown == line), "{line} in\n{shown}");
    }
    let origin = |name: &str| {
        let (reader, key) = (&reader, key(name));
        async move { reader.stat(&key).await.unwrap().unwrap().writer_id.unwrap() }
    };
    bucket.come_back();
    let own = origin("home").await;
    assert_eq!((own.clone(), own.clone()), (origin("old").await, origin("new").await));
    assert_eq!(fs::read_to_string(root.join("#origin")).unwrap(), format!("{own}\n"));
    // Nothing of the folder's own is listed, and another tool can read an entry.
    fs::create_dir_all(root.join("#aside/x")).unwrap();
    let plain = Local::open_existing(root).unwrap().unwrap();
    let listing = plain.list(&Page::default()).await.unwrap();
    assert_eq!(listing.entries.iter().map(|entry| entry.key.as_str()).collect::<Vec<_>>(), ["gone", "new", "old"]);
    assert_eq!(listing.entries.iter().map(|entry| entry.tombstone).collect::<Vec<_>>(), [true, false, false]);
    assert_eq!(listing.foreign, 0);
    let missing = folder.path().join("missing");
    assert!(Fallback::open_existing(primary(), missing.clone(), Metrics::new()).unwrap().is_none());
    assert!(!missing.exists());
}

/// A sync removes the entry exactly between the look and the deed of a writer.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn an_entry_that_is_sent_between_look_and_deed_is_noticed() {
    for deed in ["store", "conditional", "expired", "delete"] {
        let (bucket, fallback, folder) = site();
        let (root, it) = (folder.path().join("overlay"), key("it"));
        bucket.leave();
        let entry = if deed == "expired" { expired("1") } else { object("1") };
        let generation = entry.attributes.generation.clone();
        fallback.put(&it, &entry, &PutOptions::default()).await.unwrap();
        bucket.come_back();
        // Every shard is held, so that the writer has looked and waits when its temporary file is there.
        let shards: Vec<_> = (0..256).map(|shard| root.join(format!("#locks/{shard:02x}"))).collect();
        let held: Vec<_> = shards.iter().map(|path| fs::File::create(path).unwrap()).collect();
        held.iter().for_each(|file| file.lock().unwrap());
        let writer = tokio::spawn({
            let (writer, it, generation) = (open(&bucket, &root), it.clone(), generation.clone());
            async move {
                match deed {
                    "store" => writer.put(&it, &object("2"), &PutOptions::default()).await.map(rest),
                    "conditional" => writer.put(&it, &object("2"), &exactly(&generation)).await.map(rest),
                    "expired" => writer.put(&it, &object("2"), &when(Condition::Absent)).await.map(rest),
                    _ => writer.delete(&it, &only(&generation)).await.map(|it| {
                        assert!(it.found);
                        rest(it)
                    }),
                }
            }
        });
        while fs::read_dir(root.join("#tmp")).unwrap().count() == 0 {
            tokio::task::yield_now().await;
        }
        // What a sync does, which would need the lock.
        let sent = fallback.get(&it, GetOptions::default()).await.unwrap().unwrap();
        bucket.put(&it, &sent, &PutOptions::default()).await.unwrap();
        fs::remove_file(root.join("it.obj")).unwrap();
        drop(held);
        assert_eq!(writer.await.unwrap().unwrap(), Rest::Bucket, "{deed}");
        let wanted = if deed == "delete" { None } else { Some("2".to_owned()) };
        assert_eq!((read(&*bucket.inner, &it).await, pending(&fallback).await), (wanted, 0), "{deed}");
    }
}
