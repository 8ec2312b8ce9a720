//! Objects as files below one root folder.
//!
//! ```text
//! <root>/reports/2026/a.txt.obj    one object: a line of JSON, a newline, the payload
//! <root>/#tmp/                     files being written
//! <root>/#locks/00 … ff            locks of the shards of keys
//! ```
//!
//! Several processes may share a root. Folders that became empty stay. A root that is an overlay has more of its own:
//!
//! ```text
//! <root>/#origin                   the overlay's id
//! <root>/#bucket                   the bucket it belongs to, for people
//! <root>/#locks/sync               lock of the one pass of synchronization
//! <root>/#aside/<generation>/…     losers of conflicts, each below a root of its own
//! ```

mod folders;
mod header;
mod identity;
mod list;
mod locks;
mod names;
mod path;
mod quarantine;
mod read;
mod temporary;
mod write;

use std::fmt;
use std::fs;
use std::io;
use std::path::{Path, PathBuf};
use std::sync::Arc;

use async_trait::async_trait;
use jiff::Timestamp;
use rustix::io::Errno;

use self::folders::Folders;
use self::locks::Locks;
pub(in crate::storage) use self::quarantine::Quarantined;
use self::read::ReadFault;
use self::temporary::TemporaryFolder;
use self::write::Needs;
use crate::storage::backend::{
    Backend, DeleteOptions, Entry, GetOptions, Grant, Listing, Page, Probe, PutOptions, Removal,
};
use crate::storage::commit_guard::CommitGuard;
use crate::storage::error::{Error, ErrorKind, Operation, Result};
use crate::storage::files::{TURNS, shortage};
use crate::storage::join::joined;
use crate::storage::object::{Attributes, Key, Object};

/// Longest root in bytes: with the longest path of a key it stays below the system's 4096.
const MAX_ROOT_BYTES: usize = 900;

/// `f_type` of a tmpfs, from `linux/magic.h`.
const TMPFS_MAGIC: rustix::fs::FsWord = 0x0102_1994;

/// How often a write is tried whose folder or temporary file somebody removes again and again.
const TRIES: usize = 100;

/// Keeps objects as files that can be read without this program. Cheap to clone.
///
/// Everything blocking runs on the runtime's blocking threads, one hop an operation. Only on a file system in memory,
/// which never waits for a device, small work is done in place: there the hop costs more than the work.
#[derive(Clone, Debug)]
pub struct Local(Arc<Root>);

#[derive(Debug)]
struct Root {
    root: PathBuf,
    folders: Folders,
    locks: Locks,
    temporary: TemporaryFolder,
    /// The file system is a tmpfs.
    in_memory: bool,
}

/// What [`Local::survey`] tells of one key.
#[derive(Clone, Debug)]
pub(in crate::storage) struct PendingEntry {
    pub(in crate::storage) key: Key,
    /// Nothing where the file is damaged.
    pub(in crate::storage) stored_at: Option<Timestamp>,
    pub(in crate::storage) stored_size: u64,
}

/// Largest value in bytes that is worth doing in place: far below what the thread of the loop would be missed for.
const SMALL: u64 = 64 * 1024;

impl Local {
    /// Opens the root folder, making it when missing, and sweeps what killed writers left. Blocks.
    ///
    /// # Errors
    ///
    /// [`ErrorKind::Invalid`] for a root whose path is too long; what the file system fails with.
    pub fn open(root: impl Into<PathBuf>) -> Result<Self> {
        let given = root.into();
        let fault = |error| fault(Operation::Probe, None, &given, error);
        fs::create_dir_all(&given).map_err(fault)?;
        let opened = Root::at(given.canonicalize().map_err(fault)?)?;
        for own in [names::TEMPORARY, names::LOCKS] {
            fs::create_dir_all(opened.root.join(own)).map_err(fault)?;
        }
        folders::sync_chain(&opened.root, folders::sync_folder).map_err(fault)?;
        opened.sweep()?;
        Ok(Self(Arc::new(opened)))
    }

    /// Opens a root folder for reading, or returns `None` when there is none; makes and changes nothing. Blocks.
    ///
    /// # Errors
    ///
    /// As [`Local::open`], except that a folder which cannot be written is fine.
    pub fn open_existing(root: impl Into<PathBuf>) -> Result<Option<Self>> {
        let given = root.into();
        match given.canonicalize() {
            Ok(root) => Ok(Some(Self(Arc::new(Root::at(root)?)))),
            Err(error) if error.kind() == io::ErrorKind::NotFound => Ok(None),
            Err(error) => Err(fault(Operation::Probe, None, &given, error)),
        }
    }

