//! The engine: values under keys, over one stack of backends.

mod budget;
mod cleanup;
mod copy;
mod health;
mod options;
mod receipt;
mod redelivery;
mod stats;
mod sweeper;
mod transfer;
mod usage;
mod verify;
mod versions;
mod walk;

pub use self::budget::{Budget, Held};
pub use self::cleanup::{CleanupProgress, CleanupReport, CleanupRequest};
pub use self::copy::CopyOptions;
pub use self::health::{Health, HealthStatus};
pub use self::options::{DeleteRequest, ListRequest, Redelivered, RetrieveOptions, StateOptions, StoreOptions};
use self::receipt::key_text;
pub use self::receipt::{KeptVersion, Receipt, Stat, format_timestamp};
pub use self::stats::{Stats, StatsMetrics};
pub use self::usage::{Usage, UsageTable};
pub use self::verify::Verification;
pub use self::walk::{EntryWalk, page_size};

use std::sync::Arc;

use bytes::Bytes;
use jiff::Timestamp;

use crate::json;
use crate::provider::BackendKind;
use crate::storage::backend::{Backend, Deferral, GetOptions, Grant, Page, Probe, PutOptions};
use crate::storage::engine::health::BucketHealth;
use crate::storage::engine::stats::Counters;
use crate::storage::error::{Error, ErrorKind, Operation, Result};
use crate::storage::external::ExternalReferences;
use crate::storage::invalidation::{Invalidation, NoSiblings};
use crate::storage::layers::{Breaker, BreakerState, Cache, Fallback, Quota};
use crate::storage::object::value::unmarked;
use crate::storage::object::{Attributes, Content, ContentType, JsonText, Key, Kind, Metadata, Object, Value};
use crate::storage::reading;

/// Values of up to this many bytes are not counted on the budget.
const SMALL: u64 = 64 * 1024;
/// How many times a value is in memory while it is answered: as value and as JSON, then as JSON and as what is being sent. JSON
/// takes up to a third more than bytes.
pub const COPIES: u64 = 3;

/// Stores and retrieves typed values; cheap to clone.
///
/// # Contract
///
/// - A store or delete that has returned is on stable storage. One that failed changed nothing, with these exceptions:
///   after [`ErrorKind::Unavailable`] or [`ErrorKind::Throttled`] an earlier attempt may have been carried out, and
///   after [`ErrorKind::Io`] the outcome may be either.
/// - `None` and `false` mean that the key certainly has no object. Every failure is an error.
/// - An expired object counts as absent in every operation, whether or not it has been removed already.
#[derive(Clone, Debug)]
pub struct Engine(pub(in crate::storage) Arc<Inner>);

#[derive(Clone, Debug)]
pub(in crate::storage) struct Inner {
    pub(in crate::storage) backend: Arc<dyn Backend>,
    pub(in crate::storage) kind: BackendKind,
    pub(in crate::storage) fallback: Option<Arc<Fallback>>,
    pub(in crate::storage) deferral: Option<Arc<dyn Deferral>>,
    pub(in crate::storage) external: ExternalReferences,
    breaker: Option<Breaker>,
    quota: Option<Arc<Quota>>,
    bucket_health: Arc<BucketHealth>,
    cache: Option<Cache>,
    siblings: Arc<dyn Invalidation>,
    pub(in crate::storage) counters: Arc<Counters>,
}

/// A value and the receipt of the object that it was read from.
#[derive(Clone, Debug)]
pub struct Retrieved {
    /// The whole value, or the bytes of the range.
    pub value: Value,
    /// The object's receipt; sizes and checksum are those of the whole value.
    pub receipt: Receipt,
}

/// A value whose bytes are in memory or in a file, and the receipt of the object that it was read from.
#[derive(Clone, Debug)]
pub struct Opened {
    /// The whole value, or the bytes of the range. A range is of kind bytes, whatever the kind of the value.
    pub content: Content,
    /// The object's receipt; sizes and checksum are those of the whole value.
    pub receipt: Receipt,
}

impl Engine {
    /// Puts an engine over a backend; receipts name the backend by `kind`.
    #[must_use]
    pub fn new(backend: Arc<dyn Backend>, kind: BackendKind) -> Self {
        let (fallback, deferral, external) = (None, None, ExternalReferences::default());
        let (breaker, cache, quota, bucket_health, counters) = (None, None, None, Arc::default(), Arc::default());
        let siblings = Arc::new(NoSiblings);
        Self(Arc::new(Inner {
            backend,
            kind,
            fallback,
            deferral,
            external,
            breaker,
            quota,
            bucket_health,
            cache,
            siblings,
            counters,
        }))
    }

