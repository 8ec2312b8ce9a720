//! The engine: values under keys, over one stack of backends.

mod budget;
mod options;
mod receipt;
mod redelivery;
mod stats;
mod transfer;

pub use self::budget::{Budget, Held};
pub use self::options::{DeleteRequest, ListRequest, Redelivered, RetrieveOptions, StoreOptions};
pub use self::receipt::{Receipt, Stat, format_timestamp};
pub use self::stats::{Stats, StatsMetrics};

use std::sync::Arc;

use bytes::Bytes;
use jiff::Timestamp;

use crate::provider::BackendKind;
use crate::storage::backend::{Backend, Deferral, GetOptions, Grant, Page, Probe, PutOptions};
use crate::storage::engine::stats::Counters;
use crate::storage::error::{Error, ErrorKind, Operation, Result};
use crate::storage::external::ExternalReferences;
use crate::storage::layers::{Breaker, BreakerState, Fallback};
use crate::storage::object::value::unmarked;
use crate::storage::object::{Attributes, Content, ContentType, JsonText, Key, Kind, Metadata, Object, Value};
use crate::storage::reading;

/// Bytes of a value up to which it is not worth counting.
const SMALL: u64 = 64 * 1024;
/// How often a value is in memory, more or less, while it is answered: itself, its JSON, the reply, and what is being sent.
const COPIES: u64 = 5;

/// Stores and retrieves typed values; cheap to clone.
///
/// # Contract
///
/// - A store or delete that returned is on stable storage; one that failed changed nothing, except with
///   [`ErrorKind::Unavailable`], [`ErrorKind::Throttled`] (an earlier attempt may have been carried out) or
///   [`ErrorKind::Io`], where the outcome may be either.
/// - `None` and `false` mean that nothing is there for certain; every fault is an error.
/// - An expired object is not there for every operation, whether or not it has been removed already.
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
    pub(in crate::storage) counters: Arc<Counters>,
}

/// A value that was found and the receipt of the object it was read from.
#[derive(Clone, Debug)]
pub struct Retrieved {
    /// The whole value, or the bytes of the range.
    pub value: Value,
    /// The object's receipt; sizes and checksum are those of the whole value.
    pub receipt: Receipt,
}

/// A value that was found, its bytes in memory or in a file, and the receipt of the object it was read from.
#[derive(Clone, Debug)]
pub struct Opened {
    /// The whole value, or the bytes of the range, which are bytes whatever the value is.
    pub content: Content,
    /// The object's receipt; sizes and checksum are those of the whole value.
    pub receipt: Receipt,
}

