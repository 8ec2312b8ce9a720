//! The counters of an engine since its start, for `get_stats`.

use std::future::Future;
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::Instant;

use crate::storage::error::Result;
use crate::storage::layers::CacheCounts;
use crate::storage::object::Attributes;

/// The state of a storage engine and its counters since the start of the worker.
#[derive(Clone, Debug, PartialEq, serde::Serialize, schemars::JsonSchema)]
pub struct Stats {
    /// Whether the engine can be used. Always true.
    pub initialized: bool,
    /// Whether objects are stored in Google Cloud Storage and the bucket can be reached.
    pub gcs_available: bool,
    /// Whether writes are stored on the local disk while the bucket cannot be reached.
    pub local_fallback_enabled: bool,
    /// Whether values are cached now. A worker over a bucket caches nothing while it has no session with the broker.
    pub cache_enabled: bool,
    /// The number of entries in the cache.
    pub cache_size: u64,
    /// The counters.
    pub metrics: StatsMetrics,
}

/// The counters of an engine since its start, and the ratios computed from them.
#[derive(Clone, Debug, PartialEq, serde::Serialize, schemars::JsonSchema)]
pub struct StatsMetrics {
    /// The number of finished operations, successful or not.
    pub total_operations: u64,
    /// The number of operations that ended without an error. A missing key is not an error.
    pub successful_operations: u64,
    /// The number of retrievals that were answered from the cache.
    pub cache_hits: u64,
    /// The number of retrievals whose value was not in the cache.
    pub cache_misses: u64,
    /// The number of bytes that compression saved.
    pub compression_savings: u64,
    /// The number of bytes of all stored values, before compression and encryption.
    pub total_data_size: u64,
    /// The share of operations that ended without an error, from 0 to 1; 0 before the first operation.
    pub success_rate: f64,
    /// The share of cache lookups that were hits, from 0 to 1; 0 before the first lookup.
    pub cache_hit_rate: f64,
    /// The share of the bytes of all stored values that compression saved, from 0 to 1; 0 before the first store.
    pub compression_ratio: f64,
    /// The mean duration of an operation in seconds; 0 before the first operation.
    pub mean_response_time: f64,
}

/// The counters, shared by all operations of an engine.
#[derive(Debug, Default)]
pub(in crate::storage) struct Counters {
    total: AtomicU64,
    successful: AtomicU64,
    stored_bytes: AtomicU64,
    saved_bytes: AtomicU64,
    microseconds: AtomicU64,
}

impl Counters {
    /// Runs one operation and counts it.
    pub(in crate::storage) async fn measure<T>(&self, operation: impl Future<Output = Result<T>>) -> Result<T> {
        let begin = Instant::now();
        let outcome = operation.await;
        let elapsed = u64::try_from(begin.elapsed().as_micros()).unwrap_or(u64::MAX);
        self.microseconds.fetch_add(elapsed, Ordering::Relaxed);
        self.total.fetch_add(1, Ordering::Relaxed);
        if outcome.is_ok() {
            self.successful.fetch_add(1, Ordering::Relaxed);
        }
        outcome
    }

    /// Counts the bytes of a value that was stored, and those that compression saved.
    pub(in crate::storage) fn stored(&self, stored: &Attributes) {
        self.stored_bytes.fetch_add(stored.size, Ordering::Relaxed);
        if stored.compression.is_some() {
            self.saved_bytes.fetch_add(stored.size.saturating_sub(stored.stored_size), Ordering::Relaxed);
        }
    }

    /// Reads the counters, beside those of the cache.
    pub(in crate::storage) fn read(&self, cache: CacheCounts) -> StatsMetrics {
        let total = self.total.load(Ordering::Relaxed);
        let successful = self.successful.load(Ordering::Relaxed);
        let (bytes, saved) = (self.stored_bytes.load(Ordering::Relaxed), self.saved_bytes.load(Ordering::Relaxed));
        let seconds = self.microseconds.load(Ordering::Relaxed) as f64 / 1e6;
        let lookups = cache.hits + cache.misses;
        StatsMetrics {
            total_operations: total,
            successful_operations: successful,
            cache_hits: cache.hits,
            cache_misses: cache.misses,
            compression_savings: saved,
            total_data_size: bytes,
            success_rate: if total == 0 { 0.0 } else { successful as f64 / total as f64 },
            cache_hit_rate: if lookups == 0 { 0.0 } else { cache.hits as f64 / lookups as f64 },
            compression_ratio: if bytes == 0 { 0.0 } else { saved as f64 / bytes as f64 },
            mean_response_time: if total == 0 { 0.0 } else { seconds / total as f64 },
        }
    }
}
