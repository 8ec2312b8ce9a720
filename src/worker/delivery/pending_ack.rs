//! What one finished command still owes to the broker before its delivery may be acknowledged.

use std::collections::BTreeSet;
use std::time::Duration;

use crate::broker::{AckToken, Confirmation, Inflow, PublishError};
use crate::celery::message::{Address, Publication};
use crate::celery::reply::ReplyTo;
use crate::commands::Held;
use crate::telemetry::GivenUp;
use crate::worker::delivery::destinations::Destinations;
use crate::worker::delivery::held::{HeldCommand, HeldCommands};
use crate::worker::events::Event;
use crate::worker::invalidations::Stale;
use crate::worker::journal::Digest;
use crate::worker::own_queues::OwnQueue;

/// How long an answer is tried again at least whose queue takes nothing: as long as one whose queue is silent.
pub(in crate::worker) const ANSWER_PATIENCE: Duration = Duration::from_secs(45);

/// What a publication is for; decides what it means when the broker did not take it.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(in crate::worker) enum Role {
    /// Callback, errback or chain step: must arrive before the reply says so.
    FollowUp,
    /// The result.
    Reply,
    /// The event's copy for the queue the producer named.
    Notice,
    /// The copy in the dead-letter queue.
    Dead,
    /// The metric event.
    Event,
    /// The message itself, put aside until its eta.
    Park,
}

impl Role {
    /// Tells whether it is no fault when nobody listens.
    pub(super) const fn may_be_unheard(self) -> bool {
        matches!(self, Self::Reply | Self::Notice)
    }
}

/// What counts for something in memory; dropping it says that it is gone.
#[derive(Debug)]
pub(in crate::worker) enum Weight {
    /// On the budget.
    Held { _bytes: Held },
    /// Of what was read ahead.
    Read { _bytes: Inflow },
}

/// A publication that a command owes and that is being parked.
#[derive(Debug)]
pub(in crate::worker) struct Owed {
    /// It was to be confirmed before the others.
    pub(in crate::worker) is_first: bool,
    pub(in crate::worker) role: Role,
    pub(in crate::worker) publication: Publication,
    /// The event that it tells of, if any.
    pub(in crate::worker) event: Option<Event>,
}

/// Everything one delivery still owes.
#[derive(Debug)]
pub(in crate::worker) struct PendingAck {
    /// Settles the delivery; `None` for what is said in between (STARTED).
    pub(in crate::worker) ack_token: Option<AckToken>,
    /// Task id.
    pub(in crate::worker) id: Option<String>,
    /// What the journal knows the command by.
    pub(in crate::worker) entry: Option<Digest>,
    /// Whom to tell when something is refused for good.
    pub(in crate::worker) reply_to: Option<ReplyTo>,
    /// To be confirmed first.
    pub(in crate::worker) first: Vec<(Role, Publication)>,
    /// To be confirmed after that.
    pub(in crate::worker) then: Vec<(Role, Publication)>,
    /// Goes to a silent address, so it leaves after all that does not.
    pub(super) last: Vec<(Role, Publication)>,
    /// What is kept instead of follow-ups whose size the broker refuses: the answer stands then.
    pub(in crate::worker) spare: Option<Box<Publication>>,
    /// The metric events, all of one operation.
    pub(in crate::worker) events: Vec<Event>,
    /// So do the events.
    pub(super) event_last: bool,
    /// The reply is out: another one would contradict it.
    pub(in crate::worker) replied: bool,
    /// How many events were sent; for counting.
    pub(in crate::worker) told: usize,
    /// How often something of it came back.
    pub(in crate::worker) tries: u8,
    /// How often in a row something of it was not confirmed in time.
    pub(in crate::worker) unconfirmed: u8,
    /// How often in a row a queue took something of it not, by a negative confirmation.
    pub(in crate::worker) nacked: u8,
    /// How long it has waited for such queues.
    pub(in crate::worker) waited: Duration,
    /// Something of it cannot be put into the form in which it would be parked.
    pub(in crate::worker) is_unparkable: bool,
    /// Keeps its slot since something was not taken.
    stalled: Option<HeldCommand>,
    /// Our own queues for which something was held back, which is said of them until it is confirmed.
    pub(in crate::worker) held: BTreeSet<OwnQueue>,
    /// Size of the reply, for the answer to its refusal.
    pub(in crate::worker) reply_bytes: usize,
    /// What counts for it until it owes nothing more.
    pub(in crate::worker) weights: Vec<Weight>,
    /// What other workers are told before it leaves: whoever wrote it may have died before that.
    pub(in crate::worker) stale: Stale,
}

