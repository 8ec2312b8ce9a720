//! The queues of commands that the worker should consume and does not: they are missing until a trial brings them back.

use std::collections::{BTreeMap, BTreeSet};
use std::fmt;
use std::sync::Arc;
use std::time::Duration;

use futures_util::future::BoxFuture;
use tokio::time::Instant;

use crate::broker::{BrokerSession, ConsumeError, Consumer, Error, ErrorKind, Look, OpenSession, QueueJoiner};
use crate::telemetry::ComponentState;

/// How long a queue may be back before that is noticed, and the wait before the first trial. A look costs one channel.
const LOOK_AGAIN: Duration = Duration::from_secs(5);
/// The longest wait between two trials of a queue that gives no consumer: each one costs a session and stays in the queue's log.
const LONGEST_WAIT: Duration = Duration::from_secs(60);

/// Why a queue is not consumed.
#[derive(Clone, Debug)]
enum Missing {
    /// A look says that its node is down.
    Down(Error),
    /// It is there, but it gave no consumer, as a quorum queue without a majority. Only trying tells, and costs the session.
    Stalled(Error),
    /// The broker ended its consumer: it was deleted, or its node went down.
    Cancelled,
    /// It is new, and was not tried yet.
    Added,
}

impl fmt::Display for Missing {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Down(error) | Self::Stalled(error) => error.fmt(f),
            Self::Cancelled => f.write_str("the broker ended its consumer"),
            Self::Added => f.write_str("it is new, and is being looked for"),
        }
    }
}

/// The consumed queues that are missing, with the reason; known beyond a session.
#[derive(Debug, Default)]
pub(in crate::worker) struct ConsumedQueues {
    missing: BTreeMap<String, Missing>,
    /// How many are to be consumed.
    wanted: usize,
    /// Those with a trial under way.
    trying: BTreeSet<String>,
    /// When the broker last ended the consumer of a queue.
    cancelled: BTreeMap<String, Instant>,
}

/// What a trial ended with: the queue has a consumer again, or gives none after all, and the session is lost.
#[derive(Debug)]
pub(in crate::worker) struct Rejoin {
    pub(in crate::worker) queue: String,
    pub(in crate::worker) consumer: Result<(), Error>,
}

impl ConsumedQueues {
    /// Begins to consume, without the queues that are down or gave no consumer, as long as another is there.
    ///
    /// When all others are down or stalled, the stalled ones are tried: that holds up nobody else.
    ///
    /// # Errors
    ///
    /// Whatever the broker answers. A queue that gives no consumer costs the session and is left out of the next one.
    pub(in crate::worker) async fn consume(
        &mut self,
        session: &dyn BrokerSession,
        queues: &[String],
        prefetch: u16,
        tag_prefix: &str,
    ) -> Result<Box<dyn Consumer>, Error> {
        self.wanted = queues.len();
        self.missing.retain(|_, missing| matches!(missing, Missing::Stalled(_)));
        let wanted: Vec<String> = queues.iter().filter(|queue| !self.missing.contains_key(*queue)).cloned().collect();
        let mut begun = None;
        if !wanted.is_empty() {
            begun = Some(session.consume(&wanted, prefetch, tag_prefix).await);
        }
        let are_down = |error: &ConsumeError| error.stalled.is_none() && error.error.kind() == ErrorKind::Down;
        let begun = match begun {
            Some(Err(error)) if !are_down(&error) || self.missing.is_empty() => Err(error),
            Some(Ok(begun)) => Ok(begun),
            None | Some(Err(_)) => {
                self.missing.clear();
                session.consume(queues, prefetch, tag_prefix).await
            }
        };
        match begun {
            Ok(consumer) => {
                let down = consumer.down().iter();
                self.missing.extend(down.map(|(queue, error)| (queue.clone(), Missing::Down(error.clone()))));
                Ok(consumer)
            }
            Err(ConsumeError { stalled, error }) => {
                self.missing.extend(stalled.map(|queue| (queue, Missing::Stalled(error.clone()))));
                Err(error)
            }
        }
    }

