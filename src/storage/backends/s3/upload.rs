//! Uploads: bytes are sent in one request, or in parts.

use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};

use bytes::Bytes;
use futures_util::stream::{FuturesOrdered, TryStreamExt as _};
use http::{HeaderMap, HeaderName, HeaderValue, Method};

use super::copy_request::{self, Copied};
use super::error::RequestContext;
use super::guard::Guard;
use super::read::{self, CHECKSUM};
use super::wire::{Call, Reply, Wire};
use crate::storage::backends::http::cleanup;
use crate::storage::commit_guard::CommitGuard;
use crate::storage::error::{Error, ErrorKind, Operation, Result};
use crate::storage::join::joined;
use crate::storage::object::{Checksum, Key, Object, Payload};

/// The bytes of a part, and the most bytes of a file that are sent in one request. S3 requires at least 5 MiB in each
/// part but the last.
const PART: u64 = 8 << 20;
/// The largest number of bytes of a part. An upload has twice as many bytes in memory.
const LARGEST_PART: u64 = 64 << 20;
/// S3's own limit.
pub(super) const MOST_PARTS: u64 = 10_000;
/// The largest number of bytes of an object.
pub(super) const MOST: u64 = MOST_PARTS * LARGEST_PART;
/// The number of parts that are sent at once.
const AT_ONCE: usize = 2;

const CHECKSUM_ALGORITHM: HeaderName = HeaderName::from_static("x-amz-checksum-algorithm");

/// The form in which an object's bytes are sent. The entity tag depends on it.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Form {
    /// The bytes are sent in one request.
    Whole,
    /// The bytes are sent in parts of this size, the last of them shorter.
    Parts(u64),
}

impl Form {
    /// Picks the usual form. Bytes in memory are sent in one request, a file in parts that fit into memory.
    pub(super) fn of(payload: &Payload) -> Self {
        let size = payload.len();
        let whole = if payload.as_memory().is_some() { LARGEST_PART } else { PART };
        let part = size.div_ceil(MOST_PARTS).next_multiple_of(1 << 20).max(PART);
        if size <= whole { Self::Whole } else { Self::Parts(part) }
    }

    /// Picks a form that gives another tag than this one, even if the bytes are the same.
    ///
    /// The tag of an object that was sent in parts ends with their number.
    pub(super) fn other_than(self, tag: &str, size: u64) -> Self {
        let number = tag.rsplit_once('-').and_then(|(_, number)| number.parse::<u64>().ok());
        match (self, number) {
            (Self::Whole, None) => Self::Parts(PART),
            (Self::Parts(part), Some(number)) if number == size.div_ceil(part) => Self::Parts(2 * part),
            _ => self,
        }
    }
}

/// Writes the object in one request.
pub(super) async fn whole(
    wire: &Wire,
    key: &Key,
    object: &Object,
    headers: HeaderMap,
    guard: &Guard,
    commit_guard: &CommitGuard,
) -> Result<()> {
    let length = object.payload.len();
    let body = object.payload.clone().into_memory().await.map_err(|error| unread(key, error))?;
    if Checksum::of(&body) != object.attributes.stored_checksum || length != object.attributes.stored_size {
        return Err(changed(key));
    }
    if !commit_guard.commit() {
        return Err(Error::abandoned(Operation::Store, key));
    }
    put(wire, key, body, headers, guard).await
}

/// Writes bytes in one request.
pub(super) async fn put(wire: &Wire, key: &Key, body: Bytes, headers: HeaderMap, guard: &Guard) -> Result<()> {
    let checksum = Checksum::of(&body);
    let call = Call::new(Operation::Store, Method::PUT, Some(key)).headers(headers).headers(guard.headers());
    let context = wire.context(Operation::Store, Some(key));
    let reply = written(&context, guard, wire.send(with_checksum(call, checksum).body(body)).await?)?;
    reply.written(checksum, &context).await.map(drop)
}

