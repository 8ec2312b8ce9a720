//! The folder of old files: finds, reads, locks and removes them, and never follows a link.

use std::collections::HashMap;
use std::fs::{File, Metadata};
use std::io::{self, Read as _};
use std::os::fd::OwnedFd;
use std::path::{Path, PathBuf};
use std::sync::{Arc, Mutex, PoisonError};

use rustix::fs::{AtFlags, Dir, Mode, OFlags};
use rustix::io::Errno;

use super::description::{self, Beside};
use super::own::OwnEntries;
use super::root_check::RootCheck;
use super::walk;
use crate::storage::backend::{GetOptions, Listing, Page};
use crate::storage::error::Error;
use crate::storage::files::{Spool, shortage};
use crate::storage::legacy::{Sidecar, names};
use crate::storage::object::{Attributes, Checksum, Key, Object, Payload};

/// The number of checksums that are remembered.
const REMEMBERED: usize = 4096;

/// How often a file is read that changes meanwhile.
const TRIES: usize = 3;

/// Old files below a root.
#[derive(Debug)]
pub(super) struct LegacyFolder {
    root: PathBuf,
    own: OwnEntries,
    /// Takes what is read of large files.
    spool: Spool,
    root_check: RootCheck,
    /// The checksums of files by their generations, so that a second look costs no reading.
    checksums: Mutex<HashMap<String, Checksum>>,
}

/// The reason why a file was not read.
#[derive(Debug)]
pub(super) enum LegacyFault {
    /// The system reported an error.
    Io(io::Error),
    /// The file changed each time it was read.
    Changing,
    /// The bytes could not be put into the spool.
    Spool(io::Error),
    /// The options of the read are not permitted for this file.
    Refused(Error),
}

/// An open file in its folder.
#[derive(Debug)]
struct Opened {
    folder: OwnedFd,
    name: String,
    file: Arc<File>,
    state: Metadata,
}

/// A file that is locked against other writers of this program. Dropping it releases the lock.
#[derive(Debug)]
pub(super) struct HeldFile {
    opened: Opened,
    attributes: Attributes,
}

impl HeldFile {
    /// Returns the attributes of the file, without its checksum.
    pub(super) const fn attributes(&self) -> &Attributes {
        &self.attributes
    }

    pub(super) fn generation(&self) -> &str {
        &self.attributes.generation
    }
}

impl LegacyFolder {
    pub(super) fn new(root: PathBuf, own: OwnEntries, spool: Spool) -> Self {
        Self { root, own, spool, root_check: RootCheck::default(), checksums: Mutex::default() }
    }

    pub(super) fn root(&self) -> &Path {
        &self.root
    }

    pub(super) const fn own(&self) -> &OwnEntries {
        &self.own
    }

    pub(super) fn may_have_files(&self) -> bool {
        self.root_check.look(&self.root, &self.own)
    }

    pub(super) fn has_file(&self, key: &Key) -> io::Result<bool> {
        Ok(self.open(key, Access::Read)?.is_some())
    }

    /// Lists one page of keys.
    pub(super) fn list(&self, page: &Page) -> io::Result<Listing> {
        walk::list(&self.root, &self.own, page)
    }

    /// Reads the attributes, and the whole file for its checksum where that is not known.
    pub(super) fn stat(&self, key: &Key) -> io::Result<Result<Option<Attributes>, LegacyFault>> {
        self.steadily(key, |opened, attributes| {
            let known = self.checksums().get(&attributes.generation).copied();
            let checksum = match known {
                Some(checksum) => checksum,
                None => whole(opened, &attributes).checksum_blocking()?,
            };
            Ok(with_checksum(attributes, checksum))
        })
    }

    /// Reads the requested bytes of the file, and all others for the checksum.
    ///
    /// What is returned is a copy: a program in Python may write into the file itself at any time.
    pub(super) fn read(&self, key: &Key, options: &GetOptions) -> io::Result<Result<Option<Object>, LegacyFault>> {
        self.steadily(key, |opened, attributes| {
            let part = options.kept_part(key, &attributes).map_err(LegacyFault::Refused)?;
            let whole = whole(opened, &attributes);
            let mut checksum = Checksum::of(&[]);
            let mut kept = self.spool.writer();
            let mut offset = 0;
            while offset < whole.len() {
                let chunk = whole.read_at(offset, Payload::CHUNK)?;
                checksum = checksum.append(&chunk);
                let within = |end: u64| (end.clamp(offset, offset + chunk.len() as u64) - offset) as usize;
                kept.push_blocking(&chunk[within(part.start)..within(part.end)]).map_err(LegacyFault::Spool)?;
                offset += chunk.len() as u64;
            }
            let (payload, _) = kept.finish_blocking().map_err(LegacyFault::Spool)?;
            let payload = if options.spooled { payload } else { in_memory(&payload).map_err(LegacyFault::Spool)? };
            Ok(Object { attributes: with_checksum(attributes, checksum), payload })
        })
    }