impl Engine {
    /// Puts an engine over a backend; `kind` is what receipts call it.
    #[must_use]
    pub fn new(backend: Arc<dyn Backend>, kind: BackendKind) -> Self {
        let (fallback, deferral, external, breaker) = (None, None, ExternalReferences::default(), None);
        Self(Arc::new(Inner { backend, kind, fallback, deferral, external, breaker, counters: Arc::default() }))
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

    /// Names the way to the fallback's overlay through the layers above it, where they change what is kept.
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

    /// Returns where objects are kept.
    #[must_use]
    pub fn kind(&self) -> BackendKind {
        self.0.kind
    }

    /// Stores the value under the key, replacing what is there if the condition allows it.
    ///
    /// A redelivered store ([`StoreOptions::redelivered`]) looks first: an object with its own operation id and value is
    /// answered, not written again; an unconditional one whose start is known leaves an object that was written since
    /// alone and answers the receipt of the state that was replaced. Look and write are one step for every other
    /// writer: the write names the generation it saw. What remains: without a known start, a store repeats over what
    /// others wrote meanwhile; and with one, a delete in between leaves nothing to compare, so the value comes back.
    /// Where a bucket that is away cannot be looked at, an unconditional one is left to the fallback, stamped with its
    /// start, so that what others have written since is found when it is sent.
    ///
    /// # Errors
    ///
    /// [`ErrorKind::Invalid`] for a JSON value that is not JSON, [`ErrorKind::Precondition`],
    /// [`ErrorKind::Abandoned`], and whatever the backend fails with.
    pub async fn store(&self, key: &Key, value: impl Into<Content>, options: StoreOptions) -> Result<Receipt> {
        self.0.counters.measure(self.store_uncounted(key, value.into(), options)).await
    }

    /// Reads a value, or some bytes of a text or bytes value; never more than the limit, and never more than wanted.
    ///
    /// # Errors
    ///
    /// [`ErrorKind::Invalid`] for more bytes than the limit and for a range of a JSON value;
    /// [`ErrorKind::Integrity`] for an object that is damaged.
    pub async fn retrieve(&self, key: &Key, want: GetOptions) -> Result<Option<Retrieved>> {
        self.0.counters.measure(self.retrieve_uncounted(key, want)).await
    }

    /// Reads as [`Engine::retrieve`] does, and counts a large value and what is made of it on a budget before it is read.
    ///
    /// # Errors
    ///
    /// As [`Engine::retrieve`].
    pub async fn retrieve_within(
        &self,
        key: &Key,
        want: GetOptions,
        budget: &Budget,
    ) -> Result<(Option<Retrieved>, Option<Held>)> {
        self.0.counters.measure(self.retrieve_counted(key, want, budget)).await
    }

    async fn retrieve_counted(
        &self,
        key: &Key,
        want: GetOptions,
        budget: &Budget,
    ) -> Result<(Option<Retrieved>, Option<Held>)> {
        // What is large comes as a file, whose length is known before it is in memory.
        let spooled = GetOptions { spooled: true, ..want };
        let Some(object) = reading::read(&*self.0.backend, key, spooled).await? else {
            return Ok((None, None));
        };
        let bytes = object.payload.len();
        let held = if bytes > SMALL { Some(budget.use_when_free(bytes.saturating_mul(COPIES)).await) } else { None };
        Ok((Some(value_of(key, self.0.kind, want.range.is_some(), object).await?), held))
    }

    /// Opens a value, or some bytes of it, to be read piece by piece; whether a text is UTF-8 and JSON is JSON is not
    /// looked at.
    ///
    /// # Errors
    ///
    /// As [`Engine::retrieve`].
    pub async fn open(&self, key: &Key, want: GetOptions) -> Result<Option<Opened>> {
        self.0.counters.measure(self.open_uncounted(key, want)).await
    }

    /// Makes a URL by which anyone can read or write the object for a time; the URL is a secret.
    ///
    /// # Errors
    ///
    /// [`ErrorKind::Invalid`] where objects are not in a bucket; what the backend fails with.
    pub async fn sign(&self, key: &Key, grant: &Grant) -> Result<String> {
        self.0.counters.measure(self.0.backend.sign(key, grant)).await
    }

    /// Removes the object; afterwards the key is gone, whoever removed it.
    ///
    /// A redelivered delete leaves an object that was written since its known start alone and succeeds. Returns whether
    /// the delete waits in an overlay and has still to be sent to the bucket.
    ///
    /// # Errors
    ///
    /// [`ErrorKind::Precondition`] when another generation is there, [`ErrorKind::Abandoned`], backend faults.
    pub async fn delete(&self, key: &Key, request: DeleteRequest) -> Result<bool> {
        self.0.counters.measure(self.delete_uncounted(key, request)).await
    }

    /// Tells whether the key has an object.
    ///
    /// # Errors
    ///
    /// What the backend fails with.
    pub async fn exists(&self, key: &Key) -> Result<bool> {
        self.0.counters.measure(async { Ok(self.live(key).await?.is_some()) }).await
    }

    /// Lists keys in byte order; the limit counts keys that are there.
    ///
    /// # Errors
    ///
    /// What the backend fails with; never half a list.
    pub async fn list(&self, request: ListRequest) -> Result<Vec<Key>> {
        self.0.counters.measure(self.list_uncounted(request)).await
    }

    /// Reads receipt and metadata without the value.
    ///
    /// # Errors
    ///
    /// What the backend fails with.
    pub async fn stat(&self, key: &Key) -> Result<Option<Stat>> {
        let look = async {
            Ok(self.live(key).await?.map(|attributes| Stat {
                receipt: Receipt::of(key, self.0.kind, &attributes),
                metadata: attributes.metadata.map(Metadata::from_kept),
            }))
        };
        self.0.counters.measure(look).await
    }

    /// Looks whether the backend can be used; not counted as an operation.
    ///
    /// # Errors
    ///
    /// What the backend fails with.
    pub async fn probe(&self) -> Result<Probe> {
        self.0.backend.probe().await
    }

    /// Reads the counters since start.
    #[must_use]
    pub fn stats(&self) -> Stats {
        let asked = self.breaker().is_none_or(|breaker| breaker.state() == BreakerState::Closed);
        Stats {
            initialized: true,
            gcs_available: self.0.kind == BackendKind::Gcs && asked,
            local_fallback_enabled: self.0.fallback.is_some(),
            cache_enabled: false,
            cache_size: 0,
            metrics: self.0.counters.read(),
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
            && utf8(json.clone()).and_then(|text| JsonText::parse(text).ok()).is_none()
        {
            let why = "the value is not JSON, or nested deeper than 200; what is stored must be readable again";
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
        self.0.counters.stored(size);
        Ok(Receipt::of(key, self.0.kind, &stored))
    }

    async fn list_uncounted(&self, request: ListRequest) -> Result<Vec<Key>> {
        let wanted = request.limit.unwrap_or(usize::MAX);
        let mut page =
            Page { prefix: request.prefix.unwrap_or_default(), start_after: request.start_after, limit: request.limit };
        let (mut keys, mut foreign) = (Vec::new(), 0);
        while keys.len() < wanted {
            // Hidden entries do not count against the caller's limit, so a page may have to be followed by another.
            page.limit = request.limit.map(|limit| limit - keys.len());
            let listing = self.0.backend.list(&page).await?;
            foreign += listing.foreign;
            page.start_after = listing.entries.last().map(|entry| entry.key.as_str().to_owned());
            let now = Timestamp::now();
            let live = listing.entries.into_iter().filter(|entry| entry.expires_at.is_none_or(|expiry| expiry > now));
            keys.extend(live.map(|entry| entry.key));
            if !listing.more || page.start_after.is_none() {
                break;
            }
        }
        if foreign > 0 {
            tracing::warn!(foreign, backend = %self.0.backend, "skipped names that are no keys");
        }
        Ok(keys)
    }

    async fn retrieve_uncounted(&self, key: &Key, want: GetOptions) -> Result<Option<Retrieved>> {
        match reading::read(&*self.0.backend, key, want).await? {
            Some(object) => value_of(key, self.0.kind, want.range.is_some(), object).await.map(Some),
            None => Ok(None),
        }
    }

    async fn open_uncounted(&self, key: &Key, want: GetOptions) -> Result<Option<Opened>> {
        let found = reading::read(&*self.0.backend, key, want).await?;
        Ok(found.map(|Object { attributes, payload }| {
            let kind = if want.range.is_some() { Kind::Bytes } else { attributes.kind };
            Opened { content: Content::new(kind, payload), receipt: Receipt::of(key, self.0.kind, &attributes) }
        }))
    }
}

/// Takes a value into memory, or a part of it.
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
                let why = "the object's text is not in the charset \"utf-8\", which is meant where its content type names \
                           none; read its bytes with `offset=0`, or name the right charset with the bucket's own tool";
                Error::new(ErrorKind::Invalid, Operation::Retrieve, Some(key), why)
            })?;
            Value::Text(text)
        }
        Kind::Text => Value::Text(utf8(payload).ok_or_else(|| damaged("the text is not valid UTF-8"))?),
        Kind::Json => {
            let text = utf8(payload);
            // The checksum vouches for a value that was stored here, and a value is parsed before it is stored.
            let json = if foreign.other_tool {
                text.and_then(|text| JsonText::parse(text).ok())
            } else {
                text.map(JsonText::of_parsed)
            };
            Value::Json(json.ok_or_else(|| damaged("the JSON value is not valid JSON"))?)
        }
    };
    Ok(Retrieved { value, receipt })
}

fn utf8(payload: Bytes) -> Option<String> {
    String::from_utf8(Vec::from(payload)).ok()
}
