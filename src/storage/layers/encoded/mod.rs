//! Encoded objects, whose stored bytes a codec made from the bytes of the value.
//!
//! Two codings of other tools are decoded (`unpack`). Objects are written as they are given.

mod unpack;

use std::fmt;
use std::sync::Arc;

use async_trait::async_trait;

use self::unpack::unpack;
use crate::storage::backend::{Backend, DeleteOptions, GetOptions, Grant, Listing, Page, Probe, PutOptions, Removal};
use crate::storage::error::{Error, ErrorKind, Operation, Result};
use crate::storage::files::Spool;
use crate::storage::object::foreign::is_decodable;
use crate::storage::object::{Attributes, Key, Object};
use crate::storage::reading::damaged;

/// A backend whose encoded objects are decoded when they are read.
///
/// # Contract
///
/// - Ranges and limits of a read are those of the value's bytes. A range of an object whose coding is unknown is one of
///   the stored bytes, so that they can be read at all.
/// - Decoded bytes pass through files of the spool, so memory is bounded whatever the ratio of the codec.
/// - An object whose coding is unknown is [`ErrorKind::Invalid`]. An object that an inner layer has decoded passes
///   unchanged.
#[derive(Debug)]
pub struct Encoded {
    inner: Arc<dyn Backend>,
    spool: Spool,
}

impl Encoded {
    /// Puts the codecs before a backend; large values pass through the spool.
    #[must_use]
    pub fn new(inner: Arc<dyn Backend>, spool: Spool) -> Self {
        Self { inner, spool }
    }

    async fn decode(&self, key: &Key, options: GetOptions, codec: &str, object: Object) -> Result<Object> {
        let Object { mut attributes, payload } = object;
        attributes.info.decoded = true;
        if options.range.is_some() && attributes.has_unknown_coding() {
            // The backend has taken the range from the stored bytes.
            return Ok(Object { attributes, payload });
        }
        if !is_decodable(codec) {
            let remedy = "read the stored bytes with `offset=0`, or correct the header with the bucket's own tool";
            let why = format!("the object's Content-Encoding is {codec:?}, which this program cannot decode; {remedy}");
            return Err(Error::new(ErrorKind::Invalid, Operation::Retrieve, Some(key), why));
        }
        // A range may lie anywhere in the value, so the limit bounds the decoding only for a whole value.
        let most = options.limit.filter(|_| options.range.is_none());
        let (payload, checksum) = unpack(key, codec, &payload, most, &self.spool).await?;
        let size = payload.len();
        if attributes.is_value_known() && (attributes.size, attributes.checksum) != (size, checksum) {
            return Err(damaged(key, "the value's size or checksum does not match the unpacked bytes"));
        }
        (attributes.size, attributes.checksum) = (size, checksum);
        let part = options.part(key, attributes.kind, size)?;
        Ok(Object { attributes, payload: payload.slice(part) })
    }
}

impl fmt::Display for Encoded {
    fn fmt(&self, formatter: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(formatter, "encoded({})", self.inner)
    }
}

#[async_trait]
impl Backend for Encoded {
    async fn put(&self, key: &Key, object: &Object, options: &PutOptions) -> Result<Attributes> {
        self.inner.put(key, object, options).await
    }

    async fn get(&self, key: &Key, options: GetOptions) -> Result<Option<Object>> {
        // A range of an encoded object needs all stored bytes, which may be many.
        let kept = GetOptions { spooled: options.spooled || options.range.is_some(), ..options };
        let Some(object) = self.inner.get(key, kept).await? else { return Ok(None) };
        let object = match object.attributes.compression.clone() {
            Some(codec) if !object.attributes.encrypted && !object.attributes.info.decoded => {
                self.decode(key, options, &codec, object).await?
            }
            _ => object,
        };
        if options.spooled {
            return Ok(Some(object));
        }
        let Object { attributes, payload } = object;
        let payload = payload.into_memory().await.map_err(|error| Error::unread(Operation::Retrieve, key, error))?;
        Ok(Some(Object { attributes, payload: payload.into() }))
    }

    async fn stat(&self, key: &Key) -> Result<Option<Attributes>> {
        self.inner.stat(key).await
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
        self.inner.validate(key, attributes)
    }

    async fn sign(&self, key: &Key, grant: &Grant) -> Result<String> {
        self.inner.sign(key, grant).await
    }
}
