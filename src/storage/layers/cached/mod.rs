//! The cache layer: values in memory, above the codecs, so that a hit costs neither decompression nor decryption.
//!
//! ```text
//! Cached ─┬─ cache: values by key, with the order of fills and changes
//!         └─ inner: the codecs and the place
//! ```
//!
//! Whole values that a confirmed read or write has had in memory are kept. `stat` and `exists` always ask the place: a
//! caller who asks for the state wants the present one, and a redelivered command is decided by it. A missing key is
//! never remembered.
//!
//! # Coherence
//!
//! *A local store:* each hit compares the file's identity with that of the file that was read, so a change by whatever
//! process is seen. A read is kept only if the identity was the same before and after it, and old enough to prove
//! something. So a write never fills: the clock may tick only after the next write.
//!
//! *A bucket:* a write or delete announces the key to the other workers before it is answered. Where the settings ask for
//! it, a hit asks the bucket first whether the object is still the same. A write or delete whose outcome is unknown is
//! announced once more later, because the bucket may carry it out after the answer. Where there is an overlay, a hit looks
//! first whether the overlay has an entry of the key.
//!
//! The age of an entry counts from the beginning of the read or write that it is from.
//!
//! In both cases a read that is overtaken by a change in this worker keeps nothing, and is joined by nobody who came later.

mod account;
mod cache;
mod change;
mod entry;
mod invalidation;
mod late;
mod shards;
mod shared_read;

use std::fmt;
use std::sync::Arc;
use std::time::{Duration, SystemTime};

use async_trait::async_trait;
use jiff::Timestamp;
use tokio::time::Instant;

pub use self::cache::{Cache, CacheCounts, CacheOptions};
use self::cache::{Leader, SharedReadRole};
use self::change::Change;
use self::entry::{CacheEntry, is_whole};
pub use self::invalidation::CacheInvalidation;
use self::late::LateChanges;
use self::shared_read::{ReadOutcome, ReadResult};
use crate::storage::backend::{
    Backend, CopySource, Deferral, DeleteOptions, GetOptions, Grant, Listing, Page, Probe, PutOptions, Removal,
    Versions, VersionsRequest,
};
use crate::storage::commit_guard::CommitGuard;
use crate::storage::error::{Error, ErrorKind, Operation, Result};
use crate::storage::files::{FileIdentities, FileIdentity};
use crate::storage::invalidation::Invalidation;
use crate::storage::object::{Attributes, Key, Object, Payload};
use crate::telemetry::CacheLookup;

/// A backend whose values are kept in memory.
///
/// # Contract
///
/// - A hit is what a read of the place would have returned, but for the freshness that the module describes.
/// - Concurrent reads of a key that is not in the cache are one read of the place. A failed or cancelled one fails nobody
///   else.
/// - Over a bucket, every change is announced before it is answered, also where this worker has no cache.
#[derive(Debug)]
pub struct Cached {
    inner: Arc<dyn Backend>,
    cache: Option<Cache>,
    origin: Origin,
    deferral: Option<Arc<dyn Deferral>>,
}

/// How the layer knows that an entry is still what the place has.
#[derive(Debug)]
enum Origin {
    /// By the identity of the file.
    Files(Arc<dyn FileIdentities>),
    /// By the announcements of the other workers, and by asking the bucket for what it has not confirmed for so long.
    Bucket { changes: Arc<LateChanges>, revalidate: Option<Duration> },
}

impl Cached {
    /// Puts a cache before a local store.
    #[must_use]
    pub fn over_files(inner: Arc<dyn Backend>, cache: Cache, identities: Arc<dyn FileIdentities>) -> Self {
        Self { inner, cache: Some(cache), origin: Origin::Files(identities), deferral: None }
    }

    /// Puts a cache before a bucket, or, without one, only the announcement of changes.
    ///
    /// With `revalidate`, the bucket is asked before an entry is answered that it has not confirmed for that long.
    #[must_use]
    pub fn over_bucket(
        inner: Arc<dyn Backend>,
        cache: Option<Cache>,
        siblings: Arc<dyn Invalidation>,
        revalidate: Option<Duration>,
    ) -> Self {
        let changes = Arc::new(LateChanges::new(CacheInvalidation::new(cache.clone(), siblings)));
        Self { inner, cache, origin: Origin::Bucket { changes, revalidate }, deferral: None }
    }

