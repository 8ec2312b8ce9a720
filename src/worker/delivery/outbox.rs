//! What must be confirmed by the broker before a delivery may be acknowledged.
//!
//! What gathers while the previous batch is being confirmed leaves together: replies, follow-ups, dead copies, and the
//! events, of which those with one routing key share messages.

use std::collections::{BTreeMap, BTreeSet, HashSet, VecDeque};
use std::time::Duration;

use crate::broker::{AckToken, Confirmation, Inflow, PublishError};
use crate::celery::message::{Address, Publication};
use crate::celery::reply::ReplyTo;
use crate::commands::Held;
use crate::telemetry::GivenUp;
use crate::worker::delivery::destinations::Destinations;
use crate::worker::events::Event;
use crate::worker::invalidations::Stale;
use crate::worker::journal::Digest;
use crate::worker::own_queues::OwnQueue;

/// How long an answer is tried again at least whose queue takes nothing: as long as one whose queue is silent.
const ANSWER_PATIENCE: Duration = Duration::from_secs(45);

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
    /// The message itself, put aside until its eta.
    Park,
}

impl Role {
    /// Tells whether it is no fault when nobody listens.
    const fn may_be_unheard(self) -> bool {
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
    last: Vec<(Role, Publication)>,
    /// What is kept instead of follow-ups whose size the broker refuses: the answer stands then.
    pub(in crate::worker) spare: Option<Box<Publication>>,
    /// The metric events, all of one operation.
    pub(in crate::worker) events: Vec<Event>,
    /// So do the events.
    event_last: bool,
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
            held: BTreeSet::new(),
            reply_bytes: 0,
            weights: Vec::new(),
            stale: Stale::default(),
        }
    }

    /// Takes in the broker's answer to one of its publications; what must be sent again goes back to the front.
    fn taken(
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
    fn join(&mut self) {
        if self.first.is_empty() && self.then.is_empty() {
            self.then.append(&mut self.last);
        }
        self.event_last = false;
    }

    /// Puts off what goes to a silent address until all else is confirmed, and returns that address when nothing else is
    /// left to be sent next.
    fn part(&mut self, destinations: &Destinations) -> Option<Address> {
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

    fn is_done(&self) -> bool {
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

/// Publications of some pending acknowledgements, on their way together.
#[derive(Debug)]
pub(in crate::worker) struct Batch {
    pending_acks: Vec<PendingAck>,
    slots: Vec<Slot>,
    lane: Option<Lane>,
}

/// Which debt a publication of the batch pays.
#[derive(Debug)]
enum Slot {
    /// The pending acknowledgement's own; kept where it is sent again when it comes back.
    Own { pending: usize, role: Role, kept: Option<Box<Publication>> },
    /// Everyone's of whom an event is in it, and which one.
    Events(Vec<(usize, usize)>),
}

/// What the broker's answers to a batch leave to be done.
#[derive(Debug, Default)]
pub(in crate::worker) struct Answered {
    /// Owe nothing more: acknowledge.
    pub(in crate::worker) done: Vec<PendingAck>,
    /// Go on with the next stage.
    pub(in crate::worker) again: Vec<PendingAck>,
    /// Not taken now, or refused without being given up; wait, then try again.
    pub(in crate::worker) held: Vec<(PendingAck, String)>,
    /// Came back unrouted; see to its queue, then try again.
    pub(in crate::worker) unrouted: Vec<(PendingAck, Role)>,
    /// Refused for good; the broker's words.
    pub(in crate::worker) refused: Vec<(PendingAck, Role, String)>,
    /// Pending acknowledgements of which an event came back unrouted.
    pub(in crate::worker) unheard: Vec<PendingAck>,
    /// The silent address this went to.
    pub(in crate::worker) lane: Option<Address>,
    /// Addresses that confirmed nothing in time.
    pub(in crate::worker) silent: HashSet<Address>,
    /// Addresses whose queue took something not, by a negative confirmation.
    pub(in crate::worker) full: HashSet<Address>,
    /// Answers that are no longer owed though nobody took them.
    pub(in crate::worker) given_up: Vec<GivenUp>,
    /// The broker refuses events; its words.
    pub(in crate::worker) events_refused: Option<String>,
    /// The session is lost, with the reason; its pending acknowledgements stay unsettled.
    pub(in crate::worker) lost: Option<String>,
    /// Counts for the metrics: confirmed, returned, refused, unconfirmed.
    pub(in crate::worker) counts: [u64; 4],
}

/// Pending acknowledgements in the order they came.
#[derive(Debug, Default)]
pub(in crate::worker) struct Outbox {
    waiting: VecDeque<PendingAck>,
    /// What goes to silent addresses, which take turns.
    apart: VecDeque<(Address, VecDeque<PendingAck>)>,
}

impl Outbox {
    /// Takes a pending acknowledgement in.
    pub(in crate::worker) fn push(&mut self, mut pending: PendingAck) {
        pending.join();
        self.waiting.push_back(pending);
    }

    /// Tells whether nothing waits.
    pub(in crate::worker) fn is_empty(&self) -> bool {
        self.waiting.is_empty() && self.apart.is_empty()
    }

    /// Puts what goes to a silent address apart, and back what goes to none any more.
    pub(in crate::worker) fn part(&mut self, destinations: &mut Destinations) {
        if !destinations.any() && self.apart.is_empty() {
            return;
        }
        for (address, pending_acks) in std::mem::take(&mut self.apart) {
            if destinations.contains(&address) {
                self.apart.push_back((address, pending_acks));
            } else {
                self.waiting.extend(pending_acks);
            }
        }
        for mut pending in std::mem::take(&mut self.waiting) {
            let Some(address) = pending.part(destinations) else {
                self.waiting.push_back(pending);
                continue;
            };
            match self.apart.iter_mut().find(|(other, _)| *other == address) {
                Some((_, pending_acks)) => pending_acks.push_back(pending),
                None => self.apart.push_back((address, VecDeque::from([pending]))),
            }
        }
    }

    /// Tells whether something waits that is not apart.
    pub(in crate::worker) fn has_next(&self) -> bool {
        !self.waiting.is_empty()
    }

    /// Finds a silent address for which something waits, other than these.
    pub(in crate::worker) fn next_apart(&self, busy: &HashSet<Address>) -> Option<Address> {
        self.apart.iter().map(|(address, _)| address).find(|address| !busy.contains(address)).cloned()
    }

    /// Takes out up to `limit` pending acknowledgements for a silent address, as [`Outbox::take`] does.
    pub(in crate::worker) fn take_apart(
        &mut self,
        lane: Lane,
        limit: usize,
        events: usize,
    ) -> (Batch, Vec<Publication>) {
        let place = self.apart.iter().position(|(address, _)| *address == lane.address);
        let mut pending_acks =
            place.and_then(|place| self.apart.remove(place)).map(|(_, pending_acks)| pending_acks).unwrap_or_default();
        let rest = pending_acks.split_off(pending_acks.len().min(limit));
        if !rest.is_empty() {
            self.apart.push_back((lane.address.clone(), rest));
        }
        let (batch, publications) = pack(pending_acks.into(), events);
        (Batch { lane: Some(lane), ..batch }, publications)
    }

    /// Takes out up to `limit` pending acknowledgements and what they owe first; at most `events` events share a message (0: no
    /// events at all).
    pub(in crate::worker) fn take(&mut self, limit: usize, events: usize) -> (Batch, Vec<Publication>) {
        let count = self.waiting.len().min(limit);
        pack(self.waiting.drain(..count).collect(), events)
    }
}

/// Gathers what pending acknowledgements owe first.
fn pack(mut pending_acks: Vec<PendingAck>, events: usize) -> (Batch, Vec<Publication>) {
    let mut slots = Vec::with_capacity(pending_acks.len() * 2);
    let mut publications = Vec::with_capacity(pending_acks.len() * 2);
    // Without a message to share, events are off: they are delivered to nobody.
    let events_on = events > 0;
    let mut groups: BTreeMap<String, Vec<(usize, usize)>> = BTreeMap::new();
    for (index, pending) in pending_acks.iter_mut().enumerate() {
        let stage = if pending.first.is_empty() { &mut pending.then } else { &mut pending.first };
        for (role, publication) in stage.drain(..) {
            if role == Role::Reply {
                pending.reply_bytes = pending.reply_bytes.max(publication.message.body.len());
            }
            let kept = (!role.may_be_unheard()).then(|| Box::new(publication.clone()));
            publications.push(publication);
            slots.push(Slot::Own { pending: index, role, kept });
        }
        if pending.then.is_empty() {
            if !events_on {
                pending.events.clear();
            }
            if !pending.event_last {
                // After a part was confirmed, the rest is sent again.
                pending.told = pending.told.max(pending.events.len());
                for (number, event) in pending.events.iter().enumerate() {
                    groups.entry(event.routing_key.clone()).or_default().push((index, number));
                }
            }
        }
    }
    for members in groups.into_values() {
        for group in members.chunks(events) {
            let joined: Vec<&Event> =
                group.iter().map(|&(index, number)| &pending_acks[index].events[number]).collect();
            if let Some(publication) = Event::join(&joined) {
                publications.push(publication);
                slots.push(Slot::Events(group.to_vec()));
            }
        }
    }
    (Batch { pending_acks, slots, lane: None }, publications)
}

fn unconfirmed(Address { exchange, routing_key }: &Address) -> String {
    format!("the broker did not confirm what went to exchange '{exchange}' with routing key '{routing_key}'")
}

/// What one pending acknowledgement of a batch came to; the worst of its answers counts, in this order.
#[derive(Clone, Debug, Default)]
enum Verdict {
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

    fn worsen(&mut self, other: Self) {
        if other.rank() > self.rank() {
            *self = other;
        }
    }
}

impl Batch {
    /// Tells whether there is nothing in it but what may be given up.
    pub(in crate::worker) fn may_be_given_up(&self) -> bool {
        self.slots.iter().all(|slot| matches!(slot, Slot::Own { role, .. } if role.may_be_unheard()))
    }

    /// Returns the positions of the publications that are answers.
    pub(in crate::worker) fn answers(&self) -> Vec<usize> {
        let is_answer = |slot: &Slot| matches!(slot, Slot::Own { role: Role::Reply, .. });
        self.slots.iter().enumerate().filter(|(_, slot)| is_answer(slot)).map(|(position, _)| position).collect()
    }

    /// Reads the broker's answers, one for each publication in order.
    pub(in crate::worker) fn answered(mut self, answers: Vec<Result<Confirmation, PublishError>>) -> Answered {
        let lane = self.lane;
        let mut answered = Answered { lane: lane.as_ref().map(|lane| lane.address.clone()), ..Answered::default() };
        let mut verdicts = vec![Verdict::Fine; self.pending_acks.len()];
        let mut nacked = vec![false; self.pending_acks.len()];
        // What was not answered is not known to be taken.
        let unanswered = || Err(PublishError::Lost("a publication was not answered".to_owned()));
        let answers = answers.into_iter().chain(std::iter::repeat_with(unanswered));
        for (slot, answer) in self.slots.into_iter().zip(answers) {
            answered.count(&answer);
            match &answer {
                Err(PublishError::Unconfirmed(publication)) => {
                    answered.silent.insert(publication.address.clone());
                }
                Err(PublishError::Nacked(publication)) => {
                    answered.full.insert(publication.address.clone());
                }
                _ => {}
            }
            match slot {
                Slot::Own { pending, role, kept } => {
                    nacked[pending] |= matches!(answer, Err(PublishError::Nacked(_)));
                    let verdict = self.pending_acks[pending].taken(role, kept, answer, lane.as_ref());
                    if let Verdict::GivenUp(why) = verdict {
                        answered.given_up.push(why);
                    }
                    if let Verdict::Lost(reason) = &verdict {
                        answered.lost = Some(reason.clone());
                    }
                    verdicts[pending].worsen(verdict);
                }
                Slot::Events(members) => match answer {
                    Ok(Confirmation::Routed) => {
                        members
                            .iter()
                            .for_each(|&(member, number)| self.pending_acks[member].events[number].is_over = true);
                    }
                    Ok(Confirmation::Returned { .. }) => {
                        members.iter().for_each(|&(member, _)| verdicts[member].worsen(Verdict::Unheard));
                    }
                    Err(PublishError::Unconfirmed(publication)) if lane.is_none() => {
                        let reason = unconfirmed(&publication.address);
                        members.iter().for_each(|&(member, _)| verdicts[member].worsen(Verdict::Lost(reason.clone())));
                        answered.lost = Some(reason);
                    }
                    Err(PublishError::Nacked(_) | PublishError::Unconfirmed(_)) => {
                        let is_nack = matches!(answer, Err(PublishError::Nacked(_)));
                        members.iter().for_each(|&(member, _)| nacked[member] |= is_nack);
                        let held = || Verdict::Held("the queue of events takes none now".to_owned());
                        members.iter().for_each(|&(member, _)| verdicts[member].worsen(held()));
                    }
                    Err(PublishError::Refused { code, text }) => {
                        members
                            .iter()
                            .for_each(|&(member, number)| self.pending_acks[member].events[number].is_over = true);
                        answered.events_refused = Some(format!("{code} {text}"));
                    }
                    Err(PublishError::Lost(reason)) => {
                        members.iter().for_each(|&(member, _)| verdicts[member].worsen(Verdict::Lost(reason.clone())));
                        answered.lost = Some(reason);
                    }
                },
            }
        }
        for ((mut pending, verdict), nacked) in self.pending_acks.into_iter().zip(verdicts).zip(nacked) {
            pending.events.retain(|event| !event.is_over);
            let is_held = matches!(verdict, Verdict::Held(_));
            pending.nacked = if is_held && nacked { pending.nacked.saturating_add(1) } else { 0 };
            pending.unconfirmed =
                if is_held && !nacked && lane.is_some() { pending.unconfirmed.saturating_add(1) } else { 0 };
            if matches!(verdict, Verdict::Fine | Verdict::GivenUp(_)) {
                // What is next has its own time to be taken.
                pending.waited = Duration::ZERO;
            }
            match verdict {
                Verdict::Fine | Verdict::GivenUp(_) if pending.is_done() => answered.done.push(pending),
                Verdict::Fine | Verdict::GivenUp(_) => answered.again.push(pending),
                Verdict::Unheard => answered.unheard.push(pending),
                Verdict::Held(reason) => answered.held.push((pending, reason)),
                Verdict::Unrouted(role) => answered.unrouted.push((pending, role)),
                Verdict::Refused(role, text) => answered.refused.push((pending, role, text)),
                Verdict::Lost(_) => drop(pending),
            }
        }
        answered
    }
}

impl Answered {
    fn count(&mut self, answer: &Result<Confirmation, PublishError>) {
        match answer {
            Ok(Confirmation::Routed) => self.counts[0] += 1,
            Ok(Confirmation::Returned { .. }) => self.counts[1] += 1,
            Err(PublishError::Refused { .. } | PublishError::Nacked(_)) => self.counts[2] += 1,
            Err(PublishError::Unconfirmed(_)) => self.counts[3] += 1,
            Err(PublishError::Lost(_)) => {}
        }
    }
}
