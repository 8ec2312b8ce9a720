//! Every suite over a second layer that changes what is kept: it must hold as over the first.

use std::io::Write as _;
use std::path::Path;
use std::process::Command;
use std::sync::Arc;

use bytes::Bytes;
use filestorage::provider::BackendKind;
use filestorage::storage::{
    Backend, ByteRange, Condition, Deferral, DeleteRequest, Encoded, Engine, ErrorKind, Fallback, GetOptions, Local,
    Memory, Object, PutOptions, Redelivered, Spool, StoreOptions, Value,
};
use jiff::Timestamp;

use crate::backend::{self, Profile};
use crate::engine;
use crate::fallback_sync::{report, until};
use crate::gcs::large::{MOST_GROWTH, large, peak};
use crate::stack::impatient;
use crate::support::{Rest, Tally, bytes, key, noise, object, rest, scratch};
use crate::unreliable_bucket::{Ask, Bucket, Fate};
use crate::xor::{CODEC, NAME, TRAILER, Xor};

const ENCODED: Profile = Profile { codec: Some(CODEC), ..Profile::NEAR };

/// Over a bucket, which passes the guard before it sees that a condition does not hold.
const OVER_BUCKET: Profile = Profile { condition_before_guard: false, ..ENCODED };

fn local(root: &Path) -> Arc<dyn Backend> {
    Arc::new(Xor::new(Arc::new(Local::open(root.join("objects")).unwrap())))
}

fn decoding(inner: Arc<dyn Backend>) -> Arc<dyn Backend> {
    Arc::new(Encoded::new(inner, Spool::new(env!("CARGO_TARGET_TMPDIR"))))
}

/// All that a worker has over a bucket, and this layer between.
struct Stack {
    fallback: Arc<Fallback>,
    xor: Arc<Xor>,
    top: Arc<dyn Backend>,
}

impl Stack {
    fn over(bucket: &Arc<Bucket>, folder: &Path) -> Self {
        let fallback = impatient(&(Arc::clone(bucket) as Arc<dyn Backend>), folder);
        let xor = Xor::over_fallback(&fallback);
        let top = decoding(Arc::clone(&xor) as Arc<dyn Backend>);
        Self { fallback, xor, top }
    }

    fn engine(&self) -> Engine {
        Engine::new(Arc::clone(&self.top), BackendKind::Local)
            .with_fallback(Arc::clone(&self.fallback))
            .with_deferral(Arc::clone(&self.xor) as Arc<dyn Deferral>)
    }
}

