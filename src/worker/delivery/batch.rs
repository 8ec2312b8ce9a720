//! Publications that leave together: events of one routing key share messages.

use std::collections::BTreeMap;

use tokio::time::Instant;

use crate::broker::{Confirmation, EarlyWord, PublishError};
use crate::celery::message::{Address, Publication};
use crate::worker::delivery::fate::{Fate, Sent};
use crate::worker::delivery::owed::{Content, Debt, Owed};
use crate::worker::delivery::role::Role;
use crate::worker::events::Event;
use crate::worker::own_queues::OwnQueue;

/// What is being confirmed.
#[derive(Debug)]
pub(in crate::worker) struct Batch {
    /// Those that are known are taken out.
    slots: Vec<Option<Slot>>,
    /// It has one publication, which tries this address.
    trial: Option<Address>,
    /// Addresses of which nothing was known when early word came.
    slow: Vec<Address>,
}

/// Whose publication is at one place of the batch.
#[derive(Debug)]
enum Slot {
    /// One debt's own, kept where the broker's word may not bring it back.
    Own(Debt, Option<Box<Publication>>),
    /// Of all debts of which an event is in it.
    Events(Vec<(Debt, Event)>),
}

/// What the broker's word about one publication leaves to be done.
#[derive(Debug)]
pub(in crate::worker) struct Settled {
    pub(super) debt: Debt,
    pub(super) fate: Fate,
    /// What was sent, where it may be sent again.
    pub(super) content: Option<Content>,
}

/// What came of a batch.
#[derive(Debug, Default)]
pub(in crate::worker) struct Landed {
    pub(super) settled: Vec<Settled>,
    /// The address that was tried.
    pub(super) trial: Option<Address>,
    /// Addresses of which nothing is known yet.
    pub(super) slow: Vec<Address>,
    /// What is still waited for.
    pub(super) waiting: Vec<Debt>,
    /// Addresses of which nothing was known before.
    pub(super) was_slow: Vec<Address>,
    /// Its queue is missing and only somebody else can make it; in the broker's words.
    pub(super) denied: Option<String>,
    /// A queue of our own is missing or down, in the broker's words.
    pub(super) away: Option<(OwnQueue, String)>,
    /// Publications confirmed, returned, refused, unconfirmed.
    pub(super) counts: [u64; 4],
}

/// Packs what is owed; at most `events` events share a message, at least one.
pub(super) fn pack(
    owed: impl Iterator<Item = Owed>,
    events: usize,
    trial: Option<Address>,
) -> (Batch, Vec<Publication>) {
    let mut slots = Vec::with_capacity(owed.size_hint().0);
    let mut publications = Vec::with_capacity(owed.size_hint().0);
    let mut groups: BTreeMap<String, Vec<(Debt, Event)>> = BTreeMap::new();
    for Owed { debt, content } in owed {
        match content {
            Content::Publication(publication) => {
                let kept = (!debt.role.is_answer()).then(|| publication.clone());
                slots.push(Some(Slot::Own(debt, kept)));
                publications.push(*publication);
            }
            Content::Event(event) => match groups.get_mut(&event.routing_key) {
                Some(group) => group.push((debt, event)),
                None => drop(groups.insert(event.routing_key.clone(), vec![(debt, event)])),
            },
        }
    }
    for mut members in groups.into_values() {
        while !members.is_empty() {
            let rest = members.split_off(members.len().min(events.max(1)));
            let joined: Vec<&Event> = members.iter().map(|(_, event)| event).collect();
            if let Some(publication) = Event::join(&joined) {
                slots.push(Some(Slot::Events(members)));
                publications.push(publication);
            }
            members = rest;
        }
    }
    (Batch { slots, trial, slow: Vec::new() }, publications)
}

impl Batch {
    /// Returns the positions of the publications that the result backend sends.
    pub(super) fn results(&self) -> Vec<usize> {
        let is_result = |slot: &Option<Slot>| matches!(slot, Some(Slot::Own(debt, _)) if debt.role.is_result());
        self.slots.iter().enumerate().filter(|(_, slot)| is_result(slot)).map(|(position, _)| position).collect()
    }

    /// Tells whether there is nothing in it but what may be given up.
    pub(super) fn may_be_given_up(&self) -> bool {
        self.slots.iter().all(|slot| matches!(slot, Some(Slot::Own(debt, _)) if debt.role.is_answer()))
    }

    /// Takes in what the broker has said so far of what was sent then.
    pub(super) fn landed_early(&mut self, word: EarlyWord, sent: Instant) -> Landed {
        let EarlyWord { confirmed, open } = word;
        let mut landed = Landed { slow: open.clone(), ..Landed::default() };
        self.slow = open;
        for (place, confirmation) in confirmed {
            if let Some(slot) = self.slots.get_mut(place).and_then(Option::take) {
                landed.take(slot, Ok(confirmation), Heard { is_alone: false, is_over_broker: true });
            }
        }
        for slot in self.slots.iter_mut().flatten() {
            let debts: Vec<&mut Debt> = match slot {
                Slot::Own(debt, _) => vec![debt],
                Slot::Events(members) => members.iter_mut().map(|(debt, _)| debt).collect(),
            };
            for debt in debts {
                debt.since.get_or_insert(sent);
                landed.waiting.push(debt.clone());
            }
        }
        landed
    }

    /// Reads the broker's words, one for each publication in order. What was not answered is not known to be taken.
    ///
    /// Results count as the broker's only where they go over the broker. `is_broker_well` says that the broker confirmed
    /// something else meanwhile, so that it is not the broker that is silent.
    pub(in crate::worker) fn landed(
        self,
        answers: Vec<Result<Confirmation, PublishError>>,
        are_results_over_broker: bool,
        is_broker_well: bool,
    ) -> Landed {
        let is_alone = self.trial.is_some() || is_broker_well;
        let mut landed = Landed { trial: self.trial, was_slow: self.slow, ..Landed::default() };
        let unanswered = || Err(PublishError::Lost("a publication was not answered".to_owned()));
        let answers = answers.into_iter().chain(std::iter::repeat_with(unanswered));
        for (slot, answer) in self.slots.into_iter().zip(answers) {
            let Some(slot) = slot else { continue };
            let is_result = matches!(&slot, Slot::Own(debt, _) if debt.role.is_result());
            landed.take(slot, answer, Heard { is_alone, is_over_broker: are_results_over_broker || !is_result });
        }
        landed
    }
}

/// How the broker's word is to be understood.
#[derive(Clone, Copy)]
struct Heard {
    is_alone: bool,
    is_over_broker: bool,
}

impl Landed {
    /// Takes in the broker's word about one publication.
    fn take(&mut self, slot: Slot, answer: Result<Confirmation, PublishError>, heard: Heard) {
        self.count(&answer);
        let Heard { is_alone, is_over_broker } = heard;
        match slot {
            Slot::Own(debt, kept) => {
                let sent = Sent { role: debt.role, is_alone, is_over_broker, tries: debt.tries };
                let (fate, content) = Fate::of(answer, sent, kept);
                self.settled.push(Settled { debt, fate, content: content.map(Content::Publication) });
            }
            Slot::Events(members) => {
                let sent = Sent { role: Role::Event, is_alone, is_over_broker, tries: 0 };
                let (fate, _) = Fate::of(answer, sent, None);
                self.settled.extend(members.into_iter().map(|(debt, event)| Settled {
                    debt,
                    fate: fate.clone(),
                    content: Some(Content::Event(event)),
                }));
            }
        }
    }

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