impl PendingAck {
    /// Makes a pending acknowledgement that owes nothing yet.
    pub(in crate::worker) fn new(ack_token: Option<AckToken>, id: Option<String>) -> Self {
        Self {
            ack_token,
            id,
            entry: None,
            reply_to: None,
            first: Vec::new(),
            then: Vec::new(),
            last: Vec::new(),
            spare: None,
            events: Vec::new(),
            event_last: false,
            replied: false,
            told: 0,
            tries: 0,
            unconfirmed: 0,
            nacked: 0,
            waited: Duration::ZERO,
            is_unparkable: false,
            stalled: None,
            held: BTreeSet::new(),
            reply_bytes: 0,
            weights: Vec::new(),
            stale: Stale::default(),
        }
    }

    /// Takes in the broker's answer to one of its publications; what must be sent again goes back to the front.
    pub(super) fn taken(
        &mut self,
        role: Role,
        kept: Option<Box<Publication>>,
        answer: Result<Confirmation, PublishError>,
        lane: Option<&Lane>,
    ) -> Verdict {
        let verdict = match (answer, kept.is_some()) {
            (Ok(Confirmation::Routed), _) => Verdict::Fine,
            // Nobody waits for it any more.
            (Ok(Confirmation::Returned { .. }), false) => Verdict::Fine,
            (Ok(Confirmation::Returned { .. }), true) => Verdict::Unrouted(role),
            // What is said in between is no answer; late, it would contradict the one that came meanwhile.
            (Err(PublishError::Nacked(_)), false) if self.ack_token.is_none() => Verdict::Fine,
            // A queue that crashed comes back, and a full one is read; one that stays full is its owner's business.
            (Err(PublishError::Nacked(publication)), false) if self.waited >= ANSWER_PATIENCE => {
                let seconds = self.waited.as_secs();
                let queue = &publication.address.routing_key;
                tracing::error!(
                    task_id = self.id,
                    ?role,
                    queue,
                    seconds,
                    "answer given up: its queue takes nothing; is it full?"
                );
                Verdict::GivenUp(GivenUp::Full)
            }
            (Err(PublishError::Nacked(publication)), false) => {
                self.last.push((role, *publication));
                Verdict::Held(format!("{role:?}: its queue takes nothing now"))
            }
            (Err(PublishError::Nacked(_)), true) => Verdict::Held(format!("{role:?}: its queue takes nothing now")),
            // Without its dead copy nothing may be lost: it is tried again for ever.
            (Err(PublishError::Refused { code, text }), _) if role == Role::Dead => {
                Verdict::Held(format!("the dead copy is refused: {code} {text}"))
            }
            // Only for want of the right to answer at all: whoever has it shall find the command.
            (Err(PublishError::Refused { code: 403, text }), _) if role == Role::Reply => Verdict::Lost(text),
            (Err(PublishError::Refused { code, text }), _) => Verdict::Refused(role, format!("{code} {text}")),
            (Err(PublishError::Unconfirmed(publication)), _) => match lane {
                None => Verdict::Lost(unconfirmed(&publication.address)),
                Some(lane) if role.may_be_unheard() && lane.gives_up(&publication.address) => {
                    let queue = &publication.address.routing_key;
                    tracing::error!(
                        task_id = self.id,
                        ?role,
                        queue,
                        "answer given up: its queue says neither yes nor no"
                    );
                    Verdict::GivenUp(GivenUp::Silent)
                }
                Some(_) => {
                    let reason = format!("{role:?}: {}", unconfirmed(&publication.address));
                    // Once more apart, and not before what does not go there.
                    let stage = if role == Role::FollowUp { &mut self.first } else { &mut self.last };
                    stage.push((role, *publication));
                    return Verdict::Held(reason);
                }
            },
            (Err(PublishError::Lost(_)), _) => Verdict::Lost("a publication was not confirmed".to_owned()),
        };
        match &verdict {
            Verdict::Fine | Verdict::GivenUp(_) => self.replied |= role == Role::Reply,
            Verdict::Unrouted(_) | Verdict::Held(_) => self.first.extend(kept.map(|publication| (role, *publication))),
            _ => {}
        }
        verdict
    }

    /// Takes back what was put off, so that it is owed next once nothing else is.
    pub(super) fn join(&mut self) {
        if self.first.is_empty() && self.then.is_empty() {
            self.then.append(&mut self.last);
        }
        self.event_last = false;
    }

