//! The spool: bytes that pass through, in memory while they are few, in a file without a name once they are many.

use std::fs::{self, File, OpenOptions};
use std::io;
use std::os::unix::fs::{FileExt as _, OpenOptionsExt as _};
use std::path::{Path, PathBuf};
use std::sync::Arc;

use bytes::{Bytes, BytesMut};
use rustix::fs::{CWD, Mode, OFlags};
use uuid::Uuid;

use crate::storage::error::{Error, ErrorKind, Operation};
use crate::storage::files::{nameless, shortage};
use crate::storage::object::{Checksum, Key, Payload, Watch, payload};

/// Permissions of the files: values are for this user only.
const MODE: u32 = 0o600;

/// Makes files without a name in one folder, which is created when it is first needed; cheap to clone.
///
/// The files never have a name, so nothing remains when the process dies.
#[derive(Clone, Debug)]
pub struct Spool(Arc<[PathBuf]>);

impl Spool {
    /// Uses a folder, which should be on a disk: on a file system in memory the files take memory.
    #[must_use]
    pub fn new(folder: impl Into<PathBuf>) -> Self {
        Self(Arc::from([folder.into()]))
    }

    /// Adds a folder to use when those before are full.
    #[must_use]
    pub fn or(self, folder: impl Into<PathBuf>) -> Self {
        Self(self.0.iter().cloned().chain([folder.into()]).collect())
    }

    /// Returns the first folder.
    #[must_use]
    pub fn folder(&self) -> &Path {
        self.0.first().map_or(Path::new(""), PathBuf::as_path)
    }

    /// Makes a file without a name, for writing and reading. Blocks.
    ///
    /// # Errors
    ///
    /// The errors of the file system.
    pub fn create(&self) -> io::Result<File> {
        let mut made = Self::create_in(self.folder());
        for folder in self.0.iter().skip(1) {
            if made.as_ref().is_err_and(is_full) {
                made = Self::create_in(folder);
            }
        }
        made
    }

    /// Copies the first bytes of a file on a full disk into a file in another folder, and appends more bytes.
    fn move_to_next_folder(&self, file: &File, kept: u64, more: &[u8]) -> io::Result<File> {
        for folder in self.0.iter().skip(1) {
            let moved = Self::create_in(folder).and_then(|next| {
                let mut at = 0;
                while at < kept {
                    let length = (kept - at).min(Payload::CHUNK as u64) as usize;
                    let mut chunk = vec![0; length];
                    file.read_exact_at(&mut chunk, at)?;
                    next.write_all_at(&chunk, at)?;
                    at += length as u64;
                }
                next.write_all_at(more, kept)?;
                Ok(next)
            });
            match moved {
                Err(error) if is_full(&error) => {}
                moved => return moved,
            }
        }
        Err(io::ErrorKind::StorageFull.into())
    }

    fn create_in(folder: &Path) -> io::Result<File> {
        fs::create_dir_all(folder)?;
        if let Some(file) = nameless::create(CWD, folder, OFlags::RDWR, Mode::from_raw_mode(MODE))? {
            return Ok(file);
        }
        // Not every file system supports that.
        let path = folder.join(format!("{}.tmp", Uuid::new_v4().simple()));
        let file = OpenOptions::new().read(true).write(true).create_new(true).mode(MODE).open(&path)?;
        fs::remove_file(&path)?;
        Ok(file)
    }

    /// Begins a value: makes the writer that takes its bytes.
    #[must_use]
    pub fn writer(&self) -> SpoolWriter {
        SpoolWriter {
            spool: self.clone(),
            memory: BytesMut::new(),
            file: None,
            kept: 0,
            length: 0,
            checksum: Checksum::of(&[]),
            watch: Watch::current(),
        }
    }
}

/// Takes the bytes of a value piece by piece and returns them as one [`Payload`].
#[derive(Debug)]
pub struct SpoolWriter {
    spool: Spool,
    memory: BytesMut,
    file: Option<Arc<File>>,
    /// The number of bytes in the file.
    kept: u64,
    length: u64,
    checksum: Checksum,
    watch: Option<Watch>,
}

impl SpoolWriter {
    /// The largest number of bytes that stay in memory.
    pub const IN_MEMORY: usize = 1024 * 1024;

    /// Takes the next bytes.
    ///
    /// # Errors
    ///
    /// The errors of the file system.
    pub async fn push(&mut self, bytes: &Bytes) -> io::Result<()> {
        self.take(bytes);
        if self.memory.len() > self.most() { self.spill().await } else { Ok(()) }
    }

    /// Returns the number of bytes taken so far.
    #[must_use]
    pub const fn len(&self) -> u64 {
        self.length
    }

    /// Tells whether no bytes were taken so far.
    #[must_use]
    pub const fn is_empty(&self) -> bool {
        self.length == 0
    }

    /// Returns the bytes that were taken and their checksum.
    ///
    /// # Errors
    ///
    /// The errors of the file system.
    pub async fn finish(mut self) -> io::Result<(Payload, Checksum)> {
        if self.file.is_some() {
            self.spill().await?;
        }
        Ok(self.finished())
    }

