//! A folder of files that are being written, from which each is renamed to its final path.

use std::fs::{self, OpenOptions, TryLockError};
use std::io;
use std::os::unix::fs::OpenOptionsExt as _;
use std::path::{Path, PathBuf};
use std::sync::atomic::{AtomicU64, Ordering};

use rustix::fs::OFlags;
use uuid::Uuid;

use super::{AtomicFile, folder};

/// How often a file is begun while somebody keeps removing the folder.
const TRIES: usize = 100;

/// Begins atomic files in one folder, so that the sweep lists one folder and walks no tree.
///
/// The folder must be on the file system of the final paths. A file is locked by its writer as long as it is used, so
/// that a sweep of any process tells the files of living writers from those of killed ones.
#[derive(Debug)]
pub(in crate::storage) struct StagingFolder {
    folder: PathBuf,
    instance: Uuid,
    next: AtomicU64,
}

impl StagingFolder {
    /// Uses a folder. Creates nothing.
    pub(in crate::storage) fn new(folder: PathBuf) -> Self {
        Self { folder, instance: Uuid::new_v4(), next: AtomicU64::new(0) }
    }

    /// Returns the folder.
    pub(in crate::storage) fn path(&self) -> &Path {
        &self.folder
    }

    /// Begins an empty file for a path, whose folder may be missing until the file gets its final name. Blocks.
    pub(in crate::storage) fn create(&self, target: &Path) -> io::Result<AtomicFile> {
        let mut tries = 0;
        loop {
            let number = self.next.fetch_add(1, Ordering::Relaxed);
            let path = self.folder.join(format!("{}-{number}", self.instance.simple()));
            let file = match OpenOptions::new().write(true).create_new(true).open(&path) {
                Err(error) if error.kind() == io::ErrorKind::NotFound && tries < TRIES => {
                    tries += 1;
                    folder::create(&self.folder)?;
                    continue;
                }
                result => result?,
            };
            let locked = file.try_lock();
            let staged = AtomicFile::staged(path, target, file);
            match locked {
                // A sweep may have removed the file before it was locked.
                Ok(()) if !staged.is_gone()? => return Ok(staged),
                // A sweep has locked the file first and is about to remove it.
                Ok(()) | Err(TryLockError::WouldBlock) => {}
                Err(TryLockError::Error(error)) => return Err(error),
            }
        }
    }

    /// Removes the files whose writers are gone, and returns how many. Blocks.
    pub(in crate::storage) fn sweep(&self) -> io::Result<u64> {
        self.visit_abandoned(|path| fs::remove_file(path))
    }

    /// Counts the files whose writers are gone. Blocks.
    pub(in crate::storage) fn count_abandoned(&self) -> io::Result<u64> {
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

#[cfg(test)]
mod tests {
    use bytes::Bytes;

    use super::*;
    use crate::storage::object::{Checksum, Payload};

    #[test]
    fn a_file_is_renamed_once_the_folder_of_its_target_is_there() {
        let place = tempfile::tempdir().unwrap();
        let staging = StagingFolder::new(place.path().join("made/when/needed"));
        let target = place.path().join("later/out");
        for size in [3, 3 * Payload::CHUNK] {
            let body = vec![b'x'; size];
            let mut file = staging.create(&target).unwrap();
            let checksum = file.write_blocking(b"head ", &Payload::Memory(Bytes::from(body.clone()))).unwrap();
            assert_eq!(checksum, Checksum::of(&body));
            if size == 3 {
                assert_eq!(file.rename().unwrap_err().kind(), io::ErrorKind::NotFound);
                assert!(!file.is_gone().unwrap());
                fs::create_dir(place.path().join("later")).unwrap();
            }
            file.commit().unwrap();
            assert_eq!(fs::read(&target).unwrap(), [b"head ".as_slice(), &body].concat());
            assert_eq!(fs::read_dir(staging.path()).unwrap().count(), 0);
        }
    }

    #[test]
    fn a_sweep_spares_what_is_being_written() {
        let place = tempfile::tempdir().unwrap();
        let staging = StagingFolder::new(place.path().join("staging"));
        assert_eq!(staging.sweep().unwrap(), 0);
        let alive = staging.create(&place.path().join("out")).unwrap();
        fs::write(staging.path().join("left"), "by a killed writer").unwrap();
        assert_eq!((staging.count_abandoned().unwrap(), staging.sweep().unwrap()), (1, 1));
        assert!(!alive.is_gone().unwrap());
        alive.discard();
        assert_eq!(fs::read_dir(staging.path()).unwrap().count(), 0);

        let removed = staging.create(&place.path().join("out")).unwrap();
        fs::remove_dir_all(staging.path()).unwrap();
        assert!(removed.is_gone().unwrap());
        assert_eq!(removed.commit().unwrap_err().kind(), io::ErrorKind::NotFound);
    }
}
