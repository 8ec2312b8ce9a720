//! The seam: a place that keeps whole objects under keys.

use std::fmt;
use std::ops::Range;
use std::time::Duration;

use async_trait::async_trait;
use jiff::{SignedDuration, Timestamp};

use super::{Attributes, ByteRange, Error, ErrorKind, Fence, Key, Kind, Object, Operation, Result};

/// A place that keeps whole objects under keys.
///
/// # Contract
///
/// - Objects appear whole or not at all; a reader sees the old object or the new one.
/// - A `put` or `delete` that returned is on stable storage.
/// - `None` means the place is certain that nothing is there; everything else is an error.
/// - Conditions hold against every other writer of the same place, whatever its process.
/// - Backends keep expired objects like any other; the engine hides them.
/// - A `get` takes no more of a payload into memory than [`Want`] asks for, beside a buffer of fixed size.
/// - No default methods: a layer implements all of it or does not compile.
#[async_trait]
pub trait Backend: fmt::Debug + fmt::Display + Send + Sync + 'static {
    /// Writes the object, replacing what was there if the condition allows it.
    ///
    /// A payload that is a file is checked against the attributes on its way; one that changed since is
    /// [`ErrorKind::Integrity`], and nothing is written.
    async fn put(&self, key: &Key, object: Object, how: Put) -> Result<Landing>;

    /// Reads the object, its payload cut to the wanted bytes; its attributes stay those of the whole.
    ///
    /// Checksums of all kept bytes are verified before anything is returned, also for a part. What is refused
    /// ([`ErrorKind::Invalid`]) is refused by the attributes alone, before the payload is read.
    async fn get(&self, key: &Key, want: Want) -> Result<Option<Object>>;

    /// Reads the attributes only.
    async fn stat(&self, key: &Key) -> Result<Option<Attributes>>;

    /// Removes the object. With a generation condition a missing object is fine.
    ///
    /// A place that cannot look and remove in one step refuses a generation ([`ErrorKind::Invalid`]), unless
    /// [`Delete::lenient`] lets it do the one after the other.
    async fn delete(&self, key: &Key, how: Delete) -> Result<Removal>;

    /// Lists keys in byte order, one page.
    async fn list(&self, page: &Page) -> Result<Listing>;

    /// Makes sure that what a reader sees under the key now, an object or nothing, is on stable storage.
    ///
    /// Asked before another try's write is answered as done: that try may have died between showing and syncing it.
    async fn flush(&self, key: &Key) -> Result<()>;

    /// Looks whether the place can be used; for start-up and health only.
    async fn probe(&self) -> Result<Probe>;

    /// Refuses ([`ErrorKind::Invalid`]) what the place could never keep, without asking it.
    ///
    /// So that a write which waits in an overlay is one that can be sent.
    fn accept(&self, key: &Key, attributes: &Attributes) -> Result<()>;

    /// Makes a URL by which anyone can read or write the object for a time, without asking the place.
    ///
    /// A place without such URLs refuses ([`ErrorKind::Invalid`]).
    async fn sign(&self, key: &Key, grant: &Grant) -> Result<String>;
}

/// Where a write has come to rest.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum Landing {
    /// In the place itself.
    #[default]
    Home,
    /// In the overlay, from where it will be sent to the bucket.
    Overlay,
}

/// What a delete has done.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Removal {
    /// Something was there. A delete that is only remembered does not know and says no.
    pub found: bool,
    /// Where it was done or remembered.
    pub landing: Landing,
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

/// Which bytes of a payload are wanted, how many are too many, and in what form they may come.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Want {
    /// Only these bytes of a text or bytes value; the whole by default.
    pub range: Option<ByteRange>,
    /// More bytes than these are refused.
    pub limit: Option<u64>,
    /// Many bytes may come as a file ([`Payload::File`](super::Payload::File)) instead of in memory.
    pub spooled: bool,
}

impl Want {
    /// Returns which bytes of the payload are to be read; fails for more than the limit, and for a part of JSON.
    pub(super) fn part(&self, key: &Key, attributes: &Attributes) -> Result<Range<u64>> {
        let refused = |why| Err(Error::new(ErrorKind::Invalid, Operation::Retrieve, Some(key), why));
        let size = attributes.stored_size;
        let part = match self.range {
            None => 0..size,
            Some(_) if attributes.kind == Kind::Json => {
                let why = "a range of a JSON value has no meaning; retrieve it whole, without offset and length";
                return refused(why.to_owned());
            }
            Some(ByteRange { offset, length }) => {
                let begin = offset.min(size);
                begin..length.map_or(size, |length| begin.saturating_add(length).min(size))
            }
        };
        let bytes = part.end - part.start;
        let Some(limit) = self.limit.filter(|limit| bytes > *limit) else { return Ok(part) };
        let mend = match (self.range, attributes.kind) {
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
    pub(super) fn check(&self, operation: Operation, key: &Key, present: Option<&Attributes>) -> Result<()> {
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
pub struct Put {
    /// Checked at the commit point, atomically with it.
    pub condition: Condition,
    /// A place that cannot check and write in one step may look first instead of refusing.
    pub lenient: bool,
    /// Asked at the commit point.
    pub fence: Fence,
    /// Not to be done now: an overlay that has nothing of the key takes it, stamped as it is, for its synchronization to
    /// weigh against what the bucket got since. Asked only of a stack that has an overlay.
    pub deferred: bool,
}

/// How to delete.
#[derive(Clone, Debug, Default)]
pub struct Delete {
    /// Only this state of the object, expired or not, may be removed.
    pub generation: Option<String>,
    /// A place that cannot look and remove in one step may do the one after the other.
    pub lenient: bool,
    /// Asked at the commit point.
    pub fence: Fence,
    /// Not to be done now, see [`Put::deferred`]: remembered as a delete of this time.
    pub deferred: Option<Timestamp>,
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
    pub(super) fn of(key: &Key, attributes: &Attributes) -> Self {
        Self { key: key.clone(), expires_at: attributes.expires_at, tombstone: attributes.tombstone }
    }
}
