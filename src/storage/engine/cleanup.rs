//! Removes objects that have expired, or that are older than an age.

use std::time::Duration;

use futures_util::stream::{FuturesUnordered, StreamExt as _};
use jiff::Timestamp;

use crate::storage::backend::{DeleteOptions, Entry};
use crate::storage::commit_guard::CommitGuard;
use crate::storage::engine::Engine;
use crate::storage::error::{Error, ErrorKind, Operation, Result};
use crate::storage::object::Key;

/// The number of objects that are removed at once.
const AT_ONCE: usize = 8;

/// The number of keys that a report names.
const NAMED: usize = 1_000;

/// The number of failed removals without a single success after which no more are tried.
///
/// An identity without the right to remove fails at every object. Each pass would send as many useless requests as objects
/// have expired.
const MOST_FAILED: u64 = 16;

/// Which objects a cleanup removes.
#[derive(Clone, Debug, Default)]
pub struct CleanupRequest {
    /// Only objects whose keys begin with this text; by default all.
    pub prefix: Option<String>,
    /// Objects that have expired are removed.
    pub expired: bool,
    /// Objects of this program that were stored so long ago are removed, too. Needs a prefix, of which `""` means all.
    pub older_than: Option<Duration>,
    /// Nothing is removed, and the report says what would be.
    pub dry_run: bool,
    /// The guard that is asked right before an object is removed.
    pub commit_guard: CommitGuard,
}

/// What a cleanup has removed, or would remove.
#[derive(Debug, Default)]
pub struct CleanupReport {
    /// The number of removed objects.
    pub deleted: u64,
    /// Their stored bytes.
    pub bytes: u64,
    /// The first 1,000 of their keys, in byte order but for those that are removed at the same moment.
    pub keys: Vec<Key>,
    /// The number of objects that could not be removed and stay.
    pub failed: u64,
    /// The error of the first of these.
    pub first_failure: Option<Error>,
}

/// Receives the progress of a cleanup, for a progress bar.
pub trait CleanupProgress: Send + Sync {
    /// This many more objects were looked at.
    fn listed(&self, objects: u64);

    /// An object of this many stored bytes was removed, or would be.
    fn removed(&self, key: &Key, bytes: u64);

    /// An object could not be removed.
    fn failed(&self, key: &Key, error: &Error);

    /// Tells whether the cleanup is to end: removals under way are finished, and no other begins.
    fn is_stopped(&self) -> bool;
}

/// Shows nothing; the report has the first failure and the number of all.
impl CleanupProgress for () {
    fn listed(&self, _: u64) {}

    fn removed(&self, _: &Key, _: u64) {}

    fn failed(&self, _: &Key, _: &Error) {}

    fn is_stopped(&self) -> bool {
        false
    }
}

/// The objects that are removed.
#[derive(Clone, Copy, Debug)]
pub(super) struct Selection {
    /// Objects that expired so long ago or earlier.
    pub(super) expired_for: Option<Duration>,
    /// Objects of this program that were stored before this time.
    pub(super) stored_before: Option<Timestamp>,
}

impl Selection {
    fn has(&self, entry: &Entry, now: Timestamp) -> bool {
        let old = self
            .stored_before
            .is_some_and(|limit| entry.labelled && entry.stored_at.is_some_and(|stored_at| stored_at < limit));
        let expired =
            self.expired_for.is_some_and(|age| now.checked_sub(age).is_ok_and(|limit| entry.is_expired(limit)));
        old || expired
    }

    /// Returns those of the entries that are removed now. Without a generation, no removal could be conditional.
    pub(super) fn of(self, entries: Vec<Entry>) -> impl Iterator<Item = Entry> {
        let now = Timestamp::now();
        entries.into_iter().filter(move |entry| entry.generation.is_some() && self.has(entry, now))
    }
}

