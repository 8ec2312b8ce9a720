//! What is done later: a delivery waits for a delay queue, or for a queue that is missing or down; a task waits for a run
//! elsewhere.

use std::sync::Arc;
use std::time::Duration;

use jiff::Timestamp;

use crate::broker::{BrokerSession, Delivery, ErrorKind, Look, Presence, QueueSpec, QueueType};
use crate::celery::body;
use crate::celery::message::{Address, Message, Publication};
use crate::celery::request::Unreadable;
use crate::commands::{Budget, Held, Keys};
use crate::worker::WallClock;
use crate::worker::delivery::parking::ParkingResult;
use crate::worker::delivery::pending_ack::{PendingAck, Role};
use crate::worker::intake::policy::ReadyTask;
use crate::worker::intake::reader::{Opened, Reader};
use crate::worker::own_queues::OwnQueue;

/// How long what hangs on an unreachable queue waits before it is tried again.
pub(in crate::worker) const PATIENCE: Duration = Duration::from_secs(1);
/// How long what a queue refuses waits at most before it is tried again: the queue may be read at any time.
const LONGEST_REFUSAL: Duration = Duration::from_secs(5);
/// How long something waits at most before it is tried again.
const LONGEST_HOLD: Duration = Duration::from_secs(60);
/// How long it waits at least: whatever parks it may be at work.
const SHORTEST: Duration = Duration::from_millis(100);
/// How often it is looked whether a run elsewhere is over.
const GLANCE: Duration = Duration::from_millis(250);
/// How often a follow-up that comes back is tried again with its queue in place.
const MAX_TRIES: u8 = 3;

/// What came of deferred work.
#[derive(Debug)]
pub(in crate::worker) enum Deferred {
    /// Try these again.
    Again(Vec<PendingAck>),
    /// Look at this one again: somebody else ran it.
    Reconsider(Box<ReadyTask>),
    /// This is ordered by these keys; `None` when it must be read to know them.
    Found(Box<Delivery>, Option<Keys>),
    /// This was read.
    Opened(Box<Delivery>, Box<Read>),
    /// The queue at this address is missing or down, and only somebody else can make it.
    Missing(Box<PendingAck>, Address),
    /// What came of parking.
    Parked(ParkingResult),
    /// Nobody will ever take this part of it.
    Refused(Box<PendingAck>, Role, String),
    /// One of our own queues, to which something of these goes, is away or was made.
    Own(OwnQueue, Presence, Vec<PendingAck>),
    /// Nobody listens for their events.
    Unheard(Vec<PendingAck>),
    /// The session is lost.
    Lost(String),
}

/// Waits a while with something the broker cannot take now, longer each time, and longest where it did not even say so, since each
/// try may have been taken all the same. What may be parked after `patience` waits no longer than that.
pub(in crate::worker) async fn hold(mut pending: PendingAck, patience: Option<Duration>) -> Deferred {
    let (times, longest) =
        if pending.nacked > 0 { (pending.nacked, LONGEST_REFUSAL) } else { (pending.unconfirmed, LONGEST_HOLD) };
    let wait = PATIENCE.saturating_mul(2_u32.saturating_pow(u32::from(times.saturating_sub(1)))).min(longest);
    let wait = patience.map_or(wait, |patience| wait.min(patience.saturating_sub(pending.stalled_for()).max(SHORTEST)));
    tokio::time::sleep(wait).await;
    if pending.nacked > 0 {
        pending.waited += wait;
    }
    Deferred::Again(vec![pending])
}

/// Waits a while for one of our own queues.
pub(in crate::worker) async fn wait(pending_acks: Vec<PendingAck>) -> Deferred {
    tokio::time::sleep(PATIENCE).await;
    Deferred::Again(pending_acks)
}

