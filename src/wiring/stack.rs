//! Builds the storage stack from the settings.
//!
//! ```text
//! a bucket    Engine ─ Cached ─ LegacyValues ─ Encoded ─ LegacyFiles ─ Fallback ─┬─ Metered ─ Retry ─ Gcs | S3
//!                                                                                └─ Metered ─ Local         overlay/…
//! no bucket   Engine ─ Cached ─ LegacyValues ─ Encoded ─ LegacyFiles ─ Metered ─ Local                      objects/
//! ```
//!
//! Folders are below `local_storage_path`. `LegacyFiles` finds the files of the Python class beside these folders;
//! `LegacyValues` knows what their bytes stand for. With a bucket, `LegacyFiles` is there only with a local fallback.
//! `Cached` is there only in a worker, for one command would find nothing in its cache.

use std::path::Path;
use std::sync::Arc;
use std::time::Duration;

use super::bucket::{Bucket, Creation, ExchangeBuckets};
use super::caching::Caching;
use super::codecs::{codecs, compression, encryption};
use super::failure::{Code, Failure};
use super::folders::{OWN, objects, overlay, owner, spool};
use crate::config::StorageSettings;
use crate::provider::{BackendKind, Provider};
use crate::storage::{
    Backend, Cached, Deferral, Encoded, EncodedDeferral, Engine, Error, ErrorKind, ExternalReferences, Fallback,
    Invalidation, LegacyFiles, LegacyValues, Local, Memory, Metered, OwnEntries, Permission, Quota, page_size,
};
use crate::telemetry::{self, Metrics};

/// The longest wait for the answer of a probe.
const PROBE_TIMEOUT: Duration = Duration::from_secs(5);

/// The time between the two probes of a bucket in whose place another server answers.
const SECOND_PROBE_DELAY: Duration = Duration::from_secs(5);

/// The storage stack of the settings.
#[derive(Debug)]
pub(crate) struct Stack {
    pub(crate) engine: Engine,
    /// The bucket that keeps the values, if any.
    pub(crate) bucket: Option<Bucket>,
}

/// Builds the stack of a worker, without a request to the bucket. Blocks.
///
/// The cache is the engine's. That of a bucket is suspended, until the worker is told of what `siblings` announce in others.
pub(crate) async fn stack(
    settings: &StorageSettings,
    metrics: &Metrics,
    siblings: Arc<dyn Invalidation>,
) -> Result<Stack, Failure> {
    let Stack { engine, bucket } = build(settings, metrics, Some(Arc::clone(&siblings))).await?;
    Ok(Stack { engine: engine.with_siblings(siblings), bucket })
}

/// Builds the stack, with a cache where there are siblings that could be told of changes.
async fn build(
    settings: &StorageSettings,
    metrics: &Metrics,
    siblings: Option<Arc<dyn Invalidation>>,
) -> Result<Stack, Failure> {
    let Some((provider, name)) = settings.bucket() else {
        let local = Arc::new(Local::open(objects(&settings.local_storage_path))?);
        let caching = siblings.map(|_| Caching::of_files(settings, Arc::clone(&local), metrics));
        let local = Arc::new(Metered::new(local, telemetry::BackendLabel::Local, metrics.clone()));
        let below = Below { top: local, kind: BackendKind::Local, fallback: None, caching };
        return Ok(Stack { engine: engine_over(settings, metrics, below)?, bucket: None });
    };
    let caching = siblings.map(|siblings| Caching::of_bucket(settings, siblings, metrics));
    let invalidation = caching.as_ref().and_then(Caching::invalidation);
    let bucket = Bucket::open(settings, provider, name, Creation::WhenMissing, metrics).await.map_err(refused)?;
    let primary = Arc::clone(&bucket.backend);
    let fallback = if settings.local_fallback {
        let folder = overlay(settings, provider, name);
        let opened = Fallback::open(primary, folder, metrics.clone());
        let opened = opened.map(|fallback| fallback.with_invalidation(invalidation));
        match opened.and_then(|fallback| fallback.record_owner(&owner(settings, provider, name)).map(|()| fallback)) {
            Ok(fallback) => Some(Arc::new(fallback)),
            // Pending entries stay visible. New values go to the bucket, or fail.
            Err(error) if error.kind == ErrorKind::NoSpace => {
                tracing::warn!(%error, "the disk has no room for the overlay; values are stored in the bucket alone, or refused while it is away");
                pending(settings, provider, name, &bucket)?
            }
            Err(error) => return Err(error.into()),
        }
    } else {
        None
    };
    let engine = over_bucket(settings, metrics, provider, &bucket, fallback, caching)?;
    Ok(Stack { engine, bucket: Some(bucket) })
}

