//! The files of the Python class `FileStorage` below `local_storage_path`, behind the objects of this program.
//!
//! ```text
//! LegacyFiles ─┬─ inner: the store, which answers first
//!              └─ folder: old files, read where the store has no object
//! ```
//!
//! An object of this program hides the file of its key. A store or delete of the key, a copy onto it, or a move of
//! it removes the file and its sidecar; nothing else does. A delete removes the file before the object, so that no crash in between makes an older value
//! visible again. A conditional write or delete holds a lock on the file itself, which every process of this program
//! respects.
//!
//! A file is presented as the class would have put it into a bucket: the stored bytes, the coding, the metadata.
//! [`LegacyValues`](super::LegacyValues) above the codecs makes the value of it.
//!
//! A file that the configuration names is never one of a key, though it may lie in the root: it holds a secret.
//!
//! Where nothing but this program's own folders lies in the root, an operation costs one look at the root's times.

mod description;
mod folder;
mod own;
mod root_check;
mod survey;
mod walk;

use std::fmt;
use std::io;
use std::path::PathBuf;
use std::sync::Arc;

use async_trait::async_trait;
use jiff::Timestamp;

use self::folder::{HeldFile, LegacyFault, LegacyFolder};
pub use self::own::OwnEntries;
pub use self::survey::Survey;
use crate::storage::backend::{
    Backend, Condition, CopySource, Deferral, DeleteOptions, GetOptions, Grant, Listing, Page, Probe, PutOptions,
    Removal, Versions, VersionsRequest,
};
use crate::storage::commit_guard::CommitGuard;
use crate::storage::error::{Error, ErrorKind, Operation, Result};
use crate::storage::files::spool::spool_fault;
use crate::storage::files::{FILE_OPERATIONS, Spool, shortage};
use crate::storage::layers::listings;
use crate::storage::object::{Attributes, Key, Object, payload};
use crate::storage::reading::damaged;

/// A backend behind which old files of the Python class are found.
#[derive(Clone, Debug)]
pub struct LegacyFiles {
    inner: Arc<dyn Backend>,
    /// The way to the overlay, where there is one.
    deferral: Option<Arc<dyn Deferral>>,
    folder: Arc<LegacyFolder>,
}

/// A locked file. Dropping it releases the lock.
#[derive(Debug)]
pub struct LegacyLock {
    key: Key,
    held: HeldFile,
}

impl LegacyFiles {
    /// Puts the files below `root` behind a backend. The root need not exist.
    ///
    /// `own` is what in the root is no value. Bytes of large files pass through the spool.
    #[must_use]
    pub fn new(inner: Arc<dyn Backend>, root: impl Into<PathBuf>, own: OwnEntries, spool: Spool) -> Self {
        Self { inner, deferral: None, folder: Arc::new(LegacyFolder::new(root.into(), own, spool)) }
    }

    /// Names the way to the overlay below, past which no deferred write or delete may go.
    #[must_use]
    pub fn with_deferral(self, deferral: Arc<dyn Deferral>) -> Self {
        Self { deferral: Some(deferral), ..self }
    }

    /// Tells whether anything else than this program's own folders lies in the root. Blocks.
    #[must_use]
    pub fn has_files(&self) -> bool {
        self.folder.may_have_files()
    }

    /// Locks the file of a key against the writers of this program; `None` where there is no file.
    ///
    /// # Errors
    ///
    /// The errors of the file system.
    pub async fn lock(&self, key: &Key) -> Result<Option<LegacyLock>> {
        let held = self.hold(Operation::Stat, key).await?;
        Ok(held.map(|held| LegacyLock { key: key.clone(), held }))
    }

    /// Removes a locked file with its sidecar if its state is this generation; tells whether it did.
    ///
    /// # Errors
    ///
    /// The errors of the file system.
    pub async fn remove(&self, lock: LegacyLock, generation: &str) -> Result<bool> {
        let LegacyLock { key, held } = lock;
        if held.generation() == generation { self.discard(Operation::Delete, &key, held).await } else { Ok(false) }
    }

    /// Walks all files and returns what is odd about their names.
    ///
    /// # Errors
    ///
    /// The errors of the file system.
    pub async fn survey(&self) -> Result<Survey> {
        self.on_files(Operation::List, None, LegacyFolder::survey).await
    }

    /// Removes the folders that are empty, and returns how many. Folders of this program stay.
    ///
    /// # Errors
    ///
    /// The errors of the file system.
    pub async fn remove_empty_folders(&self) -> Result<u64> {
        self.on_files(Operation::Delete, None, LegacyFolder::remove_empty_folders).await
    }

