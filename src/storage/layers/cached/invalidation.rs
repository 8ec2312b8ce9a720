//! The announcement of changes that a layer below the cache makes by itself.

use std::sync::Arc;

use async_trait::async_trait;

use super::cache::Cache;
use crate::storage::invalidation::Invalidation;
use crate::storage::object::Key;

/// Drops a key from the cache of this worker and from those of the others, for a layer below the cache that changes the
/// bucket by itself.
#[derive(Clone, Debug)]
pub struct CacheInvalidation {
    cache: Option<Cache>,
    pub(super) siblings: Arc<dyn Invalidation>,
}

impl CacheInvalidation {
    /// Takes the cache of this worker, if there is one, and the way to the others.
    #[must_use]
    pub fn new(cache: Option<Cache>, siblings: Arc<dyn Invalidation>) -> Self {
        Self { cache, siblings }
    }
}

#[async_trait]
impl Invalidation for CacheInvalidation {
    async fn announce(&self, key: &Key) {
        if let Some(cache) = &self.cache {
            cache.drop_key(key);
        }
        self.siblings.announce(key).await;
    }

    async fn announce_all(&self) {
        if let Some(cache) = &self.cache {
            cache.clear();
        }
        self.siblings.announce_all().await;
    }
}
