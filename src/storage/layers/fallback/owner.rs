//! The owner of an overlay, written down for people, because the folder's name does not tell.

use serde::{Deserialize, Serialize};

use super::Fallback;
use crate::storage::error::{Error, ErrorKind, Operation, Result};

/// The bucket that an overlay belongs to.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Owner {
    /// `gcs` or `s3`.
    pub backend: String,
    /// The server, where it is not the backend's own.
    pub endpoint: Option<String>,
    /// Name of the bucket.
    pub bucket: String,
}

impl Fallback {
    /// Writes the owner into the overlay's folder, unless it is written there already. Blocks.
    ///
    /// # Errors
    ///
    /// The errors of the file system.
    pub fn record_owner(&self, owner: &Owner) -> Result<()> {
        let line = serde_json::to_string(owner).map_err(|error| {
            Error::new(
                ErrorKind::Io,
                Operation::Probe,
                None,
                format!("the overlay's owner cannot be written as JSON: {error}"),
            )
        })?;
        self.overlay.files().record_owner(&line)
    }

    /// Reads the owner of the overlay; `None` where it is not written, or cannot be parsed. Blocks.
    ///
    /// # Errors
    ///
    /// The errors of the file system.
    pub fn owner(&self) -> Result<Option<Owner>> {
        let line = self.overlay.files().owner()?;
        Ok(line.and_then(|line| serde_json::from_str(&line).ok()))
    }
}
