//! Two who changed one key without knowing of each other: who is told for the later, and what becomes of the other.

use std::fs;
use std::path::Path;
use std::sync::Arc;

use filestorage::storage::{Backend, CommitGuard, Deferral, DeleteOptions, Key, Local, Page, PutOptions};
use jiff::{SignedDuration, Timestamp};
use tokio::sync::Semaphore;

use crate::fallback::{open, put, read, site};
use crate::fallback_sync::{ago, report, sync, until};
use crate::support::{Rest, key, object, rest};
use crate::unreliable_bucket::{Ask, Bucket, Fate};

/// Somebody else's write between the sync's look and its delete is not removed.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_delete_removes_only_what_it_has_looked_at() {
    for newer in [false, true] {
        let (bucket, fallback, _folder) = site();
        let it = key("it");
        put(&*fallback, &it, "old").await;
        bucket.leave();
        fallback.delete(&it, &DeleteOptions::default()).await.unwrap();
        let gate = Arc::new(Semaphore::new(0));
        let held = Arc::clone(&gate);
        bucket.weather(move |request| match request.ask {
            Ask::Delete => Fate::Held(Arc::clone(&held)),
            _ => Fate::Served,
        });
        let syncing = tokio::spawn({
            let fallback = Arc::clone(&fallback);
            async move { sync(&fallback).await }
        });
        until(async || bucket.writing() == 1).await;
        let seconds = SignedDuration::from_secs(if newer { 30 } else { -30 });
        bucket.foreign(&it, "theirs", Some(bucket.now() + seconds)).await;
        gate.add_permits(2);
        let wanted = if newer { report(0, 0, 0, 1) } else { report(0, 1, 0, 0) };
        assert_eq!(syncing.await.unwrap(), wanted);
        assert_eq!(read(&*bucket.inner, &it).await.is_some(), newer);
    }
}

/// A redelivered command that could not look finds at last that its first try had done it.
#[tokio::test]
async fn an_earlier_try_of_the_same_command_is_no_conflict() {
    let (bucket, fallback, _folder) = site();
    let it = key("it");
    let begin = ago(10);
    let attempt = |payload: &'static str, stored_at| {
        let mut object = object(payload);
        object.attributes.stored_at = stored_at;
        object
    };
    for (first, again, wanted) in [("x", "x", report(0, 0, 1, 0)), ("x", "y", report(0, 0, 0, 1))] {
        let first = attempt(first, begin + SignedDuration::from_millis(5));
        let generation = first.attributes.generation.clone();
        fallback.put(&it, &first, &PutOptions::default()).await.unwrap();
        let deferred = fallback.defer_put(&it, &attempt(again, begin), &CommitGuard::default()).await.unwrap();
        assert_eq!(rest(deferred), Rest::Overlay);
        assert_eq!(sync(&fallback).await, wanted);
        assert_eq!(bucket.inner.stat(&it).await.unwrap().unwrap().generation, generation);
    }
}

#[tokio::test]
async fn a_foreign_change_is_recognised_by_the_bucket_s_clock() {
    for hours in [-2, 0, 2] {
        for (seconds, is_newer) in [(-30, false), (30, true)] {
            for delete in [false, true] {
                let (bucket, fallback, folder) = site();
                let it = key("dir/it");
                bucket.set_skew(SignedDuration::from_hours(hours));
                bucket.leave();
                if delete {
                    fallback.delete(&it, &DeleteOptions::default()).await.unwrap();
                } else {
                    put(&*fallback, &it, "ours").await;
                }
                let received = bucket.now() + SignedDuration::from_secs(seconds);
                bucket.foreign(&it, "theirs", Some(received)).await;
                bucket.come_back();
                let report = sync(&fallback).await;
                let case = format!("{hours} h, {seconds} s, delete: {delete}: {report:?}");
                assert_eq!((report.conflicts == 1, report.remaining), (is_newer, 0), "{case}");
                let wanted = match (is_newer, delete) {
                    (true, _) => Some("theirs"),
                    (false, false) => Some("ours"),
                    (false, true) => None,
                };
                assert_eq!(read(&*bucket.inner, &it).await.as_deref(), wanted, "{case}");
                assert_eq!(read(&*fallback, &it).await.as_deref(), wanted, "{case}");
                let kept = fallback.conflicts().await.unwrap();
                assert_eq!(kept.len(), usize::from(is_newer && !delete), "{case}");
                for kept in kept {
                    loser_is_readable(&kept.path, &it).await;
                    assert_eq!((kept.key, kept.size), (it.clone(), 4));
                    assert!(kept.stored_at.is_some_and(|stored_at| stored_at <= Timestamp::now()));
                }
                let plain = Local::open_existing(folder.path().join("overlay")).unwrap().unwrap();
                assert_eq!(plain.list(&Page::default()).await.unwrap().entries.len(), 0, "{case}");
            }
        }
    }
}

