//! Quotas: writes below a prefix are refused once they would store more than a rule allows.
//!
//! What counts are stored bytes, after compression and encryption, and objects, also those that have expired until they
//! are removed. The numbers come from a listing, which needs no request for each object, and are corrected by every write
//! and removal of this process. They are counted anew at intervals, so that the writes of other processes and tools
//! are known after the next count.
//!
//! Room is reserved before a write begins. So the writes of one process never exceed a rule, however many run at once. A
//! write whose outcome is unknown stays reserved until the next count.

mod count;
mod key_locks;
mod ledger;

use std::fmt;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::Duration;

use async_trait::async_trait;
use jiff::Timestamp;
use tokio::sync::{Notify, watch};

use self::key_locks::KeyLocks;
pub use self::ledger::Amount;
use self::ledger::{Ledger, Reservation};
use crate::quota_rule::QuotaRule;
use crate::storage::backend::{
    Backend, CopySource, Deferral, DeleteOptions, GetOptions, Grant, Listing, Page, Probe, PutOptions, Removal,
    Versions, VersionsRequest,
};
use crate::storage::commit_guard::CommitGuard;
use crate::storage::error::{Error, ErrorKind, Operation, Result};
use crate::storage::object::{Attributes, Key, Object};

/// How long a write waits for the first count of a worker.
const FIRST_COUNT: Duration = Duration::from_secs(30);

/// A backend whose writes are refused where they would exceed a quota.
///
/// Keys below no rule cost nothing. A write or removal of any other key costs one look at its present object.
///
/// # Contract
///
/// - A write that would exceed a rule is [`ErrorKind::QuotaExceeded`], and nothing is written. A replacement needs room for
///   the difference alone; one that is smaller is always allowed.
/// - Before the first count nothing is known, so a write waits for it, and is [`ErrorKind::Unavailable`] after 30 seconds.
/// - While the bucket cannot be reached, the numbers of before hold and writes to an overlay count. The present object is
///   unknown then, so a replacement counts as a new object, and a delete gives nothing back, until the next count.
/// - Two processes do not know of each other's writes between two counts: together they may exceed a rule by what the
///   others have stored since.
#[derive(Debug)]
pub struct Quota {
    inner: Arc<dyn Backend>,
    /// The way to the overlay, where there is one.
    deferral: Option<Arc<dyn Deferral>>,
    ledger: Ledger,
    locks: KeyLocks,
    /// Whether a loop counts in the background; else the first write counts.
    in_background: AtomicBool,
    /// Wakes the loop before its time.
    wanted: Notify,
    counted: watch::Sender<u64>,
    counting: tokio::sync::Mutex<()>,
    page_size: usize,
}

/// One rule, and what of it is used.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct QuotaFill {
    /// The rule.
    pub rule: QuotaRule,
    /// What is stored, and what is reserved for writes that are under way.
    pub used: Amount,
}

impl Quota {
    /// Puts quotas before a backend. A count lists this many entries at a time.
    #[must_use]
    pub fn new(inner: Arc<dyn Backend>, rules: Vec<QuotaRule>, page_size: usize) -> Self {
        Self {
            inner,
            deferral: None,
            ledger: Ledger::new(rules),
            locks: KeyLocks::default(),
            in_background: AtomicBool::new(false),
            wanted: Notify::new(),
            counted: watch::Sender::new(0),
            counting: tokio::sync::Mutex::new(()),
            page_size,
        }
    }

    /// Names the way to the overlay below, past which no deferred write may go.
    #[must_use]
    pub fn with_deferral(self, deferral: Arc<dyn Deferral>) -> Self {
        Self { deferral: Some(deferral), ..self }
    }

    /// Returns what of each rule is used, or `None` before the first count.
    #[must_use]
    pub fn fill(&self) -> Option<Vec<QuotaFill>> {
        let used = self.ledger.used()?;
        let rules = self.ledger.rules().iter().cloned();
        Some(rules.zip(used).map(|(rule, used)| QuotaFill { rule, used }).collect())
    }

    /// Waits until the numbers are known.
    async fn ensure_counted(&self, operation: Operation, key: &Key) -> Result<()> {
        if self.ledger.is_counted() {
            return Ok(());
        }
        if !self.in_background.load(Ordering::Relaxed) {
            return self.count_once().await.map_err(|error| error.during(operation));
        }
        let mut counted = self.counted.subscribe();
        let waited = tokio::time::timeout(FIRST_COUNT, counted.wait_for(|count| *count > 0)).await;
        if matches!(waited, Ok(Ok(_))) {
            return Ok(());
        }
        let why = "what is stored has not been counted yet since the worker started, and without that no quota can be kept; \
                   try again later";
        Err(Error::new(ErrorKind::Unavailable, operation, Some(key), why))
    }

    /// Returns the amount of the present object; none where it is unknown, so that a write counts in full.
    async fn present(&self, key: &Key) -> Option<Amount> {
        match self.inner.stat(key).await {
            Ok(present) => Some(present.map(|present| Amount::object(present.stored_size)).unwrap_or_default()),
            Err(_) => None,
        }
    }

