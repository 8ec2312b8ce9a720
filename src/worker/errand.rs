//! What a parcel waits for beside a confirmation: a delay queue, a queue that is missing or down.

use std::time::Duration;

use jiff::Timestamp;

use super::METRICS_QUEUE;
use super::desk::DEAD_QUEUE;
use super::outbox::{Parcel, Role};
use crate::broker::{Delay, ErrorKind, Look, Presence, QueueSpec, QueueType, Topology};
use crate::celery::message::{Message, Publication};

/// How long what hangs on an unreachable queue waits before it is tried again.
pub(super) const PATIENCE: Duration = Duration::from_secs(1);
/// How often a follow-up that comes back is tried again with its queue in place.
const MAX_TRIES: u8 = 3;

/// What came of an errand.
#[derive(Debug)]
pub(super) enum Errand {
    /// Try the parcel again.
    Again(Box<Parcel>),
    /// Nobody will ever take this part of it.
    Refused(Box<Parcel>, Role, String),
    /// Nobody listens for its event.
    Unheard(Box<Parcel>),
    /// The session is lost.
    Lost(String),
}

/// Finds out where a message must be published to come back to `queue` at its eta.
pub(super) async fn park(delay: Delay, mut parcel: Parcel, message: Message, queue: String, eta: Timestamp) -> Errand {
    loop {
        let remaining = Duration::try_from(eta.duration_since(Timestamp::now())).unwrap_or_default();
        match delay.address(&queue, remaining).await {
            Ok(address) => {
                parcel.first.push((Role::Park, Publication { address, message }));
                return Errand::Again(Box::new(parcel));
            }
            Err(error) if error.kind() == ErrorKind::Down => {
                tracing::warn!(%error, "delay queue is down; held back");
                tokio::time::sleep(PATIENCE).await;
            }
            Err(error) if error.is_permanent() => {
                return Errand::Refused(Box::new(parcel), Role::Park, error.to_string());
            }
            Err(error) => return Errand::Lost(error.to_string()),
        }
    }
}

/// A publication came back: makes its queue where that is ours to do.
pub(super) async fn see_to_queue(topology: Topology, mut parcel: Parcel, role: Role, queue_type: QueueType) -> Errand {
    parcel.tries = parcel.tries.saturating_add(1);
    if role == Role::FollowUp && parcel.tries > MAX_TRIES {
        return Errand::Refused(Box::new(parcel), role, "312 NO_ROUTE - no queue is bound for it".to_owned());
    }
    let queue = parcel.first.first().map(|(_, publication)| publication.address.routing_key.clone());
    let presence = match (role, queue) {
        (Role::Dead, _) => topology.ensure_dead().await,
        (Role::FollowUp, Some(name)) => topology.ensure_queue(&QueueSpec::durable(name, queue_type)).await,
        // The next session makes the delay queue again, and the message comes back through its delivery.
        _ => return Errand::Lost("a delay queue is gone".to_owned()),
    };
    match presence {
        Ok(Presence::Present | Presence::Created) => {}
        Ok(Presence::Denied(words)) if role == Role::FollowUp => {
            return Errand::Refused(Box::new(parcel), role, words);
        }
        Ok(Presence::Down(words) | Presence::Denied(words)) => {
            tracing::error!(?role, dead_queue = DEAD_QUEUE, words, "queue is down or may not be made; held back");
            tokio::time::sleep(PATIENCE).await;
        }
        Err(error) => return Errand::Lost(error.to_string()),
    }
    Errand::Again(Box::new(parcel))
}

/// An event came back: with its queue down it waits, with nobody bound nobody listens.
pub(super) async fn look_for_listeners(topology: Topology, parcel: Parcel) -> Errand {
    match topology.look(METRICS_QUEUE).await {
        Ok(Look::Down(_)) => {
            tokio::time::sleep(PATIENCE).await;
            Errand::Again(Box::new(parcel))
        }
        Ok(_) => Errand::Unheard(Box::new(parcel)),
        Err(error) => Errand::Lost(error.to_string()),
    }
}
