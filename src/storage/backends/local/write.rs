//! The commit protocol of writes and deletes.
//!
//! A write has these steps: temporary file written and synced → lock of the key's shard → condition → commit guard →
//! rename → unlock → folder synced. The lock is held only for the three steps in the middle, so neither the data nor
//! the folder is synced under it. A delete has the same steps without the file.

use std::fs;
use std::io;
use std::path::Path;

use super::{Root, TRIES, fault, header, read};
use crate::storage::backend::{Condition, DeleteOptions, Removal};
use crate::storage::commit_guard::CommitGuard;
use crate::storage::error::{Error, ErrorKind, Operation, Result};
use crate::storage::files::{AtomicFile, shortage};
use crate::storage::object::{Attributes, Key, Object};

/// The state of the key that the commit requires.
#[derive(Clone, Copy, Debug)]
pub(super) enum Needs<'a> {
    /// A state for which the condition holds.
    Condition(&'a Condition),
    /// Exactly this state, expired or not, or no object.
    State(Option<&'a str>),
}

impl Needs<'_> {
    fn check(self, operation: Operation, key: &Key, present: Option<&Attributes>) -> Result<()> {
        match self {
            Self::Condition(condition) => condition.check(operation, key, present),
            Self::State(wanted) if wanted == present.map(|present| present.generation.as_str()) => Ok(()),
            Self::State(_) => {
                let why = "somebody else changed the key first; stat it and decide again";
                Err(Error::new(ErrorKind::Precondition, operation, Some(key), why))
            }
        }
    }
}

impl Root {
    pub(super) fn put(&self, key: &Key, object: &Object, needs: Needs<'_>, commit_guard: &CommitGuard) -> Result<()> {
        let path = self.path(key);
        let folder = path.parent().unwrap_or(&self.root);
        let head = header::encode(key, &object.attributes)
            .map_err(|why| Error::new(ErrorKind::Invalid, Operation::Store, Some(key), why))?;
        let failed = |error| fault(Operation::Store, Some(key), &path, error);
        let stage = || -> Result<AtomicFile> {
            let mut file = self.staging.create(&path).map_err(failed)?;
            let checksum = file.write_blocking(&head, &object.payload).map_err(failed)?;
            file.sync().map_err(failed)?;
            if checksum == object.attributes.stored_checksum {
                return Ok(file);
            }
            let why = "the source changed while it was stored; store it again";
            Err(Error::new(ErrorKind::Integrity, Operation::Store, Some(key), why))
        };
        let mut file = stage()?;
        let mut tries = 0;
        loop {
            let committed = self.commit(key, needs, Operation::Store, || {
                if commit_guard.commit() { Ok(file.rename()) } else { Err(Error::abandoned(Operation::Store, key)) }
            })?;
            tries += 1;
            match committed {
                Ok(()) => break,
                // The folder is new, or somebody removed it, or a sweep removed the file.
                Err(error) if error.kind() == io::ErrorKind::NotFound && tries < TRIES => {
                    if file.is_gone().map_err(failed)? {
                        file = stage()?;
                    }
                    self.folders.create(folder).map_err(failed)?;
                }
                Err(error) => return Err(failed(error)),
            }
        }
        self.sync(folder).map_err(failed)
    }

    pub(super) fn delete(&self, key: &Key, options: &DeleteOptions) -> Result<Removal> {
        let path = self.path(key);
        let failed = |error| fault(Operation::Delete, Some(key), &path, error);
        let condition = options.generation.clone().map_or(Condition::Always, Condition::Generation);
        let removed = self.commit(key, Needs::Condition(&condition), Operation::Delete, || {
            if options.commit_guard.commit() {
                Ok(fs::remove_file(&path))
            } else {
                Err(Error::abandoned(Operation::Delete, key))
            }
        })?;
        let removed = match removed {
            Ok(()) => true,
            Err(error) if is_absent(&error) => false,
            Err(error) => return Err(failed(error)),
        };
        // The folder is synced also when no object was there, because the removal by another process may not be synced
        // yet.
        self.sync(path.parent().unwrap_or(&self.root)).map_err(failed)?;
        Ok(Removal { found: removed, pending: false })
    }

    /// Runs the visible step under the key's lock, if the required state is there.
    pub(super) fn commit<T>(
        &self,
        key: &Key,
        needs: Needs<'_>,
        operation: Operation,
        step: impl FnOnce() -> Result<T>,
    ) -> Result<T> {
        let path = self.path(key);
        let held = self.locks.lock(key).map_err(|error| fault(operation, Some(key), &path, error))?;
        // Unconditional writes and deletes do not read the object, so that they can replace a damaged one.
        if !matches!(needs, Needs::Condition(Condition::Always)) {
            let present = read::attributes(&path, key).map_err(|fault| Self::unread(operation, key, &path, fault))?;
            // A delete accepts a missing object.
            if present.is_some() || operation != Operation::Delete {
                needs.check(operation, key, present.as_ref())?;
            }
        }
        let done = step();
        drop(held);
        done
    }

    /// Syncs a folder after a change that is visible already.
    ///
    /// A folder that does not exist, or is in memory, needs no sync.
    pub(super) fn sync(&self, folder: &Path) -> io::Result<()> {
        if self.in_memory {
            return Ok(());
        }
        match shortage::retry(|| self.folders.sync(folder), || self.locks.close_unused()) {
            Err(error) if is_absent(&error) => Ok(()),
            result => result.map_err(shortage::not_retried),
        }
    }
}

fn is_absent(error: &io::Error) -> bool {
    matches!(error.kind(), io::ErrorKind::NotFound | io::ErrorKind::NotADirectory)
}
