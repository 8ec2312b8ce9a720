//! The announcement of changed keys to the caches of other workers.

use std::fmt;

use async_trait::async_trait;

use crate::storage::object::Key;

/// Tells other workers that the object of a key has changed.
///
/// # Contract
///
/// - [`Invalidation::announce`] makes every other worker drop the key from its cache. It returns once the broker has
///   confirmed the message, or once the session that could confirm it is gone. In the latter case the implementation
///   keeps the key and sends it with its next session.
/// - It is called after the change is visible in the bucket and before the change is answered. It may be called for a
///   change that did not happen.
/// - It never fails: whoever cannot be told must drop its cache by itself, because it has lost the broker.
#[async_trait]
pub trait Invalidation: fmt::Debug + Send + Sync + 'static {
    /// Announces that the object of the key may have changed.
    async fn announce(&self, key: &Key);

    /// Announces that any object may have changed, so that every other worker empties its cache.
    async fn announce_all(&self);
}

/// Announces nothing: the worker has no siblings whose caches could be told.
#[derive(Clone, Copy, Debug, Default)]
pub struct NoSiblings;

#[async_trait]
impl Invalidation for NoSiblings {
    async fn announce(&self, _: &Key) {}

    async fn announce_all(&self) {}
}
