//! The bucket backend over SeaweedFS, and what only it can be asked.

use filestorage::provider::BackendKind;
use filestorage::storage::{
    Attributes, Backend, Checksum, CommitGuard, Condition, DeleteOptions, Engine, ErrorKind, GetOptions, Grant, Key,
    Kind, Object, Page, Payload, PutOptions, S3, S3Options,
};
use http::{Method, StatusCode};
use std::io::Write as _;
use std::sync::Arc;
use std::time::Duration;

use crate::backend::{self, Profile};
use crate::dev_s3::{self, Bucket};
use crate::engine;
use crate::housekeeping;
use crate::support::{Rest, Tally, bytes, key, noise, object, rest, text};

/// What SeaweedFS does differently, most of it because it keeps names in folders.
pub(crate) const SEAWEEDFS: Profile = Profile {
    exact_removal: false,
    condition_before_guard: false,
    remote: true,
    same_bytes: false,
    folders: true,
    unfit,
    ..Profile::NEAR
};

fn unfit(key: &Key) -> Option<&'static str> {
    if key.as_str().split('/').any(|segment| segment.len() > 255) {
        return Some("SeaweedFS takes segments of 255 bytes at most");
    }
    key.as_str().contains('\\').then_some("SeaweedFS takes a backslash for a slash")
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn s3_backend_by_two_instances_on_one_bucket() {
    let bucket = Bucket::make().await;
    let (one, other): (Arc<dyn Backend>, Arc<dyn Backend>) = (Arc::new(bucket.open()), Arc::new(bucket.open()));
    let tally = Tally::new("s3 (SeaweedFS), two instances on one bucket");
    backend::suite(&one, &other, SEAWEEDFS, &tally).await;
    tally.close();
    bucket.remove().await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn engine_over_s3() {
    let bucket = Bucket::make().await;
    let tally = Tally::new("engine over s3 (SeaweedFS)");
    engine::suite(&Engine::new(Arc::new(bucket.open()), BackendKind::S3), SEAWEEDFS, &tally).await;
    tally.close();
    bucket.remove().await;
}

/// A value that is stored anew has the same entity tag, and another generation.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn the_same_bytes_stored_after_a_listing_stay() {
    let bucket = Bucket::make().await;
    housekeeping::renewals(Arc::new(bucket.open()), BackendKind::S3).await;
    bucket.remove().await;
}

/// An object whose bytes lie in a file; its attributes are those of the bytes given beside.
fn file(content: &[u8], attributes: &[u8]) -> Object {
    let mut source = tempfile::tempfile().unwrap();
    source.write_all(content).unwrap();
    let payload = Payload::file(Arc::new(source), 0, content.len() as u64);
    Object { payload, ..object(attributes.to_vec()) }
}

fn when(condition: Condition) -> PutOptions {
    PutOptions { condition, ..PutOptions::default() }
}

async fn has_uploads(bucket: &Bucket) -> bool {
    let listed = bucket.ask(Method::GET, "?uploads=", &[], "").await.text().await.unwrap();
    assert!(listed.contains("ListMultipartUploadsResult"), "{listed}");
    listed.contains("<UploadId>")
}

async fn an_upload(bucket: &Bucket) {
    while !has_uploads(bucket).await {}
}

/// Waits until no upload in parts is left in the bucket.
async fn no_uploads(bucket: &Bucket) {
    for _ in 0..200 {
        if !has_uploads(bucket).await {
            return;
        }
        tokio::time::sleep(Duration::from_millis(50)).await;
    }
    panic!("an upload was left behind");
}

