//! Reading one object's file.

use std::fs::{File, OpenOptions};
use std::io::{self, Read as _};
use std::ops::Range;
use std::os::unix::fs::OpenOptionsExt as _;
use std::path::Path;
use std::sync::Arc;

use bytes::Bytes;
use rustix::fs::OFlags;
use rustix::io::Errno;

use super::header;
use crate::storage::backend::GetOptions;
use crate::storage::error::Error;
use crate::storage::files::SpoolWriter;
use crate::storage::object::{Attributes, Checksum, Key, Object, Payload};

/// Why a file could not be read.
#[derive(Debug)]
pub(super) enum ReadFault {
    /// The operating system said so.
    Io(io::Error),
    /// What is there is no sound object of this key.
    Damaged(String),
    /// The reader wants what it may not have.
    Refused(Error),
}

impl From<io::Error> for ReadFault {
    fn from(error: io::Error) -> Self {
        Self::Io(error)
    }
}

impl From<Error> for ReadFault {
    fn from(error: Error) -> Self {
        Self::Refused(error)
    }
}

const UNSOUND: &str = "the payload does not match its checksum";

/// First bytes read for attributes alone; covers nearly every header.
const HEAD: usize = 4 * 1024;

/// First bytes read for a whole object; covers small ones in one read.
const BODY: usize = 64 * 1024;

/// Bytes in memory beside the wanted part of a file that is read through.
const CHUNK: usize = 256 * 1024;

/// An opened file whose header was read and whose length fits it.
struct Opened {
    file: File,
    attributes: Attributes,
    /// What was read so far, from the beginning.
    begin: Vec<u8>,
    header_length: usize,
    length: usize,
}

/// Reads attributes; checks header and length of the file.
pub(super) fn attributes(path: &Path, key: &Key) -> Result<Option<Attributes>, ReadFault> {
    Ok(open(path, key, HEAD)?.map(|opened| opened.attributes))
}

/// Reads the wanted bytes of an object and checks everything.
pub(super) fn object(path: &Path, key: &Key, want: GetOptions) -> Result<Option<Object>, ReadFault> {
    let Some(opened) = open(path, key, BODY)? else {
        return Ok(None);
    };
    let Opened { mut file, attributes, begin: mut bytes, header_length, length } = opened;
    let part = want.kept_part(key, &attributes)?;
    if want.spooled && part.end - part.start > SpoolWriter::IN_MEMORY as u64 {
        let whole = Payload::file(Arc::new(file), header_length as u64, attributes.stored_size);
        if whole.checksum_blocking()? != attributes.stored_checksum {
            return Err(ReadFault::Damaged(UNSOUND.to_owned()));
        }
        return Ok(Some(Object { attributes, payload: whole.slice(part) }));
    }
    // The part lies within the payload, whose length is that of the file: both fit.
    let part = part.start as usize..part.end as usize;
    let (checksum, payload) = if part.len() == length - header_length || bytes.len() == length {
        fill(&mut file, &mut bytes, length)?;
        let payload = Bytes::from(bytes).slice(header_length..);
        (Checksum::of(&payload), payload.slice(part))
    } else {
        bytes.drain(..header_length);
        read_through(&mut file, bytes, length - header_length, &part)?
    };
    if checksum != attributes.stored_checksum {
        return Err(ReadFault::Damaged(UNSOUND.to_owned()));
    }
    Ok(Some(Object { attributes, payload: payload.into() }))
}

/// Reads a payload of so many bytes, of which the first `chunk` have been read, and keeps a part of it.
fn read_through(
    file: &mut File,
    mut chunk: Vec<u8>,
    length: usize,
    part: &Range<usize>,
) -> Result<(Checksum, Bytes), ReadFault> {
    let (mut checksum, mut position, mut kept) = (Checksum::of(&[]), 0, Vec::with_capacity(part.len()));
    loop {
        checksum = checksum.append(&chunk);
        let within = |end: usize| end.clamp(position, position + chunk.len()) - position;
        kept.extend_from_slice(&chunk[within(part.start)..within(part.end)]);
        position += chunk.len();
        if position == length {
            return Ok((checksum, Bytes::from(kept)));
        }
        chunk.resize(CHUNK.min(length - position), 0);
        read_exact(file, &mut chunk)?;
    }
}

fn open(path: &Path, key: &Key, first: usize) -> Result<Option<Opened>, ReadFault> {
    // A link is not ours and must not lead out of the root; a pipe must not block.
    let flags = i32::try_from((OFlags::NOFOLLOW | OFlags::NONBLOCK).bits()).unwrap_or(0);
    let mut file = match OpenOptions::new().read(true).custom_flags(flags).open(path) {
        Ok(file) => file,
        Err(error) if matches!(error.kind(), io::ErrorKind::NotFound | io::ErrorKind::NotADirectory) => {
            return Ok(None);
        }
        Err(error) if error.raw_os_error() == Some(Errno::LOOP.raw_os_error()) => {
            return Err(ReadFault::Damaged("the file is a symbolic link".to_owned()));
        }
        Err(error) => return Err(error.into()),
    };
    let metadata = file.metadata()?;
    if !metadata.is_file() {
        return Err(ReadFault::Damaged("the file is no regular file".to_owned()));
    }
    let length = usize::try_from(metadata.len()).unwrap_or(usize::MAX);
    let mut begin = Vec::new();
    fill(&mut file, &mut begin, length.min(first))?;
    let newline = |bytes: &[u8]| bytes.iter().position(|&byte| byte == b'\n');
    let mut end = newline(&begin);
    if end.is_none() {
        fill(&mut file, &mut begin, length.min(header::MAX_BYTES))?;
        end = newline(&begin);
    }
    let end = end.ok_or_else(|| ReadFault::Damaged("the file has no header line".to_owned()))?;
    let attributes = header::decode(&begin[..end], key).map_err(ReadFault::Damaged)?;
    let header_length = end + 1;
    // Before the payload is read: a damaged length must not decide how much memory is taken.
    if (length - header_length) as u64 != attributes.stored_size {
        let (found, wanted) = (length - header_length, attributes.stored_size);
        return Err(ReadFault::Damaged(format!("the payload has {found} bytes instead of {wanted}")));
    }
    Ok(Some(Opened { file, attributes, begin, header_length, length }))
}

/// Reads until so many bytes are there.
fn fill(file: &mut File, bytes: &mut Vec<u8>, length: usize) -> Result<(), ReadFault> {
    let have = bytes.len();
    if have >= length {
        return Ok(());
    }
    bytes.resize(length, 0);
    read_exact(file, &mut bytes[have..])
}

fn read_exact(file: &mut File, bytes: &mut [u8]) -> Result<(), ReadFault> {
    file.read_exact(bytes).map_err(|error| match error.kind() {
        io::ErrorKind::UnexpectedEof => ReadFault::Damaged("the file became shorter while it was read".to_owned()),
        _ => ReadFault::Io(error),
    })
}
