//! What becomes of what waits: sent once, in order, and never over somebody else's change.

use std::fs;
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Arc, Mutex};
use std::time::Duration;

use filestorage::storage::{
    Backend, CommitGuard, Condition, Deferral, DeleteOptions, Error, ErrorKind, Fallback, GetOptions, Key, Page,
    PutOptions, SyncProgress, SyncReport,
};
use filestorage::telemetry::{Metrics, SyncOutcome};
use jiff::{SignedDuration, Timestamp};
use tokio::sync::Semaphore;
use tokio::time::timeout;

use crate::fallback::{kind, open, put, read, site, when};
use crate::support::{Rest, bytes, expired, key, noise, object, rest};
use crate::unreliable_bucket::{Ask, Bucket, Fate};

/// Longest wait for what must come by itself.
const PATIENCE: Duration = Duration::from_secs(60);

/// What a pass has done, of which nothing remains.
pub(crate) fn report(sent: u64, deleted: u64, already_there: u64, conflicts: u64) -> SyncReport {
    SyncReport { sent, deleted, already_there, conflicts, failed: 0, remaining: 0 }
}

pub(crate) async fn sync(fallback: &Fallback) -> SyncReport {
    fallback.sync(&()).await.unwrap()
}

pub(crate) async fn until(what: impl AsyncFn() -> bool) {
    let wait = async {
        while !what().await {
            tokio::time::sleep(Duration::from_millis(5)).await;
        }
    };
    timeout(PATIENCE, wait).await.unwrap();
}

pub(crate) fn ago(seconds: i64) -> Timestamp {
    Timestamp::now() - SignedDuration::from_secs(seconds)
}

#[tokio::test]
async fn a_write_whose_answer_was_lost_is_not_sent_twice() {
    for fate in [Fate::ReplyLost, Fate::Late] {
        let (bucket, fallback, _folder) = site();
        let (it, gone) = (key("it"), key("gone"));
        put(&*fallback, &gone, "old").await;
        let lost = fate.clone();
        bucket.weather(move |_| lost.clone());
        let (landing, generation) = put(&*fallback, &it, "value").await;
        assert_eq!(landing, Rest::Overlay);
        assert_eq!(rest(fallback.delete(&gone, &DeleteOptions::default()).await.unwrap()), Rest::Overlay);
        bucket.come_back();
        bucket.catch_up().await;
        assert_eq!(read(&*bucket.inner, &it).await.as_deref(), Some("value"), "{fate:?}");
        bucket.requests();
        assert_eq!(sync(&fallback).await, report(0, 1, 1, 0));
        assert!(bucket.writes().is_empty(), "{fate:?}");
        assert_eq!(bucket.inner.stat(&it).await.unwrap().unwrap().generation, generation);
        assert_eq!(bucket.inner.stat(&gone).await.unwrap().map(|it| it.generation), None);
    }
}

/// What a client gave up on is carried out between the sync's look and its write.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_late_write_between_look_and_deed_is_told_for_what_it_is() {
    for newer in [false, true] {
        let (bucket, fallback, _folder) = site();
        let it = key("it");
        bucket.weather(|_| Fate::Late);
        let (_, mut last) = put(&*fallback, &it, "late").await;
        if newer {
            last = put(&*fallback, &it, "newer").await.1;
        }
        let gate = Arc::new(Semaphore::new(0));
        let held = Arc::clone(&gate);
        bucket.weather(move |request| match request.ask {
            Ask::Put => Fate::Held(Arc::clone(&held)),
            _ => Fate::Served,
        });
        let syncing = tokio::spawn({
            let fallback = Arc::clone(&fallback);
            async move { sync(&fallback).await }
        });
        bucket.requests();
        until(async || bucket.writing() == 1).await;
        bucket.catch_up().await;
        gate.add_permits(2);
        let wanted = if newer { report(1, 0, 0, 0) } else { report(0, 0, 1, 0) };
        assert_eq!(syncing.await.unwrap(), wanted);
        assert_eq!(bucket.inner.stat(&it).await.unwrap().unwrap().generation, last);
    }
}

