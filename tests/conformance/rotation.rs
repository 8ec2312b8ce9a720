//! Rotation of encryption keys over every place: the data key is wrapped again, and nothing else changes.

use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicU32, Ordering};
use std::time::Duration;

use filestorage::storage::{
    Backend, Condition, DeleteOptions, Encoded, ErrorKind, GetOptions, Key, KeyId, Keyring, Local, Memory, PutOptions,
    Rotation,
};
use futures_util::future::join_all;
use jiff::{SignedDuration, Timestamp};

use crate::dev_s3::Bucket as S3Bucket;
use crate::encrypted_suites::{GZIP, NEW, OLD, decrypting, encoded, layer};
use crate::fallback::{open, pending, site};
use crate::fallback_sync::report;
use crate::gcs::site::Site;
use crate::retried;
use crate::support::{Rest, Tally, all, bytes, expired, key, noise, object, rest, scratch};
use crate::unreliable_bucket::{Ask, Bucket, Fate};

const THIRD: &str = "AwMDAwMDAwMDAwMDAwMDAwMDAwMDAwMDAwMDAwMDAwM=";

fn id(keys: &str) -> KeyId {
    Keyring::parse(keys).unwrap().ids().next().unwrap()
}

/// A layer whose first key is the new one.
fn rotator(inner: &Arc<dyn Backend>) -> Encoded {
    encoded(Arc::clone(inner), &format!("{NEW},{OLD}"), None)
}

async fn key_id(inner: &dyn Backend, key: &Key) -> KeyId {
    inner.stat(key).await.unwrap().unwrap().encryption.unwrap().key_id
}

async fn read(backend: &dyn Backend, key: &Key) -> Vec<u8> {
    bytes(backend.get(key, GetOptions::default()).await.unwrap().unwrap()).await.to_vec()
}

fn exactly(generation: &str) -> PutOptions {
    PutOptions { condition: Condition::Generation(generation.to_owned()), ..PutOptions::default() }
}

/// Values of many sizes, compressed and not, one of which expires later.
async fn every_value_stays_as_it_is(inner: &Arc<dyn Backend>, tally: &Tally) {
    let (rotator, both) = (rotator(inner), decrypting(Arc::clone(inner), Some(&format!("{NEW},{OLD}"))));
    for (number, size) in [0, 1, 3_000, 65_536, 70_000, 1 << 20, (9 << 20) + 1].into_iter().enumerate() {
        for compression in [None, GZIP] {
            let it = key(&format!("rotated/{number}/{}", compression.is_some()));
            let mut value = object(noise(size, 7).iter().map(|byte| byte & 0x8f).collect::<Vec<u8>>());
            value.attributes.expires_at = (number == 2).then(|| Timestamp::now() + SignedDuration::from_hours(1));
            layer(Arc::clone(inner), OLD, compression).put(&it, &value, &PutOptions::default()).await.unwrap();
            let (before, kept) = (both.stat(&it).await.unwrap().unwrap(), read(&**inner, &it).await);
            let sealed = inner.stat(&it).await.unwrap().unwrap();

            tally.equal(rotator.rotate(&it, true).await.unwrap(), Rotation::Rotated);
            tally.equal(key_id(&**inner, &it).await, id(OLD));
            tally.equal(rotator.rotate(&it, false).await.unwrap(), Rotation::Rotated);
            tally.equal(key_id(&**inner, &it).await, id(NEW));
            tally.equal(rotator.rotate(&it, false).await.unwrap(), Rotation::Current);

            let only = decrypting(Arc::clone(inner), Some(NEW));
            tally.equal(all(&only.stat(&it).await.unwrap().unwrap()), all(&before));
            assert!(read(&*only, &it).await == *bytes(value.clone()).await, "{size} bytes");
            assert!(read(&**inner, &it).await == kept, "the encrypted bytes stay");
            let now = inner.stat(&it).await.unwrap().unwrap();
            tally.equal((now.generation, now.stored_at), (sealed.generation, sealed.stored_at));
            // A writer who has seen the value before may replace it.
            rotator.put(&it, &object("next"), &exactly(&before.generation)).await.unwrap();
            assert!(rotator.put(&it, &object("next"), &exactly(&before.generation)).await.is_err());
            only.delete(&it, &DeleteOptions::default()).await.unwrap();
        }
    }
}