    /// Names the way to the overlay below, into which a hit looks first. Deferred writes and deletes are changes, too.
    #[must_use]
    pub fn with_deferral(self, deferral: Arc<dyn Deferral>) -> Self {
        Self { deferral: Some(deferral), ..self }
    }

    /// Returns the cache while it keeps values.
    fn active(&self) -> Option<&Cache> {
        self.cache.as_ref().filter(|cache| !cache.is_suspended())
    }

    /// Begins a write or delete.
    fn change(&self, key: &Key) -> Change {
        let changes = match &self.origin {
            Origin::Files(_) => None,
            Origin::Bucket { changes, .. } => Some(Arc::clone(changes)),
        };
        Change::begin(self.cache.as_ref(), changes, key)
    }

    /// Tells whether the overlay may have an entry of a key, which a command of the shell announces to nobody.
    fn is_in_overlay(&self, key: &Key) -> bool {
        self.deferral.as_ref().is_some_and(|deferral| deferral.may_have_entry(key))
    }

    /// Returns the entry of a key that may be answered now.
    async fn lookup(&self, cache: &Cache, key: &Key) -> Option<Arc<CacheEntry>> {
        let entry = cache.find(key)?;
        let is_current = match &self.origin {
            Origin::Files(identities) => entry.identity.is_some() && identities.identity(key) == entry.identity,
            Origin::Bucket { .. } if self.is_in_overlay(key) => false,
            Origin::Bucket { revalidate: Some(age), .. } if entry.is_unchecked_for(*age) => {
                self.confirm(key, &entry).await
            }
            Origin::Bucket { .. } => true,
        };
        if !is_current {
            cache.forget(key, &entry);
        }
        is_current.then_some(entry)
    }

    /// Asks the place whether an entry is its present state. A place that cannot tell is read, and the read says why.
    async fn confirm(&self, key: &Key, entry: &CacheEntry) -> bool {
        let asked_at = Instant::now();
        let present = self.inner.stat(key).await;
        let is_state = present.is_ok_and(|present| present.is_some_and(|present| entry.is_state(&present)));
        if is_state {
            entry.confirm(asked_at);
        }
        is_state
    }

    /// Reads a value of which the cache has none, together with everyone who wants it now.
    async fn read_together(&self, cache: &Cache, key: &Key, options: &GetOptions) -> Result<Option<Object>> {
        let arrived = cache.moment();
        let mut role = cache.join(key);
        loop {
            let read = match role {
                SharedReadRole::Leader(leader) => return self.lead(cache, key, options, leader).await,
                SharedReadRole::Follower(read) => read,
            };
            // Without an outcome, the task that was reading is gone, and one of those who wait goes on.
            let Some(outcome) = read.outcome().await else {
                role = cache.join_next(key, &read);
                continue;
            };
            let is_fresh = outcome.begun > arrived || self.may_join(cache, key, &outcome);
            match outcome.found {
                ReadResult::NotShared => return self.inner.get(key, options.clone()).await,
                ReadResult::Value(object, _) if is_fresh => return shared(key, options, &object).await.map(Some),
                ReadResult::Nothing if is_fresh => return Ok(None),
                // The value may have been read before the last change. The next read begins after all who wait for it.
                ReadResult::Value(..) | ReadResult::Nothing => role = cache.join_next(key, &read),
            }
        }
    }

    /// Tells whether a read that began before the caller came is as good as one that begins now.
    fn may_join(&self, cache: &Cache, key: &Key, outcome: &ReadOutcome) -> bool {
        match (&self.origin, &outcome.found) {
            (Origin::Files(identities), ReadResult::Value(_, identity @ Some(_))) => {
                identities.identity(key) == *identity
            }
            (Origin::Files(_), _) => false,
            (Origin::Bucket { revalidate, .. }, _) => {
                let most = revalidate.map_or(cache.ttl(), |age| age.min(cache.ttl()));
                outcome.begun_at.elapsed() < most && !self.is_in_overlay(key)
            }
        }
    }

