//! The two files that identify a root: its writer id, the same for every process that shares it, and its owner.

use std::fs;
use std::io;
use std::path::Path;

use bytes::Bytes;
use uuid::Uuid;

use super::{Local, Root, fault, names};
use crate::storage::error::{Operation, Result};
use crate::storage::object::Payload;

/// Name of the lock under which the id is made.
const LOCK: &str = "origin";

impl Local {
    /// Returns the root's id; makes one when there is none. Blocks.
    pub(in crate::storage) fn identity(&self) -> Result<String> {
        self.0.identity().map_err(|error| fault(Operation::Probe, None, &self.0.root.join(names::WRITER_ID), error))
    }

    /// Returns the root's id if there is one; makes none. Blocks.
    pub(in crate::storage) fn known_identity(&self) -> Result<Option<String>> {
        self.0
            .read_identity()
            .map_err(|error| fault(Operation::Probe, None, &self.0.root.join(names::WRITER_ID), error))
    }

    /// Writes the owner of the root, unless it is written already. Blocks.
    pub(in crate::storage) fn record_owner(&self, line: &str) -> Result<()> {
        let path = self.0.root.join(names::BUCKET);
        let write = || -> io::Result<()> {
            if path.try_exists()? {
                return Ok(());
            }
            let text = format!("{line}\n");
            // Two processes that do this at once write the same text.
            self.0.write_whole(&path, &text)
        };
        write().map_err(|error| fault(Operation::Probe, None, &path, error))
    }

    /// Reads the owner of the root, if it is written. Blocks.
    pub(in crate::storage) fn owner(&self) -> Result<Option<String>> {
        let path = self.0.root.join(names::BUCKET);
        match fs::read(&path) {
            Ok(bytes) => Ok(Some(String::from_utf8_lossy(&bytes).trim_end().to_owned())),
            Err(error) if error.kind() == io::ErrorKind::NotFound => Ok(None),
            Err(error) => Err(fault(Operation::Probe, None, &path, error)),
        }
    }
}

impl Root {
    fn identity(&self) -> io::Result<String> {
        if let Some(known) = self.read_identity()? {
            return Ok(known);
        }
        let held = self.locks.wait(LOCK)?;
        if let Some(known) = self.read_identity()? {
            return Ok(known);
        }
        let made = Uuid::new_v4().simple().to_string();
        self.write_whole(&self.root.join(names::WRITER_ID), &format!("{made}\n"))?;
        drop(held);
        Ok(made)
    }

    /// Writes a file of the root, whole or not at all, and syncs it.
    fn write_whole(&self, path: &Path, text: &str) -> io::Result<()> {
        let mut file = self.staging.create(path)?;
        file.write_blocking(text.as_bytes(), &Payload::Memory(Bytes::new()))?;
        file.commit()
    }

    fn read_identity(&self) -> io::Result<Option<String>> {
        let path = self.root.join(names::WRITER_ID);
        let text = match fs::read(&path) {
            Err(error) if error.kind() == io::ErrorKind::NotFound => return Ok(None),
            text => text?,
        };
        let id = std::str::from_utf8(&text).ok().and_then(|text| Uuid::parse_str(text.trim()).ok());
        if id.is_none() {
            tracing::warn!(path = %path.display(), "the overlay's id cannot be read and is replaced by a new one");
        }
        Ok(id.map(|id| id.simple().to_string()))
    }
}

#[cfg(test)]
mod tests {
    use std::collections::HashSet;

    use super::*;

    #[test]
    fn concurrent_openers_of_a_root_get_the_same_id() {
        let folder = tempfile::tempdir().unwrap();
        let root = || Local::open(folder.path().join("overlay")).unwrap();
        assert_eq!(root().known_identity().unwrap(), None);
        let ids: HashSet<String> = std::thread::scope(|scope| {
            let asking: Vec<_> = (0..8).map(|_| scope.spawn(|| root().identity().unwrap())).collect();
            asking.into_iter().map(|asking| asking.join().unwrap()).collect()
        });
        assert_eq!(ids.len(), 1);
        assert_eq!(root().known_identity().unwrap(), ids.into_iter().next());
        fs::write(root().root().join(names::WRITER_ID), "").unwrap();
        let again = root().identity().unwrap();
        assert_eq!((again.len(), root().identity().unwrap()), (32, again));
    }
}