    /// Lets commands name files and objects outside the store.
    #[must_use]
    pub fn with_external(mut self, external: ExternalReferences) -> Self {
        Arc::make_mut(&mut self.0).external = external;
        self
    }

    /// Names the fallback that is part of the backend's stack.
    #[must_use]
    pub fn with_fallback(mut self, fallback: Arc<Fallback>) -> Self {
        let inner = Arc::make_mut(&mut self.0);
        if inner.deferral.is_none() {
            inner.deferral = Some(Arc::<Fallback>::clone(&fallback));
        }
        inner.fallback = Some(fallback);
        self
    }

    /// Sets the path to the fallback's overlay through the layers that encode objects above the fallback.
    #[must_use]
    pub fn with_deferral(mut self, deferral: Arc<dyn Deferral>) -> Self {
        Arc::make_mut(&mut self.0).deferral = Some(deferral);
        self
    }

    /// Names the breaker that is part of the backend's stack.
    #[must_use]
    pub fn with_breaker(mut self, breaker: Breaker) -> Self {
        Arc::make_mut(&mut self.0).breaker = Some(breaker);
        self
    }

    /// Names the cache that is part of the backend's stack.
    #[must_use]
    pub fn with_cache(mut self, cache: Option<Cache>) -> Self {
        Arc::make_mut(&mut self.0).cache = cache;
        self
    }

    /// Names the way to the caches of other workers.
    #[must_use]
    pub fn with_siblings(mut self, siblings: Arc<dyn Invalidation>) -> Self {
        Arc::make_mut(&mut self.0).siblings = siblings;
        self
    }

    /// Empties the cache, and those of other workers. Returns the number of entries that were dropped here.
    pub async fn clear_cache(&self) -> u64 {
        let dropped = self.cache().map_or(0, Cache::clear);
        self.0.siblings.announce_all().await;
        dropped
    }

    /// Returns the cache, where there is one.
    #[must_use]
    pub fn cache(&self) -> Option<&Cache> {
        self.0.cache.as_ref()
    }

    /// Names the quotas that are part of the backend's stack.
    #[must_use]
    pub fn with_quota(mut self, quota: Arc<Quota>) -> Self {
        Arc::make_mut(&mut self.0).quota = Some(quota);
        self
    }

    /// Returns the quotas, where there are any.
    #[must_use]
    pub fn quota(&self) -> Option<&Arc<Quota>> {
        self.0.quota.as_ref()
    }

    /// Tells whether the bucket cannot be reached and no fallback serves in its place.
    #[must_use]
    pub fn is_away(&self) -> bool {
        self.fallback().is_none() && self.breaker().is_some_and(|breaker| breaker.state() != BreakerState::Closed)
    }

    /// Returns the breaker of the bucket, where there is one.
    #[must_use]
    pub fn breaker(&self) -> Option<&Breaker> {
        self.0.breaker.as_ref()
    }

    /// Returns the fallback, where there is one.
    #[must_use]
    pub fn fallback(&self) -> Option<&Arc<Fallback>> {
        self.0.fallback.as_ref()
    }

    /// Returns the kind of the backend.
    #[must_use]
    pub fn kind(&self) -> BackendKind {
        self.0.kind
    }

    /// Stores the value under the key; replaces an object that is there if the condition allows it.
    ///
    /// A redelivered store ([`StoreOptions::redelivered`]) looks at the object first. An object with the same operation
    /// id and value is answered and not written again. An unconditional store whose start is known leaves an object
    /// that was written after that start alone, and answers the receipt of the state that was replaced. Look and write
    /// are one step for every other writer, because the write names the generation that was seen.
    ///
    /// Two cases remain. Without a known start, a store overwrites what others wrote meanwhile. With a known start, a
    /// delete in between leaves nothing to compare, so the value comes back.
    ///
    /// Where the bucket cannot be reached, an unconditional store is left to the fallback with its start as the stamp,
    /// so that the writes of others since then are found when it is sent.
    ///
    /// # Errors
    ///
    /// [`ErrorKind::Invalid`] for a JSON value that is not JSON, [`ErrorKind::Precondition`],
    /// [`ErrorKind::Abandoned`], and whatever the backend fails with.
    pub async fn store(&self, key: &Key, value: impl Into<Content>, options: StoreOptions) -> Result<Receipt> {
        self.0.counters.measure(self.store_uncounted(key, value.into(), options)).await
    }

