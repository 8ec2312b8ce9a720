//! Earlier versions of objects, over the whole stack of a worker, in buckets that keep them and in places that do not.

use std::path::Path;
use std::sync::Arc;
use std::time::Duration;

use bytes::Bytes;
use filestorage::provider::BackendKind;
use filestorage::storage::{
    Backend, ByteRange, Cache, CacheOptions, Cached, Codec, CommitGuard, Compression, Deferral, DeleteRequest, Encoded,
    Encryption, Engine, ErrorKind, Fallback, Gcs, GetOptions, Keyring, Local, Memory, Metadata, NoSiblings, PutOptions,
    Receipt, Spool, StateOptions, StoreOptions, Value, VersionId, VersionsRequest,
};
use filestorage::telemetry::Metrics;
use http::Method;
use jiff::Timestamp;
use serde_json::json;

use crate::dev_s3::Bucket as S3Bucket;
use crate::gcs::site::Site;
use crate::stack::impatient;
use crate::support::{Tally, key, noise, object, scratch};

const KEY: &str = "AQEBAQEBAQEBAQEBAQEBAQEBAQEBAQEBAQEBAQEBAQE=";
const OTHER: &str = "AgICAgICAgICAgICAgICAgICAgICAgICAgICAgICAgI=";
const GZIP: Option<Compression> = Some(Compression { codec: Codec::Gzip, level: 1, threshold: 0 });

/// A header of this program that contradicts itself.
const DAMAGED: &str = r#"{"format":1,"generation":"mine"}"#;

/// What a worker builds over a bucket, and its fallback.
#[expect(clippy::needless_pass_by_value, reason = "a reference to an Arc of a backend is none to an Arc of the trait")]
fn stack(bucket: Arc<dyn Backend>, kind: BackendKind, folder: &Path, keys: &str) -> (Engine, Arc<Fallback>) {
    let fallback = impatient(&bucket, folder);
    let encoded = Encoded::new(Arc::clone(&fallback) as Arc<dyn Backend>, Spool::new(env!("CARGO_TARGET_TMPDIR")))
        .with_compression(GZIP)
        .with_encryption(Encryption::on(Keyring::parse(keys).unwrap()));
    let cache = Cache::new(CacheOptions { bytes: 64 << 20, ttl: Duration::from_secs(600) }, Metrics::new());
    let cached = Cached::over_bucket(Arc::new(encoded), Some(cache), Arc::new(NoSiblings), None);
    (Engine::new(Arc::new(cached), kind).with_fallback(Arc::clone(&fallback)), fallback)
}

fn at(generation: &str) -> StateOptions {
    StateOptions { generation: Some(generation.to_owned()), ..StateOptions::default() }
}

