//! The bytes of an object, in memory or as a part of an open file, so that large values are streamed.

use std::fs::File;
use std::io;
use std::ops::Range;
use std::sync::Arc;

use bytes::Bytes;
use rustix::buffer::spare_capacity;
use rustix::io::{pread, retry_on_intr};

use crate::storage::join::joined;
use crate::storage::object::{Checksum, Watch};

/// Bytes of an object; cheap to clone, never changed.
#[derive(Clone, Debug)]
pub enum Payload {
    /// Bytes in memory.
    Memory(Bytes),
    /// Bytes of a file, which stay on disk until they are read.
    File(FilePart),
    /// So many bytes, which were not read and cannot be read from here.
    Announced(u64),
}

/// A part of an open file.
///
/// The caller that makes one guarantees that nobody changes these bytes, or has a checksum that detects a change.
#[derive(Clone, Debug)]
pub struct FilePart {
    file: Arc<File>,
    begin: u64,
    length: u64,
    watch: Option<Watch>,
}

impl Payload {
    /// The largest number of bytes of a file that are in memory at once while the whole file is read.
    pub const CHUNK: usize = 256 * 1024;

    /// Makes a payload of `length` bytes of an open file, from `begin` on.
    #[must_use]
    pub fn file(file: Arc<File>, begin: u64, length: u64) -> Self {
        Self::File(FilePart { file, begin, length, watch: None })
    }

    /// Reports to a watch how many bytes of a file have been read.
    #[must_use]
    pub fn watched(self, watch: &Watch) -> Self {
        match self {
            Self::Memory(_) | Self::Announced(_) => self,
            Self::File(file_part) => Self::File(FilePart { watch: Some(watch.clone()), ..file_part }),
        }
    }

    /// Returns the number of bytes.
    #[must_use]
    pub fn len(&self) -> u64 {
        match self {
            Self::Memory(bytes) => bytes.len() as u64,
            Self::File(file_part) => file_part.length,
            Self::Announced(length) => *length,
        }
    }

    /// Tells whether the payload has no bytes.
    #[must_use]
    pub fn is_empty(&self) -> bool {
        self.len() == 0
    }

    /// Returns the bytes if they are in memory.
    #[must_use]
    pub const fn as_memory(&self) -> Option<&Bytes> {
        match self {
            Self::Memory(bytes) => Some(bytes),
            Self::File(_) | Self::Announced(_) => None,
        }
    }

    /// Tells whether the bytes were not read, and have to be asked for again.
    #[must_use]
    pub const fn is_announced(&self) -> bool {
        matches!(self, Self::Announced(_))
    }

    /// Returns a part of the bytes without reading them. An end beyond the last byte is cut.
    #[must_use]
    pub fn slice(&self, part: Range<u64>) -> Self {
        let end = part.end.min(self.len());
        let begin = part.start.min(end);
        match self {
            // Both numbers are at most the length of bytes in memory, so they fit.
            Self::Memory(bytes) => Self::Memory(bytes.slice(begin as usize..end as usize)),
            Self::File(file_part) => {
                Self::File(FilePart { begin: file_part.begin + begin, length: end - begin, ..file_part.clone() })
            }
            Self::Announced(_) => Self::Announced(end - begin),
        }
    }

    /// Reads at most `most` bytes from an offset; fewer, or none, only at the end. Blocks when the bytes are in a file.
    ///
    /// # Errors
    ///
    /// The errors of the file system; [`io::ErrorKind::UnexpectedEof`] when the file became shorter.
    pub fn read_at(&self, offset: u64, most: usize) -> io::Result<Bytes> {
        let remaining = self.len().saturating_sub(offset);
        let length = usize::try_from(remaining).unwrap_or(usize::MAX).min(most);
        match self {
            Self::Memory(bytes) if length == 0 => Ok(bytes.slice(..0)),
            Self::Memory(bytes) => Ok(bytes.slice(offset as usize..offset as usize + length)),
            Self::File(file_part) => {
                let bytes = read_exact_at(&file_part.file, file_part.begin + offset, length)?;
                if let Some(watch) = &file_part.watch {
                    watch.report(offset + length as u64);
                }
                Ok(bytes.into())
            }
            Self::Announced(_) => Err(io::Error::other("the bytes were announced and not read")),
        }
    }

    /// Reads as [`Payload::read_at`] does. A file is read on a thread that may block.
    ///
    /// # Errors
    ///
    /// As [`Payload::read_at`].
    pub async fn read(&self, offset: u64, most: usize) -> io::Result<Bytes> {
        match self {
            Self::Memory(_) | Self::Announced(_) => self.read_at(offset, most),
            Self::File(_) => {
                let payload = self.clone();
                run_blocking(move || payload.read_at(offset, most)).await
            }
        }
    }

    /// Reads all bytes into memory.
    ///
    /// # Errors
    ///
    /// As [`Payload::read_at`].
    pub async fn into_memory(self) -> io::Result<Bytes> {
        match self {
            Self::Memory(bytes) => Ok(bytes),
            Self::File(_) | Self::Announced(_) => {
                let length = usize::try_from(self.len()).map_err(io::Error::other)?;
                self.read(0, length).await
            }
        }
    }

