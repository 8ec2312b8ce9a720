//! What every backend must do when it copies, over `&dyn Backend` alone.

use std::fs;
use std::sync::Arc;

use filestorage::provider::BackendKind;
use filestorage::storage::{
    Attributes, Backend, Codec, CommitGuard, Compression, Condition, CopyOptions, CopySource, DeleteOptions, Encoded,
    Encryption, Engine, ErrorKind, Fallback, Foreign, GetOptions, JsonText, Key, Keyring, Kind, LegacyFiles,
    LegacyValues, Local, Memory, Object, OwnEntries, PutOptions, Redelivered, Spool, Value,
};
use filestorage::telemetry::Metrics;
use futures_util::future::try_join_all;
use http::Method;
use jiff::{SignedDuration, Timestamp};

use crate::backend::Profile;
use crate::dev_s3::Bucket;
use crate::support::{Rest, Tally, all, bytes, expired, key, noise, object, rest, scratch};
use crate::unreliable_bucket::{self, Fate};

/// Runs all of it; the two may be one backend or two instances on one place.
pub(crate) async fn copies(one: &Arc<dyn Backend>, other: &Arc<dyn Backend>, profile: Profile, tally: &Tally) {
    values(&**one, &**other, profile, tally).await;
    states(&**one, tally).await;
    conditions(&**one, tally).await;
    onto_itself(&**one, &**other, tally).await;
    guards(&**one, tally).await;
    if profile.same_bytes {
        races(one, other, tally).await;
    }
    for name in ["from", "to", "to/below"] {
        one.delete(&key(&format!("copies/{name}")), &DeleteOptions::default()).await.unwrap();
    }
}

fn when(condition: Condition) -> PutOptions {
    PutOptions { condition, ..PutOptions::default() }
}

