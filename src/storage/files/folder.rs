//! Folders on a disk.

use std::fs::{self, File};
use std::io;
use std::path::Path;

/// Creates a missing folder. If a folder above it is removed meanwhile, the next attempt creates it.
pub(in crate::storage) fn create(folder: &Path) -> io::Result<()> {
    match fs::create_dir_all(folder) {
        Err(error) if error.kind() == io::ErrorKind::NotFound => Ok(()),
        result => result,
    }
}

/// Syncs the names in a folder to the disk.
pub(in crate::storage) fn sync(folder: &Path) -> io::Result<()> {
    File::open(folder)?.sync_all()
}