    /// Reads a value for oneself and for those who have joined, and keeps it.
    async fn lead(&self, cache: &Cache, key: &Key, options: &GetOptions, leader: Leader) -> Result<Option<Object>> {
        let (begun, begun_at) = (cache.moment(), Instant::now());
        // The read that was under way when this caller looked may have ended before the caller could join it.
        if let Some(entry) = self.lookup(cache, key).await {
            let whole = Arc::new(entry.answer(key, &GetOptions::default())?);
            leader.tell(ReadOutcome { begun, begun_at, found: ReadResult::Value(whole, entry.identity) });
            return entry.answer(key, options).map(Some);
        }
        let ticket = cache.begin_fill(key);
        let before = self.settled_identity(key);
        let found = self.inner.get(key, options.clone()).await;
        let result = match &found {
            Ok(None) => ReadResult::Nothing,
            Ok(Some(object)) if is_whole(object) => {
                let identity = self.unchanged(key, before);
                let is_kept = match self.origin {
                    Origin::Files(_) => identity.is_some(),
                    // To ask the bucket whether such an object is the same would take as long as reading it.
                    Origin::Bucket { revalidate, .. } => {
                        revalidate.is_none() || !object.attributes.info.computed_checksum
                    }
                };
                if let Some(ticket) = ticket.filter(|_| is_kept) {
                    cache.fill(key, ticket, object, identity);
                }
                ReadResult::Value(Arc::new(object.clone()), identity)
            }
            Ok(Some(_)) | Err(_) => ReadResult::NotShared,
        };
        leader.tell(ReadOutcome { begun, begun_at, found: result });
        found
    }

    /// Returns the identity of a file before it is read, if every later change gives it another one.
    fn settled_identity(&self, key: &Key) -> Option<FileIdentity> {
        let Origin::Files(identities) = &self.origin else { return None };
        // The clock first: a change after the look has a later time than this.
        let now = SystemTime::now();
        identities.identity(key).filter(|identity| identity.is_settled(now))
    }

    /// Returns the identity of the file that was read, if it is certain which one that was.
    fn unchanged(&self, key: &Key, before: Option<FileIdentity>) -> Option<FileIdentity> {
        let Origin::Files(identities) = &self.origin else { return None };
        before.filter(|before| identities.identity(key) == Some(*before))
    }

    fn deferral(&self, operation: Operation, key: &Key) -> Result<&Arc<dyn Deferral>> {
        let why = "there is no overlay that could keep the command; try again later";
        self.deferral.as_ref().ok_or_else(|| Error::new(ErrorKind::Unavailable, operation, Some(key), why))
    }
}

/// Returns what another task has read, as the options want it.
async fn shared(key: &Key, options: &GetOptions, object: &Object) -> Result<Object> {
    let Object { attributes, payload } = object.clone();
    let part = options.part(key, attributes.kind, payload.len())?;
    let payload = payload.slice(part);
    if options.spooled {
        return Ok(Object { attributes, payload });
    }
    let payload = payload.into_memory().await.map_err(|error| Error::unread(Operation::Retrieve, key, error))?;
    Ok(Object { attributes, payload: Payload::Memory(payload) })
}

impl fmt::Display for Cached {
    fn fmt(&self, formatter: &mut fmt::Formatter<'_>) -> fmt::Result {
        self.inner.fmt(formatter)
    }
}

#[async_trait]
impl Backend for Cached {
    async fn put(&self, key: &Key, object: &Object, options: &PutOptions) -> Result<Attributes> {
        let change = self.change(key);
        match self.inner.put(key, object, options).await {
            Ok(stored) => {
                let is_kept = matches!(self.origin, Origin::Bucket { .. }) && !object.attributes.foreign.other_tool;
                let written = (is_kept && object.payload.as_memory().is_some() && !object.attributes.is_encoded())
                    .then(|| Object { attributes: decoded(&stored), payload: object.payload.clone() });
                change.done(written.as_ref()).await;
                Ok(stored)
            }
            Err(error) => Err(change.failed(error).await),
        }
    }

