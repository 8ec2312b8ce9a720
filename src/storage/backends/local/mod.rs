//! The local store: objects as files below one root folder.
//!
//! ```text
//! <root>/reports/2026/a.txt.obj    one object: a line of JSON, a newline, the payload
//! <root>/#tmp/                     files being written
//! <root>/#locks/00 … ff            locks of the shards of keys
//! ```
//!
//! Several processes may share a root. Folders that became empty stay. A root that is an overlay has more files of its
//! own:
//!
//! ```text
//! <root>/#origin                   the overlay's id
//! <root>/#bucket                   the bucket it belongs to, for people
//! <root>/#locks/sync               lock of the sync pass
//! <root>/#aside/<generation>/…     quarantine, each write below a root of its own
//! ```

mod copy;
mod file_system;
mod folders;
mod header;
mod identity;
mod list;
mod locks;
mod names;
mod path;
mod quarantine;
mod read;
mod write;

use std::fmt;
use std::fs;
use std::io;
use std::os::unix::fs::MetadataExt as _;
use std::path::{Path, PathBuf};
use std::sync::Arc;

use async_trait::async_trait;
use jiff::Timestamp;
use rustix::io::Errno;

use self::file_system::FileSystem;
use self::folders::Folders;
use self::locks::Locks;
pub(in crate::storage) use self::quarantine::Quarantined;
use self::read::ReadFault;
use self::write::Needs;
use crate::storage::backend::{
    Backend, CopySource, DeleteOptions, Entry, GetOptions, Grant, Listing, Page, Probe, PutOptions, Removal, Versions,
    VersionsRequest,
};
use crate::storage::commit_guard::CommitGuard;
use crate::storage::error::{Error, ErrorKind, Operation, Result};
use crate::storage::files::{FILE_OPERATIONS, FileIdentities, FileIdentity, StagingFolder, folder, shortage};
use crate::storage::join::joined;
use crate::storage::object::{Attributes, Key, Object};

/// Longest path of a root in bytes. With the longest path of a key it stays below the system's limit of 4096.
const MAX_ROOT_BYTES: usize = 900;

/// How often a write is tried while somebody keeps removing its folder or temporary file.
const TRIES: usize = 100;

/// Stores objects as files that can be read without this program. Cheap to clone.
///
/// All blocking work runs on the runtime's blocking threads, with one change of threads for each operation. Only on a
/// file system in memory, which never waits for a device, small work runs on the calling thread: there the change costs
/// more than the work.
#[derive(Clone, Debug)]
pub struct Local(Arc<Root>);

#[derive(Debug)]
struct Root {
    root: PathBuf,
    folders: Folders,
    locks: Locks,
    staging: StagingFolder,
    /// Whether the file system is a tmpfs.
    in_memory: bool,
    file_system: FileSystem,
    /// The device of the root, when it was opened. What is mounted below has another one.
    device: Option<u64>,
}

/// One object of an overlay, as [`Local::survey`] reports it.
#[derive(Clone, Debug)]
pub(in crate::storage) struct PendingEntry {
    pub(in crate::storage) key: Key,
    /// When the object was stored; `None` where the file is damaged.
    pub(in crate::storage) stored_at: Option<Timestamp>,
    pub(in crate::storage) stored_size: u64,
}

/// Largest value in bytes that is handled on the calling thread, small enough not to delay other tasks.
const SMALL: u64 = 64 * 1024;

impl Local {
    /// Opens the root folder, creates it when missing, and removes temporary files of killed writers. Blocks.
    ///
    /// # Errors
    ///
    /// [`ErrorKind::Invalid`] for a root whose path is too long; the errors of the file system.
    pub fn open(root: impl Into<PathBuf>) -> Result<Self> {
        let given = root.into();
        let fault = |error| fault(Operation::Probe, None, &given, error);
        fs::create_dir_all(&given).map_err(fault)?;
        let opened = Root::at(given.canonicalize().map_err(fault)?)?;
        for own in [names::TEMPORARY, names::LOCKS] {
            fs::create_dir_all(opened.root.join(own)).map_err(fault)?;
        }
        folders::sync_chain(&opened.root, folder::sync).map_err(fault)?;
        opened.sweep()?;
        Ok(Self(Arc::new(opened)))
    }

