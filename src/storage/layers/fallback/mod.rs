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
//! folder ([`Attributes::writer_id`]), by the bucket's time of receipt for everybody else.
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
mod sync_loop;

use std::fmt;
use std::path::PathBuf;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};

use async_trait::async_trait;
use jiff::Timestamp;
use tokio::sync::Notify;

pub use self::conflict::Conflict;
use self::overlay::Overlay;
pub use self::overlay::{Pending, overlay_folder};
pub use self::owner::Owner;
pub use self::report::{SyncProgress, SyncReport};
use crate::storage::backend::{
    Backend, Condition, Deferral, DeleteOptions, GetOptions, Grant, Listing, Page, Probe, PutOptions, Removal,
};
use crate::storage::commit_guard::CommitGuard;
use crate::storage::error::{Error, ErrorKind, Operation, Result};
use crate::storage::object::{Attributes, Key, Object, clock};
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
    arrived: Notify,
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
        let (arrived, returned) = (Notify::new(), Notify::new());
        Self { primary, overlay, metrics, arrived, away: AtomicBool::new(false), returned }
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

    /// Wakes the sync loop for what was put into the overlay.
    fn arrived(&self, outcome: Result<()>) -> Result<()> {
        outcome?;
        self.arrived.notify_one();
        Ok(())
    }

    /// Returns the object as the overlay and the bucket keep it: with the id of this overlay.
    fn signed_object(&self, object: &Object) -> Object {
        let writer_id = Some(self.overlay.writer_id().to_owned());
        Object { attributes: Attributes { writer_id, ..object.attributes.clone() }, payload: object.payload.clone() }
    }

    /// Tries once to write; a precondition of the overlay's own means that another writer was quicker.
    async fn try_put(&self, key: &Key, object: &Object, options: &PutOptions) -> Result<Try<Attributes>> {
        let guard = &options.commit_guard;
        let entry = match self.overlay.look(key).await {
            // An unconditional write mends what cannot be read.
            Err(error) if error.kind == ErrorKind::Integrity && options.condition == Condition::Always => {
                self.arrived(self.overlay.replace(key, object, guard).await)?;
                return Ok(Try::Done(pending(object.attributes.clone())));
            }
            entry => entry.map_err(|error| error.during(Operation::Store))?,
        };
        if let Some(entry) = &entry {
            let present = Some(entry).filter(|entry| !entry.tombstone);
            options.condition.check(Operation::Store, key, present)?;
        } else {
            // Somebody who shares the folder may put an entry here before the bucket answers. Both are under way then, so
            // either may end as the last; readers see the entry, and its synchronization goes by the stamps.
            match self.heard(self.primary.put(key, object, options).await) {
                Err(error) if error.is_transient() && options.condition == Condition::Always => {}
                Err(error) if error.is_transient() => return Err(undecided(error)),
                result => return result.map(Try::Done),
            }
        }
        let replaced = self.replace_state(key, object, entry.as_ref(), guard).await?;
        Ok(replaced.map(|()| pending(object.attributes.clone())))
    }

    /// Tries once to delete, likewise.
    async fn try_delete(&self, key: &Key, tombstone: &Object, options: &DeleteOptions) -> Result<Try<Removal>> {
        let guard = &options.commit_guard;
        let remembered = |found| Removal { found, pending: true };
        let entry = match self.overlay.look(key).await {
            Err(error) if error.kind == ErrorKind::Integrity && options.generation.is_none() => {
                self.arrived(self.overlay.replace(key, tombstone, guard).await)
                    .map_err(|error| error.during(Operation::Delete))?;
                return Ok(Try::Done(remembered(true)));
            }
            entry => entry.map_err(|error| error.during(Operation::Delete))?,
        };
        if let Some(entry) = &entry {
            if entry.tombstone && options.generation.is_some() {
                return self.gone_already(key, guard).await.map(|()| Try::Done(remembered(false)));
            }
            if let Some(generation) = &options.generation {
                Condition::Generation(generation.clone()).check(Operation::Delete, key, Some(entry))?;
            }
        } else {
            match self.heard(self.primary.delete(key, options).await) {
                Err(error) if error.is_transient() && options.generation.is_none() => {}
                Err(error) if error.is_transient() => return Err(undecided(error)),
                result => return result.map(Try::Done),
            }
        }
        let found = entry.as_ref().is_some_and(|entry| !entry.tombstone);
        let replaced = self.replace_state(key, tombstone, entry.as_ref(), guard).await;
        let replaced = replaced.map_err(|error| error.during(Operation::Delete))?;
        Ok(replaced.map(|()| remembered(found)))
    }

    /// Puts an entry into the overlay unless it has one of the key, which is newer than a deferred write or delete.
    async fn defer(&self, operation: Operation, key: &Key, entry: &Object, guard: &CommitGuard) -> Result<()> {
        let deferred = async {
            loop {
                match self.overlay.look(key).await {
                    // What cannot be read is mended by it.
                    Err(error) if error.kind == ErrorKind::Integrity => {
                        return self.arrived(self.overlay.replace(key, entry, guard).await);
                    }
                    Err(error) => return Err(error),
                    Ok(Some(_)) => return Err(overtaken(operation, key)),
                    Ok(None) => {}
                }
                if let Try::Done(()) = self.replace_state(key, entry, None, guard).await? {
                    return Ok(());
                }
            }
        };
        deferred.await.map_err(|error| error.during(operation))
    }

    /// Answers a delete of this generation of a key that a tombstone says has none.
    async fn gone_already(&self, key: &Key, commit_guard: &CommitGuard) -> Result<()> {
        if !commit_guard.commit() {
            return Err(Error::abandoned(Operation::Delete, key));
        }
        // Whoever left the tombstone may have died before it was on stable storage.
        self.overlay.flush(key).await
    }

    /// Puts an entry in the place of the one that was seen.
    async fn replace_state(
        &self,
        key: &Key,
        object: &Object,
        seen: Option<&Attributes>,
        guard: &CommitGuard,
    ) -> Result<Try<()>> {
        match self.overlay.replace_state(key, object, seen, guard).await {
            Err(error) if error.kind == ErrorKind::Precondition => Ok(Try::Again),
            outcome => self.arrived(outcome).map(Try::Done),
        }
    }
}