    /// Removes the temporary files of writers that are gone; returns how many.
    ///
    /// A file in the making is locked by its writer and left alone, whatever process that is.
    ///
    /// # Errors
    ///
    /// What the file system fails with.
    pub async fn sweep(&self) -> Result<u64> {
        self.hop(Operation::Probe, false, Root::sweep).await
    }

    /// Counts what [`Local::sweep`] would remove. Blocks.
    ///
    /// # Errors
    ///
    /// What the file system fails with.
    pub fn leftovers(&self) -> Result<u64> {
        let counted = self.0.temporary.count_abandoned();
        counted.map_err(|error| fault(Operation::Probe, None, self.0.temporary.folder(), error))
    }

    /// Returns the root folder.
    #[must_use]
    pub fn root(&self) -> &Path {
        &self.0.root
    }

    /// Replaces this very state of the key, expired or not, or nothing at all; else it is [`ErrorKind::Precondition`].
    pub(in crate::storage) async fn replace_state(
        &self,
        key: &Key,
        object: &Object,
        present: Option<String>,
        commit_guard: &CommitGuard,
    ) -> Result<Attributes> {
        let in_place = self.0.is_near(object.payload.len()) && self.0.locks.is_free(key);
        let (key, written, commit_guard) = (key.clone(), object.clone(), commit_guard.clone());
        let work = move |root: &Root| root.put(&key, &written, Needs::State(present.as_deref()), &commit_guard);
        self.hop(Operation::Store, in_place, work).await?;
        Ok(object.attributes.clone())
    }

    /// Looks at everything there is, in the order of keys.
    pub(in crate::storage) async fn survey(&self) -> Result<Vec<PendingEntry>> {
        self.hop(Operation::List, false, Root::survey).await
    }

    /// Takes the root's lock of this name if nobody has it, not even this process; it is let go when dropped.
    pub(in crate::storage) async fn turn(&self, name: &'static str) -> Result<Option<fs::File>> {
        let work = move |root: &Root| {
            root.locks.take(name).map_err(|error| fault(Operation::Store, None, &root.root.join(names::LOCKS), error))
        };
        self.hop(Operation::Store, self.0.in_memory, work).await
    }

    async fn hop<T: Send + 'static>(
        &self,
        operation: Operation,
        in_place: bool,
        work: impl Fn(&Root) -> Result<T> + Send + 'static,
    ) -> Result<T> {
        // Never closed. Waiting for a free turn as well would cost the task's budget, and so the order of work in place.
        let turn = match TURNS.try_acquire() {
            Ok(turn) => Some(turn),
            Err(_) => TURNS.acquire().await.ok(),
        };
        if in_place {
            match work(&self.0) {
                // It is waited for elsewhere.
                Err(error) if shortage::may_pass(&error) => {}
                result => return result,
            }
        }
        let root = Arc::clone(&self.0);
        let outlasted = move || {
            let _turn = turn;
            shortage::outlast(|| work(&root), || root.locks.let_go())
        };
        joined(tokio::task::spawn_blocking(outlasted)).await.unwrap_or_else(|| {
            let why = "the program is shutting down; try again once it runs";
            Err(Error::new(ErrorKind::Unavailable, operation, None, why))
        })
    }
}

impl Root {
    /// Looks at a canonical path.
    fn at(root: PathBuf) -> Result<Self> {
        if root.as_os_str().len() > MAX_ROOT_BYTES {
            let why = format!("the path of the storage folder is longer than {MAX_ROOT_BYTES} bytes; move it up");
            return Err(Error::new(ErrorKind::Invalid, Operation::Probe, None, why));
        }
        let temporary = TemporaryFolder::new(root.join(names::TEMPORARY));
        let locks = Locks::new(root.join(names::LOCKS));
        let in_memory = rustix::fs::statfs(&root).is_ok_and(|system| system.f_type == TMPFS_MAGIC);
        Ok(Self { folders: Folders::new(root.clone()), locks, temporary, in_memory, root })
    }

    fn path(&self, key: &Key) -> PathBuf {
        self.root.join(path::encode(key))
    }

    /// Tells whether work on so many bytes is done in place.
    const fn is_near(&self, bytes: u64) -> bool {
        self.in_memory && bytes <= SMALL
    }

