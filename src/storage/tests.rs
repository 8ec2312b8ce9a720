//! The double of unit tests: a backend that does something before it passes an operation on.

use std::fmt;
use std::sync::Arc;

use async_trait::async_trait;
use futures_util::future::BoxFuture;

use super::{
    Attributes, Backend, CopySource, DeleteOptions, GetOptions, Grant, Key, Listing, Object, Operation, Page, Probe,
    PutOptions, Removal, Result, Versions, VersionsRequest,
};

/// Passes every operation on to a backend, after a hook has run.
pub(crate) struct Forwarding {
    inner: Arc<dyn Backend>,
    before: Box<dyn Fn(Operation) -> BoxFuture<'static, ()> + Send + Sync>,
}

impl Forwarding {
    /// Puts a hook before a backend; `flush` and `validate` call no hook.
    pub(crate) fn new(
        inner: Arc<dyn Backend>,
        before: impl Fn(Operation) -> BoxFuture<'static, ()> + Send + Sync + 'static,
    ) -> Self {
        Self { inner, before: Box::new(before) }
    }
}

impl fmt::Debug for Forwarding {
    fn fmt(&self, formatter: &mut fmt::Formatter<'_>) -> fmt::Result {
        formatter.debug_tuple("Forwarding").field(&self.inner).finish()
    }
}

impl fmt::Display for Forwarding {
    fn fmt(&self, formatter: &mut fmt::Formatter<'_>) -> fmt::Result {
        self.inner.fmt(formatter)
    }
}

#[async_trait]
impl Backend for Forwarding {
    async fn put(&self, key: &Key, object: &Object, options: &PutOptions) -> Result<Attributes> {
        (self.before)(Operation::Store).await;
        self.inner.put(key, object, options).await
    }

    async fn get(&self, key: &Key, options: GetOptions) -> Result<Option<Object>> {
        (self.before)(Operation::Retrieve).await;
        self.inner.get(key, options).await
    }

    async fn copy(
        &self,
        source: &CopySource,
        key: &Key,
        attributes: &Attributes,
        options: &PutOptions,
    ) -> Result<Option<Attributes>> {
        (self.before)(Operation::Copy).await;
        self.inner.copy(source, key, attributes, options).await
    }

    async fn stat(&self, key: &Key) -> Result<Option<Attributes>> {
        (self.before)(Operation::Stat).await;
        self.inner.stat(key).await
    }

    async fn versions(&self, key: &Key, request: &VersionsRequest) -> Result<Versions> {
        (self.before)(Operation::Versions).await;
        self.inner.versions(key, request).await
    }

    async fn delete(&self, key: &Key, options: &DeleteOptions) -> Result<Removal> {
        (self.before)(Operation::Delete).await;
        self.inner.delete(key, options).await
    }

    async fn list(&self, page: &Page) -> Result<Listing> {
        (self.before)(Operation::List).await;
        self.inner.list(page).await
    }

    async fn flush(&self, key: &Key) -> Result<()> {
        self.inner.flush(key).await
    }

    async fn probe(&self) -> Result<Probe> {
        (self.before)(Operation::Probe).await;
        self.inner.probe().await
    }

    fn validate(&self, key: &Key, attributes: &Attributes) -> Result<()> {
        self.inner.validate(key, attributes)
    }

    async fn sign(&self, key: &Key, grant: &Grant) -> Result<String> {
        (self.before)(Operation::Sign).await;
        self.inner.sign(key, grant).await
    }
}
