//! The one place that builds the storage stack.
//!
//! ```text
//! a bucket        Engine ─ Fallback ─┬─ Metered ─ Retry ─ Gcs | S3        below local_storage_path:
//!                                    └─ Metered ─ Local                   overlay/…
//! no bucket       Engine ─ Metered ─ Local                                objects/
//! ```

use std::path::Path;
use std::sync::Arc;
use std::time::Duration;

use super::bucket::{Bucket, Creation, Listed};
use super::failure::{Code, Failure};
use super::folders::{objects, overlay, owner, spool};
use crate::config::StorageSettings;
use crate::provider::{BackendKind, Provider};
use crate::storage::{
    Backend, Encoded, Engine, Error, ErrorKind, ExternalReferences, Fallback, Local, Memory, Metered, Permission,
};
use crate::telemetry::{self, Metrics};

/// Longest wait for a bucket that is only asked whether it is the right one.
const LOOK: Duration = Duration::from_secs(5);

/// Time between two looks at a bucket in whose stead something else answers.
const BETWEEN: Duration = Duration::from_secs(5);

/// What the settings ask for.
#[derive(Debug)]
pub(crate) struct Stack {
    pub(crate) engine: Engine,
    /// The bucket below the fallback, where values are kept in one.
    pub(crate) bucket: Option<Bucket>,
}

/// Builds the stack; asks no bucket anything. Blocks.
pub(crate) async fn stack(settings: &StorageSettings, metrics: &Metrics) -> Result<Stack, Failure> {
    let Some((provider, name)) = settings.bucket() else {
        let local = Local::open(objects(&settings.local_storage_path))?;
        let local = Arc::new(Metered::new(Arc::new(local), telemetry::BackendLabel::Local, metrics.clone()));
        return Ok(Stack { engine: engine_over(settings, metrics, local, BackendKind::Local), bucket: None });
    };
    let bucket = Bucket::open(settings, provider, name, Creation::WhenMissing, metrics).await.map_err(refused)?;
    let primary = Arc::clone(&bucket.backend);
    let fallback = if settings.local_fallback {
        let folder = overlay(settings, provider, name);
        let opened = Fallback::open(primary, folder, metrics.clone());
        match opened.and_then(|fallback| fallback.record_owner(&owner(settings, provider, name)).map(|()| fallback)) {
            Ok(fallback) => Some(Arc::new(fallback)),
            // What may wait there is looked at all the same; what is new goes to the bucket, or fails.
            Err(error) if error.kind == ErrorKind::NoSpace => {
                tracing::warn!(%error, "no room for what the bucket might not take; stores go to the bucket alone");
                pending(settings, provider, name, &bucket)?
            }
            Err(error) => return Err(error.into()),
        }
    } else {
        None
    };
    let engine = over_bucket(settings, metrics, provider, &bucket, fallback);
    Ok(Stack { engine, bucket: Some(bucket) })
}

/// Builds the stack for one command, and has a bucket say whether it can be used at all.
pub(crate) async fn engine(settings: &StorageSettings, metrics: &Metrics) -> Result<Engine, Failure> {
    let stack = stack(settings, metrics).await?;
    if let Some(bucket) = &stack.bucket {
        look(bucket, settings.local_fallback).await?;
    }
    Ok(stack.engine)
}

/// Builds the stack for reading, or nothing where nothing was ever stored; makes no folder and no bucket.
pub(crate) async fn reader(settings: &StorageSettings) -> Result<Option<Engine>, Failure> {
    let metrics = Metrics::new();
    let Some((provider, name)) = settings.bucket() else {
        let local = Local::open_existing(objects(&settings.local_storage_path))?;
        return Ok(local.map(|local| engine_over(settings, &metrics, Arc::new(local), BackendKind::Local)));
    };
    let bucket = Bucket::open(settings, provider, name, Creation::Never, &metrics).await.map_err(refused)?;
    let fallback = if settings.local_fallback { pending(settings, provider, name, &bucket)? } else { None };
    look(&bucket, settings.local_fallback).await?;
    Ok(Some(over_bucket(settings, &metrics, provider, &bucket, fallback)))
}