/// Every unconditional write waits in the overlay. A bucket that asks for patience is not taken for one that has gone, so
/// everything else is asked of it.
fn refuse_unconditional_writes(bucket: &Bucket) {
    bucket.weather(|request| match (request.ask, &request.condition) {
        (Ask::Put, Condition::Always) => Fate::Refused(ErrorKind::Throttled),
        _ => Fate::Served,
    });
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn xor_over_memory() {
    let stack: Arc<dyn Backend> = Arc::new(Xor::new(Arc::new(Memory::new())));
    let tally = Tally::new("xor over memory");
    backend::suite(&stack, &stack, ENCODED, &tally).await;
    tally.close();
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn xor_over_local_by_two_instances_on_one_root() {
    let root = scratch();
    let tally = Tally::new("xor over local, two instances on one root");
    backend::suite(&local(root.path()), &local(root.path()), ENCODED, &tally).await;
    tally.close();
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn engine_over_encoded_over_xor_over_memory() {
    let tally = Tally::new("engine over encoded over xor over memory");
    let stack = decoding(Arc::new(Xor::new(Arc::new(Memory::new()))));
    engine::suite(&Engine::new(stack, BackendKind::Local), ENCODED, &tally).await;
    tally.close();
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn engine_over_encoded_over_xor_over_local() {
    let root = scratch();
    let tally = Tally::new("engine over encoded over xor over local");
    engine::suite(&Engine::new(decoding(local(root.path())), BackendKind::Local), ENCODED, &tally).await;
    tally.close();
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn whole_stack_with_the_bucket_there() {
    let (bucket, folder) = (Bucket::new(), scratch());
    let (one, other) = (Stack::over(&bucket, folder.path()), Stack::over(&bucket, folder.path()));
    let tally = Tally::new("encoded over xor over fallback over metered over retry, the bucket there");
    backend::suite(&one.top, &other.top, OVER_BUCKET, &tally).await;
    tally.equal(one.fallback.pending().await.unwrap().entries, 0);
    tally.close();
    let tally = Tally::new("engine over encoded over xor over fallback over metered over retry, the bucket there");
    engine::suite(&one.engine(), OVER_BUCKET, &tally).await;
    tally.close();
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn whole_stack_with_an_overlay_that_drains() {
    let (bucket, folder) = (Bucket::new(), scratch());
    let (one, other) = (Stack::over(&bucket, folder.path()), Stack::over(&bucket, folder.path()));
    refuse_unconditional_writes(&bucket);
    let stop = Arc::new(());
    let draining = tokio::spawn({
        let (fallback, stop) = (Arc::clone(&one.fallback), Arc::clone(&stop));
        async move {
            let mut sent = 0;
            while Arc::strong_count(&stop) > 1 {
                let report = fallback.sync(&()).await.unwrap();
                assert_eq!((report.failed, report.conflicts), (0, 0), "{report:?}");
                sent += report.sent + report.deleted;
            }
            sent
        }
    });
    let tally = Tally::new("encoded over xor over fallback over metered over retry, drained all the while");
    backend::suite(&one.top, &other.top, Profile { remote: true, ..OVER_BUCKET }, &tally).await;
    drop(stop);
    let sent = draining.await.unwrap();
    assert!(sent > 1_000, "{sent} entries were sent");
    tally.close();
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn engine_over_whole_stack_with_an_overlay_that_keeps() {
    let (bucket, folder) = (Bucket::new(), scratch());
    refuse_unconditional_writes(&bucket);
    let tally = Tally::new("engine over encoded over xor over fallback over metered over retry, writes in the overlay");
    engine::suite(&Stack::over(&bucket, folder.path()).engine(), Profile { pending: true, ..OVER_BUCKET }, &tally)
        .await;
    tally.close();
}

/// Values of every form, and commands that come again, while the bucket is away; then all of it is sent.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn whole_stack_with_the_bucket_gone_and_back() {
    let (bucket, folder) = (Bucket::new(), scratch());
    let stack = Stack::over(&bucket, folder.path());
    let engine = stack.engine();
    let tally = Tally::new("engine over encoded over xor over fallback over metered over retry, gone and back");
    let begin = Timestamp::now();
    let (gone, newer) = (key("gone"), key("newer"));
    for name in [&gone, &newer] {
        engine.store(name, Value::Text("before".to_owned()), StoreOptions::default()).await.unwrap();
    }
    bucket.leave();
    let later = Timestamp::now() + jiff::SignedDuration::from_secs(1);
    let again = |at| Some(Redelivered { started_at: Some(at) });
    let store = |at| StoreOptions { redelivered: again(at), operation_id: Some("id".to_owned()), ..Default::default() };
    let many = Bytes::from(noise(9 << 20, 9));
    let values = [Bytes::new(), Bytes::from_static(b"few"), many.clone()];
    let name = |number: usize, kind: &str| key(&format!("{kind}/{number}"));
    for (number, value) in values.iter().enumerate() {
        for (kind, options) in [("first", StoreOptions::default()), ("again", store(later))] {
            let it = name(number, kind);
            let receipt = engine.store(&it, Value::Bytes(value.clone()), options.clone()).await.unwrap();
            tally.equal((receipt.pending_sync, receipt.size), (true, Some(value.len() as u64)));
            tally.equal(receipt.compression.as_deref(), Some(NAME));
            tally.equal(receipt.stored_size, value.len() as u64 + TRAILER);
            tally.equal(engine.stat(&it).await.unwrap().unwrap().receipt, receipt.clone());
            if options.redelivered.is_some() {
                tally.equal(engine.store(&it, Value::Bytes(value.clone()), options).await.unwrap(), receipt);
            }
        }
    }
    // A part of what waits, from the middle of a file.
    let range = Some(ByteRange { offset: 5 << 20, length: Some(3) });
    let part = GetOptions { range, limit: Some(3), ..GetOptions::default() };
    let found = engine.retrieve(&name(2, "first"), part).await.unwrap().unwrap();
    tally.equal(found.value, Value::Bytes(many.slice(5 << 20..(5 << 20) + 3)));
    // One that came again is left to the sync, which finds that the other was written since.
    engine.store(&newer, Value::Text("older".to_owned()), store(begin)).await.unwrap();
    let delete = DeleteRequest { redelivered: again(later), ..DeleteRequest::default() };
    for _ in 0..2 {
        tally.equal(rest(engine.delete(&gone, delete.clone()).await.unwrap()), Rest::Overlay);
    }
    tally.equal(stack.xor.is_pending(&gone).await.unwrap(), true);
    tally.equal(stack.fallback.pending().await.unwrap().entries, 8);

    bucket.come_back();
    until(async || match stack.fallback.sync(&()).await {
        Ok(sent) => {
            tally.equal(sent, report(6, 1, 0, 1));
            true
        }
        Err(error) => {
            assert!(error.is_transient(), "{error}");
            false
        }
    })
    .await;
    tally.equal(stack.xor.is_pending(&gone).await.unwrap(), false);
    tally.equal(engine.exists(&gone).await.unwrap(), false);
    let found = engine.retrieve(&newer, GetOptions::default()).await.unwrap().unwrap();
    tally.equal((found.value, found.receipt.pending_sync), (Value::Text("before".to_owned()), false));
    for (number, value) in values.iter().enumerate() {
        for kind in ["first", "again"] {
            let it = name(number, kind);
            let sent = bucket.inner.get(&it, GetOptions::default()).await.unwrap().unwrap();
            tally.equal(sent.attributes.compression.as_deref(), Some(NAME));
            let sent = bytes(sent).await;
            assert!(sent.len() == value.len() + 4 && (value.is_empty() || !sent.starts_with(value)));
            let found = engine.retrieve(&it, GetOptions::default()).await.unwrap().unwrap();
            assert!(found.value == Value::Bytes(value.clone()) && !found.receipt.pending_sync);
            tally.case();
        }
    }
    tally.close();
}

/// What lies below in another form is read as what it is.
#[tokio::test]
async fn what_was_there_before_is_read_through_both() {
    let memory = Arc::new(Memory::new());
    let stack = decoding(Arc::new(Xor::new(Arc::clone(&memory) as Arc<dyn Backend>)));
    let engine = Engine::new(stack, BackendKind::Local);
    let mut packed = flate2::write::GzEncoder::new(Vec::new(), flate2::Compression::best());
    packed.write_all(b"12345").unwrap();
    let mut gzip = object(packed.finish().unwrap());
    gzip.attributes.compression = Some("gzip".to_owned());
    for (name, object) in [("plain", object("12345")), ("gzip", gzip)] {
        memory.put(&key(name), &object, &PutOptions::default()).await.unwrap();
        for (offset, wanted) in [(0, "12345"), (3, "45")] {
            let range = Some(ByteRange { offset, length: None });
            let found = engine.retrieve(&key(name), GetOptions { range, ..GetOptions::default() }).await;
            assert_eq!(found.unwrap().unwrap().value, Value::Bytes(Bytes::from_static(wanted.as_bytes())), "{name}");
        }
    }
}

#[tokio::test]
async fn a_source_that_changes_is_not_stored() {
    let xor = Xor::new(Arc::new(Memory::new()));
    for payload in ["12346", "1234", "123456"] {
        let changed = Object { payload: Bytes::from_static(payload.as_bytes()).into(), ..object("12345") };
        let error = xor.put(&key("it"), &changed, &PutOptions::default()).await.unwrap_err();
        assert_eq!(error.kind, ErrorKind::Integrity, "{error}");
    }
    assert!(xor.stat(&key("it")).await.unwrap().is_none());
}

/// Set in the process that is measured.
const MEASURED: &str = "FILESTORAGE_TEST_XOR_FOLDER";

#[tokio::test]
async fn large_values_pass_through_in_little_memory() {
    let Some(folder) = std::env::var_os(MEASURED) else {
        // In a process of its own, where no other test takes memory.
        let folder = tempfile::tempdir_in(env!("CARGO_TARGET_TMPDIR")).unwrap();
        let test = ["--exact", "xor_suites::large_values_pass_through_in_little_memory", "--nocapture"];
        let this = std::env::current_exe().unwrap();
        assert!(Command::new(this).args(test).env(MEASURED, folder.path()).status().unwrap().success());
        return;
    };
    let (mebibytes, folder) = (64, Path::new(&folder));
    let bucket = Bucket::before(Arc::new(Local::open(folder.join("bucket")).unwrap()));
    let whole = Stack::over(&bucket, folder);
    let plain = decoding(local(folder));
    let it = key("large");
    for stack in [&plain, &whole.top] {
        stack.put(&it, &object(noise(100_000, 1)), &PutOptions::default()).await.unwrap();
        bytes(stack.get(&it, GetOptions::default()).await.unwrap().unwrap()).await;
    }
    let mut wanted = large(mebibytes);
    let before = peak();
    for (stack, place) in [(&plain, "local"), (&whole.top, "bucket"), (&whole.top, "overlay")] {
        if place == "overlay" {
            bucket.leave();
        }
        (wanted.attributes.generation, wanted.attributes.stored_at) = (place.to_owned(), Timestamp::now());
        let stored = stack.put(&it, &wanted, &PutOptions::default()).await.unwrap();
        assert_eq!(stored.info.pending, place == "overlay");
        let found = stack.get(&it, GetOptions { spooled: true, ..GetOptions::default() }).await.unwrap().unwrap();
        assert!(found.payload.as_memory().is_none());
        assert_eq!(found.payload.checksum().await.unwrap(), wanted.attributes.checksum);
        for spooled in [true, false] {
            let range = Some(ByteRange { offset: 40 << 20, length: Some(1 << 20) });
            let part = GetOptions { range, limit: Some(1 << 20), spooled, ..GetOptions::default() };
            let part = stack.get(&it, part).await.unwrap().unwrap();
            assert!(bytes(part).await == noise(1 << 20, 40), "spooled: {spooled}");
        }
        println!("xor, {place}: {mebibytes} MiB both ways: {} KiB more memory at most", peak() - before);
    }
    bucket.come_back();
    until(async || whole.fallback.sync(&()).await.is_ok_and(|report| report.sent == 1)).await;
    assert!(peak() - before < MOST_GROWTH, "{} KiB", peak() - before);
}