    /// Reads a value, or some bytes of a text or bytes value; never more bytes than the limit or than requested.
    ///
    /// # Errors
    ///
    /// [`ErrorKind::Invalid`] for more bytes than the limit and for a range of a JSON value;
    /// [`ErrorKind::Integrity`] for an object that is damaged. For a generation, also those of [`Engine::versions`].
    pub async fn retrieve(&self, key: &Key, options: impl Into<StateOptions>) -> Result<Option<Retrieved>> {
        self.0.counters.measure(self.retrieve_uncounted(key, options.into())).await
    }

    /// Reads as [`Engine::retrieve`] does, and counts a large value and its copies on a budget before it is in memory.
    ///
    /// # Errors
    ///
    /// As [`Engine::retrieve`].
    pub async fn retrieve_within(
        &self,
        key: &Key,
        options: impl Into<StateOptions>,
        budget: &Budget,
    ) -> Result<(Option<Retrieved>, Option<Held>)> {
        self.0.counters.measure(self.retrieve_counted(key, options.into(), budget)).await
    }

    /// Reads as [`Engine::retrieve`] does. Before a value is in memory, `admit` is asked with its number of bytes, and its
    /// error is that of the read.
    ///
    /// # Errors
    ///
    /// As [`Engine::retrieve`], and those of `admit`.
    pub async fn retrieve_admitted<F: Future<Output = Result<()>> + Send>(
        &self,
        key: &Key,
        options: GetOptions,
        admit: impl FnOnce(u64) -> F + Send,
    ) -> Result<Option<Retrieved>> {
        let retrieve = async {
            // A large value comes as a file, whose length is known before it is in memory.
            let spooled = GetOptions { spooled: true, ..options };
            let Some(object) = reading::read(&*self.0.backend, key, spooled).await? else { return Ok(None) };
            admit(object.payload.len()).await?;
            value_of(key, self.0.kind, options.range.is_some(), object).await.map(Some)
        };
        self.0.counters.measure(retrieve).await
    }

    async fn retrieve_counted(
        &self,
        key: &Key,
        options: StateOptions,
        budget: &Budget,
    ) -> Result<(Option<Retrieved>, Option<Held>)> {
        let StateOptions { generation, bytes } = options;
        let is_part = bytes.range.is_some();
        let read = |bytes| self.read_uncounted(key, StateOptions { generation: generation.clone(), bytes });
        // A large value is announced or comes as a file, so that its length is known before it is in memory.
        let spooled = GetOptions { spooled: true, ..bytes.clone() };
        let Some(mut object) = read(GetOptions { announced: true, ..spooled.clone() }).await? else {
            return Ok((None, None));
        };
        let mut held = room(budget, &object).await;
        if object.payload.is_announced() {
            let again = match read(GetOptions { limit: Some(object.payload.len()), ..bytes }).await {
                // It may have been replaced by a larger one meanwhile, for which there is no room yet.
                Err(error) if error.kind == ErrorKind::Invalid => {
                    drop(held);
                    let again = read(spooled).await?;
                    held = match &again {
                        Some(object) => room(budget, object).await,
                        None => None,
                    };
                    again
                }
                again => again?,
            };
            let Some(again) = again else { return Ok((None, None)) };
            object = again;
        }
        Ok((Some(value_of(key, self.0.kind, is_part, object).await?), held))
    }

    /// Opens a value, or some bytes of it, to be read piece by piece.
    ///
    /// Neither the UTF-8 of a text nor the syntax of a JSON value is checked.
    ///
    /// # Errors
    ///
    /// As [`Engine::retrieve`].
    pub async fn open(&self, key: &Key, options: impl Into<StateOptions>) -> Result<Option<Opened>> {
        self.0.counters.measure(self.open_uncounted(key, options.into())).await
    }

    /// Makes a URL with which anyone can read or write the object for a time. The URL is a secret.
    ///
    /// # Errors
    ///
    /// [`ErrorKind::Invalid`] where objects are not in a bucket, and the errors of the backend.
    pub async fn sign(&self, key: &Key, grant: &Grant) -> Result<String> {
        self.0.counters.measure(self.0.backend.sign(key, grant)).await
    }

