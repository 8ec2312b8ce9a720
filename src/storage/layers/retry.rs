//! Repeats operations whose error may pass. No other layer repeats, and no other layer limits the time of an attempt.

use std::fmt;
use std::future::Future;
use std::sync::{Arc, Mutex, PoisonError};
use std::time::Duration;

use async_trait::async_trait;
use backoff::backoff::Backoff as _;
use backoff::{ExponentialBackoff, ExponentialBackoffBuilder};
use tokio::time::{Instant, timeout};

use crate::storage::backend::{
    Backend, Condition, CopySource, DeleteOptions, GetOptions, Grant, Listing, Page, Probe, PutOptions, Removal,
    Versions, VersionsRequest,
};
use crate::storage::error::{Error, ErrorKind, Operation, Result};
use crate::storage::layers::breaker::{Admission, Outage, ProbeTurn};
use crate::storage::layers::{Breaker, Refusals, attempts};
use crate::storage::object::{Attributes, Key, Object};
use crate::telemetry::{self, Metrics, StorageOperation};

/// The first wait between attempts and the longest. The waits double and are randomized.
const WAITS: (Duration, Duration) = (Duration::from_millis(100), Duration::from_secs(5));

/// The longest time that a probe may take.
const LONGEST_PROBE: Duration = Duration::from_secs(5);

/// The lowest rate, in bytes a second, at which a payload is expected to be sent.
const SLOWEST: u64 = 1024 * 1024;

/// How often an operation is attempted, and how long one attempt may take.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct RetryOptions {
    /// The number of attempts after the first.
    pub max_retries: u32,
    /// The longest time of one attempt. A write has one more second for each MiB, a copy two. A read that may come as a file has
    /// only the backend's own limit, which bounds each wait without progress.
    pub timeout: Duration,
}

/// A remote backend whose operations are retried, and that gets only probes while it cannot be reached.
///
/// # Contract
///
/// - Operations are retried after [`ErrorKind::Unavailable`], [`ErrorKind::Throttled`], and [`ErrorKind::Integrity`] of
///   reads and writes, which is also the error of bytes that were damaged in transit. Every other error is returned at
///   once.
/// - All attempts together take no longer than the sum of their limits. The wait that the backend asks for is kept, or
///   the operation fails at once if it has not that much time left.
/// - A conditional write has succeeded if its condition fails only because an earlier attempt of the same write was
///   carried out and its answer was lost. The generation token tells: if somebody has replaced the object since, the
///   answer is [`ErrorKind::Precondition`].
/// - The last error is returned. Its message says how often the operation was tried.
/// - While its [`Breaker`] is open, an operation fails at once, without an attempt.
#[derive(Debug)]
pub struct Retry {
    inner: Arc<dyn Backend>,
    options: RetryOptions,
    label: telemetry::BackendLabel,
    metrics: Metrics,
    breaker: Breaker,
    refusals: Refusals,
    /// The last error that made the backend unreachable: its message, and whether something that is not the backend
    /// answered.
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

    /// Returns the receiver of refusals, for readiness.
    #[must_use]
    pub fn refusals(&self) -> Refusals {
        self.refusals.clone()
    }

    /// Returns the breaker, for readiness.
    #[must_use]
    pub fn breaker(&self) -> Breaker {
        self.breaker.clone()
    }

    /// Carries out an operation whose attempts can be repeated without harm.
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

