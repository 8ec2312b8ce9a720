//! The seam: a place that keeps whole objects under keys.

use std::fmt;
use std::ops::Range;
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
/// - Objects appear whole or not at all; a reader sees the old object or the new one.
/// - A `put` or `delete` that returned is on stable storage.
/// - `None` means that the place is certain that the key has no object; everything else is an error.
/// - Conditions hold against every other writer of the same place, whatever its process.
/// - Backends keep expired objects like any other; the engine hides them.
/// - A `get` takes no more of a payload into memory than [`GetOptions`] asks for, beside a buffer of fixed size.
/// - Sizes, ranges, limits and conditions speak of the value, also where the bytes kept are encoded.
/// - No default methods: a layer implements all of them or does not compile.
#[async_trait]
pub trait Backend: fmt::Debug + fmt::Display + Send + Sync + 'static {
    /// Writes the object, replacing what was there if the condition allows it, and returns what is stored now.
    ///
    /// The answer is the attributes after every layer below, as a `stat` would tell them:
    /// [`ObjectInfo::pending`](super::ObjectInfo::pending) says whether the write waits in an overlay.
    ///
    /// A payload that is a file is checked against the attributes on its way. One that changed since is
    /// [`ErrorKind::Integrity`], and nothing is written.
    async fn put(&self, key: &Key, object: &Object, options: &PutOptions) -> Result<Attributes>;

    /// Reads the object.
    ///
    /// The payload of an object that is kept as it is has the wanted bytes only. The payload of an encoded object
    /// ([`Attributes::is_encoded`]) has all kept bytes, and the layer that decodes them takes the wanted ones. The
    /// attributes are those of the whole object.
    ///
    /// Checksums of all kept bytes are verified before anything is returned, also for a part. What is refused
    /// ([`ErrorKind::Invalid`]) is refused by the attributes alone, before the payload is read.
    async fn get(&self, key: &Key, options: GetOptions) -> Result<Option<Object>>;

    /// Reads the attributes only.
    async fn stat(&self, key: &Key) -> Result<Option<Attributes>>;

    /// Removes the object. With a generation condition a missing object is fine.
    ///
    /// A place that cannot look and remove in one step refuses a generation ([`ErrorKind::Invalid`]), unless
    /// [`DeleteOptions::lenient`] lets it look first and remove afterwards.
    async fn delete(&self, key: &Key, options: &DeleteOptions) -> Result<Removal>;

    /// Lists keys in byte order, one page.
    async fn list(&self, page: &Page) -> Result<Listing>;

    /// Makes sure that what a reader sees under the key now, an object or nothing, is on stable storage.
    ///
    /// The engine asks this before it answers a write of an earlier attempt as done: that attempt may have ended between
    /// the rename and the sync.
    async fn flush(&self, key: &Key) -> Result<()>;

    /// Looks whether the place can be used; for start-up and health only.
    async fn probe(&self) -> Result<Probe>;

    /// Refuses ([`ErrorKind::Invalid`]) what the place could never keep, without asking it.
    ///
    /// A fallback asks this first, so that a write which waits in an overlay is one that can be sent.
    fn validate(&self, key: &Key, attributes: &Attributes) -> Result<()>;

    /// Makes a URL by which anyone can read or write the object for a time, without asking the place.
    ///
    /// A place without such URLs refuses ([`ErrorKind::Invalid`]).
    async fn sign(&self, key: &Key, grant: &Grant) -> Result<String>;
}

/// Takes writes and deletes that came again while the place that could tell how they ended cannot be asked.
///
/// An overlay takes them, stamped with the time of their first attempt, for its synchronization to weigh against what the
/// bucket has received since. A layer above the overlay passes on what it makes of the object.
#[async_trait]
pub trait Deferral: fmt::Debug + Send + Sync + 'static {
    /// Takes a write and returns what is stored now; [`ErrorKind::Precondition`] where another write of the key waits.
    async fn defer_put(&self, key: &Key, object: &Object, guard: &CommitGuard) -> Result<Attributes>;

    /// Takes a delete of this time; [`ErrorKind::Precondition`] where another write of the key waits.
    async fn defer_delete(&self, key: &Key, deleted_at: Timestamp, guard: &CommitGuard) -> Result<Removal>;

    /// Tells whether the key's newest state, an object or none, waits to be sent.
    async fn is_pending(&self, key: &Key) -> Result<bool>;
}

/// What a delete has done.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Removal {
    /// The key had an object. A delete that is only remembered does not know and says no.
    pub found: bool,
    /// The delete is remembered in an overlay, from where it will be sent to the bucket.
    pub pending: bool,
}

/// What a place that can be used says of itself.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Probe {
    /// How much its clock is ahead of ours, where it has told.
    pub skew: Option<SignedDuration>,
}

/// What a signed URL allows.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Grant {
    /// Reading or writing.
    pub method: Method,
    /// For how long from now.
    pub lifetime: Duration,
}

/// Method of a signed URL.
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

/// Which bytes of a value are wanted, how many are too many, and in what form they may come.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct GetOptions {
    /// Only these bytes of a text or bytes value; the whole by default.
    pub range: Option<ByteRange>,
    /// More bytes of the value than these are refused.
    pub limit: Option<u64>,
    /// Many bytes may come as a file ([`Payload::File`](super::Payload::File)) instead of in memory.
    pub spooled: bool,
}

