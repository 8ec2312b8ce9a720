//! One lock a shard of keys, held against every writer of the root.

use std::fs::{File, OpenOptions, TryLockError};
use std::io;
use std::path::PathBuf;
use std::sync::{Mutex, MutexGuard, PoisonError};

use crate::storage::{Checksum, Key};

/// Name of the folder below the root.
pub(super) const FOLDER: &str = "#locks";

const SHARDS: usize = 256;

/// 256 lock files, `00` to `ff`, picked by the CRC32C of the key, which is the same in every process; and named ones.
///
/// A file lock belongs to the open file, which this process's threads share, so a mutex keeps them apart.
#[derive(Debug)]
pub(super) struct Locks {
    folder: PathBuf,
    shards: Vec<Mutex<Option<File>>>,
}

impl Locks {
    pub(super) fn new(folder: PathBuf) -> Self {
        Self { folder, shards: std::iter::repeat_with(Mutex::default).take(SHARDS).collect() }
    }

    /// Waits for the key's shard. A writer that dies lets go of its lock.
    pub(super) fn lock(&self, key: &Key) -> io::Result<Held<'_>> {
        let shard = shard(key);
        let mut file = self.shards[shard].lock().unwrap_or_else(PoisonError::into_inner);
        let opened = match file.take() {
            Some(opened) => opened,
            None => self.open(shard)?,
        };
        lock(&opened)?;
        *file = Some(opened);
        Ok(Held(file))
    }

    /// Tells whether nobody holds the key's shard right now: taking it would not wait, or hardly.
    pub(super) fn is_free(&self, key: &Key) -> bool {
        let shard = shard(key);
        let Ok(file) = self.shards[shard].try_lock() else { return false };
        // A shard that was never opened here may be held elsewhere.
        file.as_ref().is_some_and(|file| file.try_lock().is_ok() && file.unlock().is_ok())
    }

    /// Takes the lock of this name if nobody has it, not even this process; it is let go when dropped.
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

    fn open(&self, shard: usize) -> io::Result<File> {
        self.file(&format!("{shard:02x}"))
    }

    fn file(&self, name: &str) -> io::Result<File> {
        let path = self.folder.join(name);
        let open = || OpenOptions::new().create(true).truncate(false).write(true).open(&path);
        match open() {
            Err(error) if error.kind() == io::ErrorKind::NotFound => {
                super::folders::create_again(&self.folder)?;
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

/// A held shard, let go when dropped.
#[derive(Debug)]
pub(super) struct Held<'a>(MutexGuard<'a, Option<File>>);

impl Drop for Held<'_> {
    fn drop(&mut self) {
        // Closing the file lets go of its lock as well.
        if self.0.as_ref().is_some_and(|file| file.unlock().is_err()) {
            *self.0 = None;
        }
    }
}
