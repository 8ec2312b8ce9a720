//! Counts and times the operations of one backend. The layer is innermost, so only the backend itself is measured.

use std::fmt;
use std::sync::Arc;
use std::time::Instant;

use crate::storage::backend::{
    Backend, CopySource, DeleteOptions, GetOptions, Grant, Listing, Page, Probe, PutOptions, Removal, Versions,
    VersionsRequest,
};
use crate::storage::error::{Error, ErrorKind, Result};
use crate::storage::object::{Attributes, Key, Object};
use crate::telemetry::{self, Metrics, StorageOperation, StorageOutcome};
use async_trait::async_trait;

/// A backend whose operations, their times and their bytes are recorded under its metric label.
#[derive(Debug)]
pub struct Metered {
    inner: Arc<dyn Backend>,
    label: telemetry::BackendLabel,
    metrics: Metrics,
}

impl Metered {
    /// Measures a backend.
    #[must_use]
    pub fn new(inner: Arc<dyn Backend>, label: telemetry::BackendLabel, metrics: Metrics) -> Self {
        Self { inner, label, metrics }
    }

    /// Measures a write that does not go through the trait.
    pub(in crate::storage) async fn measure_put(
        &self,
        bytes: u64,
        write: impl Future<Output = Result<Attributes>> + Send,
    ) -> Result<Attributes> {
        let started = Instant::now();
        let result = write.await;
        self.note(StorageOperation::Put, started, &result, true, bytes);
        result
    }

    fn note<T>(&self, operation: StorageOperation, started: Instant, result: &Result<T>, found: bool, bytes: u64) {
        let outcome = match result {
            Ok(_) if found => StorageOutcome::Succeeded,
            Ok(_) => StorageOutcome::Missing,
            Err(error) => outcome_of(error),
        };
        self.metrics.record_storage(operation, self.label, outcome, started.elapsed(), bytes);
    }
}

const fn outcome_of(error: &Error) -> StorageOutcome {
    match error.kind {
        ErrorKind::Precondition => StorageOutcome::Precondition,
        ErrorKind::Integrity => StorageOutcome::Integrity,
        ErrorKind::NoSpace => StorageOutcome::NoSpace,
        ErrorKind::QuotaExceeded => StorageOutcome::QuotaExceeded,
        ErrorKind::Denied => StorageOutcome::Denied,
        ErrorKind::Unavailable => StorageOutcome::Unavailable,
        ErrorKind::Throttled => StorageOutcome::Throttled,
        ErrorKind::Abandoned => StorageOutcome::Abandoned,
        ErrorKind::Invalid | ErrorKind::Missing | ErrorKind::Io => StorageOutcome::Failed,
    }
}

impl fmt::Display for Metered {
    fn fmt(&self, formatter: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(formatter, "metered({})", self.inner)
    }
}

#[async_trait]
impl Backend for Metered {
    async fn put(&self, key: &Key, object: &Object, options: &PutOptions) -> Result<Attributes> {
        self.measure_put(object.payload.len(), self.inner.put(key, object, options)).await
    }

    async fn get(&self, key: &Key, options: GetOptions) -> Result<Option<Object>> {
        let started = Instant::now();
        let result = self.inner.get(key, options).await;
        let object = result.as_ref().ok().and_then(Option::as_ref);
        // Of an announced object no more than the attributes were read.
        let is_announced = object.is_some_and(|object| object.payload.is_announced());
        let bytes = object.filter(|_| !is_announced).map_or(0, |object| object.payload.len());
        let operation = if is_announced { StorageOperation::Stat } else { StorageOperation::Get };
        self.note(operation, started, &result, object.is_some(), bytes);
        result
    }

    async fn copy(
        &self,
        source: &CopySource,
        key: &Key,
        attributes: &Attributes,
        options: &PutOptions,
    ) -> Result<Option<Attributes>> {
        let started = Instant::now();
        let result = self.inner.copy(source, key, attributes, options).await;
        let found = matches!(result, Ok(Some(_)));
        self.note(StorageOperation::Copy, started, &result, found, 0);
        result
    }

