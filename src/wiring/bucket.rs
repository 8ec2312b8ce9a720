//! Opens buckets: that of the store, and those that external references and `migrate` name.

use std::collections::HashMap;
use std::fmt;
use std::sync::Arc;

use async_trait::async_trait;
use tokio::sync::Mutex;

use super::codecs::codecs;
use super::folders;
use crate::config::{StorageSettings, proxy};
use crate::provider::Provider;
use crate::storage::{
    Backend, Breaker, Buckets, Encryption, Gcs, GcsOptions, Metered, Refusals, Result, Retry, RetryOptions, S3,
    S3Options,
};
use crate::telemetry::{self, Metrics};

/// Tells whether a missing bucket is created; this also needs a known project.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Creation {
    WhenMissing,
    Never,
}

/// An open bucket with retries, a circuit breaker and metrics.
#[derive(Clone)]
pub(crate) struct Bucket {
    pub(crate) backend: Arc<dyn Backend>,
    pub(crate) breaker: Breaker,
    pub(crate) refusals: Refusals,
    pub(crate) metrics: Metrics,
}

impl Bucket {
    /// Opens a bucket with the given settings, without sending a request to it.
    pub(crate) async fn open(
        settings: &StorageSettings,
        provider: Provider,
        name: &str,
        creation: Creation,
        metrics: &Metrics,
    ) -> Result<Self> {
        Self::measured(settings, provider, name, creation, (metrics, metrics)).await
    }

    /// Opens a bucket; `metrics` counts its operations, `own` counts its retries and shows its breaker.
    async fn measured(
        settings: &StorageSettings,
        provider: Provider,
        name: &str,
        creation: Creation,
        (metrics, own): (&Metrics, &Metrics),
    ) -> Result<Self> {
        let (bucket, timeout, spool) = (name.to_owned(), settings.timeout, folders::spool(settings));
        let (client, label): (Arc<dyn Backend>, _) = match provider {
            Provider::Gcs => {
                let gcs = &settings.gcs;
                let options = GcsOptions {
                    bucket,
                    project: gcs.project.clone().filter(|_| creation == Creation::WhenMissing),
                    location: gcs.location.clone(),
                    credentials: gcs.credentials.clone(),
                    endpoint: gcs.emulator.clone(),
                    proxy: proxy::of(gcs.emulator.as_deref()),
                    timeout,
                    spool,
                };
                (Arc::new(Gcs::open(options).await?), telemetry::BackendLabel::Gcs)
            }
            Provider::S3 => {
                let s3 = &settings.s3;
                let exposed =
                    |(name, value): (&String, &crate::config::Secret)| (name.clone(), value.expose().to_owned());
                let options = S3Options {
                    bucket,
                    endpoint: s3.endpoint.clone(),
                    region: s3.region.clone(),
                    aws: s3.aws.iter().map(exposed).collect(),
                    aws_files: s3.aws_files.clone(),
                    timeout,
                    spool,
                };
                (Arc::new(S3::open(options)?), telemetry::BackendLabel::S3)
            }
        };
        let options = RetryOptions { max_retries: settings.max_retries, timeout };
        let retry = Retry::new(client, options, label, own.clone());
        let (breaker, refusals) = (retry.breaker(), retry.refusals());
        let backend = Arc::new(Metered::new(Arc::new(retry), label, metrics.clone()));
        Ok(Self { backend, breaker, refusals, metrics: metrics.clone() })
    }
}

impl fmt::Debug for Bucket {
    fn fmt(&self, formatter: &mut fmt::Formatter<'_>) -> fmt::Result {
        formatter.debug_struct("Bucket").field("backend", &self.backend).finish_non_exhaustive()
    }
}

/// The buckets of `exchange_buckets`, opened with the credentials of the store's own bucket when a reference names them.
#[derive(Debug)]
pub(crate) struct ExchangeBuckets {
    settings: StorageSettings,
    metrics: Metrics,
    /// The metrics of retries and breakers of these buckets, which are not shown: the shown ones are those of the store's bucket.
    hidden: Metrics,
    encryption: Encryption,
    opened: Mutex<HashMap<(Provider, String), Arc<dyn Backend>>>,
}

impl ExchangeBuckets {
    pub(crate) fn new(settings: StorageSettings, metrics: Metrics, encryption: Encryption) -> Self {
        Self { settings, metrics, hidden: Metrics::new(), encryption, opened: Mutex::default() }
    }
}

#[async_trait]
impl Buckets for ExchangeBuckets {
    async fn open(&self, provider: Provider, name: &str) -> Result<Arc<dyn Backend>> {
        let mut opened = self.opened.lock().await;
        if let Some(backend) = opened.get(&(provider, name.to_owned())) {
            return Ok(Arc::clone(backend));
        }
        let measures = (&self.metrics, &self.hidden);
        let Bucket { backend, .. } =
            Bucket::measured(&self.settings, provider, name, Creation::Never, measures).await?;
        let backend: Arc<dyn Backend> = Arc::new(codecs(&self.settings, backend, &self.encryption));
        opened.insert((provider, name.to_owned()), Arc::clone(&backend));
        Ok(backend)
    }
}
