//! One sync pass over the overlay, which sends the oldest entries first.
//!
//! An entry leaves the overlay only when the bucket has confirmed it, and only if it is still the same entry. Every
//! write to the bucket names the very state that was just seen there. So nobody's change in between is overwritten, and
//! a request that is carried out late does nothing. Only for a bucket that enforces no such condition, the pass looks
//! once more instead. The next pass makes good for one that died: the generation token shows what the bucket has
//! already.

use std::fs::File;

use futures_util::stream::{FuturesUnordered, StreamExt as _};
use jiff::{SignedDuration, Timestamp};

use super::conflict::{Relation, compare};
use super::{Fallback, SyncProgress, SyncReport};
use crate::storage::backend::{Condition, DeleteOptions, GetOptions, PutOptions};
use crate::storage::backends::local::PendingEntry;
use crate::storage::error::{Error, ErrorKind, Operation, Result};
use crate::storage::object::{Attributes, Key, Object};
use crate::telemetry::SyncOutcome;

/// The largest number of entries that are sent at once.
const IN_FLIGHT: usize = 8;

/// How often one pass tries an entry while others keep changing its key in the bucket.
const TRIES: usize = 5;

impl Fallback {
    /// Sends all pending entries to the bucket. Waits first for a pass that is under way, in this process or another.
    ///
    /// # Errors
    ///
    /// [`ErrorKind::Unavailable`] when the bucket cannot be reached, at the beginning or during the pass, and any other
    /// error of its probe. Entries that were not sent stay. An entry that the bucket refuses is no error but counted,
    /// see [`SyncReport::failed`].
    pub async fn sync(&self, progress: &dyn SyncProgress) -> Result<SyncReport> {
        let lock = self.overlay.wait_lock().await?;
        let mut report = SyncReport::default();
        let skew = self.skew(&mut report).await?;
        let waiting = self.overlay.waiting().await?;
        self.pass(lock, waiting, skew, report, progress).await
    }

    /// Sends the pending entries, unless another pass is under way. Asks the bucket only when entries are pending.
    pub(super) async fn sync_in_turn(&self) -> Result<Option<SyncReport>> {
        let Some(lock) = self.overlay.try_lock().await? else { return Ok(None) };
        if self.overlay.is_empty().await? {
            return Ok(Some(SyncReport::default()));
        }
        let mut report = SyncReport::default();
        let skew = self.skew(&mut report).await?;
        let waiting = self.overlay.waiting().await?;
        self.pass(lock, waiting, skew, report, &()).await.map(Some)
    }

    /// Probes the bucket and returns how much its clock is ahead of this machine's.
    ///
    /// The first entry is sent even to a missing bucket, since a write may create its bucket.
    async fn skew(&self, report: &mut SyncReport) -> Result<SignedDuration> {
        let mut probe = self.note_answer(self.primary.probe().await);
        if let Err(error) = &probe
            && error.kind == ErrorKind::Invalid
            && let Some(first) = self.overlay.waiting().await?.first()
        {
            if let Some(outcome) = self.send(&first.key, SignedDuration::ZERO).await? {
                report.count(outcome);
                self.metrics.record_synced(outcome);
            }
            probe = self.note_answer(self.primary.probe().await);
        }
        Ok(probe?.skew.unwrap_or_default())
    }

    async fn pass(
        &self,
        lock: File,
        waiting: Vec<PendingEntry>,
        skew: SignedDuration,
        mut report: SyncReport,
        progress: &dyn SyncProgress,
    ) -> Result<SyncReport> {
        progress.total(waiting.len() as u64, waiting.iter().map(|entry_info| entry_info.stored_size).sum());
        let mut stopped = None;
        let (mut waiting, mut under_way) = (waiting.into_iter(), FuturesUnordered::new());
        loop {
            while stopped.is_none()
                && under_way.len() < IN_FLIGHT
                && let Some(entry_info) = waiting.next()
            {
                under_way.push(async move { (self.send(&entry_info.key, skew).await, entry_info) });
            }
            let Some((sent, entry_info)) = under_way.next().await else { break };
            let outcome = match sent {
                Ok(Some(outcome)) => outcome,
                Ok(None) => continue,
                Err(error) if error.kind == ErrorKind::Unavailable => {
                    // The error concerns the whole bucket: requests under way end, and no more are begun. A refusal
                    // does not stop the pass. An identity may have rights for some folders only, and their entries must
                    // not wait behind a refused one.
                    stopped.get_or_insert(error);
                    continue;
                }
                Err(error) => {
                    progress.failed(&entry_info.key, error);
                    SyncOutcome::Failed
                }
            };
            report.count(outcome);
            self.metrics.record_synced(outcome);
            progress.step(outcome, entry_info.stored_size);
        }
        drop(lock);
        report.remaining = self.pending().await?.entries;
        tracing::info!(?report, "synchronized");
        match stopped {
            Some(error) => Err(error),
            None => Ok(report),
        }
    }

