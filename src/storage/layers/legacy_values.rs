//! The values of the Python class `FileStorage`: what its bytes stand for, once the codecs have been undone.
//!
//! The class kept no type. It wrote a text and bytes as they are, and everything else as a pickle. So a pickle is read
//! as data and becomes JSON ([`pickle`]), what is UTF-8 is a text, and the rest is bytes. Nothing is guessed beyond that:
//! a text that happens to be JSON was stored as a text.

use std::collections::HashMap;
use std::fmt;
use std::sync::{Arc, Mutex, PoisonError};

use async_trait::async_trait;
use tokio::sync::Semaphore;

use crate::storage::backend::{
    Backend, CopySource, DeleteOptions, GetOptions, Grant, Listing, Page, Probe, PutOptions, Removal, Versions,
    VersionsRequest,
};
use crate::storage::error::{Error, ErrorKind, Operation, Result};
use crate::storage::files::Spool;
use crate::storage::files::spool::spool_fault;
use crate::storage::legacy::pickle::{self, Pickle, PickleError, Types, WriteFault, is_pickle};
use crate::storage::legacy::{CONTENT_TYPE, content_type, is_binary};
use crate::storage::object::{Attributes, Checksum, Foreign, JsonText, Key, Kind, Object, Payload, payload};

/// The pickles that are read at once. Each takes memory for its values.
static READERS: Semaphore = Semaphore::const_new(1);

/// The largest pickle that is read on the calling thread, and the largest value that it may stand for.
const SMALL: u64 = 16 * 1024;

/// The number of files whose value's attributes are remembered.
const REMEMBERED: usize = 4096;

/// A backend whose old files and objects are read as the values that the Python class was given.
///
/// # Contract
///
/// - A range is one of the bytes before they are interpreted, so that the bytes of every pickle can be read.
/// - A pickle that cannot be read as data is [`ErrorKind::Integrity`]. It is there all the same: its attributes are those
///   of its bytes.
/// - The attributes of a file are those of its value, for which the file is read once.
#[derive(Debug)]
pub struct LegacyValues {
    inner: Arc<dyn Backend>,
    spool: Spool,
    /// Whether an object in a bucket may be one of the class.
    objects: bool,
    /// Whether the bytes of a pickle that cannot be read as data are a value.
    keeps_pickles: bool,
    /// The attributes of values by key and generation, without the caller's metadata: it may be large.
    known: Mutex<HashMap<(Key, String), Attributes>>,
}

impl LegacyValues {
    /// Reads old files below a backend; large values pass through the spool.
    #[must_use]
    pub fn new(inner: Arc<dyn Backend>, spool: Spool) -> Self {
        Self { inner, spool, objects: false, keeps_pickles: false, known: Mutex::default() }
    }

    /// Reads old objects of a bucket, too. The class gave each the content type `text/plain`.
    #[must_use]
    pub fn and_objects(self) -> Self {
        Self { objects: true, ..self }
    }

    /// Takes the bytes of a pickle that cannot be read as data for the value.
    #[must_use]
    pub fn keeping_pickles(self) -> Self {
        Self { keeps_pickles: true, ..self }
    }

    fn may_be_old(&self, attributes: &Attributes) -> bool {
        let Foreign { other_tool, charset, .. } = &attributes.foreign;
        let object = self.objects && *other_tool && charset.is_none() && attributes.content_type == CONTENT_TYPE;
        (attributes.info.legacy.is_some() || object) && !attributes.has_unknown_coding()
    }

