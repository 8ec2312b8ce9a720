//! Tries again what may pass: the one place that does, and the one that gives an attempt its time.

use std::fmt;
use std::future::Future;
use std::sync::{Arc, Mutex, PoisonError};
use std::time::Duration;

use async_trait::async_trait;
use backoff::backoff::Backoff as _;
use backoff::{ExponentialBackoff, ExponentialBackoffBuilder};
use tokio::time::{Instant, timeout};

use crate::storage::backend::{
    Backend, Condition, DeleteOptions, GetOptions, Grant, Listing, Page, Probe, PutOptions, Removal,
};
use crate::storage::error::{Error, ErrorKind, Operation, Result};
use crate::storage::layers::breaker::{Admission, Look, Outage};
use crate::storage::layers::{Breaker, Refusals, attempts};
use crate::storage::object::{Attributes, Key, Object};
use crate::telemetry::{self, Metrics, StorageOperation};

/// Waits between attempts: about the first, doubling, at most the last.
const WAITS: (Duration, Duration) = (Duration::from_millis(100), Duration::from_secs(5));

/// Longest that a look whether a place can be reached may take.
const LONGEST_LOOK: Duration = Duration::from_secs(5);

/// Bytes a second at which a payload must at least get away.
const SLOWEST: u64 = 1024 * 1024;

/// How often and how long a place is asked.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct RetryOptions {
    /// Attempts after the first.
    pub max_retries: u32,
    /// Longest that one attempt may take. A write has a second more for each MiB; a read that may come as a file has no
    /// limit but the backend's own, of each wait without progress.
    pub timeout: Duration,
}

/// A remote place whose passing faults are tried again, and that is left alone while it cannot be reached.
///
/// # Contract
///
/// - Tried again are [`ErrorKind::Unavailable`], [`ErrorKind::Throttled`], and [`ErrorKind::Integrity`] of reads and
///   writes, which bytes damaged on their way look like; every other error is the answer at once.
/// - All attempts together take no longer than all of them may take one by one. What the place asks to wait is waited,
///   or the operation fails at once if it has not that much time left.
/// - A conditional write whose condition fails only because an earlier attempt of its own was carried out without an
///   answer has succeeded. That is told by its token: if someone has replaced the object since, it is
///   [`ErrorKind::Precondition`].
/// - The last error is the answer; its message says how often was tried.
/// - What the place cannot answer while its [`Breaker`] is open fails at once, without an attempt.
#[derive(Debug)]
pub struct Retry {
    inner: Arc<dyn Backend>,
    options: RetryOptions,
    label: telemetry::BackendLabel,
    metrics: Metrics,
    breaker: Breaker,
    refusals: Refusals,
    /// What was the matter when nothing could be had from the place last, and whether something answered all the same.
    last: Arc<Mutex<Option<(String, bool)>>>,
}

impl Retry {
    /// Puts retries and a breaker before a backend.
    #[must_use]
    pub fn new(
        inner: Arc<dyn Backend>,
        options: RetryOptions,
        label: telemetry::BackendLabel,
        metrics: Metrics,
    ) -> Self {
        let breaker = Breaker::new(options.timeout, label, metrics.clone());
        Self { inner, options, label, metrics, breaker, refusals: Refusals::new(), last: Arc::default() }
    }

    /// Returns who hears of refusals, to be looked at.
    #[must_use]
    pub fn refusals(&self) -> Refusals {
        self.refusals.clone()
    }

    /// Returns the breaker, to be looked at.
    #[must_use]
    pub fn breaker(&self) -> Breaker {
        self.breaker.clone()
    }

