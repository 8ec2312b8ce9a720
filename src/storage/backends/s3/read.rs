//! Looking at objects and reading them.

use std::collections::BTreeMap;
use std::ops::Range;

use bytes::Bytes;
use futures_util::StreamExt as _;
use http::{HeaderMap, HeaderName, HeaderValue, Method, header};

use super::error::Asked;
use super::wire::{Call, Outcome, Reply, Wire};
use crate::storage::backend::GetOptions;
use crate::storage::backends::http::date;
use crate::storage::backends::metadata_header::{self, HEADER, RemoteObject};
use crate::storage::error::{Error, ErrorKind, Operation, Result};
use crate::storage::files::spool::spool_fault;
use crate::storage::files::{Spool, SpoolWriter};
use crate::storage::object::foreign::HEADERS;
use crate::storage::object::{Attributes, Checksum, Key, Object, Payload};

/// Metadata of the caller; the names come back in lower case.
pub(super) const METADATA: &str = "x-amz-meta-";
/// Base64 of the CRC32C's four big-endian bytes, of what is sent or kept.
pub(super) const CHECKSUM: HeaderName = HeaderName::from_static("x-amz-checksum-crc32c");
const CHECKSUM_MODE: HeaderName = HeaderName::from_static("x-amz-checksum-mode");

/// Where the wanted bytes gather.
enum Sink {
    Memory(Vec<u8>),
    Spool(Box<SpoolWriter>),
}

impl Wire {
    /// Asks what the store says of an object; `None` when it is certain that none is there.
    pub(super) async fn look(&self, operation: Operation, key: &Key) -> Result<Option<RemoteObject>> {
        match self.glance(operation, key).await {
            // Only the answer to GET says whether it is the object or the bucket that is missing.
            Ok(None) => self.ask(operation, Method::GET, key).await,
            found => found,
        }
    }

    /// As [`Wire::look`] where the bucket is known to be there, so that a missing object costs one request.
    pub(super) async fn glance(&self, operation: Operation, key: &Key) -> Result<Option<RemoteObject>> {
        let asked = self.asked(operation, Some(key));
        match self.ask_place(whole(operation, Method::HEAD, key)).await? {
            Outcome::Done(reply) => ticket(&reply, &asked).map(Some),
            Outcome::Missing { marked: true } => Ok(None),
            // An answer to HEAD has no text; that to GET says why, and who says it.
            Outcome::Missing { marked: false } => self.ask(operation, Method::GET, key).await,
            Outcome::Refused(refusal) => match asked.refused(refusal) {
                error if error.is_transient() => Err(error),
                _ => self.ask(operation, Method::GET, key).await,
            },
        }
    }

    async fn ask(&self, operation: Operation, method: Method, key: &Key) -> Result<Option<RemoteObject>> {
        let reply = self.send(whole(operation, method, key)).await?;
        reply.map(|reply| ticket(&reply, &self.asked(operation, Some(key)))).transpose()
    }

    /// Reads an object in one request, whatever part is wanted: the checksum is that of the whole.
    pub(super) async fn get(&self, key: &Key, want: GetOptions, spool: &Spool) -> Result<Option<Object>> {
        let part = |attributes: &Attributes| want.kept_part(key, attributes);
        self.read(Operation::Retrieve, key, part, want.spooled.then_some(spool)).await
    }

    /// Reads the attributes. An object of another tool whose checksum the store does not know is read through once.
    pub(super) async fn stat(&self, key: &Key) -> Result<Option<Attributes>> {
        let Some(ticket) = self.look(Operation::Stat, key).await? else { return Ok(None) };
        if is_known(&ticket) {
            return attributes(ticket, &self.asked(Operation::Stat, Some(key))).map(Some);
        }
        let through = self.read(Operation::Stat, key, |_| Ok(0..0), None).await?;
        Ok(through.map(|object| object.attributes))
    }

    async fn read(
        &self,
        operation: Operation,
        key: &Key,
        part: impl FnOnce(&Attributes) -> Result<Range<u64>>,
        spool: Option<&Spool>,
    ) -> Result<Option<Object>> {
        let asked = self.asked(operation, Some(key));
        let Some(reply) = self.send(whole(operation, Method::GET, key)).await? else { return Ok(None) };
        let ticket = ticket(&reply, &asked)?;
        let known = is_known(&ticket);
        let mut attributes = attributes(ticket, &asked)?;
        // Refused before the bytes are read.
        let part = part(&attributes)?;
        let (payload, checksum) = take(reply, &asked, attributes.stored_size, part, spool).await?;
        if !known {
            (attributes.checksum, attributes.stored_checksum) = (checksum, checksum);
        }
        if checksum != attributes.stored_checksum {
            return Err(asked.damaged("the bytes do not match their checksum"));
        }
        Ok(Some(Object { attributes, payload }))
    }
}

/// Asks for an object with all that the store knows of it.
fn whole(operation: Operation, method: Method, key: &Key) -> Call<'_> {
    Call::new(operation, method, Some(key)).header(CHECKSUM_MODE, HeaderValue::from_static("ENABLED"))
}

