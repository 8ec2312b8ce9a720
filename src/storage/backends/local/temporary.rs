//! Temporary files: written and synced completely, then renamed to their final paths.
//!
//! All of them are in one folder on the same file system, so that the sweep lists one folder and walks no tree.

use std::fs::{self, File, OpenOptions, TryLockError};
use std::io::{self, Write as _};
use std::os::unix::fs::{MetadataExt as _, OpenOptionsExt as _};
use std::path::{Path, PathBuf};
use std::sync::atomic::{AtomicU64, Ordering};

use rustix::fs::OFlags;
use uuid::Uuid;

use crate::storage::object::{Checksum, Payload};

/// Up to this many bytes header and payload are copied together, which is cheaper than a second write.
const ONE_WRITE: usize = 64 * 1024;

/// The folder of temporary files.
#[derive(Debug)]
pub(super) struct TemporaryFolder {
    folder: PathBuf,
    instance: Uuid,
    next: AtomicU64,
}

/// One temporary file, locked as long as it is used, and removed when dropped unless it was renamed.
#[derive(Debug)]
pub(super) struct Temporary {
    path: PathBuf,
    file: File,
    renamed: bool,
}

impl TemporaryFolder {
    pub(super) fn new(folder: PathBuf) -> Self {
        Self { folder, instance: Uuid::new_v4(), next: AtomicU64::new(0) }
    }

    pub(super) fn folder(&self) -> &Path {
        &self.folder
    }

    /// Writes and syncs a file of both parts; returns the file and the checksum of the payload as it was written.
    pub(super) fn write(&self, head: &[u8], payload: &Payload) -> io::Result<(Temporary, Checksum)> {
        let mut temporary = self.create()?;
        let checksum = match payload {
            Payload::Memory(body) => {
                if head.len() + body.len() <= ONE_WRITE {
                    temporary.file.write_all(&[head, body].concat())?;
                } else {
                    temporary.file.write_all(head)?;
                    temporary.file.write_all(body)?;
                }
                Checksum::of(body)
            }
            Payload::File(_) => {
                temporary.file.write_all(head)?;
                let (mut checksum, mut offset) = (Checksum::of(&[]), 0);
                while offset < payload.len() {
                    let chunk = payload.read_at(offset, Payload::CHUNK)?;
                    temporary.file.write_all(&chunk)?;
                    checksum = checksum.append(&chunk);
                    offset += chunk.len() as u64;
                }
                checksum
            }
        };
        // This syncs the size as well, which is needed to read the data back.
        temporary.file.sync_data()?;
        Ok((temporary, checksum))
    }

    /// Creates an empty locked file.
    pub(super) fn create(&self) -> io::Result<Temporary> {
        let mut tries = 0;
        loop {
            let number = self.next.fetch_add(1, Ordering::Relaxed);
            let path = self.folder.join(format!("{}-{number}", self.instance.simple()));
            let file = match OpenOptions::new().write(true).create_new(true).open(&path) {
                Err(error) if error.kind() == io::ErrorKind::NotFound && tries < super::TRIES => {
                    tries += 1;
                    super::folders::create_again(&self.folder)?;
                    continue;
                }
                result => result?,
            };
            match file.try_lock() {
                Ok(()) => {
                    let temporary = Temporary { path, file, renamed: false };
                    // A sweep may have removed the file before it was locked.
                    if !temporary.is_gone()? {
                        return Ok(temporary);
                    }
                }
                // A sweep has locked the file first and is about to remove it.
                Err(TryLockError::WouldBlock) => {}
                Err(TryLockError::Error(error)) => {
                    fs::remove_file(&path)?;
                    return Err(error);
                }
            }
        }
    }

    /// Removes the files whose writers are gone, and returns how many.
    pub(super) fn sweep(&self) -> io::Result<u64> {
        self.visit_abandoned(|path| fs::remove_file(path))
    }

    /// Counts the files whose writers are gone.
    pub(super) fn count_abandoned(&self) -> io::Result<u64> {
        self.visit_abandoned(|_| Ok(()))
    }

    /// Visits the files whose writers are gone, each under its lock, and returns how many there are.
    fn visit_abandoned(&self, visit: impl Fn(&Path) -> io::Result<()>) -> io::Result<u64> {
        let mut visited = 0;
        let entries = match fs::read_dir(&self.folder) {
            // Somebody removed the folder. The next write creates it again.
            Err(error) if error.kind() == io::ErrorKind::NotFound => return Ok(0),
            entries => entries?,
        };
        for entry in entries {
            let entry = entry?;
            if !entry.file_type()?.is_file() {
                continue;
            }
            let flags = i32::try_from(OFlags::NOFOLLOW.bits()).unwrap_or(0);
            let file = match OpenOptions::new().write(true).custom_flags(flags).open(entry.path()) {
                Err(error) if error.kind() == io::ErrorKind::NotFound => continue,
                result => result?,
            };
            match file.try_lock() {
                Ok(()) => {}
                Err(TryLockError::WouldBlock) => continue,
                Err(TryLockError::Error(error)) => return Err(error),
            }
            match visit(&entry.path()) {
                Ok(()) => visited += 1,
                // The writer renamed the file between the listing and the lock.
                Err(error) if error.kind() == io::ErrorKind::NotFound => {}
                Err(error) => return Err(error),
            }
        }
        Ok(visited)
    }
}

impl Temporary {
    /// Renames the file to its final path and replaces a file there.
    pub(super) fn rename(&mut self, path: &Path) -> io::Result<()> {
        fs::rename(&self.path, path)?;
        self.renamed = true;
        Ok(())
    }

    /// Tells whether somebody removed the file.
    pub(super) fn is_gone(&self) -> io::Result<bool> {
        Ok(self.file.metadata()?.nlink() == 0)
    }
}

impl Drop for Temporary {
    fn drop(&mut self) {
        if self.renamed {
            return;
        }
        match fs::remove_file(&self.path) {
            Err(error) if error.kind() != io::ErrorKind::NotFound => {
                tracing::warn!(path = %self.path.display(), %error, "a temporary file could not be removed; the next start removes it");
            }
            _ => {}
        }
    }
}