    /// Computes the checksum. Blocks to read the whole file, if the bytes are in one.
    ///
    /// # Errors
    ///
    /// As [`Payload::read_at`].
    pub fn checksum_blocking(&self) -> io::Result<Checksum> {
        if let Self::Memory(bytes) = self {
            return Ok(Checksum::of(bytes));
        }
        let (mut checksum, mut offset) = (Checksum::of(&[]), 0);
        while offset < self.len() {
            let chunk = self.read_at(offset, Self::CHUNK)?;
            checksum = checksum.append(&chunk);
            offset += chunk.len() as u64;
        }
        Ok(checksum)
    }

    /// Tells whether the bytes are UTF-8. A file is read to its end.
    ///
    /// # Errors
    ///
    /// As [`Payload::read_at`].
    pub async fn is_utf8(&self) -> io::Result<bool> {
        match self {
            Self::Memory(bytes) => Ok(std::str::from_utf8(bytes).is_ok()),
            Self::File(_) | Self::Announced(_) => {
                let payload = self.clone();
                run_blocking(move || payload.is_utf8_blocking()).await
            }
        }
    }

    fn is_utf8_blocking(&self) -> io::Result<bool> {
        // The remainder of the chunk before: the beginning of a character.
        let (mut remainder, mut offset) = (Vec::new(), 0);
        while offset < self.len() {
            let chunk = self.read_at(offset, Self::CHUNK)?;
            offset += chunk.len() as u64;
            remainder.extend_from_slice(&chunk);
            let valid = match std::str::from_utf8(&remainder) {
                Ok(text) => text.len(),
                Err(error) if error.error_len().is_none() => error.valid_up_to(),
                Err(_) => return Ok(false),
            };
            remainder.drain(..valid);
        }
        Ok(remainder.is_empty())
    }

    /// Computes the checksum. A file is read on a thread that may block.
    ///
    /// # Errors
    ///
    /// As [`Payload::read_at`].
    pub async fn checksum(&self) -> io::Result<Checksum> {
        match self {
            Self::Memory(bytes) => Ok(Checksum::of(bytes)),
            Self::File(_) | Self::Announced(_) => {
                let payload = self.clone();
                run_blocking(move || payload.checksum_blocking()).await
            }
        }
    }
}

impl From<Bytes> for Payload {
    fn from(bytes: Bytes) -> Self {
        Self::Memory(bytes)
    }
}

/// Reads `length` bytes of a file into memory that was not cleared before.
fn read_exact_at(file: &File, offset: u64, length: usize) -> io::Result<Vec<u8>> {
    let mut bytes = Vec::with_capacity(length);
    while bytes.len() < length {
        let next = offset + bytes.len() as u64;
        if retry_on_intr(|| pread(file, spare_capacity(&mut bytes), next))? == 0 {
            return Err(io::ErrorKind::UnexpectedEof.into());
        }
    }
    bytes.truncate(length);
    Ok(bytes)
}

/// Runs blocking work on a thread that may block.
pub(in crate::storage) async fn run_blocking<T: Send + 'static>(
    work: impl FnOnce() -> io::Result<T> + Send + 'static,
) -> io::Result<T> {
    let outcome = joined(tokio::task::spawn_blocking(work)).await;
    outcome.unwrap_or_else(|| Err(io::Error::other("the program is shutting down")))
}

#[cfg(test)]
mod tests {
    use std::io::Write as _;

    use super::*;

    fn in_file(bytes: &[u8]) -> Payload {
        let mut file = tempfile::tempfile().unwrap();
        file.write_all(bytes).unwrap();
        Payload::file(Arc::new(file), 0, bytes.len() as u64)
    }

    #[tokio::test]
    async fn characters_may_lie_across_chunks() {
        for (filler, tail, text) in [
            ("", &b""[..], true),
            ("", b"\xc3", false),
            ("x", "\u{e9}".as_bytes(), true),
            ("\u{e9}x", b"x\xff", false),
            ("\u{1f980}\u{e9}x", "\u{1f980}".as_bytes(), true),
            ("\u{1f980}\u{e9}x", b"\xf0\x9f\xa6", false),
        ] {
            let times = if filler.is_empty() { 0 } else { 2 * Payload::CHUNK / filler.len() };
            let bytes = [filler.repeat(times).as_bytes(), tail].concat();
            assert_eq!(in_file(&bytes).is_utf8().await.unwrap(), text, "{filler:?} {tail:?}");
            assert_eq!(Payload::Memory(bytes.into()).is_utf8().await.unwrap(), text, "{filler:?} {tail:?}");
        }
    }

    #[tokio::test]
    async fn a_file_that_became_shorter_ends_unexpectedly() {
        let payload = in_file(b"12345");
        let Payload::File(file_part) = &payload else { unreachable!() };
        file_part.file.set_len(3).unwrap();
        assert_eq!(payload.checksum().await.unwrap_err().kind(), io::ErrorKind::UnexpectedEof);
    }
}