    /// Locks the file, and waits for others that have it locked.
    pub(super) fn hold(&self, key: &Key) -> io::Result<Option<HeldFile>> {
        loop {
            let Some(opened) = self.open(key, Access::Lock)? else { return Ok(None) };
            match opened.file.lock() {
                Err(error) if error.kind() == io::ErrorKind::Interrupted => continue,
                locked => locked?,
            }
            // Somebody may have removed or replaced the file before the lock was given.
            let Some(present) = self.open(key, Access::Read)? else { return Ok(None) };
            if description::generation(&present.state) == description::generation(&opened.state) {
                let attributes = self.describe(key, &opened)?;
                return Ok(Some(HeldFile { opened, attributes }));
            }
        }
    }

    /// Removes a locked file, and its sidecar unless another file has it, too; tells whether the file was there.
    ///
    /// Where it fails with an error that may pass, nothing has been removed.
    pub(super) fn discard(&self, key: &Key, held: &HeldFile) -> io::Result<bool> {
        let HeldFile { opened, .. } = held;
        // A program that knows no locks may have put another file there.
        let Some(present) = self.open(key, Access::Read)? else { return Ok(false) };
        if description::generation(&present.state) != description::generation(&opened.state) {
            return Ok(false);
        }
        let sidecar = names::sidecar(&opened.name);
        // Once the file is gone, nobody else can have the sidecar by mistake.
        let kept = self.is_own_sidecar(key, &sidecar, &opened.folder)?
            || (exists(&opened.folder, &sidecar)? && is_shared(&opened.folder, &opened.name, &sidecar)?);
        // All that takes a descriptor comes before the removal.
        let folder = readable(&opened.folder)?;
        rustix::fs::unlinkat(&folder, opened.name.as_str(), AtFlags::empty())?;
        if !kept {
            match rustix::fs::unlinkat(&folder, sidecar.as_str(), AtFlags::empty()) {
                Ok(()) | Err(Errno::NOENT | Errno::NAMETOOLONG) => {}
                Err(error) => return Err(shortage::not_retried(error.into())),
            }
        }
        // A removal that a power cut forgets would bring the old value back.
        rustix::fs::fsync(folder).map_err(|error| shortage::not_retried(error.into()))?;
        Ok(true)
    }

    /// Removes empty folders from below.
    pub(super) fn remove_empty_folders(&self) -> io::Result<u64> {
        walk::remove_empty_folders(&self.root, &self.own)
    }

    fn checksums(&self) -> std::sync::MutexGuard<'_, HashMap<String, Checksum>> {
        self.checksums.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Runs a reading, again where the file has changed meanwhile.
    ///
    /// Programs in Python write into the file itself, so a reading may see a mixture.
    fn steadily<T: HasAttributes>(
        &self,
        key: &Key,
        read: impl Fn(&Opened, Attributes) -> Result<T, LegacyFault>,
    ) -> io::Result<Result<Option<T>, LegacyFault>> {
        for _ in 0..TRIES {
            let Some(opened) = self.open(key, Access::Read)? else { return Ok(Ok(None)) };
            let attributes = self.describe(key, &opened)?;
            let done = match read(&opened, attributes) {
                Err(LegacyFault::Io(error)) if error.kind() == io::ErrorKind::UnexpectedEof => continue,
                Err(fault) => return Ok(Err(fault)),
                Ok(done) => done,
            };
            if description::generation(&opened.file.metadata()?) == description::generation(&opened.state) {
                let attributes = done.attributes();
                let mut checksums = self.checksums();
                if checksums.len() >= REMEMBERED {
                    checksums.clear();
                }
                checksums.insert(attributes.generation.clone(), attributes.stored_checksum);
                return Ok(Ok(Some(done)));
            }
        }
        Ok(Err(LegacyFault::Changing))
    }

    fn describe(&self, key: &Key, opened: &Opened) -> io::Result<Attributes> {
        let sidecar = names::sidecar(&opened.name);
        let beside = match open_at(&opened.folder, &sidecar, Access::Read)? {
            None => Beside::Nothing,
            Some(file) if self.own.files().has(&self.folder_of(key), &sidecar, &file.metadata()?) => Beside::Nothing,
            Some(file) => {
                let mut bytes = Vec::new();
                file.take(Sidecar::MOST).read_to_end(&mut bytes)?;
                Sidecar::parse(&bytes).map_or(Beside::Unreadable, Beside::Sidecar)
            }
        };
        let shared = || is_shared(&opened.folder, &opened.name, &sidecar);
        description::attributes(&opened.file, &opened.state, beside, shared)
    }

