//! The commit protocol of writes and deletes.
//!
//! A write: temporary file, written and synced → lock of the key's shard → condition → commit_guard → rename → unlock → folder
//! synced. The lock is held for the three steps in the middle alone, so neither the data nor the folder is synced under
//! it. A delete is the same without the file.

use std::fs;
use std::io;
use std::path::Path;

use super::temporary::Temporary;
use super::{Root, TRIES, fault, header, read};
use crate::storage::backend::{Condition, DeleteOptions, Removal};
use crate::storage::commit_guard::CommitGuard;
use crate::storage::error::{Error, ErrorKind, Operation, Result};
use crate::storage::files::shortage;
use crate::storage::object::{Attributes, Checksum, Key, Object};

/// What must be there for the visible step to be taken.
#[derive(Clone, Copy, Debug)]
pub(super) enum Needs<'a> {
    /// What the condition says.
    Condition(&'a Condition),
    /// This very state, expired or not, or nothing at all.
    State(Option<&'a str>),
}

impl Needs<'_> {
    fn check(self, operation: Operation, key: &Key, present: Option<&Attributes>) -> Result<()> {
        match self {
            Self::Condition(condition) => condition.check(operation, key, present),
            Self::State(wanted) if wanted == present.map(|present| present.generation.as_str()) => Ok(()),
            Self::State(_) => {
                let why = "somebody else was quicker; look again and decide again";
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
        let write = || self.temporary.write(&head, &object.payload);
        let checked = |written: (Temporary, Checksum)| match written {
            (temporary, checksum) if checksum == object.attributes.stored_checksum => Ok(temporary),
            _ => {
                let why = "the source changed while it was stored; store it again";
                Err(Error::new(ErrorKind::Integrity, Operation::Store, Some(key), why))
            }
        };
        let mut temporary = checked(write().map_err(failed)?)?;
        let mut tries = 0;
        loop {
            let committed = self.commit(key, needs, Operation::Store, || {
                if commit_guard.commit() {
                    Ok(temporary.rename(&path))
                } else {
                    Err(Error::abandoned(Operation::Store, key))
                }
            })?;
            tries += 1;
            match committed {
                Ok(()) => break,
                // The folder is new, or somebody removed it, or swept the file.
                Err(error) if error.kind() == io::ErrorKind::NotFound && tries < TRIES => {
                    if temporary.is_gone().map_err(failed)? {
                        temporary = checked(write().map_err(failed)?)?;
                    }
                    self.folders.create(folder).map_err(failed)?;
                }
                Err(error) => return Err(failed(error)),
            }
        }
        self.sync(folder).map_err(failed)
    }

    pub(super) fn delete(&self, key: &Key, how: &DeleteOptions) -> Result<Removal> {
        let path = self.path(key);
        let failed = |error| fault(Operation::Delete, Some(key), &path, error);
        let condition = how.generation.clone().map_or(Condition::Always, Condition::Generation);
        let removed = self.commit(key, Needs::Condition(&condition), Operation::Delete, || {
            if how.commit_guard.commit() {
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
        // Also when nothing was there: whoever removed it may not have synced that yet.
        self.sync(path.parent().unwrap_or(&self.root)).map_err(failed)?;
        Ok(Removal { found: removed, pending: false })
    }

    /// Runs the visible step under the key's lock, if the condition holds.
    pub(super) fn commit<T>(
        &self,
        key: &Key,
        needs: Needs<'_>,
        operation: Operation,
        step: impl FnOnce() -> Result<T>,
    ) -> Result<T> {
        let path = self.path(key);
        let held = self.locks.lock(key).map_err(|error| fault(operation, Some(key), &path, error))?;
        // Unconditional writes and deletes do not look, so that they mend what is damaged.
        if !matches!(needs, Needs::Condition(Condition::Always)) {
            let present = read::attributes(&path, key).map_err(|fault| Self::unread(operation, key, &path, fault))?;
            // A delete is content with a missing object.
            if present.is_some() || operation != Operation::Delete {
                needs.check(operation, key, present.as_ref())?;
            }
        }
        let done = step();
        drop(held);
        done
    }

    /// Syncs a folder in which something was done that is seen already; one that does not exist has nothing to sync, nor has one
    /// in memory.
    pub(super) fn sync(&self, folder: &Path) -> io::Result<()> {
        if self.in_memory {
            return Ok(());
        }
        match shortage::outlast(|| self.folders.sync(folder), || self.locks.let_go()) {
            Err(error) if is_absent(&error) => Ok(()),
            result => result.map_err(shortage::settled),
        }
    }
}

fn is_absent(error: &io::Error) -> bool {
    matches!(error.kind(), io::ErrorKind::NotFound | io::ErrorKind::NotADirectory)
}