    /// Carries an operation out whose attempts may each be repeated without a second thought.
    async fn run<T, F>(&self, mut tries: Tries<'_>, attempt: impl Fn() -> F + Send + Sync) -> Result<T>
    where
        T: Send,
        F: Future<Output = Result<T>> + Send,
    {
        loop {
            if let Some(answer) = tries.attempt(attempt()).await? {
                return Ok(answer);
            }
        }
    }

    /// Begins an operation as soon as the breaker lets it through; an attempt takes at most the limit.
    async fn begin<'a>(
        &'a self,
        operation: Operation,
        key: Option<&'a Key>,
        limit: Option<Duration>,
    ) -> Result<Tries<'a>> {
        loop {
            match self.breaker.admit() {
                Admission::Pass => return Ok(Tries::new(self, operation, key, limit)),
                Admission::Wait => self.breaker.settled().await,
                // Whether it was answered is told by what the breaker says next.
                Admission::Look(look) => drop(self.look(look).await),
                Admission::Refuse(outage) => return Err(self.refused(operation, key, outage)),
            }
        }
    }

    /// Looks whether the place can be reached; any answer but that it cannot is one.
    async fn look(&self, look: Look) -> Result<Probe> {
        let limit = self.options.timeout.min(LONGEST_LOOK);
        let result = within(limit, Operation::Probe, None, self.inner.probe()).await;
        let away = result.as_ref().err().filter(|error| error.kind == ErrorKind::Unavailable);
        if let Some(error) = away {
            self.note(error);
        }
        look.end(away.is_none());
        result
    }

    fn note(&self, error: &Error) {
        let words = (error.message().to_owned(), error.is_senseless());
        *self.last.lock().unwrap_or_else(PoisonError::into_inner) = Some(words);
    }

    fn refused(&self, operation: Operation, key: Option<&Key>, outage: Outage) -> Error {
        let next = outage.look_in.map_or_else(
            || "is under way".to_owned(),
            // Rounded up: before that there is no use in asking.
            |look_in| format!("is due in {} s", look_in.as_secs() + u64::from(look_in.subsec_nanos() > 0)),
        );
        let last = self.last.lock().unwrap_or_else(PoisonError::into_inner).clone();
        let (words, senseless) = last.map_or_else(Default::default, |(words, it)| (format!("; last: {words}"), it));
        let why = format!(
            "{} has not been reached for {} s, and the next look whether it can be {next}; see to the network and the \
             endpoint, or try again later{words}",
            self.inner,
            outage.silence.as_secs()
        );
        let error = Error::new(ErrorKind::Unavailable, operation, key, why).with_retry_after(outage.look_in);
        error.while_senseless(senseless)
    }

    /// Answers a conditional write that failed though an earlier attempt may have been carried out.
    async fn own(&self, tries: &Tries<'_>, key: &Key, generation: &str, error: Error) -> Result<Attributes> {
        let refused = error.kind == ErrorKind::Precondition;
        let seen = async {
            let mut look = self.begin(Operation::Stat, Some(key), Some(self.options.timeout)).await?;
            if refused {
                look.left = look.left.min(tries.left.max(LONGEST_LOOK));
            } else {
                // The last attempt had no answer, so this one is made on the chance.
                (look.most, look.left) = (1, self.options.timeout.min(LONGEST_LOOK));
            }
            self.run(look, || self.inner.stat(key)).await
        };
        match seen.await {
            Ok(Some(present)) if present.generation == generation && !tries.damaged => {
                self.inner.flush(key).await?;
                Ok(present)
            }
            Ok(Some(present)) if present.generation == generation => {
                let why = "what was written may have been damaged on its way; delete the key and store it again";
                Err(Error::new(ErrorKind::Integrity, Operation::Store, Some(key), why))
            }
            Err(fault) if refused => {
                Err(fault.during(Operation::Store).noting("whether the object was written is not known"))
            }
            _ => Err(error),
        }
    }
}

/// The attempts of one operation.
struct Tries<'a> {
    retry: &'a Retry,
    operation: Operation,
    key: Option<&'a Key>,
    limit: Option<Duration>,
    /// What is left of the operation's time.
    left: Duration,
    most: u32,
    made: u32,
    waits: ExponentialBackoff,
    /// Whether an attempt may have been carried out without an answer.
    unknown: bool,
    /// Whether an attempt's bytes were damaged on their way.
    damaged: bool,
}

impl<'a> Tries<'a> {
    fn new(retry: &'a Retry, operation: Operation, key: Option<&'a Key>, limit: Option<Duration>) -> Self {
        let most = retry.options.max_retries.saturating_add(1);
        let left = limit.unwrap_or(retry.options.timeout).saturating_mul(most);
        let waits = ExponentialBackoffBuilder::new()
            .with_initial_interval(WAITS.0)
            .with_multiplier(2.0)
            .with_max_interval(WAITS.1)
            // Time is kept here, by a clock that tests can hold.
            .with_max_elapsed_time(None)
            .build();
        Self { retry, operation, key, limit, left, most, made: 0, waits, unknown: false, damaged: false }
    }