    /// Begins an operation as soon as the breaker permits it. An attempt takes at most the limit.
    async fn begin<'a>(
        &'a self,
        operation: Operation,
        key: Option<&'a Key>,
        limit: Option<Duration>,
    ) -> Result<Tries<'a>> {
        loop {
            match self.breaker.admit() {
                Admission::Pass => return Ok(Tries::new(self, operation, key, limit)),
                Admission::Wait => self.breaker.probe_ended().await,
                // The breaker knows the outcome of the probe, and its next decision follows from it.
                Admission::Probe(probe) => drop(self.probe(probe).await),
                Admission::Refuse(outage) => return Err(self.refused(operation, key, outage)),
            }
        }
    }

    /// Probes whether the backend can be reached. Every answer but [`ErrorKind::Unavailable`] shows that it can.
    async fn probe(&self, probe: ProbeTurn) -> Result<Probe> {
        let limit = self.options.timeout.min(LONGEST_PROBE);
        let result = within(limit, Operation::Probe, None, self.inner.probe()).await;
        let away = result.as_ref().err().filter(|error| error.kind == ErrorKind::Unavailable);
        if let Some(error) = away {
            self.note(error);
        }
        probe.end(away.is_none());
        result
    }

    fn note(&self, error: &Error) {
        let words = (error.message().to_owned(), error.is_unexpected_answer());
        *self.last.lock().unwrap_or_else(PoisonError::into_inner) = Some(words);
    }

    fn refused(&self, operation: Operation, key: Option<&Key>, outage: Outage) -> Error {
        let next = outage.probe_in.map_or_else(
            || "is under way".to_owned(),
            // Rounded up, because an earlier attempt would be refused.
            |probe_in| format!("is due in {} s", probe_in.as_secs() + u64::from(probe_in.subsec_nanos() > 0)),
        );
        let last = self.last.lock().unwrap_or_else(PoisonError::into_inner).clone();
        let (words, unexpected_answer) = last.map_or_else(Default::default, |(words, unexpected_answer)| {
            (format!("; last: {words}"), unexpected_answer)
        });
        let why = format!(
            "{} has not been reached for {} s, and the next look whether it can be {next}; check the network and the \
             endpoint, or try again later{words}",
            self.inner,
            outage.silence.as_secs()
        );
        let error = Error::new(ErrorKind::Unavailable, operation, key, why).with_retry_after(outage.probe_in);
        error.with_unexpected_answer(unexpected_answer)
    }

    /// Answers a conditional write that failed, though an earlier attempt of it may have been carried out.
    async fn confirm_own_write(
        &self,
        tries: &Tries<'_>,
        key: &Key,
        written: &Attributes,
        error: Error,
    ) -> Result<Attributes> {
        let refused = error.kind == ErrorKind::Precondition;
        let seen = async {
            let mut look = self.begin(Operation::Stat, Some(key), Some(self.options.timeout)).await?;
            if refused {
                look.left = look.left.min(tries.left.max(LONGEST_PROBE));
            } else {
                // The last attempt had no answer, so only one short attempt is made.
                (look.most, look.left) = (1, self.options.timeout.min(LONGEST_PROBE));
            }
            self.run(look, || self.inner.stat(key)).await
        };
        // A rotation leaves the generation token as it is; its envelope shows whether it was carried out.
        let is_own =
            |present: &Attributes| present.generation == written.generation && present.encryption == written.encryption;
        match seen.await {
            Ok(Some(present)) if is_own(&present) && !tries.damaged => {
                self.inner.flush(key).await?;
                Ok(present)
            }
            Ok(Some(present)) if is_own(&present) => {
                let why =
                    "the object that was written may have been damaged in transit; delete the key and store it again";
                Err(Error::new(ErrorKind::Integrity, Operation::Store, Some(key), why))
            }
            Err(fault) if refused => {
                Err(fault.during(Operation::Store).noting("it is unknown whether the object was written"))
            }
            _ => Err(error),
        }
    }
}

