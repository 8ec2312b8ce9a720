//! Every suite over the codecs: what is kept is compressed, and nothing above shows it but receipts.

use std::path::Path;
use std::sync::Arc;

use filestorage::provider::BackendKind;
use filestorage::storage::{
    Backend, Budget, ByteRange, Checksum, Codec, Compression, Condition, Encoded, EncodedDeferral, Encryption, Engine,
    ErrorKind, GetOptions, Keyring, Local, Memory, Object, Payload, PutOptions, Redelivered, Spool, StoreOptions,
    Value,
};
use jiff::Timestamp;

use crate::backend::{self, Profile};
use crate::dev_s3::Bucket as S3Bucket;
use crate::engine;
use crate::fallback_sync::until;
use crate::gcs::BUCKET as GCS;
use crate::gcs::site::{Site, open};
use crate::s3::SEAWEEDFS;
use crate::stack::impatient;
use crate::support::{Tally, bytes, key, object, scratch};
use crate::unreliable_bucket::Bucket;

const fn compressing(profile: Profile) -> Profile {
    Profile { compressing: true, ..profile }
}

/// Compresses all that gets smaller.
const fn rule(codec: Codec) -> Compression {
    Compression { codec, level: codec.default_level(), threshold: 0 }
}

fn encoded(inner: Arc<dyn Backend>, codec: Codec) -> Encoded {
    Encoded::new(inner, Spool::new(env!("CARGO_TARGET_TMPDIR"))).with_compression(Some(rule(codec)))
}

fn layer(inner: Arc<dyn Backend>, codec: Codec) -> Arc<dyn Backend> {
    Arc::new(encoded(inner, codec))
}

fn local(root: &Path, codec: Codec) -> Arc<dyn Backend> {
    layer(Arc::new(Local::open(root.join("objects")).unwrap()), codec)
}