    /// Opens a root folder for reading, or returns `None` when there is none. Changes nothing on disk. Blocks.
    ///
    /// # Errors
    ///
    /// As [`Local::open`], except that a read-only folder is no error.
    pub fn open_existing(root: impl Into<PathBuf>) -> Result<Option<Self>> {
        let given = root.into();
        match given.canonicalize() {
            Ok(root) => Ok(Some(Self(Arc::new(Root::at(root)?)))),
            Err(error) if error.kind() == io::ErrorKind::NotFound => Ok(None),
            Err(error) => Err(fault(Operation::Probe, None, &given, error)),
        }
    }

    /// Removes the temporary files of writers that are gone, and returns how many.
    ///
    /// A file that is being written is locked by its writer and left alone, whichever process writes it.
    ///
    /// # Errors
    ///
    /// The errors of the file system.
    pub async fn sweep(&self) -> Result<u64> {
        self.run(Operation::Probe, false, Root::sweep).await
    }

    /// Counts the files that [`Local::sweep`] would remove. Blocks.
    ///
    /// # Errors
    ///
    /// The errors of the file system.
    pub fn abandoned_files(&self) -> Result<u64> {
        let counted = self.0.staging.count_abandoned();
        counted.map_err(|error| fault(Operation::Probe, None, self.0.staging.path(), error))
    }

    /// Returns the root folder.
    #[must_use]
    pub fn root(&self) -> &Path {
        &self.0.root
    }

    /// Names the root's file system if it does not prove that a file has not changed ([`FileIdentities`]).
    #[must_use]
    pub fn unproven_file_system(&self) -> Option<String> {
        (!self.0.file_system.is_local()).then(|| self.0.file_system.to_string())
    }

    /// Tells whether the key may have a file. Blocks for one or two system calls.
    ///
    /// Only where there is certainly none the answer is no: not where the root is gone, or cannot be looked at.
    pub(in crate::storage) fn may_have(&self, key: &Key) -> bool {
        let found = fs::symlink_metadata(self.0.path(key));
        !found.is_err_and(|error| error.kind() == io::ErrorKind::NotFound) || !self.0.root.is_dir()
    }

    /// Replaces exactly this state of the key, expired or not, or no object; otherwise fails with
    /// [`ErrorKind::Precondition`].
    pub(in crate::storage) async fn replace_state(
        &self,
        key: &Key,
        object: &Object,
        present: Option<String>,
        commit_guard: &CommitGuard,
    ) -> Result<Attributes> {
        let inline = self.0.is_inline(object.payload.len()) && self.0.locks.is_free(key);
        let (key, written, commit_guard) = (key.clone(), object.clone(), commit_guard.clone());
        let work = move |root: &Root| root.put(&key, &written, Needs::State(present.as_deref()), &commit_guard);
        self.run(Operation::Store, inline, work).await?;
        Ok(object.attributes.clone())
    }

    /// Reads the attributes of every object, in the order of keys.
    pub(in crate::storage) async fn survey(&self) -> Result<Vec<PendingEntry>> {
        self.run(Operation::List, false, Root::survey).await
    }

    /// Takes the root's lock of this name if nobody has it, not even this process. Dropping the file releases the lock.
    pub(in crate::storage) async fn try_lock(&self, name: &'static str) -> Result<Option<fs::File>> {
        let work = move |root: &Root| {
            root.locks.take(name).map_err(|error| fault(Operation::Store, None, &root.root.join(names::LOCKS), error))
        };
        self.run(Operation::Store, self.0.in_memory, work).await
    }