    /// Removes the object. Afterwards the key has no object, whoever removed it.
    ///
    /// A redelivered delete leaves an object that was written after its known start alone and succeeds. Returns whether
    /// the delete waits in an overlay and has still to be sent to the bucket.
    ///
    /// # Errors
    ///
    /// [`ErrorKind::Precondition`] when the object has another generation, [`ErrorKind::Abandoned`], and the errors of
    /// the backend.
    pub async fn delete(&self, key: &Key, request: DeleteRequest) -> Result<bool> {
        self.0.counters.measure(self.delete_uncounted(key, request)).await
    }

    /// Tells whether the key has an object.
    ///
    /// # Errors
    ///
    /// The errors of the backend.
    pub async fn exists(&self, key: &Key) -> Result<bool> {
        self.0.counters.measure(async { Ok(self.live(key).await?.is_some()) }).await
    }

    /// Lists keys in byte order. The limit counts live keys.
    ///
    /// # Errors
    ///
    /// The errors of the backend. An incomplete list is never returned.
    pub async fn list(&self, request: ListRequest) -> Result<Vec<Key>> {
        self.0.counters.measure(self.list_uncounted(request)).await
    }

    /// Reads receipt and metadata without the value.
    ///
    /// # Errors
    ///
    /// The errors of the backend.
    pub async fn stat(&self, key: &Key) -> Result<Option<Stat>> {
        let look = async { Ok(self.live(key).await?.map(|attributes| Stat::of(key, self.0.kind, attributes))) };
        self.0.counters.measure(look).await
    }

    /// Checks whether the backend can be used. The check is not counted as an operation.
    ///
    /// # Errors
    ///
    /// The errors of the backend.
    pub async fn probe(&self) -> Result<Probe> {
        self.0.backend.probe().await
    }

    /// Reads the counters since start.
    #[must_use]
    pub fn stats(&self) -> Stats {
        let cached = self.cache().map(Cache::counts).unwrap_or_default();
        let reachable = self.breaker().is_none_or(|breaker| breaker.state() == BreakerState::Closed);
        Stats {
            initialized: true,
            gcs_available: self.0.kind == BackendKind::Gcs && reachable && self.is_bucket_there(),
            local_fallback_enabled: self.0.fallback.is_some(),
            cache_enabled: self.cache().is_some_and(|cache| !cache.is_suspended()),
            cache_size: cached.entries,
            metrics: self.0.counters.read(cached),
        }
    }

    pub(in crate::storage) async fn live(&self, key: &Key) -> Result<Option<Attributes>> {
        reading::live(&*self.0.backend, key).await
    }

    pub(in crate::storage) async fn store_uncounted(
        &self,
        key: &Key,
        content: Content,
        options: StoreOptions,
    ) -> Result<Receipt> {
        let StoreOptions { metadata, content_type, expires_at, condition, operation_id, redelivered, commit_guard } =
            options;
        let Content { kind, payload, is_parsed } = content;
        if let (Kind::Json, false, Some(json)) = (kind, is_parsed, payload.as_memory())
            && let Err(fault) = parsed(json.clone())
        {
            let why = format!("the value is {fault}; a stored JSON value must be readable again");
            return Err(Error::new(ErrorKind::Invalid, Operation::Store, Some(key), why));
        }
        let checksum = payload.checksum().await.map_err(|error| Error::unread(Operation::Store, key, error))?;
        let size = payload.len();
        let content_type = content_type.map_or_else(|| kind.content_type().to_owned(), ContentType::into_string);
        let attributes = Attributes {
            operation_id,
            metadata: metadata.map(Metadata::into_raw),
            expires_at,
            ..Attributes::new(kind, content_type, size, checksum)
        };
        let object = Object { attributes, payload };
        let options = PutOptions { condition, commit_guard, ..PutOptions::default() };
        let stored = match redelivered {
            None => self.0.backend.put(key, &object, &options).await?,
            Some(again) => self.store_again(key, &object, &options, again).await?,
        };
        self.0.counters.stored(&stored);
        Ok(Receipt::of(key, self.0.kind, &stored))
    }

    async fn list_uncounted(&self, request: ListRequest) -> Result<Vec<Key>> {
        let ListRequest { prefix, start_after, limit } = request;
        let wanted = limit.unwrap_or(usize::MAX);
        let mut page = Page { prefix: prefix.unwrap_or_default(), start_after, limit, sizes_only: false };
        let (mut keys, mut foreign) = (Vec::new(), 0);
        while keys.len() < wanted {
            // Hidden entries do not count against the caller's limit, so another page may have to follow.
            page.limit = limit.map(|limit| limit - keys.len());
            let listing = self.0.backend.list(&page).await?;
            foreign += listing.foreign;
            page.start_after = listing.horizon()?;
            let now = Timestamp::now();
            let live = listing.entries.into_iter().filter(|entry| !entry.is_expired(now));
            keys.extend(live.map(|entry| entry.key));
            if page.start_after.is_none() {
                break;
            }
        }
        if foreign > 0 {
            tracing::warn!(foreign, backend = %self.0.backend, "skipped names that are not legal keys");
        }
        Ok(keys)
    }

