//! Probes the bucket regularly, so that `/readyz` is right about the bucket also while no command runs.

use std::time::Duration;

use super::bucket::Bucket;
use super::failure::Failure;
use super::stack;
use crate::storage::{Engine, Error, ErrorKind, HealthStatus};
use crate::telemetry::{Component, ComponentState, Readiness};

/// The time between two probes of a bucket that works, unless its breaker opens or a command is refused.
const READY_INTERVAL: Duration = Duration::from_secs(30);

/// The time between two probes of a bucket that does not work; an open breaker passes only those probes that are due.
const TROUBLE_INTERVAL: Duration = Duration::from_secs(1);

/// The state of the bucket.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum BucketState {
    /// The bucket can be used.
    Ready,
    /// The bucket cannot be reached.
    Away,
    /// Another server answers in place of the bucket.
    OtherServer,
    /// The bucket refuses the probe, which only a person can repair.
    Refused,
    /// The bucket answers the probe, but refuses all commands.
    RefusesCommands,
}

/// The task that probes one bucket and reports its state to [`Readiness`] and to the engine.
#[derive(Debug)]
pub(crate) struct BucketMonitor {
    bucket: Bucket,
    /// The engine over the bucket.
    engine: Engine,
    /// Tells whether writes go to the local overlay while the bucket cannot be reached.
    fallback: bool,
    readiness: Readiness,
    /// The state that was reported last.
    reported: Option<BucketState>,
}

impl BucketMonitor {
    pub(crate) fn new(bucket: Bucket, engine: Engine, readiness: Readiness) -> Self {
        let fallback = engine.fallback().is_some();
        Self { bucket, engine, fallback, readiness, reported: None }
    }

    /// Probes the bucket for the first time; fails when only a person can make the bucket usable.
    pub(crate) async fn first(&mut self) -> Result<(), Failure> {
        match stack::look(&self.bucket, self.fallback).await? {
            None => self.report(BucketState::Ready, ""),
            Some(stack::Away { words, unexpected_answer: false }) => self.report(BucketState::Away, &words),
            Some(stack::Away { words, unexpected_answer: true }) => self.report(BucketState::OtherServer, &words),
        };
        Ok(())
    }

    /// Probes the bucket until the task is dropped.
    pub(crate) async fn watch(mut self) -> ! {
        let mut refusals = self.bucket.refusals.subscribe();
        loop {
            let state = match self.bucket.backend.probe().await {
                Ok(_) => match self.bucket.refusals.all() {
                    None => self.report(BucketState::Ready, ""),
                    Some(words) => self.report(BucketState::RefusesCommands, &words),
                },
                Err(error) => self.report(state_of(&error), error.message()),
            };
            // Many refused commands in a row must not cause more probes than this.
            tokio::time::sleep(TROUBLE_INTERVAL).await;
            if state == BucketState::Ready {
                tokio::select! {
                    () = tokio::time::sleep(READY_INTERVAL) => {}
                    () = self.bucket.breaker.opened() => {}
                    () = refusals.next() => {}
                }
            }
        }
    }

    /// Reports the state of the bucket when it has changed.
    ///
    /// The same state with another text is not reported: the texts of errors differ from probe to probe.
    fn report(&mut self, state: BucketState, words: &str) -> BucketState {
        if self.reported.replace(state) == Some(state) {
            return state;
        }
        let condition = match state {
            BucketState::Ready => ComponentState::Ready,
            BucketState::Away if self.fallback => {
                ComponentState::Degraded(format!("the bucket is away, entries wait on this machine: {words}"))
            }
            BucketState::Away => ComponentState::Unready(format!("the bucket is away: {words}")),
            BucketState::OtherServer if self.fallback => ComponentState::Degraded(format!(
                "something else answers for the bucket, entries wait on this machine: {words}"
            )),
            BucketState::OtherServer => {
                ComponentState::Unready(format!("something else answers for the bucket: {words}"))
            }
            BucketState::Refused => ComponentState::Unready(words.to_owned()),
            BucketState::RefusesCommands => {
                ComponentState::Unready(format!("the bucket refuses every command: {words}"))
            }
        };
        self.engine.set_bucket_health(match condition {
            ComponentState::Ready => HealthStatus::Healthy,
            ComponentState::Degraded(_) => HealthStatus::Degraded,
            ComponentState::Unready(_) => HealthStatus::Unhealthy,
        });
        self.readiness.set(Component::Storage, condition);
        state
    }
}

fn state_of(error: &Error) -> BucketState {
    match error.kind {
        _ if error.is_unexpected_answer() => BucketState::OtherServer,
        ErrorKind::Unavailable | ErrorKind::Throttled => BucketState::Away,
        _ => BucketState::Refused,
    }
}
