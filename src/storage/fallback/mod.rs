//! A bucket, and a folder that stands in while the bucket is away and hands everything back afterwards.
//!
//! ```text
//! Fallback ─┬─ primary: the bucket, with its retries
//!           └─ overlay: a local folder of what has not reached the bucket yet
//! ```
//!
//! The overlay is its own journal: an object there is a write to be sent, a tombstone there a delete to be sent, and there
//! is no other record of either. It holds a key only while the key's newest state has not reached the bucket, so a read
//! asks it first and the bucket after; what neither can answer is an error. While the overlay has an entry of a key,
//! writes and deletes of the key go there as well, conditions are decided against it, and the bucket is not asked.
//!
//! # What holds for several workers
//!
//! *One folder, one machine:* every worker sees every other's pending writes at once, conditions on them hold across all,
//! and one of them at a time sends. Two that write one key at the same moment, one of them while the bucket can be reached
//! for it alone, end with either's value; where the one that lost had been answered, it is kept aside like any loser.
//!
//! *A folder each:* a worker's pending writes are its own until they are sent. Till then the others read the bucket's
//! state, or their own. When both have written a key, the first to be sent stays under the key; the other finds an object
//! that the bucket received after its own stamp, and is set aside, whichever was stored first.
//!
//! # What is lost, never silently
//!
//! An entry whose key somebody else changed in the bucket since is moved to `#aside/<generation>/` below the folder, a
//! delete in that case is dropped; both are logged and counted. Who changed it is told by stamps among those who share the
//! folder ([`Attributes::origin`]), by the bucket's time of receipt for everybody else.
//!
//! What remains is what no client of a bucket can rule out: a request that the bucket carries out only after it has
//! answered later ones. A write that was given up, landed here and was sent, reappears when its first request is carried
//! out after the key was changed again. And a bucket that enforces no conditions can be changed between look and write.

mod conflict;
mod merge;
mod overlay;
mod owner;
mod report;
mod sync;
mod tend;

use std::fmt;
use std::path::PathBuf;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};

use async_trait::async_trait;
use tokio::sync::Notify;

pub use self::conflict::Conflict;
use self::overlay::Overlay;
pub use self::overlay::{Pending, overlay_folder};
pub use self::owner::Owner;
pub use self::report::{SyncProgress, SyncReport};
use super::{
    Attributes, Backend, Condition, Delete, Error, ErrorKind, Fence, Grant, Key, Landing, Listing, Object, Operation,
    Page, Probe, Put, Removal, Result, Want, clock,
};
use crate::telemetry::Metrics;

/// A bucket whose writes land in a local folder while it cannot be reached.
///
/// A write or delete that must hold against a condition which only the bucket can decide fails while it is away, and so
/// does every read of what only the bucket has. A bucket that refuses (a permission, a bad request) is not away.
#[derive(Debug)]
pub struct Fallback {
    primary: Arc<dyn Backend>,
    overlay: Overlay,
    metrics: Metrics,
    /// Something was put into the overlay.
    landed: Notify,
    /// The bucket could not be reached when it was last asked.
    away: AtomicBool,
    /// It can again.
    returned: Notify,
}

impl Fallback {
    /// Puts a folder before a bucket, making it when missing. Asks the bucket nothing. Blocks.
    ///
    /// # Errors
    ///
    /// What the file system fails with.
    pub fn open(primary: Arc<dyn Backend>, folder: PathBuf, metrics: Metrics) -> Result<Self> {
        let overlay = Overlay::open(folder, &metrics)?;
        Ok(Self::over(primary, overlay, metrics))
    }

    /// Puts a folder before a bucket for reading, or returns `None` when there is no folder; makes nothing. Blocks.
    ///
    /// # Errors
    ///
    /// As [`Fallback::open`].
    pub fn open_existing(primary: Arc<dyn Backend>, folder: PathBuf, metrics: Metrics) -> Result<Option<Self>> {
        let overlay = Overlay::open_existing(folder, &metrics)?;
        Ok(overlay.map(|overlay| Self::over(primary, overlay, metrics)))
    }

    fn over(primary: Arc<dyn Backend>, overlay: Overlay, metrics: Metrics) -> Self {
        let (landed, returned) = (Notify::new(), Notify::new());
        Self { primary, overlay, metrics, landed, away: AtomicBool::new(false), returned }
    }

    /// Counts what waits to be sent, by looking at all of it.
    ///
    /// # Errors
    ///
    /// What the file system fails with.
    pub async fn pending(&self) -> Result<Pending> {
        let pending = self.overlay.pending().await?;
        self.metrics.record_pending(pending.entries, pending.bytes, pending.oldest);
        Ok(pending)
    }

    /// Tells whether the key's newest state, an object or none, waits to be sent.
    ///
    /// # Errors
    ///
    /// What the file system fails with, and [`ErrorKind::Integrity`] for a damaged entry.
    pub async fn holds(&self, key: &Key) -> Result<bool> {
        Ok(self.overlay.look(key).await?.is_some())
    }