/// Builds the stack for one command, and probes the bucket.
pub(crate) async fn engine(settings: &StorageSettings, metrics: &Metrics) -> Result<Engine, Failure> {
    let stack = build(settings, metrics, None).await?;
    if let Some(bucket) = &stack.bucket {
        look(bucket, settings.local_fallback).await?;
    }
    Ok(stack.engine)
}

/// Builds the stack for reading, without creating a folder or a bucket.
///
/// Returns `None` when there is no local store yet.
pub(crate) async fn reader(settings: &StorageSettings) -> Result<Option<Engine>, Failure> {
    let metrics = Metrics::new();
    let Some((provider, name)) = settings.bucket() else {
        let local = Local::open_existing(objects(&settings.local_storage_path))?;
        let local: Arc<dyn Backend> = match local {
            Some(local) => Arc::new(local),
            None if legacy_files(settings, Arc::new(Memory::new())).has_files() => Arc::new(Memory::new()),
            None => return Ok(None),
        };
        let below = Below { top: local, kind: BackendKind::Local, fallback: None, caching: None };
        return engine_over(settings, &metrics, below).map(Some);
    };
    let bucket = Bucket::open(settings, provider, name, Creation::Never, &metrics).await.map_err(refused)?;
    let fallback = if settings.local_fallback { pending(settings, provider, name, &bucket)? } else { None };
    look(&bucket, settings.local_fallback).await?;
    Ok(Some(over_bucket(settings, &metrics, provider, &bucket, fallback, None)?))
}

/// The store as its objects are kept, for a rotation of its keys.
#[derive(Debug)]
pub(crate) struct EncryptedStore {
    pub(crate) objects: Encoded,
    /// The entries that wait for the bucket, if any are or were kept on this machine.
    pub(crate) fallback: Option<Arc<Fallback>>,
}

/// Builds the codecs over the store, without creating a folder or a bucket; entries that wait for the bucket hide its objects.
///
/// Returns `None` when there is no local store yet.
pub(crate) async fn sealed(settings: &StorageSettings) -> Result<Option<EncryptedStore>, Failure> {
    let (metrics, encryption) = (Metrics::new(), encryption(settings)?);
    let Some((provider, name)) = settings.bucket() else {
        let local = Local::open_existing(objects(&settings.local_storage_path))?;
        let objects = local.map(|local| codecs(settings, Arc::new(local), &encryption));
        return Ok(objects.map(|objects| EncryptedStore { objects, fallback: None }));
    };
    let bucket = Bucket::open(settings, provider, name, Creation::Never, &metrics).await.map_err(refused)?;
    let fallback = pending(settings, provider, name, &bucket)?;
    if let Some(Away { words, .. }) = look(&bucket, false).await? {
        let why = format!("{} cannot be reached: {words}", url(provider, name));
        return Err(Failure::new(Code::Unavailable, why));
    }
    let top: Arc<dyn Backend> = match &fallback {
        Some(fallback) => Arc::<Fallback>::clone(fallback),
        None => bucket.backend,
    };
    Ok(Some(EncryptedStore { objects: codecs(settings, top, &encryption), fallback }))
}

