//! A file that appears whole under its name, or not at all.

use std::ffi::OsStr;
use std::fs::File;
use std::io::{self, Write as _};
use std::os::fd::{AsFd, AsRawFd as _, BorrowedFd, OwnedFd};
use std::os::unix::fs::MetadataExt as _;
use std::path::{Path, PathBuf};
use std::sync::Arc;

use rustix::fs::{AtFlags, CWD, FileType, Mode, OFlags};
use rustix::io::Errno;
use uuid::Uuid;

use super::nameless;
use crate::storage::object::payload::run_blocking;
use crate::storage::object::{Checksum, Payload};

/// Permissions of any new file, before the umask is applied.
const MODE: Mode = Mode::from_raw_mode(0o666);

/// Up to this many bytes head and payload are copied together, which is cheaper than a second write.
const ONE_WRITE: usize = 64 * 1024;

/// A file that is written under no name or a temporary one, and takes its final name in one step.
///
/// An entry that has the final name already is replaced, and never followed or opened. A file that is dropped before it
/// has its final name is removed.
///
/// [`AtomicFile::create`] writes the file beside its final name. Where the file system supports it, the file has no name
/// until then, so nothing remains when the process dies. Elsewhere it has a temporary name that begins with a dot. A
/// regular file passes its permissions on to its replacement.
///
/// A staging folder writes the file in a folder of its own, where a sweep finds what a killed process left.
#[derive(Debug)]
pub struct AtomicFile {
    /// The folder from which the names are resolved; without one they are paths.
    base: Option<OwnedFd>,
    target: PathBuf,
    name: Name,
    is_staged: bool,
    file: Arc<File>,
    is_synced: bool,
}

/// The name that the file has at present.
#[derive(Debug)]
enum Name {
    Nameless,
    Temporary(PathBuf),
    Target,
}

impl AtomicFile {
    /// Begins a file beside its path, whose folder must exist. Blocks.
    ///
    /// # Errors
    ///
    /// The errors of the file system; [`io::ErrorKind::InvalidInput`] for a path without a name.
    pub fn create(path: &Path) -> io::Result<Self> {
        let name = path.file_name().ok_or(io::ErrorKind::InvalidInput)?;
        let folder = path.parent().filter(|folder| !folder.as_os_str().is_empty()).unwrap_or(Path::new("."));
        let flags = OFlags::PATH | OFlags::DIRECTORY | OFlags::CLOEXEC;
        Self::create_in(rustix::fs::openat(CWD, folder, flags, Mode::empty())?, name)
    }

    /// Begins a file in the open folder of its name. Blocks.
    pub(in crate::storage) fn create_in(folder: OwnedFd, name: &OsStr) -> io::Result<Self> {
        // A file without a name gets its name through /proc.
        let can_be_linked = Path::new("/proc/self/fd").exists();
        let nameless =
            if can_be_linked { nameless::create(&folder, Path::new("."), OFlags::WRONLY, MODE)? } else { None };
        let (file, current) = match nameless {
            Some(file) => (file, Name::Nameless),
            None => named(&folder).map(|(file, name)| (file, Name::Temporary(name)))?,
        };
        Ok(Self {
            base: Some(folder),
            target: name.into(),
            name: current,
            is_staged: false,
            file: Arc::new(file),
            is_synced: false,
        })
    }

    /// Takes over an empty file of a staging folder. Both paths must be on the same file system.
    pub(super) fn staged(path: PathBuf, target: &Path, file: File) -> Self {
        Self {
            base: None,
            target: target.to_owned(),
            name: Name::Temporary(path),
            is_staged: true,
            file: Arc::new(file),
            is_synced: false,
        }
    }