    async fn run<T: Send + 'static>(
        &self,
        operation: Operation,
        inline: bool,
        work: impl Fn(&Root) -> Result<T> + Send + 'static,
    ) -> Result<T> {
        // The semaphore is never closed. A free permit is taken without awaiting: awaiting would consume the task's
        // budget and so change the order of inline work.
        let permit = match FILE_OPERATIONS.try_acquire() {
            Ok(permit) => Some(permit),
            Err(_) => FILE_OPERATIONS.acquire().await.ok(),
        };
        if inline {
            match work(&self.0) {
                // The retries, which wait, run on a thread that may block.
                Err(error) if shortage::may_pass(&error) => {}
                result => return result,
            }
        }
        let root = Arc::clone(&self.0);
        let retried = move || {
            let _permit = permit;
            shortage::retry(|| work(&root), || root.locks.close_unused())
        };
        joined(tokio::task::spawn_blocking(retried)).await.unwrap_or_else(|| {
            let why = "the program is shutting down; try again when it runs";
            Err(Error::new(ErrorKind::Unavailable, operation, None, why))
        })
    }
}

impl Root {
    /// Prepares the root at a canonical path. Nothing is created.
    fn at(root: PathBuf) -> Result<Self> {
        if root.as_os_str().len() > MAX_ROOT_BYTES {
            let why =
                format!("the path of the storage folder is longer than {MAX_ROOT_BYTES} bytes; use a shorter path");
            return Err(Error::new(ErrorKind::Invalid, Operation::Probe, None, why));
        }
        let staging = StagingFolder::new(root.join(names::TEMPORARY));
        let locks = Locks::new(root.join(names::LOCKS));
        let file_system = FileSystem::of(&root);
        let in_memory = file_system.is_tmpfs();
        let device = fs::metadata(&root).map(|found| found.dev()).ok();
        Ok(Self { folders: Folders::new(root.clone()), locks, staging, in_memory, file_system, device, root })
    }

    fn path(&self, key: &Key) -> PathBuf {
        self.root.join(path::encode(key))
    }

    /// Tells whether work on a value of this size runs on the calling thread.
    const fn is_inline(&self, bytes: u64) -> bool {
        self.in_memory && bytes <= SMALL
    }

    fn sweep(&self) -> Result<u64> {
        let removed = self.staging.sweep();
        let removed = removed.map_err(|error| fault(Operation::Probe, None, self.staging.path(), error))?;
        if removed > 0 {
            tracing::info!(removed, root = %self.root.display(), "removed temporary files of writers that are gone");
        }
        Ok(removed)
    }

    fn list(&self, page: &Page) -> Result<Listing> {
        let mut page = page.clone();
        let mut foreign = 0;
        loop {
            let fault = |error| fault(Operation::List, None, &self.root, error);
            if !self.root.is_dir() {
                return Err(self.gone(Operation::List, None));
            }
            let found = list::walk(&self.root, &page).map_err(fault)?;
            foreign += found.foreign;
            let mut entries = Vec::with_capacity(found.keys.len());
            for key in &found.keys {
                match read::attributes(&self.path(key), key) {
                    Ok(Some(attributes)) => entries.push(Entry::of(key, &attributes)),
                    // Somebody removed the object after the walk.
                    Ok(None) => {}
                    Err(_) => entries.push(Entry::sized(key.clone(), None)),
                }
            }
            match found.keys.last() {
                // A page without entries would not tell the caller where to continue.
                Some(last) if entries.is_empty() && found.more => page.start_after = Some(last.as_str().to_owned()),
                _ => return Ok(Listing { entries, foreign, more: found.more }),
            }
        }
    }

