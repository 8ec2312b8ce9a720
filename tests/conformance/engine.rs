//! What the engine promises over any backend.

use bytes::Bytes;
use filestorage::provider::BackendKind;
use filestorage::storage::{
    Budget, ByteRange, CommitGuard, Condition, Content, ContentType, CopyOptions, DeleteRequest, Engine, ErrorKind,
    GetOptions, JsonText, Kind, ListRequest, Metadata, Receipt, Redelivered, StoreOptions, Value,
};
use jiff::{SignedDuration, Timestamp};

use crate::backend::Profile;
use crate::housekeeping;
use crate::support::{Tally, key, noise};

pub(crate) async fn suite(engine: &Engine, profile: Profile, tally: &Tally) {
    values(engine, tally).await;
    ranges(engine, tally).await;
    opened(engine, tally).await;
    receipts(engine, profile, tally).await;
    expiry(engine, tally).await;
    lists(engine, profile, tally).await;
    housekeeping::suite(engine, profile, tally).await;
    redelivered_stores(engine, tally).await;
    reused_ids(engine, tally).await;
    redelivered_deletes(engine, tally).await;
    copies(engine, tally).await;
    redelivered_copies(engine, tally).await;
    counters(engine, tally).await;
}

fn text(text: &str) -> Value {
    Value::Text(text.to_owned())
}

fn json(text: &str) -> Value {
    Value::Json(JsonText::parse(text).unwrap())
}

async fn get(engine: &Engine, name: &str) -> Option<Value> {
    engine.retrieve(&key(name), GetOptions::default()).await.unwrap().map(|found| found.value)
}

async fn put(engine: &Engine, name: &str, value: &str) -> filestorage::storage::Receipt {
    engine.store(&key(name), text(value), StoreOptions::default()).await.unwrap()
}

async fn values(engine: &Engine, tally: &Tally) {
    let deep = format!("{}{}", "[".repeat(150), "]".repeat(150));
    let texts =
        ["null", "1180591620717411303424", "-0.0", "1e400", "NaN", "[-Infinity,Infinity]", "{\"ü\":[1.0,true]}", &deep];
    let mut values: Vec<Value> = texts.iter().map(|text| json(text)).collect();
    values.extend(["", "123", "null", "{\"a\":1}", "ünï\0\r\n🦀"].map(text));
    values.extend([&b""[..], b"hello", b"\xff\xfe\0", b"(lp0\n."].map(|bytes| Value::Bytes(Bytes::from_static(bytes))));
    values.push(Value::Bytes(noise(8 << 20, 3).into()));
    for value in values {
        let receipt = engine.store(&key("v"), value.clone(), StoreOptions::default()).await.unwrap();
        let found = engine.retrieve(&key("v"), GetOptions::default()).await.unwrap().unwrap();
        assert!(found.value == value, "{receipt:?}");
        tally.equal(found.receipt, receipt.clone());
        tally.equal(receipt.kind, value.kind());
        tally.equal(engine.stat(&key("v")).await.unwrap().map(|stat| stat.receipt), Some(receipt));
    }
    for text in ["", "nan", "{", "1 2", "[\"\n\"]", &"[".repeat(5_000)] {
        let content = Content::new(Kind::Json, Bytes::from(text.to_owned()).into());
        let refused = engine.store(&key("v"), content, StoreOptions::default()).await.unwrap_err();
        tally.equal(refused.kind, ErrorKind::Invalid);
    }
    tally.equal(engine.exists(&key("v")).await.unwrap(), true);
    engine.delete(&key("v"), DeleteRequest::default()).await.unwrap();
    engine.delete(&key("v"), DeleteRequest::default()).await.unwrap();
    tally.equal(engine.exists(&key("v")).await.unwrap(), false);
    tally.equal(get(engine, "v").await, None);
    tally.equal(engine.stat(&key("v")).await.unwrap().is_none(), true);
    engine.probe().await.unwrap();
}