    /// Runs blocking work on the folder, which can begin again where the system lacks a resource for a moment.
    async fn on_files<T: Send + 'static>(
        &self,
        operation: Operation,
        key: Option<&Key>,
        work: impl Fn(&LegacyFolder) -> io::Result<T> + Send + 'static,
    ) -> Result<T> {
        // The semaphore is never closed.
        let permit = FILE_OPERATIONS.acquire().await.ok();
        let retried = move |folder: &LegacyFolder| {
            let _permit = permit;
            shortage::retry(|| work(folder), || {})
        };
        self.once(operation, key, retried).await
    }

    /// Runs blocking work on the folder without a permit: it may wait for a lock, and who holds that needs permits.
    async fn once<T: Send + 'static>(
        &self,
        operation: Operation,
        key: Option<&Key>,
        work: impl FnOnce(&LegacyFolder) -> io::Result<T> + Send + 'static,
    ) -> Result<T> {
        let folder = Arc::clone(&self.folder);
        payload::run_blocking(move || work(&folder)).await.map_err(|error| self.fault(operation, key, error))
    }

    fn fault(&self, operation: Operation, key: Option<&Key>, error: io::Error) -> Error {
        let place = self.folder.root().display();
        let (kind, remedy) = match error.kind() {
            io::ErrorKind::PermissionDenied => (ErrorKind::Denied, "let this user read and write there"),
            io::ErrorKind::ReadOnlyFilesystem => (ErrorKind::Denied, "make the file system writable"),
            _ => (ErrorKind::Io, "look at the folder and the disk it is on"),
        };
        let why = format!("files of the Python FileStorage below {place}: {error}; {remedy}");
        Error::new(kind, operation, key, why).with_source(error)
    }

    /// Tells whether the key has a file.
    async fn has_file(&self, operation: Operation, key: &Key) -> Result<bool> {
        // Looking at the root is one call that reads no disk: every operation uses this folder.
        if !self.folder.may_have_files() {
            return Ok(false);
        }
        let it = key.clone();
        self.on_files(operation, Some(key), move |folder| folder.has_file(&it)).await
    }

    /// Locks the file of a key.
    async fn hold(&self, operation: Operation, key: &Key) -> Result<Option<HeldFile>> {
        if !self.folder.may_have_files() {
            return Ok(None);
        }
        let it = key.clone();
        self.once(operation, Some(key), move |folder| shortage::retry(|| folder.hold(&it), || {})).await
    }

    /// Removes a file and its sidecar; tells whether the file was there.
    async fn discard(&self, operation: Operation, key: &Key, held: HeldFile) -> Result<bool> {
        let it = key.clone();
        self.once(operation, Some(key), move |folder| shortage::retry(|| folder.discard(&it, &held), || {})).await
    }

    /// Removes the file of a key that has an object now.
    async fn discard_hidden(&self, key: &Key, held: Option<HeldFile>) {
        let removed = match held {
            Some(held) => self.discard(Operation::Store, key, held).await.map(drop),
            None => match self.hold(Operation::Store, key).await {
                Ok(Some(held)) => self.discard(Operation::Store, key, held).await.map(drop),
                found => found.map(drop),
            },
        };
        // The value is stored. The file stays hidden while the key has an object, and a delete fails while it cannot be
        // removed.
        if let Err(error) = removed {
            tracing::warn!(%key, %error, "the file of the Python FileStorage stays behind the value that was stored");
        }
    }

    async fn read(&self, key: &Key, options: GetOptions) -> Result<Option<Object>> {
        let it = key.clone();
        let found = self.on_files(Operation::Retrieve, Some(key), move |folder| folder.read(&it, &options)).await?;
        self.found(Operation::Retrieve, key, found)
    }

    fn found<T>(&self, operation: Operation, key: &Key, found: Result<T, LegacyFault>) -> Result<T> {
        match found {
            Ok(found) => Ok(found),
            Err(LegacyFault::Refused(error)) => Err(error),
            Err(LegacyFault::Changing) => {
                Err(damaged(key, "the file is being written by another program").during(operation))
            }
            Err(LegacyFault::Spool(error)) => Err(spool_fault(operation, Some(key), error)),
            Err(LegacyFault::Io(error)) => Err(self.fault(operation, Some(key), error)),
        }
    }

    /// Writes an object where the key has a file and the caller a condition.
    async fn put_if(&self, key: &Key, object: &Object, options: &PutOptions, held: HeldFile) -> Result<Attributes> {
        let below = self.options_below(key, options, &held).await?;
        let stored = match self.inner.put(key, object, &below).await {
            Err(error) => return Err(self.refused_below(key, options, error).await),
            Ok(stored) => stored,
        };
        self.discard_hidden(key, Some(held)).await;
        Ok(stored)
    }

    /// Copies an object of the store where the key has a file and the caller a condition.
    async fn copy_if(
        &self,
        source: &CopySource,
        key: &Key,
        attributes: &Attributes,
        options: &PutOptions,
        held: HeldFile,
    ) -> Result<Option<Attributes>> {
        let below = self.options_below(key, options, &held).await?;
        let copied = match self.inner.copy(source, key, attributes, &below).await {
            Err(error) => return Err(self.refused_below(key, options, error).await),
            Ok(copied) => copied,
        };
        if copied.is_some() {
            self.discard_hidden(key, Some(held)).await;
        }
        Ok(copied)
    }

    /// Returns the options of a conditional write below, where the key has a file.
    async fn options_below(&self, key: &Key, options: &PutOptions, held: &HeldFile) -> Result<PutOptions> {
        if self.inner.stat(key).await.map_err(|error| error.during(Operation::Store))?.is_some() {
            return Ok(options.clone());
        }
        options.condition.check(Operation::Store, key, Some(held.attributes()))?;
        // The file is what the caller has seen. Below, the key has no object.
        Ok(PutOptions { condition: Condition::Absent, ..options.clone() })
    }

    /// Returns the error of a conditional write that was refused below, in the words of the caller's condition.
    async fn refused_below(&self, key: &Key, options: &PutOptions, error: Error) -> Error {
        if error.kind != ErrorKind::Precondition {
            return error;
        }
        match self.inner.stat(key).await {
            Ok(present) => options.condition.check(Operation::Store, key, present.as_ref()).err().unwrap_or(error),
            Err(fault) => fault.during(Operation::Store),
        }
    }
}

