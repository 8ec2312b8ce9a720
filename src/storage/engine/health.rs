//! The health of an engine, for `get_health_status` and `/health`.

use std::sync::atomic::{AtomicU8, Ordering};

use crate::storage::engine::{Engine, StatsMetrics};

/// Whether the storage can be used.
#[derive(Clone, Copy, Debug, PartialEq, Eq, serde::Serialize, schemars::JsonSchema)]
#[serde(rename_all = "snake_case")]
#[repr(u8)]
pub enum HealthStatus {
    /// Everything works.
    Healthy = 0,
    /// Commands are carried out, but something is missing: for example, the bucket is away and writes wait on this machine.
    Degraded = 1,
    /// Commands fail.
    Unhealthy = 2,
}

/// The health of a storage engine.
#[derive(Clone, Debug, PartialEq, serde::Serialize, schemars::JsonSchema)]
pub struct Health {
    /// Whether the storage can be used: `healthy`, `degraded` or `unhealthy`.
    pub status: HealthStatus,
    /// Whether objects are stored in Google Cloud Storage and the bucket can be reached.
    pub gcs_available: bool,
    /// Whether writes are stored on the local disk while the bucket cannot be reached.
    pub local_fallback_enabled: bool,
    /// Whether values are cached now. A worker over a bucket caches nothing while it has no session with the broker.
    pub cache_enabled: bool,
    /// The number of entries in the cache.
    pub cache_size: u64,
    /// The number of writes and deletes that wait to be sent to the bucket; null when they cannot be counted.
    pub pending_sync: Option<u64>,
    /// The state of the circuit breaker of the bucket: `closed`, `open` or `half_open`; null without a bucket.
    pub breaker: Option<&'static str>,
    /// The counters.
    pub metrics: StatsMetrics,
}

/// The health of the bucket as it was observed last. An engine without a bucket never changes it.
#[derive(Debug, Default)]
pub(in crate::storage) struct BucketHealth(AtomicU8);

impl BucketHealth {
    fn get(&self) -> HealthStatus {
        match self.0.load(Ordering::Relaxed) {
            0 => HealthStatus::Healthy,
            1 => HealthStatus::Degraded,
            _ => HealthStatus::Unhealthy,
        }
    }
}

impl Engine {
    /// Records the health of the bucket, which only regular probes find out while no command runs.
    pub fn set_bucket_health(&self, status: HealthStatus) {
        self.0.bucket_health.0.store(status as u8, Ordering::Relaxed);
    }

    /// Tells whether the storage can be used. A disk is probed; of a bucket, the last observation is told.
    pub async fn health(&self) -> Health {
        let status = match (self.breaker(), self.probe_disk().await) {
            (None, true) => HealthStatus::Healthy,
            (None, false) => HealthStatus::Unhealthy,
            (Some(_), _) => self.0.bucket_health.get(),
        };
        let pending_sync = match self.fallback() {
            Some(fallback) => fallback.pending().await.ok().map(|pending| pending.entries),
            None => Some(0),
        };
        let stats = self.stats();
        Health {
            status,
            gcs_available: stats.gcs_available,
            local_fallback_enabled: stats.local_fallback_enabled,
            cache_enabled: stats.cache_enabled,
            cache_size: stats.cache_size,
            pending_sync,
            breaker: self.breaker().map(|breaker| breaker.state().as_str()),
            metrics: stats.metrics,
        }
    }

    /// Tells whether the bucket answered when it was observed last.
    pub(super) fn is_bucket_there(&self) -> bool {
        self.0.bucket_health.get() == HealthStatus::Healthy
    }

    async fn probe_disk(&self) -> bool {
        match self.breaker() {
            Some(_) => true,
            None => self.probe().await.inspect_err(|error| tracing::warn!(%error, "the store cannot be used")).is_ok(),
        }
    }
}
