//! Tests of old files behind a store, with the files that the class itself wrote.

use std::collections::BTreeMap;
use std::fs;
use std::path::Path;

use bytes::Bytes;

use super::*;
use crate::provider::BackendKind;
use crate::storage::backend::ByteRange;
use crate::storage::backends::Memory;
use crate::storage::engine::{DeleteRequest, Engine, ListRequest, Receipt, StoreOptions};
use crate::storage::files::Spool;
use crate::storage::layers::{Encoded, LegacyValues};
use crate::storage::object::{JsonText, Kind, Value};

const OWN: &[&str] = &["objects", "journal"];

#[derive(serde::Deserialize)]
struct Told {
    stored: serde_json::Value,
    metadata: Option<serde_json::Value>,
}

fn told() -> BTreeMap<String, Told> {
    let path = concat!(env!("CARGO_MANIFEST_DIR"), "/tests/fixtures/legacy/storage.json");
    serde_json::from_str(&fs::read_to_string(path).unwrap()).unwrap()
}

/// A copy of the folder that the class wrote.
fn copied() -> tempfile::TempDir {
    fn copy(from: &Path, to: &Path) {
        fs::create_dir_all(to).unwrap();
        for entry in fs::read_dir(from).unwrap() {
            let entry = entry.unwrap();
            let target = to.join(entry.file_name());
            if entry.file_type().unwrap().is_dir() {
                copy(&entry.path(), &target);
            } else {
                fs::copy(entry.path(), target).unwrap();
            }
        }
    }
    let folder = tempfile::tempdir().unwrap();
    copy(Path::new(concat!(env!("CARGO_MANIFEST_DIR"), "/tests/fixtures/legacy/storage")), folder.path());
    folder
}

fn engine(root: &Path, inner: Arc<dyn Backend>) -> Engine {
    let spool = || Spool::new(std::env::temp_dir());
    let files = LegacyFiles::new(inner, root, OwnEntries::new(OWN, &[]), spool());
    let values = LegacyValues::new(Arc::new(Encoded::new(Arc::new(files), spool())), spool());
    Engine::new(Arc::new(values), BackendKind::Local)
}

fn key(text: &str) -> Key {
    Key::parse(text).unwrap()
}

/// A value as a Celery client would send it.
fn shown(value: &Value) -> serde_json::Value {
    use base64::Engine as _;
    match value {
        Value::Text(text) => text.as_str().into(),
        Value::Json(json) => serde_json::from_str(json.as_str()).unwrap(),
        Value::Bytes(bytes) => match std::str::from_utf8(bytes) {
            Ok(text) => serde_json::json!({ "__type__": "bytes", "__value__": text }),
            Err(_) => {
                let text = base64::engine::general_purpose::STANDARD.encode(bytes);
                serde_json::json!({ "__type__": "base64", "__value__": text })
            }
        },
    }
}