    async fn get(&self, key: &Key, options: GetOptions) -> Result<Option<Object>> {
        // The cache keeps present states only.
        let cache = self.active().filter(|_| options.version.is_none() && !options.uncached);
        let Some(cache) = cache else { return self.inner.get(key, options).await };
        let entry = self.lookup(cache, key).await;
        if let Some(entry) = entry.filter(|entry| options.range.is_none() || entry.has_ranges()) {
            cache.note(CacheLookup::Hit);
            return entry.answer(key, &options).map(Some);
        }
        if !options.announced {
            cache.note(CacheLookup::Miss);
        }
        let found = match options.range {
            // The rest of the value would be read only to be kept.
            Some(_) => self.inner.get(key, options.clone()).await,
            None => self.read_together(cache, key, &options).await,
        };
        // What is announced is asked for again, which is one lookup in all.
        let is_announced = matches!(&found, Ok(Some(object)) if object.payload.is_announced());
        if options.announced && !is_announced {
            cache.note(CacheLookup::Miss);
        }
        found
    }

    async fn copy(
        &self,
        source: &CopySource,
        key: &Key,
        attributes: &Attributes,
        options: &PutOptions,
    ) -> Result<Option<Attributes>> {
        let change = self.change(key);
        match self.inner.copy(source, key, attributes, options).await {
            Ok(Some(stored)) => {
                change.done(None).await;
                Ok(Some(stored))
            }
            // An earlier attempt may have copied the object onto itself, after which the source has another state.
            Ok(None) => {
                change.done(None).await;
                Ok(None)
            }
            Err(error) => Err(change.failed(error).await),
        }
    }

    async fn stat(&self, key: &Key) -> Result<Option<Attributes>> {
        let found = self.inner.stat(key).await?;
        if let Some(cache) = self.active()
            && let Some(entry) = cache.find(key)
            && !found.as_ref().is_some_and(|found| entry.is_state(found))
        {
            cache.forget(key, &entry);
        }
        Ok(found)
    }

    async fn versions(&self, key: &Key, request: &VersionsRequest) -> Result<Versions> {
        self.inner.versions(key, request).await
    }

    async fn delete(&self, key: &Key, options: &DeleteOptions) -> Result<Removal> {
        let change = self.change(key);
        match self.inner.delete(key, options).await {
            Ok(removal) => {
                change.done(None).await;
                Ok(removal)
            }
            Err(error) => Err(change.failed(error).await),
        }
    }

    async fn list(&self, page: &Page) -> Result<Listing> {
        self.inner.list(page).await
    }

    /// An earlier attempt, whose announcement is not certain, is about to be answered as done.
    async fn flush(&self, key: &Key) -> Result<()> {
        let change = self.change(key);
        let flushed = self.inner.flush(key).await;
        change.done(None).await;
        flushed
    }

    async fn probe(&self) -> Result<Probe> {
        self.inner.probe().await
    }

    fn validate(&self, key: &Key, attributes: &Attributes) -> Result<()> {
        self.inner.validate(key, attributes)
    }

    async fn sign(&self, key: &Key, grant: &Grant) -> Result<String> {
        self.inner.sign(key, grant).await
    }
}

/// Returns the attributes of a value that was stored, as a read of it returns them.
fn decoded(stored: &Attributes) -> Attributes {
    let mut attributes = stored.clone();
    attributes.info.decoded = true;
    attributes
}

#[async_trait]
impl Deferral for Cached {
    async fn defer_put(&self, key: &Key, object: &Object, guard: &CommitGuard) -> Result<Attributes> {
        let deferral = self.deferral(Operation::Store, key)?;
        let change = self.change(key);
        let stored = deferral.defer_put(key, object, guard).await;
        change.done(None).await;
        stored
    }

    async fn defer_delete(&self, key: &Key, deleted_at: Timestamp, guard: &CommitGuard) -> Result<Removal> {
        let deferral = self.deferral(Operation::Delete, key)?;
        let change = self.change(key);
        let removal = deferral.defer_delete(key, deleted_at, guard).await;
        change.done(None).await;
        removal
    }

    async fn is_pending(&self, key: &Key) -> Result<bool> {
        match &self.deferral {
            Some(deferral) => deferral.is_pending(key).await,
            None => Ok(false),
        }
    }

    fn may_have_entry(&self, key: &Key) -> bool {
        self.is_in_overlay(key)
    }
}
