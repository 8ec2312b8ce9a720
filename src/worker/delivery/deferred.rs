//! What is done later: a delivery waits for a delay queue, or for a queue that is missing or down; a task waits for a run
//! elsewhere.

use std::collections::BTreeMap;
use std::time::Duration;

use jiff::Timestamp;

use crate::broker::{
    BrokerOptions, Delay, Delivery, Error, ErrorKind, Look, Presence, QueueSpec, QueueType, Session, Topology,
};
use crate::celery::body;
use crate::celery::message::{Address, Message, Publication};
use crate::celery::request::Unreadable;
use crate::commands::{Budget, Held, Keys};
use crate::telemetry::{Component, ComponentState, Readiness};
use crate::worker::delivery::outbox::{PendingAck, Role};
use crate::worker::intake::policy::{DEAD_QUEUE, ReadyTask};
use crate::worker::intake::reader::{Opened, Reader};
use crate::worker::{METRICS_LENGTH, METRICS_QUEUE, note};

/// How long what hangs on an unreachable queue waits before it is tried again.
pub(in crate::worker) const PATIENCE: Duration = Duration::from_secs(1);
/// How long what a queue refuses waits at most before it is tried again: the queue may be read at any time.
const LONGEST_REFUSAL: Duration = Duration::from_secs(5);
/// How long something waits at most before it is tried again.
const LONGEST_HOLD: Duration = Duration::from_secs(60);
/// How long one of our own queues may be back before that is noticed.
const LOOK_AGAIN: Duration = Duration::from_secs(5);
/// How often it is looked whether a run elsewhere is over.
const GLANCE: Duration = Duration::from_millis(250);
/// How long a trial waits for a consumer, about as long as RabbitMQ itself: whenever the queue is back meanwhile, it is noticed.
const TRIAL: Duration = Duration::from_secs(60);
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
    /// Nobody will ever take this part of it.
    Refused(Box<PendingAck>, Role, String),
    /// Nobody listens for their events.
    Unheard(Vec<PendingAck>),
    /// The session is lost.
    Lost(String),
}

/// Looks again, after a while, at queues that were down or missing: says how our own stand, and returns one of those to be
/// consumed that can be.
pub(in crate::worker) async fn look_again(
    topology: Topology,
    readiness: Readiness,
    dead: bool,
    events: bool,
    consumed: Vec<String>,
) -> Option<String> {
    tokio::time::sleep(LOOK_AGAIN).await;
    for queue in consumed {
        match topology.look(&queue).await {
            Ok(Look::Present { .. }) => return Some(queue),
            // Deleted meanwhile: whoever wants it makes it again, and that need not be us.
            Ok(Look::Down(_) | Look::Missing) => {}
            Err(error) => tracing::debug!(queue, %error, "looking at a queue to be consumed"),
        }
    }
    let mut looked = Ok(());
    if dead {
        looked = note(&readiness, Component::DeadQueue, topology.ensure_dead().await);
    }
    if events && looked.is_ok() {
        looked = note(&readiness, Component::Events, topology.ensure_metrics(METRICS_LENGTH).await);
    }
    if let Err(error) = looked {
        tracing::debug!(%error, "looking at our own queues");
    }
    None
}

/// Tries, less and less often, to consume a queue that gave no consumer, and returns it once it gives one. A session of its
/// own is spent on each trial, and what a trial asks of the queue may be done when nobody waits for it any more, and count
/// as another redelivery.
pub(in crate::worker) async fn try_again(options: BrokerOptions, queue: String) -> String {
    let name = format!("{} trial", options.connection_name);
    let options = BrokerOptions { connection_name: name, timeout: TRIAL, ..options };
    let mut wait = LOOK_AGAIN;
    loop {
        tokio::time::sleep(wait).await;
        match gives_consumer(&options, &queue).await {
            Ok(()) => return queue,
            Err(error) => tracing::debug!(queue, %error, "trying a queue to be consumed"),
        }
        wait = wait.saturating_mul(2).min(LONGEST_HOLD);
    }
}

