//! Where a codec puts its bytes: into memory, or into files of the spool.

use std::io::{self, Write};

use crate::storage::files::{Spool, SpoolWriter};
use crate::storage::object::{Checksum, Payload};

/// Takes the bytes that a codec makes. Blocks where they go into a file.
pub(super) enum CodecSink {
    /// Bytes in memory.
    Memory(Vec<u8>),
    /// Bytes that go into a file once they are many.
    Spooled(SpoolWriter),
}

impl CodecSink {
    /// Keeps all bytes in memory, of which this many are expected.
    pub(super) fn in_memory(expected: usize) -> Self {
        Self::Memory(Vec::with_capacity(expected))
    }

    /// Puts many bytes into a file of the spool.
    pub(super) fn spooled(spool: &Spool) -> Self {
        Self::Spooled(spool.writer())
    }

    /// Returns the number of bytes taken so far.
    pub(super) const fn len(&self) -> u64 {
        match self {
            Self::Memory(bytes) => bytes.len() as u64,
            Self::Spooled(writer) => writer.len(),
        }
    }

    /// Returns the bytes and their checksum.
    pub(super) fn finish(self) -> io::Result<(Payload, Checksum)> {
        match self {
            Self::Memory(bytes) => {
                let checksum = Checksum::of(&bytes);
                Ok((Payload::Memory(bytes.into()), checksum))
            }
            Self::Spooled(writer) => writer.finish_blocking(),
        }
    }
}

impl Write for CodecSink {
    fn write(&mut self, bytes: &[u8]) -> io::Result<usize> {
        match self {
            Self::Memory(kept) => kept.extend_from_slice(bytes),
            Self::Spooled(writer) => writer.push_blocking(bytes)?,
        }
        Ok(bytes.len())
    }

    fn flush(&mut self) -> io::Result<()> {
        Ok(())
    }
}
