//! What must be confirmed by the broker before a delivery may be acknowledged.
//!
//! Parcels that end while the previous batch is being confirmed leave together: replies, follow-ups, dead copies, and
//! the events, of which those with one routing key share messages.

use std::collections::{BTreeMap, HashSet, VecDeque};
use std::time::Duration;

use super::event::Event;
use super::invalidations::Stale;
use super::journal::Digest;
use super::silences::Silences;
use crate::broker::{Confirmation, Inflow, PublishError, Ticket};
use crate::celery::message::{Address, Publication};
use crate::celery::reply::ReplyTo;
use crate::commands::Held;
use crate::telemetry::GivenUp;

/// How long an answer is tried again at least whose queue takes nothing: as long as one whose queue is silent.
const ANSWER_PATIENCE: Duration = Duration::from_secs(45);

/// What a publication is for; decides what it means when the broker did not take it.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Role {
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
pub(super) enum Weight {
    /// On the budget.
    Held { _bytes: Held },
    /// Of what was read ahead.
    Read { _bytes: Inflow },
}

/// Everything one delivery still owes.
#[derive(Debug)]
pub(super) struct Parcel {
    /// Settles the delivery; `None` for what is said in between (STARTED).
    pub(super) ticket: Option<Ticket>,
    /// Task id.
    pub(super) id: Option<String>,
    /// What the journal knows the command by.
    pub(super) entry: Option<Digest>,
    /// Whom to tell when something is refused for good.
    pub(super) reply_to: Option<ReplyTo>,
    /// To be confirmed first.
    pub(super) first: Vec<(Role, Publication)>,
    /// To be confirmed after that.
    pub(super) then: Vec<(Role, Publication)>,
    /// Goes to a silent address, so it leaves after all that does not.
    last: Vec<(Role, Publication)>,
    /// What is kept instead of follow-ups whose size the broker refuses: the answer stands then.
    pub(super) spare: Option<Box<Publication>>,
    /// The metric events, all of one operation.
    pub(super) events: Vec<Event>,
    /// So do the events.
    event_last: bool,
    /// The reply is out: another one would contradict it.
    pub(super) replied: bool,
    /// How many events were sent; for counting.
    pub(super) told: usize,
    /// How often something of it came back.
    pub(super) tries: u8,
    /// How often in a row something of it was not confirmed in time.
    pub(super) unconfirmed: u8,
    /// How often in a row a queue took something of it not, by a negative confirmation.
    pub(super) nacked: u8,
    /// How long it has waited for such queues.
    pub(super) waited: Duration,
    /// Something for our own queues was held back, which is said of them until it is confirmed.
    pub(super) held: bool,
    /// Size of the reply, for the answer to its refusal.
    pub(super) reply_bytes: usize,
    /// What counts for it until it owes nothing more.
    pub(super) weights: Vec<Weight>,
    /// What other workers are told before it leaves: whoever wrote it may have died before that.
    pub(super) stale: Stale,
}