/// Opens the overlay of a bucket if it exists, without creating it. Blocks.
pub(crate) fn pending(
    settings: &StorageSettings,
    provider: Provider,
    name: &str,
    bucket: &Bucket,
) -> Result<Option<Arc<Fallback>>, Failure> {
    let (primary, folder) = (Arc::clone(&bucket.backend), overlay(settings, provider, name));
    Ok(Fallback::open_existing(primary, folder, bucket.metrics.clone())?.map(Arc::new))
}

/// Returns the URL of a bucket, as external references name it.
pub(crate) fn url(provider: Provider, name: &str) -> String {
    format!("{}://{name}", provider.scheme())
}

/// The state of a bucket that cannot be used now and may be usable later.
#[derive(Debug)]
pub(crate) struct Away {
    /// The cause, for people.
    pub(crate) words: String,
    /// Tells whether another server answers in place of the bucket.
    pub(crate) unexpected_answer: bool,
}

/// Probes a bucket once at the start, so that a wrong name, key or permission is reported with its cause.
///
/// Returns the state of a bucket that cannot be reached or does not answer in time, and `None` when the bucket answers.
/// Without a fallback, the bucket is probed again 5 s later when another server answers in its place. When that happens
/// twice, it is not a moment of maintenance, and a person has to look at the endpoint: this is a failure.
pub(crate) async fn look(bucket: &Bucket, fallback: bool) -> Result<Option<Away>, Failure> {
    let first = once(bucket).await?;
    if fallback || !first.as_ref().is_some_and(|away| away.unexpected_answer) {
        return Ok(first);
    }
    tokio::time::sleep(SECOND_PROBE_DELAY).await;
    match once(bucket).await? {
        Some(Away { words, unexpected_answer: true }) => {
            let why = format!("asked twice, {} s apart: {words}", SECOND_PROBE_DELAY.as_secs());
            Err(Failure::new(Code::Configuration, why))
        }
        second => Ok(second),
    }
}

async fn once(bucket: &Bucket) -> Result<Option<Away>, Failure> {
    match tokio::time::timeout(PROBE_TIMEOUT, bucket.backend.probe()).await {
        Ok(Ok(_)) => Ok(None),
        Ok(Err(error)) if error.is_transient() => {
            Ok(Some(Away { words: error.message().to_owned(), unexpected_answer: error.is_unexpected_answer() }))
        }
        Ok(Err(error)) => Err(refused(error)),
        Err(_) => {
            let words = format!("no answer within {} s; look at the network", PROBE_TIMEOUT.as_secs());
            Ok(Some(Away { words, unexpected_answer: false }))
        }
    }
}

/// Creates the failure for an error of a bucket; an invalid or denied request is a fault of the configuration.
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
    caching: Option<Caching>,
) -> Result<Engine, Failure> {
    let top: Arc<dyn Backend> = match &fallback {
        Some(fallback) => Arc::<Fallback>::clone(fallback),
        None => Arc::clone(&bucket.backend),
    };
    let below = Below { top, kind: provider.into(), fallback, caching };
    Ok(engine_over(settings, metrics, below)?.with_breaker(bucket.breaker.clone()))
}

/// Puts the files of the Python class below `local_storage_path` behind a store.
fn legacy_files(settings: &StorageSettings, inner: Arc<dyn Backend>) -> LegacyFiles {
    let own = OwnEntries::new(OWN, &settings.own_files);
    LegacyFiles::new(inner, &settings.local_storage_path, own, spool(settings))
}

/// The top of a stack, the way to its overlay, and its quotas.
type WithQuotas = (Arc<dyn Backend>, Option<Arc<dyn Deferral>>, Option<Arc<Quota>>);

/// Puts the quotas before a store. Without quotas, there is no such layer.
fn with_quotas(
    settings: &StorageSettings,
    top: Arc<dyn Backend>,
    overlay: Option<Arc<dyn Deferral>>,
    kind: BackendKind,
) -> WithQuotas {
    if settings.quotas.is_empty() {
        return (top, overlay, None);
    }
    let quota = Quota::new(top, settings.quotas.clone(), page_size(kind));
    match overlay {
        Some(overlay) => {
            let quota = Arc::new(quota.with_deferral(overlay));
            (Arc::<Quota>::clone(&quota), Some(Arc::<Quota>::clone(&quota)), Some(quota))
        }
        None => {
            let quota = Arc::new(quota);
            (Arc::<Quota>::clone(&quota), None, Some(quota))
        }
    }
}

