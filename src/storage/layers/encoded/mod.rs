//! Encoded objects, whose stored bytes a codec made from the bytes of the value.

mod coders;
mod compression;
mod deferral;
pub(in crate::storage) mod encryption;
mod pack;
mod rotation;
mod sink;
mod unpack;

pub use self::compression::Compression;
pub use self::deferral::EncodedDeferral;
use self::encryption::{DataKey, Encryption};
pub use self::rotation::Rotation;

use std::borrow::Cow;
use std::fmt;
use std::sync::Arc;

use async_trait::async_trait;

use self::pack::pack;
use self::unpack::{Cap, Unpacked, Wanted, unpack};
use crate::storage::backend::{
    Backend, Condition, CopySource, DeleteOptions, GetOptions, Grant, Listing, Page, Probe, PutOptions, Removal,
    Versions, VersionsRequest,
};
use crate::storage::error::{Error, ErrorKind, Operation, Result};
use crate::storage::files::Spool;
use crate::storage::object::{Attributes, Codec, Key, Object, Payload};
use crate::storage::reading::damaged;

/// Values of up to this many bytes are compressed on the caller's thread, which takes about 0.1 ms.
const INLINE: u64 = 16 << 10;

/// The most bytes of a value of another tool, whose size is unknown, that are decompressed into a file.
const MOST_STREAMED: u64 = 64 << 30;

/// A backend that keeps values encoded: it encodes what is written, and decodes what is read.
///
/// # Contract
///
/// - A value is compressed where a rule is set ([`Encoded::with_compression`]), the rule covers it, and it gets smaller
///   by that. An object that is encoded already is passed on unchanged.
/// - Objects of every known codec are decoded, whatever the rule is.
/// - Where encryption is on, every value is encrypted with its metadata, after it was compressed. Whatever is encrypted is
///   decrypted with the keyring, whether or not encryption is on. Attributes that are answered are those of the value.
/// - Ranges and limits of a read are those of the value's bytes. A range of an object of another tool whose coding is
///   unknown is one of the stored bytes, so that they can be read at all. A whole read of it, and any read of an object of
///   this program whose codec is unknown, is [`ErrorKind::Integrity`].
/// - Memory is bounded whatever the ratio of the codec: bytes pass through files of the spool unless their number is
///   known, and a value of more bytes than its cap is an error. The cap is the size in the attributes. Where another tool
///   wrote the object, it is the caller's limit, or 64 GiB, or what may be in memory ([`Encoded::with_memory_cap`]).
/// - An object that an inner layer has decoded passes unchanged.
/// - Of an object that an inner layer announces, the bytes of the value are announced, where the attributes tell how many.
#[derive(Debug)]
pub struct Encoded {
    inner: Arc<dyn Backend>,
    spool: Spool,
    compression: Option<Compression>,
    encryption: Encryption,
    memory_cap: u64,
}

impl Encoded {
    /// Puts the codecs before a backend; large values pass through the spool. Values are written as they are given.
    #[must_use]
    pub const fn new(inner: Arc<dyn Backend>, spool: Spool) -> Self {
        Self { inner, spool, compression: None, encryption: Encryption::none(), memory_cap: 256 << 20 }
    }

    /// Compresses values that are written, where the rule covers them.
    #[must_use]
    pub const fn with_compression(mut self, compression: Option<Compression>) -> Self {
        self.compression = compression;
        self
    }

    /// Decrypts objects with the keys of a keyring, and encrypts what is written where that is on.
    #[must_use]
    pub fn with_encryption(mut self, encryption: Encryption) -> Self {
        self.encryption = encryption;
        self
    }

    /// Sets how many bytes of a value of unknown size may be in memory; 256 MiB by default.
    #[must_use]
    pub const fn with_memory_cap(mut self, bytes: u64) -> Self {
        self.memory_cap = bytes;
        self
    }