    async fn stat(&self, key: &Key) -> Result<Option<Attributes>> {
        let started = Instant::now();
        let result = self.inner.stat(key).await;
        let found = matches!(result, Ok(Some(_)));
        self.note(StorageOperation::Stat, started, &result, found, 0);
        result
    }

    async fn versions(&self, key: &Key, request: &VersionsRequest) -> Result<Versions> {
        let started = Instant::now();
        let result = self.inner.versions(key, request).await;
        let found = result.as_ref().is_ok_and(|found| !found.versions.is_empty());
        self.note(StorageOperation::Versions, started, &result, found, 0);
        result
    }

    async fn delete(&self, key: &Key, options: &DeleteOptions) -> Result<Removal> {
        let started = Instant::now();
        let result = self.inner.delete(key, options).await;
        let found = matches!(result, Ok(Removal { found: true, .. }));
        self.note(StorageOperation::Delete, started, &result, found, 0);
        result
    }

    async fn list(&self, page: &Page) -> Result<Listing> {
        let started = Instant::now();
        let result = self.inner.list(page).await;
        if let Ok(listing) = &result {
            self.metrics.record_foreign_names(listing.foreign);
        }
        self.note(StorageOperation::List, started, &result, true, 0);
        result
    }

    async fn flush(&self, key: &Key) -> Result<()> {
        let started = Instant::now();
        let result = self.inner.flush(key).await;
        self.note(StorageOperation::Flush, started, &result, true, 0);
        result
    }

    async fn probe(&self) -> Result<Probe> {
        let started = Instant::now();
        let result = self.inner.probe().await;
        self.note(StorageOperation::Probe, started, &result, true, 0);
        result
    }

    fn validate(&self, key: &Key, attributes: &Attributes) -> Result<()> {
        self.inner.validate(key, attributes)
    }

    async fn sign(&self, key: &Key, grant: &Grant) -> Result<String> {
        let started = Instant::now();
        let result = self.inner.sign(key, grant).await;
        self.note(StorageOperation::Sign, started, &result, true, 0);
        result
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::provider::BackendKind;
    use crate::storage::backend::ByteRange;
    use crate::storage::backends::Memory;
    use crate::storage::engine::{Engine, StoreOptions};
    use crate::storage::object::Value;

    #[tokio::test]
    async fn operations_and_bytes_are_counted() {
        let metrics = Metrics::new();
        let place = Metered::new(Arc::new(Memory::new()), telemetry::BackendLabel::Memory, metrics.clone());
        let engine = Engine::new(Arc::new(place), BackendKind::Local);
        let key = Key::parse("k").unwrap();
        engine.store(&key, Value::Text("12345".into()), StoreOptions::default()).await.unwrap();
        engine.retrieve(&key, GetOptions::default()).await.unwrap();
        engine.retrieve(&Key::parse("other").unwrap(), GetOptions::default()).await.unwrap();
        let range = Some(ByteRange { offset: 1, length: Some(2) });
        engine.retrieve(&key, GetOptions { range, limit: Some(2), ..GetOptions::default() }).await.unwrap();
        let text = metrics.encode();
        for line in [
            r#"filestorage_storage_operations_total{operation="put",backend="memory",outcome="succeeded"} 1"#,
            r#"filestorage_storage_operations_total{operation="get",backend="memory",outcome="succeeded"} 2"#,
            r#"filestorage_storage_operations_total{operation="get",backend="memory",outcome="missing"} 1"#,
            r#"filestorage_storage_transferred_bytes_total{operation="put",backend="memory"} 5"#,
            r#"filestorage_storage_transferred_bytes_total{operation="get",backend="memory"} 7"#,
        ] {
            assert!(text.lines().any(|found| found == line), "{line} in\n{text}");
        }
    }
}