    fn survey(&self) -> Result<Vec<PendingEntry>> {
        let found = list::walk(&self.root, &Page::default());
        let found = found.map_err(|error| fault(Operation::List, None, &self.root, error))?;
        let mut entries = Vec::with_capacity(found.keys.len());
        for key in found.keys {
            match read::attributes(&self.path(&key), &key) {
                Ok(Some(attributes)) => {
                    let Attributes { stored_at, stored_size, .. } = attributes;
                    entries.push(PendingEntry { key, stored_at: Some(stored_at), stored_size });
                }
                // Somebody removed the object after the walk.
                Ok(None) => {}
                Err(_) => entries.push(PendingEntry { key, stored_at: None, stored_size: 0 }),
            }
        }
        Ok(entries)
    }

    /// Returns the result of a read. "No object" is accepted only where the root itself exists.
    fn found<T>(
        &self,
        operation: Operation,
        key: &Key,
        path: &Path,
        found: Result<Option<T>, ReadFault>,
    ) -> Result<Option<T>> {
        match found {
            Ok(None) if !self.root.is_dir() => Err(self.gone(operation, Some(key))),
            Ok(found) => Ok(found),
            Err(cause) => Err(Self::unread(operation, key, path, cause)),
        }
    }

    /// Makes the error of a root that existed when it was opened.
    fn gone(&self, operation: Operation, key: Option<&Key>) -> Error {
        let root = self.root.display();
        let why =
            format!("the store's folder {root} is gone; is its file system mounted? the next store creates it anew");
        Error::new(ErrorKind::Io, operation, key, why)
    }

    /// Turns a failed read into an error of this room.
    fn unread(operation: Operation, key: &Key, path: &Path, cause: ReadFault) -> Error {
        match cause {
            ReadFault::Io(error) => fault(operation, Some(key), path, error),
            ReadFault::Refused(error) => error,
            ReadFault::Damaged(what) => {
                let file = path.display();
                let why = format!(
                    "{what} (file {file}); restore the file from a backup, store the key again, or remove it with \
                     `filestorage delete`"
                );
                Error::new(ErrorKind::Integrity, operation, Some(key), why)
            }
        }
    }
}

/// Turns an error of the system into one of this room. No other function of the local store reads those errors.
fn fault(operation: Operation, key: Option<&Key>, path: &Path, error: io::Error) -> Error {
    let (kind, remedy) = remedy(operation, path, &error);
    Error::new(kind, operation, key, format!("{error}; {remedy}")).with_source(error)
}

/// Returns the kind of a failure and its remedy.
fn remedy(operation: Operation, path: &Path, error: &io::Error) -> (ErrorKind, String) {
    let place = path.display();
    match (error.kind(), Errno::from_io_error(error)) {
        (io::ErrorKind::StorageFull, _) => {
            (ErrorKind::NoSpace, format!("free space or inodes on the file system of {place}"))
        }
        (io::ErrorKind::QuotaExceeded, _) => (
            ErrorKind::NoSpace,
            format!("raise this user's disk quota on the file system of {place}, or free some of it"),
        ),
        (io::ErrorKind::ReadOnlyFilesystem, _) => {
            let why = "make the file system writable; the kernel makes it read-only after a disk error (see dmesg)";
            (ErrorKind::Denied, format!("{place}: {why}"))
        }
        (_, Some(Errno::PERM)) => {
            let why = "is it immutable (lsattr), or does a security module or sandbox forbid it?";
            (ErrorKind::Denied, format!("let this user read and write {place}: {why}"))
        }
        (io::ErrorKind::PermissionDenied, _) => (ErrorKind::Denied, format!("let this user read and write {place}")),
        (io::ErrorKind::UnexpectedEof, _) if operation == Operation::Store => {
            (ErrorKind::Integrity, "the source became shorter while it was stored; store it again".to_owned())
        }
        (_, Some(Errno::MFILE)) => (
            ErrorKind::Io,
            "raise the hard limit of open files (ulimit -Hn, LimitNOFILE=), or lower celery_worker_concurrency"
                .to_owned(),
        ),
        (_, Some(Errno::NFILE)) => (
            ErrorKind::Io,
            "raise fs.file-max of this machine, or find the process that has so many files open".to_owned(),
        ),
        (_, Some(Errno::STALE | Errno::TIMEDOUT)) => {
            (ErrorKind::Io, format!("check the file server, and mount the file system of {place} anew"))
        }
        (_, Some(Errno::FBIG)) => (
            ErrorKind::Io,
            format!("raise the limit of a file's size (ulimit -f) or move {place} to another file system"),
        ),
        _ => (ErrorKind::Io, format!("look at {place} and the disk it is on")),
    }
}