/// The attempts of one operation, and the time that is left for them.
struct Tries<'a> {
    retry: &'a Retry,
    operation: Operation,
    key: Option<&'a Key>,
    limit: Option<Duration>,
    /// The time that the operation has left.
    left: Duration,
    most: u32,
    made: u32,
    waits: ExponentialBackoff,
    /// Whether an attempt may have been carried out without an answer.
    unknown: bool,
    /// Whether the bytes of an attempt were damaged in transit.
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
            // The elapsed time is measured here, by a clock that tests can pause.
            .with_max_elapsed_time(None)
            .build();
        Self { retry, operation, key, limit, left, most, made: 0, waits, unknown: false, damaged: false }
    }

    /// Makes one attempt; `None` when another attempt must follow.
    async fn attempt<T: Send>(&mut self, work: impl Future<Output = Result<T>> + Send) -> Result<Option<T>> {
        attempts::note();
        self.made += 1;
        if self.made > 1 {
            self.retry.metrics.record_retry(metric_operation(self.operation), self.retry.label);
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

    /// Waits for the next attempt, or returns the error when no attempt follows.
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
                if let Some(probe) = breaker.unanswered(began, wait.is_none()) {
                    drop(self.retry.probe(probe).await);
                }
            }
            ErrorKind::Precondition | ErrorKind::Integrity | ErrorKind::Denied | ErrorKind::Throttled => {
                self.damaged |= error.kind == ErrorKind::Integrity;
                breaker.answered();
            }
            // These errors may arise without a request to the backend.
            ErrorKind::Invalid
            | ErrorKind::Missing
            | ErrorKind::NoSpace
            | ErrorKind::QuotaExceeded
            | ErrorKind::Abandoned
            | ErrorKind::Io => {}
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

    /// Tells whether the operation uses objects, and is no probe and no signed URL.
    const fn is_command(&self) -> bool {
        !matches!(self.operation, Operation::Probe | Operation::Sign)
    }

    /// Tells whether another attempt may help.
    const fn may_pass(&self, error: &Error) -> bool {
        match error.kind {
            ErrorKind::Unavailable | ErrorKind::Throttled => true,
            // The bytes may have been damaged in transit.
            ErrorKind::Integrity => matches!(self.operation, Operation::Store | Operation::Copy | Operation::Retrieve),
            ErrorKind::Invalid
            | ErrorKind::Precondition
            | ErrorKind::Missing
            | ErrorKind::NoSpace
            | ErrorKind::QuotaExceeded
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

    /// Adds to the last error how often the operation was tried, where a retry could have helped or did.
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

/// The largest number of keys in one attempt: a page of Cloud Storage and of S3.
const PIECE: usize = 1000;

/// Waits for an answer, at most as long as the limit.
async fn within<T>(
    limit: Duration,
    operation: Operation,
    key: Option<&Key>,
    work: impl Future<Output = Result<T>> + Send,
) -> Result<T> {
    timeout(limit, work).await.unwrap_or_else(|_| {
        let why = format!("no answer within {limit:.0?}; check the network, or raise timeout_seconds");
        Err(Error::new(ErrorKind::Unavailable, operation, key, why))
    })
}

const fn metric_operation(operation: Operation) -> StorageOperation {
    match operation {
        Operation::Store => StorageOperation::Put,
        Operation::Copy => StorageOperation::Copy,
        Operation::Retrieve => StorageOperation::Get,
        Operation::Stat => StorageOperation::Stat,
        Operation::Delete => StorageOperation::Delete,
        Operation::Versions => StorageOperation::Versions,
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
        // A file may take any time: the backend itself bounds each wait without progress.
        let limit = object
            .payload
            .as_memory()
            .map(|bytes| self.options.timeout.saturating_add(Duration::from_secs(bytes.len() as u64 / SLOWEST)));
        let mut tries = self.begin(Operation::Store, Some(key), limit).await?;
        let error = loop {
            // Every attempt writes the same object with the same token, so an unconditional write can be repeated.
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
        self.confirm_own_write(&tries, key, &object.attributes, error).await
    }

    async fn get(&self, key: &Key, options: GetOptions) -> Result<Option<Object>> {
        // A large value may take any time. For a value that may come as a file, and for a part, which needs the whole
        // object, the backend itself bounds each wait without progress. Only the waits between attempts count against
        // the limit.
        let limit = (!options.spooled && options.range.is_none()).then_some(self.options.timeout);
        let tries = self.begin(Operation::Retrieve, Some(key), limit).await?;
        self.run(tries, || self.inner.get(key, options.clone())).await
    }

    async fn copy(
        &self,
        source: &CopySource,
        key: &Key,
        attributes: &Attributes,
        options: &PutOptions,
    ) -> Result<Option<Attributes>> {
        // A store that copies by itself answers after it has moved the bytes. Where the store cannot, they are read and
        // written.
        let moved = attributes.stored_size.saturating_mul(2);
        let limit = self.options.timeout.saturating_add(Duration::from_secs(moved / SLOWEST));
        let mut tries = self.begin(Operation::Copy, Some(key), Some(limit)).await?;
        let outcome = loop {
            match tries.attempt(self.inner.copy(source, key, attributes, options)).await {
                Ok(Some(outcome)) => break Ok(outcome),
                Ok(None) => {}
                Err(error) => break Err(error),
            }
        };
        let fixed = options.condition != Condition::Always || source.key == *key;
        let (error, source_changed) = match outcome {
            // An earlier attempt of a copy onto itself has changed the state that was named.
            Ok(None) if tries.unknown && source.key == *key => {
                let why = "the object has changed since that state; stat it and decide again";
                (Error::new(ErrorKind::Precondition, Operation::Copy, Some(key), why), true)
            }
            Err(error) if fixed && tries.unknown && error.kind != ErrorKind::Abandoned => (error, false),
            outcome => return outcome,
        };
        match self.confirm_own_write(&tries, key, attributes, error).await {
            Err(error) if source_changed && error.kind == ErrorKind::Precondition => Ok(None),
            confirmed => confirmed.map(Some).map_err(|error| error.during(Operation::Copy)),
        }
    }

    async fn stat(&self, key: &Key) -> Result<Option<Attributes>> {
        let tries = self.begin(Operation::Stat, Some(key), Some(self.options.timeout)).await?;
        self.run(tries, || self.inner.stat(key)).await
    }

    async fn versions(&self, key: &Key, request: &VersionsRequest) -> Result<Versions> {
        // An object may have many versions. The backend bounds their number and each wait without progress.
        let tries = self.begin(Operation::Versions, Some(key), None).await?;
        self.run(tries, || self.inner.versions(key, request)).await
    }

    async fn delete(&self, key: &Key, options: &DeleteOptions) -> Result<Removal> {
        let tries = self.begin(Operation::Delete, Some(key), Some(self.options.timeout)).await?;
        self.run(tries, || self.inner.delete(key, options)).await
    }

    async fn list(&self, page: &Page) -> Result<Listing> {
        // One attempt lists one piece of the page. A large bucket would exceed the limit of an attempt otherwise.
        let (mut page, mut found) = (page.clone(), Listing::default());
        let wanted = page.limit.unwrap_or(usize::MAX);
        loop {
            page.limit = Some(PIECE.min(wanted - found.entries.len()));
            let tries = self.begin(Operation::List, None, Some(self.options.timeout)).await?;
            let piece = self.run(tries, || self.inner.list(&page)).await?;
            let last = piece.entries.last().map(|entry| entry.key.as_str().to_owned());
            if last.is_some() && last <= page.start_after {
                let why = format!("{} repeats keys in its listing; check the endpoint that answers", self.inner);
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
        // While the breaker is open, this is the breaker's own probe, if one is due.
        if let Admission::Probe(probe) = self.breaker.admit() {
            return self.probe(probe).await;
        }
        let tries = self.begin(Operation::Probe, None, Some(self.options.timeout)).await?;
        self.run(tries, || self.inner.probe()).await
    }

    fn validate(&self, key: &Key, attributes: &Attributes) -> Result<()> {
        self.inner.validate(key, attributes)
    }

    async fn sign(&self, key: &Key, grant: &Grant) -> Result<String> {
        // Signing sends no request to the bucket, so it is not retried and no answer for the breaker. It may ask a key
        // service.
        within(self.options.timeout, Operation::Sign, Some(key), self.inner.sign(key, grant)).await
    }
}