    /// Lists the writes that were set aside because somebody else had changed their key in the bucket, by key.
    ///
    /// # Errors
    ///
    /// What the file system fails with.
    pub async fn conflicts(&self) -> Result<Vec<Conflict>> {
        self.overlay.conflicts().await
    }

    /// Notes from an answer of the bucket whether it can be reached.
    fn heard<T>(&self, answer: Result<T>) -> Result<T> {
        // A request for patience says neither: one busy key would have it come and go all the time.
        if answer.as_ref().is_err_and(|error| error.kind == ErrorKind::Throttled) {
            return answer;
        }
        let away = answer.as_ref().is_err_and(Error::is_transient);
        if self.away.load(Ordering::Relaxed) != away && self.away.swap(away, Ordering::Relaxed) && !away {
            self.returned.notify_one();
        }
        answer
    }

    fn landed<T>(&self, outcome: Result<()>, answer: T) -> Result<T> {
        outcome?;
        self.landed.notify_one();
        Ok(answer)
    }

    /// One try to write; a precondition of the overlay's own means that another writer was quicker.
    async fn try_put(&self, key: &Key, object: Object, how: &Put) -> Result<Try<Landing>> {
        let entry = match self.overlay.look(key).await {
            // An unconditional write mends what cannot be read.
            Err(error) if error.kind == ErrorKind::Integrity && how.condition == Condition::Always => {
                return self.landed(self.overlay.replace(key, object, &how.fence).await, Try::Done(Landing::Overlay));
            }
            entry => entry.map_err(|error| error.during(Operation::Store))?,
        };
        if how.deferred && entry.is_some() {
            return Err(overtaken(Operation::Store, key));
        }
        if let Some(entry) = &entry {
            let present = Some(entry).filter(|entry| !entry.tombstone);
            how.condition.check(Operation::Store, key, present)?;
        } else if !how.deferred {
            // Somebody who shares the folder may put an entry here before the bucket answers. Both are under way then, so
            // either may end as the last; readers see the entry, and its synchronization goes by the stamps.
            match self.heard(self.primary.put(key, object.clone(), how.clone()).await) {
                Err(error) if error.is_transient() && how.condition == Condition::Always => {}
                Err(error) if error.is_transient() => return Err(undecided(error)),
                result => return result.map(Try::Done),
            }
        }
        self.exchange(key, object, entry.as_ref(), &how.fence, Landing::Overlay).await
    }

    /// One try to delete, likewise.
    async fn try_delete(&self, key: &Key, tombstone: Object, how: &Delete) -> Result<Try<Removal>> {
        let remembered = |found| Removal { found, landing: Landing::Overlay };
        let entry = match self.overlay.look(key).await {
            Err(error) if error.kind == ErrorKind::Integrity && how.generation.is_none() => {
                let replaced = self.overlay.replace(key, tombstone, &how.fence).await;
                return self
                    .landed(replaced.map_err(|error| error.during(Operation::Delete)), Try::Done(remembered(true)));
            }
            entry => entry.map_err(|error| error.during(Operation::Delete))?,
        };
        if how.deferred.is_some() && entry.is_some() {
            return Err(overtaken(Operation::Delete, key));
        }
        if let Some(entry) = &entry {
            if entry.tombstone && how.generation.is_some() {
                return self.gone_already(key, &how.fence).await.map(|()| Try::Done(remembered(false)));
            }
            if let Some(generation) = &how.generation {
                Condition::Generation(generation.clone()).check(Operation::Delete, key, Some(entry))?;
            }
        } else if how.deferred.is_none() {
            match self.heard(self.primary.delete(key, how.clone()).await) {
                Err(error) if error.is_transient() && how.generation.is_none() => {}
                Err(error) if error.is_transient() => return Err(undecided(error)),
                result => return result.map(Try::Done),
            }
        }
        let found = entry.as_ref().is_some_and(|entry| !entry.tombstone);
        let tried = self.exchange(key, tombstone, entry.as_ref(), &how.fence, remembered(found)).await;
        tried.map_err(|error| error.during(Operation::Delete))
    }

    /// Answers a delete of this generation of a key that a tombstone says has none.
    async fn gone_already(&self, key: &Key, fence: &Fence) -> Result<()> {
        if !fence.commit() {
            return Err(Error::abandoned(Operation::Delete, key));
        }
        // Whoever left the tombstone may have died before it was on stable storage.
        self.overlay.flush(key).await
    }

    async fn exchange<T>(
        &self,
        key: &Key,
        object: Object,
        present: Option<&Attributes>,
        fence: &Fence,
        answer: T,
    ) -> Result<Try<T>> {
        match self.overlay.exchange(key, object, present, fence).await {
            Err(error) if error.kind == ErrorKind::Precondition => Ok(Try::Again),
            outcome => self.landed(outcome, Try::Done(answer)),
        }
    }
}

/// How one look and the deed that follows from it went.
enum Try<T> {
    Done(T),
    /// Somebody changed the entry in between: sent it, or put another one in its place.
    Again,
}

