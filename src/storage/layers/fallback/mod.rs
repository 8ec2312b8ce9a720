//! The fallback: a bucket, and a local overlay that takes writes while the bucket cannot be reached and sends them
//! later.
//!
//! ```text
//! Fallback ─┬─ primary: the bucket, with its retries
//!           └─ overlay: a local folder of writes and deletes that are not yet in the bucket
//! ```
//!
//! The overlay is its own journal: an object in it is a pending write, a tombstone in it is a pending delete, and there
//! is no other record of either. The overlay has a key only while the key's newest state is not yet in the bucket. So a
//! read looks into the overlay first and into the bucket afterwards, and a read that neither can answer is an error.
//! While the overlay has an entry of a key, writes and deletes of the key go there as well, conditions are decided
//! against the entry, and the bucket is not asked.
//!
//! # Several workers
//!
//! *One folder, one machine:* every worker sees every other's pending writes at once, conditions on them hold across
//! all workers, and one worker at a time sends. Two workers may write one key at the same moment, one of them while
//! only that one can reach the bucket. Then either value remains; if the other had been answered, it goes to quarantine
//! as in any conflict.
//!
//! *A folder each:* the pending writes of a worker are visible only to this worker until they are sent. Until then the
//! others read the bucket's state, or their own. When two have written a key, the write that is sent first stays under
//! the key. The other write finds an object that the bucket received after its own stamp, and goes to quarantine,
//! whichever was stored first.
//!
//! # Conflicts, which are never silent
//!
//! A pending write whose key somebody else changed in the bucket since is moved to `#aside/<generation>/` below the
//! folder, the quarantine. A pending delete in that case is dropped. Both are logged and counted. The order of changes
//! is that of the stamps among workers that share the folder ([`Attributes::writer_id`]), and that of the bucket's time
//! of receipt for everybody else.
//!
//! Two cases remain that no client of a bucket can exclude. A bucket may carry out a request after it has answered
//! later ones: a write that was given up, put into the overlay and sent reappears when its first request is carried out
//! after the key was changed again. And in a bucket that enforces no conditions, an object can be changed between look
//! and write.

mod conflict;
mod copy;
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
use tokio::sync::{Mutex, Notify};

pub use self::conflict::Conflict;
use self::overlay::Overlay;
pub use self::overlay::{Pending, overlay_folder};
pub use self::owner::Owner;
pub use self::report::{SyncProgress, SyncReport};
use crate::storage::backend::{
    Backend, Condition, CopySource, Deferral, DeleteOptions, GetOptions, Grant, Listing, Page, Probe, PutOptions,
    Removal, Versions, VersionsRequest,
};
use crate::storage::commit_guard::CommitGuard;
use crate::storage::error::{Error, ErrorKind, Operation, Result};
use crate::storage::invalidation::Invalidation;
use crate::storage::object::{Attributes, Key, Object, clock};
use crate::telemetry::Metrics;

/// A bucket whose writes go to a local overlay while the bucket cannot be reached.
///
/// While the bucket cannot be reached, a write or delete with a condition that only the bucket can decide fails, and so
/// does every read of an object that only the bucket has. A bucket that refuses (a permission, a bad request) can be
/// reached.
#[derive(Debug)]
pub struct Fallback {
    primary: Arc<dyn Backend>,
    overlay: Overlay,
    metrics: Metrics,
    /// Told of each key that the sync loop changes in the bucket.
    invalidation: Option<Arc<dyn Invalidation>>,
    /// Notified when an entry was put into the overlay.
    arrived: Notify,
    /// Whether the bucket could not be reached when it was last asked.
    away: AtomicBool,
    /// Notified when the bucket can be reached again.
    returned: Notify,
    /// Held by the one who waits for the lock of a sync pass to rewrite an entry.
    rewriting: Mutex<()>,
}