/// The attributes of a copy: those of the source with a token and metadata of its own.
fn renewed(seen: &Attributes) -> Attributes {
    let new = object("");
    let metadata = serde_json::value::RawValue::from_string(r#"{"copy":["é",1.0]}"#.to_owned()).unwrap();
    Attributes {
        generation: new.attributes.generation,
        operation_id: Some("copy".to_owned()),
        metadata: Some(metadata),
        ..seen.clone()
    }
}

async fn stored(one: &dyn Backend, key: &Key) -> Attributes {
    one.stat(key).await.unwrap().unwrap()
}

async fn content(one: &dyn Backend, key: &Key) -> Vec<u8> {
    bytes(one.get(key, GetOptions::default()).await.unwrap().unwrap()).await.to_vec()
}

async fn values(one: &dyn Backend, other: &dyn Backend, profile: Profile, tally: &Tally) {
    let (from, to) = (key("copies/from"), key("copies/to"));
    for size in [0, 1, 3_000, 70_000, 1 << 20, (8 << 20) + 1] {
        let wanted = object(profile.content(size));
        one.put(&from, &wanted, &PutOptions::default()).await.unwrap();
        let seen = stored(one, &from).await;
        let attributes = renewed(&seen);
        let copied = one.copy(&CopySource::of(&from, &seen), &to, &attributes, &PutOptions::default()).await;
        let (copied, found) = (copied.unwrap().unwrap(), stored(other, &to).await);
        tally.equal(all(&copied), all(&found));
        let same = |it: &Attributes| all(&Attributes { writer_id: None, ..it.clone() });
        tally.equal(same(&found), same(&attributes));
        assert!(content(other, &to).await == *bytes(wanted).await, "{size} bytes");
        tally.equal(all(&stored(other, &from).await), all(&seen));
        assert!(content(other, &from).await == content(one, &to).await, "{size} bytes");
    }
    // A key below another's name, and names that need an escape.
    for name in ["copies/to/below", "copies/ü ?#%2F+&é", "copies/from copy"] {
        let (seen, it) = (stored(one, &from).await, key(name));
        if profile.folders && name.ends_with("below") {
            one.delete(&to, &DeleteOptions::default()).await.unwrap();
        }
        one.copy(&CopySource::of(&from, &seen), &it, &renewed(&seen), &PutOptions::default()).await.unwrap().unwrap();
        let seen = stored(one, &it).await;
        one.copy(&CopySource::of(&it, &seen), &to, &renewed(&seen), &PutOptions::default()).await.ok();
        assert!(content(other, &it).await == content(other, &from).await, "{name}");
        one.delete(&it, &DeleteOptions::default()).await.unwrap();
    }
}

async fn states(one: &dyn Backend, tally: &Tally) {
    let (from, to) = (key("copies/from"), key("copies/to"));
    one.put(&from, &object("1"), &PutOptions::default()).await.unwrap();
    one.put(&to, &object("kept"), &PutOptions::default()).await.unwrap();
    let seen = stored(one, &from).await;
    one.put(&from, &object("2"), &PutOptions::default()).await.unwrap();
    for options in [PutOptions::default(), when(Condition::Absent)] {
        let copied = one.copy(&CopySource::of(&from, &seen), &to, &renewed(&seen), &options).await.unwrap();
        tally.equal(copied.is_none(), true);
    }
    one.delete(&from, &DeleteOptions::default()).await.unwrap();
    let copied = one.copy(&CopySource::of(&from, &seen), &to, &renewed(&seen), &PutOptions::default()).await.unwrap();
    tally.equal(copied.is_none(), true);
    tally.equal(content(one, &to).await, b"kept".to_vec());
}

async fn conditions(one: &dyn Backend, tally: &Tally) {
    let (from, to) = (key("copies/from"), key("copies/to"));
    one.put(&from, &object("new"), &PutOptions::default()).await.unwrap();
    let seen = stored(one, &from).await;
    let copy = async |condition: Condition| {
        let copied = one.copy(&CopySource::of(&from, &seen), &to, &renewed(&seen), &when(condition)).await;
        copied.map(Option::unwrap).map_err(|error| error.kind)
    };
    one.put(&to, &object("old"), &PutOptions::default()).await.unwrap();
    tally.equal(copy(Condition::Absent).await.unwrap_err(), ErrorKind::Precondition);
    tally.equal(copy(Condition::Generation("g".to_owned())).await.unwrap_err(), ErrorKind::Precondition);
    tally.equal(content(one, &to).await, b"old".to_vec());
    let present = stored(one, &to).await.generation;
    let copied = copy(Condition::Generation(present.clone())).await.unwrap();
    tally.equal(content(one, &to).await, b"new".to_vec());
    tally.equal(copy(Condition::Generation(present)).await.unwrap_err(), ErrorKind::Precondition);
    tally.equal(stored(one, &to).await.generation, copied.generation);
    one.delete(&to, &DeleteOptions::default()).await.unwrap();
    tally.equal(copy(Condition::Generation("g".to_owned())).await.unwrap_err(), ErrorKind::Precondition);
    copy(Condition::Absent).await.unwrap();
    tally.equal(content(one, &to).await, b"new".to_vec());
    // An expired object is absent.
    one.put(&to, &expired("past"), &PutOptions::default()).await.unwrap();
    copy(Condition::Absent).await.unwrap();
    tally.equal(content(one, &to).await, b"new".to_vec());
}

async fn onto_itself(one: &dyn Backend, other: &dyn Backend, tally: &Tally) {
    let it = key("copies/from");
    for value in [object("small"), object(vec![b'x'; 100_000])] {
        one.put(&it, &value, &PutOptions::default()).await.unwrap();
        let before = stored(one, &it).await;
        let attributes = renewed(&before);
        let copied = one.copy(&CopySource::of(&it, &before), &it, &attributes, &PutOptions::default()).await;
        tally.equal(all(&copied.unwrap().unwrap()), all(&stored(other, &it).await));
        tally.equal(stored(other, &it).await.generation, attributes.generation.clone());
        assert!(content(other, &it).await == *bytes(value).await);
        let again = one.copy(&CopySource::of(&it, &before), &it, &renewed(&before), &PutOptions::default()).await;
        tally.equal(again.unwrap().is_none(), true);
        let seen = stored(one, &it).await;
        let refused = one.copy(&CopySource::of(&it, &seen), &it, &renewed(&seen), &when(Condition::Absent)).await;
        tally.equal(refused.unwrap_err().kind, ErrorKind::Precondition);
        tally.equal(stored(other, &it).await.generation, attributes.generation);
        // Conditions concern the state that is replaced, not that which replaces it.
        let past = Attributes { expires_at: Some(Timestamp::UNIX_EPOCH), ..renewed(&seen) };
        let refused = one.copy(&CopySource::of(&it, &seen), &it, &past, &when(Condition::Absent)).await;
        tally.equal(refused.unwrap_err().kind, ErrorKind::Precondition);
        for attributes in [renewed(&seen), past] {
            let seen = stored(one, &it).await;
            let present = when(Condition::Generation(seen.generation.clone()));
            let copied = one.copy(&CopySource::of(&it, &seen), &it, &attributes, &present).await;
            tally.equal(copied.unwrap().unwrap().generation, attributes.generation.clone());
            tally.equal(stored(other, &it).await.generation, attributes.generation);
        }
    }
    one.put(&it, &object("present"), &PutOptions::default()).await.unwrap();
}

async fn guards(one: &dyn Backend, tally: &Tally) {
    let (from, to) = (key("copies/from"), key("copies/to"));
    one.put(&to, &object("kept"), &PutOptions::default()).await.unwrap();
    let seen = stored(one, &from).await;
    let commit_guard = CommitGuard::default();
    assert!(commit_guard.abandon());
    for target in [&to, &from] {
        let options = PutOptions { commit_guard: commit_guard.clone(), ..PutOptions::default() };
        let refused = one.copy(&CopySource::of(&from, &seen), target, &renewed(&seen), &options).await;
        tally.equal(refused.unwrap_err().kind, ErrorKind::Abandoned);
    }
    tally.equal(content(one, &to).await, b"kept".to_vec());
    tally.equal(all(&stored(one, &from).await), all(&seen));
    let options = PutOptions::default();
    one.copy(&CopySource::of(&from, &seen), &to, &renewed(&seen), &options).await.unwrap().unwrap();
    tally.equal(options.commit_guard.abandon(), false);
}

/// Of several copies of one state onto itself, one replaces it and the others find another state.
async fn races(one: &Arc<dyn Backend>, other: &Arc<dyn Backend>, tally: &Tally) {
    let it = key("copies/from");
    for _ in 0..20 {
        let seen = stored(&**one, &it).await;
        let contenders: Vec<_> =
            (0..4).map(|number| (Arc::clone(if number % 2 == 0 { one } else { other }), renewed(&seen))).collect();
        let tasks = contenders.iter().map(|(backend, attributes)| {
            let (backend, attributes, it, source) =
                (Arc::clone(backend), attributes.clone(), it.clone(), CopySource::of(&it, &seen));
            tokio::spawn(async move { backend.copy(&source, &it, &attributes, &PutOptions::default()).await.unwrap() })
        });
        let outcomes = try_join_all(tasks).await.unwrap();
        let winners: Vec<_> = outcomes.into_iter().flatten().collect();
        assert_eq!(winners.len(), 1, "{winners:?}");
        tally.equal(stored(&**one, &it).await.generation, winners[0].generation.clone());
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_large_object_of_s3_is_copied_in_parts() {
    let bucket = Bucket::make().await;
    let s3 = bucket.open().with_copy_parts(6 << 20, 5 << 20);
    let (from, to) = (key("large/from"), key("large/to"));
    let value = object(noise(12 << 20, 12));
    s3.put(&from, &value, &PutOptions::default()).await.unwrap();
    let seen = stored(&s3, &from).await;
    s3.copy(&CopySource::of(&from, &seen), &to, &renewed(&seen), &PutOptions::default()).await.unwrap().unwrap();
    assert!(content(&s3, &to).await == *bytes(value).await);
    // The tag of an object in parts names their number.
    let answer = bucket.ask(Method::HEAD, "/large/to", &[], "").await;
    let tag = answer.headers()["etag"].to_str().unwrap();
    assert!(tag.trim_matches('"').ends_with("-3"), "{tag}");
    let listed = bucket.ask(Method::GET, "?uploads=", &[], "").await.text().await.unwrap();
    assert!(!listed.contains("<Key>large"), "no upload is left: {listed}");
    bucket.remove().await;
}

#[tokio::test]
async fn a_damaged_file_is_not_copied() {
    let root = scratch();
    let local = Local::open(root.path()).unwrap();
    for size in [10, 100_000] {
        let (from, to) = (key("from"), key("to"));
        local.put(&from, &object(vec![b'x'; size]), &PutOptions::default()).await.unwrap();
        let seen = stored(&local, &from).await;
        let path = root.path().join("from.obj");
        let mut file = fs::read(&path).unwrap();
        *file.last_mut().unwrap() ^= 1;
        fs::write(&path, file).unwrap();
        let copied = local.copy(&CopySource::of(&from, &seen), &to, &renewed(&seen), &PutOptions::default()).await;
        let error = copied.unwrap_err();
        assert_eq!((error.kind, error.key.as_ref()), (ErrorKind::Integrity, Some(&from)), "{error}");
        assert!(error.message().contains("from.obj"), "{error}");
        assert!(local.stat(&to).await.unwrap().is_none());
    }
}

fn encoded(inner: Arc<dyn Backend>, encryption: Encryption) -> Encoded {
    Encoded::new(inner, Spool::new(env!("CARGO_TARGET_TMPDIR"))).with_encryption(encryption)
}

fn keyring(numbers: &[u8]) -> Keyring {
    use base64::Engine as _;
    let keys = numbers.iter().map(|number| base64::engine::general_purpose::STANDARD.encode([*number; 32]));
    Keyring::parse(&keys.collect::<Vec<_>>().join(",")).unwrap()
}

#[tokio::test]
async fn a_copy_keeps_the_ciphertext_and_is_bound_to_its_name() {
    let inner: Arc<dyn Backend> = Arc::new(Memory::new());
    let old = encoded(Arc::clone(&inner), Encryption::on(keyring(&[1])));
    let (from, to) = (key("from"), key("to"));
    let value = object(noise(100_000, 5));
    old.put(&from, &value, &PutOptions::default()).await.unwrap();
    let seen = stored(&old, &from).await;
    old.copy(&CopySource::of(&from, &seen), &to, &renewed(&seen), &PutOptions::default()).await.unwrap().unwrap();
    let kept = async |key: &Key| inner.get(key, GetOptions::default()).await.unwrap().unwrap();
    let (one, two) = (kept(&from).await, kept(&to).await);
    let (first, second) = (one.attributes.encryption.clone().unwrap(), two.attributes.encryption.clone().unwrap());
    assert_ne!((&first.wrapped_key, &first.sealed), (&second.wrapped_key, &second.sealed));
    let ciphertext = bytes(one).await;
    assert_eq!(ciphertext, bytes(two).await);
    // A copy onto itself under another first key is what a change of keys needs.
    let new = encoded(Arc::clone(&inner), Encryption::on(keyring(&[2, 1])));
    let seen = stored(&new, &to).await;
    new.copy(&CopySource::of(&to, &seen), &to, &seen, &PutOptions::default()).await.unwrap().unwrap();
    let rotated = kept(&to).await;
    assert_eq!(rotated.attributes.encryption.as_ref().unwrap().key_id, keyring(&[2]).ids().next().unwrap());
    assert_eq!(rotated.attributes.generation, seen.generation);
    assert_eq!(ciphertext, bytes(rotated).await);
    let only_new = encoded(Arc::clone(&inner), Encryption::on(keyring(&[2])));
    assert!(content(&only_new, &to).await == *bytes(value).await);
    assert_eq!(only_new.get(&from, GetOptions::default()).await.unwrap_err().kind, ErrorKind::Integrity);
    let error = only_new.copy(&CopySource::of(&from, &seen), &to, &seen, &PutOptions::default()).await;
    assert!(matches!(error, Ok(None)), "it is in another state: {error:?}");
}

#[tokio::test]
async fn a_plain_object_is_encrypted_where_encryption_is_on() {
    let inner: Arc<dyn Backend> = Arc::new(Memory::new());
    let plain = encoded(Arc::clone(&inner), Encryption::none());
    let (from, to) = (key("from"), key("to"));
    plain.put(&from, &object("a secret"), &PutOptions::default()).await.unwrap();
    let on = encoded(Arc::clone(&inner), Encryption::on(keyring(&[1])));
    let seen = stored(&on, &from).await;
    for target in [&to, &from] {
        on.copy(&CopySource::of(&from, &seen), target, &renewed(&seen), &PutOptions::default()).await.unwrap().unwrap();
        let kept = inner.get(target, GetOptions::default()).await.unwrap().unwrap();
        assert!(kept.attributes.is_sealed());
        assert!(!bytes(kept).await.windows(6).any(|part| part == b"secret"));
        assert_eq!(content(&on, target).await, b"a secret");
    }
}

#[tokio::test]
async fn what_the_python_class_wrote_becomes_a_value_by_a_copy() {
    let root = scratch();
    let spool = || Spool::new(env!("CARGO_TARGET_TMPDIR"));
    let objects: Arc<dyn Backend> = Arc::new(Local::open(root.path().join("objects")).unwrap());
    let files = LegacyFiles::new(Arc::clone(&objects), root.path(), OwnEntries::new(&["objects"], &[]), spool());
    let values = LegacyValues::new(Arc::new(Encoded::new(Arc::new(files), spool())), spool());
    let engine = Engine::new(Arc::new(values), BackendKind::Local);
    fs::write(root.path().join("text"), "old").unwrap();
    // `pickle.dumps([1, "a"])`
    fs::write(root.path().join("list"), b"\x80\x04\x95\x0b\x00\x00\x00\x00\x00\x00\x00]\x94(K\x01\x8c\x01a\x94e.")
        .unwrap();
    fs::write(root.path().join("hidden"), "hidden").unwrap();
    let get =
        async |name: &str| engine.retrieve(&key(name), GetOptions::default()).await.unwrap().map(|found| found.value);
    let list = Value::Json(JsonText::parse("[1,\"a\"]").unwrap());
    for (name, value) in [("text", Value::Text("old".to_owned())), ("list", list)] {
        let to = format!("{name} copy");
        engine.copy(&key(name), &key(&to), CopyOptions::default()).await.unwrap();
        assert_eq!(get(&to).await, Some(value.clone()));
        assert!(objects.stat(&key(&to)).await.unwrap().is_some() && root.path().join(name).exists());
        // A move onto a key whose file it hides takes both files away.
        engine.rename(&key(name), &key("hidden"), CopyOptions::default()).await.unwrap();
        assert_eq!((get("hidden").await, get(name).await), (Some(value), None));
        assert!(!root.path().join("hidden").exists() && !root.path().join(name).exists());
    }
    fs::write(root.path().join("other"), "kept").unwrap();
    let absent = CopyOptions { condition: Condition::Absent, ..CopyOptions::default() };
    let error = engine.copy(&key("hidden"), &key("other"), absent).await.unwrap_err();
    assert_eq!(error.kind, ErrorKind::Precondition);
    assert_eq!(get("other").await, Some(Value::Text("kept".to_owned())));
    engine.copy(&key("hidden"), &key("other"), CopyOptions::default()).await.unwrap();
    assert_eq!(get("other").await, get("hidden").await);
    assert!(!root.path().join("other").exists());
}

/// A move that comes again removes the state that its first run has copied, whatever became of the value.
#[tokio::test]
async fn a_move_that_comes_again_removes_what_it_copied() {
    let inner: Arc<dyn Backend> = Arc::new(Memory::new());
    let spool = || Spool::new(env!("CARGO_TARGET_TMPDIR"));
    let gzip = Compression { codec: Codec::Gzip, level: Codec::Gzip.default_level(), threshold: 0 };
    let packing = Encoded::new(Arc::clone(&inner), spool()).with_compression(Some(gzip));
    packing.put(&key("packed"), &object("ab".repeat(50_000)), &PutOptions::default()).await.unwrap();
    let packed = inner.get(&key("packed"), GetOptions::default()).await.unwrap().unwrap();
    assert_eq!(packed.attributes.compression.as_deref(), Some("gzip"));
    // `pickle.dumps([1, "a"])`
    let pickle = object(&b"\x80\x04\x95\x0b\x00\x00\x00\x00\x00\x00\x00]\x94(K\x01\x8c\x01a\x94e."[..]);
    let encoded = Encoded::new(Arc::clone(&inner), spool()).with_encryption(Encryption::on(keyring(&[1])));
    let engine = Engine::new(Arc::new(LegacyValues::new(Arc::new(encoded), spool()).and_objects()), BackendKind::Gcs);
    let (from, to) = (key("from"), key("to"));
    for (kind, content_type, written) in [(Kind::Text, "text/plain", pickle), (Kind::Bytes, "a/b", packed)] {
        let Attributes { stored_size: size, stored_checksum: checksum, .. } = written.attributes;
        // Another tool wrote it, and the clock of the bucket is ahead.
        let stored_at = Timestamp::now() + SignedDuration::from_hours(1);
        let foreign = Foreign { other_tool: true, ..Foreign::default() };
        let content_type = content_type.to_owned();
        let attributes = Attributes {
            kind,
            content_type,
            size,
            checksum,
            stored_at,
            foreign,
            metadata: None,
            operation_id: None,
            ..written.attributes
        };
        inner.put(&from, &Object { attributes, payload: written.payload }, &PutOptions::default()).await.unwrap();
        let first = CopyOptions { operation_id: Some("move".to_owned()), ..CopyOptions::default() };
        let started_at = Some(Timestamp::now() - SignedDuration::from_secs(1));
        let again = CopyOptions { redelivered: Some(Redelivered { started_at }), ..first.clone() };
        // The first run ended between the two halves.
        let copied = engine.copy(&from, &to, first).await.unwrap();
        let source = inner.get(&from, GetOptions::default()).await.unwrap().unwrap();
        let copy = stored(&*inner, &to).await;
        assert_ne!(
            (copy.size, copy.checksum),
            (source.attributes.size, source.attributes.checksum),
            "it was converted"
        );
        assert_eq!(engine.rename(&from, &to, again.clone()).await.unwrap(), copied);
        assert!(inner.stat(&from).await.unwrap().is_none());
        // Somebody stores the same bytes again, by a clock that is behind.
        let attributes =
            Attributes { generation: "later".to_owned(), stored_at: Timestamp::UNIX_EPOCH, ..source.attributes };
        inner.put(&from, &Object { attributes, ..source }, &PutOptions::default()).await.unwrap();
        assert_eq!(engine.rename(&from, &to, again).await.unwrap(), copied);
        assert_eq!(stored(&*inner, &from).await.generation, "later");
    }
}

#[tokio::test]
async fn metadata_that_just_fits_can_be_moved() {
    let bucket = Bucket::make().await;
    let s3: Arc<dyn Backend> = Arc::new(bucket.open());
    let encoded: Arc<dyn Backend> = Arc::new(encoded(Arc::clone(&s3), Encryption::on(keyring(&[1]))));
    let engine = Engine::new(Arc::clone(&encoded), BackendKind::S3);
    let (from, to) = (key("from"), key("to"));
    let with = |length: usize| {
        let metadata = serde_json::value::RawValue::from_string(format!("{{\"a\":\"{}\"}}", "x".repeat(length)));
        let Object { attributes, payload } = object("value");
        // A token as long as any that this program makes.
        let attributes = Attributes { metadata: metadata.ok(), generation: "g".repeat(32), ..attributes };
        Object { attributes, payload }
    };
    let fits = |length: &usize| encoded.validate(&from, &with(*length).attributes).is_ok();
    // Numbers in the header have different lengths.
    let most = (0..2048).rev().find(fits).unwrap() - 10;
    encoded.put(&from, &with(most), &PutOptions::default()).await.unwrap();
    let options = CopyOptions { operation_id: Some("id \"1\"\n".to_owned()), ..CopyOptions::default() };
    let began = Timestamp::now();
    let copied = engine.copy(&from, &to, options.clone()).await.unwrap();
    assert_eq!(stored(&*encoded, &to).await.copied_from, None);
    // Without the token, the time tells.
    let again = |started_at| CopyOptions { redelivered: Some(Redelivered { started_at }), ..options.clone() };
    let error = engine.rename(&from, &to, again(None)).await.unwrap_err();
    assert!(error.kind == ErrorKind::Precondition && error.message().contains("compare both keys"), "{error}");
    assert_eq!(engine.rename(&from, &to, again(Some(began))).await.unwrap(), copied);
    assert!(s3.stat(&from).await.unwrap().is_none());
    s3.delete(&to, &DeleteOptions::default()).await.unwrap();
    bucket.remove().await;
}

#[tokio::test]
async fn a_copy_waits_in_the_overlay_where_a_write_would() {
    let (bucket, folder) = (unreliable_bucket::Bucket::new(), scratch());
    let inner = Arc::clone(&bucket) as Arc<dyn Backend>;
    let fallback = Fallback::open(inner, folder.path().join("overlay"), Metrics::new()).unwrap();
    let copy = async |from: &str, to: &str, condition: Condition| {
        let (from, to) = (key(from), key(to));
        let seen = stored(&fallback, &from).await;
        fallback.copy(&CopySource::of(&from, &seen), &to, &renewed(&seen), &when(condition)).await
    };
    fallback.put(&key("there"), &object("there"), &PutOptions::default()).await.unwrap();
    let there = stored(&fallback, &key("there")).await;
    bucket.weather(|_| Fate::Refused(ErrorKind::Unavailable));
    fallback.put(&key("waits"), &object("waits"), &PutOptions::default()).await.unwrap();
    // The source waits, so its copy can wait as well.
    let copied = copy("waits", "copy", Condition::Always).await.unwrap().unwrap();
    assert_eq!(rest(&copied), Rest::Overlay);
    assert_eq!(content(&fallback, &key("copy")).await, b"waits");
    // Only the bucket has the bytes, or can decide.
    let source = CopySource::of(&key("there"), &there);
    let error = fallback.copy(&source, &key("copy"), &renewed(&there), &PutOptions::default()).await.unwrap_err();
    assert_eq!(error.kind, ErrorKind::Unavailable);
    let error = fallback.copy(&source, &key("new"), &renewed(&there), &PutOptions::default()).await.unwrap_err();
    assert_eq!(error.kind, ErrorKind::Unavailable);
    let error = copy("waits", "new", Condition::Absent).await.unwrap_err();
    assert_eq!(error.kind, ErrorKind::Unavailable);
    assert_eq!(content(&fallback, &key("copy")).await, b"waits");
    // A copy onto itself replaces the entry that waits, and only that state.
    let before = stored(&fallback, &key("waits")).await;
    let renewed_once = copy("waits", "waits", Condition::Always).await.unwrap().unwrap();
    assert_eq!((rest(&renewed_once), content(&fallback, &key("waits")).await), (Rest::Overlay, b"waits".to_vec()));
    let source = CopySource::of(&key("waits"), &before);
    let again = fallback.copy(&source, &key("waits"), &renewed(&before), &PutOptions::default()).await;
    assert!(again.unwrap().is_none());
    // The bucket is back: what waits under the destination is replaced where it waits.
    bucket.weather(|_| Fate::Served);
    let copied = copy("there", "copy", Condition::Always).await.unwrap().unwrap();
    assert_eq!(rest(&copied), Rest::Overlay);
    let copied = copy("waits", "new", Condition::Absent).await.unwrap().unwrap();
    assert_eq!(rest(&copied), Rest::Bucket);
    let copied = copy("there", "other", Condition::Always).await.unwrap().unwrap();
    assert_eq!(rest(&copied), Rest::Bucket);
    fallback.delete(&key("waits"), &DeleteOptions::default()).await.unwrap();
    let gone = CopySource::of(&key("waits"), &renewed_once);
    let copied = fallback.copy(&gone, &key("never"), &renewed(&renewed_once), &PutOptions::default()).await;
    assert!(copied.unwrap().is_none());
    fallback.sync(&()).await.unwrap();
    for (name, value) in [("copy", "there"), ("new", "waits"), ("other", "there"), ("there", "there")] {
        assert_eq!(content(&*bucket, &key(name)).await, value.as_bytes(), "{name}");
    }
    assert!(bucket.stat(&key("waits")).await.unwrap().is_none() && bucket.stat(&key("never")).await.unwrap().is_none());
}
