//! The cache: values by key, bounded in bytes and time, and never one that a change has overtaken.

use std::fmt;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::time::{Duration, Instant as WallInstant};

use moka::Expiry;
use moka::notification::RemovalCause;
use moka::policy::EvictionPolicy;
use moka::sync::Cache as Map;
use tokio::sync::watch;
use tokio::time::Instant;

use super::account::Account;
use super::entry::{CacheEntry, Slot, may_be_kept};
use super::shards::{Shard, Shards};
use super::shared_read::{ReadOutcome, Sequence, SharedRead};
use crate::storage::files::FileIdentity;
use crate::storage::layers::attempts::note_lookup;
use crate::storage::object::{Key, Object};
use crate::telemetry::{CacheEviction, CacheLookup, Metrics};

/// The share of the cache that no entry may exceed. The same share stays free for values that are being filled.
const SHARE: u64 = 8;

/// How a cache is bounded.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct CacheOptions {
    /// The most bytes of values with their attributes, entries being filled included.
    pub bytes: u64,
    /// The longest time that a value stays.
    pub ttl: Duration,
}

/// The content of a cache, and its lookups since the start.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct CacheCounts {
    /// The number of entries.
    pub entries: u64,
    /// The bytes of the entries.
    pub bytes: u64,
    /// The number of lookups that found a value that could be answered.
    pub hits: u64,
    /// The number of lookups that did not.
    pub misses: u64,
}

/// Values in memory by their keys; cheap to clone.
///
/// # Contract
///
/// - The bytes of all entries never exceed the bound, not even for a moment. The entry that was not used for the longest
///   time goes first.
/// - After [`Cache::drop_key`], [`Cache::clear`] or [`Cache::suspend`] has returned, no value is answered that was read
///   before: a read under way does not fill the cache.
/// - While it is suspended, a cache keeps nothing and answers nothing.
#[derive(Clone)]
pub struct Cache(Arc<Inner>);

struct Inner {
    values: Map<Key, Arc<Slot>>,
    account: Arc<Account>,
    shards: Shards,
    sequence: Sequence,
    ttl: Duration,
    /// The bytes of entries above which the oldest are removed.
    capacity: u64,
    /// The largest weight of an entry.
    largest: u64,
    suspended: AtomicBool,
    hits: AtomicU64,
    misses: AtomicU64,
    metrics: Metrics,
}

/// Lets the map remove each entry when its own lifetime is over.
struct Lifetimes;

impl Expiry<Key, Arc<Slot>> for Lifetimes {
    fn expire_after_create(&self, _: &Key, slot: &Arc<Slot>, _: WallInstant) -> Option<Duration> {
        Some(slot.lifetime)
    }

    fn expire_after_update(&self, _: &Key, slot: &Arc<Slot>, _: WallInstant, _: Option<Duration>) -> Option<Duration> {
        Some(slot.lifetime)
    }
}

/// The permission to fill a key with what is read from now on, unless a change overtakes it.
#[derive(Clone, Copy, Debug)]
pub(super) struct FillTicket {
    stamp: u64,
    /// When the read began. What it finds is of this age at least.
    begun_at: Instant,
}

impl Cache {
    /// Makes an empty cache.
    #[must_use]
    pub fn new(options: CacheOptions, metrics: Metrics) -> Self {
        let share = options.bytes / SHARE;
        let capacity = options.bytes - share;
        let removed = metrics.clone();
        let values = Map::builder()
            .max_capacity(capacity)
            .weigher(|_, slot: &Arc<Slot>| u32::try_from(slot.weight).unwrap_or(u32::MAX))
            .eviction_policy(EvictionPolicy::lru())
            .expire_after(Lifetimes)
            .eviction_listener(move |_, slot: Arc<Slot>, cause| {
                let was_there = slot.empty();
                match cause {
                    RemovalCause::Size if was_there => removed.record_cache_eviction(CacheEviction::Size),
                    RemovalCause::Expired if was_there => removed.record_cache_eviction(CacheEviction::Expired),
                    _ => {}
                }
            })
            .build();
        Self(Arc::new(Inner {
            values,
            account: Account::new(options.bytes, metrics.clone()),
            shards: Shards::new(),
            sequence: Sequence::default(),
            ttl: options.ttl,
            capacity,
            largest: share.min(u64::from(u32::MAX)),
            suspended: AtomicBool::new(false),
            hits: AtomicU64::new(0),
            misses: AtomicU64::new(0),
            metrics,
        }))
    }

