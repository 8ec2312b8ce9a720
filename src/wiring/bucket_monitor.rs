//! Keeps an eye on the bucket, so that `/readyz` tells the truth also while no command asks for anything.

use std::time::Duration;

use super::bucket::Bucket;
use super::failure::Failure;
use super::stack;
use crate::storage::{Error, ErrorKind};
use crate::telemetry::{Component, ComponentState, Readiness};

/// How long a bucket that answered is believed to be there, unless its breaker says otherwise.
const CALM: Duration = Duration::from_secs(30);

/// How soon one that did not is asked again. While its breaker is open, that sends a request only when one is due.
const ALERT: Duration = Duration::from_secs(1);

/// How the bucket stands; the words that come with it are those of the first answer of the kind.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum View {
    Ready,
    Away,
    /// Something answers that is not the bucket.
    Strange,
    Refused,
    /// It can be looked at, and everything else is refused.
    Useless,
}

/// Watches one bucket.
#[derive(Debug)]
pub(crate) struct BucketMonitor {
    bucket: Bucket,
    /// Writes land locally while the bucket is away.
    fallback: bool,
    readiness: Readiness,
    seen: Option<View>,
}

impl BucketMonitor {
    pub(crate) const fn new(bucket: Bucket, fallback: bool, readiness: Readiness) -> Self {
        Self { bucket, fallback, readiness, seen: None }
    }

    /// Looks for the first time; fails for a bucket that only a person can make usable.
    pub(crate) async fn first(&mut self) -> Result<(), Failure> {
        match stack::look(&self.bucket, self.fallback).await? {
            None => self.tell(View::Ready, ""),
            Some(stack::Away { words, senseless: false }) => self.tell(View::Away, &words),
            Some(stack::Away { words, senseless: true }) => self.tell(View::Strange, &words),
        };
        Ok(())
    }

    /// Watches from now on.
    pub(crate) async fn watch(mut self) -> ! {
        let mut doubts = self.bucket.refusals.listen();
        loop {
            let view = match self.bucket.backend.probe().await {
                Ok(_) => match self.bucket.refusals.all() {
                    None => self.tell(View::Ready, ""),
                    Some(words) => self.tell(View::Useless, &words),
                },
                Err(error) => self.tell(view(&error), error.message()),
            };
            // Commands may be refused one after another; they are not to have it asked more often than that.
            tokio::time::sleep(ALERT).await;
            if view == View::Ready {
                tokio::select! {
                    () = tokio::time::sleep(CALM) => {}
                    () = self.bucket.breaker.opened() => {}
                    () = doubts.next() => {}
                }
            }
        }
    }

    /// Says how the bucket stands, if that is news: what is said of one that is away differs from look to look.
    fn tell(&mut self, view: View, words: &str) -> View {
        if self.seen.replace(view) == Some(view) {
            return view;
        }
        let condition = match view {
            View::Ready => ComponentState::Ready,
            View::Away if self.fallback => {
                ComponentState::Degraded(format!("the bucket is away, entries wait on this machine: {words}"))
            }
            View::Away => ComponentState::Unready(format!("the bucket is away: {words}")),
            View::Strange if self.fallback => ComponentState::Degraded(format!(
                "something else answers for the bucket, entries wait on this machine: {words}"
            )),
            View::Strange => ComponentState::Unready(format!("something else answers for the bucket: {words}")),
            View::Refused => ComponentState::Unready(words.to_owned()),
            View::Useless => ComponentState::Unready(format!("the bucket refuses every command: {words}")),
        };
        self.readiness.set(Component::Storage, condition);
        view
    }
}

fn view(error: &Error) -> View {
    match error.kind {
        _ if error.is_senseless() => View::Strange,
        ErrorKind::Unavailable | ErrorKind::Throttled => View::Away,
        _ => View::Refused,
    }
}