impl fmt::Display for Local {
    fn fmt(&self, formatter: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(formatter, "local {}", self.0.root.display())
    }
}

impl FileIdentities for Local {
    fn identity(&self, key: &Key) -> Option<FileIdentity> {
        if !self.0.file_system.is_local() {
            return None;
        }
        FileIdentity::of(&self.0.path(key)).filter(|identity| Some(identity.inode.0) == self.0.device)
    }
}

#[async_trait]
impl Backend for Local {
    async fn put(&self, key: &Key, object: &Object, options: &PutOptions) -> Result<Attributes> {
        let inline = self.0.is_inline(object.payload.len()) && self.0.locks.is_free(key);
        let (key, written, options) = (key.clone(), object.clone(), options.clone());
        let work =
            move |root: &Root| root.put(&key, &written, Needs::Condition(&options.condition), &options.commit_guard);
        self.run(Operation::Store, inline, work).await?;
        Ok(object.attributes.clone())
    }

    async fn get(&self, key: &Key, options: GetOptions) -> Result<Option<Object>> {
        if options.version.is_some() {
            return Err(Error::unversioned(Operation::Retrieve, key, "the local store"));
        }
        let size = || fs::symlink_metadata(self.0.path(key)).map_or(0, |metadata| metadata.len());
        let inline = self.0.in_memory && self.0.is_inline(size());
        let key = key.clone();
        let work = move |root: &Root| {
            let path = root.path(&key);
            let found = read::object(&path, &key, &options);
            root.found(Operation::Retrieve, &key, &path, found)
        };
        self.run(Operation::Retrieve, inline, work).await
    }

    async fn copy(
        &self,
        source: &CopySource,
        key: &Key,
        attributes: &Attributes,
        options: &PutOptions,
    ) -> Result<Option<Attributes>> {
        let size = || fs::symlink_metadata(self.0.path(&source.key)).map_or(u64::MAX, |metadata| metadata.len());
        let inline = self.0.in_memory && self.0.is_inline(size()) && self.0.locks.is_free(key);
        let (source, key, attributes, options) = (source.clone(), key.clone(), attributes.clone(), options.clone());
        self.run(Operation::Copy, inline, move |root| root.copy(&source, &key, &attributes, &options)).await
    }

    async fn stat(&self, key: &Key) -> Result<Option<Attributes>> {
        let key = key.clone();
        let work = move |root: &Root| {
            let path = root.path(&key);
            let found = read::attributes(&path, &key);
            root.found(Operation::Stat, &key, &path, found)
        };
        self.run(Operation::Stat, self.0.in_memory, work).await
    }

    async fn versions(&self, key: &Key, _: &VersionsRequest) -> Result<Versions> {
        Err(Error::unversioned(Operation::Versions, key, "the local store"))
    }

    async fn delete(&self, key: &Key, options: &DeleteOptions) -> Result<Removal> {
        let inline = self.0.in_memory && self.0.locks.is_free(key);
        let (key, options) = (key.clone(), options.clone());
        self.run(Operation::Delete, inline, move |root| root.delete(&key, &options)).await
    }

    async fn list(&self, page: &Page) -> Result<Listing> {
        let page = page.clone();
        self.run(Operation::List, false, move |root| root.list(&page)).await
    }

