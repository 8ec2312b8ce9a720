//! Workers whose announcements reach the caches of the others at once, as if the broker took no time.

use std::sync::{Arc, Mutex};
use std::time::Duration;

use async_trait::async_trait;
use filestorage::storage::{Backend, Cache, CacheOptions, Cached, Invalidation, Key};
use filestorage::telemetry::Metrics;

/// The caches of all workers, and the keys that were announced.
#[derive(Debug, Default)]
pub(crate) struct Wires {
    caches: Mutex<Vec<Cache>>,
    announced: Mutex<Vec<Key>>,
}

/// The way of one worker to the others.
#[derive(Debug)]
struct Wire {
    wires: Arc<Wires>,
    own: usize,
}

pub(crate) fn cache(bytes: u64) -> Cache {
    Cache::new(CacheOptions { bytes, ttl: Duration::from_secs(3600) }, Metrics::new())
}

impl Wires {
    /// Returns the way of another worker to the others.
    pub(crate) fn join(self: &Arc<Self>, cache: &Cache) -> Arc<dyn Invalidation> {
        let mut caches = self.caches.lock().unwrap();
        caches.push(cache.clone());
        Arc::new(Wire { wires: Arc::clone(self), own: caches.len() - 1 })
    }

    /// Puts the cache of another worker before a bucket.
    pub(crate) fn worker(self: &Arc<Self>, inner: Arc<dyn Backend>) -> (Cache, Arc<Cached>) {
        let cache = cache(64 << 20);
        let siblings = self.join(&cache);
        (cache.clone(), Arc::new(Cached::over_bucket(inner, Some(cache), siblings, None)))
    }

    /// Returns the keys that were announced since the last call.
    pub(crate) fn announced(&self) -> Vec<Key> {
        std::mem::take(&mut *self.announced.lock().unwrap())
    }
}

#[async_trait]
impl Invalidation for Wire {
    async fn announce(&self, key: &Key) {
        tokio::task::yield_now().await;
        self.wires.announced.lock().unwrap().push(key.clone());
        let caches = self.wires.caches.lock().unwrap().clone();
        let others = caches.iter().enumerate().filter(|(index, _)| *index != self.own);
        others.for_each(|(_, cache)| cache.drop_key(key));
    }

    async fn announce_all(&self) {
        tokio::task::yield_now().await;
        let caches = self.wires.caches.lock().unwrap().clone();
        let others = caches.iter().enumerate().filter(|(index, _)| *index != self.own);
        others.for_each(|(_, cache)| {
            cache.clear();
        });
    }
}