    async fn retrieve_uncounted(&self, key: &Key, options: StateOptions) -> Result<Option<Retrieved>> {
        let is_part = options.bytes.range.is_some();
        match self.read_uncounted(key, options).await? {
            Some(object) => value_of(key, self.0.kind, is_part, object).await.map(Some),
            None => Ok(None),
        }
    }

    async fn open_uncounted(&self, key: &Key, options: StateOptions) -> Result<Option<Opened>> {
        let is_part = options.bytes.range.is_some();
        let found = self.read_uncounted(key, options).await?;
        Ok(found.map(|Object { attributes, payload }| {
            let kind = if is_part { Kind::Bytes } else { attributes.kind };
            Opened { content: Content::new(kind, payload), receipt: Receipt::of(key, self.0.kind, &attributes) }
        }))
    }
}

/// Takes what a large value and its copies need of a budget; waits until there is room.
async fn room(budget: &Budget, object: &Object) -> Option<Held> {
    let bytes = object.payload.len();
    if bytes > SMALL { Some(budget.use_when_free(bytes.saturating_mul(COPIES)).await) } else { None }
}

/// Reads a value, or a part of it, into memory.
async fn value_of(key: &Key, place: BackendKind, is_part: bool, object: Object) -> Result<Retrieved> {
    let Object { attributes, payload } = object;
    let receipt = Receipt::of(key, place, &attributes);
    let kind = if is_part { Kind::Bytes } else { attributes.kind };
    let payload = payload.into_memory().await.map_err(|error| Error::unread(Operation::Retrieve, key, error))?;
    let damaged = |what| reading::damaged(key, what);
    let foreign = &attributes.foreign;
    let payload = match kind {
        Kind::Json if foreign.charset.is_none() => unmarked(payload),
        Kind::Text | Kind::Json if foreign.charset.is_some() => foreign
            .decode(&payload)
            .map(|text| if kind == Kind::Json { unmarked(text) } else { text })
            .map_err(|why| Error::new(ErrorKind::Invalid, Operation::Retrieve, Some(key), why))?,
        Kind::Text | Kind::Json | Kind::Bytes => payload,
    };
    let value = match kind {
        Kind::Bytes => Value::Bytes(payload),
        Kind::Text if foreign.other_tool => {
            let text = utf8(payload).ok_or_else(|| {
                let why = "the object's text is not in the charset \"utf-8\", which is assumed where its content type names \
                           none; read the bytes with `offset=0`, or name the right charset with the bucket's own tool";
                Error::new(ErrorKind::Invalid, Operation::Retrieve, Some(key), why)
            })?;
            Value::Text(text)
        }
        Kind::Text => Value::Text(utf8(payload).ok_or_else(|| damaged("the text is not valid UTF-8"))?),
        Kind::Json => {
            // A checksum vouches for the bytes only: a large object that came from another tool by reference was not parsed.
            Value::Json(parsed(payload).map_err(|fault| match fault {
                JsonFault::TooDeep(why) => {
                    let why = format!("the JSON value is {why}; write it elsewhere with `destination`");
                    Error::new(ErrorKind::Invalid, Operation::Retrieve, Some(key), why)
                }
                JsonFault::NoJson => damaged("the JSON value is not valid JSON"),
            })?)
        }
    };
    Ok(Retrieved { value, receipt })
}

/// The reason why bytes are no JSON value.
#[derive(Debug, thiserror::Error)]
enum JsonFault {
    #[error("not JSON")]
    NoJson,
    #[error("{0}")]
    TooDeep(json::Error),
}

fn parsed(payload: Bytes) -> Result<JsonText, JsonFault> {
    let text = utf8(payload).ok_or(JsonFault::NoJson)?;
    JsonText::parse(text).map_err(|error| match error.kind {
        json::ErrorKind::TooDeep => JsonFault::TooDeep(error),
        _ => JsonFault::NoJson,
    })
}

fn utf8(payload: Bytes) -> Option<String> {
    String::from_utf8(Vec::from(payload)).ok()
}