async fn ranges(engine: &Engine, tally: &Tally) {
    put(engine, "r", "añb").await;
    for (offset, length, wanted) in [
        (0, None, &b"a\xc3\xb1b"[..]),
        (0, Some(2), b"a\xc3"),
        (2, Some(1), b"\xb1"),
        (3, Some(u64::MAX), b"b"),
        (1, Some(0), b""),
        (4, None, b""),
        (u64::MAX, Some(u64::MAX), b""),
    ] {
        let range = Some(ByteRange { offset, length });
        let found = engine.retrieve(&key("r"), GetOptions { range, ..GetOptions::default() }).await.unwrap().unwrap();
        tally.equal(found.value, Value::Bytes(Bytes::from_static(wanted)));
        tally.equal(found.receipt.size, Some(4));
    }
    engine.store(&key("r"), json("[1]"), StoreOptions::default()).await.unwrap();
    let range = GetOptions { range: Some(ByteRange::default()), ..GetOptions::default() };
    let refused = engine.retrieve(&key("r"), range.clone()).await.unwrap_err();
    tally.equal(refused.kind, ErrorKind::Invalid);
    // What would be refused for its size is not there once it has expired.
    let small = GetOptions { limit: Some(2), ..GetOptions::default() };
    tally.equal(engine.retrieve(&key("r"), small.clone()).await.unwrap_err().kind, ErrorKind::Invalid);
    let past = StoreOptions { expires_at: Some(Timestamp::now()), ..StoreOptions::default() };
    engine.store(&key("r"), text("123"), past).await.unwrap();
    tally.equal(engine.retrieve(&key("r"), small).await.unwrap().is_none(), true);
    engine.delete(&key("r"), DeleteRequest::default()).await.unwrap();
    tally.equal(engine.retrieve(&key("r"), range).await.unwrap().is_none(), true);
}

/// What is opened to be read piece by piece is the same as what is retrieved, wherever its bytes are.
async fn opened(engine: &Engine, tally: &Tally) {
    let many = Bytes::from(noise(3 << 20, 5));
    for value in [Value::Bytes(many.clone()), text(&"\u{fc}".repeat(1 << 20)), json("[NaN]"), text("")] {
        let receipt = engine.store(&key("o"), value.clone(), StoreOptions::default()).await.unwrap();
        for spooled in [true, false] {
            let found = engine.open(&key("o"), GetOptions { spooled, ..GetOptions::default() }).await.unwrap().unwrap();
            tally.equal((found.content.kind, found.receipt), (value.kind(), receipt.clone()));
            assert!(spooled || found.content.payload.as_memory().is_some());
            assert!(found.content.payload.into_memory().await.unwrap() == value.clone().into_bytes());
            tally.case();
        }
    }
    // So is what is read once there is room for it, whose bytes stay counted.
    let budget = Budget::new(64 << 20);
    for value in [Value::Bytes(many.clone()), text(&"\u{fc}".repeat(1 << 20)), json("[NaN]"), text("")] {
        let receipt = engine.store(&key("o"), value.clone(), StoreOptions::default()).await.unwrap();
        let (found, held) = engine.retrieve_within(&key("o"), GetOptions::default(), &budget).await.unwrap();
        let (found, size) = (found.unwrap(), receipt.size.unwrap());
        assert!(found.value == value && found.receipt == receipt);
        assert_eq!((held.is_some(), budget.held() >= 2 * size), (size > 100_000, size > 100_000 || size == 0));
        drop(held);
        tally.equal(budget.held(), 0);
    }
    let range = Some(ByteRange { offset: 5, length: Some(2 << 20) });
    engine.store(&key("o"), Value::Bytes(many.clone()), StoreOptions::default()).await.unwrap();
    for (limit, fits) in [(2 << 20, true), ((2 << 20) - 1, false)] {
        let part = GetOptions { range, limit: Some(limit), ..GetOptions::default() };
        match engine.retrieve_within(&key("o"), part, &budget).await {
            Ok((found, held)) => {
                assert!(fits && found.unwrap().value == Value::Bytes(many.slice(5..5 + (2 << 20))));
                assert!(held.is_some_and(|held| held.bytes() >= 4 << 20));
            }
            Err(error) => assert!(!fits && error.kind == ErrorKind::Invalid, "{error}"),
        }
        tally.equal(budget.held(), 0);
    }
    let part = GetOptions { range, spooled: true, ..GetOptions::default() };
    engine.store(&key("o"), Value::Bytes(many.clone()), StoreOptions::default()).await.unwrap();
    let found = engine.open(&key("o"), part.clone()).await.unwrap().unwrap();
    assert!(found.content.payload.into_memory().await.unwrap() == many.slice(5..5 + (2 << 20)));
    engine.store(&key("o"), json("[]"), StoreOptions::default()).await.unwrap();
    tally.equal(engine.open(&key("o"), part.clone()).await.unwrap_err().kind, ErrorKind::Invalid);
    let past = StoreOptions { expires_at: Some(Timestamp::UNIX_EPOCH), ..StoreOptions::default() };
    engine.store(&key("o"), text("past"), past).await.unwrap();
    assert!(engine.open(&key("o"), part.clone()).await.unwrap().is_none());
    engine.delete(&key("o"), DeleteRequest::default()).await.unwrap();
    assert!(engine.open(&key("o"), part.clone()).await.unwrap().is_none());
    tally.case();
}

