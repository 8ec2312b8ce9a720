//! A bucket that is not hurried: the real service takes about one write a second of one name.

use std::fmt;
use std::future::Future;
use std::time::Duration;

use async_trait::async_trait;
use filestorage::storage::{
    Attributes, Backend, DeleteOptions, ErrorKind, Gcs, GetOptions, Grant, Key, Listing, Object, Page, Probe,
    PutOptions, Removal, Result,
};

/// How often somebody who is asked for patience asks again.
const TIMES: u32 = 60;

#[derive(Debug)]
pub(crate) struct Patient(pub(crate) Gcs);

async fn calmly<T, F: Future<Output = Result<T>>>(work: impl Fn() -> F) -> Result<T> {
    for _ in 0..TIMES {
        match work().await {
            Err(error) if error.kind == ErrorKind::Throttled => {
                tokio::time::sleep(error.retry_after.unwrap_or(Duration::from_secs(1))).await;
            }
            outcome => return outcome,
        }
    }
    work().await
}

impl fmt::Display for Patient {
    fn fmt(&self, formatter: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(formatter, "patient({})", self.0)
    }
}

#[async_trait]
impl Backend for Patient {
    async fn put(&self, key: &Key, object: &Object, how: &PutOptions) -> Result<Attributes> {
        calmly(|| self.0.put(key, &object, &how)).await
    }

    async fn get(&self, key: &Key, want: GetOptions) -> Result<Option<Object>> {
        calmly(|| self.0.get(key, want)).await
    }

    async fn stat(&self, key: &Key) -> Result<Option<Attributes>> {
        calmly(|| self.0.stat(key)).await
    }

    async fn delete(&self, key: &Key, how: &DeleteOptions) -> Result<Removal> {
        calmly(|| self.0.delete(key, &how)).await
    }

    async fn list(&self, page: &Page) -> Result<Listing> {
        calmly(|| self.0.list(page)).await
    }

    async fn flush(&self, key: &Key) -> Result<()> {
        self.0.flush(key).await
    }

    async fn probe(&self) -> Result<Probe> {
        calmly(|| self.0.probe()).await
    }

    fn validate(&self, key: &Key, attributes: &Attributes) -> Result<()> {
        self.0.validate(key, attributes)
    }

    async fn sign(&self, key: &Key, grant: &Grant) -> Result<String> {
        self.0.sign(key, grant).await
    }
}