fn metadata(number: usize) -> String {
    format!(r#"{{"epoch":{number}}}"#)
}

/// A model of which half can be compressed.
fn model(number: usize) -> Bytes {
    let mut bytes = noise(3_000, number as u64 + 1);
    bytes.resize(6_000, number as u8);
    bytes.into()
}

async fn stored(engine: &Engine, name: &str, number: usize) -> Receipt {
    let metadata = Some(Metadata::parse(&metadata(number)).unwrap());
    let options = StoreOptions { metadata, ..StoreOptions::default() };
    engine.store(&key(name), Value::Bytes(model(number)), options).await.unwrap()
}

async fn value(engine: &Engine, name: &str, generation: &str) -> Option<Value> {
    engine.retrieve(&key(name), at(generation)).await.unwrap().map(|found| found.value)
}

/// What holds in every bucket that keeps versions.
async fn kept(engine: &Engine, fallback: &Fallback, tally: &Tally) {
    const MODEL: &str = "models/m";
    let it = key(MODEL);
    // Names that begin with the key, before and behind it in every order.
    let neighbours = ["models/m!", "models/m.bin", "models/m/part", "models/m0", "models"];
    let mut receipts = Vec::new();
    for number in 0..5 {
        for name in neighbours {
            stored(engine, name, 90 + number).await;
        }
        receipts.push(stored(engine, MODEL, number).await);
    }

    for (number, receipt) in receipts.iter().enumerate() {
        assert!(receipt.encrypted && receipt.compression.is_some());
        let found = engine.retrieve(&it, at(&receipt.generation)).await.unwrap().unwrap();
        tally.equal((found.value, &found.receipt), (Value::Bytes(model(number)), receipt));
        let stat = engine.stat_generation(&it, &receipt.generation).await.unwrap().unwrap();
        tally.equal(&stat.receipt, receipt);
        tally.equal(stat.metadata.unwrap().get(), &*metadata(number));
        let range = Some(ByteRange { offset: 2_990, length: Some(20) });
        let part = GetOptions { range, limit: Some(20), ..GetOptions::default() };
        let part = StateOptions { bytes: part, ..at(&receipt.generation) };
        let found = engine.retrieve(&it, part).await.unwrap().unwrap();
        tally.equal(found.value, Value::Bytes(model(number).slice(2_990..3_010)));
        let limit = GetOptions { limit: Some(5_999), ..GetOptions::default() };
        let refused = engine.retrieve(&it, StateOptions { bytes: limit, ..at(&receipt.generation) }).await.unwrap_err();
        tally.equal(refused.kind, ErrorKind::Invalid);
        let spooled = GetOptions { spooled: true, ..GetOptions::default() };
        let opened =
            engine.open(&it, StateOptions { bytes: spooled, ..at(&receipt.generation) }).await.unwrap().unwrap();
        tally.equal(opened.content.payload.into_memory().await.unwrap(), model(number));
    }

    let all = engine.versions(&it, None).await.unwrap();
    let newest: Vec<&Receipt> = receipts.iter().rev().collect();
    tally.equal(all.iter().map(|version| &version.receipt).collect::<Vec<_>>(), newest.clone());
    tally.equal(
        all.iter().map(|version| version.is_current).collect::<Vec<_>>(),
        [true, false, false, false, false].to_vec(),
    );
    for limit in [0, 1, 2, 5, 6] {
        let some = engine.versions(&it, Some(limit)).await.unwrap();
        let wanted: Vec<&Receipt> = newest.iter().copied().take(limit).collect();
        tally.equal(some.iter().map(|version| &version.receipt).collect::<Vec<_>>(), wanted);
    }

    // A token that nobody has, that of another key, and a key that never was.
    let neighbour = engine.stat(&key("models/m.bin")).await.unwrap().unwrap().receipt.generation;
    for generation in ["", "0", &neighbour] {
        tally.equal(value(engine, MODEL, generation).await, None);
        tally.equal(engine.stat_generation(&it, generation).await.unwrap(), None);
    }
    tally.equal(value(engine, "models/never", &neighbour).await, None);
    tally.equal(engine.versions(&key("models/never"), None).await.unwrap(), Vec::new());

    // What expired is gone, and it hides nothing older.
    let past = StoreOptions { expires_at: Some(Timestamp::UNIX_EPOCH), ..StoreOptions::default() };
    let expired = engine.store(&it, Value::Text("past".to_owned()), past).await.unwrap();
    tally.equal(value(engine, MODEL, &expired.generation).await, None);
    tally.equal(
        engine.versions(&it, Some(1)).await.unwrap()[0].receipt.generation.clone(),
        receipts[4].generation.clone(),
    );
    stored(engine, MODEL, 7).await;
    tally.equal(value(engine, MODEL, &expired.generation).await, None);
    tally.equal(value(engine, MODEL, &receipts[4].generation).await, Some(Value::Bytes(model(4))));
    tally.equal(engine.versions(&it, None).await.unwrap().len(), 6);

    engine.delete(&it, DeleteRequest::default()).await.unwrap();
    tally.equal(engine.stat(&it).await.unwrap(), None);
    tally.equal(value(engine, MODEL, &receipts[2].generation).await, Some(Value::Bytes(model(2))));
    let left = engine.versions(&it, None).await.unwrap();
    tally.equal((left.len(), left.iter().any(|version| version.is_current)), (6, false));

    // A write that waits to be sent is the present state, and none of the bucket's versions is.
    let name = "models/m.bin";
    let waiting = object("waiting");
    fallback.defer_put(&key(name), &waiting, &CommitGuard::default()).await.unwrap();
    tally.equal(value(engine, name, &waiting.attributes.generation).await, Some(Value::Bytes("waiting".into())));
    tally.equal(value(engine, name, &neighbour).await, Some(Value::Bytes(model(94))));
    tally.equal(engine.versions(&key(name), None).await.unwrap().iter().any(|version| version.is_current), false);
}

/// Without the key of a version, its receipt is told and its value is an error.
async fn without_its_key(engine: &Engine, generation: &str, tally: &Tally) {
    let it = key("models/m");
    let listed = engine.versions(&it, None).await.unwrap();
    tally.equal(listed.iter().any(|version| version.receipt.generation == generation), true);
    assert!(listed.iter().all(|version| version.receipt.checksum.is_none() && version.receipt.encrypted));
    tally.equal(engine.stat_generation(&it, generation).await.unwrap_err().kind, ErrorKind::Integrity);
    tally.equal(engine.retrieve(&it, at(generation)).await.unwrap_err().kind, ErrorKind::Integrity);
}

/// A damaged version hides no other, and is no miss either.
async fn beside_damage(engine: &Engine, sound: &Receipt, tally: &Tally) {
    let it = key("damaged");
    tally.equal(engine.stat(&it).await.unwrap_err().kind, ErrorKind::Integrity);
    tally.equal(value(engine, "damaged", &sound.generation).await, Some(Value::Bytes(model(1))));
    tally.equal(engine.versions(&it, None).await.unwrap().len(), 1);
    for generation in ["mine", "nobody's"] {
        let error = engine.retrieve(&it, at(generation)).await.unwrap_err();
        tally.equal(error.kind, ErrorKind::Integrity);
    }
}

async fn versioned(bucket: &S3Bucket) {
    let on = "<VersioningConfiguration><Status>Enabled</Status></VersioningConfiguration>";
    let answer = bucket.ask(Method::PUT, "?versioning=", &[], on).await;
    assert!(answer.status().is_success(), "{}", answer.text().await.unwrap());
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn versions_in_s3() {
    let (bucket, folder) = (S3Bucket::make().await, scratch());
    let (engine, fallback) = stack(Arc::new(bucket.open()), BackendKind::S3, folder.path(), KEY);
    let tally = Tally::new("versions in s3 (SeaweedFS)");

    // While versioning is off, a bucket shows by its ids that it keeps none.
    stored(&engine, "before", 1).await;
    let present = stored(&engine, "before", 2).await;
    tally.equal(value(&engine, "before", &present.generation).await, Some(Value::Bytes(model(2))));
    let error = engine.retrieve(&key("before"), at("earlier")).await.unwrap_err();
    tally.equal(error.kind, ErrorKind::Invalid);
    assert!(error.message().contains(&format!("put-bucket-versioning --bucket {}", bucket.name)), "{error}");
    let listed = engine.versions(&key("before"), None).await.unwrap();
    tally.equal((listed.len(), listed[0].is_current, &listed[0].receipt), (1, true, &present));
    tally.equal(value(&engine, "nothing", "earlier").await, None);

    versioned(&bucket).await;
    stored(&engine, "before", 3).await;
    tally.equal(value(&engine, "before", &present.generation).await, Some(Value::Bytes(model(2))));
    tally.equal(value(&engine, "before", "earlier").await, None);
    kept(&engine, &fallback, &tally).await;

    // Of other tools' objects the generation is the ETag, and nobody knows the checksum of what nobody has read.
    for text in ["one", "two"] {
        bucket.ask(Method::PUT, "theirs", &[("content-type", "text/csv")], text).await;
    }
    let theirs = engine.versions(&key("theirs"), None).await.unwrap();
    tally.equal((theirs.len(), theirs[1].receipt.size, theirs[1].receipt.checksum), (2, Some(3), None));
    let old = &theirs[1].receipt.generation;
    tally.equal(value(&engine, "theirs", old).await, Some(Value::Text("one".to_owned())));
    tally.equal(engine.stat_generation(&key("theirs"), old).await.unwrap().unwrap().receipt.size, Some(3));

    let sound = stored(&engine, "damaged", 1).await;
    bucket.ask(Method::PUT, "damaged", &[("x-amz-meta-filestorage", DAMAGED)], "x").await;
    beside_damage(&engine, &sound, &tally).await;

    let generation = engine.versions(&key("models/m"), None).await.unwrap()[3].receipt.generation.clone();
    let (blind, _) = stack(Arc::new(bucket.open()), BackendKind::S3, folder.path(), OTHER);
    without_its_key(&blind, &generation, &tally).await;

    let gone = GetOptions { version: Some(VersionId::new("deadbeef")), ..GetOptions::default() };
    tally.equal(bucket.open().get(&key("theirs"), gone).await.unwrap().is_none(), true);
    tally.close();
    bucket.remove().await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn versions_in_gcs() {
    let (site, folder) = (Site::start(), scratch());
    let options = site.options();
    site.make_versioned(&options.bucket).await;
    let open = async || Arc::new(Gcs::open(options.clone()).await.unwrap()) as Arc<dyn Backend>;
    let (engine, fallback) = stack(open().await, BackendKind::Gcs, folder.path(), KEY);
    let tally = Tally::new("versions in gcs");
    kept(&engine, &fallback, &tally).await;

    for text in ["one", "two"] {
        site.write(&options.bucket, "theirs", "text/csv", json!({"metadata": {"Owner": "Jü"}}), text).await;
    }
    let theirs = engine.versions(&key("theirs"), None).await.unwrap();
    tally.equal((theirs.len(), theirs[1].receipt.checksum.is_some()), (2, true));
    let old = &theirs[1].receipt.generation;
    tally.equal(value(&engine, "theirs", old).await, Some(Value::Text("one".to_owned())));
    let stat = engine.stat_generation(&key("theirs"), old).await.unwrap().unwrap();
    tally.equal((&stat.receipt, stat.metadata.unwrap().get()), (&theirs[1].receipt, r#"{"Owner":"Jü"}"#));

    let sound = stored(&engine, "damaged", 1).await;
    let header = json!({"metadata": {"filestorage": DAMAGED}});
    site.write(&options.bucket, "damaged", "text/csv", header, "x").await;
    beside_damage(&engine, &sound, &tally).await;

    let generation = engine.versions(&key("models/m"), None).await.unwrap()[3].receipt.generation.clone();
    let (blind, _) = stack(open().await, BackendKind::Gcs, folder.path(), OTHER);
    without_its_key(&blind, &generation, &tally).await;

    for (id, found) in [("1", Ok(true)), ("x", Err(ErrorKind::Invalid))] {
        let version = GetOptions { version: Some(VersionId::new(id)), ..GetOptions::default() };
        let read = open().await.get(&key("theirs"), version).await;
        tally.equal(read.map(|read| read.is_none()).map_err(|error| error.kind), found);
    }

    // A bucket that keeps none looks like one whose earlier versions are gone.
    let plain = site.options();
    let bucket: Arc<dyn Backend> = Arc::new(Gcs::open(plain).await.unwrap());
    bucket.probe().await.unwrap();
    let folder = scratch();
    let (engine, _) = stack(bucket, BackendKind::Gcs, folder.path(), KEY);
    let before = stored(&engine, "k", 1).await;
    let present = stored(&engine, "k", 2).await;
    tally.equal(value(&engine, "k", &before.generation).await, None);
    tally.equal(value(&engine, "k", &present.generation).await, Some(Value::Bytes(model(2))));
    tally.equal(engine.versions(&key("k"), None).await.unwrap().len(), 1);
    tally.close();
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn versions_in_gcs_come_from_all_pages() {
    let site = Site::start();
    let options = site.options();
    let bucket = Gcs::open(options.clone()).await.unwrap();
    bucket.probe().await.unwrap();
    bucket.put(&key("k"), &object("x"), &PutOptions::default()).await.unwrap();
    let description = site.describe(&options.bucket, "k").await;
    let version = |native: u32, is_earlier: bool| {
        let mut version = description.clone();
        version["generation"] = native.to_string().into();
        if is_earlier {
            version["timeDeleted"] = "2026-11-24T12:20:20Z".into();
        }
        version
    };
    // The oldest first, as Cloud Storage lists them.
    let pages = [
        ("t1", json!([version(1, true), version(2, true)]), Some("t2")),
        ("t2", json!([]), Some("t3")),
        ("t3", json!([version(3, true), version(4, false)]), None),
        ("", json!([version(0, true)]), Some("t1")),
    ];
    let rules: Vec<_> = pages
        .into_iter()
        .map(|(token, items, next)| {
            let body = json!({ "kind": "storage#objects", "items": items, "nextPageToken": next });
            let query = if token.is_empty() { "versions=true".to_owned() } else { format!("pageToken={token}") };
            json!({ "match": { "path": "/o$", "query": query }, "action": { "status": 200, "body": body } })
        })
        .collect();
    site.tell("rules", json!(rules)).await;
    let ask = async |limit| bucket.versions(&key("k"), &VersionsRequest { generation: None, limit }).await.unwrap();
    for (limit, wanted, more) in
        [(9, &["4", "3", "2", "1", "0"][..], false), (5, &["4", "3", "2", "1", "0"], false), (2, &["4", "3"], true)]
    {
        let found = ask(limit).await;
        assert_eq!(found.versions.iter().map(|version| version.id.as_str()).collect::<Vec<_>>(), wanted);
        assert_eq!((found.more, found.versions[0].is_current, found.versions[1].is_current), (more, true, false));
    }
}

#[tokio::test]
async fn places_without_versions_refuse() {
    let folder = scratch();
    let places: [Arc<dyn Backend>; 2] =
        [Arc::new(Memory::new()), Arc::new(Local::open(folder.path().join("objects")).unwrap())];
    for place in places {
        let engine = Engine::new(Arc::clone(&place), BackendKind::Local);
        let receipt = stored(&engine, "k", 1).await;
        assert_eq!(value(&engine, "k", &receipt.generation).await, Some(Value::Bytes(model(1))), "the present state");
        assert_eq!(engine.stat_generation(&key("k"), &receipt.generation).await.unwrap().unwrap().receipt, receipt);
        for name in ["k", "nothing"] {
            let refused = [
                engine.retrieve(&key(name), at("earlier")).await.map(drop),
                engine.stat_generation(&key(name), "earlier").await.map(drop),
                engine.versions(&key(name), None).await.map(drop),
            ];
            for error in refused {
                let error = error.unwrap_err();
                assert!(error.kind == ErrorKind::Invalid && error.message().contains("keeps no earlier"), "{error}");
            }
        }
        let version = GetOptions { version: Some(VersionId::new("1")), ..GetOptions::default() };
        let sealed = Encoded::new(Arc::clone(&place), Spool::new(env!("CARGO_TARGET_TMPDIR")))
            .with_encryption(Encryption::on(Keyring::parse(KEY).unwrap()));
        let receipt = stored(&Engine::new(Arc::new(sealed), BackendKind::Local), "sealed", 1).await;
        let sealed: Arc<dyn Backend> =
            Arc::new(Encoded::new(Arc::clone(&place), Spool::new(env!("CARGO_TARGET_TMPDIR"))));
        let error = Engine::new(sealed, BackendKind::Local).retrieve(&key("sealed"), at(&receipt.generation)).await;
        assert_eq!(error.unwrap_err().kind, ErrorKind::Integrity, "its key is missing, whatever is kept");
        assert_eq!(place.get(&key("k"), version).await.unwrap_err().kind, ErrorKind::Invalid);
        let request = VersionsRequest { generation: None, limit: 1 };
        assert_eq!(place.versions(&key("k"), &request).await.unwrap_err().kind, ErrorKind::Invalid);
    }
}