    /// Says how the consumed queues stand.
    pub(in crate::worker) fn condition(&self) -> ComponentState {
        if self.missing.is_empty() {
            return ComponentState::Ready;
        }
        let faults = self.missing.iter().map(|(queue, missing)| format!("queue '{queue}' is down: {missing}"));
        let reason = format!("{}; it is tried again and again", faults.collect::<Vec<_>>().join("; "));
        if self.missing.len() < self.wanted {
            ComponentState::Degraded(reason)
        } else {
            ComponentState::Unready(format!("no queue is consumed: {reason}"))
        }
    }

    /// Notes that the broker ended the consumer of a queue, and returns the trial that brings it back; `None` where one is under way.
    ///
    /// It begins at once, unless that has just happened: what is published to a queue that was deleted is lost until it is made anew.
    pub(in crate::worker) fn cancelled(
        &mut self,
        queue: &str,
        session: &OpenSession,
        joiner: &Arc<dyn QueueJoiner>,
    ) -> Option<BoxFuture<'static, Rejoin>> {
        self.missing.insert(queue.to_owned(), Missing::Cancelled);
        let before = self.cancelled.insert(queue.to_owned(), Instant::now());
        let is_first = before.is_none_or(|before| before.elapsed() > LONGEST_WAIT);
        let wait = if is_first { Duration::ZERO } else { LOOK_AGAIN };
        self.try_once(queue, wait, session, joiner)
    }

    /// Has a further queue consumed, and returns the trial that brings it; `None` where one is under way.
    pub(in crate::worker) fn add(
        &mut self,
        queue: &str,
        session: &OpenSession,
        joiner: &Arc<dyn QueueJoiner>,
    ) -> Option<BoxFuture<'static, Rejoin>> {
        self.wanted += 1;
        self.missing.insert(queue.to_owned(), Missing::Added);
        self.try_once(queue, Duration::ZERO, session, joiner)
    }

    /// Returns the trial of a queue that has none.
    fn try_once(
        &mut self,
        queue: &str,
        wait: Duration,
        session: &OpenSession,
        joiner: &Arc<dyn QueueJoiner>,
    ) -> Option<BoxFuture<'static, Rejoin>> {
        self.trying.insert(queue.to_owned()).then(|| self.trial(queue, wait, session, joiner))
    }

    /// Forgets a queue that is not to be consumed any more.
    pub(in crate::worker) fn forget(&mut self, queue: &str) {
        self.wanted = self.wanted.saturating_sub(1);
        self.missing.remove(queue);
    }

    /// Returns one trial for each missing queue. Each lasts until the queue is consumed in this session again.
    pub(in crate::worker) fn trials(
        &mut self,
        session: &OpenSession,
        joiner: &Arc<dyn QueueJoiner>,
    ) -> Vec<BoxFuture<'static, Rejoin>> {
        self.trying = self.missing.keys().cloned().collect();
        self.missing.keys().map(|queue| self.trial(queue, LOOK_AGAIN, session, joiner)).collect()
    }

    fn trial(
        &self,
        queue: &str,
        wait: Duration,
        session: &OpenSession,
        joiner: &Arc<dyn QueueJoiner>,
    ) -> BoxFuture<'static, Rejoin> {
        let trial = QueueTrial {
            queue: queue.to_owned(),
            is_stalled: matches!(self.missing.get(queue), Some(Missing::Stalled(_))),
            wait,
            session: session.share(),
            joiner: Arc::clone(joiner),
        };
        Box::pin(trial.run())
    }

    /// Notes what came of a trial, and returns the queue that is to be joined; `None` where it is not to be consumed any more.
    ///
    /// # Errors
    ///
    /// Why the session is lost; a queue that gives no consumer is left out of the next one.
    pub(in crate::worker) fn rejoin(&mut self, Rejoin { queue, consumer }: Rejoin) -> Result<Option<String>, String> {
        self.trying.remove(&queue);
        match consumer {
            Ok(()) => {
                tracing::info!(queue, "consumed again");
                Ok(self.missing.remove(&queue).map(|_| queue))
            }
            Err(error) => {
                let reason = error.to_string();
                if error.kind() == ErrorKind::Down && self.missing.contains_key(&queue) {
                    self.missing.insert(queue, Missing::Stalled(error));
                }
                Err(reason)
            }
        }
    }
}

