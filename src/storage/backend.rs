//! The interface of every place that keeps whole objects under keys.

use std::fmt;
use std::ops::Range;
use std::sync::Arc;
use std::time::Duration;

use async_trait::async_trait;
use jiff::{SignedDuration, Timestamp};

use crate::storage::commit_guard::CommitGuard;
use crate::storage::error::{Error, ErrorKind, Operation, Result};
use crate::storage::object::{Attributes, Key, Kind, Object};

/// A place that keeps whole objects under keys.
///
/// # Contract
///
/// - An object appears whole or not at all: a reader sees the old object or the new one.
/// - A `put` or `delete` that has returned is on stable storage.
/// - `None` means that the key certainly has no object. Everything else is an error.
/// - Conditions hold against every other writer of the same place, whatever its process.
/// - Backends keep expired objects like any other; the engine hides them.
/// - A `get` takes no more of a payload into memory than [`GetOptions`] asks for, beside a buffer of fixed size.
/// - Sizes, ranges, limits and conditions are those of the value, also where the stored bytes are encoded.
/// - No default methods: a layer implements all of them or does not compile.
#[async_trait]
pub trait Backend: fmt::Debug + fmt::Display + Send + Sync + 'static {
    /// Writes the object and returns the attributes that are stored now.
    ///
    /// An object that was there is replaced if the condition allows it. The attributes are those after every layer
    /// below, as a `stat` would return them: [`ObjectInfo::pending`](super::ObjectInfo::pending) says whether the write
    /// waits in an overlay.
    ///
    /// A payload in a file is checked against the attributes while it is read. A file that has changed is
    /// [`ErrorKind::Integrity`], and nothing is written.
    async fn put(&self, key: &Key, object: &Object, options: &PutOptions) -> Result<Attributes>;

    /// Reads the object.
    ///
    /// The payload of an object that is stored unencoded has the requested bytes only. The payload of an encoded object
    /// ([`Attributes::is_encoded`]) has all stored bytes, and the layer that decodes them selects the requested part. Of a
    /// coding that this program cannot decode, a range is one of the stored bytes.
    /// The attributes are those of the whole object.
    ///
    /// Checksums of all stored bytes are verified before anything is returned, also for a part. A refusal
    /// ([`ErrorKind::Invalid`]) follows from the attributes alone, before the payload is read, unless the size of the value
    /// is unknown until it is decoded.
    ///
    /// With [`GetOptions::version`], that version is read whatever the key has now. A place that keeps no versions refuses
    /// it ([`ErrorKind::Invalid`]).
    async fn get(&self, key: &Key, options: GetOptions) -> Result<Option<Object>>;

    /// Stores the bytes of another object, or of this one, under the key, with these attributes.
    ///
    /// Returns the attributes that are stored now, as [`Backend::put`] does, and `None` where the source has no object in
    /// exactly the state that is named; nothing is written then. A bucket copies by itself: the bytes do not pass
    /// through this program unless the bucket cannot check what is asked.
    ///
    /// The attributes are those that `stat` told of the source, with whatever is to be changed. Sizes, checksums and
    /// codecs have to be those of the source, since its stored bytes stay as they are. A layer that cannot keep the
    /// stored bytes reads the value and writes it anew.
    ///
    /// A copy onto itself replaces the attributes of exactly this state. Conditions concern the object that is
    /// replaced.
    async fn copy(
        &self,
        source: &CopySource,
        key: &Key,
        attributes: &Attributes,
        options: &PutOptions,
    ) -> Result<Option<Attributes>>;

    /// Reads only the attributes of the object.
    async fn stat(&self, key: &Key) -> Result<Option<Attributes>>;

    /// Lists the versions of the object, newest first: the present object, if any, and the earlier ones that are kept.
    ///
    /// A removal is no version. Memory, requests and waits are bounded whatever the number of versions. A place that keeps
    /// no versions refuses ([`ErrorKind::Invalid`]), also for a key without an object.
    async fn versions(&self, key: &Key, request: &VersionsRequest) -> Result<Versions>;

    /// Removes the object. With a generation condition, a missing object is a success.
    ///
    /// A place that cannot check and remove in one step refuses a generation ([`ErrorKind::Invalid`]), unless
    /// [`DeleteOptions::lenient`] allows the check to come first and the removal afterwards.
    async fn delete(&self, key: &Key, options: &DeleteOptions) -> Result<Removal>;

    /// Lists one page of keys, in byte order.
    async fn list(&self, page: &Page) -> Result<Listing>;

    /// Makes sure that the present state of the key, an object or none, is on stable storage.
    ///
    /// The engine calls this before it answers a write of an earlier attempt as done. That attempt may have ended
    /// between the rename and the sync.
    async fn flush(&self, key: &Key) -> Result<()>;

    /// Checks whether the place can be used. Only start-up and health checks call this.
    async fn probe(&self) -> Result<Probe>;

    /// Refuses ([`ErrorKind::Invalid`]) a key or attributes that the place could never store, without a request to the
    /// place.
    ///
    /// A fallback calls this first, so that every write in an overlay can be sent later.
    fn validate(&self, key: &Key, attributes: &Attributes) -> Result<()>;

    /// Makes a URL with which anyone can read or write the object for a time, without a request to the place.
    ///
    /// A place without such URLs refuses ([`ErrorKind::Invalid`]).
    async fn sign(&self, key: &Key, grant: &Grant) -> Result<String>;
}