async fn gives_consumer(options: &BrokerOptions, queue: &str) -> Result<(), Error> {
    let session = Session::open(options).await?;
    session.consume(&[queue.to_owned()], &mut BTreeMap::new(), 1, "trial").await?;
    session.close().await;
    Ok(())
}

/// Waits a while with something the broker cannot take now, longer each time, and longest where it did not even say so, since each
/// try may have been taken all the same.
pub(in crate::worker) async fn hold(mut pending: PendingAck) -> Deferred {
    let (times, longest) =
        if pending.nacked > 0 { (pending.nacked, LONGEST_REFUSAL) } else { (pending.unconfirmed, LONGEST_HOLD) };
    let wait = PATIENCE.saturating_mul(2_u32.saturating_pow(u32::from(times.saturating_sub(1)))).min(longest);
    tokio::time::sleep(wait).await;
    if pending.nacked > 0 {
        pending.waited += wait;
    }
    Deferred::Again(vec![pending])
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
    delay: Delay,
    mut pending: PendingAck,
    message: Message,
    queue: String,
    eta: Timestamp,
) -> Deferred {
    loop {
        let remaining = Duration::try_from(eta.duration_since(Timestamp::now())).unwrap_or_default();
        match delay.address(&queue, remaining).await {
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

/// A publication came back: makes its queue where that is ours to do.
pub(in crate::worker) async fn see_to_queue(
    topology: Topology,
    readiness: Readiness,
    mut pending: PendingAck,
    role: Role,
    queue_type: QueueType,
) -> Deferred {
    let Some(Address { exchange, routing_key }) =
        pending.first.first().map(|(_, publication)| publication.address.clone())
    else {
        return Deferred::Again(vec![pending]);
    };
    pending.tries = pending.tries.saturating_add(1);
    if role == Role::FollowUp && (!exchange.is_empty() || pending.tries > MAX_TRIES) {
        // A queue of that name would not be bound to a named exchange.
        let words = format!("312 NO_ROUTE - exchange {exchange:?} routes {routing_key:?} to no queue");
        return Deferred::Refused(Box::new(pending), role, words);
    }
    let presence = match role {
        Role::Dead => topology.ensure_dead().await,
        Role::FollowUp => topology.ensure_queue(&QueueSpec::durable(routing_key, queue_type)).await,
        // The next session makes the delay queue again, and the message comes back through its delivery.
        Role::Park | Role::Reply | Role::Notice => return Deferred::Lost("a delay queue is gone".to_owned()),
    };
    match presence {
        Ok(Presence::Created) if role == Role::Dead => readiness.set(Component::DeadQueue, ComponentState::Ready),
        Ok(Presence::Created) => {}
        // It is there and took nothing all the same: perhaps it came only now.
        Ok(Presence::Present) => tokio::time::sleep(PATIENCE).await,
        Ok(Presence::Denied(words)) if role == Role::FollowUp => {
            return Deferred::Refused(Box::new(pending), role, words);
        }
        Ok(Presence::Down(words) | Presence::Denied(words)) => {
            if role == Role::Dead {
                readiness
                    .set(Component::DeadQueue, ComponentState::Degraded(format!("{DEAD_QUEUE}: {words}; held back")));
            }
            tokio::time::sleep(PATIENCE).await;
        }
        Err(error) => return Deferred::Lost(error.to_string()),
    }
    Deferred::Again(vec![pending])
}

/// Events came back: with their queue down they wait, with nobody bound nobody listens.
pub(in crate::worker) async fn look_for_listeners(
    topology: Topology,
    readiness: Readiness,
    pending_acks: Vec<PendingAck>,
) -> Deferred {
    match topology.look(METRICS_QUEUE).await {
        Ok(Look::Down(words)) => {
            readiness.set(Component::Events, ComponentState::Degraded(format!("{METRICS_QUEUE}: {words}; held back")));
            tokio::time::sleep(PATIENCE).await;
            Deferred::Again(pending_acks)
        }
        Ok(_) => {
            let why = format!("nobody is bound to {}: events go to nobody", crate::worker::events::EXCHANGE);
            readiness.set(Component::Events, ComponentState::Degraded(why));
            Deferred::Unheard(pending_acks)
        }
        Err(error) => Deferred::Lost(error.to_string()),
    }
}