impl Engine {
    /// Removes what has expired and, where an age is given, what is older.
    ///
    /// A removal names the generation that was listed, so that an object that is stored anew meanwhile stays. At a place that
    /// does not enforce this condition, the generation is compared right before the removal. S3 enforces it by the entity
    /// tag, which is made from the bytes: there, too, the generation is compared right before, and a store of the same bytes
    /// between that look and the removal is not noticed.
    ///
    /// An object that cannot be removed is counted, and the others are still removed. The cleanup ends where the removal of
    /// one object shows that all others would fail as well, and when 16 have failed and none was removed. Removals under way
    /// are finished and counted before it ends.
    ///
    /// # Errors
    ///
    /// [`ErrorKind::Invalid`] for an age without a prefix, [`ErrorKind::Abandoned`], the errors of the listing and those
    /// that may pass by themselves, and the first of 16 failures. What was removed until then is gone.
    pub async fn cleanup(&self, request: CleanupRequest, progress: &dyn CleanupProgress) -> Result<CleanupReport> {
        self.0.counters.measure(self.cleanup_uncounted(request, progress)).await
    }

    async fn cleanup_uncounted(
        &self,
        request: CleanupRequest,
        progress: &dyn CleanupProgress,
    ) -> Result<CleanupReport> {
        let CleanupRequest { prefix, expired, older_than, dry_run, commit_guard } = request;
        let mut report = CleanupReport::default();
        if older_than.is_some() && prefix.is_none() {
            let why = "a cleanup by age needs a prefix; the empty one means all objects";
            return Err(Error::new(ErrorKind::Invalid, Operation::Delete, None, why));
        }
        // An age that reaches back beyond all times has no objects.
        let stored_before = older_than.and_then(|age| Timestamp::now().checked_sub(age).ok());
        let selection = Selection { expired_for: expired.then_some(Duration::ZERO), stored_before };
        if !expired && stored_before.is_none() {
            return Ok(report);
        }
        let mut walk = self.walk(prefix.as_deref().unwrap_or_default(), None);
        while !progress.is_stopped()
            && let Some(entries) = walk.next_page().await?
        {
            let listed = entries.len() as u64;
            let selected = selection.of(entries);
            if dry_run {
                selected.for_each(|entry| report.note(entry, progress));
            } else {
                self.remove_all(selected, AT_ONCE, &commit_guard, &mut report, progress)
                    .await
                    .map_err(|error| error.noting(&format!("{} objects had been removed before", report.deleted)))?;
            }
            progress.listed(listed);
        }
        Ok(report)
    }

    /// Removes objects in the state in which they were listed.
    pub(super) async fn remove_all(
        &self,
        entries: impl Iterator<Item = Entry> + Send,
        at_once: usize,
        commit_guard: &CommitGuard,
        report: &mut CleanupReport,
        progress: &dyn CleanupProgress,
    ) -> Result<()> {
        let removal = |entry: Entry| async {
            let generation = entry.generation.clone();
            let options = DeleteOptions { generation, lenient: true, commit_guard: commit_guard.clone() };
            (self.0.backend.delete(&entry.key, &options).await, entry)
        };
        let (mut waiting, mut running, mut stopped) = (entries.map(removal), FuturesUnordered::new(), None);
        loop {
            while running.len() < at_once
                && stopped.is_none()
                && !report.only_fails()
                && !progress.is_stopped()
                && let Some(removal) = waiting.next()
            {
                running.push(removal);
            }
            let Some((outcome, entry)) = running.next().await else { break };
            match outcome {
                Ok(removal) if removal.found => report.note(entry, progress),
                // Somebody else has removed the object, or stored another one.
                Ok(_) => {}
                Err(error) if error.kind == ErrorKind::Precondition => {}
                Err(error) if error.is_transient() || error.kind == ErrorKind::Abandoned => {
                    stopped.get_or_insert(error);
                }
                Err(error) => {
                    progress.failed(&entry.key, &error);
                    report.failed += 1;
                    report.first_failure.get_or_insert(error);
                }
            }
        }
        if stopped.is_none() && report.only_fails() {
            let why = format!("all of the first {} removals failed, so no more were tried", report.failed);
            stopped = report.first_failure.take().map(|error| error.noting(&why));
        }
        stopped.map_or(Ok(()), Err)
    }
}

impl CleanupReport {
    /// Tells whether so many removals have failed, and none has succeeded, that the others would fail as well.
    const fn only_fails(&self) -> bool {
        self.deleted == 0 && self.failed >= MOST_FAILED
    }

    fn note(&mut self, entry: Entry, progress: &dyn CleanupProgress) {
        let bytes = entry.stored_size.unwrap_or_default();
        progress.removed(&entry.key, bytes);
        self.deleted += 1;
        self.bytes += bytes;
        if self.keys.len() < NAMED {
            self.keys.push(entry.key);
        }
    }
}