    /// Returns an object as it is stored.
    async fn encode<'a>(&self, key: &Key, object: &'a Object) -> Result<Cow<'a, Object>> {
        let rule = self.compression.filter(|rule| rule.covers(&object.attributes));
        let packed = match rule.filter(|_| !object.attributes.is_encoded()) {
            Some(rule) => pack(key, rule, object, &self.spool).await?.map_or(Cow::Borrowed(object), Cow::Owned),
            None => Cow::Borrowed(object),
        };
        match self.encryption.keyring_of_writes().filter(|_| !object.attributes.encrypted) {
            Some(keyring) => Ok(Cow::Owned(keyring.seal(key, &packed, &self.spool).await?)),
            None => Ok(packed),
        }
    }

    /// Returns the attributes of the value, as they were before [`Encoded::encode`].
    fn open(&self, key: &Key, operation: Operation, stored: Attributes) -> Result<Attributes> {
        if !stored.is_sealed() {
            return Ok(stored);
        }
        let opened = self.encryption.open(key, &stored).map_err(|error| error.during(operation))?;
        Ok(opened.0)
    }

    /// Decrypts an object whose payload has all stored bytes: returns the wanted part, or all bytes for a codec.
    async fn decrypt(&self, key: &Key, options: &GetOptions, object: Object) -> Result<Object> {
        let (mut attributes, data_key) = self.encryption.open(key, &object.attributes)?;
        let plain = DataKey::opened_size(key, &object.payload)?;
        let is_value = attributes.compression.is_none();
        if is_value && plain != attributes.size {
            return Err(damaged(key, "the value's size does not match the decrypted bytes"));
        }
        let part = if is_value { options.part(key, attributes.kind, plain)? } else { 0..plain };
        let whole = is_value && part == (0..plain);
        let spool = (options.spooled || !is_value).then_some(&self.spool);
        let (payload, checksum) = data_key.open(key, &object.payload, part, spool).await?;
        if whole && checksum != attributes.checksum {
            return Err(damaged(key, "the value's checksum does not match the decrypted bytes"));
        }
        attributes.info.decoded = is_value;
        Ok(Object { attributes, payload })
    }

    /// Returns the wanted part of an object whose payload has all stored bytes.
    async fn decode(&self, key: &Key, options: &GetOptions, codec: &str, object: Object) -> Result<Object> {
        let Object { mut attributes, payload } = object;
        attributes.info.decoded = true;
        if options.range.is_some() && attributes.has_unknown_coding() {
            // The backend has taken the range from the stored bytes.
            return Ok(Object { attributes, payload });
        }
        let codec = Codec::named(codec).ok_or_else(|| unknown(key, codec, &attributes))?;
        let known = attributes.is_value_known().then_some(attributes.size);
        let wanted = Wanted {
            part: options.range.map_or(0..u64::MAX, |range| range.within(known.unwrap_or(u64::MAX))),
            cap: match (known, options.limit) {
                (Some(size), _) => Cap::Declared(size),
                (None, Some(limit)) if options.range.is_none() => Cap::Requested(limit),
                (None, _) if options.spooled || options.range.is_some() => Cap::Foreign(MOST_STREAMED),
                (None, _) => Cap::Foreign(self.memory_cap),
            },
            in_memory: !options.spooled && (known.is_some() || options.range.is_none()),
        };
        let Unpacked { payload, whole } = unpack(key, codec, &payload, &wanted, &self.spool).await?;
        match (known, whole) {
            (Some(_), Some(whole)) if whole != (attributes.size, attributes.checksum) => {
                return Err(damaged(key, "the value's size or checksum does not match the decompressed bytes"));
            }
            (None, Some((size, checksum))) => (attributes.size, attributes.checksum) = (size, checksum),
            _ => {}
        }
        if known.is_none() {
            // What is wanted was not bounded by the attributes.
            options.part(key, attributes.kind, whole.map_or(u64::MAX, |(size, _)| size))?;
        }
        Ok(Object { attributes, payload })
    }
}

/// Makes the error of an object whose codec this program does not know.
fn unknown(key: &Key, codec: &str, attributes: &Attributes) -> Error {
    let why = if attributes.foreign.other_tool {
        format!(
            "the object's Content-Encoding is {codec:?}, which this program cannot decode; read the stored bytes with \
             `offset=0`, or correct the header with the bucket's own tool"
        )
    } else {
        format!(
            "the object's codec is {codec:?}, which this program does not know; a newer version may have written it"
        )
    };
    Error::new(ErrorKind::Integrity, Operation::Retrieve, Some(key), why)
}

impl fmt::Display for Encoded {
    fn fmt(&self, formatter: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(formatter, "encoded({})", self.inner)
    }
}

#[async_trait]
impl Backend for Encoded {
    async fn put(&self, key: &Key, object: &Object, options: &PutOptions) -> Result<Attributes> {
        let encoded = self.encode(key, object).await?;
        let generation = match &options.condition {
            Condition::Generation(generation) => Some(generation.as_str()),
            Condition::Always | Condition::Absent => None,
        };
        let stored = self.despite_rotation(key, generation, || self.inner.put(key, &encoded, options)).await?;
        self.open(key, Operation::Store, stored)
    }