    /// Runs a write of this many bytes under the quotas.
    async fn write<T: Send>(
        &self,
        operation: Operation,
        key: &Key,
        bytes: u64,
        write: impl Future<Output = Result<T>> + Send,
        happened: impl Fn(&T) -> bool + Send,
    ) -> Result<T> {
        if !self.ledger.covers(key) {
            return write.await;
        }
        self.ensure_counted(operation, key).await?;
        // Of two writes of one key at once, each would count the difference to the same object.
        let _lock = self.locks.lock(key).await;
        let present = self.present(key).await.unwrap_or_default();
        let change = Amount::object(bytes).minus(present);
        let reservation = self.ledger.reserve(operation, key, change)?;
        let outcome = write.await;
        self.conclude(
            reservation,
            outcome.as_ref().map(|done| if happened(done) { change } else { Amount::default() }),
        );
        outcome
    }

    /// Ends a reservation by the outcome of its change.
    fn conclude(&self, reservation: Reservation<'_>, outcome: Result<Amount, &Error>) {
        match outcome {
            Ok(change) => reservation.settle(change),
            Err(error) => match error.kind {
                // The write may have been carried out all the same: a count tells.
                ErrorKind::Unavailable | ErrorKind::Throttled | ErrorKind::Io | ErrorKind::Integrity => {
                    drop(reservation);
                    self.wanted.notify_one();
                }
                _ => reservation.release(),
            },
        }
    }

    /// Runs a removal, which gives back what the object had.
    async fn remove(
        &self,
        operation: Operation,
        key: &Key,
        removal: impl Future<Output = Result<Removal>> + Send,
    ) -> Result<Removal> {
        if !self.ledger.covers(key) || !self.ledger.is_counted() {
            return removal.await;
        }
        let _lock = self.locks.lock(key).await;
        let present = self.present(key).await;
        let reservation = self.ledger.reserve(operation, key, Amount::default())?;
        let outcome = removal.await;
        let given_back = |removal: &Removal| match present {
            Some(present) if removal.found => Amount::default().minus(present),
            _ => Amount::default(),
        };
        self.conclude(reservation, outcome.as_ref().map(given_back));
        outcome
    }

    fn deferral(&self, operation: Operation, key: &Key) -> Result<&Arc<dyn Deferral>> {
        let why = "there is no overlay that could keep the command; try again later";
        self.deferral.as_ref().ok_or_else(|| Error::new(ErrorKind::Unavailable, operation, Some(key), why))
    }
}

impl fmt::Display for Quota {
    fn fmt(&self, formatter: &mut fmt::Formatter<'_>) -> fmt::Result {
        self.inner.fmt(formatter)
    }
}

#[async_trait]
impl Backend for Quota {
    async fn put(&self, key: &Key, object: &Object, options: &PutOptions) -> Result<Attributes> {
        let write = self.inner.put(key, object, options);
        self.write(Operation::Store, key, object.payload.len(), write, |_| true).await
    }

    async fn copy(
        &self,
        source: &CopySource,
        key: &Key,
        attributes: &Attributes,
        options: &PutOptions,
    ) -> Result<Option<Attributes>> {
        let write = self.inner.copy(source, key, attributes, options);
        self.write(Operation::Copy, key, attributes.stored_size, write, Option::is_some).await
    }

    async fn get(&self, key: &Key, options: GetOptions) -> Result<Option<Object>> {
        self.inner.get(key, options).await
    }

    async fn stat(&self, key: &Key) -> Result<Option<Attributes>> {
        self.inner.stat(key).await
    }

    async fn versions(&self, key: &Key, request: &VersionsRequest) -> Result<Versions> {
        self.inner.versions(key, request).await
    }

    async fn delete(&self, key: &Key, options: &DeleteOptions) -> Result<Removal> {
        self.remove(Operation::Delete, key, self.inner.delete(key, options)).await
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

#[async_trait]
impl Deferral for Quota {
    async fn defer_put(&self, key: &Key, object: &Object, guard: &CommitGuard) -> Result<Attributes> {
        let deferral = self.deferral(Operation::Store, key)?;
        let write = deferral.defer_put(key, object, guard);
        self.write(Operation::Store, key, object.payload.len(), write, |_| true).await
    }

    async fn defer_delete(&self, key: &Key, deleted_at: Timestamp, guard: &CommitGuard) -> Result<Removal> {
        let deferral = self.deferral(Operation::Delete, key)?;
        self.remove(Operation::Delete, key, deferral.defer_delete(key, deleted_at, guard)).await
    }

    async fn is_pending(&self, key: &Key) -> Result<bool> {
        match &self.deferral {
            Some(deferral) => deferral.is_pending(key).await,
            None => Ok(false),
        }
    }

    fn may_have_entry(&self, key: &Key) -> bool {
        self.deferral.as_ref().is_some_and(|deferral| deferral.may_have_entry(key))
    }
}
