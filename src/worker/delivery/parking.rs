//! Parks what finished commands owe to queues that take nothing, so that no command keeps its slot for them.

use std::collections::HashSet;
use std::sync::Arc;
use std::time::Duration;

use jiff::Timestamp;

use crate::broker::{BrokerSession, Confirmation, Parking, PublishError};
use crate::celery::message::{Address, Publication};
use crate::worker::delivery::envelope::Envelope;
use crate::worker::delivery::pending_ack::{Owed, PendingAck};

/// How long a publication may be not taken before it is parked. A queue is often full for a moment only.
pub(in crate::worker) const PATIENCE: Duration = Duration::from_secs(5);
/// The same while half of all slots are held: other commands must not wait.
const HASTE: Duration = Duration::from_millis(500);
/// How long a command may keep its slot when it cannot be parked; then its delivery goes back to its queue. RabbitMQ ends the
/// channel of a delivery that is not acknowledged for 30 minutes, and with it the session of all others.
pub(in crate::worker) const LONGEST_HOLD: Duration = Duration::from_secs(600);
/// How long nothing is parked after the queues refused it.
pub(in crate::worker) const REST: Duration = Duration::from_secs(5);
/// Commands whose publications are parked at once.
pub(in crate::worker) const BATCH: usize = 1024;

/// Returns how long a publication may be not taken before it is parked, with so many slots held of so many; 0 slots are no limit.
pub(in crate::worker) const fn patience(held: usize, slots: usize) -> Duration {
    if slots > 0 && held.saturating_mul(2) >= slots { HASTE } else { PATIENCE }
}

/// What came of parking.
#[derive(Debug, Default)]
pub(in crate::worker) struct ParkingResult {
    /// All commands that were concerned; what could not be parked is theirs again.
    pub(in crate::worker) pending_acks: Vec<PendingAck>,
    /// Publications that were parked.
    pub(in crate::worker) parked: u64,
    /// Where these were to go.
    pub(in crate::worker) addresses: HashSet<Address>,
    /// Why nothing more can be parked now.
    pub(in crate::worker) refusal: Option<String>,
    /// The session is lost, with the reason.
    pub(in crate::worker) lost: Option<String>,
}

/// Parks publications, confirmed.
pub(in crate::worker) async fn park(
    session: Arc<dyn BrokerSession>,
    now: Timestamp,
    owing: Vec<(PendingAck, Vec<Owed>)>,
) -> ParkingResult {
    let mut sealed = Vec::new();
    for (pending, owed) in &owing {
        for Owed { role, publication, .. } in owed {
            let (task_id, publication) = (pending.id.clone(), publication.clone());
            let envelope = Envelope { role: *role, task_id, since: now, step: 0, publication };
            sealed.push(Publication { address: Parking::address(0), message: envelope.seal() });
        }
    }
    let mut answers = session.publish_within(session.patience(), sealed, true).await.into_iter();
    let mut result = ParkingResult::default();
    for (mut pending, owed) in owing {
        for owed in owed {
            let refusal = match answers.next() {
                Some(Ok(Confirmation::Routed)) => {
                    result.parked += 1;
                    pending.parked(&owed);
                    result.addresses.insert(owed.publication.address);
                    continue;
                }
                Some(Ok(Confirmation::Returned { .. })) => "its queue is missing".to_owned(),
                Some(Err(PublishError::Nacked(_))) => "its queue is full (parked_max_bytes)".to_owned(),
                Some(Err(PublishError::Lost(reason))) => {
                    result.lost = Some(reason.clone());
                    reason
                }
                Some(Err(PublishError::Refused { code, text })) => {
                    tracing::warn!(task_id = pending.id, code, text, "cannot be parked; the command keeps its slot");
                    pending.is_unparkable = true;
                    pending.owe_again(owed);
                    continue;
                }
                Some(Err(fault @ PublishError::Unconfirmed(_))) => fault.to_string(),
                None => "the broker said nothing".to_owned(),
            };
            result.refusal = Some(format!("{}: {refusal}", Parking::address(0).routing_key));
            pending.owe_again(owed);
        }
        result.pending_acks.push(pending);
    }
    result
}