    /// Opens the file of a key; `None` where there is none, or something else than a regular file.
    fn open(&self, key: &Key, access: Access) -> io::Result<Option<Opened>> {
        let Some((folders, name)) = names::split(key.as_str(), self.own.folders()) else { return Ok(None) };
        let flags = OFlags::PATH | OFlags::DIRECTORY | OFlags::CLOEXEC;
        let Some(mut folder) = absent(rustix::fs::open(&self.root, flags, Mode::empty()))? else { return Ok(None) };
        for part in folders {
            let opened = rustix::fs::openat(&folder, part, flags | OFlags::NOFOLLOW, Mode::empty());
            let Some(next) = absent(opened)? else { return Ok(None) };
            folder = next;
        }
        let Some(file) = open_at(&folder, name, access)? else { return Ok(None) };
        let state = file.metadata()?;
        if !state.is_file() || self.own.files().has(&self.folder_of(key), name, &state) {
            return Ok(None);
        }
        Ok(Some(Opened { folder, name: name.to_owned(), file: Arc::new(file), state }))
    }

    /// Returns the path of the folder in which the file of a key lies.
    fn folder_of(&self, key: &Key) -> PathBuf {
        let path = self.root.join(key.as_str());
        path.parent().map_or_else(|| self.root.clone(), Path::to_owned)
    }

    /// Tells whether a name beside the file of a key is one of the configuration.
    fn is_own_sidecar(&self, key: &Key, sidecar: &str, folder: &OwnedFd) -> io::Result<bool> {
        let Some(file) = open_at(folder, sidecar, Access::Read)? else { return Ok(false) };
        Ok(self.own.files().has(&self.folder_of(key), sidecar, &file.metadata()?))
    }
}

/// The answer of a read: attributes alone, or an object with attributes.
trait HasAttributes {
    fn attributes(&self) -> &Attributes;
}

impl HasAttributes for Attributes {
    fn attributes(&self) -> &Attributes {
        self
    }
}

impl HasAttributes for Object {
    fn attributes(&self) -> &Attributes {
        &self.attributes
    }
}

impl From<io::Error> for LegacyFault {
    fn from(error: io::Error) -> Self {
        Self::Io(error)
    }
}

fn with_checksum(attributes: Attributes, checksum: Checksum) -> Attributes {
    Attributes { checksum, stored_checksum: checksum, ..attributes }
}

/// Returns all bytes of an open file, which stays open as long as they are used.
fn whole(opened: &Opened, attributes: &Attributes) -> Payload {
    Payload::file(Arc::clone(&opened.file), 0, attributes.stored_size)
}

fn in_memory(payload: &Payload) -> io::Result<Payload> {
    let length = usize::try_from(payload.len()).map_err(io::Error::other)?;
    payload.read_at(0, length).map(Payload::Memory)
}

/// What a file is opened for.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Access {
    Read,
    /// To be locked against other writers.
    Lock,
}

/// Opens a file in a folder; `None` where there is none. A link is none. Opening a pipe does not block.
fn open_at(folder: &OwnedFd, name: &str, access: Access) -> io::Result<Option<File>> {
    let open = |mode| {
        let flags = mode | OFlags::NOFOLLOW | OFlags::NONBLOCK | OFlags::CLOEXEC;
        rustix::fs::openat(folder, name, flags, Mode::empty())
    };
    let opened = match access {
        Access::Read => open(OFlags::RDONLY),
        // Writable, though nothing is written: NFS refuses an exclusive lock on a file that is open for reading only.
        Access::Lock => match open(OFlags::RDWR) {
            // Other file systems lock it all the same. A folder cannot be opened for writing at all.
            Err(Errno::ACCESS | Errno::PERM | Errno::ROFS | Errno::ISDIR | Errno::TXTBSY) => open(OFlags::RDONLY),
            opened => opened,
        },
    };
    Ok(absent(opened)?.map(File::from))
}

fn exists(folder: &OwnedFd, name: &str) -> io::Result<bool> {
    Ok(absent(rustix::fs::statat(folder, name, AtFlags::SYMLINK_NOFOLLOW))?.is_some())
}

/// Tells whether another file of the folder has the same sidecar. Reads the names of the folder.
fn is_shared(folder: &OwnedFd, name: &str, sidecar: &str) -> io::Result<bool> {
    for entry in Dir::read_from(readable(folder)?)? {
        let entry = entry?;
        let Ok(other) = entry.file_name().to_str() else { continue };
        if other != name && !other.ends_with(names::SIDECAR) && names::sidecar(other) == sidecar {
            return Ok(true);
        }
    }
    Ok(false)
}

/// Opens a folder again, so that its names can be read and it can be synced.
fn readable(folder: &OwnedFd) -> io::Result<OwnedFd> {
    let flags = OFlags::RDONLY | OFlags::DIRECTORY | OFlags::CLOEXEC;
    Ok(rustix::fs::openat(folder, ".", flags, Mode::empty())?)
}

/// Turns the errors of a name that leads to no file into `None`.
fn absent<T>(opened: rustix::io::Result<T>) -> io::Result<Option<T>> {
    match opened {
        Ok(opened) => Ok(Some(opened)),
        Err(Errno::NOENT | Errno::NOTDIR | Errno::LOOP | Errno::NAMETOOLONG | Errno::NXIO) => Ok(None),
        Err(error) => Err(error.into()),
    }
}
