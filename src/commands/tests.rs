//! Calls as they come from the queue, up to the exception or the JSON their callers get.

use std::fmt;
use std::fs;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};

use super::*;
use crate::provider::BackendKind;
use crate::storage::{
    Attributes, Backend, CopySource, DeleteOptions, ExternalReferences, Fallback, GetOptions, Grant, Listing, Local,
    Memory, NoBuckets, Object, Page, Permission, Probe, PutOptions, Removal, Versions, VersionsRequest,
};
use crate::telemetry::Metrics;

fn json(text: &str) -> Json {
    crate::json::parse(text.as_bytes(), crate::json::ParseLimits::default()).unwrap()
}

/// Reads a call with its keyword arguments, written as a JSON object.
fn parse(task: &str, kwargs: &str) -> Result<Box<dyn Command>, CommandError> {
    let Json::Object(kwargs) = json(kwargs) else { panic!("no object: {kwargs}") };
    CommandTable::default().find(&format!("filestorage.{task}")).unwrap().parse(Vec::new(), kwargs)
}

async fn call(engine: &Engine, task: &str, kwargs: &str) -> Result<serde_json::Value, CommandError> {
    let finished = run(parse(task, kwargs)?, engine, Context::default()).await;
    finished.result.map(|text| serde_json::from_str(&text).unwrap())
}

/// Calls what must fail: the class of the exception and its arguments.
async fn refused(engine: &Engine, task: &str, kwargs: &str) -> (ExceptionClass, Vec<serde_json::Value>) {
    let error = call(engine, task, kwargs).await.unwrap_err();
    let args = error.args.iter().map(|arg| serde_json::from_str(&arg.compact()).unwrap()).collect();
    (error.exception, args)
}

/// An engine over local files with one exchange directory.
fn site() -> (tempfile::TempDir, Engine) {
    let root = tempfile::tempdir().unwrap();
    fs::create_dir(root.path().join("exchange")).unwrap();
    let local = Local::open(root.path().join("objects")).unwrap();
    let permission = Permission { directories: vec![root.path().join("exchange")], ..Permission::default() };
    let exchange = ExternalReferences::new(permission, Arc::new(NoBuckets));
    let engine = Engine::new(Arc::new(local), BackendKind::Local).with_external(exchange);
    (root, engine)
}