/// A bucket that enforces no condition on a write takes it after one more look.
#[tokio::test]
async fn where_no_condition_is_enforced_a_second_look_must_do() {
    let (bucket, fallback, _folder) = site();
    let (new, old, changed) = (key("new"), key("old"), key("changed"));
    put(&*fallback, &old, "1").await;
    put(&*fallback, &changed, "1").await;
    bucket.leave();
    for it in [&new, &old, &changed] {
        put(&*fallback, it, "2").await;
    }
    bucket.weather(|_| Fate::Unenforced);
    assert_eq!(kind(bucket.put(&new, &object("3"), &when(Condition::Absent)).await), ErrorKind::Invalid);
    assert_eq!(sync(&fallback).await, report(3, 0, 0, 0));
    // Somebody's change between the two looks is seen.
    bucket.leave();
    put(&*fallback, &changed, "3").await;
    let (first, looks) = (read(&*bucket.inner, &changed).await, Arc::new(AtomicU64::new(0)));
    assert_eq!(first.as_deref(), Some("2"));
    let gate = Arc::new(Semaphore::new(0));
    let (held, counting) = (Arc::clone(&gate), Arc::clone(&looks));
    bucket.weather(move |request| match request.ask {
        Ask::Stat if counting.fetch_add(1, Ordering::SeqCst) == 1 => Fate::Held(Arc::clone(&held)),
        _ => Fate::Unenforced,
    });
    let syncing = tokio::spawn({
        let fallback = Arc::clone(&fallback);
        async move { sync(&fallback).await }
    });
    until(async || looks.load(Ordering::SeqCst) == 2).await;
    bucket.foreign(&changed, "theirs", Some(bucket.now() + SignedDuration::from_secs(9))).await;
    gate.add_permits(1);
    assert_eq!(syncing.await.unwrap(), report(0, 0, 0, 1));
    assert_eq!(read(&*bucket.inner, &changed).await.as_deref(), Some("theirs"));
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_newer_write_or_delete_during_the_upload_wins() {
    for deed in ["store", "delete", "foreign"] {
        for reply in [false, true] {
            let (bucket, fallback, _folder) = site();
            let it = key("it");
            bucket.leave();
            put(&*fallback, &it, "1").await;
            let gate = Arc::new(Semaphore::new(0));
            let held = Arc::clone(&gate);
            bucket.weather(move |request| match request.ask {
                Ask::Put if reply => Fate::ReplyHeld(Arc::clone(&held)),
                Ask::Put => Fate::Held(Arc::clone(&held)),
                _ => Fate::Served,
            });
            let syncing = tokio::spawn({
                let fallback = Arc::clone(&fallback);
                async move { sync(&fallback).await }
            });
            until(async || bucket.writing() == 1).await;
            // It counts as being written before it is.
            until(async || read(&*bucket.inner, &it).await.is_some() == reply).await;
            match deed {
                "store" => assert_eq!(put(&*fallback, &it, "2").await.0, Rest::Overlay),
                "delete" => assert!(fallback.delete(&it, &DeleteOptions::default()).await.unwrap().found),
                _ => drop(bucket.foreign(&it, "theirs", Some(bucket.now() + SignedDuration::from_secs(9))).await),
            }
            gate.add_permits(10);
            let first = syncing.await.unwrap();
            let rest = sync(&fallback).await;
            let case = format!("{deed}, reply: {reply}: {first:?}, {rest:?}");
            let wanted = match deed {
                "store" => Some("2"),
                "delete" => None,
                _ => Some("theirs"),
            };
            assert_eq!(read(&*bucket.inner, &it).await.as_deref(), wanted, "{case}");
            assert_eq!(read(&*fallback, &it).await.as_deref(), wanted, "{case}");
            let conflicts = u64::from(deed == "foreign" && !reply);
            assert_eq!((first.conflicts, rest.remaining), (conflicts, 0), "{case}");
            assert_eq!(fallback.conflicts().await.unwrap().len() as u64, conflicts, "{case}");
        }
    }
}

#[tokio::test]
async fn a_sync_that_died_before_the_removal_is_completed() {
    let (bucket, fallback, folder) = site();
    let root = folder.path().join("overlay");
    let (it, gone) = (key("it"), key("gone"));
    put(&*fallback, &gone, "old").await;
    bucket.leave();
    put(&*fallback, &it, "1").await;
    fallback.delete(&gone, &DeleteOptions::default()).await.unwrap();
    let left: Vec<_> = ["it.obj", "gone.obj"].map(|name| (root.join(name), fs::read(root.join(name)).unwrap())).into();
    bucket.come_back();
    assert_eq!(sync(&fallback).await, report(1, 1, 0, 0));
    for (path, file) in left {
        fs::write(path, file).unwrap();
    }
    drop(fallback);
    let again = open(&bucket, &root);
    bucket.requests();
    assert_eq!(sync(&again).await, report(0, 1, 1, 0));
    assert!(bucket.writes().is_empty());
    assert_eq!((read(&*again, &it).await.as_deref(), read(&*again, &gone).await), (Some("1"), None));
}

/// Dropped at any point, with requests of its own still on their way, a pass leaves nothing that the next cannot clean up.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_pass_can_be_dropped_at_any_point() {
    let (bucket, fallback, _folder) = site();
    bucket.leave();
    let keys: Vec<Key> = (0..20).map(|number| key(&format!("it/{number}"))).collect();
    for key in &keys {
        put(&*fallback, key, "value").await;
    }
    // Each pass is allowed so many requests and dropped at the next.
    for allowed in 0..60 {
        let count = Arc::new(AtomicU64::new(0));
        let (counting, never) = (Arc::clone(&count), Arc::new(Semaphore::new(0)));
        bucket.weather(move |_| match counting.fetch_add(1, Ordering::SeqCst) {
            number if number < allowed / 4 => Fate::Served,
            _ if allowed % 2 == 0 => Fate::Held(Arc::clone(&never)),
            _ => Fate::ReplyHeld(Arc::clone(&never)),
        });
        let pass = tokio::spawn({
            let fallback = Arc::clone(&fallback);
            async move { fallback.sync(&()).await }
        });
        until(async || pass.is_finished() || count.load(Ordering::SeqCst) > allowed / 4).await;
        pass.abort();
        drop(pass.await);
        for key in &keys {
            bucket.come_back();
            assert_eq!(read(&*fallback, key).await.as_deref(), Some("value"));
        }
    }
    bucket.come_back();
    let report = sync(&fallback).await;
    assert_eq!((report.failed, report.conflicts, report.remaining), (0, 0, 0), "{report:?}");
    assert_eq!(bucket.inner.list(&Page::default()).await.unwrap().entries.len(), keys.len());
}