/// The loser's file is an object below a root of its own.
async fn loser_is_readable(path: &Path, it: &Key) {
    assert!(path.ends_with("dir/it.obj"), "{path:?}");
    assert!(fs::read_to_string(path).unwrap().ends_with("\nours"));
    let root = path.ancestors().nth(2).unwrap();
    let plain = Local::open_existing(root).unwrap().unwrap();
    assert_eq!(read(&plain, it).await.as_deref(), Some("ours"));
    assert_eq!(root.file_name().unwrap().to_str().unwrap(), plain.stat(it).await.unwrap().unwrap().generation);
}

#[tokio::test]
async fn a_bucket_that_tells_no_time_is_taken_by_the_objects_own() {
    let (bucket, fallback, _folder) = site();
    bucket.leave();
    put(&*fallback, &key("it"), "ours").await;
    bucket.foreign(&key("it"), "theirs", None).await;
    bucket.come_back();
    // The double's objects are stamped in September 2026, long before.
    assert_eq!(sync(&fallback).await, report(1, 0, 0, 0));
    bucket.leave();
    let mut old = object("ours");
    old.attributes.stored_at = Timestamp::from_second(1_000_000_000).unwrap();
    fallback.put(&key("it"), &old, &PutOptions::default()).await.unwrap();
    bucket.foreign(&key("it"), "theirs", None).await;
    bucket.come_back();
    assert_eq!(sync(&fallback).await, report(0, 0, 0, 1));
}

/// A sibling that could reach the bucket is told by its stamps, whatever the bucket's clock says.
#[tokio::test]
async fn those_who_share_the_folder_are_told_by_their_stamps() {
    for hours in [-5, 5] {
        for (theirs, ours, conflicts) in [(20, 10, 0), (10, 20, 1)] {
            let (bucket, fallback, folder) = site();
            let sibling = open(&bucket, &folder.path().join("overlay"));
            bucket.set_skew(SignedDuration::from_hours(hours));
            let it = key("it");
            let stamped = |payload, seconds| {
                let mut object = object(payload);
                object.attributes.stored_at = ago(seconds);
                object
            };
            // The sibling sees no entry and waits for the bucket, while ours lands.
            let gate = Arc::new(Semaphore::new(0));
            let held = Arc::clone(&gate);
            bucket.weather(move |_| Fate::Held(Arc::clone(&held)));
            let writing = tokio::spawn({
                let (it, object) = (it.clone(), stamped("theirs", theirs));
                async move { sibling.put(&it, &object, &PutOptions::default()).await.unwrap() }
            });
            until(async || bucket.writing() == 1).await;
            bucket.leave();
            fallback.put(&it, &stamped("ours", ours), &PutOptions::default()).await.unwrap();
            gate.add_permits(1);
            assert_eq!(rest(writing.await.unwrap()), Rest::Bucket);
            bucket.come_back();
            assert_eq!(sync(&fallback).await, report(1 - conflicts, 0, 0, conflicts), "{hours} h");
            let wanted = if conflicts == 0 { "ours" } else { "theirs" };
            assert_eq!(read(&*bucket.inner, &it).await.as_deref(), Some(wanted));
            assert_eq!(fallback.conflicts().await.unwrap().len() as u64, conflicts);
        }
    }
}

/// Two workers with a folder each: the first to be sent stays, the other is kept.
#[tokio::test]
async fn of_two_folders_one_wins_and_the_other_is_kept() {
    for first in [0, 1] {
        let bucket = Bucket::new();
        let folders = [crate::support::scratch(), crate::support::scratch()];
        let workers = [open(&bucket, folders[0].path()), open(&bucket, folders[1].path())];
        let it = key("it");
        bucket.leave();
        put(&*workers[0], &it, "of 0").await;
        assert!(workers[1].stat(&it).await.is_err(), "pending writes of another folder are not seen");
        put(&*workers[1], &it, "of 1").await;
        bucket.come_back();
        let second = 1 - first;
        assert_eq!(sync(&workers[first]).await, report(1, 0, 0, 0));
        assert_eq!(sync(&workers[second]).await, report(0, 0, 0, 1));
        let wanted = ["of 0", "of 1"];
        for worker in &workers {
            assert_eq!(read(&**worker, &it).await.as_deref(), Some(wanted[first]));
        }
        let kept = workers[second].conflicts().await.unwrap();
        assert!(fs::read_to_string(&kept[0].path).unwrap().ends_with(wanted[second]));
    }
}