/// Passes the commit point of a delete, which for a key with a file is the removal of the file.
fn commit(key: &Key, guard: &CommitGuard) -> Result<()> {
    if guard.commit() { Ok(()) } else { Err(Error::abandoned(Operation::Delete, key)) }
}

impl fmt::Display for LegacyFiles {
    fn fmt(&self, formatter: &mut fmt::Formatter<'_>) -> fmt::Result {
        self.inner.fmt(formatter)
    }
}

#[async_trait]
impl Backend for LegacyFiles {
    async fn put(&self, key: &Key, object: &Object, options: &PutOptions) -> Result<Attributes> {
        if options.condition == Condition::Always {
            let has_file = self.has_file(Operation::Store, key).await?;
            let stored = self.inner.put(key, object, options).await?;
            if has_file {
                self.discard_hidden(key, None).await;
            }
            return Ok(stored);
        }
        match self.hold(Operation::Store, key).await? {
            Some(held) => self.put_if(key, object, options, held).await,
            None => self.inner.put(key, object, options).await,
        }
    }

    async fn get(&self, key: &Key, options: GetOptions) -> Result<Option<Object>> {
        if options.version.is_some() {
            // A file is no version of an object.
            return self.inner.get(key, options).await;
        }
        // Looked at first: a store that comes in between removes the file after its object has become visible.
        let has_file = self.has_file(Operation::Retrieve, key).await?;
        match self.inner.get(key, options.clone()).await? {
            None if has_file => match self.read(key, options.clone()).await? {
                None => self.inner.get(key, options).await,
                found => Ok(found),
            },
            found => Ok(found),
        }
    }

    async fn copy(
        &self,
        source: &CopySource,
        key: &Key,
        attributes: &Attributes,
        options: &PutOptions,
    ) -> Result<Option<Attributes>> {
        let copied = if options.condition == Condition::Always || source.key == *key {
            let has_file = self.has_file(Operation::Copy, key).await?;
            let copied = self.inner.copy(source, key, attributes, options).await?;
            if has_file && copied.is_some() {
                self.discard_hidden(key, None).await;
            }
            copied
        } else {
            match self.hold(Operation::Copy, key).await? {
                Some(held) => self.copy_if(source, key, attributes, options, held).await?,
                None => self.inner.copy(source, key, attributes, options).await?,
            }
        };
        if copied.is_some() || !self.has_file(Operation::Copy, &source.key).await? {
            return Ok(copied);
        }
        // The source is a file of the class.
        source.copy_through(self, key, attributes, options).await
    }

