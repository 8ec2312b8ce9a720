//! Builds the cache from the settings.

use std::sync::Arc;
use std::time::Duration;

use crate::config::{CacheSettings, StorageSettings};
use crate::storage::{Backend, Cache, CacheInvalidation, CacheOptions, Cached, FileIdentities, Invalidation, Local};
use crate::telemetry::Metrics;

/// The cache of a worker, and how it learns of changes.
#[derive(Clone, Debug)]
pub(super) struct Caching {
    pub(super) cache: Option<Cache>,
    origin: Origin,
}

#[derive(Clone, Debug)]
enum Origin {
    Files(Arc<dyn FileIdentities>),
    Bucket { siblings: Arc<dyn Invalidation>, revalidate: Option<Duration> },
}

impl Caching {
    /// Makes the cache of a local store. Where the times of files prove nothing, there is none, which is logged.
    pub(super) fn of_files(settings: &StorageSettings, local: Arc<Local>, metrics: &Metrics) -> Self {
        let mut cache = cache(settings, metrics);
        if cache.is_some()
            && let Some(file_system) = local.unproven_file_system()
        {
            let root = local.root().display();
            tracing::warn!(
                %file_system, %root,
                "the cache is off: on this file system, another machine may change a file unseen by this one; move \
                 local_storage_path to ext4, XFS, Btrfs, ZFS or tmpfs, or set enable_cache to false"
            );
            cache = None;
        }
        Self { cache, origin: Origin::Files(local) }
    }

    /// Makes the cache of a bucket. It is suspended until this worker is told of the changes of the others.
    pub(super) fn of_bucket(settings: &StorageSettings, siblings: Arc<dyn Invalidation>, metrics: &Metrics) -> Self {
        let cache = cache(settings, metrics);
        if let Some(cache) = &cache {
            cache.suspend();
        }
        let revalidate = settings.cache.and_then(|cache| cache.revalidate);
        Self { cache, origin: Origin::Bucket { siblings, revalidate } }
    }

    /// Returns what a layer below tells of a change that it makes by itself.
    pub(super) fn invalidation(&self) -> Option<Arc<dyn Invalidation>> {
        match &self.origin {
            Origin::Files(_) => None,
            Origin::Bucket { siblings, .. } => {
                Some(Arc::new(CacheInvalidation::new(self.cache.clone(), Arc::clone(siblings))))
            }
        }
    }

    /// Puts the cache before a backend; `None` where there is nothing to keep and nobody to tell.
    pub(super) fn over(&self, inner: Arc<dyn Backend>) -> Option<Cached> {
        match &self.origin {
            Origin::Files(files) => {
                let cache = self.cache.clone()?;
                Some(Cached::over_files(inner, cache, Arc::clone(files)))
            }
            Origin::Bucket { siblings, revalidate } => {
                Some(Cached::over_bucket(inner, self.cache.clone(), Arc::clone(siblings), *revalidate))
            }
        }
    }
}

fn cache(settings: &StorageSettings, metrics: &Metrics) -> Option<Cache> {
    let CacheSettings { bytes, ttl, .. } = settings.cache?;
    Some(Cache::new(CacheOptions { bytes, ttl }, metrics.clone()))
}
