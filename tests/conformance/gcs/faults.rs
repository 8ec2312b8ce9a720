//! What goes wrong on the wire, each as the error it must become. Nothing is tried twice here: that is another layer's.

use std::fs::File;
use std::io::Write as _;
use std::sync::Arc;
use std::time::Duration;

use filestorage::storage::{
    Backend, ByteRange, Checksum, CommitGuard, Condition, DeleteOptions, Error, ErrorKind, Gcs, GcsOptions, GetOptions,
    Object, Page, Payload, PutOptions,
};
use serde_json::{Value, json};

use super::site::{Site, open};
use crate::support::{bytes, key, noise, object};

const WHOLE: GetOptions =
    GetOptions { range: None, limit: None, spooled: false, announced: false, version: None, uncached: false };

fn when(condition: Condition) -> PutOptions {
    PutOptions { condition, ..PutOptions::default() }
}

/// An object whose bytes are in a file.
fn in_file(content: &[u8]) -> Object {
    let mut file: File = tempfile::tempfile().unwrap();
    file.write_all(content).unwrap();
    let Object { mut attributes, .. } = object("");
    (attributes.size, attributes.stored_size) = (content.len() as u64, content.len() as u64);
    (attributes.checksum, attributes.stored_checksum) = (Checksum::of(content), Checksum::of(content));
    Object { attributes, payload: Payload::file(Arc::new(file), 0, content.len() as u64) }
}

/// The error of each operation while the proxy does one thing to every request.
async fn errors(site: &Site, bucket: &dyn Backend, action: Value) -> Vec<Error> {
    let it = key("it");
    site.rule(json!({}), action).await;
    let errors = vec![
        bucket.put(&it, &object("x"), &PutOptions::default()).await.unwrap_err(),
        bucket.put(&it, &object("x"), &when(Condition::Absent)).await.unwrap_err(),
        bucket.put(&it, &object("x"), &when(Condition::Generation("g".to_owned()))).await.unwrap_err(),
        bucket.get(&it, WHOLE).await.unwrap_err(),
        bucket.stat(&it).await.unwrap_err(),
        bucket.delete(&it, &DeleteOptions::default()).await.unwrap_err(),
        bucket.list(&Page::default()).await.unwrap_err(),
        bucket.probe().await.unwrap_err(),
    ];
    for error in &errors {
        let named = error.key.as_ref().is_none_or(|key| error.to_string().contains(key.as_str()));
        assert!(named && error.message().contains("; "), "{error}");
    }
    site.tell("clear", Value::Null).await;
    errors
}

#[tokio::test]
async fn answers_are_the_errors_they_mean() {
    let site = Site::start();
    let bucket = open(site.options()).await;
    bucket.put(&key("it"), &object("old"), &PutOptions::default()).await.unwrap();
    for (status, kind) in [
        (401, ErrorKind::Denied),
        (403, ErrorKind::Denied),
        (429, ErrorKind::Throttled),
        (500, ErrorKind::Unavailable),
        (503, ErrorKind::Unavailable),
        (408, ErrorKind::Unavailable),
    ] {
        let body = json!({ "error": { "message": "because of the test" } });
        let action = json!({ "status": status, "headers": { "Retry-After": "7" }, "body": body });
        for error in errors(&site, &*bucket, action).await {
            assert_eq!((error.kind, error.retry_after), (kind, Some(Duration::from_secs(7))), "{status}: {error}");
            assert!(error.message().contains("because of the test"), "{error}");
        }
    }
    for error in errors(&site, &*bucket, json!({ "reset": true })).await {
        assert_eq!(error.kind, ErrorKind::Unavailable, "{error}");
    }
    let found = bucket.get(&key("it"), WHOLE).await.unwrap().unwrap();
    assert_eq!(&*bytes(found).await, b"old", "nothing of it was written");
}

#[tokio::test]
async fn a_server_that_is_silent_is_not_waited_for() {
    let site = Site::start();
    let options = site.options();
    let patient = open(options.clone()).await;
    let bucket = Gcs::open(GcsOptions { timeout: Duration::from_millis(300), ..options }).await.unwrap();
    for error in errors(&site, &bucket, json!({ "stall": 60 })).await {
        assert_eq!(error.kind, ErrorKind::Unavailable);
        assert!(error.message().contains("0.3 s"), "{error}");
    }
    patient.put(&key("large"), &object(noise(3 << 20, 1)), &PutOptions::default()).await.unwrap();
    site.rule(json!({ "method": "GET" }), json!({ "stall": 60, "after": 2 << 20 })).await;
    let error = bucket.get(&key("large"), WHOLE).await.unwrap_err();
    assert!(error.kind == ErrorKind::Unavailable && error.message().contains("0.3 s"), "{error}");
}