    /// Puts off what goes to a silent address until all else is confirmed, and returns that address when nothing else is
    /// left to be sent next.
    pub(super) fn part(&mut self, destinations: &Destinations) -> Option<Address> {
        self.join();
        self.event_last = self.events.first().is_some_and(|event| destinations.contains(&event.address()));
        if !self.first.is_empty() {
            // What follows a task leaves before its answer, whatever becomes of it.
            let mut addresses = self.first.iter().map(|(_, publication)| &publication.address);
            return addresses.find(|address| destinations.contains(address)).cloned();
        }
        let silent = |(_, publication): &mut (Role, Publication)| destinations.contains(&publication.address);
        self.last.extend(self.then.extract_if(.., silent));
        if !self.then.is_empty() || !self.events.is_empty() && !self.event_last {
            return None;
        }
        // One silent address at a time.
        let Some((_, publication)) = self.last.first() else {
            self.event_last = false;
            return self.events.first().map(Event::address);
        };
        let address = publication.address.clone();
        let same = |(_, publication): &mut (Role, Publication)| publication.address == address;
        self.then.extend(self.last.extract_if(.., same));
        Some(address)
    }

    /// Notes that something of it was not taken.
    pub(in crate::worker) fn stall(&mut self, held: &HeldCommands) {
        self.stalled.get_or_insert_with(|| held.hold());
    }

    /// Returns how long something of it has been not taken.
    pub(in crate::worker) fn stalled_for(&self) -> Duration {
        self.stalled.as_ref().map_or(Duration::ZERO, HeldCommand::age)
    }

    /// Takes out what is owed to silent or full addresses.
    pub(in crate::worker) fn take_stalled(&mut self, destinations: &Destinations) -> Vec<Owed> {
        let mut taken = Vec::new();
        for (is_first, stage) in [(true, &mut self.first), (false, &mut self.then), (false, &mut self.last)] {
            let stalled = stage.extract_if(.., |(role, publication)| {
                // A command that waits for its time has no publication that could wait elsewhere.
                *role != Role::Park && destinations.contains(&publication.address)
            });
            taken.extend(stalled.map(|(role, publication)| Owed { is_first, role, publication, event: None }));
        }
        if self.events.first().is_some_and(|event| destinations.contains(&event.address())) {
            for event in std::mem::take(&mut self.events) {
                let Some(publication) = Event::join(&[&event]) else { continue };
                taken.push(Owed { is_first: false, role: Role::Event, publication, event: Some(event) });
            }
        }
        taken
    }

    /// Takes back what could not be parked.
    pub(in crate::worker) fn owe_again(&mut self, owed: Owed) {
        let Owed { is_first, role, publication, event } = owed;
        match event {
            Some(event) => self.events.push(event),
            None if is_first => self.first.push((role, publication)),
            None => self.last.push((role, publication)),
        }
    }

    /// Notes that something was parked: it counts as sent.
    pub(in crate::worker) fn parked(&mut self, owed: &Owed) {
        self.replied |= owed.role == Role::Reply;
        if owed.event.is_some() {
            // It is counted once it is delivered.
            self.told = self.told.saturating_sub(1);
        }
    }

    /// Tells whether something of this role is to be sent again.
    pub(in crate::worker) fn owes(&self, role: Role) -> bool {
        self.first.iter().chain(&self.last).any(|(owed, _)| *owed == role)
    }

    /// Owes nothing more but what has this role, and its events.
    pub(in crate::worker) fn keep_only(&mut self, role: Role) {
        for stage in [&mut self.first, &mut self.then, &mut self.last] {
            stage.retain(|(owed, _)| *owed == role);
        }
    }

    /// Tells whether nothing is owed any more.
    pub(in crate::worker) fn is_done(&self) -> bool {
        self.last.is_empty() && self.first.is_empty() && self.then.is_empty() && self.events.is_empty()
    }
}

/// A way of its own for what goes to a silent address.
#[derive(Clone, Debug)]
pub(in crate::worker) struct Lane {
    pub(in crate::worker) address: Address,
    /// Answers to it are given up: one that is not confirmed is no longer owed.
    pub(in crate::worker) hopeless: bool,
}

impl Lane {
    fn gives_up(&self, address: &Address) -> bool {
        self.hopeless && self.address == *address
    }
}

pub(super) fn unconfirmed(Address { exchange, routing_key }: &Address) -> String {
    format!("the broker did not confirm what went to exchange '{exchange}' with routing key '{routing_key}'")
}

/// What one pending acknowledgement of a batch came to; the worst of its answers counts, in this order.
#[derive(Clone, Debug, Default)]
pub(super) enum Verdict {
    #[default]
    Fine,
    /// An answer is no longer owed though nobody took it.
    GivenUp(GivenUp),
    Unheard,
    Unrouted(Role),
    Held(String),
    Refused(Role, String),
    Lost(String),
}

impl Verdict {
    const fn rank(&self) -> u8 {
        match self {
            Self::Fine | Self::GivenUp(_) => 0,
            Self::Unheard => 1,
            Self::Unrouted(_) => 2,
            Self::Held(_) => 3,
            Self::Refused(..) => 4,
            Self::Lost(_) => 5,
        }
    }

    pub(super) fn worsen(&mut self, other: Self) {
        if other.rank() > self.rank() {
            *self = other;
        }
    }
}
