//! The overlay: a folder of writes and deletes that are not yet in the bucket.

use std::fs::File;
use std::path::PathBuf;
use std::sync::Arc;
use std::time::Duration;

use jiff::Timestamp;
use tokio::time::sleep;
use uuid::Uuid;

use super::Conflict;
use crate::storage::backend::{Backend, CopySource, DeleteOptions, GetOptions, Listing, Page, PutOptions};
use crate::storage::backends::Local;
use crate::storage::backends::local::PendingEntry;
use crate::storage::commit_guard::CommitGuard;
use crate::storage::error::{ErrorKind, Result};
use crate::storage::layers::Metered;
use crate::storage::object::{Attributes, Checksum, Key, Kind, Object};
use crate::telemetry::{self, Metrics};

/// Name of the lock that a sync pass holds.
const SYNC_LOCK: &str = "sync";

/// How often a waiting sync pass tries to take the lock.
const LOCK_INTERVAL: Duration = Duration::from_millis(100);

/// Names the folder of a bucket's overlay: the same name for the same three arguments, in every version of this
/// program.
///
/// `endpoint` is empty where the backend's own endpoint is used.
#[must_use]
pub fn overlay_folder(backend: &str, endpoint: &str, bucket: &str) -> String {
    let name = format!("{backend}\n{endpoint}\n{bucket}");
    Uuid::new_v5(&Uuid::NAMESPACE_OID, name.as_bytes()).simple().to_string()
}

/// The number, size and age of the pending entries of an overlay.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Pending {
    /// The number of writes and deletes.
    pub entries: u64,
    /// The bytes of their payloads.
    pub bytes: u64,
    /// The stamp of the oldest write or delete.
    pub oldest: Option<Timestamp>,
}

/// A folder whose objects are pending writes and whose tombstones are pending deletes.
#[derive(Debug)]
pub(super) struct Overlay {
    files: Local,
    metered: Metered,
    /// The id that all workers on the folder write into objects.
    writer_id: String,
}

impl Overlay {
    /// Opens the folder; creates it when missing. Blocks.
    pub(super) fn open(folder: PathBuf, metrics: &Metrics) -> Result<Self> {
        let files = Local::open(folder)?;
        let writer_id = files.identity()?;
        Ok(Self::over(files, writer_id, metrics))
    }

    /// Opens the folder if it exists; creates nothing. Blocks.
    pub(super) fn open_existing(folder: PathBuf, metrics: &Metrics) -> Result<Option<Self>> {
        let Some(files) = Local::open_existing(folder)? else { return Ok(None) };
        // Without an id nothing has been written yet. A new id is unique.
        let writer_id = files.known_identity()?.unwrap_or_else(|| Uuid::new_v4().simple().to_string());
        Ok(Some(Self::over(files, writer_id, metrics)))
    }

    fn over(files: Local, writer_id: String, metrics: &Metrics) -> Self {
        let metered = Metered::new(Arc::new(files.clone()), telemetry::BackendLabel::Overlay, metrics.clone());
        Self { files, metered, writer_id }
    }

    pub(super) fn writer_id(&self) -> &str {
        &self.writer_id
    }

    pub(super) fn files(&self) -> &Local {
        &self.files
    }

    /// Reads the attributes of the key's entry.
    pub(super) async fn stat(&self, key: &Key) -> Result<Option<Attributes>> {
        self.metered.stat(key).await
    }

    /// Reads the key's entry.
    pub(super) async fn get(&self, key: &Key, options: GetOptions) -> Result<Option<Object>> {
        self.metered.get(key, options).await
    }

    pub(super) async fn list(&self, page: &Page) -> Result<Listing> {
        self.metered.list(page).await
    }

    pub(super) async fn flush(&self, key: &Key) -> Result<()> {
        self.metered.flush(key).await
    }

    /// Replaces exactly this entry, or no entry; fails with [`ErrorKind::Precondition`] where another one is there.
    pub(super) async fn replace_state(
        &self,
        key: &Key,
        object: &Object,
        present: Option<&Attributes>,
        commit_guard: &CommitGuard,
    ) -> Result<()> {
        let bytes = object.payload.len();
        let present = present.map(|present| present.generation.clone());
        let write = self.files.replace_state(key, object, present, commit_guard);
        self.metered.measure_put(bytes, write).await.map(drop)
    }