    /// Appends all bytes of a payload and returns the checksum of the bytes that were written; stops when dropped.
    ///
    /// # Errors
    ///
    /// The errors of the file system; [`io::ErrorKind::UnexpectedEof`] when the payload's file became shorter.
    pub async fn write(&mut self, payload: &Payload) -> io::Result<Checksum> {
        self.is_synced = false;
        let (mut checksum, mut offset) = (Checksum::of(&[]), 0);
        while offset < payload.len() {
            let (payload, file, before) = (payload.clone(), Arc::clone(&self.file), checksum);
            let (after, copied) = run_blocking(move || append(&file, &payload, offset, before)).await?;
            checksum = after;
            offset += copied;
        }
        Ok(checksum)
    }

    /// Appends a head and all bytes of a payload, and returns the checksum of the payload as it was written. Blocks.
    pub(in crate::storage) fn write_blocking(&mut self, head: &[u8], payload: &Payload) -> io::Result<Checksum> {
        self.is_synced = false;
        let mut file = &*self.file;
        if let Payload::Memory(body) = payload {
            if head.len() + body.len() <= ONE_WRITE {
                file.write_all(&[head, body].concat())?;
            } else {
                file.write_all(head)?;
                file.write_all(body)?;
            }
            return Ok(Checksum::of(body));
        }
        file.write_all(head)?;
        let (mut checksum, mut offset) = (Checksum::of(&[]), 0);
        while offset < payload.len() {
            let (after, copied) = append(file, payload, offset, checksum)?;
            checksum = after;
            offset += copied;
        }
        Ok(checksum)
    }

    /// Syncs the bytes of the file to the disk, unless they are synced already. Blocks.
    ///
    /// # Errors
    ///
    /// The errors of the file system.
    pub fn sync(&mut self) -> io::Result<()> {
        if !self.is_synced {
            self.file.sync_all()?;
            self.is_synced = true;
        }
        Ok(())
    }

    /// Syncs the bytes, gives the file its final name and syncs the folder. Blocks.
    ///
    /// # Errors
    ///
    /// The errors of the file system.
    pub fn commit(mut self) -> io::Result<()> {
        self.sync()?;
        self.rename()?;
        self.sync_folder()
    }

    /// Removes the file. Dropping it does the same. Blocks.
    pub fn discard(self) {
        drop(self);
    }

    /// Gives the file its final name, which is the visible step of [`AtomicFile::commit`] alone. Blocks.
    ///
    /// It is for a caller that holds a lock, under which nothing is synced: the bytes must be synced before, and the
    /// folder after it. After an error it can be tried again.
    pub(in crate::storage) fn rename(&mut self) -> io::Result<()> {
        if !self.is_staged
            && let Some(mode) = mode_of(self.base(), self.target.as_os_str())
            && FileType::from_raw_mode(mode).is_file()
        {
            rustix::fs::fchmod(&self.file, Mode::from_raw_mode(mode & 0o777))?;
        }
        // A link cannot replace a file, only a rename can.
        if matches!(self.name, Name::Nameless) {
            let (temporary, own) = (temporary_name(), format!("/proc/self/fd/{}", self.file.as_raw_fd()));
            rustix::fs::linkat(CWD, own, self.base(), &temporary, AtFlags::SYMLINK_FOLLOW)?;
            self.name = Name::Temporary(temporary);
        }
        if let Name::Temporary(temporary) = &self.name {
            rustix::fs::renameat(self.base(), temporary, self.base(), &self.target)?;
            self.name = Name::Target;
        }
        Ok(())
    }

    /// Tells whether the file has no name on the disk: it never had one, or somebody removed it.
    pub(in crate::storage) fn is_gone(&self) -> io::Result<bool> {
        Ok(self.file.metadata()?.nlink() == 0)
    }

    fn base(&self) -> BorrowedFd<'_> {
        self.base.as_ref().map_or(CWD, |base| base.as_fd())
    }

    fn sync_folder(&self) -> io::Result<()> {
        let folder = self.target.parent().filter(|folder| !folder.as_os_str().is_empty()).unwrap_or(Path::new("."));
        let flags = OFlags::RDONLY | OFlags::DIRECTORY | OFlags::CLOEXEC;
        match rustix::fs::openat(self.base(), folder, flags, Mode::empty()).map_err(io::Error::from) {
            Ok(folder) => Ok(rustix::fs::fsync(folder)?),
            // A folder that may be written but not read cannot be synced.
            Err(error) if error.kind() == io::ErrorKind::PermissionDenied => Ok(()),
            Err(error) => Err(error),
        }
    }
}

