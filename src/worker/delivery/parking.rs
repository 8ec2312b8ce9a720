//! Parks what finished commands owe to queues that take nothing, so that no command keeps its slot for them.

use std::sync::Arc;
use std::time::Duration;

use jiff::Timestamp;

use crate::broker::{BrokerSession, Confirmation, Look, PARKED_QUEUE, Parking, PublishError};
use crate::celery::message::{Address, Publication};
use crate::worker::delivery::envelope::Envelope;
use crate::worker::delivery::outbox::Parkable;
use crate::worker::delivery::owed::{Debt, Owed};

/// How long a publication may be not taken before it is parked. A queue is often full for a moment only.
pub(in crate::worker) const PATIENCE: Duration = Duration::from_secs(5);
/// The same while half of all slots are held: other commands must not wait.
const HASTE: Duration = Duration::from_millis(500);
/// How long a command may keep its slot when it cannot be parked; then its delivery goes back to its queue. RabbitMQ ends the
/// channel of a delivery that is not acknowledged for 30 minutes, and with it the session of all others.
pub(in crate::worker) const LONGEST_HOLD: Duration = Duration::from_secs(600);
/// How long nothing is parked after the queues refused it.
pub(in crate::worker) const REST: Duration = Duration::from_secs(5);
/// Publications that are parked at once.
pub(in crate::worker) const BATCH: usize = 1024;

/// Returns how long a publication may be not taken before it is parked, with so many slots held of so many; 0 slots are no limit.
pub(in crate::worker) const fn patience(held: usize, slots: usize) -> Duration {
    if slots > 0 && held.saturating_mul(2) >= slots { HASTE } else { PATIENCE }
}

/// What came of parking.
#[derive(Debug, Default)]
pub(in crate::worker) struct ParkingResult {
    /// What was parked, and where it was to go.
    pub(in crate::worker) parked: Vec<(Debt, Address)>,
    /// What could not be parked.
    pub(in crate::worker) kept: Vec<Owed>,
    /// Why nothing more can be parked now.
    pub(in crate::worker) refusal: Option<String>,
    /// Why nothing can be parked that was not before.
    pub(in crate::worker) backlog: Option<String>,
    /// The session is lost, with the reason.
    pub(in crate::worker) lost: Option<String>,
}

/// Parks publications, confirmed.
///
/// The queue to which they come back has no bound. Were new ones parked while others wait there, the bound of the steps would
/// bound nothing.
pub(in crate::worker) async fn park(
    session: Arc<dyn BrokerSession>,
    now: Timestamp,
    mut parkable: Vec<Parkable>,
) -> ParkingResult {
    let mut result = ParkingResult::default();
    let is_new = |parkable: &mut Parkable| parkable.parked_at.is_none();
    if parkable.iter().any(|parkable| parkable.parked_at.is_none()) {
        // A lost session is told by the publishing.
        if let Ok(Look::Present { messages: waiting @ 1.., .. }) = session.look(PARKED_QUEUE).await {
            result.backlog = Some(format!("{PARKED_QUEUE}: {waiting} publications wait to be tried again"));
            result.kept.extend(parkable.extract_if(.., is_new).map(|parkable| parkable.owed));
        }
    }
    let sealed = parkable.iter().map(|Parkable { owed, task_id, parked_at, step }| {
        let (role, task_id, publication) = (owed.debt.role, task_id.clone(), owed.content.publication());
        let envelope = Envelope { role, task_id, since: parked_at.unwrap_or(now), step: *step, publication };
        Publication { address: Parking::address(*step), message: envelope.seal() }
    });
    let mut answers = session.publish_within(session.patience(), sealed.collect(), true, None).await.into_iter();
    for Parkable { mut owed, task_id, step, .. } in parkable {
        let refusal = match answers.next() {
            Some(Ok(Confirmation::Routed)) => {
                result.parked.push((owed.debt, owed.content.address()));
                continue;
            }
            Some(Ok(Confirmation::Returned { .. })) => "its queue is missing".to_owned(),
            Some(Err(PublishError::Nacked(_))) => "its queue is full (parked_max_bytes)".to_owned(),
            Some(Err(PublishError::Lost(reason))) => {
                result.lost = Some(reason.clone());
                reason
            }
            Some(Err(PublishError::Refused { code, text })) => {
                tracing::warn!(task_id, code, text, "cannot be parked; the command keeps its slot");
                owed.debt.is_unparkable = true;
                result.kept.push(owed);
                continue;
            }
            Some(Err(fault @ PublishError::Unconfirmed(_))) => fault.to_string(),
            None => "the broker said nothing".to_owned(),
        };
        result.refusal = Some(format!("{}: {refusal}", Parking::address(step).routing_key));
        result.kept.push(owed);
    }
    result
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn held_slots_make_haste() {
        assert_eq!(patience(15, 32), PATIENCE);
        assert_eq!(patience(16, 32), HASTE);
        assert_eq!(patience(1000, 0), PATIENCE, "without a limit no slot is wanting");
    }
}