/// Writes the object in parts. Nothing of it is visible before the last request.
pub(super) async fn parts(
    wire: &Arc<Wire>,
    key: &Key,
    object: &Object,
    headers: HeaderMap,
    size: u64,
    guard: &Guard,
    commit_guard: &CommitGuard,
) -> Result<()> {
    let upload = Upload::begin(wire, key, headers).await?;
    let most = usize::try_from(size).unwrap_or(usize::MAX);
    let (mut whole, mut sent, mut under_way) = (Checksum::of(&[]), Vec::new(), FuturesOrdered::new());
    // Parts are read in order, which the checksum of the whole needs, and sent concurrently. An empty object is one
    // part.
    for (number, offset) in (1..).zip((0..object.payload.len().max(1)).step_by(most)) {
        if under_way.len() == AT_ONCE {
            sent.extend(under_way.try_next().await?);
        }
        let bytes = object.payload.read(offset, most).await.map_err(|error| unread(key, error))?;
        whole = whole.append(&bytes);
        under_way.push_back(upload.send(number, bytes));
    }
    sent.extend(under_way.try_collect::<Vec<_>>().await?);
    let attributes = &object.attributes;
    if whole != attributes.stored_checksum || object.payload.len() != attributes.stored_size {
        return Err(changed(key));
    }
    if !commit_guard.commit() {
        return Err(Error::abandoned(Operation::Store, key));
    }
    upload.complete(&sent, guard).await
}

/// An upload in parts, which is aborted unless it is completed, also when its future is dropped.
///
/// Requests that create something in the store (the upload, its parts) run in tasks that outlive that future and hold
/// the upload. So the upload is aborted after the last of them. A part that arrives after the abort would be kept, and
/// paid for, forever.
pub(super) struct Upload {
    wire: Arc<Wire>,
    key: Key,
    id: String,
    completed: AtomicBool,
}

/// A part that has arrived in the store.
pub(super) struct Part {
    number: u32,
    etag: String,
    /// Unknown for a part that the store has copied.
    checksum: Option<Checksum>,
}

/// The answer that begins an upload.
#[derive(serde::Deserialize)]
#[serde(rename_all = "PascalCase")]
struct Begun {
    upload_id: String,
    bucket: Option<String>,
}

/// The answer that completes an upload.
#[derive(serde::Deserialize)]
#[serde(rename_all = "PascalCase")]
struct Completed {
    #[serde(rename = "ETag")]
    etag: String,
    bucket: Option<String>,
}

impl Upload {
    /// Begins an upload whose parts are sent with their checksums.
    pub(super) async fn begin(wire: &Arc<Wire>, key: &Key, mut headers: HeaderMap) -> Result<Arc<Self>> {
        headers.insert(CHECKSUM_ALGORITHM, HeaderValue::from_static("CRC32C"));
        Self::begin_copy(wire, key, headers).await
    }

    /// Begins an upload whose parts are copied.
    pub(super) async fn begin_copy(wire: &Arc<Wire>, key: &Key, headers: HeaderMap) -> Result<Arc<Self>> {
        let (wire, wanted) = (Arc::clone(wire), key.clone());
        in_background(key, async move { Self::initiate(wire, wanted, headers).await }).await
    }

    async fn initiate(wire: Arc<Wire>, key: Key, headers: HeaderMap) -> Result<Arc<Self>> {
        let call = Call::new(Operation::Store, Method::POST, Some(&key)).query("uploads", "").headers(headers);
        let context = wire.context(Operation::Store, Some(&key));
        let begun: Begun = wire.demand(call).await?.document("InitiateMultipartUploadResult", &context).await?;
        if begun.upload_id.is_empty() || begun.bucket.is_some_and(|name| !wire.address.is_named(&name)) {
            return Err(context.unexpected_answer("it began an upload without an id, or in another bucket"));
        }
        Ok(Arc::new(Self { wire, key, id: begun.upload_id, completed: AtomicBool::new(false) }))
    }

    /// Begins to send a part, whether or not anyone waits for it.
    pub(super) fn send(self: &Arc<Self>, number: u32, bytes: Bytes) -> impl Future<Output = Result<Part>> + use<> {
        let upload = Arc::clone(self);
        in_background(&self.key, async move { upload.put_part(number, bytes).await })
    }

