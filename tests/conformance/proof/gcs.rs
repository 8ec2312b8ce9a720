//! Success needs proof: Cloud Storage, by its emulator behind a proxy that answers some requests itself.

use std::sync::Arc;
use std::time::Duration;

use filestorage::storage::{
    Backend, BreakerState, ErrorKind, Gcs, GcsOptions, GetOptions, Page, PutOptions, Retry, RetryOptions,
};
use filestorage::telemetry::{self, Metrics};
use serde_json::{Value, json};

use super::{Act, act, harms, lands, says, with_fallback};
use crate::gcs::site::{Site, open};
use crate::support::{bytes, key, object};

/// Each request: its name, the requests that are answered falsely, what asks it, and whether uploads are sessions.
fn requests() -> Vec<(&'static str, Value, Act, bool)> {
    let query = |method: &str, query: &str| json!({ "method": method, "query": query });
    let look = json!({ "method": "GET", "object": "^it$", "query": "fields=" });
    let list = json!({ "method": "GET", "path": "/o$" });
    vec![
        ("put", query("POST", "uploadType=multipart"), Act::Put, false),
        ("put if absent", query("POST", "uploadType=multipart"), Act::PutAbsent, false),
        ("put of a generation", query("POST", "uploadType=multipart"), Act::PutSame, false),
        ("begin a session", query("POST", "uploadType=resumable"), Act::Put, true),
        ("finish a session", json!({ "method": "PUT" }), Act::Put, true),
        ("get", query("GET", "alt=media"), Act::Get, false),
        ("look", look.clone(), Act::Stat, false),
        ("look before a write of a generation", look.clone(), Act::PutSame, false),
        ("look before a delete of a generation", look, Act::DeleteSame, false),
        ("delete", json!({ "method": "DELETE" }), Act::Delete, false),
        ("delete of a generation", json!({ "method": "DELETE" }), Act::DeleteSame, false),
        ("list", list.clone(), Act::List, false),
        ("probe", list, Act::Probe, false),
    ]
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn no_request_takes_what_is_no_answer_to_it() {
    let site = Site::start();
    let options = site.options();
    let bucket = open(options.clone()).await;
    let sessions: Arc<dyn Backend> = Arc::new(Gcs::open(options).await.unwrap().with_resumable_from(1));
    let old = object("old");
    bucket.put(&key("it"), &old, &PutOptions::default()).await.unwrap();
    let mut cases = 0;
    for (what, matching, asks, in_sessions) in requests() {
        for harm in harms() {
            site.rule(matching.clone(), harm.action.clone()).await;
            let outcome = act(if in_sessions { &*sessions } else { &*bucket }, asks, &old.attributes.generation).await;
            site.tell("clear", Value::Null).await;
            let error = outcome.expect_err(&format!("{what} × {}", harm.name));
            says(&error, "STORAGE_EMULATOR_HOST", &harm, what);
            let found = bucket.get(&key("it"), GetOptions::default()).await.unwrap().unwrap();
            assert_eq!(&*bytes(found).await, b"old", "{what} × {}", harm.name);
            cases += 1;
        }
    }
    println!("proof: gcs: {cases} false answers were taken for none");
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_server_that_is_no_store_is_replaced_by_the_fallback() {
    let site = Site::start();
    for harm in harms() {
        // With and without a project: a page is no bucket that is missing, and none that was created.
        for project in [None, Some("tests".to_owned())] {
            site.rule(json!({}), harm.action.clone()).await;
            let gcs = Gcs::open(GcsOptions { project, ..site.options() }).await.unwrap();
            for asks in [Act::Put, Act::PutAbsent, Act::Get, Act::Stat, Act::Delete, Act::List, Act::Probe] {
                let error = act(&gcs, asks, "").await.expect_err(harm.name);
                says(&error, "STORAGE_EMULATOR_HOST", &harm, &format!("{asks:?}"));
            }
            let asked = site.asked().await;
            assert!(!asked.contains("PUT"), "{}: it was asked {asked}", harm.name);
        }
        site.rule(json!({}), harm.action.clone()).await;
        let folder = tempfile::tempdir().unwrap();
        let gcs = Gcs::open(site.options()).await.unwrap();
        lands(&with_fallback(Arc::new(gcs), folder.path()), harm.name).await;
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_bucket_is_created_only_by_what_says_so() {
    let site = Site::start();
    for harm in harms() {
        site.rule(json!({ "method": "POST", "path": "/b$" }), harm.action.clone()).await;
        let error = Gcs::open(site.options()).await.unwrap().probe().await.expect_err(harm.name);
        says(&error, "STORAGE_EMULATOR_HOST", &harm, "create the bucket");
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn an_answer_about_another_object_or_bucket_confirms_nothing() {
    let site = Site::start();
    let options = site.options();
    let bucket = open(options.clone()).await;
    bucket.put(&key("it"), &object("old"), &PutOptions::default()).await.unwrap();
    let right = site.describe(&options.bucket, "it").await;
    for (member, other) in [
        ("name", json!("another")),
        ("bucket", json!("another")),
        ("kind", json!("storage#bucket")),
        ("generation", json!("0")),
        ("generation", Value::Null),
        ("crc32c", Value::Null),
        ("size", Value::Null),
    ] {
        let mut wrong = right.clone();
        wrong[member] = other;
        let action = json!({ "status": 200, "headers": { "Content-Type": "application/json" }, "body": wrong });
        site.rule(json!({ "method": "POST" }), action.clone()).await;
        let error = bucket.put(&key("it"), &object("old"), &PutOptions::default()).await.unwrap_err();
        assert!(error.kind == ErrorKind::Unavailable && error.is_unexpected_answer(), "{member}: {error}");
        if !matches!(member, "generation" | "crc32c") {
            site.rule(json!({ "method": "GET" }), action).await;
            let error = bucket.stat(&key("it")).await.unwrap_err();
            assert!(error.kind == ErrorKind::Unavailable && error.is_unexpected_answer(), "{member}: {error}");
        }
    }
    site.tell("clear", Value::Null).await;
    assert_eq!(bucket.list(&Page::default()).await.unwrap().entries.len(), 1);
}

#[tokio::test]
async fn a_listing_that_does_not_get_on_is_named_at_its_second_page() {
    let site = Site::start();
    let bucket: Arc<dyn Backend> = open(site.options()).await;
    let item = json!({
        "kind": "storage#object", "name": "k", "bucket": "b", "size": "0", "crc32c": "AAAAAA==", "generation": "1",
        "timeCreated": "2026-11-24T12:20:20Z",
    });
    let options = RetryOptions { max_retries: 3, timeout: Duration::from_secs(20) };
    let retry = Retry::new(bucket, options, telemetry::BackendLabel::Gcs, Metrics::new());
    for items in [json!([]), json!([item])] {
        let page = json!({ "kind": "storage#objects", "nextPageToken": "again", "items": items });
        site.rule(json!({ "path": "/o$" }), json!({ "status": 200, "body": page })).await;
        for _ in 0..4 {
            let error = retry.list(&Page::default()).await.unwrap_err();
            assert!(error.kind == ErrorKind::Io && error.message().contains("page token"), "{error}");
        }
        assert_eq!(site.asked().await, "GET GET ".repeat(4), "at the second page, and once");
        assert_eq!(retry.breaker().state(), BreakerState::Closed);
    }
    let page = json!({ "kind": "storage#objects", "items": [item] });
    site.rule(json!({ "path": "/o$" }), json!({ "status": 200, "body": page })).await;
    let prefix = Page { prefix: "other/".to_owned(), ..Page::default() };
    let error = retry.list(&prefix).await.unwrap_err();
    assert!(error.kind == ErrorKind::Io && error.message().contains("prefix"), "{error}");
}