/// What is not to be rotated stays as it is.
async fn other_objects_are_left_alone(inner: &Arc<dyn Backend>, tally: &Tally) {
    let (rotator, it) = (rotator(inner), key("other"));
    tally.equal(rotator.rotate(&it, false).await.unwrap(), Rotation::Gone);
    inner.put(&it, &object("plain"), &PutOptions::default()).await.unwrap();
    let before = all(&inner.stat(&it).await.unwrap().unwrap());
    tally.equal(rotator.rotate(&it, false).await.unwrap(), Rotation::NotEncrypted);
    tally.equal(all(&inner.stat(&it).await.unwrap().unwrap()), before);
    layer(Arc::clone(inner), THIRD, None).put(&it, &object("third"), &PutOptions::default()).await.unwrap();
    let before = all(&inner.stat(&it).await.unwrap().unwrap());
    tally.equal(rotator.rotate(&it, false).await.unwrap(), Rotation::UnknownKey(id(THIRD)));
    tally.equal(all(&inner.stat(&it).await.unwrap().unwrap()), before);
    // What has expired is still there.
    layer(Arc::clone(inner), OLD, None).put(&it, &expired("past"), &PutOptions::default()).await.unwrap();
    tally.equal(rotator.rotate(&it, false).await.unwrap(), Rotation::Rotated);
    inner.delete(&it, &DeleteOptions::default()).await.unwrap();
}

/// Stores values on one key, conditional and not, as workers do that know the new key and such that do not yet.
async fn write(inner: Arc<dyn Backend>, it: Key, rounds: usize) -> Option<String> {
    let writers = [OLD.to_owned(), format!("{NEW},{OLD}")].map(|keys| layer(Arc::clone(&inner), &keys, None));
    // A worker that does not know the new key cannot read what was rotated; it can replace it.
    let mut last = None;
    for round in 0..rounds {
        let writer = &writers[round % 2];
        let text = format!("{it} {round} {}", "x".repeat(round * 997 % 80_000));
        match round % 5 {
            4 => {
                writer.delete(&it, &DeleteOptions::default()).await.unwrap();
                last = None;
                continue;
            }
            1 | 3 if last.is_some() => {
                let seen = writers[1].stat(&it).await.unwrap().unwrap();
                writer.put(&it, &object(text.clone()), &exactly(&seen.generation)).await.unwrap();
            }
            _ => drop(writer.put(&it, &object(text.clone()), &PutOptions::default()).await.unwrap()),
        }
        last = Some(text);
    }
    last
}

async fn writers_win(inner: &Arc<dyn Backend>, rounds: usize, tally: &Tally) {
    let keys: Vec<Key> = (0..4).map(|n| key(&format!("busy/{n}"))).collect();
    let (rotator, is_over, rotated) = (rotator(inner), AtomicBool::new(false), AtomicU32::new(0));
    let rotating = async {
        while !is_over.load(Ordering::Relaxed) {
            for outcome in join_all(keys.iter().map(|key| rotator.rotate(key, false))).await {
                rotated.fetch_add(u32::from(outcome.unwrap() == Rotation::Rotated), Ordering::Relaxed);
            }
            tokio::task::yield_now().await;
        }
    };
    let writing = async {
        // Few rounds may pass before a rotation has met a value under the old key that is not replaced at once.
        for _ in 0..50 {
            let tasks = keys.iter().map(|key| tokio::spawn(write(Arc::clone(inner), key.clone(), rounds)));
            let last = join_all(tasks).await;
            if rotated.load(Ordering::Relaxed) > 0 {
                is_over.store(true, Ordering::Relaxed);
                return last;
            }
        }
        panic!("the rotation had nothing to do");
    };
    let ((), last) = tokio::join!(rotating, writing);
    let only = decrypting(Arc::clone(inner), Some(NEW));
    for (key, last) in keys.iter().zip(last) {
        rotator.rotate(key, false).await.unwrap();
        let found = match only.get(key, GetOptions::default()).await.unwrap() {
            Some(found) => Some(String::from_utf8(bytes(found).await.to_vec()).unwrap()),
            None => None,
        };
        tally.equal(found, last.unwrap());
        only.delete(key, &DeleteOptions::default()).await.unwrap();
    }
}