#[tokio::test]
async fn what_has_expired_is_carried_over_like_anything_else() {
    let (bucket, fallback, _folder) = site();
    let (replaced, passed, removed) = (key("replaced"), key("passed"), key("removed"));
    let past = |payload| {
        let mut object = expired(payload);
        object.attributes.stored_at = ago(3_600);
        object
    };
    fallback.put(&replaced, &past("old"), &PutOptions::default()).await.unwrap();
    put(&*fallback, &passed, "live").await;
    fallback.put(&removed, &past("old"), &PutOptions::default()).await.unwrap();
    bucket.leave();
    put(&*fallback, &replaced, "new").await;
    let mut late = expired("newer and past its time");
    late.attributes.stored_at = Timestamp::now();
    fallback.put(&passed, &late, &PutOptions::default()).await.unwrap();
    fallback.delete(&removed, &DeleteOptions::default()).await.unwrap();
    bucket.come_back();
    assert_eq!(sync(&fallback).await, report(2, 1, 0, 0));
    assert_eq!(read(&*bucket.inner, &replaced).await.as_deref(), Some("new"));
    let passed = bucket.inner.stat(&passed).await.unwrap().unwrap();
    assert!(passed.is_expired(Timestamp::now()), "the older live one does not come back");
    assert!(bucket.inner.stat(&removed).await.unwrap().is_none());
}

