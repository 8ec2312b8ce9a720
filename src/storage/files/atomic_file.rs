//! A file that appears whole under its name, or not at all.

use std::ffi::{OsStr, OsString};
use std::fs::File;
use std::io::{self, Write as _};
use std::os::fd::{AsRawFd as _, OwnedFd};
use std::path::Path;
use std::sync::Arc;

use rustix::fs::{AtFlags, CWD, FileType, Mode, OFlags};
use uuid::Uuid;

use crate::storage::object::payload::run_blocking;
use crate::storage::object::{Checksum, Payload};

/// A file that is written beside its final name and takes that name in one step.
///
/// Where the file system supports it, the file has no name until then, so nothing remains when the process dies.
/// Elsewhere it has a temporary name that begins with a dot, and is removed when dropped. An entry that has the final
/// name already is replaced, and never followed or opened. A regular file passes its permissions on to its replacement.
#[derive(Debug)]
pub struct AtomicFile {
    folder: OwnedFd,
    name: OsString,
    file: Arc<File>,
    /// The temporary name, where the file system knows no files without a name.
    temporary: Option<OsString>,
}

impl AtomicFile {
    /// Begins a file at a path, whose folder must exist. Blocks.
    ///
    /// # Errors
    ///
    /// The errors of the file system; [`io::ErrorKind::InvalidInput`] for a path without a name.
    pub fn at(path: &Path) -> io::Result<Self> {
        let name = path.file_name().ok_or(io::ErrorKind::InvalidInput)?;
        let folder = path.parent().filter(|folder| !folder.as_os_str().is_empty()).unwrap_or(Path::new("."));
        let flags = OFlags::PATH | OFlags::DIRECTORY | OFlags::CLOEXEC;
        Self::create(rustix::fs::openat(CWD, folder, flags, Mode::empty())?, name)
    }

    /// Begins a file in an open folder. Blocks.
    pub(in crate::storage) fn create(folder: OwnedFd, name: &OsStr) -> io::Result<Self> {
        // A file without a name gets its name through /proc.
        let nameless = if Path::new("/proc/self/fd").exists() { nameless(&folder) } else { Ok(None) };
        let (file, temporary) = match nameless? {
            Some(file) => (file, None),
            None => named(&folder).map(|(file, name)| (file, Some(name)))?,
        };
        Ok(Self { folder, name: name.to_owned(), file: Arc::new(file), temporary })
    }

    /// Appends all bytes of a payload and returns the checksum of the bytes that were written; stops when dropped.
    ///
    /// # Errors
    ///
    /// The errors of the file system; [`io::ErrorKind::UnexpectedEof`] when the payload's file became shorter.
    pub async fn write(&self, payload: &Payload) -> io::Result<Checksum> {
        let (mut checksum, mut offset) = (Checksum::of(&[]), 0);
        while offset < payload.len() {
            let (payload, file, before) = (payload.clone(), Arc::clone(&self.file), checksum);
            let copy = move || {
                let chunk = payload.read_at(offset, Payload::CHUNK)?;
                (&*file).write_all(&chunk)?;
                Ok((before.append(&chunk), chunk.len() as u64))
            };
            let (after, copied) = run_blocking(copy).await?;
            checksum = after;
            offset += copied;
        }
        Ok(checksum)
    }

    /// Syncs the bytes of the file to the disk. Blocks.
    ///
    /// # Errors
    ///
    /// The errors of the file system.
    pub fn sync(&self) -> io::Result<()> {
        self.file.sync_all()
    }

    /// Gives the file its final name and syncs the folder. Blocks.
    ///
    /// # Errors
    ///
    /// The errors of the file system.
    pub fn place(mut self) -> io::Result<()> {
        if let Some(mode) = mode_of(&self.folder, &self.name)
            && FileType::from_raw_mode(mode).is_file()
        {
            rustix::fs::fchmod(&self.file, Mode::from_raw_mode(mode & 0o777))?;
        }
        // A link cannot replace a file, only a rename can.
        let temporary = match self.temporary.take() {
            Some(temporary) => temporary,
            None => {
                let (temporary, own) = (temporary_name(), format!("/proc/self/fd/{}", self.file.as_raw_fd()));
                rustix::fs::linkat(CWD, own, &self.folder, &temporary, AtFlags::SYMLINK_FOLLOW)?;
                temporary
            }
        };
        if let Err(error) = rustix::fs::renameat(&self.folder, &temporary, &self.folder, &self.name) {
            self.temporary = Some(temporary);
            return Err(error.into());
        }
        sync(&self.folder)
    }
}

impl Drop for AtomicFile {
    fn drop(&mut self) {
        let Some(temporary) = self.temporary.take() else { return };
        if let Err(error) = rustix::fs::unlinkat(&self.folder, &temporary, AtFlags::empty()) {
            tracing::warn!(name = %temporary.display(), %error, "a temporary file could not be removed; remove it");
        }
    }
}