#[tokio::test]
async fn nobody_there_is_unavailable_and_names_no_session() {
    let site = Site::start();
    let options = site.options();
    let bucket = open(options.clone()).await;
    site.tell("down?how=refuse", Value::Null).await;
    for error in [
        bucket.put(&key("it"), &object("x"), &PutOptions::default()).await.unwrap_err(),
        bucket.get(&key("it"), WHOLE).await.unwrap_err(),
        bucket.stat(&key("it")).await.unwrap_err(),
        bucket.probe().await.unwrap_err(),
    ] {
        assert_eq!(error.kind, ErrorKind::Unavailable);
        let why = ["refused", "reset"].iter().any(|why| error.message().contains(why));
        assert!(why && error.message().contains(&site.url), "{error}");
    }
    site.tell("up", Value::Null).await;
    bucket.put(&key("it"), &object("x"), &PutOptions::default()).await.unwrap();
    let sessions = Gcs::open(options).await.unwrap().with_resumable_from(1);
    site.rule(json!({ "method": "PUT" }), json!({ "reset": true })).await;
    let error = sessions.put(&key("it"), &object("x"), &PutOptions::default()).await.unwrap_err();
    assert_eq!(error.kind, ErrorKind::Unavailable);
    assert!(!format!("{error:?}").contains("upload_id"), "{error:?}");
}

#[tokio::test]
async fn a_broken_read_resumes_in_the_same_generation_or_fails() {
    let site = Site::start();
    let bucket = open(site.options()).await;
    let wanted = noise(3 << 20, 2);
    bucket.put(&key("it"), &object(wanted.clone()), &PutOptions::default()).await.unwrap();
    site.asked().await;
    let broken = json!({ "match": { "method": "GET" }, "action": { "truncate": 1 << 20 }, "times": 2 });
    site.tell("rules", broken).await;
    let found = bucket.get(&key("it"), WHOLE).await.unwrap().unwrap();
    assert!(bytes(found).await == wanted);
    assert_eq!(site.asked().await, "GET GET GET ");
    site.rule(json!({ "method": "GET" }), json!({ "truncate": 1000 })).await;
    let error = bucket.get(&key("it"), WHOLE).await.unwrap_err();
    assert_eq!(error.kind, ErrorKind::Unavailable, "{error}");
    site.rule(json!({ "method": "GET" }), json!({ "truncate": 10 })).await;
    assert_eq!(bucket.stat(&key("it")).await.unwrap_err().kind, ErrorKind::Unavailable);
    assert_eq!(bucket.list(&Page::default()).await.unwrap_err().kind, ErrorKind::Unavailable);
}

#[tokio::test]
async fn a_bit_flipped_on_the_way_is_never_handed_out() {
    let site = Site::start();
    let bucket = open(site.options()).await;
    for (size, at) in [(5, 3), (70_000, 0), (3 << 20, 2_000_001)] {
        let wanted = noise(size, 3);
        bucket.put(&key("it"), &object(wanted.clone()), &PutOptions::default()).await.unwrap();
        site.rule(json!({ "method": "GET" }), json!({ "flip": { "side": "response", "offset": at, "bit": 3 } })).await;
        for spooled in [false, true] {
            let part = Some(ByteRange { offset: 4, length: Some(1) });
            for range in [None, part] {
                let error = bucket.get(&key("it"), GetOptions { range, spooled, ..WHOLE }).await.unwrap_err();
                assert_eq!(error.kind, ErrorKind::Integrity, "{error}");
            }
        }
        site.tell("clear", Value::Null).await;
        assert!(bytes(bucket.get(&key("it"), WHOLE).await.unwrap().unwrap()).await == wanted);
        // The other way: the service refuses what is not what was declared.
        let other = [b"FIND ME", &*noise(size, 4)].concat();
        site.rule(json!({ "method": "POST" }), json!({ "flip": { "side": "request", "find": "FIND ME", "bit": 3 } }))
            .await;
        let error = bucket.put(&key("it"), &object(other), &PutOptions::default()).await.unwrap_err();
        assert_eq!(error.kind, ErrorKind::Integrity, "{error}");
        site.tell("clear", Value::Null).await;
        assert!(bytes(bucket.get(&key("it"), WHOLE).await.unwrap().unwrap()).await == wanted, "the old one stays");
    }
}