    /// Drops the entry of a key, because the object has changed elsewhere.
    pub fn drop_key(&self, key: &Key) {
        let mut shard = self.0.shards.of(key);
        shard.overtake(key);
        self.0.values.invalidate(key);
    }

    /// Drops all entries and returns how many there were.
    pub fn clear(&self) -> u64 {
        self.0.shards.overtake_all();
        let dropped = self.0.values.iter().filter(|(_, slot)| slot.empty()).count();
        // The map removes the empty slots by and by.
        self.0.values.invalidate_all();
        self.0.values.run_pending_tasks();
        dropped as u64
    }

    /// Drops all entries, and keeps and answers nothing until [`Cache::resume`].
    ///
    /// A worker does so while it cannot be told of the changes that other workers make.
    pub fn suspend(&self) {
        self.0.suspended.store(true, Ordering::SeqCst);
        self.clear();
    }

    /// Keeps and answers values again, beginning with reads that begin from now on.
    pub fn resume(&self) {
        self.0.suspended.store(false, Ordering::SeqCst);
    }

    /// Tells whether the cache keeps nothing now.
    #[must_use]
    pub fn is_suspended(&self) -> bool {
        self.0.suspended.load(Ordering::SeqCst)
    }

    /// Counts entries, bytes and lookups. Entries whose time is over are removed first.
    #[must_use]
    pub fn counts(&self) -> CacheCounts {
        self.0.values.run_pending_tasks();
        CacheCounts {
            entries: self.0.account.entries(),
            bytes: self.0.account.bytes(),
            hits: self.0.hits.load(Ordering::Relaxed),
            misses: self.0.misses.load(Ordering::Relaxed),
        }
    }

    /// Returns the entry of a key whose time is not over.
    pub(super) fn find(&self, key: &Key) -> Option<Arc<CacheEntry>> {
        let entry = self.0.values.get(key)?.get()?;
        if entry.is_live(self.0.ttl) {
            return Some(entry);
        }
        self.forget(key, &entry);
        None
    }

    /// Removes this entry, if it is still the key's.
    pub(super) fn forget(&self, key: &Key, entry: &Arc<CacheEntry>) {
        let _shard = self.0.shards.of(key);
        let present = self.0.values.get(key).and_then(|slot| slot.get());
        if present.is_some_and(|present| Arc::ptr_eq(&present, entry)) {
            self.0.values.invalidate(key);
        }
    }

    /// Counts one lookup.
    pub(super) fn note(&self, lookup: CacheLookup) {
        let counter = match lookup {
            CacheLookup::Hit => &self.0.hits,
            CacheLookup::Miss => &self.0.misses,
        };
        counter.fetch_add(1, Ordering::Relaxed);
        self.0.metrics.record_cache_lookup(lookup);
        note_lookup(lookup);
    }

    /// Permits to fill a key with what is read from now on; `None` while the key is being written.
    pub(super) fn begin_fill(&self, key: &Key) -> Option<FillTicket> {
        let shard = self.0.shards.of(key);
        (shard.writing == 0 && !self.is_suspended())
            .then(|| FillTicket { stamp: shard.stamp, begun_at: Instant::now() })
    }

    /// Keeps what was read, unless the key was changed meanwhile or the value is too large.
    pub(super) fn fill(&self, key: &Key, ticket: FillTicket, object: &Object, identity: Option<FileIdentity>) {
        let shard = self.0.shards.of(key);
        if shard.stamp == ticket.stamp && !self.is_suspended() {
            self.insert(key, object, identity, ticket.begun_at);
        }
    }

    /// Marks a key as being written, until the returned value is dropped.
    pub(super) fn begin_write(&self, key: &Key) -> Writing {
        let mut shard = self.0.shards.of(key);
        shard.overtake(key);
        shard.writing += 1;
        self.0.values.invalidate(key);
        let ticket = (!self.is_suspended()).then(|| FillTicket { stamp: shard.stamp, begun_at: Instant::now() });
        Writing { cache: self.clone(), key: key.clone(), ticket }
    }

    /// Joins the read of a key that is under way, or begins one that others may join.
    pub(super) fn join(&self, key: &Key) -> SharedReadRole {
        let mut shard = self.0.shards.of(key);
        if let Some(read) = shard.reads.get(key) {
            return SharedReadRole::Follower(Arc::clone(read));
        }
        SharedReadRole::Leader(self.begin_read(&mut shard, key))
    }

    /// Joins the read that begins after another one has ended, or begins it. All who waited for that one share it.
    pub(super) fn join_next(&self, key: &Key, ended: &SharedRead) -> SharedReadRole {
        let mut shard = self.0.shards.of(key);
        let mut leader = None;
        let next = ended.next(|| match shard.reads.get(key) {
            Some(read) => Arc::clone(read),
            None => Arc::clone(&leader.insert(self.begin_read(&mut shard, key)).read),
        });
        leader.map_or_else(|| SharedReadRole::Follower(Arc::clone(next)), SharedReadRole::Leader)
    }

