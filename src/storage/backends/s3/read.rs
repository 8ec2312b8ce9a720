//! Attributes and bytes of objects.

use std::collections::BTreeMap;
use std::ops::Range;

use bytes::Bytes;
use futures_util::StreamExt as _;
use http::{HeaderMap, HeaderName, HeaderValue, Method, header};

use super::error::RequestContext;
use super::wire::{Call, Outcome, Reply, Wire};
use crate::storage::backend::{GetOptions, VersionId};
use crate::storage::backends::http::date;
use crate::storage::backends::metadata_header::{self, HEADER, RemoteObject};
use crate::storage::error::{Error, ErrorKind, Operation, Result};
use crate::storage::files::spool::spool_fault;
use crate::storage::files::{Spool, SpoolWriter};
use crate::storage::object::foreign::HEADERS;
use crate::storage::object::{Attributes, Checksum, Key, Object, Payload};

/// The prefix of the caller's metadata. The names are returned in lower case.
pub(super) const METADATA: &str = "x-amz-meta-";
/// Base64 of the four big-endian bytes of a CRC32C, of sent or stored bytes.
pub(super) const CHECKSUM: HeaderName = HeaderName::from_static("x-amz-checksum-crc32c");
const CHECKSUM_MODE: HeaderName = HeaderName::from_static("x-amz-checksum-mode");

/// The destination of the requested bytes.
enum Sink {
    Memory(Vec<u8>),
    Spool(Box<SpoolWriter>),
}

impl Wire {
    /// Requests the attributes of an object; `None` when the object certainly does not exist.
    pub(super) async fn find_object(&self, operation: Operation, key: &Key) -> Result<Option<RemoteObject>> {
        match self.find_object_quickly(operation, key, None).await {
            // Only the answer to GET says whether the object or the bucket is missing.
            Ok(None) => self.request_attributes(operation, Method::GET, key, None).await,
            found => found,
        }
    }

    /// Requests attributes as [`Wire::find_object`] does, in a bucket that is known to exist. A missing object costs one
    /// request only. With a version, the attributes are those of that version.
    pub(super) async fn find_object_quickly(
        &self,
        operation: Operation,
        key: &Key,
        version: Option<&VersionId>,
    ) -> Result<Option<RemoteObject>> {
        let context = self.context(operation, Some(key));
        match self.send_recognized(whole(operation, Method::HEAD, key, version)).await? {
            Outcome::Done(reply) => remote_object(&reply, &context).map(Some),
            Outcome::Missing { has_id: true } => Ok(None),
            // An answer to HEAD has no text. The answer to GET names the cause, and shows whether a store sent it.
            Outcome::Missing { has_id: false } => self.request_attributes(operation, Method::GET, key, version).await,
            Outcome::Refused(refusal) => match context.refused(refusal) {
                error if error.is_transient() => Err(error),
                _ => self.request_attributes(operation, Method::GET, key, version).await,
            },
        }
    }

    async fn request_attributes(
        &self,
        operation: Operation,
        method: Method,
        key: &Key,
        version: Option<&VersionId>,
    ) -> Result<Option<RemoteObject>> {
        let reply = self.send(whole(operation, method, key, version)).await?;
        reply.map(|reply| remote_object(&reply, &self.context(operation, Some(key)))).transpose()
    }

    /// Reads an object in one request, whichever part is requested, because the checksum is that of the whole.
    pub(super) async fn get(&self, key: &Key, options: &GetOptions, spool: &Spool) -> Result<Option<Object>> {
        let part = |attributes: &Attributes| options.kept_part(key, attributes);
        let version = options.version.as_ref();
        self.read(Operation::Retrieve, key, version, part, options.spooled.then_some(spool)).await
    }

    /// Reads the attributes. An object of another tool whose checksum the store does not know is read completely.
    pub(super) async fn stat(&self, key: &Key) -> Result<Option<Attributes>> {
        let Some(remote) = self.find_object(Operation::Stat, key).await? else { return Ok(None) };
        if is_known(&remote) {
            return attributes(remote, &self.context(Operation::Stat, Some(key))).map(Some);
        }
        let through = self.read(Operation::Stat, key, None, |_| Ok(0..0), None).await?;
        Ok(through.map(|object| object.attributes))
    }