#[tokio::test]
async fn a_write_that_arrived_damaged_is_safe_to_repeat() {
    // A server that does not look at declared checksums, as the emulator.
    let site = Site::lenient();
    let bucket = open(site.options()).await;
    let flip = json!({ "flip": { "side": "request", "find": "FIND ME", "bit": 3 } });
    let content = || object([b"FIND ME", &*noise(5_000, 5)].concat());
    let it = key("it");
    let (first, second) = (content(), content());
    for (next, condition) in [
        (first.clone(), Condition::Absent),
        (second.clone(), Condition::Generation(first.attributes.generation.clone())),
    ] {
        site.rule(json!({ "method": "POST" }), flip.clone()).await;
        let error = bucket.put(&it, &next, &when(condition.clone())).await.unwrap_err();
        assert_eq!(error.kind, ErrorKind::Integrity, "{error}");
        site.tell("clear", Value::Null).await;
        assert_eq!(bucket.get(&it, WHOLE).await.unwrap_err().kind, ErrorKind::Integrity);
        // Another write's condition is not met by what is damaged; this one's was met before it was.
        let stranger = bucket.put(&it, &content(), &when(condition.clone())).await.unwrap_err();
        assert_eq!(stranger.kind, ErrorKind::Integrity);
        bucket.put(&it, &next, &when(condition)).await.unwrap();
        let found = bucket.get(&it, WHOLE).await.unwrap().unwrap();
        assert_eq!(found.attributes.generation, next.attributes.generation);
    }
}

#[tokio::test]
async fn a_lost_answer_leaves_the_write_under_its_token() {
    let site = Site::start();
    let bucket = open(site.options()).await;
    let it = key("it");
    let write = object("1");
    let swallow = json!({ "match": { "method": "POST" }, "action": { "swallow": true }, "times": 1 });
    site.tell("rules", swallow).await;
    let lost = bucket.put(&it, &write, &when(Condition::Absent)).await.unwrap_err();
    assert_eq!(lost.kind, ErrorKind::Unavailable);
    let again = bucket.put(&it, &write, &when(Condition::Absent)).await.unwrap_err();
    assert_eq!(again.kind, ErrorKind::Precondition);
    assert_eq!(bucket.stat(&it).await.unwrap().unwrap().generation, write.attributes.generation);
}

#[tokio::test]
async fn a_file_that_changed_meanwhile_is_not_stored() {
    // Whether or not the server looks at checksums, and in one request as in a session.
    for site in [Site::start(), Site::lenient()] {
        let options = site.options();
        let bucket = open(options.clone()).await;
        let sessions: Arc<dyn Backend> = Arc::new(Gcs::open(options).await.unwrap().with_resumable_from(1));
        for (size, bucket) in [(5, &bucket), (700_000, &bucket), (5, &sessions), (700_000, &sessions)] {
            let mut changed = in_file(&noise(size, 6));
            changed.attributes.stored_checksum = Checksum(changed.attributes.stored_checksum.0 ^ 1);
            let error = bucket.put(&key("it"), &changed, &PutOptions::default()).await.unwrap_err();
            assert_eq!(error.kind, ErrorKind::Integrity, "{error}");
            assert!(error.message().contains("changed"), "{error}");
            assert!(bucket.stat(&key("it")).await.unwrap().is_none());
            let commit_guard = CommitGuard::default();
            assert!(commit_guard.abandon());
            let how = PutOptions { commit_guard, ..PutOptions::default() };
            let error = bucket.put(&key("it"), &in_file(&noise(size, 6)), &how).await.unwrap_err();
            assert_eq!(error.kind, ErrorKind::Abandoned, "{error}");
            assert!(bucket.stat(&key("it")).await.unwrap().is_none());
            bucket.put(&key("good"), &in_file(&noise(size, 6)), &PutOptions::default()).await.unwrap();
            assert!(bytes(bucket.get(&key("good"), WHOLE).await.unwrap().unwrap()).await == noise(size, 6));
        }
    }
}
