//! One publication that tries an address which took nothing before.

use crate::broker::{Look, Presence, QueueSpec};
use crate::celery::message::Address;
use crate::worker::delivery::batch::{Landed, Settled, pack};
use crate::worker::delivery::destinations::{Fault, GLANCE};
use crate::worker::delivery::fate::Fate;
use crate::worker::delivery::owed::Owed;
use crate::worker::delivery::parking;
use crate::worker::delivery::role::Role;
use crate::worker::delivery::way::Way;
use crate::worker::own_queues::OwnQueue;

/// A publication alone, and what is known of its address.
#[derive(Debug)]
pub(super) struct Trial {
    pub(super) address: Address,
    pub(super) fault: Option<Fault>,
    /// Answers to it are given up.
    pub(super) is_hopeless: bool,
    pub(super) owed: Owed,
}

/// What was found where no queue was.
enum Found {
    /// It may be tried.
    Queue,
    /// It is down, or somebody else has to make it; in the broker's words.
    Nothing {
        words: String,
        is_denied: bool,
    },
    Lost(String),
}

impl Trial {
    /// Sees to the queue where it was missing, and sends the publication.
    pub(super) async fn run(self, way: Way) -> Landed {
        let Self { address, fault, is_hopeless, owed } = self;
        let role = owed.debt.role;
        if fault == Some(Fault::Missing) {
            match see_to_queue(&way, role, &address).await {
                Found::Queue => {}
                Found::Nothing { words, is_denied } => {
                    let denied = is_denied && role == Role::FollowUp && way.cannot_park;
                    let fate = if denied {
                        Fate::Refused(words.clone())
                    } else {
                        Fate::NotTaken(Fault::Missing, words.clone())
                    };
                    let mut landed = not_sent(address, owed, fate);
                    landed.denied = denied.then(|| words.clone());
                    landed.away = (role == Role::Dead).then_some((OwnQueue::Dead, words));
                    return landed;
                }
                Found::Lost(reason) => return not_sent(address, owed, Fate::Lost(reason)),
            }
        }
        let (batch, publications) = pack(std::iter::once(owed), 1, Some(address));
        // What is published again and again may have been taken each time: that is waited for.
        let limit = match way.session.patience() {
            _ if is_hopeless && batch.may_be_given_up() => GLANCE,
            // What is not taken until then is parked.
            patience if way.may_park => patience.min(parking::PATIENCE),
            patience => patience,
        };
        let session = std::sync::Arc::clone(&way.session);
        let mut landed = way.send_alone(batch, publications, limit).await;
        for settled in landed.settled.iter_mut().filter(|settled| settled.fate == Fate::Unheard) {
            match session.look(OwnQueue::Events.name()).await {
                Ok(Look::Down(words)) => {
                    settled.fate = Fate::NotTaken(Fault::Missing, words.clone());
                    landed.away = Some((OwnQueue::Events, words));
                }
                Ok(_) => {}
                Err(error) => settled.fate = Fate::Lost(error.to_string()),
            }
        }
        landed
    }
}

/// Makes the queue of a publication that came back, where that is ours to do.
async fn see_to_queue(way: &Way, role: Role, address: &Address) -> Found {
    let presence = match role {
        Role::Dead => OwnQueue::Dead.ensure(&*way.session).await,
        Role::FollowUp if address.exchange.is_empty() => {
            way.session.ensure_queue(&QueueSpec::durable(address.routing_key.as_str(), way.queue_type)).await
        }
        _ => return Found::Queue,
    };
    match presence {
        Ok(Presence::Created | Presence::Present) => Found::Queue,
        Ok(Presence::Down(words)) => Found::Nothing { words, is_denied: false },
        Ok(Presence::Denied(words)) => Found::Nothing { words, is_denied: true },
        Err(error) => Found::Lost(error.to_string()),
    }
}

fn not_sent(address: Address, Owed { debt, content }: Owed, fate: Fate) -> Landed {
    Landed { settled: vec![Settled { debt, fate, content: Some(content) }], trial: Some(address), ..Landed::default() }
}
