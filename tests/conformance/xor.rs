//! A second layer that changes what is kept, bytes, length and attributes, as a codec does.

use std::fmt;
use std::io;
use std::sync::Arc;

use async_trait::async_trait;
use bytes::{Bytes, BytesMut};
use filestorage::storage::{
    Attributes, Backend, ByteRange, Checksum, CommitGuard, CopySource, Deferral, DeleteOptions, Error, ErrorKind,
    Fallback, GetOptions, Grant, Key, Listing, Object, Operation, Page, Payload, Probe, PutOptions, Removal, Result,
    Spool, Versions, VersionsRequest,
};
use jiff::Timestamp;

use crate::backend::Codec;

/// Name of the codec as attributes have it.
pub(crate) const NAME: &str = "xor";

/// Bytes behind the value's: its checksum under a mask.
pub(crate) const TRAILER: u64 = 4;

const MASK: u32 = 0x5a17_0ff1;

/// What receipts may show of it, and nothing else.
pub(crate) const CODEC: Codec = Codec { name: NAME, overhead: TRAILER };

/// Changes every byte by its place, so that a part can only be decoded by who knows where it was.
fn mix(bytes: &Bytes, offset: u64) -> BytesMut {
    assert_eq!(offset % 8, 0, "a place is that of eight bytes");
    let mut mixed = BytesMut::from(&bytes[..]);
    // By words, since what tests are compiled to takes its time for each byte.
    for (place, word) in (offset / 8..).zip(mixed.chunks_mut(8)) {
        let mut bytes = [0; 8];
        bytes[..word.len()].copy_from_slice(word);
        let mask = (place + 1).wrapping_mul(0x9e37_79b9_7f4a_7c15);
        word.copy_from_slice(&(u64::from_le_bytes(bytes) ^ mask).to_le_bytes()[..word.len()]);
    }
    mixed
}

fn trailer(checksum: Checksum) -> [u8; TRAILER as usize] {
    (checksum.0 ^ MASK).to_be_bytes()
}

/// Keeps objects in another form than they are given in, in another place.
#[derive(Debug)]
pub(crate) struct Xor {
    inner: Arc<dyn Backend>,
    deferral: Option<Arc<dyn Deferral>>,
    spool: Spool,
}

impl Xor {
    pub(crate) fn new(inner: Arc<dyn Backend>) -> Self {
        Self { inner, deferral: None, spool: Spool::new(env!("CARGO_TARGET_TMPDIR")) }
    }

    /// One over a fallback, whose overlay takes what is deferred.
    pub(crate) fn over_fallback(fallback: &Arc<Fallback>) -> Arc<Self> {
        let deferral = Some(Arc::clone(fallback) as Arc<dyn Deferral>);
        Arc::new(Self { deferral, ..Self::new(Arc::clone(fallback) as Arc<dyn Backend>) })
    }

    /// Changes each byte of a payload, piece by piece, and puts some bytes behind all.
    async fn mixed(&self, payload: &Payload, behind: &[u8]) -> io::Result<(Payload, Checksum, Checksum)> {
        let (mut out, mut offset, mut before) = (self.spool.writer(), 0, 0);
        while offset < payload.len() {
            let chunk = payload.read(offset, Payload::CHUNK).await?;
            before = crc32c::crc32c_append(before, &chunk);
            out.push(&mix(&chunk, offset).freeze()).await?;
            offset += chunk.len() as u64;
        }
        out.push(&Bytes::copy_from_slice(behind)).await?;
        let (mixed, after) = out.finish().await?;
        Ok((mixed, Checksum(before), after))
    }

    /// Returns an object as it is kept.
    async fn encode(&self, key: &Key, object: &Object) -> Result<Object> {
        let attributes = &object.attributes;
        // Another layer's are kept as they come.
        if attributes.is_encoded() {
            return Ok(object.clone());
        }
        let changed = || {
            let why = "the source changed while it was stored; store it again";
            Error::new(ErrorKind::Integrity, Operation::Store, Some(key), why)
        };
        let mixed = self.mixed(&object.payload, &trailer(attributes.checksum)).await;
        let (payload, given, stored_checksum) = mixed.map_err(|error| match error.kind() {
            io::ErrorKind::UnexpectedEof => changed(),
            _ => unreadable(Operation::Store, key, error),
        })?;
        if (given, object.payload.len()) != (attributes.checksum, attributes.size) {
            return Err(changed());
        }
        Ok(Object { attributes: Attributes { stored_checksum, ..kept(attributes) }, payload })
    }