/// Takes redelivered writes and deletes while the bucket, which knows how their first attempt ended, cannot be asked.
///
/// An overlay stores them with the time of their first attempt as the stamp. The sync loop then compares that stamp
/// with what the bucket has received since. A layer above the overlay passes the object on as it encodes it.
#[async_trait]
pub trait Deferral: fmt::Debug + Send + Sync + 'static {
    /// Stores a write and returns the stored attributes; [`ErrorKind::Precondition`] where another write of the key is
    /// pending.
    async fn defer_put(&self, key: &Key, object: &Object, guard: &CommitGuard) -> Result<Attributes>;

    /// Stores a delete with this time; [`ErrorKind::Precondition`] where another write of the key is pending.
    async fn defer_delete(&self, key: &Key, deleted_at: Timestamp, guard: &CommitGuard) -> Result<Removal>;

    /// Tells whether the newest state of the key, an object or none, is not yet in the bucket.
    async fn is_pending(&self, key: &Key) -> Result<bool>;

    /// Tells whether the overlay may have an entry of the key. Where it certainly has none, the answer is no.
    ///
    /// Blocks for one or two system calls on the overlay's folder, which do not wait for a device in general.
    fn may_have_entry(&self, key: &Key) -> bool;
}

/// The result of a delete.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Removal {
    /// Whether the key had an object. A delete that an overlay stores without asking the bucket says no.
    pub found: bool,
    /// The delete waits in an overlay, from which it is sent to the bucket.
    pub pending: bool,
}

/// The answer of a place that can be used.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Probe {
    /// How much the place's clock is ahead of this machine's, if the place has told its time.
    pub skew: Option<SignedDuration>,
}

/// What a signed URL permits.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Grant {
    /// Whether the object may be read or written.
    pub method: Method,
    /// How long the URL is valid from now.
    pub lifetime: Duration,
}

/// The method of a signed URL.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Method {
    /// Reads the object.
    Get,
    /// Writes the object.
    Put,
}

impl Method {
    /// Returns the method's HTTP name.
    #[must_use]
    pub const fn as_str(self) -> &'static str {
        match self {
            Self::Get => "GET",
            Self::Put => "PUT",
        }
    }
}

/// Which bytes of a value a read returns, how many are permitted, and in what form they may come.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct GetOptions {
    /// Only these bytes of a text or bytes value are read; by default the whole value.
    pub range: Option<ByteRange>,
    /// A read of more bytes of the value than this is refused.
    pub limit: Option<u64>,
    /// A large payload may be a file ([`Payload::File`](super::Payload::File)) instead of bytes in memory.
    pub spooled: bool,
    /// Of a large payload on this machine's disk, nothing but the length may be told
    /// ([`Payload::Announced`](super::Payload::Announced)): the caller asks again once there is room for the bytes.
    pub announced: bool,
    /// This version of the object is read; by default the present object.
    pub version: Option<VersionId>,
    /// The place itself is read, whatever a cache has.
    pub uncached: bool,
}

