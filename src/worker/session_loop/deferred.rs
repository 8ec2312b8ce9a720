//! Work that the session loop waits for beside everything else: a message is searched or read, a task waits for a run
//! elsewhere, a delay queue is looked for.

use std::sync::Arc;
use std::time::Duration;

use jiff::Timestamp;

use super::RunningCommand;
use crate::broker::{BrokerSession, Delivery, ErrorKind};
use crate::celery::body;
use crate::celery::message::{Address, Message, Publication};
use crate::celery::request::Unreadable;
use crate::commands::{Budget, CommandError, Held, Keys};
use crate::worker::WallClock;
use crate::worker::delivery::parking::ParkingResult;
use crate::worker::delivery::pending_ack::{PendingAck, Weight};
use crate::worker::delivery::role::Role;
use crate::worker::execution::answer::{Answer, Outcome};
use crate::worker::execution::settlement::Settlement;
use crate::worker::intake::policy::TaskContext;
use crate::worker::intake::reader::{MessageReader, OpenedMessage, SMALL};
use crate::worker::invalidations::Stale;

/// How long what hangs on an unreachable queue waits before it is tried again.
pub(super) const PATIENCE: Duration = Duration::from_secs(1);
/// How often it is looked whether a run elsewhere is over.
pub(super) const GLANCE: Duration = Duration::from_millis(250);
/// How often it is looked whether a bucket is reachable again.
pub(super) const OUTAGE_LOOK: Duration = Duration::from_secs(1);

/// What came of deferred work.
#[derive(Debug)]
pub(super) enum Deferred {
    /// This is owed.
    Owes(Box<PendingAck>),
    /// The answer of a command was composed.
    Composed(Box<PendingAck>),
    /// Look at the task that rests under this number again.
    Reconsider(u64),
    /// This is ordered by these keys; `None` when it must be read to know them.
    Found(Box<Delivery>, Option<Keys>),
    /// This was read.
    Opened(Box<Delivery>, Box<Read>),
    /// A command runs again by this way; without one it fails.
    Retried(Box<RetryingCommand>, Option<Address>),
    /// What came of parking.
    Parked(ParkingResult),
    /// Nobody will ever take this part of it.
    Refused(Box<PendingAck>, Role, String),
    /// The session is lost.
    Lost(String),
}

/// A command that is to run again, while its way through the delay queues is looked for.
#[derive(Debug)]
pub(super) struct RetryingCommand {
    pub(super) running: RunningCommand,
    pub(super) error: CommandError,
    pub(super) stale: Stale,
    pub(super) next: Message,
    pub(super) eta: Timestamp,
}

/// A command that has ended, and whose answer is to be composed.
#[derive(Debug)]
pub(super) struct AnswerToCompose {
    pub(super) context: TaskContext,
    pub(super) answer: Answer,
    pub(super) stale: Stale,
    /// What counts on the budget until the answer has arrived.
    pub(super) held: Vec<Weight>,
}

impl AnswerToCompose {
    /// Tells whether composing takes its time.
    pub(super) fn is_large(&self) -> bool {
        matches!(&self.answer.outcome, Outcome::Success(result) if result.len() > SMALL)
    }

    /// Composes what the end of the command owes.
    pub(super) fn compose(self, settlement: &Settlement) -> PendingAck {
        let mut pending = settlement.close_answered(self.context, self.answer);
        pending.stale = self.stale;
        pending.weights.extend(self.held);
        pending
    }
}

/// Composes a large answer: a serializer, a result backend and what follows the command may each read the whole result.
pub(super) async fn compose(settlement: Arc<Settlement>, ended: AnswerToCompose) -> Deferred {
    match tokio::task::spawn_blocking(move || ended.compose(&settlement)).await {
        Ok(pending) => Deferred::Composed(Box::new(pending)),
        Err(error) => Deferred::Lost(format!("composing an answer: {error}")),
    }
}