/// Returns type and permissions of an entry of a folder, if the entry can be examined.
pub(in crate::storage) fn mode_of(folder: &OwnedFd, name: &OsStr) -> Option<rustix::fs::RawMode> {
    rustix::fs::statat(folder, name, AtFlags::SYMLINK_NOFOLLOW).ok().map(|stat| stat.st_mode)
}

/// Permissions of any new file, before the umask is applied.
const MODE: Mode = Mode::from_raw_mode(0o666);

/// Makes a file without a name; `None` where the file system does not support that.
fn nameless(folder: &OwnedFd) -> io::Result<Option<File>> {
    let flags = OFlags::TMPFILE | OFlags::WRONLY | OFlags::CLOEXEC;
    match rustix::fs::openat(folder, ".", flags, MODE).map_err(io::Error::from) {
        Ok(file) => Ok(Some(file.into())),
        Err(error) if matches!(error.kind(), io::ErrorKind::Unsupported | io::ErrorKind::IsADirectory) => Ok(None),
        Err(error) => Err(error),
    }
}

fn named(folder: &OwnedFd) -> io::Result<(File, OsString)> {
    let name = temporary_name();
    let flags = OFlags::CREATE | OFlags::EXCL | OFlags::NOFOLLOW | OFlags::WRONLY | OFlags::CLOEXEC;
    let file = rustix::fs::openat(folder, &name, flags, MODE)?;
    Ok((file.into(), name))
}

fn temporary_name() -> OsString {
    format!(".{}.filestorage", Uuid::new_v4().simple()).into()
}

fn sync(folder: &OwnedFd) -> io::Result<()> {
    let flags = OFlags::RDONLY | OFlags::DIRECTORY | OFlags::CLOEXEC;
    match rustix::fs::openat(folder, ".", flags, Mode::empty()).map_err(io::Error::from) {
        Ok(folder) => Ok(rustix::fs::fsync(folder)?),
        // A folder that may be written but not read cannot be synced.
        Err(error) if error.kind() == io::ErrorKind::PermissionDenied => Ok(()),
        Err(error) => Err(error),
    }
}

#[cfg(test)]
mod tests {
    use std::fs;
    use std::os::unix::fs::PermissionsExt as _;

    use bytes::Bytes;

    use super::*;

    fn names(folder: &Path) -> Vec<String> {
        let mut names: Vec<String> =
            fs::read_dir(folder).unwrap().map(|entry| entry.unwrap().file_name().into_string().unwrap()).collect();
        names.sort();
        names
    }

    /// Begins a file that has a temporary name, or none.
    fn begin(path: &Path, with_name: bool) -> AtomicFile {
        let mut file = AtomicFile::at(path).unwrap();
        if with_name {
            let (inner, temporary) = named(&file.folder).unwrap();
            (file.file, file.temporary) = (Arc::new(inner), Some(temporary));
        }
        file
    }

    #[tokio::test]
    async fn a_file_appears_whole_or_not_at_all() {
        let place = tempfile::tempdir().unwrap();
        let path = place.path().join("out");
        let payload = Payload::Memory(Bytes::from(vec![b'x'; Payload::CHUNK + 9]));
        for with_name in [false, true] {
            let file = begin(&path, with_name);
            assert_eq!(file.write(&payload).await.unwrap(), payload.checksum().await.unwrap());
            file.sync().unwrap();
            assert!(!path.exists());
            drop(file);
            assert_eq!(names(place.path()), [""; 0]);
        }
        for (with_name, mode) in [(false, 0o640), (true, 0o600)] {
            let file = begin(&path, with_name);
            fs::write(&path, "old").unwrap();
            fs::set_permissions(&path, fs::Permissions::from_mode(mode)).unwrap();
            let old = File::open(&path).unwrap();
            file.write(&payload).await.unwrap();
            file.place().unwrap();
            assert_eq!(fs::read(&path).unwrap().len(), Payload::CHUNK + 9);
            assert_eq!(fs::metadata(&path).unwrap().permissions().mode() & 0o777, mode);
            assert_eq!(io::read_to_string(old).unwrap(), "old");
            assert_eq!(names(place.path()), ["out"]);
        }
    }

    #[tokio::test]
    async fn a_link_is_replaced_and_a_folder_is_not() {
        let place = tempfile::tempdir().unwrap();
        let (path, target) = (place.path().join("out"), place.path().join("target"));
        fs::write(&target, "mine").unwrap();
        for with_name in [false, true] {
            std::os::unix::fs::symlink(&target, &path).unwrap();
            begin(&path, with_name).place().unwrap();
            assert!(fs::symlink_metadata(&path).unwrap().is_file());
            assert_eq!(fs::read_to_string(&target).unwrap(), "mine");
            fs::remove_file(&path).unwrap();
        }
        for with_name in [false, true] {
            fs::create_dir(&path).unwrap();
            assert!(begin(&path, with_name).place().is_err());
            fs::remove_dir(&path).unwrap();
            assert_eq!(names(place.path()), ["target"]);
        }
        assert!(AtomicFile::at(&place.path().join("missing/out")).is_err());
    }
}
