//! A second layer that changes what is kept, bytes and attributes: every suite must hold over it as over the first.

use std::fmt;
use std::io;
use std::io::Write as _;
use std::path::Path;
use std::process::Command;
use std::sync::Arc;
use std::time::Duration;

use async_trait::async_trait;
use bytes::{Bytes, BytesMut};
use filestorage::provider::BackendKind;
use filestorage::storage::{
    Attributes, Backend, ByteRange, Checksum, CommitGuard, Condition, Deferral, DeleteOptions, DeleteRequest, Encoded,
    Engine, Error, ErrorKind, Fallback, GetOptions, Grant, Key, Listing, Local, Memory, Metered, Object, Operation,
    Page, Payload, Probe, PutOptions, Redelivered, Removal, Result, Retry, RetryOptions, Spool, StoreOptions, Value,
};
use filestorage::telemetry::{self, Metrics};
use jiff::Timestamp;

use crate::backend::{self, Codec, Profile};
use crate::engine;
use crate::fallback_sync::{report, until};
use crate::gcs::large::{MOST_GROWTH, large, peak};
use crate::support::{Rest, Tally, bytes, key, noise, object, rest, scratch};
use crate::unreliable_bucket::{Ask, Bucket, Fate};

/// Name of the codec as attributes have it.
const NAME: &str = "xor";

/// Bytes behind the value's: its checksum under a mask.
const TRAILER: u64 = 4;

const MASK: u32 = 0x5a17_0ff1;

/// What receipts may show of it, and nothing else.
pub(crate) const CODEC: Codec = Codec { name: NAME, overhead: TRAILER };

/// Changes every byte by its place, so that a part can only be decoded by who knows where it was.
fn mix(bytes: &Bytes, offset: u64) -> BytesMut {
    assert_eq!(offset % 8, 0, "a place is that of eight bytes");
    let mut mixed = BytesMut::from(&bytes[..]);
    // By words, since what tests are compiled to takes its time for each byte.
    for (place, word) in (offset / 8..).zip(mixed.chunks_mut(8)) {
        let mut bytes = [0; 8];
        bytes[..word.len()].copy_from_slice(word);
        let mask = (place + 1).wrapping_mul(0x9e37_79b9_7f4a_7c15);
        word.copy_from_slice(&(u64::from_le_bytes(bytes) ^ mask).to_le_bytes()[..word.len()]);
    }
    mixed
}

fn trailer(checksum: Checksum) -> [u8; TRAILER as usize] {
    (checksum.0 ^ MASK).to_be_bytes()
}

/// Keeps objects in another form than they are given in, in another place.
#[derive(Debug)]
pub(crate) struct Xor {
    inner: Arc<dyn Backend>,
    deferral: Option<Arc<dyn Deferral>>,
    spool: Spool,
}

impl Xor {
    pub(crate) fn new(inner: Arc<dyn Backend>) -> Self {
        Self { inner, deferral: None, spool: Spool::new(env!("CARGO_TARGET_TMPDIR")) }
    }

    /// One over a fallback, whose overlay takes what is deferred.
    pub(crate) fn over_fallback(fallback: &Arc<Fallback>) -> Arc<Self> {
        let deferral = Some(Arc::clone(fallback) as Arc<dyn Deferral>);
        Arc::new(Self { deferral, ..Self::new(Arc::clone(fallback) as Arc<dyn Backend>) })
    }

    /// Changes each byte of a payload, piece by piece, and puts some bytes behind all.
    async fn mixed(&self, payload: &Payload, behind: &[u8]) -> io::Result<(Payload, Checksum, Checksum)> {
        let (mut out, mut offset, mut before) = (self.spool.writer(), 0, 0);
        while offset < payload.len() {
            let chunk = payload.read(offset, Payload::CHUNK).await?;
            before = crc32c::crc32c_append(before, &chunk);
            out.push(&mix(&chunk, offset).freeze()).await?;
            offset += chunk.len() as u64;
        }
        out.push(&Bytes::copy_from_slice(behind)).await?;
        let (mixed, after) = out.finish().await?;
        Ok((mixed, Checksum(before), after))
    }

    /// Returns an object as it is kept.
    async fn encode(&self, key: &Key, object: &Object) -> Result<Object> {
        let attributes = &object.attributes;
        // Another layer's are kept as they come.
        if attributes.is_encoded() {
            return Ok(object.clone());
        }
        let changed = || {
            let why = "the source changed while it was stored; store it again";
            Error::new(ErrorKind::Integrity, Operation::Store, Some(key), why)
        };
        let mixed = self.mixed(&object.payload, &trailer(attributes.checksum)).await;
        let (payload, given, stored_checksum) = mixed.map_err(|error| match error.kind() {
            io::ErrorKind::UnexpectedEof => changed(),
            _ => unreadable(Operation::Store, key, error),
        })?;
        if (given, object.payload.len()) != (attributes.checksum, attributes.size) {
            return Err(changed());
        }
        Ok(Object { attributes: Attributes { stored_checksum, ..kept(attributes) }, payload })
    }

