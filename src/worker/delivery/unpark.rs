//! A parked publication that came back is owed like what a command owes, and acknowledged like a delivery.

use std::time::Duration;

use jiff::Timestamp;
use tokio::time::Instant;

use crate::broker::{DEAD_QUEUE, PARKED_QUEUE};
use crate::celery::error::Exception;
use crate::celery::message::{Address, Message, Origin, Publication};
use crate::celery::{Death, UNDELIVERABLE, dead};
use crate::commands::Held;
use crate::telemetry::Parked;
use crate::worker::delivery::envelope::Envelope;
use crate::worker::delivery::parked_consumer::Ticket;
use crate::worker::delivery::pending_ack::{PendingAck, Weight};
use crate::worker::delivery::returned::Returned;
use crate::worker::delivery::role::Role;

/// By what copies for the dead queue are made.
#[derive(Clone, Debug)]
pub(in crate::worker) struct DeadCopies {
    pub(in crate::worker) node: String,
    pub(in crate::worker) now: Timestamp,
    pub(in crate::worker) frame_max: usize,
}

/// Reads a parked message; one that cannot be read is owed to the dead queue. `held` counts for its bytes.
pub(in crate::worker) fn unpark(
    ticket: Ticket,
    message: &Message,
    held: Held,
    copies: &DeadCopies,
) -> (PendingAck, Option<Address>) {
    let mut pending = PendingAck::new(None, None);
    pending.weights.push(Weight::Held { bytes: held });
    let since = Instant::now();
    let mut returned = Returned {
        ticket,
        parked_at: copies.now,
        since,
        came: since,
        step: usize::MAX,
        end: Some(Parked::Undeliverable),
    };
    let mut address = None;
    match Envelope::open(message, copies.now) {
        Ok(Envelope { role, task_id, since: parked_at, step, publication }) => {
            let age = Duration::try_from(copies.now.duration_since(parked_at)).unwrap_or_default();
            returned.parked_at = parked_at;
            returned.since = since.checked_sub(age).unwrap_or(since);
            // An answer has no time for longer waits, nor has the body of a chord.
            returned.step = if role.is_answer() || role == Role::Part { 0 } else { step.saturating_add(1) };
            returned.end = Some(Parked::Delivered);
            pending.id = task_id;
            address = Some(publication.address.clone());
            pending.then.push((role, publication));
        }
        Err(why) => {
            tracing::error!(why, queue = DEAD_QUEUE, "a parked publication cannot be read");
            let origin = Origin { queue: PARKED_QUEUE.to_owned(), ..Origin::default() };
            pending.then.push((Role::Dead, copies.of(message, &origin, &why)));
        }
    }
    pending.returned = Some(Box::new(returned));
    (pending, address)
}

impl DeadCopies {
    fn of(&self, message: &Message, origin: &Origin, words: &str) -> Publication {
        let exception = Exception::custom("kombu.exceptions", "OperationalError", vec![words.to_owned().into()]);
        let death = Death { reason: UNDELIVERABLE, exception: &exception, at: self.now, worker: &self.node };
        dead(message, origin, &death, DEAD_QUEUE, self.frame_max)
    }

    /// What cannot be delivered is owed to the dead queue, unless nobody waits for it any more.
    pub(in crate::worker) fn replace(
        &self,
        pending: &mut PendingAck,
        role: Role,
        publication: Option<&Publication>,
        words: &str,
    ) {
        let Some(returned) = &mut pending.returned else { return };
        let queue = publication.map(|publication| publication.address.routing_key.as_str());
        let Some(Publication { address: Address { exchange, routing_key }, message }) =
            publication.filter(|_| !role.is_answer() && role != Role::Dead)
        else {
            tracing::error!(task_id = pending.id, ?role, queue, words, "a parked answer is refused, and given up");
            returned.end = Some(Parked::GivenUp);
            return;
        };
        tracing::error!(
            task_id = pending.id,
            ?role,
            queue,
            words,
            kept = DEAD_QUEUE,
            "a parked publication cannot be delivered"
        );
        returned.end = Some(Parked::Undeliverable);
        let (exchange, routing_key) = (exchange.clone(), routing_key.clone());
        let origin = Origin { queue: routing_key.clone(), exchange, routing_key, redelivered: false };
        pending.then.push((Role::Dead, self.of(message, &origin, words)));
    }
}