    /// Replaces whatever entry the key has, also one that cannot be read.
    pub(super) async fn replace(&self, key: &Key, object: &Object, commit_guard: &CommitGuard) -> Result<()> {
        let options = PutOptions { commit_guard: commit_guard.clone(), ..PutOptions::default() };
        self.metered.put(key, object, &options).await.map(drop)
    }

    /// Replaces the attributes of exactly this entry, whose bytes stay as they are; `None` where another one is there.
    pub(super) async fn rewrite(&self, key: &Key, attributes: &Attributes) -> Result<Option<Attributes>> {
        let source = CopySource::of(key, attributes);
        self.metered.copy(&source, key, attributes, &PutOptions::default()).await
    }

    /// Makes the tombstone of a delete.
    pub(super) fn tombstone(&self, stored_at: Timestamp) -> Object {
        let payload = bytes::Bytes::new();
        let checksum = Checksum::of(&payload);
        let attributes = Attributes {
            stored_at,
            writer_id: Some(self.writer_id.clone()),
            tombstone: true,
            ..Attributes::new(Kind::Bytes, Kind::Bytes.content_type().to_owned(), 0, checksum)
        };
        Object { attributes, payload: payload.into() }
    }

    /// Removes exactly this entry. A newer entry of the key stays.
    pub(super) async fn remove(&self, key: &Key, generation: String) -> Result<()> {
        let options = DeleteOptions { generation: Some(generation), ..DeleteOptions::default() };
        match self.metered.delete(key, &options).await {
            Err(error) if error.kind == ErrorKind::Precondition => Ok(()),
            result => result.map(|_| ()),
        }
    }

    /// Tells whether the overlay has no entries, without reading all of them.
    pub(super) async fn is_empty(&self) -> Result<bool> {
        let first = Page { limit: Some(1), ..Page::default() };
        Ok(self.files.list(&first).await?.entries.is_empty())
    }

    /// Lists every pending entry, the oldest first. Entries that cannot be read come before all others.
    pub(super) async fn waiting(&self) -> Result<Vec<PendingEntry>> {
        let mut entries = self.files.survey().await?;
        entries.sort_by_key(|entry| entry.stored_at);
        Ok(entries)
    }

    /// Counts the pending entries.
    pub(super) async fn pending(&self) -> Result<Pending> {
        let entries = self.files.survey().await?;
        Ok(Pending {
            entries: entries.len() as u64,
            bytes: entries.iter().map(|entry| entry.stored_size).sum(),
            oldest: entries.iter().filter_map(|entry| entry.stored_at).min(),
        })
    }

    /// Lists the writes in quarantine.
    pub(super) async fn conflicts(&self) -> Result<Vec<Conflict>> {
        let quarantined = self.files.quarantined().await?;
        Ok(quarantined.into_iter().map(Conflict::from).collect())
    }

    /// Takes the lock of a sync pass, if no pass in this process or another has it. The lock ends when it is dropped,
    /// or with its process.
    pub(super) async fn try_lock(&self) -> Result<Option<File>> {
        self.files.try_lock(SYNC_LOCK).await
    }

    /// Waits for the lock of a sync pass.
    pub(super) async fn wait_lock(&self) -> Result<File> {
        // A thread that waits for the lock could not be cancelled.
        loop {
            match self.try_lock().await? {
                Some(lock) => return Ok(lock),
                None => sleep(LOCK_INTERVAL).await,
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_bucket_has_one_folder_in_every_version() {
        assert_eq!(overlay_folder("gcs", "", "reports"), "9f9ea4542ba0580f8838c702ac3e8325");
        let names = [("gcs", "", "a"), ("s3", "", "a"), ("gcs", "http://x", "a"), ("gcs", "", "b"), ("gcs", "a", "")]
            .map(|(backend, endpoint, bucket)| overlay_folder(backend, endpoint, bucket));
        assert!(names.iter().enumerate().all(|(at, name)| !names[..at].contains(name)), "{names:?}");
    }
}