    /// Returns the wanted part of an object as it was given; its payload has all that is kept.
    async fn decode(&self, key: &Key, options: &GetOptions, object: Object) -> Result<Object> {
        let Object { mut attributes, payload } = object;
        let size = attributes.size;
        let sizes = (payload.len(), attributes.stored_size);
        assert_eq!(sizes, (size + TRAILER, size + TRAILER), "an encoded object comes whole");
        let decoded = async {
            let (value, _, checksum) = self.mixed(&payload.slice(0..size), &[]).await?;
            let behind = payload.slice(size..u64::MAX).into_memory().await?;
            Ok((value, checksum, behind))
        };
        let (value, checksum, behind) = decoded.await.map_err(|error| unreadable(Operation::Retrieve, key, error))?;
        if checksum != attributes.checksum || behind[..] != trailer(checksum) {
            let why = "the bytes kept are not those of the value; store it again";
            return Err(Error::new(ErrorKind::Integrity, Operation::Retrieve, Some(key), why));
        }
        let part = options.range.map_or(0..size, |ByteRange { offset, length }| {
            let begin = offset.min(size);
            begin..begin.saturating_add(length.unwrap_or(u64::MAX)).min(size)
        });
        // Below, what is wanted has been refused by the attributes, which speak of the value.
        assert!(options.limit.is_none_or(|limit| part.end - part.start <= limit), "{part:?} of {options:?}");
        let mut payload = value.slice(part);
        if !options.spooled {
            let read = payload.into_memory().await;
            payload = read.map_err(|error| unreadable(Operation::Retrieve, key, error))?.into();
        }
        attributes.info.decoded = true;
        Ok(Object { attributes, payload })
    }

    fn deferral(&self) -> &dyn Deferral {
        self.deferral.as_deref().expect("a fallback is below")
    }
}

/// Attributes as they are kept, but for the checksum of bytes that are not known yet.
fn kept(attributes: &Attributes) -> Attributes {
    Attributes {
        compression: Some(NAME.to_owned()),
        stored_size: attributes.size + TRAILER,
        stored_checksum: Checksum(!attributes.stored_checksum.0),
        ..attributes.clone()
    }
}

fn unreadable(operation: Operation, key: &Key, error: io::Error) -> Error {
    let why = format!("the bytes cannot be read: {error}; look at the disk");
    Error::new(ErrorKind::Io, operation, Some(key), why).with_source(error)
}

impl fmt::Display for Xor {
    fn fmt(&self, formatter: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(formatter, "xor({})", self.inner)
    }
}

#[async_trait]
impl Backend for Xor {
    async fn put(&self, key: &Key, object: &Object, options: &PutOptions) -> Result<Attributes> {
        self.inner.put(key, &self.encode(key, object).await?, options).await
    }

    async fn get(&self, key: &Key, options: GetOptions) -> Result<Option<Object>> {
        let whole = GetOptions { spooled: true, announced: false, ..options.clone() };
        let Some(Object { attributes, payload }) = self.inner.get(key, whole).await? else { return Ok(None) };
        let is_own = attributes.compression.as_deref() == Some(NAME) && !attributes.info.decoded;
        let object = Object { attributes, payload };
        if is_own {
            return self.decode(key, &options, object).await.map(Some);
        }
        if options.spooled {
            return Ok(Some(object));
        }
        let payload = object.payload.into_memory().await;
        let payload = payload.map_err(|error| unreadable(Operation::Retrieve, key, error))?.into();
        Ok(Some(Object { payload, ..object }))
    }

    async fn copy(
        &self,
        source: &CopySource,
        key: &Key,
        attributes: &Attributes,
        options: &PutOptions,
    ) -> Result<Option<Attributes>> {
        self.inner.copy(source, key, attributes, options).await
    }

    async fn stat(&self, key: &Key) -> Result<Option<Attributes>> {
        self.inner.stat(key).await
    }

    async fn versions(&self, key: &Key, request: &VersionsRequest) -> Result<Versions> {
        self.inner.versions(key, request).await
    }

    async fn delete(&self, key: &Key, options: &DeleteOptions) -> Result<Removal> {
        self.inner.delete(key, options).await
    }

    async fn list(&self, page: &Page) -> Result<Listing> {
        self.inner.list(page).await
    }

    async fn flush(&self, key: &Key) -> Result<()> {
        self.inner.flush(key).await
    }

    async fn probe(&self) -> Result<Probe> {
        self.inner.probe().await
    }

    fn validate(&self, key: &Key, attributes: &Attributes) -> Result<()> {
        let attributes = if attributes.is_encoded() { attributes.clone() } else { kept(attributes) };
        self.inner.validate(key, &attributes)
    }

    async fn sign(&self, key: &Key, grant: &Grant) -> Result<String> {
        self.inner.sign(key, grant).await
    }
}

#[async_trait]
impl Deferral for Xor {
    async fn defer_put(&self, key: &Key, object: &Object, guard: &CommitGuard) -> Result<Attributes> {
        self.deferral().defer_put(key, &self.encode(key, object).await?, guard).await
    }

    async fn defer_delete(&self, key: &Key, deleted_at: Timestamp, guard: &CommitGuard) -> Result<Removal> {
        self.deferral().defer_delete(key, deleted_at, guard).await
    }

    async fn is_pending(&self, key: &Key) -> Result<bool> {
        self.deferral().is_pending(key).await
    }

    fn may_have_entry(&self, key: &Key) -> bool {
        self.deferral().may_have_entry(key)
    }
}
