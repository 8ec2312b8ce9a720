//! Success needs proof: S3, by SeaweedFS behind a proxy that answers some requests itself.

use std::sync::Arc;

use filestorage::storage::{Backend, DeleteOptions, ErrorKind, GetOptions, Page, PutOptions, S3, S3Options};
use serde_json::{Value, json};

use super::{Act, act, harms, lands, says, with_fallback};
use crate::dev_s3::{self, Bucket};
use crate::gcs::site::Site;
use crate::support::{bytes, key, object};

/// Each request: its name, the requests that are answered falsely, and what asks it.
fn requests() -> Vec<(&'static str, Value, Act)> {
    let it = |method: &str| json!({ "method": method, "object": "^it$" });
    let query = |method: &str, query: &str| json!({ "method": method, "query": query });
    vec![
        ("put", it("PUT"), Act::Put),
        ("put if absent", json!({ "method": "PUT", "object": "^other$" }), Act::PutAbsent),
        ("put of a generation", it("PUT"), Act::PutSame),
        ("begin an upload", query("POST", "^uploads="), Act::PutFile),
        ("send a part", query("PUT", "partNumber="), Act::PutFile),
        ("complete an upload", query("POST", "uploadId="), Act::PutFile),
        ("get", it("GET"), Act::Get),
        ("look", it("HEAD"), Act::Stat),
        ("look before a write of a generation", it("HEAD"), Act::PutSame),
        ("delete", it("DELETE"), Act::Delete),
        ("look before a delete", it("HEAD"), Act::Delete),
        ("list", query("GET", "list-type=2"), Act::List),
        ("probe", query("GET", "list-type=2"), Act::Probe),
    ]
}