/// Text of so many bytes, no two lines of which are equal.
fn lines(length: usize) -> Vec<u8> {
    let lines = (0_u64..).flat_map(|number| format!("line {} of a text\n", number * 7919).into_bytes());
    lines.take(length).collect()
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn gzip_over_memory() {
    let stack = layer(Arc::new(Memory::new()), Codec::Gzip);
    let tally = Tally::new("gzip over memory");
    backend::suite(&stack, &stack, compressing(Profile::NEAR), &tally).await;
    tally.close();
    let tally = Tally::new("engine over gzip over memory");
    let stack = layer(Arc::new(Memory::new()), Codec::Gzip);
    engine::suite(&Engine::new(stack, BackendKind::Local), Profile::NEAR, &tally).await;
    tally.close();
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn gzip_and_zstd_over_one_local_store() {
    let root = scratch();
    let tally = Tally::new("gzip and zstd over local, two instances on one root");
    let (one, other) = (local(root.path(), Codec::Gzip), local(root.path(), Codec::Zstd));
    backend::suite(&one, &other, compressing(Profile::NEAR), &tally).await;
    tally.close();
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn gzip_over_gcs() {
    let site = Site::start();
    let options = site.options();
    let stack = async || layer(open(options.clone()).await, Codec::Gzip);
    let tally = Tally::new("gzip over gcs");
    backend::short_suite(&stack().await, &stack().await, compressing(GCS), &tally).await;
    tally.close();
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn zstd_over_s3() {
    let bucket = S3Bucket::make().await;
    let stack = || layer(Arc::new(bucket.open()), Codec::Zstd);
    let tally = Tally::new("zstd over s3 (SeaweedFS)");
    backend::short_suite(&stack(), &stack(), compressing(SEAWEEDFS), &tally).await;
    tally.close();
    bucket.remove().await;
}

/// What is compressed waits in the overlay and reaches the bucket as it is.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn compressed_values_wait_in_the_overlay_and_are_sent() {
    let (bucket, folder) = (Bucket::new(), scratch());
    let fallback = impatient(&(Arc::clone(&bucket) as Arc<dyn Backend>), folder.path());
    let codecs = Arc::new(encoded(Arc::clone(&fallback) as Arc<dyn Backend>, Codec::Gzip));
    let deferral = EncodedDeferral::new(Arc::clone(&codecs), Arc::clone(&fallback) as _);
    let engine =
        Engine::new(codecs, BackendKind::Local).with_fallback(Arc::clone(&fallback)).with_deferral(Arc::new(deferral));
    bucket.leave();
    let text = String::from_utf8(lines(100_000)).unwrap();
    let value = || Value::Text(text.clone());
    let again = Some(Redelivered { started_at: Some(Timestamp::now()) });
    let deferred = StoreOptions { redelivered: again, operation_id: Some("id".to_owned()), ..Default::default() };
    for (name, options) in [("first", StoreOptions::default()), ("again", deferred)] {
        let receipt = engine.store(&key(name), value(), options).await.unwrap();
        assert!(receipt.pending_sync && receipt.compression.as_deref() == Some("gzip"), "{receipt:?}");
        assert!(receipt.size == Some(100_000) && receipt.stored_size < 50_000, "{receipt:?}");
        let found = engine.retrieve(&key(name), GetOptions::default()).await.unwrap().unwrap();
        assert_eq!((found.value, found.receipt), (value(), receipt));
    }
    bucket.come_back();
    until(async || fallback.sync(&()).await.is_ok_and(|report| report.sent == 2)).await;
    for name in ["first", "again"] {
        let sent = bucket.inner.get(&key(name), GetOptions::default()).await.unwrap().unwrap();
        assert_eq!(sent.attributes.compression.as_deref(), Some("gzip"));
        assert!(bytes(sent).await.starts_with(&[0x1f, 0x8b]), "whole gzip streams reach the bucket");
        assert_eq!(engine.retrieve(&key(name), GetOptions::default()).await.unwrap().unwrap().value, value());
    }
    let saved = engine.stats().metrics;
    assert!(saved.compression_savings > 100_000 && saved.compression_ratio > 0.5, "{saved:?}");
}

/// A part of a large compressed value that is in a file.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn parts_of_large_values_are_right() {
    let root = scratch();
    let text = lines(9 << 20);
    for codec in [Codec::Gzip, Codec::Zstd] {
        let stack = local(root.path(), codec);
        let mut large = object(text.clone());
        let mut file = tempfile::tempfile().unwrap();
        std::io::Write::write_all(&mut file, &text).unwrap();
        large.payload = Payload::file(Arc::new(file), 0, text.len() as u64);
        let stored = stack.put(&key("large"), &large, &PutOptions::default()).await.unwrap();
        assert!(stored.compression.as_deref() == Some(codec.as_str()) && stored.stored_size < 4 << 20);
        for (offset, length) in [(0, Some(5)), (8 << 20, Some(1 << 20)), ((9 << 20) - 3, None), (5 << 20, Some(0))] {
            for spooled in [true, false] {
                let range = Some(ByteRange { offset, length });
                let part = GetOptions { range, spooled, ..GetOptions::default() };
                let part = stack.get(&key("large"), part).await.unwrap().unwrap();
                let end = length.map_or(text.len() as u64, |length| offset + length).min(text.len() as u64);
                assert!(bytes(part).await == text[offset as usize..end as usize], "{codec} {offset} {length:?}");
            }
        }
    }
}

/// The attributes tell how large a value is: room for it is made without a file in between.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn large_values_are_read_without_a_file() {
    let value = Value::Text(String::from_utf8(lines(3 << 20)).unwrap());
    let key_text = "AQEBAQEBAQEBAQEBAQEBAQEBAQEBAQEBAQEBAQEBAQE=";
    for (codec, encrypted) in [(None, true), (Some(Codec::Gzip), false), (Some(Codec::Zstd), true)] {
        let root = scratch();
        let stack = |spool: &str| {
            let encryption =
                if encrypted { Encryption::on(Keyring::parse(key_text).unwrap()) } else { Encryption::none() };
            let encoded = Encoded::new(Arc::new(Local::open(root.path()).unwrap()), Spool::new(spool));
            encoded.with_compression(codec.map(rule)).with_encryption(encryption)
        };
        let writer = Engine::new(Arc::new(stack(env!("CARGO_TARGET_TMPDIR"))), BackendKind::Local);
        let receipt = writer.store(&key("large"), value.clone(), StoreOptions::default()).await.unwrap();
        assert_eq!(receipt.compression.is_some(), codec.is_some());
        let reader = Engine::new(Arc::new(stack("/dev/null/x")), BackendKind::Local);
        let budget = Budget::new(64 << 20);
        let (found, held) = reader.retrieve_within(&key("large"), GetOptions::default(), &budget).await.unwrap();
        assert!(found.unwrap().value == value, "{codec:?} {encrypted}");
        assert!(held.is_some_and(|held| held.bytes() >= 2 * (3 << 20)), "both it and its copies are counted");
        let limited = GetOptions { limit: Some((3 << 20) - 1), ..GetOptions::default() };
        let error = reader.retrieve_within(&key("large"), limited, &budget).await.unwrap_err();
        assert!(error.kind == ErrorKind::Invalid && budget.held() == 0, "{error}");
    }
}

/// What another writer of the store damages is an error, whatever the codec makes of it.
#[tokio::test]
async fn damage_below_the_codecs_is_never_a_value() {
    let memory = Arc::new(Memory::new());
    let stack = layer(Arc::clone(&memory) as Arc<dyn Backend>, Codec::Gzip);
    let it = key("it");
    let text = lines(10_000);
    stack.put(&it, &object(text.clone()), &PutOptions::default()).await.unwrap();
    let stored = memory.get(&it, GetOptions::default()).await.unwrap().unwrap();
    let packed = bytes(stored.clone()).await;
    type Change = fn(&mut Object, &[u8]);
    let changes: [(&str, Change); 5] = [
        ("lz9", |object, _| object.attributes.compression = Some("lz9".to_owned())),
        ("9999 bytes", |object, _| object.attributes.size -= 1),
        ("does not match", |object, _| object.attributes.size += 1),
        ("does not match", |object, _| object.attributes.checksum = Checksum::of(b"other")),
        ("not gzip", |object, packed| object.payload = bytes::Bytes::copy_from_slice(&packed[1..]).into()),
    ];
    for (word, change) in changes {
        let mut damaged = stored.clone();
        change(&mut damaged, &packed);
        let stored_bytes = bytes(damaged.clone()).await;
        damaged.attributes.stored_size = stored_bytes.len() as u64;
        damaged.attributes.stored_checksum = Checksum::of(&stored_bytes);
        memory.put(&it, &damaged, &PutOptions::default()).await.unwrap();
        let error = stack.get(&it, GetOptions::default()).await.unwrap_err();
        assert!(error.kind == ErrorKind::Integrity && error.to_string().contains(word), "{word}: {error}");
    }
    memory.put(&it, &stored, &PutOptions { condition: Condition::Always, ..PutOptions::default() }).await.unwrap();
    assert!(bytes(stack.get(&it, GetOptions::default()).await.unwrap().unwrap()).await == text);
}
