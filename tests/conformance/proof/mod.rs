//! Success needs proof: each request of both clouds, answered by what is not the store, while all else is honest.
//!
//! A web server, a log-in page, a console or a gateway stands in the store's place for one kind of request. None of it is
//! ever a success or a miss; it is an error that counts as unreachable and names the setting, the status and the content
//! type that answered, so that a store lands in the fallback.

mod gcs;
mod s3;

use std::io::Write as _;
use std::sync::Arc;
use std::time::Duration;

use filestorage::storage::{
    Backend, Checksum, Condition, DeleteOptions, Error, ErrorKind, Fallback, GetOptions, Object, Page, Payload,
    PutOptions, Result, Retry, RetryOptions,
};
use filestorage::telemetry::{self, Metrics};
use serde_json::{Value, json};

use crate::support::{Rest, key, noise, object, rest};

/// The text of every false answer has this, and no error may.
const CONTENT: &str = "content-of-the-page";

/// One false answer: what it is, how it is given, and what of it an error must name.
struct Harm {
    name: &'static str,
    action: Value,
    told: [&'static str; 2],
}

fn harms() -> Vec<Harm> {
    let page = format!("<!DOCTYPE html><html><body>{CONTENT}</body></html>");
    let of = |name, status: u16, headers: Value, body: &str, told| Harm {
        name,
        action: json!({ "status": status, "headers": headers, "body": body }),
        told,
    };
    let sends_on = |status: u16, to: &str, told| {
        of("redirect", status, json!({ "Location": to, "Content-Type": "text/html" }), &page, told)
    };
    let modified = "Wed, 21 Oct 2015 07:28:00 GMT";
    let table = format!("<?xml version=\"1.0\"?><Catalogue><Name>{CONTENT}</Name></Catalogue>");
    vec![
        of("200, a page", 200, json!({ "Content-Type": "text/html; charset=utf-8" }), &page, ["200", "text/html"]),
        of(
            "200, a page as a web server keeps it",
            200,
            json!({ "Content-Type": "text/html", "ETag": "\"5d8c72a5edda8d6a\"", "Last-Modified": modified }),
            &page,
            ["200", "text/html"],
        ),
        of("200, nothing", 200, json!({}), "", ["200", "without a content type"]),
        of("200, nothing, with a tag", 200, json!({ "ETag": "W/\"0-2jmj7l5rSw0yVb\"" }), "", ["200", "content type"]),
        of(
            "200, JSON of another kind",
            200,
            json!({ "Content-Type": "application/json" }),
            &json!({ "status": CONTENT, "kind": "x", "name": "it" }).to_string(),
            ["200", "application/json"],
        ),
        of(
            "200, XML of another kind",
            200,
            json!({ "Content-Type": "application/xml" }),
            &table,
            ["200", "application/xml"],
        ),
        of("201", 201, json!({ "Content-Type": "text/plain" }), CONTENT, ["201", "text/plain"]),
        of("204", 204, json!({}), "", ["204", ""]),
        of(
            "206",
            206,
            json!({ "Content-Type": "text/html", "Content-Range": "bytes 0-3/9", "ETag": "\"e\"", "Last-Modified": modified }),
            "page",
            ["206", "text/html"],
        ),
        sends_on(301, "https://login.example/content-of-the-page?secret=1", ["301", "https://login.example"]),
        sends_on(302, "/content-of-the-page?secret=1", ["302", "http://127.0.0.1:"]),
        sends_on(307, "https://u:secret@sso.example:8443/", ["307", "https://sso.example:8443"]),
        sends_on(308, "https://elsewhere.example/", ["308", "https://elsewhere.example"]),
        of("403, a page", 403, json!({ "Content-Type": "text/html" }), &page, ["403", "text/html"]),
        of("405, a page", 405, json!({ "Content-Type": "text/html" }), &page, ["405", "text/html"]),
    ]
}

/// What is asked of a bucket.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Act {
    Put,
    PutAbsent,
    PutSame,
    PutFile,
    Get,
    Stat,
    Delete,
    DeleteSame,
    List,
    Probe,
}