#[tokio::test]
async fn only_what_names_a_place_is_a_reference() {
    let (_root, engine) = site();
    for value in [
        r##"{"$ref":"#/definitions/a"}"##,
        r#"{"$ref":"other.json"}"#,
        r#"{"$ref":"https://h/file:///a"}"#,
        r#"{"$ref":"http://json-schema.org/draft-07/schema#"}"#,
        r#"{"$ref":"files/a.json"}"#,
        r##"{"$defs":{"a":{"$ref":"file:///a"}},"items":[{"$ref":"#/$defs/a"}]}"##,
        r#"{"$ref":1}"#,
        r#"{"$ref":{"$ref":"file:///a"}}"#,
        r#"{"$ref":["s3:/x"]}"#,
        r#"{"$ref":"file:///a","more":1}"#,
        r#"[{"$ref":"file:///a"}]"#,
        r#"{"ref":"file:///a"}"#,
        r#""file:///a""#,
    ] {
        call(&engine, "store", &format!(r#"{{"key":"k","data":{value}}}"#)).await.unwrap();
        let wanted: serde_json::Value = serde_json::from_str(value).unwrap();
        assert_eq!(call(&engine, "retrieve", r#"{"key":"k"}"#).await.unwrap(), wanted);
    }
    for place in [
        "file:///a/../b",
        "file://host/a",
        "file:/a",
        "file:a",
        "FILE:///a%2Fb",
        "gs://bkt",
        "s3://bkt/../a",
        "s3:/x",
        "gs:",
    ] {
        let error = parse("store", &format!(r#"{{"key":"k","data":{{"$ref":"{place}"}}}}"#)).unwrap_err();
        assert!(error.exception == ExceptionClass::ValueError && error.to_string().starts_with("data: "), "{error}");
        let error = parse("retrieve", &format!(r#"{{"key":"k","destination":"{place}"}}"#)).unwrap_err();
        assert!(
            error.exception == ExceptionClass::ValueError && error.to_string().starts_with("destination: "),
            "{error}"
        );
    }
    let secret = r#"{"key":"k","destination":"https://h/o?X-Goog-CallSignature=hunter2"}"#;
    let error = parse("retrieve", secret).unwrap_err().to_string();
    assert!(error.contains("file:///") && !error.contains("hunter2"), "{error}");
    let error = parse("retrieve", r#"{"key":"k","destination":1}"#).unwrap_err();
    assert_eq!(error.to_string(), "retrieve() argument 'destination' must be str or None, not int");
}

#[test]
fn what_passes_through_no_message_streams() {
    for (task, kwargs, streams) in [
        ("store", r#"{"key": "k", "data": "v"}"#, false),
        ("store", r#"{"key": "k", "data": {"$ref": "file:///v"}}"#, true),
        ("retrieve", r#"{"key": "k"}"#, false),
        ("retrieve", r#"{"key": "k", "destination": "file:///v"}"#, true),
        ("copy", r#"{"source": "k", "destination": "l"}"#, true),
        ("delete", r#"{"key": "k"}"#, false),
    ] {
        assert_eq!(parse(task, kwargs).unwrap().streams(), streams, "{task} {kwargs}");
    }
}

#[tokio::test]
async fn a_file_comes_in_and_goes_out() {
    let (root, engine) = site();
    let path = |name: &str| root.path().join("exchange").join(name).display().to_string();
    fs::write(path("in"), b"\x00\xffbytes").unwrap();
    let store = format!(r#"{{"key":"k","data":{{"$ref":"file://{}"}},"content_type":"image/png"}}"#, path("in"));
    let receipt = call(&engine, "store", &store).await.unwrap();
    assert_eq!(
        (&receipt["kind"], &receipt["content_type"], &receipt["size"]),
        (&"bytes".into(), &"image/png".into(), &7.into())
    );
    let retrieve = format!(r#"{{"key":"k","destination":"file://{}"}}"#, path("out"));
    assert_eq!(call(&engine, "retrieve", &retrieve).await.unwrap(), receipt);
    assert_eq!(fs::read(path("out")).unwrap(), b"\x00\xffbytes");
    let part = format!(r#"{{"key":"k","offset":2,"length":3,"destination":"file://{}"}}"#, path("part"));
    let command = parse("retrieve", &part).unwrap();
    assert!(command.writes() && !parse("retrieve", r#"{"key":"k"}"#).unwrap().writes());
    // What a reply may carry does not concern what goes elsewhere.
    let finished = run(command, &engine, Context { max_reply_bytes: Some(1), ..Context::default() }).await;
    finished.result.unwrap();
    assert_eq!((finished.facts[0].size, finished.facts[0].backend.as_deref()), (Some(7), Some("local")));
    assert_eq!(fs::read(path("part")).unwrap(), b"byt");
    let none = format!(r#"{{"key":"none","destination":"file://{}"}}"#, path("none"));
    assert_eq!(call(&engine, "retrieve", &none).await.unwrap(), serde_json::Value::Null);
    assert!(!fs::exists(path("none")).unwrap());
}

#[tokio::test]
async fn faults_of_places_are_python_s_own_exceptions() {
    let (root, engine) = site();
    let path = |name: &str| root.path().join("exchange").join(name).display().to_string();
    let from = |name: &str| format!(r#"{{"key":"k","data":{{"$ref":"file://{}"}}}}"#, path(name));
    let to = |name: &str| format!(r#"{{"key":"k","destination":"file://{}"}}"#, path(name));
    let gone = "No such file or directory";
    let missing = |name: &str| (ExceptionClass::FileNotFoundError, vec![2.into(), gone.into(), path(name).into()]);
    assert_eq!(refused(&engine, "store", &from("none")).await, missing("none"));
    assert_eq!(refused(&engine, "store", &from("none/a")).await, missing("none/a"));
    call(&engine, "store", r#"{"key":"k","data":"value"}"#).await.unwrap();
    assert_eq!(refused(&engine, "retrieve", &to("none/a")).await, missing("none"));
    let (exception, args) = refused(&engine, "store", &from("../up")).await;
    assert_eq!(exception, ExceptionClass::ValueError, "{args:?}");
    let outside = r#"{"key":"k","data":{"$ref":"file:///etc/hostname"}}"#;
    let (exception, args) = refused(&engine, "store", outside).await;
    assert!(
        exception == ExceptionClass::ValueError && args[0].as_str().unwrap().contains("exchange_directories"),
        "{args:?}"
    );
    assert!(!args[0].as_str().unwrap().contains(root.path().to_str().unwrap()), "{args:?}");
    fs::write(path("file"), "").unwrap();
    let (exception, args) = refused(&engine, "store", &from("file/a")).await;
    assert_eq!((exception, &args[0], &args[2]), (ExceptionClass::OsError, &20.into(), &path("file/a").into()));
    for (task, call) in [
        ("store", r#"{"key":"k","data":{"$ref":"gs://bkt/a"}}"#),
        ("retrieve", r#"{"key":"k","destination":"s3://bkt/a"}"#),
    ] {
        let (exception, args) = refused(&engine, task, call).await;
        assert!(
            exception == ExceptionClass::PermissionError && args[1].as_str().unwrap().contains("exchange_buckets"),
            "{args:?}"
        );
    }
    assert_eq!(call(&engine, "retrieve", r#"{"key":"k"}"#).await.unwrap(), "value");
}

/// A bucket in memory, which signs and can be away.
#[derive(Debug, Default)]
struct Bucket {
    inner: Memory,
    away: AtomicBool,
}

impl Bucket {
    fn reach(&self) -> storage::Result<&Memory> {
        if self.away.load(Ordering::Relaxed) {
            let why = "the bucket cannot be reached";
            return Err(storage::Error::new(storage::ErrorKind::Unavailable, storage::Operation::Probe, None, why));
        }
        Ok(&self.inner)
    }
}

impl fmt::Display for Bucket {
    fn fmt(&self, formatter: &mut fmt::Formatter<'_>) -> fmt::Result {
        formatter.write_str("bucket")
    }
}

#[async_trait]
impl Backend for Bucket {
    async fn put(&self, key: &Key, object: &Object, how: &PutOptions) -> storage::Result<Attributes> {
        self.reach()?.put(key, object, how).await
    }
    async fn get(&self, key: &Key, want: GetOptions) -> storage::Result<Option<Object>> {
        self.reach()?.get(key, want).await
    }
    async fn copy(
        &self,
        source: &CopySource,
        key: &Key,
        attributes: &Attributes,
        options: &PutOptions,
    ) -> storage::Result<Option<Attributes>> {
        self.reach()?.copy(source, key, attributes, options).await
    }
    async fn stat(&self, key: &Key) -> storage::Result<Option<Attributes>> {
        self.reach()?.stat(key).await
    }
    async fn versions(&self, key: &Key, request: &VersionsRequest) -> storage::Result<Versions> {
        self.reach()?.versions(key, request).await
    }
    async fn delete(&self, key: &Key, how: &DeleteOptions) -> storage::Result<Removal> {
        self.reach()?.delete(key, how).await
    }
    async fn list(&self, page: &Page) -> storage::Result<Listing> {
        self.reach()?.list(page).await
    }
    async fn flush(&self, key: &Key) -> storage::Result<()> {
        self.reach()?.flush(key).await
    }
    async fn probe(&self) -> storage::Result<Probe> {
        self.reach()?.probe().await
    }
    fn validate(&self, key: &Key, attributes: &Attributes) -> storage::Result<()> {
        self.inner.validate(key, attributes)
    }
    async fn sign(&self, key: &Key, grant: &Grant) -> storage::Result<String> {
        Ok(format!("https://h/{key}?{}&{}&signature=hunter2", grant.method.as_str(), grant.lifetime.as_secs()))
    }
}

#[tokio::test]
async fn sync_counts_what_has_reached_the_bucket() {
    let folder = tempfile::tempdir().unwrap();
    let bucket = Arc::new(Bucket::default());
    let fallback = Fallback::open(Arc::clone(&bucket) as Arc<dyn Backend>, folder.path().join("o"), Metrics::new());
    let fallback = Arc::new(fallback.unwrap());
    let engine =
        Engine::new(Arc::clone(&fallback) as Arc<dyn Backend>, BackendKind::Gcs).with_fallback(Arc::clone(&fallback));
    call(&engine, "store", r#"{"key":"gone","data":1}"#).await.unwrap();
    assert_eq!(call(&engine, "sync", "{}").await.unwrap(), 0);
    bucket.away.store(true, Ordering::Relaxed);
    for key in ["a", "b", "a"] {
        let receipt = call(&engine, "store", &format!(r#"{{"key":"{key}","data":2}}"#)).await.unwrap();
        assert_eq!((&receipt["backend"], &receipt["pending_sync"]), (&"local".into(), &true.into()));
    }
    call(&engine, "delete", r#"{"key":"gone"}"#).await.unwrap();
    let (exception, _) = refused(&engine, "sync", "{}").await;
    assert_eq!(exception, ExceptionClass::StorageUnavailable);
    bucket.away.store(false, Ordering::Relaxed);
    assert!(parse("sync", "{}").unwrap().writes());
    assert_eq!(call(&engine, "sync", "{}").await.unwrap(), 3);
    assert_eq!(call(&engine, "sync", "{}").await.unwrap(), 0);
    for (key, there) in [("a", true), ("b", true), ("gone", false)] {
        assert_eq!(bucket.inner.stat(&Key::parse(key).unwrap()).await.unwrap().is_some(), there, "{key}");
    }
    let (_root, local) = site();
    assert_eq!(call(&local, "sync", "{}").await.unwrap(), 0);
}

#[tokio::test]
async fn a_signed_url_says_what_it_is_good_for() {
    let engine = Engine::new(Arc::new(Bucket::default()), BackendKind::Gcs);
    for (kwargs, method, seconds) in [
        (r#"{"key":"k"}"#, "GET", 3600),
        (r#"{"key":"k","method":null,"expires_in":null}"#, "GET", 3600),
        (r#"{"key":"k","method":"PUT","expires_in":1}"#, "PUT", 1),
        (r#"{"key":"k","method":"GET","expires_in":604800}"#, "GET", 604_800),
    ] {
        let before = jiff::Timestamp::now().as_second();
        let command = parse("signed_url", kwargs).unwrap();
        assert!(!command.writes(), "the journal keeps nothing of it");
        let finished = run(command, &engine, Context::default()).await;
        assert!(!format!("{:?}", finished.facts).contains("hunter2"));
        let answer: serde_json::Value = serde_json::from_str(&finished.result.unwrap()).unwrap();
        assert_eq!(answer["url"], format!("https://h/k?{method}&{seconds}&signature=hunter2"));
        assert_eq!(answer["method"], method);
        let expires_at: jiff::Timestamp = answer["expires_at"].as_str().unwrap().parse().unwrap();
        let after = jiff::Timestamp::now().as_second();
        assert!((before + seconds..=after + seconds).contains(&expires_at.as_second()), "{answer}");
    }
    for kwargs in [
        r#"{"key":"k","method":"get"}"#,
        r#"{"key":"k","method":"DELETE"}"#,
        r#"{"key":"k","method":""}"#,
        r#"{"key":"k","expires_in":0}"#,
        r#"{"key":"k","expires_in":604801}"#,
        r#"{"key":"k","expires_in":-1}"#,
        r#"{"key":"../k"}"#,
    ] {
        assert_eq!(parse("signed_url", kwargs).unwrap_err().exception, ExceptionClass::ValueError, "{kwargs}");
    }
    for kwargs in [r#"{"key":"k","method":1}"#, r#"{"key":"k","expires_in":1.5}"#, r#"{"key":"k","expires_in":true}"#] {
        assert_eq!(parse("signed_url", kwargs).unwrap_err().exception, ExceptionClass::TypeError, "{kwargs}");
    }
    let (_root, local) = site();
    let (exception, args) = refused(&local, "signed_url", r#"{"key":"k"}"#).await;
    assert!(exception == ExceptionClass::ValueError && args[0].as_str().unwrap().contains("bucket"), "{args:?}");
}

#[tokio::test]
async fn what_expires_on_the_last_day_of_the_calendar_never_does() {
    let (_root, engine) = site();
    for instant in [
        r#""9999-12-31T23:59:59.999999""#,
        r#""9999-12-31T23:59:59.999999-14:00""#,
        r#""9999-12-31""#,
        r#"{"__type__":"datetime","__value__":"9999-12-31T23:59:59.999999+14:00"}"#,
    ] {
        let kwargs = format!(r#"{{"key":"k","data":1,"expires_at":{instant}}}"#);
        let receipt: serde_json::Value = call(&engine, "store", &kwargs).await.unwrap();
        assert_eq!(receipt["expires_at"], serde_json::Value::Null, "{instant}");
        assert_eq!(call(&engine, "exists", r#"{"key":"k"}"#).await.unwrap(), true);
    }
    let receipt =
        call(&engine, "store", r#"{"key":"k","data":1,"expires_at":"9999-12-30T00:00:00+00:00"}"#).await.unwrap();
    assert_eq!(receipt["expires_at"].as_str().unwrap().split('T').next(), Some("9999-12-30"));
    call(&engine, "store", r#"{"key":"k","data":1,"expires_at":"0001-01-01T00:00:00+14:00"}"#).await.unwrap();
    assert_eq!(call(&engine, "exists", r#"{"key":"k"}"#).await.unwrap(), false);
}