    fn begin_read(&self, shard: &mut Shard, key: &Key) -> Leader {
        let (read, outcome) = SharedRead::begin();
        shard.reads.insert(key.clone(), Arc::clone(&read));
        Leader { cache: self.clone(), key: key.clone(), read, outcome }
    }

    /// Lets nobody join this read any longer.
    fn end_read(&self, key: &Key, read: &Arc<SharedRead>) {
        let mut shard = self.0.shards.of(key);
        if shard.reads.get(key).is_some_and(|present| Arc::ptr_eq(present, read)) {
            shard.reads.remove(key);
        }
    }

    /// Returns the next moment in the order of reads and arrivals.
    pub(super) fn moment(&self) -> u64 {
        self.0.sequence.next()
    }

    /// Returns the longest time that a value stays.
    pub(super) fn ttl(&self) -> Duration {
        self.0.ttl
    }

    /// Inserts an entry whose age counts from this time. The caller holds the shard of the key.
    fn insert(&self, key: &Key, object: &Object, identity: Option<FileIdentity>, begun_at: Instant) {
        let Some(payload) = object.payload.as_memory().filter(|_| may_be_kept(object)) else { return };
        let weight = CacheEntry::weight(key, &object.attributes, payload.len() as u64);
        if weight > self.0.largest {
            return;
        }
        let claim = self.0.account.claim(weight).or_else(|| {
            // Entries that were put in at the same time may not have made room yet.
            self.0.values.run_pending_tasks();
            self.0.account.claim(weight)
        });
        let Some(claim) = claim else { return };
        let entry = CacheEntry::new(object, payload, identity, begun_at, claim);
        self.0.values.insert(key.clone(), Arc::new(Slot::new(entry, weight, self.0.ttl)));
        // Makes room for the next one. Below its capacity the map puts its books in order by itself, for many entries at once.
        if self.0.account.bytes() > self.0.capacity {
            self.0.values.run_pending_tasks();
        }
    }
}

impl fmt::Debug for Cache {
    fn fmt(&self, formatter: &mut fmt::Formatter<'_>) -> fmt::Result {
        // The output goes to logs, which must not show values.
        let mut shown = formatter.debug_struct("Cache");
        shown.field("entries", &self.0.account.entries()).field("bytes", &self.0.account.bytes());
        shown.finish_non_exhaustive()
    }
}

/// A write or delete of a key that is under way. Nothing of the key is kept until it ends.
#[derive(Debug)]
pub(super) struct Writing {
    cache: Cache,
    key: Key,
    /// Permits to keep what was written while no other change has moved the stamp.
    ticket: Option<FillTicket>,
}

impl Writing {
    /// Keeps what was written, unless another change of the key was under way or has come in between.
    pub(super) fn keep(self, object: &Object) {
        let shard = self.cache.0.shards.of(&self.key);
        let ticket = self.ticket.filter(|ticket| ticket.stamp == shard.stamp);
        if let Some(ticket) = ticket.filter(|_| shard.writing == 1 && !self.cache.is_suspended()) {
            self.cache.insert(&self.key, object, None, ticket.begun_at);
        }
    }
}

impl Drop for Writing {
    fn drop(&mut self) {
        let mut shard = self.cache.0.shards.of(&self.key);
        shard.writing -= 1;
        // Reads that began during the write may have found the state before it, and nobody may join them any longer.
        shard.overtake(&self.key);
    }
}

/// The part that a caller has in a shared read.
pub(super) enum SharedReadRole {
    /// The caller reads, and others wait for it.
    Leader(Leader),
    /// Another caller reads.
    Follower(Arc<SharedRead>),
}

/// The caller that reads for the others. Dropping it without an outcome lets another caller read.
#[derive(Debug)]
pub(super) struct Leader {
    cache: Cache,
    key: Key,
    read: Arc<SharedRead>,
    outcome: watch::Sender<Option<ReadOutcome>>,
}

impl Leader {
    /// Tells the outcome to those who have joined. Who comes from now on reads anew.
    pub(super) fn tell(&self, outcome: ReadOutcome) {
        self.cache.end_read(&self.key, &self.read);
        self.outcome.send_replace(Some(outcome));
    }
}

impl Drop for Leader {
    fn drop(&mut self) {
        self.cache.end_read(&self.key, &self.read);
    }
}
