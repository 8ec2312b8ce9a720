//! One exchange directory, below which each name of a path is opened by itself, so that no path leads out of the
//! directory.

use std::ffi::OsStr;
use std::fs::File;
use std::io;
use std::os::fd::{AsFd as _, OwnedFd};
use std::path::{Component, Path};

use rustix::fs::{CWD, FileType, Mode, OFlags};

use crate::storage::files::shortage::{self, SystemFailure};
use crate::storage::files::{AtomicFile, mode_of};

/// An exchange directory that is held open.
///
/// Each name of a path is opened in the folder that the name before it opened, and never as a link. So no symbolic link
/// is followed, whenever somebody creates one, and no path with `..` is ever passed to the system.
#[derive(Debug)]
pub(super) struct Directory(OwnedFd);

/// The reason why a file cannot be opened.
#[derive(Debug)]
pub(super) enum FileFault {
    /// The system reported an error of the file.
    Io(io::Error),
    /// The system reported an error of the folder that the file would lie in.
    Folder(io::Error),
    /// A name of the path is a symbolic link.
    Link,
    /// The entry is a folder, a pipe, a socket or a device.
    NoFile,
}

impl SystemFailure for FileFault {
    fn system(&self) -> Option<&io::Error> {
        match self {
            Self::Io(error) | Self::Folder(error) => Some(error),
            Self::Link | Self::NoFile => None,
        }
    }
}

impl From<io::Error> for FileFault {
    fn from(error: io::Error) -> Self {
        Self::Io(error)
    }
}

impl From<rustix::io::Errno> for FileFault {
    fn from(error: rustix::io::Errno) -> Self {
        Self::Io(error.into())
    }
}

const FOLDER: OFlags = OFlags::PATH.union(OFlags::DIRECTORY).union(OFlags::CLOEXEC);

impl Directory {
    /// Opens the directory itself. The operator named its path, so this path may lead through links.
    pub(super) fn open(path: &Path) -> io::Result<Self> {
        let open = || rustix::fs::openat(CWD, path, FOLDER, Mode::empty()).map_err(io::Error::from);
        Ok(Self(shortage::retry(open, || {})?))
    }

    /// Opens a regular file for reading.
    pub(super) fn read(&self, below: &Path) -> Result<File, FileFault> {
        shortage::retry(|| self.open_file(below), || {})
    }

    fn open_file(&self, below: &Path) -> Result<File, FileFault> {
        let (folder, name) = self.folder(below)?;
        // The type is checked before the file is opened, because opening a pipe or a device can have effects.
        let mode = rustix::fs::statat(&folder, name, rustix::fs::AtFlags::SYMLINK_NOFOLLOW)?.st_mode;
        check(FileType::from_raw_mode(mode))?;
        let flags = OFlags::RDONLY | OFlags::NOFOLLOW | OFlags::NONBLOCK | OFlags::NOCTTY | OFlags::CLOEXEC;
        let file = rustix::fs::openat(&folder, name, flags, Mode::empty()).map_err(|error| match error {
            rustix::io::Errno::LOOP => FileFault::Link,
            error => error.into(),
        })?;
        check(FileType::from_raw_mode(rustix::fs::fstat(&file)?.st_mode))?;
        Ok(file.into())
    }

    /// Begins a file that replaces the entry of its name, if that entry is a file or a link.
    pub(super) fn write(&self, below: &Path) -> Result<AtomicFile, FileFault> {
        shortage::retry(|| self.begin_file(below), || {})
    }

    fn begin_file(&self, below: &Path) -> Result<AtomicFile, FileFault> {
        let (folder, name) = self.folder(below).map_err(|fault| match fault {
            FileFault::Io(error) => FileFault::Folder(error),
            fault => fault,
        })?;
        match mode_of(&folder, name).map(FileType::from_raw_mode) {
            None | Some(FileType::RegularFile | FileType::Symlink) => Ok(AtomicFile::create_in(folder, name)?),
            Some(_) => Err(FileFault::NoFile),
        }
    }

    /// Opens the folder of a path and returns its last name.
    fn folder<'p>(&self, below: &'p Path) -> Result<(OwnedFd, &'p OsStr), FileFault> {
        let mut folder = self.0.try_clone()?;
        let mut names = below.components().map(|component| match component {
            Component::Normal(name) => Ok(name),
            // A reference contains no other components.
            _ => Err(FileFault::NoFile),
        });
        let mut name = names.next().unwrap_or(Err(FileFault::NoFile))?;
        for next in names {
            let opened = rustix::fs::openat(folder.as_fd(), name, FOLDER | OFlags::NOFOLLOW, Mode::empty());
            folder = opened.map_err(|error| match mode_of(&folder, name).map(FileType::from_raw_mode) {
                Some(FileType::Symlink) => FileFault::Link,
                _ => error.into(),
            })?;
            name = next?;
        }
        Ok((folder, name))
    }
}

fn check(kind: FileType) -> Result<(), FileFault> {
    match kind {
        FileType::RegularFile => Ok(()),
        FileType::Symlink => Err(FileFault::Link),
        _ => Err(FileFault::NoFile),
    }
}

#[cfg(test)]
mod tests;