impl Parcel {
    /// Makes a parcel that owes nothing yet.
    pub(super) fn new(ticket: Option<Ticket>, id: Option<String>) -> Self {
        Self {
            ticket,
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
            held: false,
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
            (Err(PublishError::Nacked(_)), false) if self.ticket.is_none() => Verdict::Fine,
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
    fn part(&mut self, silences: &Silences) -> Option<Address> {
        self.join();
        self.event_last = self.events.first().is_some_and(|event| silences.contains(&event.address()));
        if !self.first.is_empty() {
            // What follows a task leaves before its answer, whatever becomes of it.
            let mut addresses = self.first.iter().map(|(_, publication)| &publication.address);
            return addresses.find(|address| silences.contains(address)).cloned();
        }
        let silent = |(_, publication): &mut (Role, Publication)| silences.contains(&publication.address);
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
    pub(super) fn owes(&self, role: Role) -> bool {
        self.first.iter().chain(&self.last).any(|(owed, _)| *owed == role)
    }

    /// Owes nothing more but what has this role, and its events.
    pub(super) fn keep_only(&mut self, role: Role) {
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
pub(super) struct Lane {
    pub(super) address: Address,
    /// Answers to it are given up: one that is not confirmed is no longer owed.
    pub(super) hopeless: bool,
}

impl Lane {
    fn gives_up(&self, address: &Address) -> bool {
        self.hopeless && self.address == *address
    }
}

/// Publications of some parcels, on their way together.
#[derive(Debug)]
pub(super) struct Batch {
    parcels: Vec<Parcel>,
    slots: Vec<Slot>,
    lane: Option<Lane>,
}

/// Which debt a publication of the batch pays.
#[derive(Debug)]
enum Slot {
    /// The parcel's own; kept where it is sent again when it comes back.
    Own { parcel: usize, role: Role, kept: Option<Box<Publication>> },
    /// Everyone's of whom an event is in it, and which one.
    Events(Vec<(usize, usize)>),
}

/// What the broker's answers to a batch leave to be done.
#[derive(Debug, Default)]
pub(super) struct Answered {
    /// Owe nothing more: acknowledge.
    pub(super) done: Vec<Parcel>,
    /// Go on with the next stage.
    pub(super) again: Vec<Parcel>,
    /// Not taken now, or refused without being given up; wait, then try again.
    pub(super) held: Vec<(Parcel, String)>,
    /// Came back unrouted; see to its queue, then try again.
    pub(super) unrouted: Vec<(Parcel, Role)>,
    /// Refused for good; the broker's words.
    pub(super) refused: Vec<(Parcel, Role, String)>,
    /// Parcels of which an event came back unrouted.
    pub(super) unheard: Vec<Parcel>,
    /// The silent address this went to.
    pub(super) lane: Option<Address>,
    /// Addresses that confirmed nothing in time.
    pub(super) silent: HashSet<Address>,
    /// Addresses whose queue took something not, by a negative confirmation.
    pub(super) full: HashSet<Address>,
    /// Answers that are no longer owed though nobody took them.
    pub(super) given_up: Vec<GivenUp>,
    /// The broker refuses events; its words.
    pub(super) events_refused: Option<String>,
    /// The session is lost, with the reason; its parcels stay unsettled.
    pub(super) lost: Option<String>,
    /// Counts for the metrics: confirmed, returned, refused, unconfirmed.
    pub(super) counts: [u64; 4],
}

/// Parcels in the order they came.
#[derive(Debug, Default)]
pub(super) struct Outbox {
    waiting: VecDeque<Parcel>,
    /// What goes to silent addresses, which take turns.
    apart: VecDeque<(Address, VecDeque<Parcel>)>,
}

impl Outbox {
    /// Takes a parcel in.
    pub(super) fn push(&mut self, mut parcel: Parcel) {
        parcel.join();
        self.waiting.push_back(parcel);
    }

    /// Tells whether nothing waits.
    pub(super) fn is_empty(&self) -> bool {
        self.waiting.is_empty() && self.apart.is_empty()
    }

    /// Puts what goes to a silent address apart, and back what goes to none any more.
    pub(super) fn part(&mut self, silences: &mut Silences) {
        if !silences.any() && self.apart.is_empty() {
            return;
        }
        for (address, parcels) in std::mem::take(&mut self.apart) {
            if silences.contains(&address) {
                self.apart.push_back((address, parcels));
            } else {
                self.waiting.extend(parcels);
            }
        }
        for mut parcel in std::mem::take(&mut self.waiting) {
            let Some(address) = parcel.part(silences) else {
                self.waiting.push_back(parcel);
                continue;
            };
            match self.apart.iter_mut().find(|(other, _)| *other == address) {
                Some((_, parcels)) => parcels.push_back(parcel),
                None => self.apart.push_back((address, VecDeque::from([parcel]))),
            }
        }
    }

    /// Tells whether something waits that is not apart.
    pub(super) fn has_next(&self) -> bool {
        !self.waiting.is_empty()
    }

    /// Finds a silent address for which something waits, other than these.
    pub(super) fn next_apart(&self, busy: &HashSet<Address>) -> Option<Address> {
        self.apart.iter().map(|(address, _)| address).find(|address| !busy.contains(address)).cloned()
    }

    /// Takes out up to `limit` parcels for a silent address, as [`Outbox::take`] does.
    pub(super) fn take_apart(&mut self, lane: Lane, limit: usize, events: usize) -> (Batch, Vec<Publication>) {
        let place = self.apart.iter().position(|(address, _)| *address == lane.address);
        let mut parcels =
            place.and_then(|place| self.apart.remove(place)).map(|(_, parcels)| parcels).unwrap_or_default();
        let rest = parcels.split_off(parcels.len().min(limit));
        if !rest.is_empty() {
            self.apart.push_back((lane.address.clone(), rest));
        }
        let (batch, publications) = pack(parcels.into(), events);
        (Batch { lane: Some(lane), ..batch }, publications)
    }

    /// Takes out up to `limit` parcels and what they owe first; at most `events` events share a message (0: no
    /// events at all).
    pub(super) fn take(&mut self, limit: usize, events: usize) -> (Batch, Vec<Publication>) {
        let count = self.waiting.len().min(limit);
        pack(self.waiting.drain(..count).collect(), events)
    }
}

/// Gathers what parcels owe first.
fn pack(mut parcels: Vec<Parcel>, events: usize) -> (Batch, Vec<Publication>) {
    let mut slots = Vec::with_capacity(parcels.len() * 2);
    let mut publications = Vec::with_capacity(parcels.len() * 2);
    // Without a message to share, events are off: they are delivered to nobody.
    let events_on = events > 0;
    let mut groups: BTreeMap<String, Vec<(usize, usize)>> = BTreeMap::new();
    for (index, parcel) in parcels.iter_mut().enumerate() {
        let stage = if parcel.first.is_empty() { &mut parcel.then } else { &mut parcel.first };
        for (role, publication) in stage.drain(..) {
            if role == Role::Reply {
                parcel.reply_bytes = parcel.reply_bytes.max(publication.message.body.len());
            }
            let kept = (!role.may_be_unheard()).then(|| Box::new(publication.clone()));
            publications.push(publication);
            slots.push(Slot::Own { parcel: index, role, kept });
        }
        if parcel.then.is_empty() {
            if !events_on {
                parcel.events.clear();
            }
            if !parcel.event_last {
                // After a part was confirmed, the rest is sent again.
                parcel.told = parcel.told.max(parcel.events.len());
                for (number, event) in parcel.events.iter().enumerate() {
                    groups.entry(event.routing_key.clone()).or_default().push((index, number));
                }
            }
        }
    }
    for members in groups.into_values() {
        for group in members.chunks(events) {
            let joined: Vec<&Event> = group.iter().map(|&(index, number)| &parcels[index].events[number]).collect();
            if let Some(publication) = Event::join(&joined) {
                publications.push(publication);
                slots.push(Slot::Events(group.to_vec()));
            }
        }
    }
    (Batch { parcels, slots, lane: None }, publications)
}

fn unconfirmed(Address { exchange, routing_key }: &Address) -> String {
    format!("the broker did not confirm what went to exchange '{exchange}' with routing key '{routing_key}'")
}

/// What one parcel of a batch came to; the worst of its answers counts, in this order.
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
    pub(super) fn may_be_given_up(&self) -> bool {
        self.slots.iter().all(|slot| matches!(slot, Slot::Own { role, .. } if role.may_be_unheard()))
    }

    /// Reads the broker's answers, one for each publication in order.
    pub(super) fn answered(mut self, answers: Vec<Result<Confirmation, PublishError>>) -> Answered {
        let lane = self.lane;
        let mut answered = Answered { lane: lane.as_ref().map(|lane| lane.address.clone()), ..Answered::default() };
        let mut verdicts = vec![Verdict::Fine; self.parcels.len()];
        let mut nacked = vec![false; self.parcels.len()];
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
                Slot::Own { parcel, role, kept } => {
                    nacked[parcel] |= matches!(answer, Err(PublishError::Nacked(_)));
                    let verdict = self.parcels[parcel].taken(role, kept, answer, lane.as_ref());
                    if let Verdict::GivenUp(why) = verdict {
                        answered.given_up.push(why);
                    }
                    if let Verdict::Lost(reason) = &verdict {
                        answered.lost = Some(reason.clone());
                    }
                    verdicts[parcel].worsen(verdict);
                }
                Slot::Events(members) => match answer {
                    Ok(Confirmation::Routed) => {
                        members.iter().for_each(|&(member, number)| self.parcels[member].events[number].is_over = true);
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
                        members.iter().for_each(|&(member, number)| self.parcels[member].events[number].is_over = true);
                        answered.events_refused = Some(format!("{code} {text}"));
                    }
                    Err(PublishError::Lost(reason)) => {
                        members.iter().for_each(|&(member, _)| verdicts[member].worsen(Verdict::Lost(reason.clone())));
                        answered.lost = Some(reason);
                    }
                },
            }
        }
        for ((mut parcel, verdict), nacked) in self.parcels.into_iter().zip(verdicts).zip(nacked) {
            parcel.events.retain(|event| !event.is_over);
            let is_held = matches!(verdict, Verdict::Held(_));
            parcel.nacked = if is_held && nacked { parcel.nacked.saturating_add(1) } else { 0 };
            parcel.unconfirmed =
                if is_held && !nacked && lane.is_some() { parcel.unconfirmed.saturating_add(1) } else { 0 };
            if matches!(verdict, Verdict::Fine | Verdict::GivenUp(_)) {
                // What is next has its own time to be taken.
                parcel.waited = Duration::ZERO;
            }
            match verdict {
                Verdict::Fine | Verdict::GivenUp(_) if parcel.is_done() => answered.done.push(parcel),
                Verdict::Fine | Verdict::GivenUp(_) => answered.again.push(parcel),
                Verdict::Unheard => answered.unheard.push(parcel),
                Verdict::Held(reason) => answered.held.push((parcel, reason)),
                Verdict::Unrouted(role) => answered.unrouted.push((parcel, role)),
                Verdict::Refused(role, text) => answered.refused.push((parcel, role, text)),
                Verdict::Lost(_) => drop(parcel),
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