async fn suite(inner: Arc<dyn Backend>, rounds: usize, name: &'static str) {
    let tally = Tally::new(name);
    every_value_stays_as_it_is(&inner, &tally).await;
    other_objects_are_left_alone(&inner, &tally).await;
    writers_win(&inner, rounds, &tally).await;
    tally.close();
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn rotation_over_memory() {
    suite(Arc::new(Memory::new()), 200, "rotation over memory").await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn rotation_over_local() {
    let root = scratch();
    suite(Arc::new(Local::open(root.path().join("objects")).unwrap()), 200, "rotation over local").await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn rotation_over_gcs() {
    let site = Site::start();
    suite(crate::gcs::site::open(site.options()).await, 40, "rotation over gcs").await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn rotation_over_s3() {
    let bucket = S3Bucket::make().await;
    suite(Arc::new(bucket.open()), 40, "rotation over s3 (SeaweedFS)").await;
    bucket.remove().await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn rotation_over_a_fallback() {
    let (_bucket, fallback, _folder) = site();
    suite(fallback, 100, "rotation over fallback, the bucket there").await;
}

#[tokio::test]
async fn rotated_pending_entries_are_sent_under_the_new_key() {
    let (bucket, fallback, _folder) = site();
    let inner = Arc::clone(&fallback) as Arc<dyn Backend>;
    bucket.leave();
    let (it, large) = (key("it"), key("large"));
    let old = layer(Arc::clone(&inner), OLD, None);
    for (key, size) in [(&it, 10), (&large, 300_000)] {
        let stored = old.put(key, &object(vec![b'x'; size]), &PutOptions::default()).await.unwrap();
        assert_eq!(rest(stored), Rest::Overlay);
    }
    old.put(&key("past"), &expired("past"), &PutOptions::default()).await.unwrap();
    let before = decrypting(Arc::clone(&inner), Some(OLD)).stat(&large).await.unwrap().unwrap();
    for key in [&it, &large, &key("past")] {
        assert_eq!(rotator(&inner).rotate(key, false).await.unwrap(), Rotation::Rotated);
        assert_eq!(rotator(&inner).rotate(key, false).await.unwrap(), Rotation::Current);
    }
    assert_eq!(pending(&fallback).await, 3);
    let only = decrypting(Arc::clone(&inner), Some(NEW));
    assert_eq!(all(&only.stat(&large).await.unwrap().unwrap()), all(&before));
    assert_eq!(read(&*only, &large).await, vec![b'x'; 300_000]);
    bucket.come_back();
    assert_eq!(fallback.sync(&()).await.unwrap(), report(3, 0, 0, 0));
    let sent = decrypting(Arc::clone(&bucket.inner), Some(NEW));
    assert_eq!(read(&*sent, &large).await, vec![b'x'; 300_000]);
    assert_eq!(sent.stat(&large).await.unwrap().unwrap().generation, before.generation);
}

/// A pass that has read an entry sends it as it was; what is told to be rotated is rotated all the same.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn entries_that_are_being_sent_are_rotated_afterwards() {
    for millis in [0, 1, 5, 20] {
        let (bucket, fallback, _folder) = site();
        let inner = Arc::clone(&fallback) as Arc<dyn Backend>;
        let keys: Vec<Key> = (0..30).map(|n| key(&format!("k/{n}"))).collect();
        bucket.leave();
        for key in &keys {
            let mut value = object("value");
            value.attributes.stored_at = Timestamp::now();
            layer(Arc::clone(&inner), OLD, None).put(key, &value, &PutOptions::default()).await.unwrap();
        }
        bucket.come_back();
        bucket.weather(|request| match request.ask {
            Ask::Put => Fate::Slow(Duration::from_millis(10)),
            _ => Fate::Served,
        });
        let rotator = rotator(&inner);
        let rotating = async {
            tokio::time::sleep(Duration::from_millis(millis)).await;
            join_all(keys.iter().map(|key| rotator.rotate(key, false))).await
        };
        let (sent, rotated) = tokio::join!(fallback.sync(&()), rotating);
        let sent = sent.unwrap();
        assert_eq!((sent.conflicts, sent.failed), (0, 0), "{sent:?}");
        for (key, rotated) in keys.iter().zip(rotated) {
            assert_eq!(rotated.unwrap(), Rotation::Rotated);
            assert_eq!(key_id(&*inner, key).await, id(NEW), "{key}, {millis} ms");
        }
        fallback.sync(&()).await.unwrap();
        let only = decrypting(Arc::clone(&bucket.inner), Some(NEW));
        assert_eq!(read(&*only, &keys[29]).await, b"value");
    }
}

/// The generation token does not tell whether a rotation was carried out whose answer was lost.
#[tokio::test]
async fn a_rotation_without_an_answer_is_looked_at() {
    let bucket = Bucket::new();
    let (inner, it) = (retried(Arc::clone(&bucket) as Arc<dyn Backend>), key("it"));
    layer(Arc::clone(&inner), OLD, None).put(&it, &object("value"), &PutOptions::default()).await.unwrap();
    bucket.weather(|request| match request.ask {
        Ask::Copy => Fate::Refused(ErrorKind::Unavailable),
        _ => Fate::Served,
    });
    assert_eq!(rotator(&inner).rotate(&it, false).await.unwrap_err().kind, ErrorKind::Unavailable);
    assert_eq!(key_id(&*inner, &it).await, id(OLD));
    bucket.weather(|request| match request.ask {
        Ask::Copy => Fate::ReplyLost,
        _ => Fate::Served,
    });
    let rotated = rotator(&inner).rotate(&it, false).await.unwrap();
    assert!(matches!(rotated, Rotation::Rotated | Rotation::Current), "{rotated:?}");
    assert_eq!(key_id(&*inner, &it).await, id(NEW));
}

/// As a bucket does: the object that was copied onto itself has arrived now.
async fn received(bucket: &dyn Backend, key: &Key, at: Timestamp) {
    let mut found = bucket.get(key, GetOptions::default()).await.unwrap().unwrap();
    found.attributes.info.received_at = Some(at);
    bucket.put(key, &found, &PutOptions::default()).await.unwrap();
}

/// An entry that waits replaces an older object, and gives way to a newer one, also where that was rotated meanwhile.
#[tokio::test]
async fn a_rotated_object_is_not_changed_by_someone_else() {
    for (seconds, is_newer) in [(-30, false), (30, true)] {
        let ((bucket, fallback, _folder), elsewhere) = (site(), scratch());
        let it = key("it");
        let other = open(&bucket, elsewhere.path()) as Arc<dyn Backend>;
        layer(Arc::clone(&other), OLD, None).put(&it, &object("theirs"), &PutOptions::default()).await.unwrap();
        received(&*bucket.inner, &it, Timestamp::now() + SignedDuration::from_secs(seconds)).await;
        bucket.leave();
        let mut ours = object("ours");
        ours.attributes.stored_at = Timestamp::now();
        layer(Arc::clone(&fallback) as _, OLD, None).put(&it, &ours, &PutOptions::default()).await.unwrap();
        bucket.come_back();

        // The other machine rotates, twice, a while later.
        let later = Timestamp::now() + SignedDuration::from_secs(60);
        for keys in [format!("{NEW},{OLD}"), format!("{THIRD},{NEW},{OLD}")] {
            let rotated = encoded(Arc::clone(&other), &keys, None).rotate(&it, false).await;
            assert_eq!(rotated.unwrap(), Rotation::Rotated);
            received(&*bucket.inner, &it, later).await;
        }
        let sent = fallback.sync(&()).await.unwrap();
        assert_eq!((sent.conflicts == 1, sent.sent == 1), (is_newer, !is_newer), "{seconds} s: {sent:?}");
        let wanted = if is_newer { "theirs" } else { "ours" };
        let all = decrypting(Arc::clone(&bucket.inner), Some(&format!("{THIRD},{NEW},{OLD}")));
        assert_eq!(read(&*all, &it).await, wanted.as_bytes(), "{seconds} s");
    }
}