    /// Makes one attempt; `None` when another is to be made.
    async fn attempt<T: Send>(&mut self, work: impl Future<Output = Result<T>> + Send) -> Result<Option<T>> {
        attempts::note();
        self.made += 1;
        if self.made > 1 {
            self.retry.metrics.record_retry(label(self.operation), self.retry.label);
        }
        let began = Instant::now();
        let result = match self.limit {
            Some(limit) => within(limit.min(self.left), self.operation, self.key, work).await,
            None => work.await,
        };
        if self.limit.is_some() {
            self.spend(began);
        }
        match result {
            Ok(answer) => {
                self.retry.breaker.answered();
                if self.is_command() {
                    self.retry.refusals.succeeded();
                }
                Ok(Some(answer))
            }
            Err(error) => self.failed(began, error).await.map(|()| None),
        }
    }

    /// Waits for the next attempt, or gives the error back when there is to be none.
    async fn failed(&mut self, began: Instant, error: Error) -> Result<()> {
        let breaker = &self.retry.breaker;
        if self.is_command() {
            self.retry.refusals.failed(&error);
        }
        let wait = self.wait_after(&error);
        let since = Instant::now();
        match error.kind {
            ErrorKind::Unavailable => {
                self.retry.note(&error);
                self.unknown = true;
                if let Some(look) = breaker.unanswered(began, wait.is_none()) {
                    drop(self.retry.look(look).await);
                }
            }
            ErrorKind::Precondition | ErrorKind::Integrity | ErrorKind::Denied | ErrorKind::Throttled => {
                self.damaged |= error.kind == ErrorKind::Integrity;
                breaker.answered();
            }
            // These may be said without asking the place.
            ErrorKind::Invalid | ErrorKind::Missing | ErrorKind::NoSpace | ErrorKind::Abandoned | ErrorKind::Io => {}
        }
        if let Some(wait) = wait
            && breaker.pause(wait).await
        {
            self.spend(since);
            if !self.left.is_zero() {
                tracing::debug!(attempts = self.made, %error, "trying again");
                return Ok(());
            }
        }
        Err(self.last(error))
    }

    /// Tells whether the place is used, and not only looked at.
    const fn is_command(&self) -> bool {
        !matches!(self.operation, Operation::Probe | Operation::Sign)
    }

    /// Tells whether another attempt may help.
    const fn may_pass(&self, error: &Error) -> bool {
        match error.kind {
            ErrorKind::Unavailable | ErrorKind::Throttled => true,
            // Bytes that were damaged on their way.
            ErrorKind::Integrity => matches!(self.operation, Operation::Store | Operation::Retrieve),
            ErrorKind::Invalid
            | ErrorKind::Precondition
            | ErrorKind::Missing
            | ErrorKind::NoSpace
            | ErrorKind::Denied
            | ErrorKind::Abandoned
            | ErrorKind::Io => false,
        }
    }

    /// Returns how long to wait after this error, if another attempt may help and there is time for it.
    fn wait_after(&mut self, error: &Error) -> Option<Duration> {
        if !self.may_pass(error) || self.made >= self.most {
            return None;
        }
        let wait = self.waits.next_backoff()?.min(WAITS.1).max(error.retry_after.unwrap_or_default());
        (wait < self.left).then_some(wait)
    }

    /// Says in the last error how often was tried, where trying again could have helped or did.
    fn last(&self, error: Error) -> Error {
        let remark = match self.made {
            1 if !self.may_pass(&error) => return error,
            1 => "tried once".to_owned(),
            made => format!("tried {made} times"),
        };
        match error.retry_after {
            Some(asked) if self.made < self.most && asked >= self.left => {
                error.noting(&format!("{remark}, since it asks to wait {asked:.0?}"))
            }
            _ => error.noting(&remark),
        }
    }

    fn spend(&mut self, since: Instant) {
        self.left = self.left.saturating_sub(since.elapsed());
    }
}

/// Most keys asked for in one attempt: a page of Google's and of Amazon's.
const PIECE: usize = 1000;

/// Waits for an answer no longer than the limit.
async fn within<T>(
    limit: Duration,
    operation: Operation,
    key: Option<&Key>,
    work: impl Future<Output = Result<T>> + Send,
) -> Result<T> {
    timeout(limit, work).await.unwrap_or_else(|_| {
        let why = format!("no answer within {limit:.0?}; look at the network, or raise timeout_seconds");
        Err(Error::new(ErrorKind::Unavailable, operation, key, why))
    })
}

