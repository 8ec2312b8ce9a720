//! The folders below `local_storage_path`.

use std::path::{Path, PathBuf};

use crate::config::{JOURNAL, OBJECTS, OVERLAY, SPOOL, StorageSettings};
use crate::provider::Provider;
use crate::storage::{Owner, Spool};

/// The folders of this program. Whatever else lies there was written by the Python class `FileStorage`.
pub(crate) const OWN: &[&str] = &[JOURNAL, OBJECTS, OVERLAY, SPOOL];

/// Returns the folder of the overlay of a bucket.
pub(crate) fn overlay(settings: &StorageSettings, provider: Provider, name: &str) -> PathBuf {
    overlays(settings).join(overlay_name(settings, provider, name))
}

/// Returns the folder that holds the overlays of all buckets.
pub(crate) fn overlays(settings: &StorageSettings) -> PathBuf {
    settings.local_storage_path.join(OVERLAY)
}

/// Returns the name of the overlay of a bucket, below [`overlays`].
pub(crate) fn overlay_name(settings: &StorageSettings, provider: Provider, name: &str) -> String {
    let Owner { backend, endpoint, bucket } = owner(settings, provider, name);
    crate::storage::overlay_folder(&backend, endpoint.as_deref().unwrap_or_default(), &bucket)
}

/// Returns the name of the store in announcements between workers: a hash of the backend and the bucket.
///
/// The endpoint does not count, for workers on one bucket may reach it at different addresses. Two buckets of one name cost
/// no more than values that are dropped from a cache needlessly.
pub(crate) fn store_id(settings: &StorageSettings) -> String {
    let (backend, bucket) = match settings.bucket() {
        Some((provider, name)) => (provider.scheme(), name),
        None => ("local", ""),
    };
    crate::storage::overlay_folder(backend, "", bucket)
}

/// Returns the identity of a bucket: backend, endpoint and name.
pub(crate) fn owner(settings: &StorageSettings, provider: Provider, name: &str) -> Owner {
    let (backend, endpoint) = match provider {
        Provider::Gcs => ("gcs", &settings.gcs.emulator),
        Provider::S3 => ("s3", &settings.s3.endpoint),
    };
    Owner { backend: backend.to_owned(), endpoint: endpoint.clone(), bucket: name.to_owned() }
}

/// Returns the spool, the folder of files without a name for large values on their way.
pub(crate) fn spool(settings: &StorageSettings) -> Spool {
    Spool::new(settings.local_storage_path.join(SPOOL))
}

/// Returns the folder of the local store; `path` is `local_storage_path`.
pub(crate) fn objects(path: &Path) -> PathBuf {
    path.join(OBJECTS)
}