    async fn get(&self, key: &Key, options: GetOptions) -> Result<Option<Object>> {
        // A range of an encoded object needs all stored bytes, which may be many.
        let kept = GetOptions { spooled: options.spooled || options.range.is_some(), ..options.clone() };
        let Some(mut object) = self.inner.get(key, kept).await? else { return Ok(None) };
        if object.payload.is_announced() && object.attributes.is_encoded() {
            let attributes = self.open(key, Operation::Retrieve, object.attributes)?;
            if !attributes.is_value_known() || attributes.has_unknown_coding() {
                return self.get(key, GetOptions { announced: false, ..options }).await;
            }
            let part = options.part(key, attributes.kind, attributes.size)?;
            return Ok(Some(Object { attributes, payload: Payload::Announced(part.end - part.start) }));
        }
        if object.attributes.encrypted && !object.attributes.info.decoded {
            object = self.decrypt(key, &options, object).await?;
        }
        let object = match object.attributes.compression.clone() {
            Some(codec) if !object.attributes.info.decoded => self.decode(key, &options, &codec, object).await?,
            _ => object,
        };
        if options.spooled || object.payload.is_announced() {
            return Ok(Some(object));
        }
        let Object { attributes, payload } = object;
        let payload = payload.into_memory().await.map_err(|error| Error::unread(Operation::Retrieve, key, error))?;
        Ok(Some(Object { attributes, payload: payload.into() }))
    }

    async fn copy(
        &self,
        source: &CopySource,
        key: &Key,
        attributes: &Attributes,
        options: &PutOptions,
    ) -> Result<Option<Attributes>> {
        if !attributes.encrypted {
            if self.encryption.keyring_of_writes().is_some() {
                // The copy must not be readable without the key.
                return source.copy_through(self, key, attributes, options).await;
            }
            return self.inner.copy(source, key, attributes, options).await;
        }
        let Some(sealed) = self.inner.stat(&source.key).await?.filter(|sealed| source.is(sealed)) else {
            return Ok(None);
        };
        let rewrapped = self.encryption.rewrap(&source.key, key, &sealed, attributes);
        let rewrapped = rewrapped.map_err(|error| error.during(Operation::Copy))?;
        let stored = self.inner.copy(source, key, &rewrapped, options).await?;
        stored.map(|stored| self.open(key, Operation::Copy, stored)).transpose()
    }

    async fn stat(&self, key: &Key) -> Result<Option<Attributes>> {
        let stored = self.inner.stat(key).await?;
        stored.map(|stored| self.open(key, Operation::Stat, stored)).transpose()
    }

    /// A version whose key is not in the keyring is listed without what the key hides, and is an error where its
    /// generation is requested.
    async fn versions(&self, key: &Key, request: &VersionsRequest) -> Result<Versions> {
        let mut found = self.inner.versions(key, request).await?;
        for version in &mut found.versions {
            match self.open(key, Operation::Versions, version.attributes.clone()) {
                Ok(opened) => version.attributes = opened,
                Err(error) if request.generation.is_some() => return Err(error),
                Err(_) => version.attributes.info.unread = true,
            }
        }
        Ok(found)
    }

    async fn delete(&self, key: &Key, options: &DeleteOptions) -> Result<Removal> {
        let generation = options.generation.as_deref();
        self.despite_rotation(key, generation, || self.inner.delete(key, options)).await
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
        let mut stored = Cow::Borrowed(attributes);
        if let Some(rule) = self.compression.filter(|rule| rule.covers(attributes) && !attributes.is_encoded()) {
            // A name in the attributes takes room beside the metadata.
            stored.to_mut().compression = Some(rule.codec.as_str().to_owned());
        }
        // So does the envelope.
        if let Some(keyring) = self.encryption.keyring_of_writes().filter(|_| !attributes.is_sealed()) {
            stored = Cow::Owned(keyring.form(key, &stored)?);
        }
        self.inner.validate(key, &stored)
    }

    async fn sign(&self, key: &Key, grant: &Grant) -> Result<String> {
        if self.encryption.keyring_of_writes().is_some() {
            // Who has the URL has no key: a read would return ciphertext, and a write would store the plain value.
            let why =
                "values are encrypted here, and a signed URL bypasses the encryption; retrieve or store the value";
            return Err(Error::new(ErrorKind::Invalid, Operation::Sign, Some(key), why));
        }
        self.inner.sign(key, grant).await
    }
}