/// Reads a body of so many bytes through; returns a part of it and the checksum of all.
async fn take(
    reply: Reply,
    asked: &Asked<'_>,
    size: u64,
    part: Range<u64>,
    spool: Option<&Spool>,
) -> Result<(Payload, Checksum)> {
    let unkept = |error| spool_fault(asked.operation, asked.key, error);
    let mut sink = match spool {
        Some(spool) => Sink::Spool(Box::new(spool.writer())),
        None => Sink::Memory(room(asked, part.end - part.start)?),
    };
    let (mut stream, mut checksum, mut offset) = (reply.into_stream(), Checksum::of(&[]), 0);
    while let Some(chunk) = stream.next().await {
        let chunk = chunk.map_err(|cause| asked.broken(cause))?;
        checksum = checksum.append(&chunk);
        let wanted = cut(&chunk, offset, &part);
        match &mut sink {
            Sink::Memory(bytes) => bytes.extend_from_slice(&wanted),
            Sink::Spool(intake) => intake.push(&wanted).await.map_err(unkept)?,
        }
        offset += chunk.len() as u64;
    }
    if offset != size {
        let why = format!("{offset} bytes came instead of {size}; try again");
        return Err(Error::new(ErrorKind::Unavailable, asked.operation, asked.key, why));
    }
    let payload = match sink {
        Sink::Memory(bytes) => Payload::Memory(bytes.into()),
        Sink::Spool(intake) => intake.finish().await.map_err(unkept)?.0,
    };
    Ok((payload, checksum))
}

/// Takes memory for so many bytes at once, so that it is refused and not the process that ends.
fn room(asked: &Asked<'_>, bytes: u64) -> Result<Vec<u8>> {
    let mut room = Vec::new();
    let had = usize::try_from(bytes).is_ok_and(|bytes| room.try_reserve_exact(bytes).is_ok());
    if had {
        return Ok(room);
    }
    let why = format!("{bytes} bytes do not fit into memory; read them in parts with `offset` and `length`");
    Err(Error::new(ErrorKind::Invalid, asked.operation, asked.key, why))
}

/// Cuts a chunk that begins at an offset to what of it is within the part.
fn cut(chunk: &Bytes, offset: u64, part: &Range<u64>) -> Bytes {
    let within =
        |position: u64| usize::try_from(position.saturating_sub(offset)).map_or(chunk.len(), |it| it.min(chunk.len()));
    let (begin, end) = (within(part.start), within(part.end));
    chunk.slice(begin..end.max(begin))
}

/// Tells whether the checksum is known without the bytes.
fn is_known(ticket: &RemoteObject) -> bool {
    ticket.metadata.contains_key(HEADER) || ticket.stored_checksum.is_some()
}

/// Makes attributes of what the store says; an unknown checksum is 0.
pub(super) fn attributes(ticket: RemoteObject, asked: &Asked<'_>) -> Result<Attributes> {
    metadata_header::read(ticket, || Checksum(0)).map_err(|what| asked.damaged(&what))
}

/// Reads what the store says of an object in the headers of an answer.
fn ticket(reply: &Reply, asked: &Asked<'_>) -> Result<RemoteObject> {
    let header = |name: HeaderName| reply.header(name.as_str());
    let metadata = metadata(&reply.headers);
    reply.object(metadata.contains_key(HEADER), asked)?;
    let missing = |name: HeaderName| asked.strange(&reply.outside(asked), &format!("has no {name}, and is no object"));
    let size = header(header::CONTENT_LENGTH).and_then(|length| length.parse().ok());
    let etag = header(header::ETAG).ok_or_else(|| missing(header::ETAG))?;
    let received_at = header(header::LAST_MODIFIED).and_then(date);
    Ok(RemoteObject {
        content_type: header(header::CONTENT_TYPE).map(str::to_owned),
        content_encoding: header(header::CONTENT_ENCODING).map(str::to_owned),
        stored_size: size.ok_or_else(|| missing(header::CONTENT_LENGTH))?,
        stored_checksum: header(CHECKSUM).and_then(|encoded| format!("crc32c:{encoded}").parse().ok()),
        generation: etag.trim_matches('"').to_owned(),
        received_at: received_at.ok_or_else(|| missing(header::LAST_MODIFIED))?,
        metadata,
        headers: HEADERS.iter().filter_map(|name| Some(((*name).to_owned(), reply.header(name)?.to_owned()))).collect(),
    })
}

fn metadata(headers: &HeaderMap) -> BTreeMap<String, String> {
    let named = headers.iter().filter_map(|(name, value)| Some((name.as_str().strip_prefix(METADATA)?, value)));
    named.map(|(name, value)| (name.to_owned(), String::from_utf8_lossy(value.as_bytes()).into_owned())).collect()
}

/// Writes a checksum as the store's header has it.
pub(super) fn checksum_value(checksum: Checksum) -> String {
    checksum.to_string().trim_start_matches("crc32c:").to_owned()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_part_is_cut_out_of_chunks() {
        let whole: Vec<u8> = (0..100).collect();
        for size in [1, 7, 100] {
            for (begin, end) in [(0, 100), (0, 0), (99, 100), (100, 100), (3, 50), (14, 21)] {
                let chunks = whole.chunks(size).enumerate();
                let found = chunks.flat_map(|(number, chunk)| {
                    cut(&Bytes::copy_from_slice(chunk), (number * size) as u64, &(begin..end)).to_vec()
                });
                assert_eq!(found.collect::<Vec<_>>(), whole[begin as usize..end as usize], "{size} {begin} {end}");
            }
        }
    }
}
