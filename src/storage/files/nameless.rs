//! Files without a name, of which nothing remains when the process dies.

use std::fs::File;
use std::io;
use std::os::fd::AsFd;
use std::path::Path;

use rustix::fs::{Mode, OFlags};

/// Makes a file without a name on the file system of a folder; `None` where that file system knows no such files.
/// Blocks.
///
/// `folder` is resolved from `base`. `access` says whether the file is read, written or both. The umask is applied to
/// `mode`.
pub(super) fn create(base: impl AsFd, folder: &Path, access: OFlags, mode: Mode) -> io::Result<Option<File>> {
    let flags = OFlags::TMPFILE | access | OFlags::CLOEXEC;
    match rustix::fs::openat(base, folder, flags, mode).map_err(io::Error::from) {
        Ok(file) => Ok(Some(file.into())),
        Err(error) if matches!(error.kind(), io::ErrorKind::Unsupported | io::ErrorKind::IsADirectory) => Ok(None),
        Err(error) => Err(error),
    }
}
