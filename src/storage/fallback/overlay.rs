//! The overlay: a folder that holds what has not reached the bucket yet.

use std::fs::File;
use std::path::PathBuf;
use std::sync::Arc;
use std::time::Duration;

use jiff::Timestamp;
use tokio::time::sleep;
use uuid::Uuid;

use super::Conflict;
use crate::storage::local::Mark;
use crate::storage::{
    Attributes, Backend, Checksum, Delete, ErrorKind, Fence, Foreign, Key, Kind, Listing, Local, Metered, Object, Page,
    Put, Result, Seen, Want,
};
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
    origin: String,
}

impl Overlay {
    /// Opens the folder, making it when missing. Blocks.
    pub(super) fn open(folder: PathBuf, metrics: &Metrics) -> Result<Self> {
        let files = Local::open(folder)?;
        let origin = files.identity()?;
        Ok(Self::over(files, origin, metrics))
    }

    /// Opens the folder if it is there; makes nothing. Blocks.
    pub(super) fn open_existing(folder: PathBuf, metrics: &Metrics) -> Result<Option<Self>> {
        let Some(files) = Local::open_existing(folder)? else { return Ok(None) };
        // Without one nothing has been written yet; nobody else can have this one.
        let origin = files.known_identity()?.unwrap_or_else(|| Uuid::new_v4().simple().to_string());
        Ok(Some(Self::over(files, origin, metrics)))
    }

    fn over(files: Local, origin: String, metrics: &Metrics) -> Self {
        let metered = Metered::new(Arc::new(files.clone()), telemetry::Backend::Overlay, metrics.clone());
        Self { files, metered, origin }
    }

    pub(super) fn origin(&self) -> &str {
        &self.origin
    }

    pub(super) fn files(&self) -> &Local {
        &self.files
    }

    /// Reads the attributes of the key's entry.
    pub(super) async fn look(&self, key: &Key) -> Result<Option<Attributes>> {
        self.metered.stat(key).await
    }

    /// Reads the key's entry.
    pub(super) async fn get(&self, key: &Key, want: Want) -> Result<Option<Object>> {
        self.metered.get(key, want).await
    }

    pub(super) async fn list(&self, page: &Page) -> Result<Listing> {
        self.metered.list(page).await
    }

    pub(super) async fn flush(&self, key: &Key) -> Result<()> {
        self.metered.flush(key).await
    }

    /// Puts an entry in the place of this very one, or of none; else it is [`ErrorKind::Precondition`].
    pub(super) async fn exchange(
        &self,
        key: &Key,
        object: Object,
        present: Option<&Attributes>,
        fence: &Fence,
    ) -> Result<()> {
        let bytes = object.payload.len();
        let present = present.map(|present| present.generation.clone());
        let exchange = self.files.exchange(key, object, present, fence.clone());
        self.metered.measure_put(bytes, exchange).await.map(|_| ())
    }

    /// Puts an entry in the place of whatever is there, also of what cannot be read.
    pub(super) async fn replace(&self, key: &Key, object: Object, fence: &Fence) -> Result<()> {
        self.metered.put(key, object, Put { fence: fence.clone(), ..Put::default() }).await.map(|_| ())
    }

    /// Makes the entry that says the key was deleted.
    pub(super) fn tombstone(&self, stored_at: Timestamp) -> Object {
        let payload = bytes::Bytes::new();
        let checksum = Checksum::of(&payload);
        let attributes = Attributes {
            kind: Kind::Bytes,
            content_type: "application/octet-stream".to_owned(),
            size: 0,
            checksum,
            stored_size: 0,
            stored_checksum: checksum,
            compression: None,
            encrypted: false,
            generation: Uuid::new_v4().simple().to_string(),
            operation_id: None,
            metadata: None,
            stored_at,
            expires_at: None,
            origin: Some(self.origin.clone()),
            tombstone: true,
            foreign: Foreign::default(),
            seen: Seen::default(),
        };
        Object { attributes, payload: payload.into() }
    }

    /// Removes this very entry; a newer one stays.
    pub(super) async fn settle(&self, key: &Key, generation: String) -> Result<()> {
        let how = Delete { generation: Some(generation), ..Delete::default() };
        match self.metered.delete(key, how).await {
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
    pub(super) async fn waiting(&self) -> Result<Vec<Mark>> {
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
        let asides = self.files.asides().await?;
        Ok(asides.into_iter().map(Conflict::from).collect())
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