    async fn read(
        &self,
        operation: Operation,
        key: &Key,
        version: Option<&VersionId>,
        part: impl FnOnce(&Attributes) -> Result<Range<u64>>,
        spool: Option<&Spool>,
    ) -> Result<Option<Object>> {
        let context = self.context(operation, Some(key));
        let Some(reply) = self.send(whole(operation, Method::GET, key, version)).await? else { return Ok(None) };
        let remote = remote_object(&reply, &context)?;
        let known = is_known(&remote);
        let mut attributes = attributes(remote, &context)?;
        // A refusal comes before the bytes are read.
        let part = part(&attributes)?;
        let (payload, checksum) = take(reply, &context, attributes.stored_size, part, spool).await?;
        if !known {
            (attributes.checksum, attributes.stored_checksum) = (checksum, checksum);
            attributes.info.computed_checksum = true;
        }
        if checksum != attributes.stored_checksum {
            return Err(context.damaged("the bytes do not match their checksum"));
        }
        Ok(Some(Object { attributes, payload }))
    }
}

/// Makes a request for an object, or one version of it, with everything that the store knows about it.
fn whole<'a>(operation: Operation, method: Method, key: &'a Key, version: Option<&VersionId>) -> Call<'a> {
    let call = Call::new(operation, method, Some(key)).header(CHECKSUM_MODE, HeaderValue::from_static("ENABLED"));
    version.into_iter().fold(call, |call, id| call.query("versionId", id.as_str()))
}

/// Reads a body of `size` bytes to its end; returns a part of it and the checksum of the whole.
async fn take(
    reply: Reply,
    context: &RequestContext<'_>,
    size: u64,
    part: Range<u64>,
    spool: Option<&Spool>,
) -> Result<(Payload, Checksum)> {
    let unkept = |error| spool_fault(context.operation, context.key, error);
    let mut sink = match spool {
        Some(spool) => Sink::Spool(Box::new(spool.writer())),
        None => Sink::Memory(room(context, part.end - part.start)?),
    };
    let (mut stream, mut checksum, mut offset) = (reply.into_stream(), Checksum::of(&[]), 0);
    while let Some(chunk) = stream.next().await {
        let chunk = chunk.map_err(|cause| context.broken(cause))?;
        checksum = checksum.append(&chunk);
        let wanted = cut(&chunk, offset, &part);
        match &mut sink {
            Sink::Memory(bytes) => bytes.extend_from_slice(&wanted),
            Sink::Spool(writer) => writer.push(&wanted).await.map_err(unkept)?,
        }
        offset += chunk.len() as u64;
    }
    if offset != size {
        let why = format!("{offset} bytes came instead of {size}; try again");
        return Err(Error::new(ErrorKind::Unavailable, context.operation, context.key, why));
    }
    let payload = match sink {
        Sink::Memory(bytes) => Payload::Memory(bytes.into()),
        Sink::Spool(writer) => writer.finish().await.map_err(unkept)?.0,
    };
    Ok((payload, checksum))
}

/// Reserves the memory at once, so that a read that does not fit is refused and does not kill the process.
fn room(context: &RequestContext<'_>, bytes: u64) -> Result<Vec<u8>> {
    let mut room = Vec::new();
    let had = usize::try_from(bytes).is_ok_and(|bytes| room.try_reserve_exact(bytes).is_ok());
    if had {
        return Ok(room);
    }
    let why = format!("{bytes} bytes do not fit into memory; read them in parts with `offset` and `length`");
    Err(Error::new(ErrorKind::Invalid, context.operation, context.key, why))
}

/// Cuts a chunk that begins at an offset to the bytes within the part.
fn cut(chunk: &Bytes, offset: u64, part: &Range<u64>) -> Bytes {
    let within =
        |position: u64| usize::try_from(position.saturating_sub(offset)).map_or(chunk.len(), |it| it.min(chunk.len()));
    let (begin, end) = (within(part.start), within(part.end));
    chunk.slice(begin..end.max(begin))
}

/// Tells whether the checksum is known without reading the bytes.
pub(super) fn is_known(remote: &RemoteObject) -> bool {
    remote.metadata.contains_key(HEADER) || remote.stored_checksum.is_some()
}

/// Makes attributes from the store's report. An unknown checksum is 0.
pub(super) fn attributes(remote: RemoteObject, context: &RequestContext<'_>) -> Result<Attributes> {
    metadata_header::read(remote, || Checksum(0)).map_err(|what| context.damaged(&what))
}

/// Reads the store's report about an object from the headers of an answer.
fn remote_object(reply: &Reply, context: &RequestContext<'_>) -> Result<RemoteObject> {
    let header = |name: HeaderName| reply.header(name.as_str());
    let metadata = metadata(&reply.headers);
    reply.object(metadata.contains_key(HEADER), context)?;
    let missing =
        |name: HeaderName| context.strange(&reply.outside(context), &format!("has no {name}, and is no object"));
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

/// Returns a checksum in the form of the store's header.
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
