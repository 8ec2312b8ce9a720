//! Every suite over encryption, alone and with compression: nothing that is kept shows a value or its metadata.

use std::path::Path;
use std::sync::Arc;
use std::time::Duration;

use filestorage::provider::BackendKind;
use filestorage::storage;
use filestorage::storage::{
    Backend, ByteRange, Codec, Compression, DeleteOptions, Encoded, EncodedDeferral, Encryption, Engine, ErrorKind,
    GetOptions, Grant, Keyring, Local, Memory, Metadata, Object, Page, PutOptions, Redelivered, Spool, StoreOptions,
    Value,
};
use http::Method;
use jiff::Timestamp;
use serde_json::value::RawValue;

use crate::backend::{self, Profile};
use crate::dev_s3::Bucket as S3Bucket;
use crate::engine;
use crate::fallback_sync::until;
use crate::gcs::BUCKET as GCS;
use crate::gcs::site::{Site, open};
use crate::s3::SEAWEEDFS;
use crate::stack::impatient;
use crate::support::{Tally, bytes, key, noise, object, scratch};
use crate::unreliable_bucket::Bucket;

pub(crate) const OLD: &str = "AQEBAQEBAQEBAQEBAQEBAQEBAQEBAQEBAQEBAQEBAQE=";
pub(crate) const NEW: &str = "AgICAgICAgICAgICAgICAgICAgICAgICAgICAgICAgI=";

pub(crate) const GZIP: Option<Compression> = Some(Compression { codec: Codec::Gzip, level: 1, threshold: 0 });

const fn encrypting(profile: Profile) -> Profile {
    Profile { encrypting: true, ..profile }
}

/// Encryption with these keys, and compression.
pub(crate) fn encoded(inner: Arc<dyn Backend>, keys: &str, compression: Option<Compression>) -> Encoded {
    Encoded::new(inner, Spool::new(env!("CARGO_TARGET_TMPDIR")))
        .with_compression(compression)
        .with_encryption(Encryption::on(Keyring::parse(keys).unwrap()))
}

pub(crate) fn layer(inner: Arc<dyn Backend>, keys: &str, compression: Option<Compression>) -> Arc<dyn Backend> {
    Arc::new(encoded(inner, keys, compression))
}