/// Opens what waits on this machine for a bucket, where that ever was anything; makes nothing. Blocks.
pub(crate) fn pending(
    settings: &StorageSettings,
    provider: Provider,
    name: &str,
    bucket: &Bucket,
) -> Result<Option<Arc<Fallback>>, Failure> {
    let (primary, folder) = (Arc::clone(&bucket.backend), overlay(settings, provider, name));
    Ok(Fallback::open_existing(primary, folder, bucket.metrics.clone())?.map(Arc::new))
}

/// Names a bucket as references do.
pub(crate) fn url(provider: Provider, name: &str) -> String {
    format!("{}://{name}", provider.scheme())
}

/// What is the matter with a bucket that may be used later.
#[derive(Debug)]
pub(crate) struct Away {
    pub(crate) words: String,
    /// Something answers that is not the bucket.
    pub(crate) senseless: bool,
}

/// Asks a bucket whether it can be used, so that a wrong name, key or permission is told for what it is.
///
/// One that cannot be reached, or takes long to answer, is left to what follows; returns what is the matter with it. Where
/// something else answers in its stead, and no fallback stands in meanwhile, it is asked once more a while later: what is
/// seen twice is no moment of maintenance, and a person has to look at the endpoint.
pub(crate) async fn look(bucket: &Bucket, fallback: bool) -> Result<Option<Away>, Failure> {
    let first = once(bucket).await?;
    if fallback || !first.as_ref().is_some_and(|away| away.senseless) {
        return Ok(first);
    }
    tokio::time::sleep(BETWEEN).await;
    match once(bucket).await? {
        Some(Away { words, senseless: true }) => {
            let why = format!("asked twice, {} s apart: {words}", BETWEEN.as_secs());
            Err(Failure::new(Code::Configuration, why))
        }
        second => Ok(second),
    }
}

async fn once(bucket: &Bucket) -> Result<Option<Away>, Failure> {
    match tokio::time::timeout(LOOK, bucket.backend.probe()).await {
        Ok(Ok(_)) => Ok(None),
        Ok(Err(error)) if error.is_transient() => {
            Ok(Some(Away { words: error.message().to_owned(), senseless: error.is_senseless() }))
        }
        Ok(Err(error)) => Err(refused(error)),
        Err(_) => {
            let words = format!("no answer within {} s; look at the network", LOOK.as_secs());
            Ok(Some(Away { words, senseless: false }))
        }
    }
}

/// The failure of a bucket that only a person can make usable.
pub(crate) fn refused(error: Error) -> Failure {
    match error.kind {
        ErrorKind::Invalid | ErrorKind::Denied => Failure::new(Code::Configuration, error.to_string()),
        _ => error.into(),
    }
}

fn over_bucket(
    settings: &StorageSettings,
    metrics: &Metrics,
    provider: Provider,
    bucket: &Bucket,
    fallback: Option<Arc<Fallback>>,
) -> Engine {
    let top: Arc<dyn Backend> = match &fallback {
        Some(fallback) => Arc::<Fallback>::clone(fallback),
        None => Arc::clone(&bucket.backend),
    };
    let engine = engine_over(settings, metrics, top, provider.into()).with_breaker(bucket.breaker.clone());
    match fallback {
        Some(fallback) => engine.with_fallback(fallback),
        None => engine,
    }
}

fn engine_over(settings: &StorageSettings, metrics: &Metrics, top: Arc<dyn Backend>, kind: BackendKind) -> Engine {
    let permission = Permission {
        directories: settings.exchange_directories.clone(),
        own: settings.bucket.clone(),
        buckets: settings.exchange_buckets.clone(),
    };
    let external = ExternalReferences::new(permission, Arc::new(Listed::new(settings.clone(), metrics.clone())));
    Engine::new(Arc::new(Encoded::new(top, spool(settings))), kind).with_external(external)
}

/// Opens an overlay to be looked at, if it is there; asks no bucket. Blocks.
pub(crate) fn inspect(folder: &Path) -> crate::storage::Result<Option<Fallback>> {
    Fallback::open_existing(Arc::new(Memory::new()), folder.to_owned(), Metrics::new())
}

/// The failure of a command that needs a value where nothing was ever stored.
pub(crate) fn nothing_stored(settings: &StorageSettings) -> Failure {
    let folder = objects(&settings.local_storage_path);
    let why = format!("nothing is stored under {}; is local_storage_path the right one?", folder.display());
    Failure::new(Code::NoInput, why)
}