/// Which bytes of a text or bytes value.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct ByteRange {
    /// First byte; a range that begins beyond the end is empty, which is no error.
    pub offset: u64,
    /// At most so many bytes; to the end by default.
    pub length: Option<u64>,
}

impl ByteRange {
    /// Returns the part of a value of so many bytes that lies in the range.
    pub(super) fn within(self, size: u64) -> Range<u64> {
        let begin = self.offset.min(size);
        begin..self.length.map_or(size, |length| begin.saturating_add(length).min(size))
    }
}

impl GetOptions {
    /// Returns which of the kept bytes are to be read: all of an encoded object, else the wanted ones.
    ///
    /// Fails for more bytes of the value than the limit, and for a part of JSON.
    pub(super) fn kept_part(&self, key: &Key, attributes: &Attributes) -> Result<Range<u64>> {
        if !attributes.is_encoded() {
            // The same as the value's, or the attributes are damaged; no part may reach beyond the bytes there are.
            return self.part(key, attributes.kind, attributes.stored_size);
        }
        let (options, size) = match self.range {
            // The size of a value that another tool has encoded is not known before it is decoded.
            Some(_) if !attributes.is_value_known() => (Self { limit: None, ..*self }, u64::MAX),
            _ => (*self, attributes.size),
        };
        options.part(key, attributes.kind, size)?;
        Ok(0..attributes.stored_size)
    }

    /// Returns which bytes of a value of this size are wanted; fails for more than the limit, and for a part of JSON.
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
        let mend = match (self.range, kind) {
            (_, Kind::Json) => "have it written to a `destination`, or raise the limit: a JSON value has no parts",
            (None, Kind::Text | Kind::Bytes) => "read it in parts with `offset` and `length`, or name a `destination`",
            (Some(_), Kind::Text | Kind::Bytes) => {
                "read smaller parts with `offset` and `length`, or name a `destination`"
            }
        };
        refused(format!("{bytes} bytes of a value of {size} are wanted, and {limit} may be read at once; {mend}"))
    }
}

/// What must hold for a write to happen.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub enum Condition {
    /// Nothing.
    #[default]
    Always,
    /// No live (unexpired) object is there.
    Absent,
    /// The live object there has this generation token.
    Generation(String),
}

impl Condition {
    /// Tells whether the condition holds for what is there.
    pub(in crate::storage) fn check(
        &self,
        operation: Operation,
        key: &Key,
        present: Option<&Attributes>,
    ) -> Result<()> {
        let expired = present.is_some_and(|present| present.is_expired(Timestamp::now()));
        // An expired object is there only to be removed.
        let present = present.filter(|_| !expired || operation == Operation::Delete);
        let why = match (self, present) {
            (Self::Always, _) | (Self::Absent, None) => return Ok(()),
            (Self::Absent, Some(_)) => "the key has an object already; leave if_absent out to replace it",
            (Self::Generation(wanted), Some(present)) if *wanted == present.generation => return Ok(()),
            (Self::Generation(_), Some(_)) => "the object has changed since that generation; stat it and decide again",
            (Self::Generation(_), None) => "the key has no object, so no generation of it; stat it and decide again",
        };
        Err(Error::new(ErrorKind::Precondition, operation, Some(key), why))
    }
}

/// How to put.
#[derive(Clone, Debug, Default)]
pub struct PutOptions {
    /// Checked at the commit point, atomically with it.
    pub condition: Condition,
    /// A place that cannot check and write in one step may look first instead of refusing.
    pub lenient: bool,
    /// Asked at the commit point.
    pub commit_guard: CommitGuard,
}

/// How to delete.
#[derive(Clone, Debug, Default)]
pub struct DeleteOptions {
    /// Only this state of the object, expired or not, may be removed.
    pub generation: Option<String>,
    /// A place that cannot look and remove in one step may look first and remove afterwards.
    pub lenient: bool,
    /// Asked at the commit point.
    pub commit_guard: CommitGuard,
}

/// Which part of a listing is wanted.
#[derive(Clone, Debug, Default)]
pub struct Page {
    /// Only keys that begin with this text (any text, not only whole segments).
    pub prefix: String,
    /// Only keys after this text, in byte order.
    pub start_after: Option<String>,
    /// At most so many entries.
    pub limit: Option<usize>,
}

/// One page of a listing.
#[derive(Clone, Debug, Default)]
pub struct Listing {
    /// Entries in byte order of their keys.
    pub entries: Vec<Entry>,
    /// Names in the place that are no legal keys: skipped and counted.
    pub foreign: u64,
    /// Whether more entries follow the last one.
    pub more: bool,
}

/// One listed object.
#[derive(Clone, Debug)]
pub struct Entry {
    /// Its key.
    pub key: Key,
    /// When it stops being there, if ever. An object whose attributes cannot be read is listed without.
    pub expires_at: Option<Timestamp>,
    /// The entry says that the key has no object, see [`Attributes::tombstone`].
    pub tombstone: bool,
}

impl Entry {
    /// Lists an object whose attributes are known.
    pub(in crate::storage) fn of(key: &Key, attributes: &Attributes) -> Self {
        Self { key: key.clone(), expires_at: attributes.expires_at, tombstone: attributes.tombstone }
    }
}