/// Does it to the key `it`, whose generation is given.
async fn act(bucket: &dyn Backend, act: Act, generation: &str) -> Result<String> {
    let it = key("it");
    let same = || Condition::Generation(generation.to_owned());
    let when = |condition| PutOptions { condition, ..PutOptions::default() };
    match act {
        Act::Put => bucket.put(&it, &object("new"), &PutOptions::default()).await.map(|done| format!("{done:?}")),
        Act::PutAbsent => {
            bucket.put(&key("other"), &object("new"), &when(Condition::Absent)).await.map(|done| format!("{done:?}"))
        }
        Act::PutSame => bucket.put(&it, &object("new"), &when(same())).await.map(|done| format!("{done:?}")),
        Act::PutFile => bucket.put(&it, &file(), &PutOptions::default()).await.map(|done| format!("{done:?}")),
        Act::Get => bucket.get(&it, GetOptions::default()).await.map(|found| format!("{}", found.is_some())),
        Act::Stat => bucket.stat(&it).await.map(|found| format!("{}", found.is_some())),
        Act::Delete => bucket.delete(&it, &DeleteOptions::default()).await.map(|removal| format!("{removal:?}")),
        Act::DeleteSame => {
            let how =
                DeleteOptions { generation: Some(generation.to_owned()), lenient: true, ..DeleteOptions::default() };
            bucket.delete(&it, &how).await.map(|removal| format!("{removal:?}"))
        }
        Act::List => bucket.list(&Page::default()).await.map(|listing| format!("{}", listing.entries.len())),
        Act::Probe => bucket.probe().await.map(|_| "there".to_owned()),
    }
}

/// An object that goes up in two parts.
fn file() -> Object {
    let content = noise((8 << 20) + 5, 3);
    let mut source = tempfile::tempfile().unwrap();
    source.write_all(&content).unwrap();
    let payload = Payload::file(Arc::new(source), 0, content.len() as u64);
    let Object { mut attributes, .. } = object("");
    (attributes.size, attributes.stored_size) = (content.len() as u64, content.len() as u64);
    (attributes.checksum, attributes.stored_checksum) = (Checksum::of(&content), Checksum::of(&content));
    Object { attributes, payload }
}

/// Makes sure that an error says what answered, and nothing of what it contained.
fn says(error: &Error, setting: &str, harm: &Harm, what: &str) {
    let at = format!("{what} × {}: {error}", harm.name);
    assert_eq!(error.kind, ErrorKind::Unavailable, "{at}");
    assert!(error.is_unexpected_answer() && error.is_transient(), "{at}");
    let message = error.message();
    assert!(message.contains(setting) && harm.told.iter().all(|told| message.contains(told)), "{at}");
    assert!(message.contains("; "), "no remedy: {at}");
    assert!(!error.to_string().contains(CONTENT) && !error.to_string().contains("secret"), "{at}");
}

/// Puts retries, a breaker and a fallback before a bucket; few and fast, since what answers stays the same.
fn with_fallback(bucket: Arc<dyn Backend>, folder: &std::path::Path) -> Fallback {
    let options = RetryOptions { max_retries: 0, timeout: Duration::from_secs(20) };
    let retry = Retry::new(bucket, options, telemetry::BackendLabel::Memory, Metrics::new());
    Fallback::open(Arc::new(retry), folder.to_owned(), Metrics::new()).unwrap()
}

/// A write and a delete land in the overlay, and what only the bucket knows is an error.
async fn lands(fallback: &Fallback, at: &str) {
    let stored = fallback.put(&key("it"), &object("new"), &PutOptions::default()).await.unwrap();
    assert_eq!(rest(stored), Rest::Overlay, "{at}");
    let removal = fallback.delete(&key("it"), &DeleteOptions::default()).await.unwrap();
    assert_eq!(rest(removal), Rest::Overlay, "{at}");
    let error = fallback.get(&key("unknown"), GetOptions::default()).await.unwrap_err();
    assert!(error.is_transient() && error.is_unexpected_answer(), "{at}: {error}");
    let error = fallback.list(&Page::default()).await.unwrap_err();
    assert!(error.is_transient() && error.is_unexpected_answer(), "{at}: {error}");
}