    /// Takes the next bytes, on a thread that may block.
    pub(in crate::storage) fn push_blocking(&mut self, bytes: &[u8]) -> io::Result<()> {
        self.take(bytes);
        if self.memory.len() <= self.most() {
            return Ok(());
        }
        let written = self.pending().write()?;
        self.spilled(written);
        Ok(())
    }

    /// Returns the bytes and their checksum as [`SpoolWriter::finish`] does, on a thread that may block.
    pub(in crate::storage) fn finish_blocking(mut self) -> io::Result<(Payload, Checksum)> {
        if self.file.is_some() {
            let written = self.pending().write()?;
            self.spilled(written);
        }
        Ok(self.finished())
    }

    fn take(&mut self, bytes: &[u8]) {
        self.checksum = self.checksum.append(bytes);
        self.length += bytes.len() as u64;
        self.memory.extend_from_slice(bytes);
        if let Some(watch) = &self.watch {
            watch.report(self.length);
        }
    }

    /// Returns how many bytes are gathered in memory. The pieces of a file are large enough for a change of threads.
    const fn most(&self) -> usize {
        if self.file.is_some() { Payload::CHUNK } else { Self::IN_MEMORY }
    }

    fn pending(&mut self) -> Pending {
        Pending {
            spool: self.spool.clone(),
            file: self.file.take(),
            kept: self.kept,
            bytes: self.memory.split().freeze(),
        }
    }

    /// Moves the bytes in memory into the file.
    async fn spill(&mut self) -> io::Result<()> {
        let pending = self.pending();
        let written = payload::run_blocking(move || pending.write()).await?;
        self.spilled(written);
        Ok(())
    }

    fn spilled(&mut self, (file, kept): (Arc<File>, u64)) {
        self.file = Some(file);
        self.kept = kept;
    }

    fn finished(self) -> (Payload, Checksum) {
        match self.file {
            Some(file) => (Payload::file(file, 0, self.length), self.checksum),
            None => (Payload::Memory(self.memory.freeze()), self.checksum),
        }
    }
}

/// Bytes that must be written behind those of a file, or into a new file.
struct Pending {
    spool: Spool,
    file: Option<Arc<File>>,
    kept: u64,
    bytes: Bytes,
}

impl Pending {
    /// Writes the bytes and returns the file and how many bytes are in it. Blocks.
    fn write(self) -> io::Result<(Arc<File>, u64)> {
        let Self { spool, file, kept, bytes } = self;
        let file = match file {
            Some(file) => file,
            None => Arc::new(shortage::retry(|| spool.create(), || {})?),
        };
        let file = match file.write_all_at(&bytes, kept) {
            Ok(()) => file,
            Err(error) if is_full(&error) => {
                spool.move_to_next_folder(&file, kept, &bytes).map(Arc::new).map_err(|_| error)?
            }
            Err(error) => return Err(error),
        };
        Ok((file, kept + bytes.len() as u64))
    }
}

/// Makes the error of a value that cannot pass through the spool.
pub(in crate::storage) fn spool_fault(operation: Operation, key: Option<&Key>, error: io::Error) -> Error {
    let (kind, remedy) = if is_full(&error) {
        (ErrorKind::NoSpace, "free space on the disk of the spool folder, through which values pass")
    } else {
        (ErrorKind::Io, "check the disk of the spool folder, through which values pass")
    };
    Error::new(kind, operation, key, format!("the value cannot be spooled: {error}; {remedy}")).with_source(error)
}

fn is_full(error: &io::Error) -> bool {
    matches!(error.kind(), io::ErrorKind::StorageFull | io::ErrorKind::QuotaExceeded)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[tokio::test]
    async fn bytes_come_out_as_taken_from_memory_and_file() {
        let folder = tempfile::tempdir().unwrap();
        let spool = Spool::new(folder.path().join("made/when/needed"));
        for size in [0, 1, SpoolWriter::IN_MEMORY, SpoolWriter::IN_MEMORY + 1, 3 * SpoolWriter::IN_MEMORY + 77] {
            let wanted: Vec<u8> = (0..size).map(|at| (at * 31 % 251) as u8).collect();
            let mut writer = spool.writer();
            for piece in wanted.chunks(100_003) {
                writer.push(&Bytes::copy_from_slice(piece)).await.unwrap();
            }
            let (payload, checksum) = writer.finish().await.unwrap();
            assert_eq!(payload.as_memory().is_some(), size <= SpoolWriter::IN_MEMORY, "{size}");
            assert_eq!(payload.len(), size as u64);
            assert_eq!(checksum, Checksum::of(&wanted));
            assert_eq!(payload.checksum().await.unwrap(), checksum);
            assert_eq!(payload.slice(5..u64::MAX).into_memory().await.unwrap(), &wanted[5.min(size)..]);
            assert_eq!(payload.into_memory().await.unwrap(), wanted);
        }
        assert_eq!(fs::read_dir(spool.folder()).unwrap().count(), 0);
    }
}