/// Searches a message for the keys by which it is ordered.
pub(super) async fn search(reader: MessageReader, budget: Budget, delivery: Box<Delivery>) -> Deferred {
    // What is in another encoding is decoded whole.
    let need = reader.need(&delivery.message, delivery.message.body.len() as u64);
    let held = if body::is_utf8(&delivery.message) { None } else { Some(budget.begin_when_free(need).await) };
    let searched = tokio::task::spawn_blocking(move || {
        let keys = reader.search(&delivery.message);
        drop(held);
        (keys, delivery)
    });
    match searched.await {
        Ok((keys, delivery)) => Deferred::Found(delivery, keys),
        Err(error) => Deferred::Lost(format!("searching a message for its keys: {error}")),
    }
}

/// Reads a message that tells nothing before it is read.
pub(super) async fn open(reader: MessageReader, budget: Budget, delivery: Box<Delivery>) -> Deferred {
    let need = reader.need(&delivery.message, delivery.message.body.len() as u64);
    let mut held = budget.begin_when_free(need).await;
    let opened = tokio::task::spawn_blocking(move || {
        // The whole message is read in one step, not first its text and then its values as in `Readings`: the room for both was
        // taken above, and messages of this kind are rare.
        let opened = reader.open(&delivery.message, &delivery.origin);
        held.end_work(2 * delivery.message.body.len() as u64);
        (delivery, Read { opened, held })
    });
    match opened.await {
        Ok((delivery, read)) => Deferred::Opened(delivery, Box::new(read)),
        Err(error) => Deferred::Lost(format!("reading a message: {error}")),
    }
}

/// What was read of a message, and what it takes.
#[derive(Debug)]
pub(super) struct Read {
    pub(super) opened: Result<OpenedMessage, Unreadable>,
    pub(super) held: Held,
}

/// Lets a task rest for so long.
pub(super) async fn rest(number: u64, time: Duration) -> Deferred {
    tokio::time::sleep(time).await;
    Deferred::Reconsider(number)
}

/// Finds out where a message must be published to come back to `queue` at its eta.
pub(super) async fn delay(
    session: Arc<dyn BrokerSession>,
    clock: WallClock,
    mut pending: PendingAck,
    message: Message,
    queue: String,
    eta: Timestamp,
) -> Deferred {
    loop {
        let remaining = Duration::try_from(eta.duration_since(clock.now())).unwrap_or_default();
        match session.delay_address(&queue, remaining).await {
            Ok(address) => {
                pending.first.push((Role::Delay, Publication { address, message }));
                return Deferred::Owes(Box::new(pending));
            }
            Err(error) if error.kind() == ErrorKind::Down => {
                tracing::warn!(%error, "delay queue is down; held back");
                tokio::time::sleep(PATIENCE).await;
            }
            Err(error) if error.is_permanent() => {
                return Deferred::Refused(Box::new(pending), Role::Delay, error.to_string());
            }
            Err(error) => return Deferred::Lost(error.to_string()),
        }
    }
}

/// Finds out where a message must be published to come back at its eta.
pub(super) async fn find_way(
    session: Arc<dyn BrokerSession>,
    clock: WallClock,
    command: Box<RetryingCommand>,
) -> Deferred {
    loop {
        let remaining = Duration::try_from(command.eta.duration_since(clock.now())).unwrap_or_default();
        match session.delay_address(&command.running.context.origin.queue, remaining).await {
            Ok(address) => return Deferred::Retried(command, Some(address)),
            Err(error) if error.kind() == ErrorKind::Down => {
                tracing::warn!(%error, "delay queue is down; held back");
                tokio::time::sleep(PATIENCE).await;
            }
            Err(error) if error.is_permanent() => {
                tracing::warn!(%error, "a command cannot wait in the broker, and fails");
                return Deferred::Retried(command, None);
            }
            Err(error) => return Deferred::Lost(error.to_string()),
        }
    }
}