fn behind(site: &Site, bucket: &Bucket) -> S3Options {
    S3Options { endpoint: Some(site.url.clone()), ..bucket.options() }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn no_request_takes_what_is_no_answer_to_it() {
    let bucket = Bucket::make().await;
    let site = Site::before(&dev_s3::store().url, &["--keep-host"]);
    let s3 = S3::open(behind(&site, &bucket)).unwrap();
    let old = object("old");
    s3.put(&key("it"), &old, &PutOptions::default()).await.unwrap();
    // Finds out, honestly, what conditions are kept.
    s3.put(
        &key("it"),
        &old,
        &super::PutOptions { condition: super::Condition::Always, ..super::PutOptions::default() },
    )
    .await
    .unwrap();
    act(&s3, Act::PutAbsent, "").await.unwrap();
    s3.delete(&key("other"), &DeleteOptions::default()).await.unwrap();
    let mut cases = 0;
    for (what, matching, asks) in requests() {
        for harm in harms() {
            // What a HEAD is refused with has no text; the GET behind it is honest, and finds the object.
            let honest = matching["method"] == "HEAD" && matches!(harm.name, "403, a page" | "405, a page");
            site.rule(matching.clone(), harm.action.clone()).await;
            let outcome = act(&s3, asks, &old.attributes.generation).await;
            site.tell("clear", Value::Null).await;
            if honest {
                let done = outcome.unwrap_or_else(|error| panic!("{what} × {}: {error}", harm.name));
                assert!(asks != Act::Stat || done == "true", "{what} × {}: {done}", harm.name);
                s3.put(&key("it"), &old, &PutOptions::default()).await.unwrap();
                continue;
            }
            says(&outcome.expect_err(&format!("{what} × {}", harm.name)), "s3_endpoint_url", &harm, what);
            // Nothing came of it.
            let found = s3.get(&key("it"), GetOptions::default()).await.unwrap().unwrap();
            assert_eq!(&*bytes(found).await, b"old", "{what} × {}", harm.name);
            cases += 1;
        }
    }
    println!("proof: s3: {cases} false answers were taken for none");
    bucket.remove().await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_server_that_is_no_store_gets_no_write() {
    let bucket = Bucket::make().await;
    let site = Site::before(&dev_s3::store().url, &["--keep-host"]);
    for harm in harms() {
        site.rule(json!({}), harm.action.clone()).await;
        let s3 = S3::open(behind(&site, &bucket)).unwrap();
        for asks in [Act::Put, Act::PutAbsent, Act::PutFile, Act::Get, Act::Stat, Act::Delete, Act::List, Act::Probe] {
            let error = act(&s3, asks, "").await.expect_err(harm.name);
            says(&error, "s3_endpoint_url", &harm, &format!("{asks:?}"));
        }
        let asked = site.asked().await;
        assert!(asked.split(' ').all(|method| matches!(method, "GET" | "")), "{}: it was asked {asked}", harm.name);
        site.rule(json!({}), harm.action.clone()).await;
        let folder = tempfile::tempdir().unwrap();
        lands(&with_fallback(Arc::new(S3::open(behind(&site, &bucket)).unwrap()), folder.path()), harm.name).await;
    }
    site.tell("clear", Value::Null).await;
    let s3 = S3::open(behind(&site, &bucket)).unwrap();
    assert!(s3.list(&Page::default()).await.unwrap().entries.is_empty(), "nothing was ever written");
    bucket.remove().await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_bucket_named_twice_is_noticed_before_the_first_write() {
    let (bucket, other) = (Bucket::make().await, Bucket::make().await);
    let name = bucket.options().bucket;
    let url = &dev_s3::store().url;
    // Also where an object of that very name is there, which a listing's request then gets.
    for twice in [false, true] {
        if twice {
            assert!(bucket.ask(http::Method::PUT, &name, &[], "an object").await.status().is_success());
        }
        for (endpoint, named) in [
            (format!("{url}/{name}"), &bucket),
            (format!("{url}/{name}/"), &bucket),
            (format!("{url}/{}", other.options().bucket), &other),
        ] {
            let options = || S3Options { endpoint: Some(endpoint.clone()), ..bucket.options() };
            for asks in
                [Act::Put, Act::PutAbsent, Act::PutFile, Act::Delete, Act::Get, Act::Stat, Act::List, Act::Probe]
            {
                let error = act(&S3::open(options()).unwrap(), asks, "").await.unwrap_err();
                assert_eq!(error.kind, ErrorKind::Invalid, "{asks:?}: {error}");
                for part in ["s3_endpoint_url", "s3_bucket_name", &name, &endpoint[..url.len()]] {
                    assert!(error.message().contains(part), "{asks:?}: {error}");
                }
            }
            let listed = named.ask(http::Method::GET, "?list-type=2&prefix=", &[], "").await.text().await.unwrap();
            assert!(!listed.contains("it</Key>"), "nothing was written beside: {listed}");
        }
    }
    // A bucket that nobody has, or that this identity has no right to, is one that the URL names, too.
    for (other, kind) in [("filestorage-test-none", ErrorKind::Invalid), ("somebody-else", ErrorKind::Denied)] {
        let nowhere = S3Options { endpoint: Some(format!("{url}/{other}")), ..bucket.options() };
        let error = act(&S3::open(nowhere).unwrap(), Act::Put, "").await.unwrap_err();
        assert_eq!(error.kind, kind, "{error}");
        assert!(error.message().contains(other) && error.message().contains("s3_bucket_name"), "{error}");
    }
    // Without any, all buckets are listed, and a write would make one.
    let mut aws = bucket.options().aws;
    aws.insert("AWS_VIRTUAL_HOSTED_STYLE_REQUEST".to_owned(), "true".to_owned());
    let error = act(&S3::open(S3Options { aws, ..bucket.options() }).unwrap(), Act::Put, "").await.unwrap_err();
    assert!(matches!(error.kind, ErrorKind::Invalid | ErrorKind::Denied), "{error}");
    other.remove().await;
    bucket.remove().await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_removal_is_verified_where_only_listings_are_marked() {
    let bucket = Bucket::make().await;
    let site = Site::before(&dev_s3::store().url, &["--keep-host"]);
    // As SeaweedFS before its version 4.
    let unmarked = json!({ "patch": { "x-amz-request-id": null, "x-amz-id-2": null } });
    site.rule(json!({ "method": ["DELETE", "GET", "HEAD"], "object": "." }), unmarked).await;
    let s3 = S3::open(behind(&site, &bucket)).unwrap();
    assert!(s3.list(&Page::default()).await.unwrap().entries.is_empty());
    s3.put(&key("it"), &object("value"), &PutOptions::default()).await.unwrap();
    assert_eq!(&*bytes(s3.get(&key("it"), GetOptions::default()).await.unwrap().unwrap()).await, b"value");
    s3.delete(&key("it"), &DeleteOptions::default()).await.unwrap();
    assert!(s3.stat(&key("it")).await.unwrap().is_none());
    s3.delete(&key("it"), &DeleteOptions::default()).await.unwrap();
    bucket.remove().await;
}