    /// Makes the value of the bytes that the class wrote.
    async fn value(&self, key: &Key, options: &GetOptions, object: Object) -> Result<Object> {
        let unread = |error| Error::unread(Operation::Retrieve, key, error);
        let Object { mut attributes, payload } = object;
        let hint = match attributes.info.legacy {
            Some(legacy) => (!legacy.untyped).then(|| attributes.content_type.clone()),
            // The class put the caller's metadata beside the object, but not into its headers.
            None => attributes.metadata.as_deref().and_then(content_type),
        };
        let mut legacy = attributes.info.legacy.unwrap_or_default();
        let pickled = is_pickle(&payload.read(0, 2).await.map_err(unread)?);
        let read = if pickled { self.unpickled(key, &payload).await } else { Err(ReadFault::NoPickle) };
        let payload = match read {
            Ok(read) => {
                legacy.types_changed = read.types == Types::Changed;
                (attributes.kind, attributes.size, attributes.checksum) =
                    (read.kind, read.payload.len(), read.checksum);
                attributes.info.decoded = true;
                read.payload.slice(options.part(key, read.kind, read.payload.len())?)
            }
            Err(ReadFault::Storage(error)) => return Err(error),
            Err(ReadFault::Pickle(error)) if !self.keeps_pickles => return Err(refused(key, &error)),
            Err(fault) => {
                legacy.kept_pickle = matches!(fault, ReadFault::Pickle(_));
                let binary = hint.as_deref().is_some_and(is_binary);
                let is_utf8 = !pickled && payload.is_utf8().await.map_err(unread)?;
                // In a bucket it may be another tool's text in a charset that nobody names. The engine says so.
                let is_text = is_utf8
                    || (attributes.info.legacy.is_none()
                        && !pickled
                        && !has_controls(&payload).await.map_err(unread)?);
                attributes.kind = if is_text && !binary { Kind::Text } else { Kind::Bytes };
                legacy.text_or_bytes = is_text && hint.is_none();
                legacy.json_text = attributes.kind == Kind::Text && is_json(&payload);
                payload
            }
        };
        match attributes.kind {
            // What a bucket says of a text is left as it is.
            Kind::Text if attributes.info.legacy.is_none() => {}
            kind => attributes.content_type = hint.unwrap_or_else(|| kind.content_type().to_owned()),
        }
        if attributes.info.legacy.is_some() {
            attributes.info.legacy = Some(legacy);
            attributes.foreign = Foreign::default();
        }
        Ok(Object { attributes, payload })
    }

    /// Reads a pickle as data.
    async fn unpickled(&self, key: &Key, packed: &Payload) -> std::result::Result<Unpickled, ReadFault> {
        let unread = |error| ReadFault::Storage(Error::unread(Operation::Retrieve, key, error));
        if packed.len() > pickle::limits::BYTES as u64 {
            // The reader says the same of bytes in memory.
            return Err(ReadFault::Pickle(PickleError::too_large(packed.len())));
        }
        let bytes = packed.clone().into_memory().await.map_err(unread)?;
        let tried = if packed.len() <= SMALL { Some(unpickle(&bytes, &self.spool, SMALL)) } else { None };
        let read = match tried {
            // A small pickle may stand for a large value.
            None | Some(Err(WriteFault::Pickle(_))) => {
                // The semaphore is never closed. The work keeps the permit also when nobody waits for it any longer.
                let permit = READERS.acquire().await.ok();
                let spool = self.spool.clone();
                let work = move || {
                    let read = unpickle(&bytes, &spool, pickle::limits::WRITTEN);
                    drop(permit);
                    Ok(read)
                };
                payload::run_blocking(work).await.map_err(unread)?
            }
            Some(read) => read,
        };
        read.map_err(|fault| match fault {
            WriteFault::Pickle(error) => ReadFault::Pickle(error),
            WriteFault::Io(error) => ReadFault::Storage(spool_fault(Operation::Retrieve, Some(key), error)),
        })
    }
}

/// The reason why bytes were not read as a pickle.
enum ReadFault {
    /// The bytes are no pickle.
    NoPickle,
    /// The bytes are a pickle that cannot be read as data.
    Pickle(PickleError),
    /// The bytes could not be read, or the value could not be written.
    Storage(Error),
}

/// The value of a pickle.
struct Unpickled {
    kind: Kind,
    payload: Payload,
    checksum: Checksum,
    types: Types,
}

fn unpickle(bytes: &[u8], spool: &Spool, most: u64) -> std::result::Result<Unpickled, WriteFault> {
    let pickle = Pickle::read(bytes)?;
    let mut writer = spool.writer();
    let types = pickle.write(most, |piece| writer.push_blocking(piece))?;
    let kind = pickle.kind();
    let (payload, checksum) = writer.finish_blocking()?;
    Ok(Unpickled { kind, payload, checksum, types })
}