#[tokio::test]
async fn all_that_the_class_wrote_is_read_as_it_was_stored() {
    let (folder, told) = (copied(), told());
    let engine = engine(folder.path(), Arc::new(Memory::new()));
    let keys = engine.list(ListRequest::default()).await.unwrap();
    assert!(keys.iter().map(Key::as_str).eq(told.keys().map(String::as_str)), "{keys:?}");
    for (name, Told { stored, metadata }) in &told {
        let key = key(name);
        assert!(engine.exists(&key).await.unwrap(), "{name}");
        let stat = engine.stat(&key).await.unwrap().unwrap();
        if name.starts_with("shared/") {
            assert_eq!(stat.metadata.as_ref().unwrap().get(), r#"{"kind":"text"}"#, "the last one is there");
        } else {
            let found = stat.metadata.as_ref().map(|metadata| serde_json::from_str(metadata.get()).unwrap());
            assert_eq!(&found, metadata, "{name}");
        }
        assert_eq!(stat.receipt.expires_at, None, "{name}");
        if name == "model" {
            let error = engine.retrieve(&key, GetOptions::default()).await.unwrap_err();
            assert_eq!(error.kind, ErrorKind::Integrity);
            assert!(
                error.to_string().contains("__main__.Model") && error.to_string().contains("`offset=0`"),
                "{error}"
            );
            let range = Some(ByteRange::default());
            let bytes = engine.retrieve(&key, GetOptions { range, ..GetOptions::default() }).await.unwrap().unwrap();
            assert!(matches!(bytes.value, Value::Bytes(bytes) if bytes.starts_with(b"\x80\x04")));
            continue;
        }
        let read = engine.retrieve(&key, GetOptions::default()).await.unwrap().unwrap();
        let wanted = match name.as_str() {
            // The class kept no trace of the type.
            "bytes/utf-8" => "hello".into(),
            _ => stored.clone(),
        };
        assert_eq!(shown(&read.value), wanted, "{name}");
        assert_eq!(read.receipt, stat.receipt, "{name}: what `stat` tells is what is read");
        assert_eq!(read.receipt.kind, read.value.kind(), "{name}");
        let bytes = read.value.into_bytes();
        let checksum = crate::storage::object::Checksum::of(&bytes);
        assert_eq!((read.receipt.size, read.receipt.checksum), (Some(bytes.len() as u64), Some(checksum)), "{name}");
    }
    let range = GetOptions { range: Some(ByteRange { offset: 100, length: Some(3) }), ..GetOptions::default() };
    let part = engine.retrieve(&key("packed/text-without"), range).await.unwrap().unwrap();
    assert_eq!(part.value, Value::Bytes(Bytes::from_static("ž".as_bytes().repeat(2)[..3].to_vec().leak())));
    let limit = GetOptions { limit: Some(10), ..GetOptions::default() };
    for long in ["text.txt", "dict", "packed/dict-without"] {
        assert_eq!(engine.retrieve(&key(long), limit.clone()).await.unwrap_err().kind, ErrorKind::Invalid, "{long}");
    }
}

#[tokio::test]
async fn pages_are_in_order_and_new_objects_hide_old_files() {
    let folder = tempfile::tempdir().unwrap();
    let (root, inner) = (folder.path(), Arc::new(Memory::new()));
    let mut all = Vec::new();
    for name in ["a", "a-b", "a.d/x", "a.d/y", "a.txt", "b/c/d", "b/c.d", "b-c", "é/1", "z"] {
        fs::create_dir_all(root.join(name).parent().unwrap()).unwrap();
        fs::write(root.join(name), "old").unwrap();
        all.push(name);
    }
    for own in ["objects/mine", "journal/mine", "lost+found/x", "z.metadata"] {
        fs::create_dir_all(root.join(own).parent().unwrap()).unwrap();
        fs::write(root.join(own), "no value").unwrap();
    }
    fs::write(root.join("b/a line\nbreak"), "no key").unwrap();
    let engine = engine(root, Arc::<Memory>::clone(&inner));
    let new = Engine::new(inner, BackendKind::Local);
    for name in ["a", "a.d/x", "b/c", "m"] {
        new.store(&key(name), Value::Text("new".into()), StoreOptions::default()).await.unwrap();
        all.push(name);
    }
    all.sort_unstable();
    all.dedup();
    for prefix in ["", "a", "a.d/", "a.d/x", "b/c", "é", "none"] {
        let wanted: Vec<&str> = all.iter().copied().filter(|name| name.starts_with(prefix)).collect();
        for limit in [1, 2, 3, 100] {
            let (mut found, mut after) = (Vec::new(), None);
            loop {
                let request =
                    ListRequest { prefix: Some(prefix.to_owned()), limit: Some(limit), start_after: after.clone() };
                let page = engine.list(request).await.unwrap();
                let Some(last) = page.last() else { break };
                assert!(page.len() <= limit);
                after = Some(last.as_str().to_owned());
                found.extend(page);
            }
            assert!(found.iter().map(Key::as_str).eq(wanted.iter().copied()), "{prefix} {limit}: {found:?}");
        }
    }
    for name in ["objects/mine", "z.metadata", "a.d", "a/b"] {
        assert!(!engine.exists(&key(name)).await.unwrap(), "{name}");
    }
    for (name, text) in [("a", "new"), ("a-b", "old")] {
        let read = engine.retrieve(&key(name), GetOptions::default()).await.unwrap().unwrap();
        assert_eq!(read.value, Value::Text(text.into()));
    }
}

async fn store(engine: &Engine, name: &str, condition: Condition) -> Result<Receipt> {
    let options = StoreOptions { condition, ..StoreOptions::default() };
    engine.store(&key(name), Value::Text("new".into()), options).await
}

#[tokio::test]
async fn a_store_or_delete_removes_the_file_and_its_own_sidecar() {
    let folder = copied();
    let (root, inner) = (folder.path(), Arc::new(Memory::new()));
    let engine = engine(root, Arc::<Memory>::clone(&inner));
    let there = |name: &str| root.join(name).exists();
    store(&engine, "with metadata.txt", Condition::Always).await.unwrap();
    assert!(!there("with metadata.txt") && !there("with metadata.metadata"));
    assert_eq!(engine.stat(&key("with metadata.txt")).await.unwrap().unwrap().metadata, None);
    engine.delete(&key("with metadata.txt"), DeleteRequest::default()).await.unwrap();
    assert!(!engine.exists(&key("with metadata.txt")).await.unwrap(), "the old value does not come back");

    engine.delete(&key("shared/report.txt"), DeleteRequest::default()).await.unwrap();
    assert!(!there("shared/report.txt") && there("shared/report.metadata"), "the other file has it, too");
    engine.delete(&key("shared/report.json"), DeleteRequest::default()).await.unwrap();
    assert!(!there("shared/report.json") && !there("shared/report.metadata"));

    // Nothing else removes or changes a file.
    let before = fs::read(root.join("dict")).unwrap();
    engine.retrieve(&key("dict"), GetOptions::default()).await.unwrap();
    store(&engine, "other", Condition::Always).await.unwrap();
    assert_eq!(fs::read(root.join("dict")).unwrap(), before);

    // A file behind an object goes with it, whatever put it there.
    Engine::new(Arc::<Memory>::clone(&inner) as Arc<dyn Backend>, BackendKind::Local)
        .store(&key("dict"), Value::Text("new".into()), StoreOptions::default())
        .await
        .unwrap();
    engine.delete(&key("dict"), DeleteRequest::default()).await.unwrap();
    assert!(!there("dict") && !engine.exists(&key("dict")).await.unwrap());
}

#[tokio::test]
async fn conditions_hold_for_old_files() {
    let folder = copied();
    let root = folder.path();
    let engine = engine(root, Arc::new(Memory::new()));
    let token = async |name: &str| engine.stat(&key(name)).await.unwrap().unwrap().receipt.generation;
    let refused = |result: Result<Receipt>| assert_eq!(result.unwrap_err().kind, ErrorKind::Precondition);
    refused(store(&engine, "list", Condition::Absent).await);
    refused(store(&engine, "list", Condition::Generation("other".into())).await);
    let seen = token("list").await;
    assert_eq!(token("list").await, seen);
    fs::write(root.join("list"), "changed by a program in Python").unwrap();
    refused(store(&engine, "list", Condition::Generation(seen)).await);
    let seen = token("list").await;
    store(&engine, "list", Condition::Generation(seen.clone())).await.unwrap();
    assert!(!root.join("list").exists());
    refused(store(&engine, "list", Condition::Generation(seen)).await);

    let delete = async |name: &str, generation: &str| {
        let request = DeleteRequest { generation: Some(generation.to_owned()), ..DeleteRequest::default() };
        engine.delete(&key(name), request).await
    };
    assert_eq!(delete("set", "other").await.unwrap_err().kind, ErrorKind::Precondition);
    assert!(root.join("set").exists());
    let seen = token("set").await;
    delete("set", &seen).await.unwrap();
    assert!(!root.join("set").exists());
    delete("set", &seen).await.unwrap();

    // An object hides the file, whose generation then counts for nothing.
    let seen = token("tuple").await;
    let copy = fs::read(root.join("tuple")).unwrap();
    let stored = store(&engine, "tuple", Condition::Always).await.unwrap();
    fs::write(root.join("tuple"), copy).unwrap();
    assert_eq!(delete("tuple", &seen).await.unwrap_err().kind, ErrorKind::Precondition);
    refused(store(&engine, "tuple", Condition::Absent).await);
    store(&engine, "tuple", Condition::Generation(stored.generation)).await.unwrap();
    assert!(!root.join("tuple").exists());

    // An abandoned write or delete leaves the file.
    let guard = CommitGuard::default();
    assert!(guard.abandon());
    let request = DeleteRequest { commit_guard: guard.clone(), ..DeleteRequest::default() };
    assert_eq!(engine.delete(&key("text.txt"), request).await.unwrap_err().kind, ErrorKind::Abandoned);
    let options = StoreOptions { commit_guard: guard, ..StoreOptions::default() };
    let stored = engine.store(&key("text.txt"), Value::Text("new".into()), options).await;
    assert_eq!(stored.unwrap_err().kind, ErrorKind::Abandoned);
    assert_eq!(fs::read(root.join("text.txt")).unwrap(), "hello žluť".as_bytes());
}

#[tokio::test]
async fn writers_of_one_old_file_exclude_each_other() {
    let folder = tempfile::tempdir().unwrap();
    let root = folder.path();
    let inner = Arc::new(Memory::new());
    for round in 0..20 {
        let name = format!("k{round}");
        fs::write(root.join(&name), "old").unwrap();
        let one = engine(root, Arc::<Memory>::clone(&inner) as Arc<dyn Backend>);
        let seen = one.stat(&key(&name)).await.unwrap().unwrap().receipt.generation;
        let tasks: Vec<_> = (0..4)
            .map(|_| {
                let engine = engine(root, Arc::<Memory>::clone(&inner) as Arc<dyn Backend>);
                let (name, condition) = (name.clone(), Condition::Generation(seen.clone()));
                tokio::spawn(async move { store(&engine, &name, condition).await.is_ok() })
            })
            .collect();
        let mut won = 0;
        for task in tasks {
            won += u32::from(task.await.unwrap());
        }
        assert_eq!(won, 1, "{name}");
    }
}

#[tokio::test]
async fn damage_is_no_miss_and_no_link_is_followed() {
    let folder = copied();
    let root = folder.path();
    let engine = engine(root, Arc::new(Memory::new()));
    let read = async |name: &str| engine.retrieve(&key(name), GetOptions::default()).await;
    let cut = |name: &str, by: usize| {
        let bytes = fs::read(root.join(name)).unwrap();
        fs::write(root.join(name), &bytes[..bytes.len() - by]).unwrap();
    };
    cut("dict", 3);
    cut("packed/text-with-metadata.txt", 10);
    fs::write(root.join("packed/dict-with-metadata.json"), "not gzip, though its sidecar says so").unwrap();
    for name in ["dict", "packed/text-with-metadata.txt", "packed/dict-with-metadata.json"] {
        assert_eq!(read(name).await.unwrap_err().kind, ErrorKind::Integrity, "{name}");
        assert!(engine.exists(&key(name)).await.unwrap(), "{name}");
        store(&engine, name, Condition::Always).await.unwrap();
    }
    // A damaged sidecar hides the metadata, not the value.
    fs::write(root.join("with metadata.metadata"), "{").unwrap();
    assert_eq!(read("with metadata.txt").await.unwrap().unwrap().value, Value::Text("hello".into()));
    assert!(engine.stat(&key("with metadata.txt")).await.unwrap().unwrap().metadata.is_none());

    let outside = tempfile::tempdir().unwrap();
    fs::write(outside.path().join("secret"), "secret").unwrap();
    std::os::unix::fs::symlink(outside.path(), root.join("linked")).unwrap();
    std::os::unix::fs::symlink(outside.path().join("secret"), root.join("link")).unwrap();
    for name in ["linked/secret", "link"] {
        assert_eq!(read(name).await.unwrap().map(|read| read.value), None, "{name}");
        store(&engine, name, Condition::Always).await.unwrap();
        engine.delete(&key(name), DeleteRequest::default()).await.unwrap();
    }
    let keys = engine.list(ListRequest::default()).await.unwrap();
    assert!(!keys.iter().any(|key| key.as_str().starts_with("link")), "{keys:?}");
    assert_eq!(fs::read(outside.path().join("secret")).unwrap(), b"secret");
}

#[tokio::test]
async fn what_is_odd_about_names_is_told() {
    let folder = copied();
    let root = folder.path();
    fs::write(root.join("gone.metadata"), r#"{"a": 1, "compressed": false}"#).unwrap();
    fs::write(root.join("list.of.metadata"), "a value of its own").unwrap();
    std::os::unix::fs::symlink("text.txt", root.join("bytes/link")).unwrap();
    fs::create_dir_all(root.join("empty folder/inside")).unwrap();
    let files =
        LegacyFiles::new(Arc::new(Memory::new()), root, OwnEntries::new(OWN, &[]), Spool::new(std::env::temp_dir()));
    let wanted = Survey {
        files: told().len() as u64,
        shared_sidecars: ["shared/report.json", "shared/report.txt"].map(str::to_owned).into(),
        orphans: vec!["gone.metadata".to_owned()],
        misnamed: vec!["list.of.metadata".to_owned()],
        irregular: vec!["bytes/link".to_owned()],
    };
    assert_eq!(files.survey().await.unwrap(), wanted);
    fs::create_dir_all(root.join("objects/empty")).unwrap();
    assert_eq!(files.remove_empty_folders().await.unwrap(), 2);
    assert!(!root.join("empty folder").exists() && root.join("objects/empty").exists() && root.join("shared").exists());
    let key = key("text.txt");
    assert!(!files.remove(files.lock(&key).await.unwrap().unwrap(), "another").await.unwrap());
    let seen = files.stat(&key).await.unwrap().unwrap();
    let lock = files.lock(&key).await.unwrap().unwrap();
    // Other writers wait until the file is gone, and then find none.
    let waiting = tokio::spawn({
        let (files, key) = (files.clone(), key.clone());
        async move { files.delete(&key, &DeleteOptions::default()).await.unwrap().found }
    });
    assert!(files.remove(lock, &seen.generation).await.unwrap() && !root.join("text.txt").exists());
    assert!(!waiting.await.unwrap());
    assert!(files.lock(&key).await.unwrap().is_none());
}

#[tokio::test]
async fn objects_of_the_class_in_a_bucket_are_read_by_their_bytes() {
    let kept = JsonText::parse("[1]").unwrap();
    let binary = Bytes::from_static(b"\x89PNG\r\n\x1a\n");
    for (content_type, bytes, wanted) in [
        ("text/plain", Bytes::from_static(b"\x80\x04]K\x01a."), Some(Value::Json(kept))),
        ("text/plain", binary.clone(), Some(Value::Bytes(binary))),
        ("text/plain", Bytes::from_static(b"123"), Some(Value::Text("123".into()))),
        // These are a text in a charset that nobody names, and a text that another tool names.
        ("text/plain", Bytes::from_static(b"\xe9"), None),
        ("text/plain; charset=utf-8", Bytes::from_static(b"\x80\x04]K\x01a."), None),
    ] {
        let bucket = Arc::new(Memory::new());
        let attributes = Attributes {
            foreign: crate::storage::Foreign { other_tool: true, ..Default::default() },
            ..Attributes::new(
                Kind::Text,
                content_type.to_owned(),
                bytes.len() as u64,
                crate::storage::Checksum::of(&bytes),
            )
        };
        let object = Object { attributes, payload: bytes.clone().into() };
        bucket.put(&key("k"), &object, &PutOptions::default()).await.unwrap();
        let values = |inner| LegacyValues::new(inner, Spool::new(std::env::temp_dir()));
        let of = |backend: LegacyValues| Engine::new(Arc::new(backend), BackendKind::Gcs);
        let read =
            of(values(Arc::<Memory>::clone(&bucket)).and_objects()).retrieve(&key("k"), GetOptions::default()).await;
        match wanted {
            Some(wanted) => {
                let read = read.unwrap().unwrap();
                assert_eq!(
                    (read.receipt.kind, read.receipt.size),
                    (wanted.kind(), Some(wanted.clone().into_bytes().len() as u64))
                );
                assert_eq!(read.value, wanted);
            }
            None => assert_eq!(read.unwrap_err().kind, ErrorKind::Invalid, "{content_type}"),
        }
        // Elsewhere the content type alone counts.
        let plain = of(values(bucket)).retrieve(&key("k"), GetOptions::default()).await;
        assert_eq!(plain.is_ok(), std::str::from_utf8(&bytes).is_ok(), "{content_type}");
    }
}

#[tokio::test]
async fn a_large_value_is_a_copy_of_the_file() {
    use std::os::unix::fs::FileExt as _;

    let folder = tempfile::tempdir().unwrap();
    let root = folder.path();
    let (old, new) = ("a".repeat(3 << 20), "b".repeat(3 << 20));
    fs::write(root.join("k"), &old).unwrap();
    let spool = Spool::new(std::env::temp_dir());
    let files = LegacyFiles::new(Arc::new(Memory::new()), root, OwnEntries::new(OWN, &[]), spool);
    for options in [GetOptions { spooled: true, ..GetOptions::default() }, GetOptions::default()] {
        fs::write(root.join("k"), &old).unwrap();
        let read = files.get(&key("k"), options.clone()).await.unwrap().unwrap();
        assert_eq!(read.payload.as_memory().is_some(), !options.spooled);
        // A program in Python writes into the file itself.
        fs::File::options().write(true).open(root.join("k")).unwrap().write_all_at(new.as_bytes(), 0).unwrap();
        assert_eq!(read.payload.clone().into_memory().await.unwrap(), old.as_bytes());
        assert_eq!(read.attributes.stored_checksum, crate::storage::object::Checksum::of(old.as_bytes()));
        let range = Some(ByteRange { offset: 1, length: Some(2 << 20) });
        let part = files.get(&key("k"), GetOptions { range, ..options }).await.unwrap().unwrap();
        assert_eq!(part.payload.into_memory().await.unwrap(), new.as_bytes()[1..=2 << 20]);
        assert_eq!(part.attributes.stored_checksum, crate::storage::object::Checksum::of(new.as_bytes()));
    }
}

#[tokio::test]
async fn a_folder_that_cannot_be_read_is_named() {
    let folder = tempfile::tempdir().unwrap();
    fs::write(folder.path().join("no folder"), "").unwrap();
    let own = OwnEntries::new(OWN, &[]);
    let error = walk::names(&folder.path().join("no folder"), &[], &own.files()).unwrap_err();
    assert_eq!(error.kind(), io::ErrorKind::NotADirectory);
    assert!(error.to_string().contains("/no folder: "), "{error}");
}

/// A store that answers `stat` with what it has or an error, and permits no delete.
#[derive(Debug)]
struct Refusing {
    kept: Memory,
    stat: Option<ErrorKind>,
}

impl fmt::Display for Refusing {
    fn fmt(&self, formatter: &mut fmt::Formatter<'_>) -> fmt::Result {
        self.kept.fmt(formatter)
    }
}

#[async_trait]
impl Backend for Refusing {
    async fn put(&self, key: &Key, object: &Object, options: &PutOptions) -> Result<Attributes> {
        self.kept.put(key, object, options).await
    }

    async fn get(&self, key: &Key, options: GetOptions) -> Result<Option<Object>> {
        self.kept.get(key, options).await
    }

    async fn copy(
        &self,
        source: &CopySource,
        key: &Key,
        attributes: &Attributes,
        options: &PutOptions,
    ) -> Result<Option<Attributes>> {
        self.kept.copy(source, key, attributes, options).await
    }

    async fn stat(&self, key: &Key) -> Result<Option<Attributes>> {
        match self.stat {
            Some(kind) => Err(Error::new(kind, Operation::Stat, Some(key), "refused")),
            None => self.kept.stat(key).await,
        }
    }

    async fn versions(&self, key: &Key, request: &VersionsRequest) -> Result<Versions> {
        self.kept.versions(key, request).await
    }

    async fn delete(&self, key: &Key, _: &DeleteOptions) -> Result<Removal> {
        Err(Error::new(ErrorKind::Denied, Operation::Delete, Some(key), "refused"))
    }

    async fn list(&self, page: &Page) -> Result<Listing> {
        self.kept.list(page).await
    }

    async fn flush(&self, key: &Key) -> Result<()> {
        self.kept.flush(key).await
    }

    async fn probe(&self) -> Result<Probe> {
        self.kept.probe().await
    }

    fn validate(&self, key: &Key, attributes: &Attributes) -> Result<()> {
        self.kept.validate(key, attributes)
    }

    async fn sign(&self, key: &Key, grant: &Grant) -> Result<String> {
        self.kept.sign(key, grant).await
    }
}

#[tokio::test]
async fn a_refused_delete_takes_no_only_copy_away() {
    let folder = tempfile::tempdir().unwrap();
    let root = folder.path();
    let over = |stat| {
        let inner = Arc::new(Refusing { kept: Memory::new(), stat });
        LegacyFiles::new(inner, root, OwnEntries::new(OWN, &[]), Spool::new(std::env::temp_dir()))
    };
    fs::write(root.join("k"), "old").unwrap();
    let error = over(Some(ErrorKind::Denied)).delete(&key("k"), &DeleteOptions::default()).await.unwrap_err();
    assert_eq!((error.kind, error.operation), (ErrorKind::Denied, Operation::Delete));
    assert!(root.join("k").exists());
    // The store below has nothing that it could refuse to delete.
    let removal = over(None).delete(&key("k"), &DeleteOptions::default()).await.unwrap();
    assert_eq!((removal.found, removal.pending, root.join("k").exists()), (true, false, false));
}