pub(crate) fn decrypting(inner: Arc<dyn Backend>, keys: Option<&str>) -> Arc<dyn Backend> {
    let encryption =
        keys.map_or(Encryption::none(), |keys| Encryption::on(Keyring::parse(keys).unwrap()).reading_only());
    Arc::new(Encoded::new(inner, Spool::new(env!("CARGO_TARGET_TMPDIR"))).with_encryption(encryption))
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn encryption_over_memory() {
    let stack = layer(Arc::new(Memory::new()), OLD, None);
    let tally = Tally::new("encryption over memory");
    backend::suite(&stack, &stack, encrypting(Profile::NEAR), &tally).await;
    tally.close();
    let tally = Tally::new("engine over encryption over memory");
    let stack = layer(Arc::new(Memory::new()), OLD, None);
    engine::suite(&Engine::new(stack, BackendKind::Local), encrypting(Profile::NEAR), &tally).await;
    tally.close();
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn encryption_with_two_keys_over_one_local_store() {
    let root = scratch();
    let local = |keys: &str| layer(Arc::new(Local::open(root.path().join("objects")).unwrap()), keys, None);
    let (one, other) = (local(&format!("{OLD},{NEW}")), local(&format!("{NEW},{OLD}")));
    let tally = Tally::new("encryption with two keys over local, two instances on one root");
    backend::suite(&one, &other, encrypting(Profile::NEAR), &tally).await;
    tally.close();
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn compression_and_encryption_over_one_local_store() {
    let root = scratch();
    let local = || layer(Arc::new(Local::open(root.path().join("objects")).unwrap()), OLD, GZIP);
    let profile = Profile { compressing: true, ..encrypting(Profile::NEAR) };
    let tally = Tally::new("gzip and encryption over local, two instances on one root");
    backend::suite(&local(), &local(), profile, &tally).await;
    tally.close();
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn compression_and_encryption_over_gcs() {
    let site = Site::start();
    let options = site.options();
    let stack = async || layer(open(options.clone()).await, OLD, GZIP);
    let profile = Profile { compressing: true, ..encrypting(GCS) };
    let tally = Tally::new("gzip and encryption over gcs");
    backend::short_suite(&stack().await, &stack().await, profile, &tally).await;
    tally.close();

    stack().await.put(&key("k"), &secret(), &PutOptions::default()).await.unwrap();
    let found = site.describe(&options.bucket, "k").await;
    assert_eq!(found["contentType"], "text/x-ours; charset=utf-8", "the real one");
    assert!(found["contentEncoding"].is_null() && found["cacheControl"].is_null(), "{found}");
    assert_eq!(found["metadata"].as_object().unwrap().len(), 1, "nothing is mirrored: {found}");
    assert!(!found.to_string().contains("hunter2"), "{found}");
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn encryption_over_s3() {
    let bucket = S3Bucket::make().await;
    let stack = || layer(Arc::new(bucket.open()), OLD, None);
    let tally = Tally::new("encryption over s3 (SeaweedFS)");
    backend::short_suite(&stack(), &stack(), encrypting(SEAWEEDFS), &tally).await;
    tally.close();
    for method in [storage::Method::Get, storage::Method::Put] {
        let error = stack().sign(&key("k"), &Grant { method, lifetime: Duration::from_secs(60) }).await.unwrap_err();
        assert!(error.kind == ErrorKind::Invalid && error.to_string().contains("encrypted"), "{error}");
    }

    let packing = layer(Arc::new(bucket.open()), OLD, GZIP);
    let stored = packing.put(&key("k"), &secret(), &PutOptions::default()).await.unwrap();
    assert!(stored.encrypted && stored.compression.as_deref() == Some("gzip"));
    let found = bucket.ask(Method::GET, "k", &[], "").await;
    let headers = format!("{:?}", found.headers());
    assert_eq!(found.headers()["content-type"], "text/x-ours; charset=utf-8");
    assert!(!found.headers().contains_key("content-encoding") && !headers.contains("no-transform"), "{headers}");
    assert!(!headers.contains("hunter2") && !headers.contains("x-amz-meta-owner"), "{headers}");

    // Less metadata fits than without encryption, and that is said before anything is sent.
    let with = |length: usize| {
        let mut object = object("x");
        object.attributes.metadata =
            Some(RawValue::from_string(format!("{{\"a\":\"{}\"}}", "x".repeat(length))).unwrap());
        object
    };
    let (mut most, mut refused) = (0, 2_000);
    while refused - most > 1 {
        let middle = usize::midpoint(most, refused);
        match packing.validate(&key("m"), &with(middle).attributes) {
            Ok(()) => most = middle,
            Err(_) => refused = middle,
        }
    }
    assert!((700..1_024).contains(&most), "{most} bytes fit");
    packing.put(&key("m"), &with(most), &PutOptions::default()).await.unwrap();
    let error = packing.validate(&key("m"), &with(most + 30).attributes).unwrap_err();
    assert!(error.kind == ErrorKind::Invalid && error.to_string().contains("encrypted metadata has"), "{error}");
    bucket.remove().await;
}

/// A value and metadata that are easy to find.
fn secret() -> Object {
    let mut object = object("hunter2 ".repeat(20_000));
    object.attributes.content_type = "text/x-ours; charset=utf-8".to_owned();
    object.attributes.metadata = Some(RawValue::from_string(r#"{"owner":"hunter2"}"#.to_owned()).unwrap());
    object
}

/// Tells which files below a folder hold a text.
fn holding(folder: &Path, text: &[u8]) -> Vec<String> {
    let (mut folders, mut found) = (vec![folder.to_owned()], Vec::new());
    while let Some(folder) = folders.pop() {
        for entry in std::fs::read_dir(folder).unwrap() {
            let path = entry.unwrap().path();
            if path.is_dir() {
                folders.push(path);
            } else if std::fs::read(&path).unwrap().windows(text.len()).any(|window| window == text) {
                found.push(path.display().to_string());
            }
        }
    }
    found
}

/// What waits in the overlay and what reaches the bucket is encrypted, also where a redelivered command put it there.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn encrypted_values_wait_in_the_overlay_and_are_sent() {
    let (bucket, folder) = (Bucket::new(), scratch());
    let fallback = impatient(&(Arc::clone(&bucket) as Arc<dyn Backend>), folder.path());
    let codecs = Arc::new(encoded(Arc::clone(&fallback) as Arc<dyn Backend>, OLD, None));
    let deferral = EncodedDeferral::new(Arc::clone(&codecs), Arc::clone(&fallback) as _);
    let engine =
        Engine::new(codecs, BackendKind::Local).with_fallback(Arc::clone(&fallback)).with_deferral(Arc::new(deferral));
    bucket.leave();
    let value = || Value::Text("hunter2 ".repeat(20_000));
    let metadata = || Some(Metadata::parse(r#"{"owner":"hunter2"}"#).unwrap());
    let again = Some(Redelivered { started_at: Some(Timestamp::now()) });
    let first = StoreOptions { metadata: metadata(), ..Default::default() };
    let deferred = StoreOptions {
        redelivered: again,
        operation_id: Some("id".to_owned()),
        metadata: metadata(),
        ..Default::default()
    };
    for (name, options) in [("first", first), ("again", deferred)] {
        let receipt = engine.store(&key(name), value(), options).await.unwrap();
        assert!(receipt.pending_sync && receipt.encrypted && receipt.size == Some(160_000), "{receipt:?}");
        let found = engine.retrieve(&key(name), GetOptions::default()).await.unwrap().unwrap();
        assert_eq!((found.value, found.receipt), (value(), receipt));
        assert_eq!(engine.stat(&key(name)).await.unwrap().unwrap().metadata, metadata());
    }
    assert_eq!(holding(folder.path(), b"hunter2"), [""; 0]);
    assert!(!holding(folder.path(), b"wrapped_key").is_empty(), "the search reads what is there");
    bucket.come_back();
    until(async || fallback.sync(&()).await.is_ok_and(|report| report.sent == 2)).await;
    for name in ["first", "again"] {
        let sent = bucket.inner.get(&key(name), GetOptions::default()).await.unwrap().unwrap();
        assert!(sent.attributes.is_sealed() && !serde_json::to_string(&sent.attributes).unwrap().contains("hunter2"));
        assert!(!bytes(sent).await.windows(7).any(|window| window == b"hunter2"));
        assert_eq!(engine.retrieve(&key(name), GetOptions::default()).await.unwrap().unwrap().value, value());
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn parts_of_large_encrypted_values_are_right() {
    let root = scratch();
    let content = noise(5 << 20, 7);
    for compression in [None, GZIP] {
        let stack = layer(Arc::new(Local::open(root.path().join("objects")).unwrap()), OLD, compression);
        let text: Vec<u8> = content.iter().map(|byte| byte & 0x8f).collect();
        let stored = stack.put(&key("large"), &object(text.clone()), &PutOptions::default()).await.unwrap();
        assert!(stored.encrypted && stored.compression.is_some() == compression.is_some());
        for (offset, length) in
            [(0, Some(5)), (65_535, Some(2)), (4 << 20, Some(1 << 20)), ((5 << 20) - 3, None), (9 << 20, None)]
        {
            for spooled in [true, false] {
                let range = Some(ByteRange { offset, length });
                let part = GetOptions { range, spooled, ..GetOptions::default() };
                let part = stack.get(&key("large"), part).await.unwrap().unwrap();
                let size = text.len() as u64;
                let end = length.map_or(size, |length| offset + length).min(size);
                assert!(bytes(part).await == text[offset.min(size) as usize..end as usize], "{offset} {length:?}");
            }
        }
        let limit = GetOptions { limit: Some(1_000), ..GetOptions::default() };
        assert_eq!(stack.get(&key("large"), limit).await.unwrap_err().kind, ErrorKind::Invalid);
    }
}

/// Encryption turned off still reads; without the right key nothing is read, and everything else works.
#[tokio::test]
async fn keys_decide_what_is_read() {
    let memory: Arc<dyn Backend> = Arc::new(Memory::new());
    let it = key("it");
    layer(Arc::clone(&memory), OLD, GZIP).put(&it, &secret(), &PutOptions::default()).await.unwrap();
    let id = Keyring::parse(OLD).unwrap().ids().next().unwrap().to_string();

    let off = decrypting(Arc::clone(&memory), Some(&format!("{NEW},{OLD}")));
    assert_eq!(bytes(off.get(&it, GetOptions::default()).await.unwrap().unwrap()).await, "hunter2 ".repeat(20_000));
    let plain = off.put(&key("plain"), &secret(), &PutOptions::default()).await.unwrap();
    assert!(!plain.encrypted && plain.metadata.is_some());
    assert!(!memory.stat(&key("plain")).await.unwrap().unwrap().encrypted);

    for (keys, said) in [(Some(NEW), "has "), (None, "is not set")] {
        let wrong = decrypting(Arc::clone(&memory), keys);
        for error in [
            wrong.get(&it, GetOptions::default()).await.map(drop).unwrap_err(),
            wrong.stat(&it).await.map(drop).unwrap_err(),
        ] {
            assert_eq!(error.kind, ErrorKind::Integrity, "{error}");
            assert!(error.to_string().contains(&id) && error.to_string().contains(said), "{error}");
        }
        assert_eq!(wrong.list(&Page::default()).await.unwrap().entries.len(), 2);
        assert!(wrong.get(&key("plain"), GetOptions::default()).await.unwrap().is_some(), "plain values are read");
    }
    let wrong = layer(Arc::clone(&memory), NEW, None);
    wrong.put(&it, &object("new"), &PutOptions::default()).await.unwrap();
    assert_eq!(bytes(wrong.get(&it, GetOptions::default()).await.unwrap().unwrap()).await, "new");
    assert!(wrong.delete(&it, &DeleteOptions::default()).await.unwrap().found);
}

/// What another writer of the store changes, exchanges or renames is an error.
#[tokio::test]
async fn damage_below_encryption_is_never_a_value() {
    let memory: Arc<dyn Backend> = Arc::new(Memory::new());
    for compression in [None, GZIP] {
        let stack = layer(Arc::clone(&memory), OLD, compression);
        let (it, other) = (key("it"), key("other"));
        for key in [&it, &other] {
            stack.put(key, &secret(), &PutOptions::default()).await.unwrap();
        }
        let stored = memory.get(&it, GetOptions::default()).await.unwrap().unwrap();
        let foreign = memory.get(&other, GetOptions::default()).await.unwrap().unwrap();
        type Change = fn(&mut Object, &Object);
        let changes: [Change; 7] = [
            |object, _| object.attributes.size -= 1,
            |object, _| object.attributes.content_type.push('x'),
            |object, _| object.attributes.compression = Some("zstd".to_owned()),
            |object, _| object.attributes.encryption = None,
            |object, other| *object = other.clone(),
            |object, other| object.payload = other.payload.clone(),
            |object, _| object.payload = object.payload.slice(0..object.payload.len() - 1),
        ];
        for (number, change) in changes.iter().enumerate() {
            let mut damaged = stored.clone();
            change(&mut damaged, &foreign);
            damaged.attributes.stored_size = damaged.payload.len();
            damaged.attributes.stored_checksum = damaged.payload.checksum().await.unwrap();
            memory.put(&it, &damaged, &PutOptions::default()).await.unwrap();
            for range in [None, Some(ByteRange { offset: 1, length: Some(1) })] {
                let read = stack.get(&it, GetOptions { range, ..GetOptions::default() }).await;
                assert_eq!(read.unwrap_err().kind, ErrorKind::Integrity, "change {number}, {range:?}");
            }
        }
    }
}