    async fn put_part(&self, number: u32, bytes: Bytes) -> Result<Part> {
        let checksum = Checksum::of(&bytes);
        let call = Call::new(Operation::Store, Method::PUT, Some(&self.key))
            .query("partNumber", number.to_string())
            .query("uploadId", &*self.id)
            .body(bytes);
        let reply = self.wire.demand(with_checksum(call, checksum)).await?;
        let etag = reply.written(checksum, &self.wire.context(Operation::Store, Some(&self.key))).await?;
        Ok(Part { number, etag, checksum: Some(checksum) })
    }

    /// Begins to copy a part of another object, whether or not anyone waits for it.
    pub(super) fn copy(
        self: &Arc<Self>,
        number: u32,
        headers: HeaderMap,
    ) -> impl Future<Output = Result<Part>> + use<> {
        let upload = Arc::clone(self);
        in_background(&self.key, async move { upload.copy_part(number, headers).await })
    }

    async fn copy_part(&self, number: u32, headers: HeaderMap) -> Result<Part> {
        let call = Call::new(Operation::Copy, Method::PUT, Some(&self.key))
            .query("partNumber", number.to_string())
            .query("uploadId", &*self.id)
            .headers(headers);
        let context = self.wire.context(Operation::Copy, Some(&self.key));
        let reply = self.wire.send(call).await?.ok_or_else(|| copy_request::gone(&context))?;
        let Copied { etag } = reply.completed("CopyPartResult", &context).await?;
        Ok(Part { number, etag, checksum: None })
    }

    pub(super) async fn complete(&self, parts: &[Part], guard: &Guard) -> Result<()> {
        let list: String = parts.iter().map(Part::listed).collect();
        let body = format!(
            "<CompleteMultipartUpload xmlns=\"http://s3.amazonaws.com/doc/2006-03-01/\">{list}</CompleteMultipartUpload>"
        );
        let call = Call::new(Operation::Store, Method::POST, Some(&self.key))
            .query("uploadId", &*self.id)
            .headers(guard.headers())
            .body(body.into());
        let context = self.wire.context(Operation::Store, Some(&self.key));
        let reply = written(&context, guard, self.wire.send(call).await?)?;
        let Completed { etag, bucket } = reply.completed("CompleteMultipartUploadResult", &context).await?;
        if etag.trim_matches('"').is_empty() || bucket.is_some_and(|name| !self.wire.address.is_named(&name)) {
            return Err(context.unexpected_answer("it completed an upload without an ETag, or in another bucket"));
        }
        self.completed.store(true, Ordering::Relaxed);
        Ok(())
    }

    /// Aborts the upload, so that the store removes its parts.
    async fn abort(wire: &Wire, key: &Key, id: &str) -> Result<()> {
        let call = Call::new(Operation::Store, Method::DELETE, Some(key)).query("uploadId", id);
        let context = wire.context(Operation::Store, Some(key));
        match wire.send(call).await? {
            Some(reply) => reply.removed(&context).await?.map_or(Ok(()), Err),
            None => Ok(()),
        }
    }
}

/// Starts work that continues when nobody waits for it any more.
fn in_background<T, W>(key: &Key, work: W) -> impl Future<Output = Result<T>> + use<T, W>
where
    T: Send + 'static,
    W: Future<Output = Result<T>> + Send + 'static,
{
    let ended = |key: &Key| {
        let why = "the program is shutting down; try again when it runs";
        Error::new(ErrorKind::Unavailable, Operation::Store, Some(key), why)
    };
    let work = async {
        tokio::select! {
            outcome = work => Some(outcome),
            () = cleanup::shutting_down() => None,
        }
    };
    let (task, key) = (cleanup::spawn(work), key.clone());
    async move { joined(task).await.flatten().unwrap_or_else(|| Err(ended(&key))) }
}

