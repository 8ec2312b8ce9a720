//! Locks of the root: one for each shard of keys, held against every other writer.

use std::fs::{File, OpenOptions, TryLockError};
use std::io;
use std::path::PathBuf;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::sync::{Mutex, MutexGuard, PoisonError};

use crate::storage::files::{descriptors, folder};
use crate::storage::object::{Checksum, Key};

const SHARDS: usize = 256;

/// 256 lock files, `00` to `ff`, chosen by the CRC32C of the key, which is the same in every process, and named lock
/// files.
///
/// A file lock belongs to the open file, which the threads of this process share, so a mutex for each file excludes
/// them.
#[derive(Debug)]
pub(super) struct Locks {
    folder: PathBuf,
    shards: Vec<Mutex<Option<File>>>,
    /// The number of files that are open.
    open: AtomicUsize,
    /// The largest number of files that stay open between operations, a small part of the available descriptors.
    kept: usize,
}

impl Locks {
    pub(super) fn new(folder: PathBuf) -> Self {
        let shards = std::iter::repeat_with(Mutex::default).take(SHARDS).collect();
        Self { folder, shards, open: AtomicUsize::new(0), kept: descriptors::kept_locks() }
    }

    /// Waits for the lock of the key's shard. The lock of a process that dies is released.
    pub(super) fn lock(&self, key: &Key) -> io::Result<HeldLock<'_>> {
        let shard = shard(key);
        let mut file = self.shards[shard].lock().unwrap_or_else(PoisonError::into_inner);
        if file.is_none() {
            *file = Some(self.file(&format!("{shard:02x}"))?);
            self.open.fetch_add(1, Ordering::Relaxed);
        }
        let locked = file.as_ref().map_or(Ok(()), lock);
        let held = HeldLock { file, locks: self };
        locked.map(|()| held)
    }

    /// Closes the files that nobody holds, because other operations need their descriptors.
    pub(super) fn close_unused(&self) {
        for shard in &self.shards {
            if let Ok(mut file) = shard.try_lock()
                && file.take().is_some()
            {
                self.open.fetch_sub(1, Ordering::Relaxed);
            }
        }
    }

    /// Tells whether nobody holds the key's shard now, so that its lock can be had without waiting, or almost.
    pub(super) fn is_free(&self, key: &Key) -> bool {
        let shard = shard(key);
        let Ok(file) = self.shards[shard].try_lock() else { return false };
        // A shard whose file is not open here may be held by another process.
        file.as_ref().is_some_and(|file| file.try_lock().is_ok() && file.unlock().is_ok())
    }

    /// Takes the lock of this name if nobody has it, not even this process. Dropping the file releases the lock.
    pub(super) fn take(&self, name: &str) -> io::Result<Option<File>> {
        let file = self.file(name)?;
        match file.try_lock() {
            Ok(()) => Ok(Some(file)),
            Err(TryLockError::WouldBlock) => Ok(None),
            Err(TryLockError::Error(error)) => Err(error),
        }
    }

    /// Waits for the lock of this name.
    pub(super) fn wait(&self, name: &str) -> io::Result<File> {
        let file = self.file(name)?;
        lock(&file)?;
        Ok(file)
    }

    fn file(&self, name: &str) -> io::Result<File> {
        let path = self.folder.join(name);
        let open = || OpenOptions::new().create(true).truncate(false).write(true).open(&path);
        match open() {
            Err(error) if error.kind() == io::ErrorKind::NotFound => {
                folder::create(&self.folder)?;
                open()
            }
            result => result,
        }
    }
}

fn lock(file: &File) -> io::Result<()> {
    loop {
        match file.lock() {
            Err(error) if error.kind() == io::ErrorKind::Interrupted => {}
            result => return result,
        }
    }
}

fn shard(key: &Key) -> usize {
    Checksum::of(key.as_str().as_bytes()).0 as usize % SHARDS
}

/// A held shard, released when dropped.
#[derive(Debug)]
pub(super) struct HeldLock<'a> {
    file: MutexGuard<'a, Option<File>>,
    locks: &'a Locks,
}

impl Drop for HeldLock<'_> {
    fn drop(&mut self) {
        let Some(file) = &*self.file else { return };
        // Closing the file releases its lock as well.
        if self.locks.open.load(Ordering::Relaxed) > self.locks.kept || file.unlock().is_err() {
            *self.file = None;
            self.locks.open.fetch_sub(1, Ordering::Relaxed);
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn few_files_stay_open_where_descriptors_are_few() {
        let folder = tempfile::tempdir().unwrap();
        let locks = Locks { kept: 3, ..Locks::new(folder.path().to_owned()) };
        let keys: Vec<Key> = (0..100).map(|n| Key::parse(&format!("k/{n}")).unwrap()).collect();
        let open = || locks.shards.iter().filter(|shard| shard.lock().unwrap().is_some()).count();
        for key in &keys {
            drop(locks.lock(key).unwrap());
            assert!(open() <= 3);
        }
        assert_eq!((open(), locks.open.load(Ordering::Relaxed)), (3, 3));
        let held = locks.lock(&keys[0]).unwrap();
        locks.close_unused();
        assert_eq!((locks.open.load(Ordering::Relaxed), locks.is_free(&keys[0])), (1, false));
        let other = Locks::new(folder.path().to_owned());
        assert!(other.take(&format!("{:02x}", shard(&keys[0]))).unwrap().is_none(), "a held lock stays locked");
        drop(held);
        locks.close_unused();
        assert_eq!((open(), locks.open.load(Ordering::Relaxed)), (0, 0));
        assert!(other.take(&format!("{:02x}", shard(&keys[0]))).unwrap().is_some());
    }
}