    async fn stat(&self, key: &Key) -> Result<Option<Attributes>> {
        let has_file = self.has_file(Operation::Stat, key).await?;
        match self.inner.stat(key).await? {
            None if has_file => {
                let it = key.clone();
                let found = self.on_files(Operation::Stat, Some(key), move |folder| folder.stat(&it)).await?;
                match self.found(Operation::Stat, key, found)? {
                    None => self.inner.stat(key).await,
                    found => Ok(found),
                }
            }
            found => Ok(found),
        }
    }

    async fn versions(&self, key: &Key, request: &VersionsRequest) -> Result<Versions> {
        self.inner.versions(key, request).await
    }

    async fn delete(&self, key: &Key, options: &DeleteOptions) -> Result<Removal> {
        let Some(held) = self.hold(Operation::Delete, key).await? else { return self.inner.delete(key, options).await };
        let guard = &options.commit_guard;
        let Some(generation) = &options.generation else {
            // The file may be the only copy, so the store is asked before it goes: it may refuse the delete.
            let has_object = match self.inner.stat(key).await {
                Ok(None) => self.is_pending(key).await?,
                Ok(Some(_)) => true,
                // The delete below decides.
                Err(error) if error.is_transient() || error.kind == ErrorKind::Integrity => true,
                Err(error) => return Err(error.during(Operation::Delete)),
            };
            commit(key, guard)?;
            let found = self.discard(Operation::Delete, key, held).await?;
            if !has_object {
                return Ok(Removal { found, pending: false });
            }
            let removal = self.inner.delete(key, options).await?;
            return Ok(Removal { found: removal.found || found, ..removal });
        };
        let condition = Condition::Generation(generation.clone());
        match self.inner.stat(key).await.map_err(|error| error.during(Operation::Delete))? {
            Some(present) => {
                condition.check(Operation::Delete, key, Some(&present))?;
                commit(key, guard)?;
                self.discard(Operation::Delete, key, held).await?;
                self.inner.delete(key, options).await
            }
            None => {
                condition.check(Operation::Delete, key, Some(held.attributes()))?;
                commit(key, guard)?;
                self.discard(Operation::Delete, key, held).await.map(|found| Removal { found, pending: false })
            }
        }
    }

    async fn list(&self, page: &Page) -> Result<Listing> {
        if !self.folder.may_have_files() {
            return self.inner.list(page).await;
        }
        let (inner, walked) = (self.inner.list(page), page.clone());
        // The files first, for the reason that `get` has.
        let files = self.on_files(Operation::List, None, move |folder| folder.list(&walked)).await?;
        listings::merge(inner.await?, files, page.limit)
    }

    async fn flush(&self, key: &Key) -> Result<()> {
        self.inner.flush(key).await
    }

    async fn probe(&self) -> Result<Probe> {
        self.inner.probe().await
    }

    fn validate(&self, key: &Key, attributes: &Attributes) -> Result<()> {
        self.inner.validate(key, attributes)
    }

    async fn sign(&self, key: &Key, grant: &Grant) -> Result<String> {
        self.inner.sign(key, grant).await
    }
}

impl LegacyFiles {
    fn deferral(&self, operation: Operation, key: &Key) -> Result<&Arc<dyn Deferral>> {
        let why = "there is no overlay that could keep the command; try again later";
        self.deferral.as_ref().ok_or_else(|| Error::new(ErrorKind::Unavailable, operation, Some(key), why))
    }
}

#[async_trait]
impl Deferral for LegacyFiles {
    async fn defer_put(&self, key: &Key, object: &Object, guard: &CommitGuard) -> Result<Attributes> {
        let stored = self.deferral(Operation::Store, key)?.defer_put(key, object, guard).await?;
        self.discard_hidden(key, None).await;
        Ok(stored)
    }

    async fn defer_delete(&self, key: &Key, deleted_at: Timestamp, guard: &CommitGuard) -> Result<Removal> {
        let deferral = self.deferral(Operation::Delete, key)?;
        if let Some(held) = self.hold(Operation::Delete, key).await? {
            commit(key, guard)?;
            self.discard(Operation::Delete, key, held).await?;
        }
        deferral.defer_delete(key, deleted_at, guard).await
    }

    async fn is_pending(&self, key: &Key) -> Result<bool> {
        match &self.deferral {
            Some(deferral) => deferral.is_pending(key).await,
            None => Ok(false),
        }
    }

    fn may_have_entry(&self, key: &Key) -> bool {
        self.deferral.as_ref().is_some_and(|deferral| deferral.may_have_entry(key))
    }
}

#[cfg(test)]
mod tests;
