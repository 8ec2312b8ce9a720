//! The path of deferred writes through the codecs.

use std::sync::Arc;

use async_trait::async_trait;
use jiff::Timestamp;

use crate::storage::backend::{Deferral, Removal};
use crate::storage::commit_guard::CommitGuard;
use crate::storage::error::{Operation, Result};
use crate::storage::layers::Encoded;
use crate::storage::object::{Attributes, Key, Object};

/// Encodes what is deferred, as the layer encodes what is written.
#[derive(Debug)]
pub struct EncodedDeferral {
    layer: Arc<Encoded>,
    inner: Arc<dyn Deferral>,
}

impl EncodedDeferral {
    /// Puts the codecs of a layer before the overlay below that layer.
    #[must_use]
    pub const fn new(layer: Arc<Encoded>, inner: Arc<dyn Deferral>) -> Self {
        Self { layer, inner }
    }
}

#[async_trait]
impl Deferral for EncodedDeferral {
    async fn defer_put(&self, key: &Key, object: &Object, guard: &CommitGuard) -> Result<Attributes> {
        let stored = self.inner.defer_put(key, &*self.layer.encode(key, object).await?, guard).await?;
        self.layer.open(key, Operation::Store, stored)
    }

    async fn defer_delete(&self, key: &Key, deleted_at: Timestamp, guard: &CommitGuard) -> Result<Removal> {
        self.inner.defer_delete(key, deleted_at, guard).await
    }

    async fn is_pending(&self, key: &Key) -> Result<bool> {
        self.inner.is_pending(key).await
    }

    fn may_have_entry(&self, key: &Key) -> bool {
        self.inner.may_have_entry(key)
    }
}