impl Fallback {
    /// Puts an overlay before a bucket; creates its folder when missing. Sends no request to the bucket. Blocks.
    ///
    /// # Errors
    ///
    /// The errors of the file system.
    pub fn open(primary: Arc<dyn Backend>, folder: PathBuf, metrics: Metrics) -> Result<Self> {
        let overlay = Overlay::open(folder, &metrics)?;
        Ok(Self::over(primary, overlay, metrics))
    }

    /// Puts an overlay before a bucket for reading, or returns `None` when the folder does not exist. Creates nothing.
    /// Blocks.
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
        let (away, rewriting) = (AtomicBool::new(false), Mutex::new(()));
        Self { primary, overlay, metrics, invalidation: None, arrived, away, returned, rewriting }
    }

    /// Names who is told of each key that the sync loop changes in the bucket.
    #[must_use]
    pub fn with_invalidation(self, invalidation: Option<Arc<dyn Invalidation>>) -> Self {
        Self { invalidation, ..self }
    }

    /// Counts the pending entries by reading all of them.
    ///
    /// # Errors
    ///
    /// The errors of the file system.
    pub async fn pending(&self) -> Result<Pending> {
        let pending = self.overlay.pending().await?;
        self.metrics.record_pending(pending.entries, pending.bytes, pending.oldest);
        Ok(pending)
    }

    /// Lists the writes in quarantine, by key.
    ///
    /// # Errors
    ///
    /// The errors of the file system.
    pub async fn conflicts(&self) -> Result<Vec<Conflict>> {
        self.overlay.conflicts().await
    }

    /// Notes from an answer of the bucket whether it can be reached.
    fn note_answer<T>(&self, answer: Result<T>) -> Result<T> {
        // A throttled request shows neither. With one busy key, the state would change all the time.
        if answer.as_ref().is_err_and(|error| error.kind == ErrorKind::Throttled) {
            return answer;
        }
        let away = answer.as_ref().is_err_and(Error::is_transient);
        if self.away.load(Ordering::Relaxed) != away && self.away.swap(away, Ordering::Relaxed) && !away {
            self.returned.notify_one();
        }
        answer
    }

    /// Wakes the sync loop for an entry that was put into the overlay.
    fn arrived(&self, outcome: Result<()>) -> Result<()> {
        outcome?;
        self.arrived.notify_one();
        Ok(())
    }

    /// Returns the object with the writer id of this overlay, as overlay and bucket store it.
    fn signed_object(&self, object: &Object) -> Object {
        let writer_id = Some(self.overlay.writer_id().to_owned());
        Object { attributes: Attributes { writer_id, ..object.attributes.clone() }, payload: object.payload.clone() }
    }

    /// Tries once to write. [`ErrorKind::Precondition`] from the overlay means that another writer was faster.
    async fn try_put(&self, key: &Key, object: &Object, options: &PutOptions) -> Result<Try<Attributes>> {
        let guard = &options.commit_guard;
        let entry = match self.overlay.stat(key).await {
            // An unconditional write repairs an entry that cannot be read.
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
            // Another worker on the folder may add an entry of the key before the bucket answers. Both writes are under
            // way then, so either may be the last. Readers see the entry, and the sync loop compares the stamps.
            match self.note_answer(self.primary.put(key, object, options).await) {
                Err(error) if error.is_transient() && options.condition == Condition::Always => {}
                Err(error) if error.is_transient() => return Err(undecided(error)),
                result => return result.map(Try::Done),
            }
        }
        let replaced = self.replace_state(key, object, entry.as_ref(), guard).await?;
        Ok(replaced.map(|()| pending(object.attributes.clone())))
    }

    /// Tries once to delete, in the same way as [`Self::try_put`] writes.
    async fn try_delete(&self, key: &Key, tombstone: &Object, options: &DeleteOptions) -> Result<Try<Removal>> {
        let guard = &options.commit_guard;
        let pending = |found| Removal { found, pending: true };
        let entry = match self.overlay.stat(key).await {
            Err(error) if error.kind == ErrorKind::Integrity && options.generation.is_none() => {
                self.arrived(self.overlay.replace(key, tombstone, guard).await)
                    .map_err(|error| error.during(Operation::Delete))?;
                return Ok(Try::Done(pending(true)));
            }
            entry => entry.map_err(|error| error.during(Operation::Delete))?,
        };
        if let Some(entry) = &entry {
            if entry.tombstone && options.generation.is_some() {
                return self.gone_already(key, guard).await.map(|()| Try::Done(pending(false)));
            }
            if let Some(generation) = &options.generation {
                Condition::Generation(generation.clone()).check(Operation::Delete, key, Some(entry))?;
            }
        } else {
            match self.note_answer(self.primary.delete(key, options).await) {
                Err(error) if error.is_transient() && options.generation.is_none() => {}
                Err(error) if error.is_transient() => return Err(undecided(error)),
                result => return result.map(Try::Done),
            }
        }
        let found = entry.as_ref().is_some_and(|entry| !entry.tombstone);
        let replaced = self.replace_state(key, tombstone, entry.as_ref(), guard).await;
        let replaced = replaced.map_err(|error| error.during(Operation::Delete))?;
        Ok(replaced.map(|()| pending(found)))
    }

    /// Puts an entry into the overlay, unless the overlay has one of the key, which is newer than a deferred write or
    /// delete.
    async fn defer(&self, operation: Operation, key: &Key, entry: &Object, guard: &CommitGuard) -> Result<()> {
        let deferred = async {
            loop {
                match self.overlay.stat(key).await {
                    // The deferred write or delete repairs an entry that cannot be read.
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

    /// Answers a delete of a generation, where a tombstone says that the key has no object.
    async fn gone_already(&self, key: &Key, commit_guard: &CommitGuard) -> Result<()> {
        if !commit_guard.commit() {
            return Err(Error::abandoned(Operation::Delete, key));
        }
        // The worker that wrote the tombstone may have died before it was on stable storage.
        self.overlay.flush(key).await
    }

    /// Replaces the entry that was seen by another entry.
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

/// The outcome of one look and the write that follows from it.
enum Try<T> {
    Done(T),
    /// Another worker changed the entry in between: sent it, or replaced it.
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

/// Makes the error of a condition that only an unreachable bucket can decide.
fn undecided(error: Error) -> Error {
    let key = error.key.clone();
    let why = format!(
        "only the bucket can decide the condition, so nothing was written to the fallback; {}; try again when the bucket is back",
        error.message()
    );
    let retry_after = error.retry_after;
    Error::new(error.kind, error.operation, key.as_ref(), why).with_retry_after(retry_after).with_source(error)
}

/// Makes the error of a deferred write or delete that another write has overtaken.
fn overtaken(operation: Operation, key: &Key) -> Error {
    let why = "another write of the key is pending; stat it and decide again";
    Error::new(ErrorKind::Precondition, operation, Some(key), why)
}

/// Marks the attributes of an overlay entry as pending.
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
        // Another turn means that somebody else's write succeeded, so some writer always advances.
        loop {
            if let Try::Done(stored) = self.try_put(key, &object, options).await? {
                return Ok(stored);
            }
        }
    }

    async fn get(&self, key: &Key, options: GetOptions) -> Result<Option<Object>> {
        if options.version.is_some() {
            // Only the bucket keeps versions.
            return self.note_answer(self.primary.get(key, options).await);
        }
        match self.overlay.get(key, options.clone()).await? {
            None => self.note_answer(self.primary.get(key, options).await),
            Some(entry) if entry.attributes.tombstone => Ok(None),
            Some(Object { attributes, payload }) => Ok(Some(Object { attributes: pending(attributes), payload })),
        }
    }

    async fn copy(
        &self,
        source: &CopySource,
        key: &Key,
        attributes: &Attributes,
        options: &PutOptions,
    ) -> Result<Option<Attributes>> {
        self.copy_object(source, key, attributes, options).await
    }

    async fn stat(&self, key: &Key) -> Result<Option<Attributes>> {
        match self.overlay.stat(key).await? {
            None => self.note_answer(self.primary.stat(key).await),
            Some(entry) if entry.tombstone => Ok(None),
            Some(entry) => Ok(Some(pending(entry))),
        }
    }

    /// Asks the bucket alone. While the key has an entry in the overlay, no version is the present object.
    async fn versions(&self, key: &Key, request: &VersionsRequest) -> Result<Versions> {
        let is_pending = match self.overlay.stat(key).await {
            Err(error) if error.kind == ErrorKind::Integrity => true,
            entry => entry.map_err(|error| error.during(Operation::Versions))?.is_some(),
        };
        let mut found = self.note_answer(self.primary.versions(key, request).await)?;
        if is_pending {
            found.versions.iter_mut().for_each(|version| version.is_current = false);
        }
        Ok(found)
    }

    async fn delete(&self, key: &Key, options: &DeleteOptions) -> Result<Removal> {
        // The stamp is the time of the request. Objects that others write while the bucket is waited for are newer.
        let tombstone = self.overlay.tombstone(clock::stamp());
        loop {
            if let Try::Done(removal) = self.try_delete(key, &tombstone, options).await? {
                return Ok(removal);
            }
        }
    }

    async fn list(&self, page: &Page) -> Result<Listing> {
        self.note_answer(merge::list(&self.overlay, &*self.primary, page).await)
    }

    async fn flush(&self, key: &Key) -> Result<()> {
        let entry = self.overlay.stat(key).await?;
        // The removal of an entry may not be on stable storage yet either.
        self.overlay.flush(key).await?;
        if entry.is_some() { Ok(()) } else { self.note_answer(self.primary.flush(key).await) }
    }

    /// A bucket that cannot be reached can be used through the overlay, if the overlay can be used.
    async fn probe(&self) -> Result<Probe> {
        match self.note_answer(self.primary.probe().await) {
            Err(error) if error.is_transient() => self.overlay.files().probe().await,
            result => result,
        }
    }

    fn validate(&self, key: &Key, attributes: &Attributes) -> Result<()> {
        let writer_id = Some(self.overlay.writer_id().to_owned());
        self.primary.validate(key, &Attributes { writer_id, ..attributes.clone() })
    }

    async fn sign(&self, key: &Key, grant: &Grant) -> Result<String> {
        if self.overlay.stat(key).await?.is_some() {
            let why = "the key's newest state waits to be sent to the bucket, and only the bucket has signed URLs; \
                       try again after it was sent";
            return Err(Error::new(ErrorKind::Unavailable, Operation::Sign, Some(key), why));
        }
        self.note_answer(self.primary.sign(key, grant).await)
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
        Ok(self.overlay.stat(key).await?.is_some())
    }

    fn may_have_entry(&self, key: &Key) -> bool {
        self.overlay.files().may_have(key)
    }
}

#[cfg(test)]
mod tests {
    use futures_util::FutureExt as _;

    use super::*;
    use crate::storage::backends::Memory;

    #[test]
    fn a_bucket_that_answers_again_wakes_the_sync_loop() {
        let folder = tempfile::tempdir().unwrap();
        let fallback = Fallback::open(Arc::new(Memory::new()), folder.path().to_owned(), Metrics::new()).unwrap();
        let woken = || fallback.returned.notified().now_or_never().is_some();
        let fails =
            |kind| assert!(fallback.note_answer::<()>(Err(Error::new(kind, Operation::Stat, None, "x"))).is_err());
        fallback.note_answer(Ok(())).unwrap();
        assert!(!woken(), "the bucket could always be reached");
        fails(ErrorKind::Throttled);
        fallback.note_answer(Ok(())).unwrap();
        assert!(!woken(), "a throttled bucket can be reached");
        fails(ErrorKind::Unavailable);
        fails(ErrorKind::Throttled);
        assert!(!woken());
        // A refusal is an answer, too.
        fails(ErrorKind::Denied);
        assert!(woken());
        fallback.note_answer(Ok(())).unwrap();
        assert!(!woken(), "once");
    }
}