const fn label(operation: Operation) -> StorageOperation {
    match operation {
        Operation::Store => StorageOperation::Put,
        Operation::Retrieve => StorageOperation::Get,
        Operation::Stat => StorageOperation::Stat,
        Operation::Delete => StorageOperation::Delete,
        Operation::List => StorageOperation::List,
        Operation::Probe => StorageOperation::Probe,
        Operation::Sign => StorageOperation::Sign,
    }
}

impl fmt::Display for Retry {
    fn fmt(&self, formatter: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(formatter, "retry({})", self.inner)
    }
}

#[async_trait]
impl Backend for Retry {
    async fn put(&self, key: &Key, object: &Object, options: &PutOptions) -> Result<Attributes> {
        // A file takes as long as it takes: the backend itself bounds each wait without progress.
        let limit = object
            .payload
            .as_memory()
            .map(|bytes| self.options.timeout.saturating_add(Duration::from_secs(bytes.len() as u64 / SLOWEST)));
        let mut tries = self.begin(Operation::Store, Some(key), limit).await?;
        let error = loop {
            // The same object with the same token, so an unconditional write can be repeated.
            match tries.attempt(self.inner.put(key, object, options)).await {
                Ok(Some(stored)) => return Ok(stored),
                Ok(None) => {}
                Err(error) => break error,
            }
        };
        let doubtful = (tries.unknown || tries.damaged) && error.kind != ErrorKind::Abandoned;
        if options.condition == Condition::Always || !doubtful {
            return Err(error);
        }
        self.own(&tries, key, &object.attributes.generation, error).await
    }

    async fn get(&self, key: &Key, options: GetOptions) -> Result<Option<Object>> {
        // A large value takes as long as it takes: of one that may come as a file, and of a part, for which the whole is
        // read, the backend itself bounds each wait without progress, and only what lies between the attempts counts.
        let limit = (!options.spooled && options.range.is_none()).then_some(self.options.timeout);
        let tries = self.begin(Operation::Retrieve, Some(key), limit).await?;
        self.run(tries, || self.inner.get(key, options)).await
    }

    async fn stat(&self, key: &Key) -> Result<Option<Attributes>> {
        let tries = self.begin(Operation::Stat, Some(key), Some(self.options.timeout)).await?;
        self.run(tries, || self.inner.stat(key)).await
    }

    async fn delete(&self, key: &Key, options: &DeleteOptions) -> Result<Removal> {
        let tries = self.begin(Operation::Delete, Some(key), Some(self.options.timeout)).await?;
        self.run(tries, || self.inner.delete(key, options)).await
    }

    async fn list(&self, page: &Page) -> Result<Listing> {
        // One attempt is for one piece of the page, or no attempt would ever be long enough for a large bucket.
        let (mut page, mut found) = (page.clone(), Listing::default());
        let wanted = page.limit.unwrap_or(usize::MAX);
        loop {
            page.limit = Some(PIECE.min(wanted - found.entries.len()));
            let tries = self.begin(Operation::List, None, Some(self.options.timeout)).await?;
            let piece = self.run(tries, || self.inner.list(&page)).await?;
            let last = piece.entries.last().map(|entry| entry.key.as_str().to_owned());
            if last.is_some() && last <= page.start_after {
                let why = format!("{} does not get on with its listing; look at what answers there", self.inner);
                return Err(Error::new(ErrorKind::Io, Operation::List, None, why));
            }
            page.start_after = last;
            found.foreign += piece.foreign;
            found.more = piece.more;
            found.entries.extend(piece.entries);
            if !found.more || found.entries.len() >= wanted || page.start_after.is_none() {
                return Ok(found);
            }
        }
    }

    async fn flush(&self, key: &Key) -> Result<()> {
        self.inner.flush(key).await
    }

    async fn probe(&self) -> Result<Probe> {
        // While the breaker is open, this is the look itself, if one is due.
        if let Admission::Look(look) = self.breaker.admit() {
            return self.look(look).await;
        }
        let tries = self.begin(Operation::Probe, None, Some(self.options.timeout)).await?;
        self.run(tries, || self.inner.probe()).await
    }

    fn validate(&self, key: &Key, attributes: &Attributes) -> Result<()> {
        self.inner.validate(key, attributes)
    }

    async fn sign(&self, key: &Key, grant: &Grant) -> Result<String> {
        // Not a question to the place, so neither tried again nor a sign of life; but a key may be kept by a service.
        within(self.options.timeout, Operation::Sign, Some(key), self.inner.sign(key, grant)).await
    }
}
