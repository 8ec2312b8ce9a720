//! A place before another one: every request passes a hook, which may fail it, hold it, repeat it or change it.

use std::fmt;
use std::future::Future;
use std::ops::Deref;
use std::sync::Arc;

use async_trait::async_trait;
use filestorage::storage::{
    Attributes, Backend, CopySource, DeleteOptions, GetOptions, Grant, Key, Listing, Object, Operation, Page, Probe,
    PutOptions, Removal, Result, Versions, VersionsRequest,
};

/// What a place is asked for.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Ask {
    Put,
    Copy,
    Get,
    Stat,
    Versions,
    Delete,
    List,
    Flush,
    Probe,
    Sign,
}

impl Ask {
    pub(crate) const fn operation(self) -> Operation {
        match self {
            Self::Put | Self::Flush => Operation::Store,
            Self::Copy => Operation::Copy,
            Self::Get => Operation::Retrieve,
            Self::Stat => Operation::Stat,
            Self::Versions => Operation::Versions,
            Self::Delete => Operation::Delete,
            Self::List => Operation::List,
            Self::Probe => Operation::Probe,
            Self::Sign => Operation::Sign,
        }
    }
}

/// What becomes of the requests. What a hook does not mention is passed on as it is.
pub(crate) trait Hook: fmt::Debug + Send + Sync + 'static {
    /// Carries a request out by calling `work`, or does not.
    fn around<T: Send, F: Future<Output = Result<T>> + Send>(
        &self,
        place: &dyn Backend,
        ask: Ask,
        key: Option<&Key>,
        work: impl Fn() -> F + Send + Sync,
    ) -> impl Future<Output = Result<T>> + Send;

    fn put(
        &self,
        place: &dyn Backend,
        key: &Key,
        object: &Object,
        options: &PutOptions,
    ) -> impl Future<Output = Result<Attributes>> + Send {
        async move { self.around(place, Ask::Put, Some(key), || place.put(key, object, options)).await }
    }

    fn delete(
        &self,
        place: &dyn Backend,
        key: &Key,
        options: &DeleteOptions,
    ) -> impl Future<Output = Result<Removal>> + Send {
        async move { self.around(place, Ask::Delete, Some(key), || place.delete(key, options)).await }
    }

    fn probe(&self, place: &dyn Backend) -> impl Future<Output = Result<Probe>> + Send {
        async move { self.around(place, Ask::Probe, None, || place.probe()).await }
    }

    fn validate(&self, place: &dyn Backend, key: &Key, attributes: &Attributes) -> Result<()> {
        place.validate(key, attributes)
    }

    fn sign(&self, place: &dyn Backend, key: &Key, grant: &Grant) -> impl Future<Output = Result<String>> + Send {
        async move { self.around(place, Ask::Sign, Some(key), || place.sign(key, grant)).await }
    }
}

/// A place whose requests pass a hook.
#[derive(Debug)]
pub(crate) struct Forwarding<H> {
    pub(crate) inner: Arc<dyn Backend>,
    hook: H,
}

impl<H> Forwarding<H> {
    pub(crate) fn over(inner: Arc<dyn Backend>, hook: H) -> Arc<Self> {
        Arc::new(Self { inner, hook })
    }
}

impl<H> Deref for Forwarding<H> {
    type Target = H;

    fn deref(&self) -> &H {
        &self.hook
    }
}

impl<H> fmt::Display for Forwarding<H> {
    fn fmt(&self, formatter: &mut fmt::Formatter<'_>) -> fmt::Result {
        let path = std::any::type_name::<H>();
        let name = path.rsplit_once("::").map_or(path, |(_, name)| name);
        write!(formatter, "{}({})", name.to_lowercase(), self.inner)
    }
}

#[async_trait]
impl<H: Hook> Backend for Forwarding<H> {
    async fn put(&self, key: &Key, object: &Object, options: &PutOptions) -> Result<Attributes> {
        self.hook.put(&*self.inner, key, object, options).await
    }

    async fn get(&self, key: &Key, options: GetOptions) -> Result<Option<Object>> {
        self.hook.around(&*self.inner, Ask::Get, Some(key), || self.inner.get(key, options.clone())).await
    }

    async fn copy(
        &self,
        source: &CopySource,
        key: &Key,
        attributes: &Attributes,
        options: &PutOptions,
    ) -> Result<Option<Attributes>> {
        let copy = || self.inner.copy(source, key, attributes, options);
        self.hook.around(&*self.inner, Ask::Copy, Some(key), copy).await
    }

    async fn stat(&self, key: &Key) -> Result<Option<Attributes>> {
        self.hook.around(&*self.inner, Ask::Stat, Some(key), || self.inner.stat(key)).await
    }

    async fn versions(&self, key: &Key, request: &VersionsRequest) -> Result<Versions> {
        self.hook.around(&*self.inner, Ask::Versions, Some(key), || self.inner.versions(key, request)).await
    }

    async fn delete(&self, key: &Key, options: &DeleteOptions) -> Result<Removal> {
        self.hook.delete(&*self.inner, key, options).await
    }

    async fn list(&self, page: &Page) -> Result<Listing> {
        self.hook.around(&*self.inner, Ask::List, None, || self.inner.list(page)).await
    }

    async fn flush(&self, key: &Key) -> Result<()> {
        self.hook.around(&*self.inner, Ask::Flush, Some(key), || self.inner.flush(key)).await
    }

    async fn probe(&self) -> Result<Probe> {
        self.hook.probe(&*self.inner).await
    }

    fn validate(&self, key: &Key, attributes: &Attributes) -> Result<()> {
        self.hook.validate(&*self.inner, key, attributes)
    }

    async fn sign(&self, key: &Key, grant: &Grant) -> Result<String> {
        self.hook.sign(&*self.inner, key, grant).await
    }
}