/// The part of the stack that stands on a place, and the cache that shall stand on top.
struct Below {
    top: Arc<dyn Backend>,
    kind: BackendKind,
    fallback: Option<Arc<Fallback>>,
    caching: Option<Caching>,
}

fn engine_over(settings: &StorageSettings, metrics: &Metrics, below: Below) -> Result<Engine, Failure> {
    let Below { top, kind, fallback, caching } = below;
    let encryption = encryption(settings)?;
    let permission = Permission {
        directories: settings.exchange_directories.clone(),
        own: settings.bucket.clone(),
        buckets: settings.exchange_buckets.clone(),
    };
    let external = ExternalReferences::new(
        permission,
        Arc::new(ExchangeBuckets::new(settings.clone(), metrics.clone(), encryption.clone())),
    );
    let overlay = fallback.clone().map(|fallback| fallback as Arc<dyn Deferral>);
    // The Python class, too, looked at its local files only as a fallback.
    let (top, overlay): (Arc<dyn Backend>, _) = if kind == BackendKind::Local || settings.local_fallback {
        let files = legacy_files(settings, top);
        match overlay {
            Some(overlay) => {
                let files = Arc::new(files.with_deferral(overlay));
                (Arc::<LegacyFiles>::clone(&files), Some(files as Arc<dyn Deferral>))
            }
            None => (Arc::new(files), None),
        }
    } else {
        (top, overlay)
    };
    let (top, overlay, quota) = with_quotas(settings, top, overlay, kind);
    let encoded = Arc::new(
        codecs(settings, top, &encryption).with_compression(compression(settings)).with_encryption(encryption),
    );
    let values = LegacyValues::new(Arc::clone(&encoded) as Arc<dyn Backend>, spool(settings));
    // The class knew no other buckets.
    let values = if kind == BackendKind::Gcs { values.and_objects() } else { values };
    let values: Arc<dyn Backend> = Arc::new(values);
    let overlay = overlay.map(|overlay| Arc::new(EncodedDeferral::new(encoded, overlay)) as Arc<dyn Deferral>);
    let cache = caching.as_ref().and_then(|caching| caching.cache.clone());
    let (top, overlay) = match (caching.and_then(|caching| caching.over(Arc::clone(&values))), overlay) {
        (Some(cached), Some(overlay)) => {
            let cached = Arc::new(cached.with_deferral(overlay));
            (Arc::<Cached>::clone(&cached) as Arc<dyn Backend>, Some(cached as Arc<dyn Deferral>))
        }
        (Some(cached), None) => (Arc::new(cached) as Arc<dyn Backend>, None),
        (None, overlay) => (values, overlay),
    };
    let engine = Engine::new(top, kind).with_external(external).with_cache(cache);
    let engine = match quota {
        Some(quota) => engine.with_quota(quota),
        None => engine,
    };
    let engine = match overlay {
        Some(overlay) => engine.with_deferral(overlay),
        None => engine,
    };
    Ok(match fallback {
        Some(fallback) => engine.with_fallback(fallback),
        None => engine,
    })
}

/// Opens an overlay for inspection if it exists, without its bucket. Blocks.
pub(crate) fn inspect(folder: &Path) -> crate::storage::Result<Option<Fallback>> {
    Fallback::open_existing(Arc::new(Memory::new()), folder.to_owned(), Metrics::new())
}

/// Creates the failure of a command that needs a value when there is no local store yet.
pub(crate) fn nothing_stored(settings: &StorageSettings) -> Failure {
    let folder = objects(&settings.local_storage_path);
    let why = format!("nothing is stored under {}; is local_storage_path the right one?", folder.display());
    Failure::new(Code::NoInput, why)
}