/// A range of bytes of a text or bytes value.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct ByteRange {
    /// The first byte. A range that begins beyond the end is empty, which is no error.
    pub offset: u64,
    /// The largest number of bytes; by default all up to the end.
    pub length: Option<u64>,
}

impl ByteRange {
    /// Returns the part of the range that lies in a value of this size.
    pub(super) fn within(self, size: u64) -> Range<u64> {
        let begin = self.offset.min(size);
        begin..self.length.map_or(size, |length| begin.saturating_add(length).min(size))
    }
}

impl GetOptions {
    /// Returns which stored bytes must be read: all of an encoded object, else the requested ones.
    ///
    /// Fails for more bytes of the value than the limit, and for a part of a JSON value.
    pub(super) fn kept_part(&self, key: &Key, attributes: &Attributes) -> Result<Range<u64>> {
        // Of a coding that nothing here decodes, a range is one of the stored bytes, so that they can be read at all.
        if !attributes.is_encoded() || (self.range.is_some() && attributes.has_unknown_coding()) {
            // Stored size and value size are equal without a coding, or the attributes are damaged. No part may exceed the
            // stored bytes.
            return self.part(key, attributes.kind, attributes.stored_size);
        }
        let (options, size) = match self.range {
            // The size of a value that another tool has encoded is unknown until it is decoded.
            Some(_) if !attributes.is_value_known() => (Self { limit: None, ..self.clone() }, u64::MAX),
            _ => (self.clone(), attributes.size),
        };
        options.part(key, attributes.kind, size)?;
        Ok(0..attributes.stored_size)
    }

    /// Returns the requested bytes of a value of this size; fails for more than the limit, and for a part of a JSON
    /// value.
    pub(super) fn part(&self, key: &Key, kind: Kind, size: u64) -> Result<Range<u64>> {
        let refused = |why| Err(Error::new(ErrorKind::Invalid, Operation::Retrieve, Some(key), why));
        let part = match self.range {
            None => 0..size,
            Some(_) if kind == Kind::Json => {
                let why = "a range of a JSON value has no meaning; retrieve it whole, without offset and length";
                return refused(why.to_owned());
            }
            Some(range) => range.within(size),
        };
        let bytes = part.end - part.start;
        let Some(limit) = self.limit.filter(|limit| bytes > *limit) else { return Ok(part) };
        let remedy = match (self.range, kind) {
            (_, Kind::Json) => "have it written to a `destination`, or raise the limit: a JSON value has no parts",
            (None, Kind::Text | Kind::Bytes) => "read it in parts with `offset` and `length`, or name a `destination`",
            (Some(_), Kind::Text | Kind::Bytes) => {
                "read smaller parts with `offset` and `length`, or name a `destination`"
            }
        };
        refused(format!(
            "{bytes} bytes of a value of {size} bytes are requested, and at most {limit} may be read at once; {remedy}"
        ))
    }
}

/// The id by which a bucket names one version of an object: the generation number of Cloud Storage, the version id of S3.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct VersionId(Arc<str>);

impl VersionId {
    /// Takes an id that a bucket has given.
    #[must_use]
    pub fn new(id: &str) -> Self {
        Self(id.into())
    }

    /// Returns the id as the bucket writes it.
    #[must_use]
    pub fn as_str(&self) -> &str {
        &self.0
    }
}

/// The versions of an object that are requested.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct VersionsRequest {
    /// Only versions with this generation token; by default all.
    pub generation: Option<String>,
    /// The largest number of versions.
    pub limit: usize,
}

/// The versions of an object that were found.
#[derive(Clone, Debug, Default)]
pub struct Versions {
    /// The versions, newest first.
    pub versions: Vec<Version>,
    /// The number of versions whose attributes are damaged, or hidden from this identity. They are not listed.
    pub unreadable: u64,
    /// Whether the object has more versions than the limit.
    pub more: bool,
}

/// One version of an object.
#[derive(Clone, Debug)]
pub struct Version {
    /// The bucket's id of the version.
    pub id: VersionId,
    /// The attributes, as a `stat` of the present object would return them.
    pub attributes: Attributes,
    /// Whether the version is the present object of its key.
    pub is_current: bool,
}

