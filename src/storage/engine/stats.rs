//! Counters since start, for `get_stats`.

use std::future::Future;
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::Instant;

use crate::storage::error::Result;

/// What an engine has done since start: the answer of `get_stats`.
#[derive(Clone, Debug, PartialEq, serde::Serialize, schemars::JsonSchema)]
pub struct Stats {
    /// Whether the engine can be used; true once it exists.
    pub initialized: bool,
    /// Whether objects are kept in Google Cloud Storage, and it can be reached.
    pub gcs_available: bool,
    /// Whether stores land locally while a bucket is unreachable.
    pub local_fallback_enabled: bool,
    /// Whether values are cached.
    pub cache_enabled: bool,
    /// Entries in the cache.
    pub cache_size: u64,
    /// The counters.
    pub metrics: StatsMetrics,
}

/// Counters since start and what follows from them.
#[derive(Clone, Debug, PartialEq, serde::Serialize, schemars::JsonSchema)]
pub struct StatsMetrics {
    /// Operations finished, whatever their outcome.
    pub total_operations: u64,
    /// Those without error; a miss is no error.
    pub successful_operations: u64,
    /// Retrievals answered from the cache.
    pub cache_hits: u64,
    /// Retrievals the cache was asked for in vain.
    pub cache_misses: u64,
    /// Bytes that compression saved.
    pub compression_savings: u64,
    /// Bytes of all values stored, before codecs.
    pub total_data_size: u64,
    /// Successful by total operations, 0 to 1; 0 before the first.
    pub success_rate: f64,
    /// Hits by hits and misses, 0 to 1; 0 before the first.
    pub cache_hit_rate: f64,
    /// Saved by stored bytes, 0 to 1; 0 before the first.
    pub compression_ratio: f64,
    /// Mean seconds of one operation; 0 before the first.
    pub mean_response_time: f64,
}

/// The counters, shared by all operations of an engine.
#[derive(Debug, Default)]
pub(in crate::storage) struct Counters {
    total: AtomicU64,
    successful: AtomicU64,
    stored_bytes: AtomicU64,
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

    /// Counts the bytes of a value that was stored.
    pub(in crate::storage) fn stored(&self, bytes: u64) {
        self.stored_bytes.fetch_add(bytes, Ordering::Relaxed);
    }

    /// Reads the counters. Those of cache and codecs are zero, since this stack has neither.
    pub(in crate::storage) fn read(&self) -> StatsMetrics {
        let total = self.total.load(Ordering::Relaxed);
        let successful = self.successful.load(Ordering::Relaxed);
        let seconds = self.microseconds.load(Ordering::Relaxed) as f64 / 1e6;
        StatsMetrics {
            total_operations: total,
            successful_operations: successful,
            cache_hits: 0,
            cache_misses: 0,
            compression_savings: 0,
            total_data_size: self.stored_bytes.load(Ordering::Relaxed),
            success_rate: if total == 0 { 0.0 } else { successful as f64 / total as f64 },
            cache_hit_rate: 0.0,
            compression_ratio: 0.0,
            mean_response_time: if total == 0 { 0.0 } else { seconds / total as f64 },
        }
    }
}