    fn sweep(&self) -> Result<u64> {
        let removed = self.temporary.sweep();
        let removed = removed.map_err(|error| fault(Operation::Probe, None, self.temporary.folder(), error))?;
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
                    // Removed since the walk.
                    Ok(None) => {}
                    Err(_) => entries.push(Entry { key: key.clone(), expires_at: None, tombstone: false }),
                }
            }
            match found.keys.last() {
                // A page without entries would tell the caller nothing about where to go on.
                Some(last) if entries.is_empty() && found.more => page.start_after = Some(last.as_str().to_owned()),
                _ => return Ok(Listing { entries, foreign, more: found.more }),
            }
        }
    }

    fn survey(&self) -> Result<Vec<PendingEntry>> {
        let found = list::walk(&self.root, &Page::default());
        let found = found.map_err(|error| fault(Operation::List, None, &self.root, error))?;
        let mut marks = Vec::with_capacity(found.keys.len());
        for key in found.keys {
            match read::attributes(&self.path(&key), &key) {
                Ok(Some(attributes)) => {
                    let Attributes { stored_at, stored_size, .. } = attributes;
                    marks.push(PendingEntry { key, stored_at: Some(stored_at), stored_size });
                }
                // Removed since the walk.
                Ok(None) => {}
                Err(_) => marks.push(PendingEntry { key, stored_at: None, stored_size: 0 }),
            }
        }
        Ok(marks)
    }

    /// Takes what a read found: nothing, only where the store itself is there.
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

    /// The error of a store that was there when it was opened.
    fn gone(&self, operation: Operation, key: Option<&Key>) -> Error {
        let root = self.root.display();
        let why =
            format!("the store's folder {root} is gone; is its file system mounted? the next store makes it anew");
        Error::new(ErrorKind::Io, operation, key, why)
    }

    /// Turns a failed read into the room's error.
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

/// Turns an error of the operating system into the room's: the one place where its kinds are read.
fn fault(operation: Operation, key: Option<&Key>, path: &Path, error: io::Error) -> Error {
    let (kind, mend) = mend(operation, path, &error);
    Error::new(kind, operation, key, format!("{error}; {mend}")).with_source(error)
}

/// Tells the kind of a fault and what a person can do about it.
fn mend(operation: Operation, path: &Path, error: &io::Error) -> (ErrorKind, String) {
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
            let why =
                "make its file system writable; the kernel itself turns one read-only after a disk error (see dmesg)";
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
        (_, Some(Errno::NFILE)) => {
            (ErrorKind::Io, "raise fs.file-max of this machine, or see who has so many files open".to_owned())
        }
        (_, Some(Errno::STALE | Errno::TIMEDOUT)) => {
            (ErrorKind::Io, format!("see to the file server, and mount the file system of {place} anew"))
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

#[async_trait]
impl Backend for Local {
    async fn put(&self, key: &Key, object: &Object, options: &PutOptions) -> Result<Attributes> {
        let in_place = self.0.is_near(object.payload.len()) && self.0.locks.is_free(key);
        let (key, written, how) = (key.clone(), object.clone(), options.clone());
        let work = move |root: &Root| root.put(&key, &written, Needs::Condition(&how.condition), &how.commit_guard);
        self.hop(Operation::Store, in_place, work).await?;
        Ok(object.attributes.clone())
    }

    async fn get(&self, key: &Key, options: GetOptions) -> Result<Option<Object>> {
        let size = || fs::symlink_metadata(self.0.path(key)).map_or(0, |metadata| metadata.len());
        let in_place = self.0.in_memory && self.0.is_near(size());
        let key = key.clone();
        let work = move |root: &Root| {
            let path = root.path(&key);
            let found = read::object(&path, &key, options);
            root.found(Operation::Retrieve, &key, &path, found)
        };
        self.hop(Operation::Retrieve, in_place, work).await
    }

    async fn stat(&self, key: &Key) -> Result<Option<Attributes>> {
        let key = key.clone();
        let work = move |root: &Root| {
            let path = root.path(&key);
            let found = read::attributes(&path, &key);
            root.found(Operation::Stat, &key, &path, found)
        };
        self.hop(Operation::Stat, self.0.in_memory, work).await
    }

    async fn delete(&self, key: &Key, options: &DeleteOptions) -> Result<Removal> {
        let in_place = self.0.in_memory && self.0.locks.is_free(key);
        let (key, options) = (key.clone(), options.clone());
        self.hop(Operation::Delete, in_place, move |root| root.delete(&key, &options)).await
    }

    async fn list(&self, page: &Page) -> Result<Listing> {
        let page = page.clone();
        self.hop(Operation::List, false, move |root| root.list(&page)).await
    }

    async fn flush(&self, key: &Key) -> Result<()> {
        let key = key.clone();
        let work = move |root: &Root| {
            let path = root.path(&key);
            let synced = root.sync(path.parent().unwrap_or(&root.root));
            synced.map_err(|error| fault(Operation::Store, Some(&key), &path, error))
        };
        self.hop(Operation::Store, false, work).await
    }

    async fn probe(&self) -> Result<Probe> {
        let work = |root: &Root| match root.temporary.create() {
            Ok(_) => Ok(Probe::default()),
            Err(error) => Err(fault(Operation::Probe, None, root.temporary.folder(), error)),
        };
        self.hop(Operation::Probe, false, work).await
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

    #[test]
    fn each_answer_of_the_system_has_its_kind_and_its_mend() {
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
