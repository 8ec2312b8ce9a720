//! What must be confirmed by the broker before a delivery may be acknowledged.
//!
//! What gathers while the previous batch is being confirmed leaves together: replies, follow-ups, dead copies, and the
//! events, of which those with one routing key share messages.

use std::collections::{BTreeMap, HashSet, VecDeque};
use std::time::Duration;

use crate::broker::{Confirmation, PublishError};
use crate::celery::message::{Address, Publication};
use crate::telemetry::GivenUp;
use crate::worker::delivery::destinations::Destinations;
use crate::worker::delivery::held::HeldCommands;
use crate::worker::delivery::pending_ack::Owed;
use crate::worker::delivery::pending_ack::{Lane, PendingAck, Role, Verdict, unconfirmed};
use crate::worker::events::Event;

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
    /// Addresses from which something that must be in a queue came back.
    pub(in crate::worker) missing: HashSet<Address>,
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

    /// Takes out, of what waits for silent or full addresses, up to `limit` pending acknowledgements that waited for `patience`, or
    /// whose address is known to take nothing. Of the latter one is left from time to time, to try the address.
    pub(in crate::worker) fn take_stalled(
        &mut self,
        destinations: &mut Destinations,
        patience: Duration,
        limit: usize,
    ) -> Vec<(PendingAck, Vec<Owed>)> {
        let mut taken = Vec::new();
        for (address, pending_acks) in &mut self.apart {
            let is_open = destinations.is_open(address);
            let mut is_trial = is_open && destinations.begin_trial(address);
            for mut pending in std::mem::take(pending_acks) {
                let is_due = is_open && !std::mem::take(&mut is_trial) || !is_open && pending.stalled_for() >= patience;
                if !is_due || taken.len() >= limit || pending.ack_token.is_none() || pending.is_unparkable {
                    pending_acks.push_back(pending);
                    continue;
                }
                let owed = pending.take_stalled(destinations);
                if owed.is_empty() {
                    pending_acks.push_back(pending);
                } else {
                    taken.push((pending, owed));
                }
            }
        }
        self.apart.retain(|(_, pending_acks)| !pending_acks.is_empty());
        taken
    }

    /// Takes out what has been apart for longer than a delivery may be kept.
    pub(in crate::worker) fn take_older(&mut self, limit: Duration) -> Vec<PendingAck> {
        let mut taken = Vec::new();
        for (_, pending_acks) in &mut self.apart {
            for pending in std::mem::take(pending_acks) {
                if pending.stalled_for() >= limit { taken.push(pending) } else { pending_acks.push_back(pending) }
            }
        }
        self.apart.retain(|(_, pending_acks)| !pending_acks.is_empty());
        taken
    }

    /// Notes that what is apart keeps its slots.
    pub(in crate::worker) fn stall(&mut self, held: &HeldCommands) {
        for pending in self.apart.iter_mut().flat_map(|(_, pending_acks)| pending_acks) {
            if pending.ack_token.is_some() {
                pending.stall(held);
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
            if let (Slot::Own { kept: Some(kept), .. }, Ok(Confirmation::Returned { .. })) = (&slot, &answer) {
                answered.missing.insert(kept.address.clone());
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