/// A condition that must hold for a write to happen.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub enum Condition {
    /// Every state of the key is accepted.
    #[default]
    Always,
    /// The key must have no live (unexpired) object.
    Absent,
    /// The key must have a live object with this generation token.
    Generation(String),
}

impl Condition {
    /// Tells whether the condition holds for the present object.
    pub(in crate::storage) fn check(
        &self,
        operation: Operation,
        key: &Key,
        present: Option<&Attributes>,
    ) -> Result<()> {
        let expired = present.is_some_and(|present| present.is_expired(Timestamp::now()));
        // A delete may remove an expired object, but no other condition sees one.
        let present = present.filter(|_| !expired || operation == Operation::Delete);
        let why = match (self, present) {
            (Self::Always, _) | (Self::Absent, None) => return Ok(()),
            (Self::Absent, Some(_)) => "the key has an object already; leave if_absent out to replace it",
            (Self::Generation(wanted), Some(present)) if *wanted == present.generation => return Ok(()),
            (Self::Generation(_), Some(_)) => "the object has changed since that generation; stat it and decide again",
            (Self::Generation(_), None) => "the key has no object, and so no generation; stat it and decide again",
        };
        Err(Error::new(ErrorKind::Precondition, operation, Some(key), why))
    }
}

/// Options of a put.
#[derive(Clone, Debug, Default)]
pub struct PutOptions {
    /// The condition, checked atomically with the commit point.
    pub condition: Condition,
    /// A place that cannot check and write in one step may check first instead of refusing the condition.
    pub lenient: bool,
    /// The guard that the backend asks at the commit point.
    pub commit_guard: CommitGuard,
}

/// The state of an object that is copied.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct CopySource {
    /// The key of the object.
    pub key: Key,
    /// The generation token of the state. An object in another state is not copied.
    pub generation: String,
}

impl CopySource {
    /// Names the state of an object that was seen.
    #[must_use]
    pub fn of(key: &Key, seen: &Attributes) -> Self {
        Self { key: key.clone(), generation: seen.generation.clone() }
    }

    /// Tells whether an object is in this state.
    pub(in crate::storage) fn is(&self, present: &Attributes) -> bool {
        self.generation == present.generation
    }

    /// Returns the options of the write of a copy: a copy onto itself replaces nothing but this state, which was seen.
    ///
    /// Fails where the caller's own condition does not hold for it.
    pub(in crate::storage) fn options_of_write(
        &self,
        key: &Key,
        seen: &Attributes,
        options: &PutOptions,
    ) -> Result<PutOptions> {
        if self.key != *key {
            return Ok(options.clone());
        }
        options.condition.check(Operation::Store, key, Some(seen))?;
        let lenient = options.lenient || options.condition == Condition::Always;
        Ok(PutOptions { condition: Condition::Generation(self.generation.clone()), lenient, ..options.clone() })
    }

    /// Copies by reading and writing. Bytes that the backend has decoded are written as a value.
    pub(in crate::storage) async fn copy_through(
        &self,
        backend: &dyn Backend,
        key: &Key,
        attributes: &Attributes,
        options: &PutOptions,
    ) -> Result<Option<Attributes>> {
        let spooled = GetOptions { spooled: true, ..GetOptions::default() };
        let Some(found) = backend.get(&self.key, spooled).await? else { return Ok(None) };
        if !self.is(&found.attributes) {
            return Ok(None);
        }
        let options = self.options_of_write(key, &found.attributes, options)?;
        let attributes = if found.attributes.info.decoded {
            attributes.clone().into_value_of(&found.attributes)
        } else {
            attributes.clone()
        };
        let written = backend.put(key, &Object { attributes, payload: found.payload }, &options).await;
        self.written(key, written)
    }

    /// Returns the outcome of the write of a copy. A copy onto itself that finds another state found its source changed.
    pub(in crate::storage) fn written(&self, key: &Key, written: Result<Attributes>) -> Result<Option<Attributes>> {
        match written {
            Err(error) if error.kind == ErrorKind::Precondition && self.key == *key => Ok(None),
            written => written.map(Some),
        }
    }
}