impl Drop for Upload {
    fn drop(&mut self) {
        if *self.completed.get_mut() || tokio::runtime::Handle::try_current().is_err() {
            return;
        }
        let (wire, key, id) = (Arc::clone(&self.wire), self.key.clone(), std::mem::take(&mut self.id));
        let aborting = cleanup::spawn(async move {
            match Self::abort(&wire, &key, &id).await {
                Ok(()) => {}
                // The last request was carried out after all, or the store has removed the upload itself.
                Err(error) if error.kind == ErrorKind::Unavailable && error.message().contains("NoSuchUpload") => {}
                Err(error) => {
                    tracing::warn!(%error, "an upload in parts could not be aborted; a lifecycle rule can expire it")
                }
            }
        });
        // The abort runs in the background.
        drop(aborting);
    }
}

impl Part {
    fn listed(&self) -> String {
        let Self { number, etag, checksum } = self;
        let etag = quick_xml::escape::escape(&**etag);
        let checksum = checksum.map(|sum| format!("<ChecksumCRC32C>{}</ChecksumCRC32C>", read::checksum_value(sum)));
        let checksum = checksum.unwrap_or_default();
        format!("<Part><PartNumber>{number}</PartNumber><ETag>{etag}</ETag>{checksum}</Part>")
    }
}

/// Lets the store check the bytes that arrive.
fn with_checksum(call: Call<'_>, checksum: Checksum) -> Call<'_> {
    // Base64 is always a legal header value.
    match HeaderValue::try_from(read::checksum_value(checksum)) {
        Ok(value) => call.header(CHECKSUM, value),
        Err(_) => call,
    }
}

/// Accepts the answer to a write. A store that answers a conditional write with a missing object has checked the
/// condition against no object.
fn written(context: &RequestContext<'_>, guard: &Guard, reply: Option<Reply>) -> Result<Reply> {
    match (reply, guard) {
        (Some(reply), _) => Ok(reply),
        (None, Guard::Same(_)) => {
            let gone = "the object has been removed meanwhile; stat it and decide again";
            Err(Error::new(ErrorKind::Precondition, context.operation, context.key, gone))
        }
        (None, Guard::None | Guard::Absent) => {
            Err(context.unexpected_answer("it reports a missing object in answer to a write"))
        }
    }
}

fn changed(key: &Key) -> Error {
    let why = "the source changed while it was stored; store it again";
    Error::new(ErrorKind::Integrity, Operation::Store, Some(key), why)
}

/// Makes the error of a payload whose file cannot be read, or has become shorter.
fn unread(key: &Key, error: std::io::Error) -> Error {
    if error.kind() == std::io::ErrorKind::UnexpectedEof {
        return changed(key).with_source(error);
    }
    let why = format!("the source cannot be read: {error}; check the disk it is on");
    Error::new(ErrorKind::Io, Operation::Store, Some(key), why).with_source(error)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_form_fits_the_size_and_changes_the_tag() {
        // The bytes are never read, so the file may be empty.
        let file = |size| Payload::file(Arc::new(tempfile::tempfile().unwrap()), 0, size);
        assert_eq!((Form::of(&file(0)), Form::of(&file(PART))), (Form::Whole, Form::Whole));
        assert_eq!(Form::of(&file(PART + 1)), Form::Parts(PART));
        assert_eq!(Form::of(&Bytes::from(vec![0; 9 << 20]).into()), Form::Whole);
        let large = PART * MOST_PARTS + 1;
        assert_eq!(Form::of(&file(large)), Form::Parts(PART + (1 << 20)));
        assert!(matches!(Form::of(&file(MOST)), Form::Parts(LARGEST_PART)));
        for size in [0, 5, PART, PART + 1, 3 * PART, large] {
            let tag = |form| match form {
                Form::Whole => "9dd4".to_owned(),
                Form::Parts(part) => format!("9dd4-{}", size.max(1).div_ceil(part)),
            };
            let usual = Form::of(&file(size));
            let mut form = usual;
            for _ in 0..4 {
                let next = usual.other_than(&tag(form), size);
                assert_ne!(tag(next), tag(form), "{size}");
                form = next;
            }
        }
    }
}
