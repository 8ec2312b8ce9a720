//! Whose an overlay is, for people: the name of its folder does not tell.

use serde::{Deserialize, Serialize};

use super::Fallback;
use crate::storage::error::{Error, ErrorKind, Operation, Result};

/// The bucket an overlay belongs to.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Owner {
    /// `gcs` or `s3`.
    pub backend: String,
    /// Server, where it is not the backend's own.
    pub endpoint: Option<String>,
    /// Name of the bucket.
    pub bucket: String,
}

impl Fallback {
    /// Has the overlay's folder say whose it is, unless it does already. Blocks.
    ///
    /// # Errors
    ///
    /// What the file system fails with.
    pub fn say_owner(&self, owner: &Owner) -> Result<()> {
        let line = serde_json::to_string(owner).map_err(|error| {
            Error::new(ErrorKind::Io, Operation::Probe, None, format!("the bucket cannot be written down: {error}"))
        })?;
        self.overlay.files().say_owner(&line)
    }

    /// Reads whose the overlay is; nothing where its folder does not say, or not in words that are understood. Blocks.
    ///
    /// # Errors
    ///
    /// What the file system fails with.
    pub fn owner(&self) -> Result<Option<Owner>> {
        let line = self.overlay.files().owner()?;
        Ok(line.and_then(|line| serde_json::from_str(&line).ok()))
    }
}
