//! Encoded objects: bytes that a codec made of a value's own bytes.
//!
//! Two codings of other tools are undone (`unpack`); objects are written as they are given.

mod unpack;

use std::fmt;
use std::sync::Arc;

use async_trait::async_trait;

use self::unpack::unpack;
use crate::storage::backend::{Backend, DeleteOptions, GetOptions, Grant, Listing, Page, Probe, PutOptions, Removal};
use crate::storage::error::{Error, ErrorKind, Operation, Result};
use crate::storage::files::Spool;
use crate::storage::object::{Attributes, Key, Object};
use crate::storage::reading::damaged;

/// A backend whose encoded objects are decoded when they are read.
///
/// # Contract
///
/// - Ranges and limits of a read count in bytes of the value. A range of an object whose coding is unknown counts in the
///   bytes kept, so that they can be read at all.
/// - What is decoded goes through files of the spool, so memory stays bounded whatever the codec's ratio is.
/// - An object whose coding is unknown is [`ErrorKind::Invalid`]; one that an inner layer has decoded passes as it is.
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
        if !unpack::is_known(codec) {
            if options.range.is_some() {
                let part = options.part(key, attributes.kind, payload.len())?;
                return Ok(Object { attributes, payload: payload.slice(part) });
            }
            let mend =
                "read its bytes as they are kept with `offset=0`, or correct the header with the bucket's own tool";
            let why = format!("the object's Content-Encoding is {codec:?}, which is not undone here; {mend}");
            return Err(Error::new(ErrorKind::Invalid, Operation::Retrieve, Some(key), why));
        }
        // A range may lie anywhere in the value, so only of a whole value the limit is known before.
        let most = options.limit.filter(|_| options.range.is_none());
        let (payload, checksum) = unpack(key, codec, &payload, most, &self.spool).await?;
        let size = payload.len();
        if attributes.is_value_known() && (attributes.size, attributes.checksum) != (size, checksum) {
            return Err(damaged(key, "the value's size or checksum does not match what was unpacked"));
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
        // Of an encoded object all kept bytes are needed, which may be more than the limit allows of the value.
        let kept = GetOptions { spooled: true, ..options };
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