    /// Sends one entry; `None` when the entry is gone.
    async fn send(&self, key: &Key, skew: SignedDuration) -> Result<Option<SyncOutcome>> {
        let options = GetOptions { spooled: true, ..GetOptions::default() };
        for _ in 0..TRIES {
            let Some(entry) = self.overlay.get(key, options.clone()).await? else { return Ok(None) };
            let present = match self.note_answer(self.primary.stat(key).await) {
                // The bucket itself is missing.
                Err(error) if error.kind == ErrorKind::Invalid => None,
                present => present?,
            };
            let relation = present.as_ref().map(|present| compare(&entry.attributes, present, skew));
            let outcome = match relation {
                Some(Relation::Newer) => {
                    if self.resolve_conflict(key, &entry.attributes).await? {
                        return Ok(Some(SyncOutcome::Conflict));
                    }
                    continue;
                }
                Some(Relation::Same) => SyncOutcome::AlreadyThere,
                Some(Relation::Older) | None => match self.carry_out(key, &entry, present.as_ref()).await {
                    // Somebody else changed the object since it was seen, or the answer of an earlier attempt was lost.
                    Err(error) if error.kind == ErrorKind::Precondition => continue,
                    outcome => outcome?,
                },
            };
            // Before the entry is gone: should this process end now, the next pass finds the entry and announces it again.
            if let Some(invalidation) = &self.invalidation {
                invalidation.announce(key).await;
            }
            self.overlay.remove(key, entry.attributes.generation).await?;
            return Ok(Some(outcome));
        }
        let why = "others keep changing the key in the bucket; the entry is tried again later";
        Err(Error::new(ErrorKind::Precondition, Operation::Store, Some(key), why))
    }

    /// Replaces or removes exactly the object that was seen in the bucket.
    async fn carry_out(&self, key: &Key, entry: &Object, present: Option<&Attributes>) -> Result<SyncOutcome> {
        if entry.attributes.tombstone {
            if let Some(present) = present {
                let options = DeleteOptions {
                    generation: Some(present.generation.clone()),
                    lenient: true,
                    ..DeleteOptions::default()
                };
                self.note_answer(self.primary.delete(key, &options).await)?;
            }
            return Ok(SyncOutcome::Deleted);
        }
        let live = present.filter(|present| !present.is_expired(Timestamp::now()));
        let condition = live.map_or(Condition::Absent, |live| Condition::Generation(live.generation.clone()));
        let options = PutOptions { condition, lenient: true, ..PutOptions::default() };
        self.note_answer(self.primary.put(key, entry, &options).await)?;
        Ok(SyncOutcome::Sent)
    }

    /// Gives up an entry in favour of the bucket's object; returns `false` when a newer entry was written meanwhile.
    async fn resolve_conflict(&self, key: &Key, entry: &Attributes) -> Result<bool> {
        if entry.tombstone {
            self.overlay.remove(key, entry.generation.clone()).await?;
            tracing::warn!(%key, "a pending delete was dropped, because somebody else has changed the key in the bucket since");
            return Ok(true);
        }
        let Some(path) = self.overlay.files().quarantine(key, entry.generation.clone()).await? else {
            return Ok(false);
        };
        let path = path.display();
        tracing::warn!(%key, %path, "a pending write was moved to quarantine, because somebody else has changed the key in the bucket since");
        Ok(true)
    }
}