/// Tells whether bytes hold a control character that no text has, in whatever charset. ESC is part of some charsets.
async fn has_controls(payload: &Payload) -> std::io::Result<bool> {
    let is_control = |byte: &u8| *byte < 0x20 && !matches!(byte, b'\x08'..=b'\r' | 0x1b);
    let mut offset = 0;
    while offset < payload.len() {
        let chunk = payload.read(offset, Payload::CHUNK).await?;
        if chunk.iter().any(is_control) {
            return Ok(true);
        }
        offset += chunk.len() as u64;
    }
    Ok(false)
}

/// Tells whether a short text is a JSON value.
fn is_json(payload: &Payload) -> bool {
    let text = payload.as_memory().and_then(|bytes| std::str::from_utf8(bytes).ok());
    text.is_some_and(|text| JsonText::parse(text).is_ok())
}

fn refused(key: &Key, error: &PickleError) -> Error {
    let remedy = "read its bytes with `offset=0`, or store it again";
    let why =
        format!("the Python FileStorage stored the value as a pickle, which is read as data only: {error}; {remedy}");
    Error::new(ErrorKind::Integrity, Operation::Retrieve, Some(key), why)
}

impl fmt::Display for LegacyValues {
    fn fmt(&self, formatter: &mut fmt::Formatter<'_>) -> fmt::Result {
        self.inner.fmt(formatter)
    }
}

#[async_trait]
impl Backend for LegacyValues {
    async fn put(&self, key: &Key, object: &Object, options: &PutOptions) -> Result<Attributes> {
        self.inner.put(key, object, options).await
    }

    async fn get(&self, key: &Key, options: GetOptions) -> Result<Option<Object>> {
        let Some(object) = self.inner.get(key, options.clone()).await? else { return Ok(None) };
        if options.range.is_some() || !self.may_be_old(&object.attributes) {
            return Ok(Some(object));
        }
        if object.payload.is_announced() {
            // What the value is shows in its bytes.
            return self.get(key, GetOptions { announced: false, ..options }).await;
        }
        let Object { attributes, payload } = self.value(key, &options, object).await?;
        if options.spooled {
            return Ok(Some(Object { attributes, payload }));
        }
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
        if !self.may_be_old(attributes) {
            return self.inner.copy(source, key, attributes, options).await;
        }
        // What the class wrote becomes a value of this program.
        let spooled = GetOptions { spooled: true, ..GetOptions::default() };
        let Some(found) = self.get(&source.key, spooled).await? else { return Ok(None) };
        if !source.is(&found.attributes) {
            return Ok(None);
        }
        let options = source.options_of_write(key, &found.attributes, options)?;
        let content_type = found.attributes.content_type.clone();
        let attributes = Attributes { content_type, ..attributes.clone().into_value_of(&found.attributes) };
        let written = self.inner.put(key, &Object { attributes, payload: found.payload }, &options).await;
        source.written(key, written)
    }

    async fn stat(&self, key: &Key) -> Result<Option<Attributes>> {
        let Some(attributes) = self.inner.stat(key).await? else { return Ok(None) };
        if attributes.info.legacy.is_none() {
            return Ok(Some(attributes));
        }
        let state = (key.clone(), attributes.generation.clone());
        let known = || self.known.lock().unwrap_or_else(PoisonError::into_inner);
        let remembered = known().get(&state).cloned();
        if let Some(remembered) = remembered {
            return Ok(Some(Attributes { metadata: attributes.metadata, ..remembered }));
        }
        let found = match self.get(key, GetOptions { spooled: true, ..GetOptions::default() }).await {
            Ok(Some(object)) => object.attributes,
            Ok(None) => return Ok(None),
            // It is there, though it cannot be read.
            Err(error) if matches!(error.kind, ErrorKind::Integrity | ErrorKind::Invalid) => Attributes {
                kind: Kind::Bytes,
                content_type: Kind::Bytes.content_type().to_owned(),
                foreign: Foreign::default(),
                ..attributes
            },
            Err(error) => return Err(error.during(Operation::Stat)),
        };
        let mut known = known();
        if known.len() >= REMEMBERED {
            known.clear();
        }
        known.insert(state, Attributes { metadata: None, ..found.clone() });
        Ok(Some(found))
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
        self.inner.validate(key, attributes)
    }

    async fn sign(&self, key: &Key, grant: &Grant) -> Result<String> {
        self.inner.sign(key, grant).await
    }
}
