//! Tests of values that are read and written by reference, over stores in memory and on disk.

use std::collections::HashMap;
use std::fs;

use jiff::{SignedDuration, Timestamp};
use tempfile::TempDir;

use super::*;
use crate::provider::BackendKind;
use crate::storage::backend::ByteRange;
use crate::storage::backends::{Local, Memory};
use crate::storage::engine::{Engine, Redelivered, RetrieveOptions, StoreOptions};
use crate::storage::files::Spool;
use crate::storage::layers::Encoded;
use crate::storage::object::{JsonText, Metadata, Value};
use crate::storage::tests::Forwarding;

/// A folder with one exchange directory, buckets in memory, and engines over two backends.
struct Setup {
    root: TempDir,
    buckets: Arc<MemoryBuckets>,
    backends: [Arc<dyn Backend>; 2],
}

/// Buckets in memory by URL.
#[derive(Debug, Default)]
struct MemoryBuckets(HashMap<String, Arc<Memory>>);

#[async_trait]
impl Buckets for MemoryBuckets {
    async fn open(&self, provider: Provider, bucket: &str) -> Result<Arc<dyn Backend>> {
        match self.0.get(&format!("{}://{bucket}", provider.scheme())) {
            Some(bucket) => {
                let bucket = Arc::clone(bucket) as Arc<dyn Backend>;
                Ok(Arc::new(Encoded::new(bucket, Spool::new(std::env::temp_dir()))))
            }
            None => {
                let why = "the bucket cannot be reached";
                Err(Error::new(ErrorKind::Unavailable, Operation::Probe, None, why))
            }
        }
    }
}

impl Setup {
    fn new() -> Self {
        let root = tempfile::tempdir_in("/dev/shm").or_else(|_| tempfile::tempdir()).unwrap();
        fs::create_dir(root.path().join("exchange")).unwrap();
        let buckets = ["gs://bkt", "s3://bkt"].map(|url| (url.to_owned(), Arc::new(Memory::new())));
        let local = Local::open(root.path().join("objects")).unwrap();
        let backends = [Arc::new(Memory::new()) as Arc<dyn Backend>, Arc::new(local)];
        Self { buckets: Arc::new(MemoryBuckets(HashMap::from(buckets))), root, backends }
    }

    fn engine(&self, backend: &Arc<dyn Backend>) -> Engine {
        let buckets =
            [("bkt", Provider::Gcs), ("bkt", Provider::S3), ("other", Provider::Gcs), ("other", Provider::S3)];
        let permission = Permission {
            directories: vec![self.root.path().join("unused"), self.path("")],
            own: Some((Provider::Gcs, "own".to_owned())),
            buckets: buckets.map(|(name, scheme)| (scheme, name.to_owned())).to_vec(),
        };
        let external = ExternalReferences::new(permission, Arc::clone(&self.buckets) as Arc<dyn Buckets>);
        Engine::new(Arc::clone(backend), BackendKind::Local).with_external(external)
    }

    fn engines(&self) -> [Engine; 2] {
        [0, 1].map(|number| self.engine(&self.backends[number]))
    }

    fn bucket(&self) -> &Memory {
        &self.buckets.0["gs://bkt"]
    }

    fn path(&self, name: &str) -> PathBuf {
        self.root.path().join("exchange").join(name)
    }

    fn file(&self, name: &str) -> Reference {
        reference(&format!("file://{}", self.path(name).display()))
    }

    fn names(&self) -> Vec<String> {
        let entries = fs::read_dir(self.path("")).unwrap();
        let mut names: Vec<_> = entries.map(|entry| entry.unwrap().file_name().into_string().unwrap()).collect();
        names.sort();
        names
    }
}

fn reference(text: &str) -> Reference {
    Reference::parse(text).unwrap()
}

fn key(text: &str) -> Key {
    Key::parse(text).unwrap()
}

fn metadata(text: &str) -> Option<Metadata> {
    Some(Metadata::parse(text).unwrap())
}

async fn value(engine: &Engine, name: &str) -> Option<Value> {
    engine.retrieve(&key(name), GetOptions::default()).await.unwrap().map(|found| found.value)
}

/// Bytes that are no text, and more of them than stay in memory.
fn many() -> Vec<u8> {
    (0..3_000_001_u32).map(|at| (at.wrapping_mul(2_654_435_761) >> 24) as u8).collect()
}

