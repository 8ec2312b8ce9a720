//! Reads the file of one object.

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

/// The reason why a file could not be read.
#[derive(Debug)]
pub(super) enum ReadFault {
    /// The system reported an error.
    Io(io::Error),
    /// The file is no intact object of this key.
    Damaged(String),
    /// The options of the read are not permitted for this object.
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

pub(super) const UNSOUND: &str = "the payload does not match its checksum";

/// The first bytes that are read for attributes alone; enough for nearly every header.
const HEAD: usize = 4 * 1024;

/// The first bytes that are read for a whole object; enough for small objects in one read.
const BODY: usize = 64 * 1024;

/// The bytes in memory, besides the requested part, while a file is read to its end.
const CHUNK: usize = 256 * 1024;

/// An open file whose header was read and whose length matches the header.
struct Opened {
    file: File,
    attributes: Attributes,
    /// The bytes that were read so far, from the beginning of the file.
    begin: Vec<u8>,
    header_length: usize,
    length: usize,
}

/// Reads the attributes; checks header and length of the file.
pub(super) fn attributes(path: &Path, key: &Key) -> Result<Option<Attributes>, ReadFault> {
    Ok(open(path, key, HEAD)?.map(|opened| opened.attributes))
}

/// Opens an object; checks header and length. The payload is compared with its checksum by whoever reads it.
pub(super) fn unverified(path: &Path, key: &Key) -> Result<Option<Object>, ReadFault> {
    let Some(Opened { file, attributes, begin, header_length, length }) = open(path, key, BODY)? else {
        return Ok(None);
    };
    let payload = if begin.len() == length {
        Bytes::from(begin).slice(header_length..).into()
    } else {
        Payload::file(Arc::new(file), header_length as u64, attributes.stored_size)
    };
    Ok(Some(Object { attributes, payload }))
}

/// Reads the requested bytes of an object; checks header, length and checksum.
pub(super) fn object(path: &Path, key: &Key, options: &GetOptions) -> Result<Option<Object>, ReadFault> {
    let Some(opened) = open(path, key, BODY)? else {
        return Ok(None);
    };
    let Opened { mut file, attributes, begin: mut bytes, header_length, length } = opened;
    let part = options.kept_part(key, &attributes)?;
    if options.announced {
        // The bytes kept may be few and those of the value many.
        let value =
            if attributes.is_value_known() { options.part(key, attributes.kind, attributes.size)? } else { 0..0 };
        if (part.end - part.start).max(value.end - value.start) > SpoolWriter::IN_MEMORY as u64 {
            return Ok(Some(Object { attributes, payload: Payload::Announced(part.end - part.start) }));
        }
    }
    if options.spooled && part.end - part.start > SpoolWriter::IN_MEMORY as u64 {
        let whole = Payload::file(Arc::new(file), header_length as u64, attributes.stored_size);
        if whole.checksum_blocking()? != attributes.stored_checksum {
            return Err(ReadFault::Damaged(UNSOUND.to_owned()));
        }
        return Ok(Some(Object { attributes, payload: whole.slice(part) }));
    }
    // The part lies within the payload, whose length is that of the file, so both numbers fit.
    let part = part.start as usize..part.end as usize;
    let (checksum, payload) = if bytes.len() == length {
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

/// Reads a payload of `length` bytes, of which `chunk` has been read already, and keeps a part of it.
fn read_through(
    file: &mut File,
    mut chunk: Vec<u8>,
    length: usize,
    part: &Range<usize>,
) -> Result<(Checksum, Bytes), ReadFault> {
    let (mut checksum, mut position, mut kept) = (Checksum::of(&[]), 0, Vec::with_capacity(part.len()));
    if *part == (0..length) {
        // Each piece is summed while it is in the processor's cache.
        kept.extend_from_slice(&chunk);
        loop {
            checksum = checksum.append(&kept[position..]);
            position = kept.len();
            if position == length {
                return Ok((checksum, Bytes::from(kept)));
            }
            fill(file, &mut kept, length.min(position + CHUNK))?;
        }
    }
    loop {
        checksum = checksum.append(&chunk);
        let within = |end: usize| end.clamp(position, position + chunk.len()) - position;
        kept.extend_from_slice(&chunk[within(part.start)..within(part.end)]);
        position += chunk.len();
        if position == length {
            return Ok((checksum, Bytes::from(kept)));
        }
        chunk.clear();
        fill(file, &mut chunk, CHUNK.min(length - position))?;
    }
}

fn open(path: &Path, key: &Key, first: usize) -> Result<Option<Opened>, ReadFault> {
    // A link was not made by this program and must not lead out of the root. Opening a pipe must not block.
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
    // Checked before the payload is read, so that a damaged length does not decide how much memory is used.
    if (length - header_length) as u64 != attributes.stored_size {
        let (found, wanted) = (length - header_length, attributes.stored_size);
        return Err(ReadFault::Damaged(format!("the payload has {found} bytes instead of {wanted}")));
    }
    Ok(Some(Opened { file, attributes, begin, header_length, length }))
}

/// Reads until `bytes` has `length` bytes. Their memory is not cleared before.
fn fill(file: &mut File, bytes: &mut Vec<u8>, length: usize) -> Result<(), ReadFault> {
    let missing = length.saturating_sub(bytes.len());
    bytes.reserve_exact(missing);
    if file.take(missing as u64).read_to_end(bytes)? < missing {
        return Err(ReadFault::Damaged("the file became shorter while it was read".to_owned()));
    }
    Ok(())
}
