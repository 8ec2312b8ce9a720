//! The order of fills, writes and invalidations of a key.
//!
//! Each shard of keys has a stamp that every change of one of its keys moves. A fill notes the stamp before it reads, and
//! is refused when the stamp has moved since. So a read that a change overtakes never leaves what it has read.

use std::collections::HashMap;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

use super::shared_read::SharedRead;
use crate::storage::object::{Checksum, Key};

/// The number of shards. Keys that share one only keep each other from being filled while one of them is written.
const SHARDS: usize = 1024;

#[derive(Debug, Default)]
pub(super) struct Shard {
    pub(super) stamp: u64,
    /// The number of writes under way.
    pub(super) writing: usize,
    /// The reads that may be joined.
    pub(super) reads: HashMap<Key, Arc<SharedRead>>,
}

impl Shard {
    /// Makes every fill that has begun so far useless, and lets nobody join the read of the key any longer.
    pub(super) fn overtake(&mut self, key: &Key) {
        self.stamp += 1;
        self.reads.remove(key);
    }
}

#[derive(Debug)]
pub(super) struct Shards(Box<[Mutex<Shard>]>);

impl Shards {
    pub(super) fn new() -> Self {
        Self(std::iter::repeat_with(Mutex::default).take(SHARDS).collect())
    }

    pub(super) fn of(&self, key: &Key) -> MutexGuard<'_, Shard> {
        let index = Checksum::of(key.as_str().as_bytes()).0 as usize % SHARDS;
        self.0[index].lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Overtakes every key.
    pub(super) fn overtake_all(&self) {
        for shard in &self.0 {
            let mut shard = shard.lock().unwrap_or_else(PoisonError::into_inner);
            shard.stamp += 1;
            shard.reads.clear();
        }
    }
}