#[tokio::test]
async fn a_file_is_stored_as_bytes_whatever_its_content() {
    let setup = Setup::new();
    for engine in setup.engines() {
        for (name, bytes) in [("a b%\u{fc}", b"{\"a\": 1}".to_vec()), ("empty", Vec::new()), ("many", many())] {
            fs::write(setup.path(name), &bytes).unwrap();
            let url = format!("file://{}", setup.path(name).display().to_string().replace('%', "%25"));
            let receipt = engine.store_from(&key("k"), &reference(&url), StoreOptions::default()).await.unwrap();
            let wanted =
                (Some(bytes.len() as u64), Some(Checksum::of(&bytes)), Kind::Bytes, "application/octet-stream");
            assert_eq!((receipt.size, receipt.checksum, receipt.kind, receipt.content_type.as_str()), wanted);
            assert!(value(&engine, "k").await == Some(Value::Bytes(bytes.into())), "{name}");
            assert_eq!(engine.stat(&key("k")).await.unwrap().unwrap().receipt, receipt);
        }
        let options = StoreOptions {
            metadata: metadata(r#"{"n":1}"#),
            content_type: Some(ContentType::parse("text/csv").unwrap()),
            ..StoreOptions::default()
        };
        engine.store_from(&key("k"), &setup.file("empty"), options).await.unwrap();
        let stat = engine.stat(&key("k")).await.unwrap().unwrap();
        let told = (stat.receipt.content_type.as_str(), stat.receipt.kind, stat.metadata);
        assert_eq!(told, ("text/csv", Kind::Bytes, metadata(r#"{"n":1}"#)));
    }
}

#[tokio::test]
async fn unreadable_sources_are_named_and_nothing_is_stored() {
    let setup = Setup::new();
    fs::create_dir(setup.path("folder")).unwrap();
    fs::write(setup.root.path().join("secret"), "secret").unwrap();
    std::os::unix::fs::symlink(setup.root.path().join("secret"), setup.path("link")).unwrap();
    let outside = |name: &str| reference(&format!("file://{}", setup.root.path().join(name).display()));
    for engine in setup.engines() {
        for (source, kind, word) in [
            (outside("secret"), ErrorKind::Invalid, "exchange_directories"),
            (outside("exchange2/a"), ErrorKind::Invalid, "exchange_directories"),
            (outside("exchange"), ErrorKind::Invalid, "regular file"),
            (outside("unused/a"), ErrorKind::Missing, "No such file"),
            (setup.file("link"), ErrorKind::Invalid, "symbolic link"),
            (setup.file("link/a"), ErrorKind::Invalid, "symbolic link"),
            (setup.file("folder"), ErrorKind::Invalid, "regular file"),
            (setup.file("none"), ErrorKind::Missing, "No such file"),
            (setup.file("none/a"), ErrorKind::Missing, "No such file"),
            (setup.file(&"x".repeat(256)), ErrorKind::Io, "too long"),
            (reference("gs://bkt/none"), ErrorKind::Missing, "not there"),
            (reference("gs://other/a"), ErrorKind::Unavailable, "cannot be reached"),
        ] {
            let error = engine.store_from(&key("k"), &source, StoreOptions::default()).await.unwrap_err();
            assert_eq!((error.kind, error.operation, error.key.clone()), (kind, Operation::Store, Some(key("k"))));
            assert!(error.message().contains(word), "{error}");
            assert_eq!(error.subject, Some(source.to_string()), "{error}");
            assert!(!error.to_string().contains("unused") || source == outside("unused/a"), "{error}");
        }
        assert!(value(&engine, "k").await.is_none());
        let bare = Engine::new(Arc::new(Memory::new()), BackendKind::Local);
        for (source, kind, word) in [
            (setup.file("none"), ErrorKind::Invalid, "exchange_directories"),
            (reference("s3://bkt/a"), ErrorKind::Denied, "exchange_buckets"),
        ] {
            let error = bare.store_from(&key("k"), &source, StoreOptions::default()).await.unwrap_err();
            assert!(error.kind == kind && error.message().contains(word), "{error}");
        }
    }
}

/// A backend that changes a file after its bytes were checksummed and before they are stored.
fn file_changer(inner: Arc<dyn Backend>, path: PathBuf, length: u64) -> Arc<dyn Backend> {
    Arc::new(Forwarding::new(inner, move |operation| {
        if operation == Operation::Store {
            let file = fs::OpenOptions::new().write(true).open(&path).unwrap();
            std::os::unix::fs::FileExt::write_all_at(&file, b"changed", 5).unwrap();
            file.set_len(length).unwrap();
        }
        Box::pin(async {})
    }))
}

#[tokio::test]
async fn a_file_that_changes_while_it_is_read_is_not_stored() {
    let setup = Setup::new();
    let bytes = many();
    for inner in &setup.backends {
        for length in [bytes.len() as u64, 100] {
            fs::write(setup.path("f"), &bytes).unwrap();
            let engine = setup.engine(&file_changer(Arc::clone(inner), setup.path("f"), length));
            let stored = engine.store_from(&key("k"), &setup.file("f"), StoreOptions::default()).await;
            let error = stored.unwrap_err();
            assert_eq!(error.kind, ErrorKind::Integrity, "{error}");
            assert!(value(&engine, "k").await.is_none());
        }
        fs::write(setup.path("f"), &bytes).unwrap();
        fs::write(setup.path("g"), &bytes).unwrap();
        let engine = setup.engine(&file_changer(Arc::new(Memory::new()), setup.path("f"), bytes.len() as u64));
        engine.store_from(&key("k"), &setup.file("g"), StoreOptions::default()).await.unwrap();
    }
}

#[tokio::test]
async fn a_value_is_written_to_a_file_whole_or_not_at_all() {
    let setup = Setup::new();
    let values = [
        Value::Text("text".to_owned()),
        Value::Json(JsonText::of_parsed("{\"a\":NaN}".to_owned())),
        Value::Bytes(many().into()),
        Value::Bytes("".into()),
    ];
    for engine in setup.engines() {
        for value in values.clone() {
            let stored = engine.store(&key("k"), value.clone(), StoreOptions::default()).await.unwrap();
            let to = setup.file("out");
            let receipt = engine.retrieve_to(&key("k"), &to, RetrieveOptions::default()).await.unwrap();
            assert_eq!(receipt, Some(stored.clone()));
            let (bytes, json) = (value.clone().into_bytes(), value.kind() == Kind::Json);
            assert!(fs::read(setup.path("out")).unwrap() == bytes);
            let range = Some(ByteRange { offset: 1, length: Some(2) });
            let part = engine.retrieve_to(&key("k"), &to, RetrieveOptions { range, ..Default::default() }).await;
            match part {
                Err(error) if json => assert_eq!(error.kind, ErrorKind::Invalid),
                part => {
                    assert_eq!(part.unwrap(), Some(stored));
                    let end = bytes.len().min(3);
                    assert_eq!(fs::read(setup.path("out")).unwrap(), &bytes[end.min(1)..end]);
                }
            }
            assert_eq!(setup.names(), ["out"]);
        }
        fs::remove_file(setup.path("out")).unwrap();
        let none = engine.retrieve_to(&key("none"), &setup.file("out"), RetrieveOptions::default()).await;
        assert_eq!(none.unwrap(), None);
        assert_eq!(setup.names(), [""; 0]);

        let commit_guard = CommitGuard::default();
        assert!(commit_guard.abandon());
        let options = RetrieveOptions { commit_guard, ..RetrieveOptions::default() };
        for to in [setup.file("out"), reference("gs://bkt/out")] {
            let error = engine.retrieve_to(&key("k"), &to, options.clone()).await.unwrap_err();
            assert_eq!(error.kind, ErrorKind::Abandoned, "{error}");
        }
        assert_eq!(setup.names(), [""; 0]);
        assert!(setup.bucket().stat(&key("out")).await.unwrap().is_none());
    }
}

#[tokio::test]
async fn refused_destinations_and_damaged_values_are_not_written() {
    let setup = Setup::new();
    fs::create_dir(setup.path("folder")).unwrap();
    std::os::unix::fs::symlink(setup.root.path(), setup.path("up")).unwrap();
    let outside = reference(&format!("file://{}", setup.root.path().join("out").display()));
    for engine in setup.engines() {
        engine.store(&key("k"), Value::Bytes(many().into()), StoreOptions::default()).await.unwrap();
        for (to, kind, word, subject) in [
            (outside.clone(), ErrorKind::Invalid, "exchange_directories", outside.to_string()),
            (setup.file("up/out"), ErrorKind::Invalid, "symbolic link", setup.path("up/out").display().to_string()),
            (setup.file("folder"), ErrorKind::Invalid, "regular file", setup.path("folder").display().to_string()),
            (setup.file("none/out"), ErrorKind::Missing, "make its folder", setup.path("none").display().to_string()),
            (reference("s3://other/a"), ErrorKind::Unavailable, "cannot be reached", "s3://other/a".to_owned()),
        ] {
            let error = engine.retrieve_to(&key("k"), &to, RetrieveOptions::default()).await.unwrap_err();
            assert_eq!((error.kind, error.operation), (kind, Operation::Retrieve), "{error}");
            assert!(error.message().contains(word) && error.subject == Some(subject), "{error}");
        }
        // A refused destination is refused whether or not the key has an object.
        let error = engine.retrieve_to(&key("none"), &outside, RetrieveOptions::default()).await.unwrap_err();
        assert_eq!(error.kind, ErrorKind::Invalid);
        std::os::unix::fs::symlink(setup.root.path().join("mine"), setup.path("link")).unwrap();
        engine.retrieve_to(&key("k"), &setup.file("link"), RetrieveOptions::default()).await.unwrap();
        assert!(!setup.root.path().join("mine").exists());
        fs::remove_file(setup.path("link")).unwrap();
    }
    let path = setup.root.path().join("objects/k.obj");
    let mut bytes = fs::read(&path).unwrap();
    *bytes.last_mut().unwrap() ^= 1;
    fs::write(&path, bytes).unwrap();
    let [_, local] = setup.engines();
    for to in [setup.file("out"), reference("gs://bkt/out")] {
        let error = local.retrieve_to(&key("k"), &to, RetrieveOptions::default()).await.unwrap_err();
        assert_eq!(error.kind, ErrorKind::Integrity, "{error}");
    }
    assert_eq!(setup.names(), ["folder", "up"]);
}

#[tokio::test]
async fn objects_keep_kind_type_and_metadata_both_ways() {
    let setup = Setup::new();
    let values = [
        Value::Text("text".to_owned()),
        Value::Text("\u{fc}".repeat(1_000_000)),
        Value::Json(JsonText::of_parsed("{\"a\":NaN}".to_owned())),
        Value::Json(JsonText::of_parsed(format!("[{}1]", "1,".repeat(1_000_000)))),
        Value::Bytes(many().into()),
    ];
    for engine in setup.engines() {
        for given in values.clone() {
            let options = StoreOptions {
                metadata: metadata(r#"{"n":1.50}"#),
                content_type: Some(ContentType::parse("x/y").unwrap()),
                ..StoreOptions::default()
            };
            engine.store(&key("k"), given.clone(), options).await.unwrap();
            let to = reference("s3://bkt/a b%20/\u{fc}");
            let options = RetrieveOptions { operation_id: Some("task".to_owned()), ..RetrieveOptions::default() };
            engine.retrieve_to(&key("k"), &to, options).await.unwrap();
            let kept = setup.buckets.0["s3://bkt"].stat(&key("a b%20/\u{fc}")).await.unwrap().unwrap();
            assert_eq!((kept.kind, kept.content_type.as_str()), (given.kind(), "x/y"));
            assert_eq!(kept.operation_id.as_deref(), Some("task"));

            let receipt = engine.store_from(&key("back"), &to, StoreOptions::default()).await.unwrap();
            assert!(value(&engine, "back").await == Some(given.clone()));
            assert_eq!((receipt.kind, receipt.content_type.as_str()), (given.kind(), "x/y"));
            assert_ne!(receipt.generation, kept.generation);
            assert_eq!(engine.stat(&key("back")).await.unwrap().unwrap().metadata, metadata(r#"{"n":1.50}"#));
            let options = StoreOptions {
                metadata: metadata("{}"),
                content_type: Some(ContentType::parse("other/type").unwrap()),
                ..StoreOptions::default()
            };
            engine.store_from(&key("back"), &to, options).await.unwrap();
            let stat = engine.stat(&key("back")).await.unwrap().unwrap();
            let told = (stat.receipt.kind, stat.receipt.content_type.as_str(), stat.metadata);
            assert_eq!(told, (given.kind(), "other/type", metadata("{}")));
        }
        engine.store(&key("k"), Value::Text("12345".to_owned()), StoreOptions::default()).await.unwrap();
        let range = Some(ByteRange { offset: 1, length: Some(3) });
        let to = reference("gs://bkt/part");
        engine.retrieve_to(&key("k"), &to, RetrieveOptions { range, ..Default::default() }).await.unwrap();
        let kept = setup.bucket().get(&key("part"), GetOptions::default()).await.unwrap().unwrap();
        assert_eq!(kept.payload.into_memory().await.unwrap(), "234");
        assert_eq!(
            (kept.attributes.kind, kept.attributes.content_type.as_str()),
            (Kind::Bytes, "application/octet-stream")
        );
    }
}

/// Fails the test when a bucket is opened.
#[derive(Debug)]
struct Untouched;

#[async_trait]
impl Buckets for Untouched {
    async fn open(&self, provider: Provider, bucket: &str) -> Result<Arc<dyn Backend>> {
        panic!("{provider:?} {bucket} was opened");
    }
}

#[tokio::test]
async fn a_bucket_that_is_not_listed_is_refused_without_being_opened() {
    let setup = Setup::new();
    let listed = |own: Option<&str>, buckets: &[&str]| Permission {
        own: own.map(|name| (Provider::Gcs, name.to_owned())),
        buckets: buckets.iter().map(|name| (Provider::Gcs, (*name).to_owned())).collect(),
        ..Permission::default()
    };
    for permission in [listed(None, &[]), listed(Some("own"), &[]), listed(Some("own"), &["listed", "payrol"])] {
        for backend in &setup.backends {
            let external = ExternalReferences::new(permission.clone(), Arc::new(Untouched));
            let engine = Engine::new(Arc::clone(backend), BackendKind::Local).with_external(external);
            engine.store(&key("k"), Value::Text("v".to_owned()), StoreOptions::default()).await.unwrap();
            for name in
                ["s3://payroll/a", "s3://own/a", "s3://listed/a", "gs://payroll/a", "gs://OWN/a", "gs://payrol.x/a"]
            {
                let other = reference(name);
                let stored = engine.store_from(&key("n"), &other, StoreOptions::default()).await.map(drop);
                let told = engine.retrieve_to(&key("k"), &other, RetrieveOptions::default()).await.map(drop);
                let of_none = engine.retrieve_to(&key("none"), &other, RetrieveOptions::default()).await.map(drop);
                for error in [stored, told, of_none].map(|outcome| outcome.unwrap_err()) {
                    assert_eq!(error.kind, ErrorKind::Denied, "{error}");
                    assert!(error.message().contains("exchange_buckets"), "{error}");
                    assert_eq!(error.subject.as_deref(), Some(name));
                }
            }
            assert!(value(&engine, "n").await.is_none());
        }
    }
}

#[tokio::test]
async fn objects_of_the_own_bucket_are_keys_of_the_store() {
    let setup = Setup::new();
    for engine in setup.engines() {
        let options = StoreOptions { metadata: metadata(r#"{"n":1}"#), ..StoreOptions::default() };
        engine.store(&key("a/b"), Value::Json(JsonText::of_parsed("[1]".to_owned())), options).await.unwrap();
        engine.store_from(&key("copy"), &reference("gs://own/a/b"), StoreOptions::default()).await.unwrap();
        let to = reference("GS://own/out");
        let receipt = engine.retrieve_to(&key("copy"), &to, RetrieveOptions::default()).await.unwrap();
        let out = engine.stat(&key("out")).await.unwrap().unwrap();
        assert_eq!((out.receipt.kind, out.metadata), (Kind::Json, metadata(r#"{"n":1}"#)));
        assert_ne!(out.receipt.generation, receipt.unwrap().generation);
        assert_eq!(value(&engine, "out").await, Some(Value::Json(JsonText::of_parsed("[1]".to_owned()))));
        let missing = engine.store_from(&key("k"), &reference("gs://own/none"), StoreOptions::default()).await;
        assert_eq!(missing.unwrap_err().kind, ErrorKind::Missing);
        let commit_guard = CommitGuard::default();
        assert!(commit_guard.abandon());
        let options = RetrieveOptions { commit_guard, ..RetrieveOptions::default() };
        let error = engine.retrieve_to(&key("copy"), &reference("gs://own/late"), options).await.unwrap_err();
        assert_eq!((error.kind, error.operation), (ErrorKind::Abandoned, Operation::Retrieve));
        assert!(value(&engine, "late").await.is_none());
    }
}

#[tokio::test]
async fn foreign_objects_that_contradict_themselves_are_refused() {
    let setup = Setup::new();
    let [engine, _] = setup.engines();
    let attributes = |kind: Kind, bytes: &[u8]| {
        let size = bytes.len() as u64;
        Attributes::new(kind, kind.content_type().to_owned(), size, Checksum::of(bytes))
    };
    let long = RawValue::from_string(format!(r#"{{"a":"{}"}}"#, "x".repeat(5000))).unwrap();
    let big = vec![b' '; MAX_JSON_BYTES as usize + 1];
    let compressed = Some("gzip".to_owned());
    for (attributes, bytes, kind, word) in [
        (attributes(Kind::Text, b"\xff"), &b"\xff"[..], ErrorKind::Invalid, "UTF-8"),
        (attributes(Kind::Json, b"{"), b"{", ErrorKind::Invalid, "JSON"),
        (attributes(Kind::Json, &big), &big, ErrorKind::Invalid, "16777217 bytes"),
        (Attributes { metadata: Some(long), ..attributes(Kind::Bytes, b"") }, b"", ErrorKind::Invalid, "metadata"),
        (
            Attributes { compression: compressed, ..attributes(Kind::Bytes, b"") },
            b"",
            ErrorKind::Integrity,
            "Content-Encoding",
        ),
        (Attributes { size: 2, ..attributes(Kind::Bytes, b"1") }, b"1", ErrorKind::Integrity, "size"),
        (
            Attributes { expires_at: Some(Timestamp::UNIX_EPOCH), ..attributes(Kind::Bytes, b"") },
            b"",
            ErrorKind::Missing,
            "not there",
        ),
    ] {
        let payload = bytes::Bytes::copy_from_slice(bytes).into();
        setup.bucket().put(&key("a"), &Object { attributes, payload }, &PutOptions::default()).await.unwrap();
        let source = reference("gs://bkt/a");
        let error = engine.store_from(&key("k"), &source, StoreOptions::default()).await.unwrap_err();
        assert_eq!(error.kind, kind, "{error}");
        assert!(error.message().contains(word), "{error}");
    }
    assert!(value(&engine, "k").await.is_none());
}

#[tokio::test]
async fn a_redelivered_store_without_its_source_answers_its_object() {
    let setup = Setup::new();
    for engine in setup.engines() {
        let options = |id: &str, began: Option<SignedDuration>| StoreOptions {
            operation_id: Some(id.to_owned()),
            redelivered: began.map(|ago| Redelivered { started_at: Some(Timestamp::now() - ago) }),
            ..StoreOptions::default()
        };
        let (minute, now) = (Some(SignedDuration::from_mins(1)), Some(-SignedDuration::from_secs(1)));
        fs::write(setup.path("f"), "once").unwrap();
        let receipt = engine.store_from(&key("k"), &setup.file("f"), options("me", None)).await.unwrap();
        let again = engine.store_from(&key("k"), &setup.file("f"), options("me", minute)).await.unwrap();
        assert_eq!(again, receipt);
        fs::remove_file(setup.path("f")).unwrap();
        let again = engine.store_from(&key("k"), &setup.file("f"), options("me", minute)).await.unwrap();
        assert_eq!(again, receipt);
        for other in [options("me", None), options("other", minute), options("me", now)] {
            let error = engine.store_from(&key("k"), &setup.file("f"), other).await.unwrap_err();
            assert_eq!(error.kind, ErrorKind::Missing);
        }
    }
}

/// A large object of another tool passes to a key of the store as a file that nobody parses.
#[tokio::test]
async fn json_that_nobody_parsed_never_becomes_an_answer() {
    let setup = Setup::new();
    let path = setup.path("large.json");
    fs::write(&path, format!("[{}", "1,".repeat(1_000_000))).unwrap();
    for engine in setup.engines() {
        let file = Arc::new(fs::File::open(&path).unwrap());
        let length = file.metadata().unwrap().len();
        let content = Content::new(Kind::Json, Payload::file(file, 0, length));
        engine.store(&key("k"), content, StoreOptions::default()).await.unwrap();
        let error = engine.retrieve(&key("k"), GetOptions::default()).await.unwrap_err();
        assert_eq!(error.kind, ErrorKind::Integrity, "{error}");
    }
}