    async fn flush(&self, key: &Key) -> Result<()> {
        let key = key.clone();
        let work = move |root: &Root| {
            let path = root.path(&key);
            let synced = root.sync(path.parent().unwrap_or(&root.root));
            synced.map_err(|error| fault(Operation::Store, Some(&key), &path, error))
        };
        self.run(Operation::Store, false, work).await
    }

    async fn probe(&self) -> Result<Probe> {
        let work = |root: &Root| match root.staging.create(&root.root.join(names::PROBE)) {
            Ok(file) => {
                file.discard();
                Ok(Probe::default())
            }
            Err(error) => Err(fault(Operation::Probe, None, root.staging.path(), error)),
        };
        self.run(Operation::Probe, false, work).await
    }

    fn validate(&self, _: &Key, _: &Attributes) -> Result<()> {
        Ok(())
    }

    async fn sign(&self, key: &Key, _: &Grant) -> Result<String> {
        Err(Error::unsigned(key))
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::storage::object::Kind;

    #[tokio::test]
    async fn only_files_of_the_device_of_the_root_have_identities() {
        let folder = tempfile::tempdir().unwrap();
        let local = Local::open(folder.path().canonicalize().unwrap()).unwrap();
        let key = Key::parse("it").unwrap();
        assert!(!local.may_have(&key));
        let checksum = crate::storage::object::Checksum::of(b"value");
        let attributes = Attributes::new(Kind::Bytes, Kind::Bytes.content_type().to_owned(), 5, checksum);
        let object = Object { attributes, payload: bytes::Bytes::from("value").into() };
        local.put(&key, &object, &PutOptions::default()).await.unwrap();
        assert!(
            local.may_have(&key)
                && FileIdentities::identity(&local, &key).is_some()
                && local.unproven_file_system().is_none()
        );
        let mut root = Root::at(local.root().to_owned()).unwrap();
        root.device = root.device.map(|device| device + 1);
        let elsewhere = Local(Arc::new(root));
        assert_eq!(FileIdentities::identity(&elsewhere, &key), None, "as if another file system were mounted there");
        let mut root = Root::at(local.root().to_owned()).unwrap();
        root.file_system = FileSystem::default();
        let unknown = Local(Arc::new(root));
        assert!(FileIdentities::identity(&unknown, &key).is_none() && unknown.unproven_file_system().is_some());
        fs::remove_dir_all(folder.path()).unwrap();
        assert!(local.may_have(&key), "a root that is gone proves nothing");
    }

    #[test]
    fn each_system_error_has_its_kind_and_remedy() {
        for (errno, kind, words) in [
            (Errno::NOSPC, ErrorKind::NoSpace, "inodes"),
            (Errno::DQUOT, ErrorKind::NoSpace, "quota"),
            (Errno::ROFS, ErrorKind::Denied, "dmesg"),
            (Errno::ACCESS, ErrorKind::Denied, "let this user"),
            (Errno::PERM, ErrorKind::Denied, "lsattr"),
            (Errno::MFILE, ErrorKind::Io, "LimitNOFILE"),
            (Errno::NFILE, ErrorKind::Io, "fs.file-max"),
            (Errno::IO, ErrorKind::Io, "the disk it is on"),
            (Errno::STALE, ErrorKind::Io, "mount"),
            (Errno::FBIG, ErrorKind::Io, "ulimit -f"),
            (Errno::NAMETOOLONG, ErrorKind::Io, "look at"),
            (Errno::TXTBSY, ErrorKind::Io, "look at"),
            (Errno::AGAIN, ErrorKind::Io, "look at"),
        ] {
            let error = fault(Operation::Store, None, Path::new("/place"), errno.into());
            assert_eq!(error.kind, kind, "{errno}");
            assert!(error.message().contains(words), "{errno}: {error}");
            let source = std::error::Error::source(&error).and_then(|source| source.downcast_ref::<io::Error>());
            assert_eq!(
                source.and_then(io::Error::raw_os_error),
                Some(errno.raw_os_error()),
                "the client gets the number"
            );
        }
    }
}