/// Options of a delete.
#[derive(Clone, Debug, Default)]
pub struct DeleteOptions {
    /// Only this state of the object, expired or not, may be removed.
    pub generation: Option<String>,
    /// A place that cannot check and remove in one step may check first and remove afterwards.
    pub lenient: bool,
    /// The guard that the backend asks at the commit point.
    pub commit_guard: CommitGuard,
}

/// The part of a listing that is requested.
#[derive(Clone, Debug, Default)]
pub struct Page {
    /// Only keys that begin with this text (any text, not only whole segments).
    pub prefix: String,
    /// Only keys after this text, in byte order.
    pub start_after: Option<String>,
    /// The largest number of entries.
    pub limit: Option<usize>,
    /// Only key and stored size of each entry are needed. A place whose listing has no more then sends no request for each
    /// object; nothing else of such an entry says anything.
    pub sizes_only: bool,
}

/// One page of a listing.
#[derive(Clone, Debug, Default)]
pub struct Listing {
    /// The entries in byte order of their keys.
    pub entries: Vec<Entry>,
    /// The number of names in the place that are no legal keys. They are not listed.
    pub foreign: u64,
    /// Whether more entries follow the last one.
    pub more: bool,
}

impl Listing {
    /// Returns the key up to which the listing is complete, after which the next page begins; `None` at the end.
    ///
    /// # Errors
    ///
    /// [`ErrorKind::Io`] for a page without entries that more follow: it does not tell where to continue.
    pub fn horizon(&self) -> Result<Option<String>> {
        match self.entries.last() {
            Some(last) if self.more => Ok(Some(last.key.as_str().to_owned())),
            None if self.more => {
                let why = "the listing returned a page without entries although more follow; try again";
                Err(Error::new(ErrorKind::Io, Operation::List, None, why))
            }
            _ => Ok(None),
        }
    }
}

/// One listed object, with what the place tells about it. What the place does not tell is `None`.
#[derive(Clone, Debug)]
pub struct Entry {
    /// The key of the object.
    pub key: Key,
    /// Whether the entry is a pending delete, see [`Attributes::tombstone`].
    pub tombstone: bool,
    /// Whether this program wrote the object, by its attributes, and not another tool.
    pub labelled: bool,
    /// When the object expires, if ever. An object whose attributes cannot be read is listed without this time.
    pub expires_at: Option<Timestamp>,
    /// When the object was written; when the place received it, where another tool wrote it.
    pub stored_at: Option<Timestamp>,
    /// The number of bytes of the value.
    pub size: Option<u64>,
    /// The number of stored bytes.
    pub stored_size: Option<u64>,
    /// The generation token, which a conditional removal names.
    pub generation: Option<String>,
    /// The compression codec of the stored bytes, if any.
    pub compression: Option<String>,
    /// Whether the stored bytes are encrypted.
    pub encrypted: Option<bool>,
}

impl Entry {
    /// Lists an object whose attributes are known.
    pub(in crate::storage) fn of(key: &Key, attributes: &Attributes) -> Self {
        Self {
            key: key.clone(),
            tombstone: attributes.tombstone,
            labelled: !attributes.foreign.other_tool && attributes.info.legacy.is_none(),
            expires_at: attributes.expires_at,
            stored_at: Some(attributes.stored_at),
            size: attributes.is_value_known().then_some(attributes.size),
            stored_size: Some(attributes.stored_size),
            generation: Some(attributes.generation.clone()),
            compression: attributes.compression.clone(),
            encrypted: Some(attributes.encrypted),
        }
    }

    /// Lists an object of which only the stored size is known, if that.
    pub(in crate::storage) const fn sized(key: Key, stored_size: Option<u64>) -> Self {
        Self {
            key,
            tombstone: false,
            labelled: false,
            expires_at: None,
            stored_at: None,
            size: None,
            stored_size,
            generation: None,
            compression: None,
            encrypted: None,
        }
    }

    /// Tells whether the object has expired.
    #[must_use]
    pub fn is_expired(&self, now: Timestamp) -> bool {
        self.expires_at.is_some_and(|expires_at| expires_at <= now)
    }
}
