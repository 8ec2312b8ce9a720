//! The overlay: a folder that holds what has not reached the bucket yet.

use std::fs::File;
use std::path::PathBuf;
use std::sync::Arc;
use std::time::Duration;

use jiff::Timestamp;
use tokio::time::sleep;
use uuid::Uuid;

use super::Conflict;
use crate::storage::backend::{Backend, DeleteOptions, GetOptions, Listing, Page, PutOptions};
use crate::storage::backends::Local;
use crate::storage::backends::local::PendingEntry;
use crate::storage::commit_guard::CommitGuard;
use crate::storage::error::{ErrorKind, Result};
use crate::storage::layers::Metered;
use crate::storage::object::{Attributes, Checksum, Key, Kind, Object};
use crate::telemetry::{self, Metrics};

/// Name of the lock under which one pass of synchronization runs.
const TURN: &str = "sync";

/// How often a waiting pass asks whether it is its turn.
const PATIENCE: Duration = Duration::from_millis(100);

/// Names the folder of a bucket's overlay: the same for the same three, in every version of this program.
///
/// `endpoint` is empty where the backend's own is meant.
#[must_use]
pub fn overlay_folder(backend: &str, endpoint: &str, bucket: &str) -> String {
    let name = format!("{backend}\n{endpoint}\n{bucket}");
    Uuid::new_v5(&Uuid::NAMESPACE_OID, name.as_bytes()).simple().to_string()
}

/// What waits in an overlay.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Pending {
    /// Writes and deletes.
    pub entries: u64,
    /// Bytes of their payload.
    pub bytes: u64,
    /// When the oldest was stored or deleted.
    pub oldest: Option<Timestamp>,
}

/// A folder whose objects are writes, and whose tombstones are deletes, that wait to be sent.
#[derive(Debug)]
pub(super) struct Overlay {
    files: Local,
    metered: Metered,
    /// Id that everybody who shares the folder writes into objects.
    writer_id: String,
}

impl Overlay {
    /// Opens the folder, making it when missing. Blocks.
    pub(super) fn open(folder: PathBuf, metrics: &Metrics) -> Result<Self> {
        let files = Local::open(folder)?;
        let writer_id = files.identity()?;
        Ok(Self::over(files, writer_id, metrics))
    }

    /// Opens the folder if it is there; makes nothing. Blocks.
    pub(super) fn open_existing(folder: PathBuf, metrics: &Metrics) -> Result<Option<Self>> {
        let Some(files) = Local::open_existing(folder)? else { return Ok(None) };
        // Without one nothing has been written yet; nobody else can have this one.
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
    pub(super) async fn look(&self, key: &Key) -> Result<Option<Attributes>> {
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

    /// Puts an entry in the place of this very one, or of none; else it is [`ErrorKind::Precondition`].
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

    /// Puts an entry in the place of whatever is there, also of what cannot be read.
    pub(super) async fn replace(&self, key: &Key, object: &Object, commit_guard: &CommitGuard) -> Result<()> {
        let options = PutOptions { commit_guard: commit_guard.clone(), ..PutOptions::default() };
        self.metered.put(key, object, &options).await.map(drop)
    }

    /// Makes the entry that says the key was deleted.
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

    /// Removes this very entry; a newer one stays.
    pub(super) async fn settle(&self, key: &Key, generation: String) -> Result<()> {
        let options = DeleteOptions { generation: Some(generation), ..DeleteOptions::default() };
        match self.metered.delete(key, &options).await {
            Err(error) if error.kind == ErrorKind::Precondition => Ok(()),
            result => result.map(|_| ()),
        }
    }

    /// Tells whether nothing waits, without looking at all of it.
    pub(super) async fn is_empty(&self) -> Result<bool> {
        let first = Page { limit: Some(1), ..Page::default() };
        Ok(self.files.list(&first).await?.entries.is_empty())
    }

    /// Lists every entry, the oldest first; what cannot be read comes before all.
    pub(super) async fn waiting(&self) -> Result<Vec<PendingEntry>> {
        let mut marks = self.files.survey().await?;
        marks.sort_by_key(|mark| mark.stored_at);
        Ok(marks)
    }

    /// Counts what waits.
    pub(super) async fn pending(&self) -> Result<Pending> {
        let marks = self.files.survey().await?;
        Ok(Pending {
            entries: marks.len() as u64,
            bytes: marks.iter().map(|mark| mark.stored_size).sum(),
            oldest: marks.iter().filter_map(|mark| mark.stored_at).min(),
        })
    }

    /// Lists the losers of conflicts.
    pub(super) async fn conflicts(&self) -> Result<Vec<Conflict>> {
        let quarantined = self.files.quarantined().await?;
        Ok(quarantined.into_iter().map(Conflict::from).collect())
    }

    /// Takes the turn to synchronize if nobody has it, in this process or another. Dropped, or with its process, it ends.
    pub(super) async fn turn(&self) -> Result<Option<File>> {
        self.files.turn(TURN).await
    }

    /// Waits for the turn.
    pub(super) async fn wait_turn(&self) -> Result<File> {
        // A thread that waits for the lock could not be called off.
        loop {
            match self.turn().await? {
                Some(turn) => return Ok(turn),
                None => sleep(PATIENCE).await,
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