/// The trial of one missing queue.
struct QueueTrial {
    queue: String,
    is_stalled: bool,
    /// The wait before the first look.
    wait: Duration,
    session: Arc<dyn BrokerSession>,
    joiner: Arc<dyn QueueJoiner>,
}

impl QueueTrial {
    /// Looks at the queue again and again, and has it consumed once it is there.
    ///
    /// A queue that gave no consumer is first tried, less and less often, in a session of its own, which is spent on it. What such
    /// a trial asks of the queue may be done when nobody waits for it any more, and count as another redelivery.
    async fn run(self) -> Rejoin {
        let Self { queue, mut is_stalled, mut wait, session, joiner } = self;
        loop {
            tokio::time::sleep(wait).await;
            wait = wait.max(LOOK_AGAIN);
            match session.look(&queue).await {
                Ok(Look::Present { .. }) => {}
                Ok(Look::Down(_)) => continue,
                // Deleted meanwhile, as one does with a queue that has lost its majority: it is made anew.
                Ok(Look::Missing) => is_stalled = false,
                Err(error) => {
                    tracing::debug!(queue, %error, "looking at a queue to be consumed");
                    continue;
                }
            }
            if is_stalled {
                if let Err(error) = session.try_consumer(&queue).await {
                    tracing::debug!(queue, %error, "trying a queue to be consumed");
                    wait = wait.saturating_mul(2).min(LONGEST_WAIT);
                    continue;
                }
                is_stalled = false;
            }
            match joiner.begin(&queue).await {
                // The node went down between the look and this.
                Err(ConsumeError { stalled: None, error }) if error.kind() == ErrorKind::Down => wait = LOOK_AGAIN,
                // It was made on a channel of its own, so this costs nothing but the time until the next attempt.
                Err(ConsumeError { stalled: None, error })
                    if matches!(error.kind(), ErrorKind::Denied | ErrorKind::Arguments) =>
                {
                    tracing::warn!(queue, %error, "a missing queue cannot be consumed");
                    wait = LONGEST_WAIT;
                }
                Err(ConsumeError { error, .. }) => return Rejoin { queue, consumer: Err(error) },
                Ok(()) => return Rejoin { queue, consumer: Ok(()) },
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn down() -> Error {
        Error::new(ErrorKind::Down, "no majority")
    }

    #[test]
    fn a_missing_queue_is_named_until_it_has_a_consumer() {
        let mut queues = ConsumedQueues { wanted: 3, ..ConsumedQueues::default() };
        assert_eq!(queues.condition(), ComponentState::Ready);
        queues.missing.insert("b".to_owned(), Missing::Down(down()));
        queues.missing.insert("a".to_owned(), Missing::Stalled(down()));
        let ComponentState::Degraded(reason) = queues.condition() else { panic!("{queues:?}") };
        assert!(reason.starts_with("queue 'a' is down") && reason.contains("queue 'b' is down"), "{reason}");
        queues.missing.insert("c".to_owned(), Missing::Cancelled);
        let ComponentState::Unready(reason) = queues.condition() else { panic!("{queues:?}") };
        assert!(reason.starts_with("no queue is consumed") && reason.contains("the broker ended"), "{reason}");
    }

    #[test]
    fn a_queue_that_costs_the_session_is_left_out_of_the_next() {
        let mut queues = ConsumedQueues::default();
        queues.missing.insert("a".to_owned(), Missing::Down(down()));
        let reason = queues.rejoin(Rejoin { queue: "a".to_owned(), consumer: Err(down()) }).unwrap_err();
        assert!(reason.contains("no majority"), "{reason}");
        assert!(matches!(queues.missing["a"], Missing::Stalled(_)));
        // A session that is lost for another reason says nothing of the queue.
        queues.missing.insert("b".to_owned(), Missing::Down(down()));
        queues.rejoin(Rejoin { queue: "b".to_owned(), consumer: Err(Error::lost("cut")) }).unwrap_err();
        assert!(matches!(queues.missing["b"], Missing::Down(_)));
    }
}