/// The error of a condition that only an unreachable bucket can decide.
fn undecided(error: Error) -> Error {
    let key = error.key.clone();
    let why = format!(
        "only the bucket can decide the condition, so nothing was written to the fallback; {}; try again when it is back",
        error.message()
    );
    let retry_after = error.retry_after;
    Error::new(error.kind, error.operation, key.as_ref(), why).with_retry_after(retry_after).with_source(error)
}

/// The error of a deferred write or delete that somebody else got ahead of.
fn overtaken(operation: Operation, key: &Key) -> Error {
    let why = "another write of the key waits to be sent; stat it and decide again";
    Error::new(ErrorKind::Precondition, operation, Some(key), why)
}

fn pending(attributes: &mut Attributes) {
    attributes.seen.pending = true;
}

impl fmt::Display for Fallback {
    fn fmt(&self, formatter: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(formatter, "fallback({}, overlay {})", self.primary, self.overlay.files().root().display())
    }
}

#[async_trait]
impl Backend for Fallback {
    async fn put(&self, key: &Key, mut object: Object, how: Put) -> Result<Landing> {
        object.attributes.origin = Some(self.overlay.origin().to_owned());
        self.primary.accept(key, &object.attributes)?;
        // Each turn but the last means that somebody else advanced.
        loop {
            match self.try_put(key, object.clone(), &how).await? {
                Try::Done(landing) => return Ok(landing),
                Try::Again => {}
            }
        }
    }

    async fn get(&self, key: &Key, want: Want) -> Result<Option<Object>> {
        match self.overlay.get(key, want).await? {
            None => self.heard(self.primary.get(key, want).await),
            Some(entry) if entry.attributes.tombstone => Ok(None),
            Some(mut entry) => {
                pending(&mut entry.attributes);
                Ok(Some(entry))
            }
        }
    }

    async fn stat(&self, key: &Key) -> Result<Option<Attributes>> {
        match self.overlay.look(key).await? {
            None => self.heard(self.primary.stat(key).await),
            Some(entry) if entry.tombstone => Ok(None),
            Some(mut entry) => {
                pending(&mut entry);
                Ok(Some(entry))
            }
        }
    }

    async fn delete(&self, key: &Key, how: Delete) -> Result<Removal> {
        // Of the time it was asked for: what others write while the bucket is waited for is newer.
        let tombstone = self.overlay.tombstone(how.deferred.unwrap_or_else(clock::stamp));
        loop {
            match self.try_delete(key, tombstone.clone(), &how).await? {
                Try::Done(removal) => return Ok(removal),
                Try::Again => {}
            }
        }
    }

    async fn list(&self, page: &Page) -> Result<Listing> {
        self.heard(merge::list(&self.overlay, &*self.primary, page).await)
    }

    async fn flush(&self, key: &Key) -> Result<()> {
        let entry = self.overlay.look(key).await?;
        // Also where there is none: its removal may not be on stable storage yet.
        self.overlay.flush(key).await?;
        if entry.is_some() { Ok(()) } else { self.heard(self.primary.flush(key).await) }
    }

    /// A bucket that is away can be used through the overlay, as far as that can.
    async fn probe(&self) -> Result<Probe> {
        match self.heard(self.primary.probe().await) {
            Err(error) if error.is_transient() => self.overlay.files().probe().await,
            result => result,
        }
    }

    fn accept(&self, key: &Key, attributes: &Attributes) -> Result<()> {
        let origin = Some(self.overlay.origin().to_owned());
        self.primary.accept(key, &Attributes { origin, ..attributes.clone() })
    }

    async fn sign(&self, key: &Key, grant: &Grant) -> Result<String> {
        if self.overlay.look(key).await?.is_some() {
            let why = "the key's newest state waits to be sent to the bucket, and only the bucket has signed URLs; \
                       try again when it was sent";
            return Err(Error::new(ErrorKind::Unavailable, Operation::Sign, Some(key), why));
        }
        self.heard(self.primary.sign(key, grant).await)
    }
}

#[cfg(test)]
mod tests {
    use futures_util::FutureExt as _;

    use super::*;
    use crate::storage::Memory;

    #[test]
    fn a_bucket_that_answers_again_wakes_the_background() {
        let folder = tempfile::tempdir().unwrap();
        let fallback = Fallback::open(Arc::new(Memory::new()), folder.path().to_owned(), Metrics::new()).unwrap();
        let woken = || fallback.returned.notified().now_or_never().is_some();
        let fails = |kind| assert!(fallback.heard::<()>(Err(Error::new(kind, Operation::Stat, None, "x"))).is_err());
        fallback.heard(Ok(())).unwrap();
        assert!(!woken(), "it was never away");
        fails(ErrorKind::Throttled);
        fallback.heard(Ok(())).unwrap();
        assert!(!woken(), "it was there when it asked for patience");
        fails(ErrorKind::Unavailable);
        fails(ErrorKind::Throttled);
        assert!(!woken());
        // A refusal is an answer, too.
        fails(ErrorKind::Denied);
        assert!(woken());
        fallback.heard(Ok(())).unwrap();
        assert!(!woken(), "once");
    }
}
