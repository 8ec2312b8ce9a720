//! Encrypts and decrypts payloads, chunk by chunk.

use std::io;
use std::ops::Range;

use super::chunk::{ContentKey, Layout, PLAIN, Position, SEALED};
use super::fault::SealFault;
use crate::storage::files::{Spool, SpoolWriter};
use crate::storage::object::Checksum;
use crate::storage::object::payload::{self, Payload};

/// Encrypts a payload and returns the encrypted bytes with their checksum.
///
/// One chunk in memory is encrypted at once, more on a thread that may block. Up to [`SpoolWriter::IN_MEMORY`] encrypted
/// bytes stay in memory, more go into a file of the spool. A payload in a file must have this checksum.
pub(super) async fn seal(
    content: ContentKey,
    payload: &Payload,
    checksum: Checksum,
    spool: &Spool,
) -> Result<(Payload, Checksum), SealFault> {
    let (payload, spool) = (payload.clone(), spool.clone());
    somewhere(payload.clone(), move || seal_blocking(&content, &payload, checksum, &spool)).await
}

/// Decrypts a part of a payload and returns its bytes with their checksum.
///
/// Only the chunks that hold the part are decrypted, and the last one, which proves that the payload is whole. No byte is
/// returned before all of them have opened. Threads and spool are used as in [`seal`]; without a spool all bytes stay in
/// memory.
pub(super) async fn open(
    content: ContentKey,
    payload: &Payload,
    part: Range<u64>,
    spool: Option<&Spool>,
) -> Result<(Payload, Checksum), SealFault> {
    let (payload, spool) = (payload.clone(), spool.cloned());
    somewhere(payload.clone(), move || open_blocking(&content, &payload, part, spool.as_ref())).await
}

/// Returns the number of bytes that a payload has once it is decrypted.
pub(super) fn plain_size(payload: &Payload) -> Result<u64, SealFault> {
    let length = payload.len();
    Layout::of_sealed(length).map(|layout| layout.plain).ok_or(SealFault::WrongLength(length))
}

async fn somewhere<T: Send + 'static>(
    payload: Payload,
    work: impl FnOnce() -> Result<T, SealFault> + Send + 'static,
) -> Result<T, SealFault> {
    if payload.as_memory().is_some_and(|bytes| bytes.len() <= SEALED) {
        return work();
    }
    payload::run_blocking(move || Ok(work())).await.unwrap_or_else(|error| Err(SealFault::Spool(error)))
}

fn seal_blocking(
    content: &ContentKey,
    payload: &Payload,
    checksum: Checksum,
    spool: &Spool,
) -> Result<(Payload, Checksum), SealFault> {
    let layout = Layout::of_plain(payload.len());
    let mut collector = Collector::new(layout.sealed(), Some(spool));
    let mut read = Checksum::of(&[]);
    for position in layout.positions() {
        let plain = payload.read_at(position.number * PLAIN as u64, PLAIN).map_err(SealFault::Unread)?;
        // Bytes in memory cannot have changed since their checksum was computed.
        if payload.as_memory().is_none() {
            read = read.append(&plain);
        }
        content.seal(position, &plain, &mut collector.buffer)?;
        collector.push(0).map_err(SealFault::Spool)?;
    }
    if payload.as_memory().is_none() && read != checksum {
        return Err(SealFault::Changed);
    }
    collector.finish().map_err(SealFault::Spool)
}

fn open_blocking(
    content: &ContentKey,
    payload: &Payload,
    part: Range<u64>,
    spool: Option<&Spool>,
) -> Result<(Payload, Checksum), SealFault> {
    let layout = Layout::of_sealed(payload.len()).ok_or(SealFault::WrongLength(payload.len()))?;
    let end = part.end.min(layout.plain);
    let part = part.start.min(end)..end;
    let open = |position: Position, out: &mut Vec<u8>| {
        let sealed = payload.read_at(position.number * SEALED as u64, SEALED).map_err(SealFault::Unread)?;
        content.open(position, &sealed, out).map_err(|_| SealFault::WrongChunk(position.number))
    };
    let mut collector = Collector::new(end - part.start, spool);
    let mut reached_end = false;
    for position in layout.positions_of(part.clone()) {
        let begin = collector.buffer.len();
        open(position, &mut collector.buffer)?;
        reached_end = position.last;
        // Both differences are less than a chunk.
        let at = position.number * PLAIN as u64;
        let surplus = (at + (collector.buffer.len() - begin) as u64).saturating_sub(end) as usize;
        collector.buffer.truncate(collector.buffer.len() - surplus);
        let skipped = part.start.saturating_sub(at) as usize;
        collector.buffer.drain(begin..begin + skipped);
        collector.push(begin).map_err(SealFault::Spool)?;
    }
    if !reached_end {
        open(layout.end(), &mut Vec::with_capacity(PLAIN))?;
    }
    collector.finish().map_err(SealFault::Spool)
}

/// Takes the bytes of one payload: in one piece of memory while they are few, else through a file of the spool.
struct Collector {
    /// The bytes in memory; with a writer, those that it has not taken yet.
    buffer: Vec<u8>,
    writer: Option<SpoolWriter>,
}

impl Collector {
    fn new(length: u64, spool: Option<&Spool>) -> Self {
        let writer = spool.filter(|_| length > SpoolWriter::IN_MEMORY as u64).map(Spool::writer);
        // The bytes of a payload in memory are counted by a `usize`.
        let expected = if writer.is_some() { SEALED } else { usize::try_from(length).unwrap_or(SEALED) };
        Self { buffer: Vec::with_capacity(expected), writer }
    }

    /// Passes the bytes in the buffer from `begin` on to the writer, if there is one.
    fn push(&mut self, begin: usize) -> io::Result<()> {
        if let Some(writer) = &mut self.writer {
            writer.push_blocking(&self.buffer[begin..])?;
            self.buffer.clear();
        }
        Ok(())
    }

    fn finish(self) -> io::Result<(Payload, Checksum)> {
        match self.writer {
            Some(writer) => writer.finish_blocking(),
            None => {
                let checksum = Checksum::of(&self.buffer);
                Ok((Payload::Memory(self.buffer.into()), checksum))
            }
        }
    }
}