impl Drop for AtomicFile {
    fn drop(&mut self) {
        let Name::Temporary(temporary) = &self.name else { return };
        match rustix::fs::unlinkat(self.base(), temporary, AtFlags::empty()) {
            // A sweep or somebody else has removed it.
            Ok(()) | Err(Errno::NOENT) => {}
            Err(error) => {
                let remedy = if self.is_staged { "the next start removes it" } else { "remove it" };
                let path = temporary.display();
                tracing::warn!(%path, %error, "a temporary file could not be removed; {remedy}");
            }
        }
    }
}

/// Returns type and permissions of an entry of a folder, if the entry can be examined.
pub(in crate::storage) fn mode_of(folder: impl AsFd, name: &OsStr) -> Option<rustix::fs::RawMode> {
    rustix::fs::statat(folder, name, AtFlags::SYMLINK_NOFOLLOW).ok().map(|stat| stat.st_mode)
}

/// Appends the piece of a payload at an offset. Returns the checksum with the piece, and the length of the piece.
fn append(mut file: &File, payload: &Payload, offset: u64, before: Checksum) -> io::Result<(Checksum, u64)> {
    let piece = payload.read_at(offset, Payload::CHUNK)?;
    file.write_all(&piece)?;
    Ok((before.append(&piece), piece.len() as u64))
}

/// Makes a file with a temporary name.
fn named(folder: &OwnedFd) -> io::Result<(File, PathBuf)> {
    let name = temporary_name();
    let flags = OFlags::CREATE | OFlags::EXCL | OFlags::NOFOLLOW | OFlags::WRONLY | OFlags::CLOEXEC;
    let file = rustix::fs::openat(folder, &name, flags, MODE)?;
    Ok((file.into(), name))
}

fn temporary_name() -> PathBuf {
    format!(".{}.filestorage", Uuid::new_v4().simple()).into()
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
        let mut file = AtomicFile::create(path).unwrap();
        if with_name {
            let (inner, temporary) = named(file.base.as_ref().unwrap()).unwrap();
            (file.file, file.name) = (Arc::new(inner), Name::Temporary(temporary));
        }
        file
    }

    #[tokio::test]
    async fn a_file_appears_whole_or_not_at_all() {
        let place = tempfile::tempdir().unwrap();
        let path = place.path().join("out");
        let payload = Payload::Memory(Bytes::from(vec![b'x'; Payload::CHUNK + 9]));
        for with_name in [false, true] {
            let mut file = begin(&path, with_name);
            assert_eq!(file.write(&payload).await.unwrap(), payload.checksum().await.unwrap());
            file.sync().unwrap();
            assert!(!path.exists());
            file.discard();
            assert_eq!(names(place.path()), [""; 0]);
        }
        for (with_name, mode) in [(false, 0o640), (true, 0o600)] {
            let mut file = begin(&path, with_name);
            fs::write(&path, "old").unwrap();
            fs::set_permissions(&path, fs::Permissions::from_mode(mode)).unwrap();
            let old = File::open(&path).unwrap();
            file.write(&payload).await.unwrap();
            file.commit().unwrap();
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
            begin(&path, with_name).commit().unwrap();
            assert!(fs::symlink_metadata(&path).unwrap().is_file());
            assert_eq!(fs::read_to_string(&target).unwrap(), "mine");
            fs::remove_file(&path).unwrap();
        }
        for with_name in [false, true] {
            fs::create_dir(&path).unwrap();
            assert!(begin(&path, with_name).commit().is_err());
            fs::remove_dir(&path).unwrap();
            assert_eq!(names(place.path()), ["target"]);
        }
        assert!(AtomicFile::create(&place.path().join("missing/out")).is_err());
    }
}
