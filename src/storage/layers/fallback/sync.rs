//! Sending what waits: one pass over the overlay, the oldest first.
//!
//! An entry leaves the overlay only when the bucket has confirmed it and only if it is still the same entry. Every write
//! to the bucket names the very state that was just seen there, so that nobody's change in between is overwritten and a
//! request that is carried out late does nothing; only a bucket that enforces no such condition looks once more instead.
//! A pass that dies anywhere is made good by the next: what the bucket has already is told by its generation token.

use std::fs::File;

use futures_util::stream::{FuturesUnordered, StreamExt as _};
use jiff::{SignedDuration, Timestamp};

use super::conflict::{Standing, compare};
use super::{Fallback, SyncProgress, SyncReport};
use crate::storage::backend::{Condition, DeleteOptions, GetOptions, PutOptions};
use crate::storage::backends::local::PendingEntry;
use crate::storage::error::{Error, ErrorKind, Operation, Result};
use crate::storage::object::{Attributes, Key, Object};
use crate::telemetry::SyncOutcome;

/// Most entries under way at once.
const IN_FLIGHT: usize = 8;

/// How often an entry is tried in one pass while others keep changing its key in the bucket.
const TRIES: usize = 5;

impl Fallback {
    /// Sends what waits now to the bucket; waits for a pass that is under way, in this process or another.
    ///
    /// # Errors
    ///
    /// [`ErrorKind::Unavailable`] when the bucket cannot be reached, at the beginning or in between, and whatever else its
    /// probe ends with: what was not sent stays. What the bucket refuses of a single entry is no error but counted, see
    /// [`SyncReport::failed`].
    pub async fn sync(&self, progress: &dyn SyncProgress) -> Result<SyncReport> {
        let turn = self.overlay.wait_turn().await?;
        let mut report = SyncReport::default();
        let skew = self.skew(&mut report).await?;
        let waiting = self.overlay.waiting().await?;
        self.pass(turn, waiting, skew, report, progress).await
    }

    /// Sends what waits unless somebody else is at it; asks the bucket only when something waits.
    pub(super) async fn sync_in_turn(&self) -> Result<Option<SyncReport>> {
        let Some(turn) = self.overlay.turn().await? else { return Ok(None) };
        if self.overlay.is_empty().await? {
            return Ok(Some(SyncReport::default()));
        }
        let mut report = SyncReport::default();
        let skew = self.skew(&mut report).await?;
        let waiting = self.overlay.waiting().await?;
        self.pass(turn, waiting, skew, report, &()).await.map(Some)
    }

    /// Asks the bucket whether it is there and how much its clock is ahead of ours; what waits first is sent to one that is
    /// missing, since a write makes its bucket where it may.
    async fn skew(&self, report: &mut SyncReport) -> Result<SignedDuration> {
        let mut probe = self.heard(self.primary.probe().await);
        if let Err(error) = &probe
            && error.kind == ErrorKind::Invalid
            && let Some(first) = self.overlay.waiting().await?.first()
        {
            if let Some(outcome) = self.send(&first.key, SignedDuration::ZERO).await? {
                report.count(outcome);
                self.metrics.record_synced(outcome);
            }
            probe = self.heard(self.primary.probe().await);
        }
        Ok(probe?.skew.unwrap_or_default())
    }

    async fn pass(
        &self,
        turn: File,
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
                    // It concerns the whole bucket. What is under way ends; nothing more is begun. A refusal need not: an
                    // identity may be allowed some folders only, and the others must not wait behind one that is not.
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
        drop(turn);
        report.remaining = self.pending().await?.entries;
        tracing::info!(?report, "synchronized");
        match stopped {
            Some(error) => Err(error),
            None => Ok(report),
        }
    }

    /// Deals with one entry; `None` when it is gone.
    async fn send(&self, key: &Key, skew: SignedDuration) -> Result<Option<SyncOutcome>> {
        let options = GetOptions { spooled: true, ..GetOptions::default() };
        for _ in 0..TRIES {
            let Some(entry) = self.overlay.get(key, options).await? else { return Ok(None) };
            let present = match self.heard(self.primary.stat(key).await) {
                // The bucket itself is missing.
                Err(error) if error.kind == ErrorKind::Invalid => None,
                present => present?,
            };
            let standing = present.as_ref().map(|present| compare(&entry.attributes, present, skew));
            let outcome = match standing {
                Some(Standing::Newer) => {
                    if self.give_way(key, &entry.attributes).await? {
                        return Ok(Some(SyncOutcome::Conflict));
                    }
                    continue;
                }
                Some(Standing::Same) => SyncOutcome::AlreadyThere,
                Some(Standing::Older) | None => match self.carry_out(key, &entry, present.as_ref()).await {
                    // Somebody else changed the object since the look, or the answer of an earlier try was lost.
                    Err(error) if error.kind == ErrorKind::Precondition => continue,
                    outcome => outcome?,
                },
            };
            self.overlay.settle(key, entry.attributes.generation).await?;
            return Ok(Some(outcome));
        }
        let why = "others keep changing the key in the bucket; it is tried again later";
        Err(Error::new(ErrorKind::Precondition, Operation::Store, Some(key), why))
    }

    /// Replaces or removes exactly what was seen in the bucket.
    async fn carry_out(&self, key: &Key, entry: &Object, present: Option<&Attributes>) -> Result<SyncOutcome> {
        if entry.attributes.tombstone {
            if let Some(present) = present {
                let options = DeleteOptions {
                    generation: Some(present.generation.clone()),
                    lenient: true,
                    ..DeleteOptions::default()
                };
                self.heard(self.primary.delete(key, &options).await)?;
            }
            return Ok(SyncOutcome::Deleted);
        }
        let live = present.filter(|present| !present.is_expired(Timestamp::now()));
        let condition = live.map_or(Condition::Absent, |live| Condition::Generation(live.generation.clone()));
        let options = PutOptions { condition, lenient: true, ..PutOptions::default() };
        self.heard(self.primary.put(key, entry, &options).await)?;
        Ok(SyncOutcome::Sent)
    }

    /// Leaves the key to what somebody else put into the bucket; `false` when a newer entry has come meanwhile.
    async fn give_way(&self, key: &Key, entry: &Attributes) -> Result<bool> {
        if entry.tombstone {
            self.overlay.settle(key, entry.generation.clone()).await?;
            tracing::warn!(%key, "a pending delete was dropped: somebody else has changed the key in the bucket since");
            return Ok(true);
        }
        let Some(path) = self.overlay.files().quarantine(key, entry.generation.clone()).await? else {
            return Ok(false);
        };
        let path = path.display();
        tracing::warn!(%key, %path, "a pending write was set aside: somebody else has changed the key in the bucket since");
        Ok(true)
    }
}
