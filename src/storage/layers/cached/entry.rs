//! One value in the cache.

use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::Duration;

use bytes::Bytes;
use jiff::Timestamp;
use tokio::time::Instant;

use super::account::Claim;
use crate::storage::backend::GetOptions;
use crate::storage::error::Result;
use crate::storage::files::FileIdentity;
use crate::storage::object::{Attributes, Key, Object, Payload};

/// An estimate of the memory that the cache needs for the bookkeeping of one entry.
const BOOKKEEPING: u64 = 512;

/// A whole value with its attributes, as a read returns it.
#[derive(Debug)]
pub(super) struct CacheEntry {
    attributes: Attributes,
    payload: Bytes,
    /// The version of the file that was read, for a local store.
    pub(super) identity: Option<FileIdentity>,
    /// When the read or write began that the value is from.
    begun_at: Instant,
    /// When the place has last said that this is the present state of the key.
    checked_at: Mutex<Instant>,
    _claim: Claim,
}

impl CacheEntry {
    /// Keeps a value in memory of its own, so that no larger buffer stays alive.
    ///
    /// Its age counts from the beginning of the read or write: the object may have changed while the bytes came.
    pub(super) fn new(
        object: &Object,
        payload: &Bytes,
        identity: Option<FileIdentity>,
        begun_at: Instant,
        claim: Claim,
    ) -> Self {
        let mut attributes = object.attributes.clone();
        attributes.info.decoded = true;
        let (payload, checked_at) = (Bytes::copy_from_slice(payload), Mutex::new(begun_at));
        Self { attributes, payload, identity, begun_at, checked_at, _claim: claim }
    }

    /// Computes how many bytes of memory an entry takes.
    pub(super) fn weight(key: &Key, attributes: &Attributes, payload: u64) -> u64 {
        let Attributes {
            content_type,
            compression,
            generation,
            operation_id,
            copied_from,
            metadata,
            writer_id,
            foreign,
            ..
        } = attributes;
        let optional = [compression, operation_id, copied_from, writer_id, &foreign.charset];
        let texts = [content_type, generation].into_iter().chain(optional.into_iter().flatten());
        let texts: usize = texts.map(|text| text.len()).sum();
        let metadata = metadata.as_ref().map_or(0, |text| text.get().len());
        let headers: usize =
            foreign.headers.iter().map(|(name, value)| 2 * size_of::<String>() + name.len() + value.len()).sum();
        let parts = key.as_str().len() + size_of::<Self>() + texts + metadata + headers;
        BOOKKEEPING + parts as u64 + payload
    }

    /// Tells whether the entry may still be answered: neither its own time nor that of the object is over.
    pub(super) fn is_live(&self, ttl: Duration) -> bool {
        self.begun_at.elapsed() < ttl && !self.attributes.is_expired(Timestamp::now())
    }

    /// Tells whether a range of the stored bytes is one of these bytes. Old objects of other tools may stand for values.
    pub(super) const fn has_ranges(&self) -> bool {
        !self.attributes.foreign.other_tool
    }

    /// Returns the requested part. The refusals are those of the place.
    pub(super) fn answer(&self, key: &Key, options: &GetOptions) -> Result<Object> {
        let part = options.part(key, self.attributes.kind, self.payload.len() as u64)?;
        // The part lies within bytes in memory, so both numbers fit.
        let payload = self.payload.slice(part.start as usize..part.end as usize);
        Ok(Object { attributes: self.attributes.clone(), payload: Payload::Memory(payload) })
    }

    /// Tells whether the place has not confirmed the entry for this long; with zero, always.
    pub(super) fn is_unchecked_for(&self, age: Duration) -> bool {
        self.checked_at().elapsed() >= age
    }

    /// Notes that the place has confirmed the entry at this time.
    pub(super) fn confirm(&self, at: Instant) {
        let mut checked_at = self.checked_at();
        *checked_at = at.max(*checked_at);
    }

    fn checked_at(&self) -> MutexGuard<'_, Instant> {
        self.checked_at.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Tells whether attributes that the place has just reported are those of this entry.
    ///
    /// The generation alone would not do: another tool may copy an object together with the token in it. What the codecs
    /// and the layer of old values derive from the bytes is not compared, since only a read derives it.
    pub(super) fn is_state(&self, now: &Attributes) -> bool {
        let kept = &self.attributes;
        let received = (kept.info.received_at, now.info.received_at);
        let text = |attributes: &Attributes| attributes.metadata.as_ref().map(|text| text.get().to_owned());
        !now.info.pending
            && kept.generation == now.generation
            && (kept.stored_size, kept.stored_checksum) == (now.stored_size, now.stored_checksum)
            && kept.expires_at == now.expires_at
            && (kept.content_type == now.content_type || kept.foreign.other_tool)
            && text(kept) == text(now)
            // A write may not tell when the place received it.
            && !matches!(received, (Some(then), Some(now)) if then != now)
    }
}

/// Tells whether the payload of an object that was read whole is its value, so that it may be answered again.
pub(super) fn is_whole(object: &Object) -> bool {
    let attributes = &object.attributes;
    // An announced payload has no bytes yet: whoever wants them asks again.
    let is_read = object.payload.len() == attributes.size && !object.payload.is_announced();
    is_read && (attributes.info.decoded || !attributes.is_encoded())
}

/// Tells whether an object may be kept: a confirmed state of the place itself, of a known value.
pub(super) fn may_be_kept(object: &Object) -> bool {
    let attributes = &object.attributes;
    // A pending state is in the overlay, which other workers change without asking the bucket.
    is_whole(object)
        && !attributes.info.pending
        && !attributes.tombstone
        && attributes.info.legacy.is_none()
        && !attributes.is_sealed()
        && !attributes.is_expired(Timestamp::now())
}

/// The place of an entry in the map.
///
/// The map frees what it has removed at some later time. The slot is emptied at once instead.
#[derive(Debug)]
pub(super) struct Slot {
    entry: Mutex<Option<Arc<CacheEntry>>>,
    /// How long the entry may stay, by its own time to live and by that of the object.
    pub(super) lifetime: Duration,
    pub(super) weight: u64,
}

impl Slot {
    pub(super) fn new(entry: CacheEntry, weight: u64, ttl: Duration) -> Self {
        let remaining = entry.attributes.expires_at.map(|expiry| Timestamp::now().duration_until(expiry));
        let remaining = remaining.map(|remaining| Duration::try_from(remaining).unwrap_or(Duration::ZERO));
        let ttl = ttl.saturating_sub(entry.begun_at.elapsed());
        let lifetime = remaining.map_or(ttl, |remaining| remaining.min(ttl));
        Self { entry: Mutex::new(Some(Arc::new(entry))), lifetime, weight }
    }

    pub(super) fn get(&self) -> Option<Arc<CacheEntry>> {
        self.lock().clone()
    }

    /// Removes the entry; tells whether there was one.
    pub(super) fn empty(&self) -> bool {
        let removed = self.lock().take();
        removed.is_some()
    }

    fn lock(&self) -> MutexGuard<'_, Option<Arc<CacheEntry>>> {
        self.entry.lock().unwrap_or_else(PoisonError::into_inner)
    }
}