/// Searches a message for the keys by which it is ordered.
pub(in crate::worker) async fn search(reader: Reader, budget: Budget, delivery: Box<Delivery>) -> Deferred {
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
pub(in crate::worker) async fn open(reader: Reader, budget: Budget, delivery: Box<Delivery>) -> Deferred {
    let need = reader.need(&delivery.message, delivery.message.body.len() as u64);
    let mut held = budget.begin_when_free(need).await;
    let opened = tokio::task::spawn_blocking(move || {
        // Nothing else waits for more in the middle of its work here, and this is rare.
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
pub(in crate::worker) struct Read {
    pub(in crate::worker) opened: Result<Opened, Unreadable>,
    pub(in crate::worker) held: Held,
}

/// Waits a little with a task that somebody else runs.
pub(in crate::worker) async fn stand_by(task: Box<ReadyTask>) -> Deferred {
    tokio::time::sleep(GLANCE).await;
    Deferred::Reconsider(task)
}

/// Finds out where a message must be published to come back to `queue` at its eta.
pub(in crate::worker) async fn park(
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
                pending.first.push((Role::Park, Publication { address, message }));
                return Deferred::Again(vec![pending]);
            }
            Err(error) if error.kind() == ErrorKind::Down => {
                tracing::warn!(%error, "delay queue is down; held back");
                tokio::time::sleep(PATIENCE).await;
            }
            Err(error) if error.is_permanent() => {
                return Deferred::Refused(Box::new(pending), Role::Park, error.to_string());
            }
            Err(error) => return Deferred::Lost(error.to_string()),
        }
    }
}

/// A publication came back: makes its queue where that is ours to do. A follow-up whose queue only somebody else can make is refused
/// unless it may be parked.
pub(in crate::worker) async fn see_to_queue(
    session: Arc<dyn BrokerSession>,
    mut pending: PendingAck,
    role: Role,
    queue_type: QueueType,
    may_park: bool,
) -> Deferred {
    let Some(Address { exchange, routing_key }) =
        pending.first.first().map(|(_, publication)| publication.address.clone())
    else {
        return Deferred::Again(vec![pending]);
    };
    if role == Role::FollowUp && (!exchange.is_empty() || pending.tries > MAX_TRIES) {
        // A queue of that name would not be bound to a named exchange.
        let words = format!("312 NO_ROUTE - exchange {exchange:?} routes {routing_key:?} to no queue");
        return Deferred::Refused(Box::new(pending), role, words);
    }
    let presence = match role {
        Role::Dead => OwnQueue::Dead.ensure(&*session).await,
        Role::FollowUp => session.ensure_queue(&QueueSpec::durable(routing_key.as_str(), queue_type)).await,
        // The next session makes the delay queue again, and the message comes back through its delivery.
        Role::Park | Role::Reply | Role::Notice | Role::Event => {
            return Deferred::Lost("a delay queue is gone".to_owned());
        }
    };
    if matches!(presence, Ok(Presence::Created | Presence::Present)) {
        pending.tries = pending.tries.saturating_add(1);
    }
    match presence {
        Ok(presence @ (Presence::Created | Presence::Down(_) | Presence::Denied(_))) if role == Role::Dead => {
            return Deferred::Own(OwnQueue::Dead, presence, vec![pending]);
        }
        Ok(Presence::Created) => {}
        // It is there and took nothing all the same: perhaps it came only now.
        Ok(Presence::Present) => tokio::time::sleep(PATIENCE).await,
        Ok(Presence::Denied(words)) if role == Role::FollowUp && !may_park => {
            return Deferred::Refused(Box::new(pending), role, words);
        }
        Ok(Presence::Down(_) | Presence::Denied(_)) => {
            tokio::time::sleep(PATIENCE).await;
            return Deferred::Missing(Box::new(pending), Address { exchange, routing_key });
        }
        Err(error) => return Deferred::Lost(error.to_string()),
    }
    Deferred::Again(vec![pending])
}

/// Events came back: with their queue down they wait, with nobody bound nobody listens.
pub(in crate::worker) async fn look_for_listeners(
    session: Arc<dyn BrokerSession>,
    pending_acks: Vec<PendingAck>,
) -> Deferred {
    match session.look(OwnQueue::Events.name()).await {
        Ok(Look::Down(words)) => Deferred::Own(OwnQueue::Events, Presence::Down(words), pending_acks),
        Ok(_) => Deferred::Unheard(pending_acks),
        Err(error) => Deferred::Lost(error.to_string()),
    }
}