/// How one look and the write that follows from it went.
enum Try<T> {
    Done(T),
    /// Somebody changed the entry in between: sent it, or put another one in its place.
    Again,
}

impl<T> Try<T> {
    fn map<U>(self, answer: impl FnOnce(T) -> U) -> Try<U> {
        match self {
            Self::Done(done) => Try::Done(answer(done)),
            Self::Again => Try::Again,
        }
    }
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

/// Says of an entry of the overlay that it has still to be sent.
fn pending(mut attributes: Attributes) -> Attributes {
    attributes.info.pending = true;
    attributes
}

impl fmt::Display for Fallback {
    fn fmt(&self, formatter: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(formatter, "fallback({}, overlay {})", self.primary, self.overlay.files().root().display())
    }
}

#[async_trait]
impl Backend for Fallback {
    async fn put(&self, key: &Key, object: &Object, options: &PutOptions) -> Result<Attributes> {
        let object = self.signed_object(object);
        self.primary.validate(key, &object.attributes)?;
        // Each turn but the last means that somebody else advanced.
        loop {
            if let Try::Done(stored) = self.try_put(key, &object, options).await? {
                return Ok(stored);
            }
        }
    }

    async fn get(&self, key: &Key, options: GetOptions) -> Result<Option<Object>> {
        match self.overlay.get(key, options).await? {
            None => self.heard(self.primary.get(key, options).await),
            Some(entry) if entry.attributes.tombstone => Ok(None),
            Some(Object { attributes, payload }) => Ok(Some(Object { attributes: pending(attributes), payload })),
        }
    }

    async fn stat(&self, key: &Key) -> Result<Option<Attributes>> {
        match self.overlay.look(key).await? {
            None => self.heard(self.primary.stat(key).await),
            Some(entry) if entry.tombstone => Ok(None),
            Some(entry) => Ok(Some(pending(entry))),
        }
    }

    async fn delete(&self, key: &Key, options: &DeleteOptions) -> Result<Removal> {
        // Of the time it was asked for: what others write while the bucket is waited for is newer.
        let tombstone = self.overlay.tombstone(clock::stamp());
        loop {
            if let Try::Done(removal) = self.try_delete(key, &tombstone, options).await? {
                return Ok(removal);
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

    fn validate(&self, key: &Key, attributes: &Attributes) -> Result<()> {
        let writer_id = Some(self.overlay.writer_id().to_owned());
        self.primary.validate(key, &Attributes { writer_id, ..attributes.clone() })
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

#[async_trait]
impl Deferral for Fallback {
    async fn defer_put(&self, key: &Key, object: &Object, guard: &CommitGuard) -> Result<Attributes> {
        let object = self.signed_object(object);
        self.primary.validate(key, &object.attributes)?;
        self.defer(Operation::Store, key, &object, guard).await?;
        Ok(pending(object.attributes))
    }

    async fn defer_delete(&self, key: &Key, deleted_at: Timestamp, guard: &CommitGuard) -> Result<Removal> {
        self.defer(Operation::Delete, key, &self.overlay.tombstone(deleted_at), guard).await?;
        Ok(Removal { found: false, pending: true })
    }

    async fn is_pending(&self, key: &Key) -> Result<bool> {
        Ok(self.overlay.look(key).await?.is_some())
    }
}

#[cfg(test)]
mod tests {
    use futures_util::FutureExt as _;

    use super::*;
    use crate::storage::backends::Memory;

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