    /// Returns the wanted part of an object as it was given; its payload has all that is kept.
    async fn decode(&self, key: &Key, options: GetOptions, object: Object) -> Result<Object> {
        let Object { mut attributes, payload } = object;
        let size = attributes.size;
        let sizes = (payload.len(), attributes.stored_size);
        assert_eq!(sizes, (size + TRAILER, size + TRAILER), "an encoded object comes whole");
        let decoded = async {
            let (value, _, checksum) = self.mixed(&payload.slice(0..size), &[]).await?;
            let behind = payload.slice(size..u64::MAX).into_memory().await?;
            Ok((value, checksum, behind))
        };
        let (value, checksum, behind) = decoded.await.map_err(|error| unreadable(Operation::Retrieve, key, error))?;
        if checksum != attributes.checksum || behind[..] != trailer(checksum) {
            let why = "the bytes kept are not those of the value; store it again";
            return Err(Error::new(ErrorKind::Integrity, Operation::Retrieve, Some(key), why));
        }
        let part = options.range.map_or(0..size, |ByteRange { offset, length }| {
            let begin = offset.min(size);
            begin..begin.saturating_add(length.unwrap_or(u64::MAX)).min(size)
        });
        // Below, what is wanted has been refused by the attributes, which speak of the value.
        assert!(options.limit.is_none_or(|limit| part.end - part.start <= limit), "{part:?} of {options:?}");
        let mut payload = value.slice(part);
        if !options.spooled {
            let read = payload.into_memory().await;
            payload = read.map_err(|error| unreadable(Operation::Retrieve, key, error))?.into();
        }
        attributes.info.decoded = true;
        Ok(Object { attributes, payload })
    }

    fn deferral(&self) -> &dyn Deferral {
        self.deferral.as_deref().expect("a fallback is below")
    }
}

/// Attributes as they are kept, but for the checksum of bytes that are not known yet.
fn kept(attributes: &Attributes) -> Attributes {
    Attributes {
        compression: Some(NAME.to_owned()),
        stored_size: attributes.size + TRAILER,
        stored_checksum: Checksum(!attributes.stored_checksum.0),
        ..attributes.clone()
    }
}

fn unreadable(operation: Operation, key: &Key, error: io::Error) -> Error {
    let why = format!("the bytes cannot be read: {error}; look at the disk");
    Error::new(ErrorKind::Io, operation, Some(key), why).with_source(error)
}

impl fmt::Display for Xor {
    fn fmt(&self, formatter: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(formatter, "xor({})", self.inner)
    }
}

#[async_trait]
impl Backend for Xor {
    async fn put(&self, key: &Key, object: &Object, options: &PutOptions) -> Result<Attributes> {
        self.inner.put(key, &self.encode(key, object).await?, options).await
    }

    async fn get(&self, key: &Key, options: GetOptions) -> Result<Option<Object>> {
        let whole = GetOptions { spooled: true, ..options };
        let Some(Object { attributes, payload }) = self.inner.get(key, whole).await? else { return Ok(None) };
        let is_own = attributes.compression.as_deref() == Some(NAME) && !attributes.info.decoded;
        let object = Object { attributes, payload };
        if is_own {
            return self.decode(key, options, object).await.map(Some);
        }
        if options.spooled {
            return Ok(Some(object));
        }
        let payload = object.payload.into_memory().await;
        let payload = payload.map_err(|error| unreadable(Operation::Retrieve, key, error))?.into();
        Ok(Some(Object { payload, ..object }))
    }

    async fn stat(&self, key: &Key) -> Result<Option<Attributes>> {
        self.inner.stat(key).await
    }

    async fn delete(&self, key: &Key, options: &DeleteOptions) -> Result<Removal> {
        self.inner.delete(key, options).await
    }

    async fn list(&self, page: &Page) -> Result<Listing> {
        self.inner.list(page).await
    }

    async fn flush(&self, key: &Key) -> Result<()> {
        self.inner.flush(key).await
    }

    async fn probe(&self) -> Result<Probe> {
        self.inner.probe().await
    }

    fn validate(&self, key: &Key, attributes: &Attributes) -> Result<()> {
        let attributes = if attributes.is_encoded() { attributes.clone() } else { kept(attributes) };
        self.inner.validate(key, &attributes)
    }

    async fn sign(&self, key: &Key, grant: &Grant) -> Result<String> {
        self.inner.sign(key, grant).await
    }
}

#[async_trait]
impl Deferral for Xor {
    async fn defer_put(&self, key: &Key, object: &Object, guard: &CommitGuard) -> Result<Attributes> {
        self.deferral().defer_put(key, &self.encode(key, object).await?, guard).await
    }

    async fn defer_delete(&self, key: &Key, deleted_at: Timestamp, guard: &CommitGuard) -> Result<Removal> {
        self.deferral().defer_delete(key, deleted_at, guard).await
    }

    async fn is_pending(&self, key: &Key) -> Result<bool> {
        self.deferral().is_pending(key).await
    }
}

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
        let options = RetryOptions { max_retries: 0, timeout: Duration::from_secs(10) };
        let (label, metrics) = (telemetry::BackendLabel::Memory, Metrics::new());
        let retry = Retry::new(Arc::clone(bucket) as Arc<dyn Backend>, options, label, metrics.clone());
        let primary = Arc::new(Metered::new(Arc::new(retry), label, metrics.clone()));
        let fallback = Arc::new(Fallback::open(primary, folder.join("overlay"), metrics).unwrap());
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
            tally.equal((receipt.pending_sync, receipt.size), (true, value.len() as u64));
            tally.equal(receipt.compression.as_deref(), Some(NAME));
            tally.equal(receipt.stored_size, receipt.size + TRAILER);
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
        let test = ["--exact", "xor::large_values_pass_through_in_little_memory", "--nocapture"];
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
            let part = stack.get(&it, GetOptions { range, limit: Some(1 << 20), spooled }).await.unwrap().unwrap();
            assert!(bytes(part).await == noise(1 << 20, 40), "spooled: {spooled}");
        }
        println!("xor, {place}: {mebibytes} MiB both ways: {} KiB more memory at most", peak() - before);
    }
    bucket.come_back();
    until(async || whole.fallback.sync(&()).await.is_ok_and(|report| report.sent == 1)).await;
    assert!(peak() - before < MOST_GROWTH, "{} KiB", peak() - before);
}