async fn etag(bucket: &Bucket, name: &str) -> String {
    let answer = bucket.ask(Method::HEAD, name, &[], "").await;
    answer.headers()["etag"].to_str().unwrap().trim_matches('"').to_owned()
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_large_file_goes_up_in_parts_and_comes_down_as_a_file() {
    let bucket = Bucket::make().await;
    let s3 = bucket.open();
    let content = noise(64 << 20, 5);
    let stored = file(&content, &content);
    let it = key("large/ü");
    assert_eq!(rest(s3.put(&it, &stored, &PutOptions::default()).await.unwrap()), Rest::Bucket);
    assert!(etag(&bucket, "large/%C3%BC").await.ends_with("-8"));
    let spooled = GetOptions { spooled: true, ..GetOptions::default() };
    let found = s3.get(&it, spooled).await.unwrap().unwrap();
    assert!(found.payload.as_memory().is_none());
    assert_eq!(found.payload.checksum().await.unwrap(), Checksum::of(&content));
    assert_eq!(text(&found.attributes), text(&stored.attributes));
    // Nothing of a source that is not what it is said to be, or that was called off, is ever to be seen.
    let mut changed = content.clone();
    *changed.last_mut().unwrap() ^= 1;
    let short = &content[..9 << 20];
    for (bad, kind) in [(file(&changed, &content), ErrorKind::Integrity), (file(short, &content), ErrorKind::Integrity)]
    {
        assert_eq!(s3.put(&it, &bad, &PutOptions::default()).await.unwrap_err().kind, kind);
    }
    assert_eq!(s3.put(&it, &file(b"12", b"13"), &PutOptions::default()).await.unwrap_err().kind, ErrorKind::Integrity);
    let commit_guard = CommitGuard::default();
    assert!(commit_guard.abandon());
    let abandoned = s3
        .put(&it, &file(&content, &content), &PutOptions { commit_guard, ..PutOptions::default() })
        .await
        .unwrap_err();
    assert_eq!(abandoned.kind, ErrorKind::Abandoned);
    // Neither when whoever waits for it goes away half-way.
    no_uploads(&bucket).await;
    let (changing, options) = (file(&changed, &changed), PutOptions::default());
    tokio::select! {
        outcome = s3.put(&it, &changing, &options) => panic!("{outcome:?} before it was seen"),
        () = an_upload(&bucket) => {}
    }
    no_uploads(&bucket).await;
    assert_eq!(text(&s3.stat(&it).await.unwrap().unwrap()), text(&stored.attributes));
    // SeaweedFS cannot hold a condition against other writers while it joins the parts.
    let refused = s3.put(&it, &file(&content, &content), &when(Condition::Absent)).await.unwrap_err();
    assert!(refused.kind == ErrorKind::Invalid && refused.message().contains("several parts"), "{refused}");
    bucket.remove().await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn what_other_tools_wrote_is_read() {
    let bucket = Bucket::make().await;
    let s3 = bucket.open();
    for (name, content_type, kind) in [
        ("t", "text/csv; charset=utf-8", Kind::Text),
        ("j", "application/json", Kind::Json),
        ("b", "image/png", Kind::Bytes),
    ] {
        let headers = [("content-type", content_type), ("x-amz-meta-owner", "them")];
        assert_eq!(bucket.ask(Method::PUT, name, &headers, "[1]").await.status(), StatusCode::OK);
        let stat = s3.stat(&key(name)).await.unwrap().unwrap();
        assert_eq!((stat.kind, &*stat.content_type, stat.size), (kind, content_type, 3));
        assert_eq!((stat.checksum, stat.stored_checksum), (Checksum::of(b"[1]"), Checksum::of(b"[1]")));
        assert_eq!((stat.generation.clone(), stat.operation_id.clone()), (etag(&bucket, name).await, None));
        assert_eq!(stat.metadata.as_ref().unwrap().get(), r#"{"owner":"them"}"#);
        assert_eq!(Some(stat.stored_at), stat.info.received_at);
        let found = s3.get(&key(name), GetOptions::default()).await.unwrap().unwrap();
        assert_eq!(text(&found.attributes), text(&stat));
        assert!(stat.info.computed_checksum && found.attributes.info.computed_checksum);
        assert_eq!(&*bytes(found).await, b"[1]");
        // Its tag is its token.
        let other = s3.put(&key(name), &object("2"), &when(Condition::Generation("0".to_owned()))).await.unwrap_err();
        assert_eq!(other.kind, ErrorKind::Precondition);
        s3.put(&key(name), &object("2"), &when(Condition::Generation(stat.generation))).await.unwrap();
    }
    // A checksum that the store knows need not be computed, and one of other bytes is not taken.
    let sum = Checksum::of(b"abc").to_string();
    let known = [("x-amz-checksum-crc32c", sum.trim_start_matches("crc32c:"))];
    assert_eq!(bucket.ask(Method::PUT, "c", &known, "abc").await.status(), StatusCode::OK);
    let known = s3.stat(&key("c")).await.unwrap().unwrap();
    assert_eq!((known.checksum, known.info.computed_checksum), (Checksum::of(b"abc"), false));
    let encoded = [("content-encoding", "gzip"), ("content-type", "text/plain")];
    assert_eq!(bucket.ask(Method::PUT, "z", &encoded, "abc").await.status(), StatusCode::OK);
    assert_eq!(s3.stat(&key("z")).await.unwrap().unwrap().compression.as_deref(), Some("gzip"));
    assert_eq!(bucket.ask(Method::PUT, "folder/", &[], "").await.status(), StatusCode::OK);
    let listing = s3.list(&Page::default()).await.unwrap();
    assert_eq!((listing.entries.len(), listing.foreign), (5, 1));
    // Our label on other bytes is damage, whether or not the length gives it away.
    s3.put(&key("d"), &object("12345"), &PutOptions::default()).await.unwrap();
    let ours = bucket.ask(Method::GET, "d", &[], "").await;
    let label = ours.headers()["x-amz-meta-filestorage"].to_str().unwrap().to_owned();
    for other in ["12346", "123456"] {
        let written = bucket.ask(Method::PUT, "d", &[("x-amz-meta-filestorage", &label)], other).await;
        assert_eq!(written.status(), StatusCode::OK);
        assert_eq!(s3.get(&key("d"), GetOptions::default()).await.unwrap_err().kind, ErrorKind::Integrity);
    }
    assert_eq!(s3.stat(&key("d")).await.unwrap_err().kind, ErrorKind::Integrity);
    assert_eq!(s3.list(&Page::default()).await.unwrap().entries.len(), 6);
    s3.put(&key("d"), &object("repaired"), &PutOptions::default()).await.unwrap();
    bucket.remove().await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn other_tools_read_what_was_written() {
    let bucket = Bucket::make().await;
    let s3 = bucket.open();
    let mut stored = object("a\nb");
    stored.attributes.content_type = "text/x-ours; charset=utf-8".to_owned();
    let metadata = r#"{"owner":"us","Big":"no","n":1}"#.to_owned();
    stored.attributes.metadata = Some(serde_json::value::RawValue::from_string(metadata).unwrap());
    s3.put(&key("plain"), &stored, &PutOptions::default()).await.unwrap();
    stored.attributes.compression = Some("gzip".to_owned());
    s3.put(&key("packed"), &stored, &PutOptions::default()).await.unwrap();
    for (name, encoding) in [("plain", None), ("packed", Some("gzip"))] {
        let found = bucket.ask(Method::GET, name, &[], "").await;
        let header = |name: &str| found.headers().get(name).map(|value| value.to_str().unwrap().to_owned());
        assert_eq!(header("content-type").as_deref(), Some("text/x-ours; charset=utf-8"));
        assert_eq!(header("x-amz-meta-owner").as_deref(), Some("us"));
        assert_eq!((header("x-amz-meta-big").as_deref(), header("x-amz-meta-n")), (Some("no"), None));
        assert_eq!(header("content-encoding").as_deref(), encoding);
        assert_eq!(header("cache-control").as_deref(), encoding.map(|_| "no-transform"));
        assert_eq!(found.bytes().await.unwrap(), "a\nb");
    }
    bucket.remove().await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn metadata_fits_or_is_refused_beforehand() {
    let bucket = Bucket::make().await;
    let s3 = bucket.open();
    let with = |metadata: String| {
        let mut object = object("x");
        object.attributes.operation_id = Some("0".repeat(36));
        object.attributes.content_type =
            "application/vnd.openxmlformats-officedocument.wordprocessingml.document".to_owned();
        object.attributes.metadata = Some(serde_json::value::RawValue::from_string(metadata).unwrap());
        object
    };
    let blanks = with(format!("{{\"a\":\"{}  \\\\ \\n\"}}", "x y  z ".repeat(100)));
    for fits in [
        with(format!("{{\"a\":\"{}\"}}", "x".repeat(1_016))),
        with(format!("{{\"a\":\"{}\"}}", "é".repeat(169))),
        blanks,
    ] {
        s3.validate(&key("m"), &fits.attributes).unwrap();
        s3.put(&key("m"), &fits, &PutOptions::default()).await.unwrap();
        assert_eq!(text(&s3.stat(&key("m")).await.unwrap().unwrap()), text(&fits.attributes));
    }
    for large in
        [with(format!("{{\"a\":\"{}\"}}", "x".repeat(1_017))), with(format!("{{\"a\":\"{}\"}}", "é".repeat(170)))]
    {
        let refused = s3.validate(&key("m"), &large.attributes).unwrap_err();
        assert!(refused.kind == ErrorKind::Invalid && refused.message().contains("1024"), "{refused}");
        assert_eq!(s3.put(&key("m"), &large, &PutOptions::default()).await.unwrap_err().kind, ErrorKind::Invalid);
    }
    let too_large = Attributes { stored_size: 1 << 40, ..object("x").attributes };
    assert_eq!(s3.validate(&key("m"), &too_large).unwrap_err().kind, ErrorKind::Invalid);
    bucket.remove().await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_signed_url_works_for_anyone_and_for_one_thing() {
    let bucket = Bucket::make().await;
    let s3 = bucket.open();
    let it = key("ü/a b+c?d#e%2F~*'\u{feff}");
    let (get, put) = (filestorage::storage::Method::Get, filestorage::storage::Method::Put);
    let grant = |method| Grant { method, lifetime: Duration::from_secs(60) };
    let anyone = reqwest::Client::builder().no_proxy().build().unwrap();
    let url = s3.sign(&it, &grant(put)).await.unwrap();
    let written = anyone.put(&url).header("content-type", "text/plain").body("theirs").send().await.unwrap();
    assert_eq!(written.status(), StatusCode::OK);
    assert_eq!(&*bytes(s3.get(&it, GetOptions::default()).await.unwrap().unwrap()).await, b"theirs");
    assert_eq!(anyone.get(&url).send().await.unwrap().status(), StatusCode::FORBIDDEN);
    let url = s3.sign(&it, &grant(get)).await.unwrap();
    assert_eq!(anyone.get(&url).send().await.unwrap().bytes().await.unwrap(), "theirs");
    let forged = url.replace("X-Amz-Expires=60", "X-Amz-Expires=61");
    assert_eq!(anyone.get(forged).send().await.unwrap().status(), StatusCode::FORBIDDEN);
    for lifetime in [Duration::from_millis(500), Duration::from_hours(169)] {
        let refused = s3.sign(&it, &Grant { method: get, lifetime }).await.unwrap_err();
        assert_eq!(refused.kind, ErrorKind::Invalid);
    }
    bucket.remove().await;
}

/// Asks everything once and expects the same failure.
async fn all_fail(s3: &S3, kind: ErrorKind, named: &str) {
    let it = key("it");
    let absent = PutOptions { condition: Condition::Absent, ..PutOptions::default() };
    let errors = [
        s3.probe().await.unwrap_err(),
        s3.put(&it, &object("x"), &PutOptions::default()).await.unwrap_err(),
        s3.put(&it, &object("x"), &absent).await.unwrap_err(),
        s3.get(&it, GetOptions::default()).await.unwrap_err(),
        s3.stat(&it).await.unwrap_err(),
        s3.delete(&it, &DeleteOptions::default()).await.unwrap_err(),
        s3.list(&Page::default()).await.unwrap_err(),
    ];
    for error in errors {
        assert!(error.kind == kind && error.message().contains(named), "{error}");
        assert!(!error.to_string().contains("secret"), "{error}");
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_bucket_that_cannot_be_used_is_never_an_empty_one() {
    let bucket = Bucket::make().await;
    let with = |change: fn(&mut S3Options)| {
        let mut options = bucket.options();
        change(&mut options);
        S3::open(options).unwrap()
    };
    let missing = with(|options| options.bucket = "filestorage-test-missing".to_owned());
    all_fail(&missing, ErrorKind::Invalid, "aws s3 mb s3://filestorage-test-missing").await;
    let wrong = with(|options| drop(options.aws.insert("AWS_SECRET_ACCESS_KEY".to_owned(), "other-secret".to_owned())));
    all_fail(&wrong, ErrorKind::Denied, "AWS_SECRET_ACCESS_KEY").await;
    let away = with(|options| options.endpoint = Some("http://127.0.0.1:1".to_owned()));
    all_fail(&away, ErrorKind::Unavailable, "127.0.0.1:1").await;
    let plain = with(|options| options.endpoint = options.endpoint.take().map(|url| url.replace("http:", "https:")));
    all_fail(&plain, ErrorKind::Unavailable, "https://127.0.0.1").await;
    bucket.remove().await;
}

/// What SeaweedFS hides behind its name is what others do as well; without it, the general way is taken.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_store_of_another_name_is_taken_at_its_word() {
    let bucket = Bucket::make().await;
    let s3 = S3::open(S3Options { endpoint: Some(dev_s3::renamed().await), ..bucket.options() }).unwrap();
    let it = key("it");
    // The same bytes again and again: each conditional write gives the object another tag.
    let mut token = object("same");
    s3.put(&it, &token, &when(Condition::Absent)).await.unwrap();
    let mut tags = vec![etag(&bucket, "it").await];
    for _ in 0..3 {
        let next = object("same");
        s3.put(&it, &next, &when(Condition::Generation(token.attributes.generation.clone()))).await.unwrap();
        tags.push(etag(&bucket, "it").await);
        assert!(tags.windows(2).all(|pair| pair[0] != pair[1]), "{tags:?}");
        let stale =
            s3.put(&it, &object("same"), &when(Condition::Generation(token.attributes.generation.clone()))).await;
        assert_eq!(stale.unwrap_err().kind, ErrorKind::Precondition);
        assert_eq!(text(&s3.stat(&it).await.unwrap().unwrap()), text(&next.attributes));
        token = next;
    }
    // Conditions on many parts, and the same bytes in other parts.
    let content = noise(17 << 20, 9);
    let first = file(&content, &content);
    let token = first.attributes.generation.clone();
    s3.put(&key("parts"), &first, &when(Condition::Absent)).await.unwrap();
    assert!(etag(&bucket, "parts").await.ends_with("-3"));
    let refused = s3.put(&key("parts"), &file(&content, &content), &when(Condition::Absent)).await.unwrap_err();
    assert_eq!(refused.kind, ErrorKind::Precondition);
    s3.put(&key("parts"), &file(&content, &content), &when(Condition::Generation(token))).await.unwrap();
    assert!(etag(&bucket, "parts").await.ends_with("-2"));
    no_uploads(&bucket).await;
    // Its order is noticed.
    for name in ["a", "a!", "a/b", "a b"] {
        s3.put(&key(name), &object(name), &PutOptions::default()).await.unwrap();
    }
    let page = Page { prefix: "a".to_owned(), ..Page::default() };
    let names = |listing: filestorage::storage::Listing| -> Vec<String> {
        listing.entries.iter().map(|entry| entry.key.to_string()).collect()
    };
    assert_eq!(names(s3.list(&page).await.unwrap()), ["a", "a b", "a!", "a/b"]);
    let page = Page { start_after: Some("a b".to_owned()), limit: Some(1), ..page };
    let listing = s3.list(&page).await.unwrap();
    assert!(listing.more);
    assert_eq!(names(listing), ["a!"]);
    bucket.remove().await;
}