async fn receipts(engine: &Engine, profile: Profile, tally: &Tally) {
    let options = StoreOptions {
        metadata: Some(Metadata::parse(r#"{"b": 1e400, "a": "ü"}"#).unwrap()),
        content_type: Some(ContentType::parse("text/csv").unwrap()),
        expires_at: Some("2999-01-02T03:04:05+01:00".parse().unwrap()),
        ..StoreOptions::default()
    };
    engine.store(&key("ä/b"), text("1"), options).await.unwrap();
    let stat = engine.stat(&key("ä/b")).await.unwrap().unwrap();
    let json: serde_json::Value = serde_json::to_value(&stat).map_err(|error| error.to_string()).unwrap_or_else(|_| {
        // 1e400 is no `f64`, so a tree cannot hold it; the text can.
        serde_json::from_str(&serde_json::to_string(&stat).unwrap().replace("1e400", "4")).unwrap()
    });
    let wanted = [
        ("key", "ä/b".into()),
        ("backend", engine.kind().as_str().into()),
        ("pending_sync", profile.pending.into()),
        ("size", 1.into()),
        ("stored_size", (1 + profile.codec.map_or(u64::from(profile.encrypting) * 16, |codec| codec.overhead)).into()),
        ("compression", profile.codec.map(|codec| codec.name).into()),
        ("encrypted", profile.encrypting.into()),
        ("checksum", "crc32c:kPWZ4w==".into()),
        ("generation", stat.receipt.generation.clone().into()),
        ("content_type", "text/csv".into()),
        ("kind", "text".into()),
        ("stored_at", json["stored_at"].clone()),
        ("expires_at", "2999-01-02T02:04:05.000000+00:00".into()),
        ("metadata", json["metadata"].clone()),
    ];
    let names: Vec<_> = wanted.iter().map(|(name, _)| *name).collect();
    tally.equal(json.as_object().unwrap().keys().map(String::as_str).collect::<Vec<_>>(), names);
    for (name, wanted) in wanted {
        tally.equal(json[name].clone(), wanted);
    }
    let stored_at = json["stored_at"].as_str().unwrap();
    tally.equal((stored_at.len(), &stored_at[26..]), (32, "+00:00"));
    tally.equal(stored_at.parse::<Timestamp>().unwrap(), stat.receipt.stored_at);
    tally.equal(stat.metadata.unwrap().get(), r#"{"b":1e400,"a":"ü"}"#);
    for (value, content_type) in [
        (text(""), "text/plain; charset=utf-8"),
        (Value::Bytes(Bytes::new()), "application/octet-stream"),
        (Value::Json(JsonText::parse("1").unwrap()), "application/json"),
    ] {
        let receipt = engine.store(&key("ä/b"), value, StoreOptions::default()).await.unwrap();
        tally.equal(receipt.content_type.as_str(), content_type);
        tally.equal(receipt.expires_at, None);
    }
    tally.equal(engine.stat(&key("ä/b")).await.unwrap().unwrap().metadata, None);
    engine.delete(&key("ä/b"), DeleteRequest::default()).await.unwrap();
}

async fn expiry(engine: &Engine, tally: &Tally) {
    let past = || StoreOptions { expires_at: Some(Timestamp::now()), ..StoreOptions::default() };
    let receipt = engine.store(&key("e"), text("1"), past()).await.unwrap();
    tally.equal(get(engine, "e").await, None);
    tally.equal(engine.exists(&key("e")).await.unwrap(), false);
    tally.equal(engine.stat(&key("e")).await.unwrap().is_none(), true);
    tally.equal(engine.list(ListRequest::default()).await.unwrap().len(), 0);
    // Whatever generation is named, nothing is there: the delete has what it wants.
    let other = DeleteRequest { generation: Some("other".to_owned()), ..DeleteRequest::default() };
    engine.delete(&key("e"), other).await.unwrap();
    let exactly = StoreOptions { condition: Condition::Generation(receipt.generation), ..StoreOptions::default() };
    tally.equal(engine.store(&key("e"), text("2"), exactly).await.unwrap_err().kind, ErrorKind::Precondition);
    let absent = StoreOptions { condition: Condition::Absent, ..StoreOptions::default() };
    engine.store(&key("e"), text("3"), absent).await.unwrap();
    tally.equal(get(engine, "e").await, Some(text("3")));
    let other = DeleteRequest { generation: Some("other".to_owned()), ..DeleteRequest::default() };
    tally.equal(engine.delete(&key("e"), other).await.unwrap_err().kind, ErrorKind::Precondition);
    engine.delete(&key("e"), DeleteRequest::default()).await.unwrap();
}

async fn lists(engine: &Engine, profile: Profile, tally: &Tally) {
    let keys = profile.keys();
    let mut live = Vec::new();
    for (number, key) in keys.iter().enumerate() {
        let expires_at = (number % 3 != 0).then(Timestamp::now);
        engine.store(key, text("x"), StoreOptions { expires_at, ..StoreOptions::default() }).await.unwrap();
        if expires_at.is_none() {
            live.push(key.clone());
        }
    }
    tally.equal(engine.list(ListRequest::default()).await.unwrap(), live.clone());
    for limit in [0, 1, 7, live.len() - 1, live.len(), usize::MAX] {
        let found = engine.list(ListRequest { limit: Some(limit), ..ListRequest::default() }).await.unwrap();
        tally.equal(found, live[..limit.min(live.len())].to_vec());
    }
    let start_after = Some(live[9].as_str().to_owned());
    let found = engine.list(ListRequest { start_after, limit: Some(30), prefix: None }).await.unwrap();
    tally.equal(found, live[10..40].to_vec());
    let found = engine.list(ListRequest { prefix: Some("x".to_owned()), ..ListRequest::default() }).await.unwrap();
    tally.equal(found, live.iter().filter(|key| key.as_str().starts_with('x')).cloned().collect());
    for key in keys {
        engine.delete(&key, DeleteRequest::default()).await.unwrap();
    }
}

fn again(id: &str, started_at: Option<Timestamp>) -> StoreOptions {
    StoreOptions {
        operation_id: Some(id.to_owned()),
        redelivered: Some(Redelivered { started_at }),
        ..StoreOptions::default()
    }
}

async fn redelivered_stores(engine: &Engine, tally: &Tally) {
    let it = key("redelivered");
    let started = Timestamp::now() - SignedDuration::from_secs(1);
    for started_at in [None, Some(started)] {
        // Never ran: runs now. Ran: answers what it answered then.
        let first = engine.store(&it, text("1"), again("one", started_at)).await.unwrap();
        tally.equal(first.clone(), engine.store(&it, text("1"), again("one", started_at)).await.unwrap());
        let absent = StoreOptions { condition: Condition::Absent, ..again("one", started_at) };
        tally.equal(first.clone(), engine.store(&it, text("1"), absent).await.unwrap());
        let absent = StoreOptions { condition: Condition::Absent, ..again("two", started_at) };
        tally.equal(engine.store(&it, text("2"), absent).await.unwrap_err().kind, ErrorKind::Precondition);
        let exactly = StoreOptions {
            condition: Condition::Generation(first.generation.clone()),
            ..again("three", Some(Timestamp::now()))
        };
        let third = engine.store(&it, text("3"), exactly.clone()).await.unwrap();
        tally.equal(engine.store(&it, text("3"), exactly).await.unwrap(), third);
        tally.equal(get(engine, "redelivered").await, Some(text("3")));
        // The same id with another value is another run of periodic work, not this one again.
        engine.store(&it, text("4"), again("three", Some(Timestamp::now()))).await.unwrap();
        tally.equal(get(engine, "redelivered").await, Some(text("4")));
        engine.delete(&it, DeleteRequest::default()).await.unwrap();
    }
    // What was written since stays; what was written before goes.
    let newer = put(engine, "redelivered", "newer").await;
    let receipt = engine.store(&it, text("older"), again("four", Some(started))).await.unwrap();
    tally.equal((receipt.size, receipt.generation == newer.generation), (Some(5), false));
    tally.equal(get(engine, "redelivered").await, Some(text("newer")));
    engine.store(&it, text("latest"), again("five", Some(newer.stored_at))).await.unwrap();
    tally.equal(get(engine, "redelivered").await, Some(text("latest")));
    // Without a known start nothing can be told, and the command runs.
    engine.store(&it, text("blind"), again("six", None)).await.unwrap();
    tally.equal(get(engine, "redelivered").await, Some(text("blind")));
    // Against a writer at the same time: newer writes only ever follow each other.
    let began = Timestamp::now();
    let writer = tokio::spawn({
        let engine = engine.clone();
        async move {
            for number in 0..200 {
                put(&engine, "redelivered", &format!("n{number}")).await;
            }
        }
    });
    let mut rounds = 0;
    while !writer.is_finished() {
        let options = again(&format!("old {rounds}"), Some(began));
        engine.store(&it, text("old"), options).await.unwrap();
        rounds += 1;
    }
    writer.await.unwrap();
    tally.equal(get(engine, "redelivered").await, Some(text("n199")));
    let commit_guard = CommitGuard::default();
    assert!(commit_guard.abandon());
    let abandoned = StoreOptions { commit_guard, ..again("seven", Some(Timestamp::now())) };
    tally.equal(engine.store(&it, text("x"), abandoned).await.unwrap_err().kind, ErrorKind::Abandoned);
    engine.delete(&it, DeleteRequest::default()).await.unwrap();
}

/// Periodic work comes with one id again and again; only this run's own write answers for it.
async fn reused_ids(engine: &Engine, tally: &Tally) {
    let it = key("periodic");
    let metadata = |text: &str| Some(Metadata::parse(text).unwrap());
    for started_at in [None, Some(Timestamp::now() - SignedDuration::from_secs(1))] {
        let plain = again("periodic", started_at);
        let described = StoreOptions { metadata: metadata(r#"{"a":1}"#), ..plain.clone() };
        let typed = StoreOptions { content_type: Some(ContentType::parse("text/csv").unwrap()), ..plain.clone() };
        let passing = |seconds| Some(Timestamp::now() + SignedDuration::from_secs(seconds));
        let lasting = StoreOptions { expires_at: passing(1000), ..plain.clone() };
        for options in [plain.clone(), described, typed, lasting] {
            let before = StoreOptions { redelivered: None, ..plain.clone() };
            let before = match (&options.metadata, &options.content_type, options.expires_at) {
                (None, None, None) => StoreOptions { metadata: metadata(r#"{"a":2}"#), ..before },
                _ => before,
            };
            let old = engine.store(&it, text("1"), before).await.unwrap();
            // Of the run before: this one began after it.
            let began = Redelivered { started_at: started_at.map(|_| Timestamp::now()) };
            let options = StoreOptions { redelivered: Some(began), ..options };
            let receipt = engine.store(&it, text("1"), options.clone()).await.unwrap();
            tally.equal(receipt.generation == old.generation, false);
            let stat = engine.stat(&it).await.unwrap().unwrap();
            tally.equal((&stat.receipt, &stat.metadata), (&receipt, &options.metadata));
            // This run's own, although its time to live counts anew.
            let longer = StoreOptions { expires_at: options.expires_at.and(passing(2000)), ..options };
            tally.equal(engine.store(&it, text("1"), longer).await.unwrap(), receipt);
        }
        // What has expired is no answer, whoever wrote it.
        let past = StoreOptions { expires_at: Some(Timestamp::now()), redelivered: None, ..plain.clone() };
        let old = engine.store(&it, text("1"), past).await.unwrap();
        let lasting = StoreOptions { expires_at: passing(1000), ..plain.clone() };
        let receipt = engine.store(&it, text("1"), lasting).await.unwrap();
        tally.equal(receipt.generation == old.generation, false);
        tally.equal(engine.stat(&it).await.unwrap().map(|stat| stat.receipt), Some(receipt));
        engine.delete(&it, DeleteRequest::default()).await.unwrap();
    }
    // The same in every part, but written before this run began.
    let old = engine.store(&it, text("1"), again("periodic", None)).await.unwrap();
    let receipt = engine.store(&it, text("1"), again("periodic", Some(after(old.stored_at)))).await.unwrap();
    tally.equal(receipt.generation == old.generation, false);
    tally.equal(engine.stat(&it).await.unwrap().map(|stat| stat.receipt), Some(receipt));
    engine.delete(&it, DeleteRequest::default()).await.unwrap();
}

fn after(time: Timestamp) -> Timestamp {
    time + SignedDuration::from_micros(1)
}

async fn redelivered_deletes(engine: &Engine, tally: &Tally) {
    let it = key("redelivered");
    let again = |started_at, generation| DeleteRequest {
        generation,
        redelivered: Some(Redelivered { started_at }),
        ..DeleteRequest::default()
    };
    let began = Timestamp::now() - SignedDuration::from_secs(1);
    engine.delete(&it, again(Some(began), None)).await.unwrap();
    let receipt = put(engine, "redelivered", "newer").await;
    engine.delete(&it, again(Some(began), None)).await.unwrap();
    engine.delete(&it, again(Some(began), Some("gone".to_owned()))).await.unwrap();
    tally.equal(get(engine, "redelivered").await, Some(text("newer")));
    let refused = engine.delete(&it, again(Some(Timestamp::now()), Some("gone".to_owned()))).await.unwrap_err();
    tally.equal(refused.kind, ErrorKind::Precondition);
    engine.delete(&it, again(Some(receipt.stored_at), Some(receipt.generation))).await.unwrap();
    tally.equal(get(engine, "redelivered").await, None);
    put(engine, "redelivered", "x").await;
    engine.delete(&it, again(Some(Timestamp::now()), None)).await.unwrap();
    tally.equal(get(engine, "redelivered").await, None);
    put(engine, "redelivered", "x").await;
    engine.delete(&it, again(None, None)).await.unwrap();
    tally.equal(get(engine, "redelivered").await, None);
}

async fn counters(engine: &Engine, tally: &Tally) {
    let before = engine.stats();
    tally.equal(
        (before.initialized, before.gcs_available, before.cache_enabled, before.cache_size),
        (true, engine.kind() == BackendKind::Gcs, false, 0),
    );
    put(engine, "c", "12345").await;
    get(engine, "c").await;
    get(engine, "missing").await;
    let absent = StoreOptions { condition: Condition::Absent, ..StoreOptions::default() };
    assert!(engine.store(&key("c"), text("x"), absent).await.is_err());
    let after = engine.stats().metrics;
    tally.equal(after.total_operations - before.metrics.total_operations, 4);
    tally.equal(after.successful_operations - before.metrics.successful_operations, 3);
    tally.equal(after.total_data_size - before.metrics.total_data_size, 5);
    assert!(after.success_rate > 0.0 && after.success_rate < 1.0 && after.mean_response_time > 0.0);
    tally.equal(engine.retrieve(&key("c"), GetOptions::default()).await.unwrap().unwrap().receipt.kind, Kind::Text);
    engine.delete(&key("c"), DeleteRequest::default()).await.unwrap();
}

/// Copies and moves, which keep the value, its metadata and its expiry.
async fn copies(engine: &Engine, tally: &Tally) {
    let options = || StoreOptions {
        metadata: Some(Metadata::parse(r#"{"a":1.0}"#).unwrap()),
        content_type: Some(ContentType::parse("text/csv").unwrap()),
        expires_at: Some("2999-01-02T03:04:05Z".parse().unwrap()),
        ..StoreOptions::default()
    };
    let (from, to, other) = (key("copy/from"), key("copy/to"), key("copy/other"));
    for value in [text("a,b"), json("[NaN]"), Value::Bytes(noise(100_000, 8).into()), text(&"ab".repeat(50_000))] {
        let before = engine.store(&from, value.clone(), options()).await.unwrap();
        let copied = engine.copy(&from, &to, CopyOptions::default()).await.unwrap();
        let found = engine.retrieve(&to, GetOptions::default()).await.unwrap().unwrap();
        tally.equal((found.value == value, &found.receipt), (true, &copied));
        tally.equal(
            engine.stat(&to).await.unwrap().unwrap().metadata.unwrap().get().to_owned(),
            r#"{"a":1.0}"#.to_owned(),
        );
        let as_source = Receipt {
            key: from.clone(),
            generation: before.generation.clone(),
            stored_at: before.stored_at,
            ..copied.clone()
        };
        tally.equal(as_source, before.clone());
        tally.equal(copied.generation == before.generation || copied.stored_at < before.stored_at, false);
        let moved = engine.rename(&to, &other, CopyOptions::default()).await.unwrap();
        tally.equal((moved.checksum, get(engine, "copy/other").await == Some(value)), (before.checksum, true));
        tally.equal(engine.exists(&to).await.unwrap(), false);
    }
    let absent = || CopyOptions { condition: Condition::Absent, ..CopyOptions::default() };
    tally.equal(engine.copy(&from, &other, absent()).await.unwrap_err().kind, ErrorKind::Precondition);
    tally.equal(engine.rename(&from, &other, absent()).await.unwrap_err().kind, ErrorKind::Precondition);
    tally.equal(engine.exists(&from).await.unwrap(), true);
    // Onto itself, the value and its state stay.
    let present = engine.stat(&from).await.unwrap().unwrap().receipt;
    tally.equal(engine.copy(&from, &from, CopyOptions::default()).await.unwrap(), present.clone());
    tally.equal(engine.rename(&from, &from, CopyOptions::default()).await.unwrap(), present.clone());
    tally.equal(engine.rename(&from, &from, absent()).await.unwrap_err().kind, ErrorKind::Precondition);
    tally.equal(engine.stat(&from).await.unwrap().map(|stat| stat.receipt), Some(present));
    for (source, target) in [("copy/none", "copy/to"), ("copy/none", "copy/none")] {
        for move_it in [false, true] {
            let (source, target) = (key(source), key(target));
            let outcome = if move_it {
                engine.rename(&source, &target, absent()).await
            } else {
                engine.copy(&source, &target, CopyOptions::default()).await
            };
            let error = outcome.unwrap_err();
            tally.equal((error.kind, error.key), (ErrorKind::Missing, Some(key("copy/none"))));
        }
    }
    let past = StoreOptions { expires_at: Some(Timestamp::UNIX_EPOCH), ..StoreOptions::default() };
    engine.store(&from, text("past"), past).await.unwrap();
    tally.equal(engine.copy(&from, &to, CopyOptions::default()).await.unwrap_err().kind, ErrorKind::Missing);
    for key in [&from, &to, &other] {
        engine.delete(key, DeleteRequest::default()).await.unwrap();
    }
}

/// A copy or move that comes again finds what its first run left.
async fn redelivered_copies(engine: &Engine, tally: &Tally) {
    let (from, to) = (key("copied/from"), key("copied/to"));
    let stored = |id: &str| StoreOptions { operation_id: Some(id.to_owned()), ..StoreOptions::default() };
    let first = |id: &str| CopyOptions { operation_id: Some(id.to_owned()), ..CopyOptions::default() };
    for known in [true, false] {
        engine.store(&from, text("one"), stored("store")).await.unwrap();
        let started_at = known.then(Timestamp::now);
        let again = |id: &str| CopyOptions { redelivered: Some(Redelivered { started_at }), ..first(id) };
        // The first run ended between the two halves of a move.
        let copied = engine.copy(&from, &to, first("move")).await.unwrap();
        tally.equal(engine.rename(&from, &to, again("move")).await.unwrap(), copied.clone());
        tally.equal(engine.exists(&from).await.unwrap(), false);
        // Now it is over, and its source is gone.
        tally.equal(engine.rename(&from, &to, again("move")).await.unwrap(), copied.clone());
        tally.equal(engine.copy(&from, &to, again("move")).await.unwrap(), copied.clone());
        // What was written under the source since stays.
        engine.store(&from, text("two"), stored("later")).await.unwrap();
        tally.equal(engine.rename(&from, &to, again("move")).await.unwrap(), copied.clone());
        tally.equal(get(engine, "copied/from").await, Some(text("two")));
        // So does what was written under the destination, where it is known to be newer.
        engine.store(&to, text("three"), stored("other")).await.unwrap();
        engine.copy(&from, &to, again("copy")).await.unwrap();
        tally.equal(get(engine, "copied/to").await, Some(text(if known { "three" } else { "two" })));
        // Whatever is older is replaced.
        let later = known.then(Timestamp::now);
        let options = CopyOptions { redelivered: Some(Redelivered { started_at: later }), ..first("late") };
        engine.rename(&from, &to, options).await.unwrap();
        tally.equal(get(engine, "copied/to").await, Some(text("two")));
        let absent = CopyOptions { condition: Condition::Absent, ..again("absent") };
        engine.store(&from, text("four"), stored("four")).await.unwrap();
        tally.equal(engine.copy(&from, &to, absent.clone()).await.unwrap_err().kind, ErrorKind::Precondition);
        for key in [&from, &to] {
            engine.delete(key, DeleteRequest::default()).await.unwrap();
        }
        tally.equal(engine.copy(&from, &to, absent).await.unwrap_err().kind, ErrorKind::Missing);
    }
    overtaken_moves(engine, tally).await;
}

/// A move that comes again after somebody else has stored a value under its destination.
async fn overtaken_moves(engine: &Engine, tally: &Tally) {
    let (from, to) = (key("copied/from"), key("copied/to"));
    let source = engine.store(&from, text("source"), StoreOptions::default()).await.unwrap();
    let options = CopyOptions {
        operation_id: Some("overtaken".to_owned()),
        redelivered: Some(Redelivered { started_at: Some(source.stored_at) }),
        ..CopyOptions::default()
    };
    // The first run ended before it copied anything.
    let other = engine.store(&to, text("other"), StoreOptions::default()).await.unwrap();
    tally.equal(engine.rename(&from, &to, options.clone()).await.unwrap(), other.clone());
    tally.equal((get(engine, "copied/from").await, get(engine, "copied/to").await), (None, Some(text("other"))));
    tally.equal(engine.rename(&from, &to, options.clone()).await.unwrap(), other);
    // What is newer than the move was perhaps not moved, and stays.
    engine.store(&from, text("newer"), StoreOptions::default()).await.unwrap();
    let error = engine.rename(&from, &to, options.clone()).await.unwrap_err();
    tally.equal((error.kind, error.key), (ErrorKind::Precondition, Some(from.clone())));
    tally.equal(get(engine, "copied/from").await, Some(text("newer")));
    // A copy has no business with the source.
    engine.copy(&from, &to, options).await.unwrap();
    tally.equal(get(engine, "copied/to").await, Some(text("other")));
    for key in [&from, &to] {
        engine.delete(key, DeleteRequest::default()).await.unwrap();
    }
}