/// Counts what it is told.
#[derive(Default)]
struct Watcher {
    total: Mutex<Option<(u64, u64)>>,
    steps: Mutex<Vec<(SyncOutcome, u64)>>,
}

impl SyncProgress for Watcher {
    fn total(&self, entries: u64, bytes: u64) {
        assert_eq!(self.total.lock().unwrap().replace((entries, bytes)), None);
    }

    fn step(&self, outcome: SyncOutcome, bytes: u64) {
        self.steps.lock().unwrap().push((outcome, bytes));
    }

    fn failed(&self, key: &Key, error: Error) {
        panic!("{key}: {error}");
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn thousands_are_sent_oldest_first_and_eight_at_a_time() {
    let (bucket, fallback, _folder) = site();
    bucket.leave();
    let begin = Timestamp::now();
    // Neither in the order of keys nor of writing.
    let mut wanted = Vec::new();
    for number in 0..2_500_u64 {
        let key = key(&format!("many/{}/{number}", number % 7));
        let age = number.wrapping_mul(2_654_435_761) % 100_000;
        let stored_at = begin - SignedDuration::from_micros(age as i64);
        if number % 10 == 9 {
            let removal = fallback.defer_delete(&key, stored_at, &CommitGuard::default()).await.unwrap();
            assert_eq!(rest(removal), Rest::Overlay);
        } else {
            let mut object = object("12345");
            object.attributes.stored_at = stored_at;
            fallback.defer_put(&key, &object, &CommitGuard::default()).await.unwrap();
        }
        wanted.push((stored_at, key));
    }
    wanted.sort_unstable();
    let waits = fallback.pending().await.unwrap();
    assert_eq!((waits.entries, waits.bytes, waits.oldest), (2_500, 2_250 * 5, Some(wanted[0].0)));
    bucket.come_back();
    let gate = Arc::new(Semaphore::new(0));
    let held = Arc::clone(&gate);
    bucket.weather(move |request| match request.ask {
        Ask::Put => Fate::Held(Arc::clone(&held)),
        _ => Fate::Served,
    });
    bucket.requests();
    let watcher = Arc::new(Watcher::default());
    let syncing = tokio::spawn({
        let (fallback, watcher) = (Arc::clone(&fallback), Arc::clone(&watcher));
        async move { fallback.sync(&*watcher).await.unwrap() }
    });
    until(async || bucket.writing() == 8).await;
    let first = bucket.requests();
    gate.add_permits(10_000);
    assert_eq!(syncing.await.unwrap(), report(2_250, 250, 0, 0));
    assert_eq!(bucket.most_writing(), 8);
    let mut asked =
        first.into_iter().chain(bucket.requests()).filter(|it| it.ask == Ask::Stat).map(|it| it.key.unwrap());
    assert!(wanted.iter().all(|(_, key)| asked.next().as_ref() == Some(key)) && asked.next().is_none());
    assert_eq!(bucket.inner.list(&Page::default()).await.unwrap().entries.len(), 2_250);
    assert_eq!(*watcher.total.lock().unwrap(), Some((2_500, 2_250 * 5)));
    let steps = watcher.steps.lock().unwrap();
    let count = |outcome, bytes| steps.iter().filter(|step| **step == (outcome, bytes)).count();
    assert_eq!((count(SyncOutcome::Sent, 5), count(SyncOutcome::Deleted, 0)), (2_250, 250));
}

#[tokio::test]
async fn one_that_is_refused_stays_and_the_others_go_on() {
    let (bucket, folder) = (Bucket::new(), crate::support::scratch());
    let metrics = Metrics::new();
    let primary = Arc::clone(&bucket) as Arc<dyn Backend>;
    let fallback = Fallback::open(primary, folder.path().to_owned(), metrics.clone()).unwrap();
    bucket.leave();
    for name in ["a", "busy", "m", "invalid", "z"] {
        put(&fallback, &key(name), "x").await;
    }
    bucket.weather(|request| match (request.ask, request.key.as_ref().map(Key::as_str)) {
        (Ask::Put, Some("busy")) => Fate::Refused(ErrorKind::Throttled),
        (Ask::Put, Some("invalid")) => Fate::Refused(ErrorKind::Invalid),
        _ => Fate::Served,
    });
    let outcome = sync(&fallback).await;
    assert_eq!(outcome, SyncReport { failed: 2, remaining: 2, ..report(3, 0, 0, 0) });
    assert_eq!(read(&fallback, &key("busy")).await.as_deref(), Some("x"), "it is still to be read");
    bucket.come_back();
    bucket.foreign(&key("busy"), "theirs", Some(bucket.now() + SignedDuration::from_secs(5))).await;
    assert_eq!(sync(&fallback).await, report(1, 0, 0, 1));
    let shown = metrics.encode();
    for line in [
        r#"filestorage_synced_entries_total{outcome="sent"} 4"#,
        r#"filestorage_synced_entries_total{outcome="failed"} 2"#,
        r#"filestorage_synced_entries_total{outcome="conflict"} 1"#,
        "filestorage_pending_sync_entries 0.0",
        "filestorage_pending_sync_oldest_age_seconds 0.0",
    ] {
        assert!(shown.lines().any(|shown| shown == line), "{line} in\n{shown}");
    }
}

#[tokio::test]
async fn an_outage_ends_the_sync_but_one_refusal_does_not() {
    let (bucket, fallback, _folder) = site();
    bucket.leave();
    assert_eq!(fallback.sync(&()).await.unwrap_err().kind, ErrorKind::Unavailable, "also with nothing to send");
    for number in 0..100 {
        put(&*fallback, &key(&format!("{number:03}")), "x").await;
    }
    bucket.requests();
    assert_eq!(fallback.sync(&()).await.unwrap_err().kind, ErrorKind::Unavailable);
    assert_eq!(bucket.requests().iter().map(|it| it.ask).collect::<Vec<_>>(), [Ask::Probe]);
    let count = AtomicU64::new(0);
    bucket.weather(move |request| match request.ask {
        Ask::Put if count.fetch_add(1, Ordering::SeqCst) >= 30 => Fate::Refused(ErrorKind::Unavailable),
        _ => Fate::Served,
    });
    assert_eq!(fallback.sync(&()).await.unwrap_err().kind, ErrorKind::Unavailable);
    assert!(bucket.writes().len() < 30 + 2 * 8, "no more than what was under way is asked for");
    assert_eq!(fallback.pending().await.unwrap().entries, 70);
    // Of a folder that this identity may not write to, for example.
    let count = AtomicU64::new(0);
    bucket.weather(move |request| match request.ask {
        Ask::Put if count.fetch_add(1, Ordering::SeqCst) < 30 => Fate::Refused(ErrorKind::Denied),
        _ => Fate::Served,
    });
    assert_eq!(sync(&fallback).await, SyncReport { sent: 40, failed: 30, remaining: 30, ..SyncReport::default() });
    bucket.come_back();
    assert_eq!(sync(&fallback).await, report(30, 0, 0, 0));
}

#[tokio::test]
async fn one_pass_at_a_time_on_a_folder() {
    let (bucket, fallback, folder) = site();
    let root = folder.path().join("overlay");
    bucket.leave();
    put(&*fallback, &key("it"), "x").await;
    bucket.come_back();
    let turn = fs::File::create(root.join("#locks/sync")).unwrap();
    turn.lock().unwrap();
    // A pass that was asked for waits, also behind itself, and the background leaves it alone.
    bucket.requests();
    let moment = Duration::from_millis(300);
    assert!(timeout(moment, fallback.sync(&())).await.is_err());
    assert!(timeout(moment, open(&bucket, &root).sync_loop()).await.is_err());
    assert!(bucket.requests().is_empty() && fallback.is_pending(&key("it")).await.unwrap());
    let waiting = tokio::spawn({
        let fallback = Arc::clone(&fallback);
        async move { sync(&fallback).await }
    });
    drop(turn);
    assert_eq!(timeout(PATIENCE, waiting).await.unwrap().unwrap(), report(1, 0, 0, 0));
}

/// The large streams through: what a pass holds in memory is a part of it.
#[tokio::test]
async fn a_large_entry_is_sent_as_a_file() {
    let (bucket, fallback, _folder) = site();
    bucket.leave();
    let it = key("large");
    fallback.put(&it, &object(noise(3 << 20, 5)), &PutOptions::default()).await.unwrap();
    let found = fallback.get(&it, GetOptions { spooled: true, ..GetOptions::default() }).await.unwrap().unwrap();
    assert!(found.payload.as_memory().is_none());
    bucket.come_back();
    assert_eq!(sync(&fallback).await, report(1, 0, 0, 0));
    let sent = bucket.inner.get(&it, GetOptions::default()).await.unwrap().unwrap();
    assert!(bytes(sent).await == noise(3 << 20, 5));
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn the_background_sends_without_being_asked() {
    let (bucket, fallback, folder) = site();
    let sibling = open(&bucket, &folder.path().join("overlay"));
    let tending = tokio::spawn({
        let fallback = Arc::clone(&fallback);
        async move { fallback.sync_loop().await }
    });
    // What lands, and what the bucket got back to by itself.
    bucket.leave();
    put(&*fallback, &key("a"), "1").await;
    bucket.come_back();
    until(async || fallback.pending().await.unwrap().entries == 0).await;
    assert_eq!(read(&*bucket.inner, &key("a")).await.as_deref(), Some("1"));
    // Away for longer; a command that reaches the bucket says that it is back.
    bucket.leave();
    put(&*fallback, &key("b"), "2").await;
    bucket.requests();
    until(async || bucket.requests().iter().filter(|it| it.ask == Ask::Probe).count() > 0).await;
    bucket.come_back();
    assert_eq!(read(&*fallback, &key("a")).await.as_deref(), Some("1"));
    until(async || fallback.pending().await.unwrap().entries == 0).await;
    // What another worker left, and everything after the task was dropped and begun anew.
    tending.abort();
    drop(tending.await);
    bucket.leave();
    sibling.delete(&key("a"), &DeleteOptions::default()).await.unwrap();
    put(&*sibling, &key("c"), "3").await;
    bucket.come_back();
    let tending = tokio::spawn({
        let fallback = Arc::clone(&fallback);
        async move { fallback.sync_loop().await }
    });
    until(async || sibling.pending().await.unwrap().entries == 0).await;
    assert_eq!(read(&*bucket.inner, &key("a")).await, None);
    assert_eq!(read(&*bucket.inner, &key("c")).await.as_deref(), Some("3"));
    tending.abort();
}

#[tokio::test]
async fn a_key_that_others_keep_changing_is_left_for_later() {
    let (bucket, fallback, _folder) = site();
    bucket.leave();
    put(&*fallback, &key("it"), "x").await;
    put(&*fallback, &key("other"), "x").await;
    bucket.weather(|request| match (request.ask, &request.condition, request.key.as_ref().map(Key::as_str)) {
        (Ask::Put, Condition::Absent, Some("it")) => Fate::Refused(ErrorKind::Precondition),
        _ => Fate::Served,
    });
    bucket.requests();
    assert_eq!(sync(&fallback).await, SyncReport { failed: 1, remaining: 1, ..report(1, 0, 0, 0) });
    assert_eq!(bucket.writes().iter().filter(|it| it.key == Some(key("it"))).count(), 5);
    bucket.come_back();
    assert_eq!(sync(&fallback).await, report(1, 0, 0, 0));
}
