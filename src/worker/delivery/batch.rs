//! Publications that leave together: events of one routing key share messages.

use std::collections::BTreeMap;

use crate::broker::{Confirmation, PublishError};
use crate::celery::message::{Address, Publication};
use crate::worker::delivery::fate::{Fate, Sent};
use crate::worker::delivery::owed::{Content, Debt, Owed};
use crate::worker::delivery::role::Role;
use crate::worker::events::Event;
use crate::worker::own_queues::OwnQueue;

/// What is being confirmed.
#[derive(Debug)]
pub(in crate::worker) struct Batch {
    slots: Vec<Slot>,
    /// It has one publication, which tries this address.
    trial: Option<Address>,
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
                slots.push(Slot::Own(debt, kept));
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
                slots.push(Slot::Events(members));
                publications.push(publication);
            }
            members = rest;
        }
    }
    (Batch { slots, trial }, publications)
}

impl Batch {
    /// Returns the positions of the publications that the result backend sends.
    pub(super) fn results(&self) -> Vec<usize> {
        let is_result = |slot: &Slot| matches!(slot, Slot::Own(debt, _) if debt.role.is_result());
        self.slots.iter().enumerate().filter(|(_, slot)| is_result(slot)).map(|(position, _)| position).collect()
    }

    /// Tells whether there is nothing in it but what may be given up.
    pub(super) fn may_be_given_up(&self) -> bool {
        self.slots.iter().all(|slot| matches!(slot, Slot::Own(debt, _) if debt.role.is_answer()))
    }

    /// Reads the broker's words, one for each publication in order. What was not answered is not known to be taken.
    ///
    /// Results count as the broker's only where they go over the broker.
    pub(in crate::worker) fn landed(
        self,
        answers: Vec<Result<Confirmation, PublishError>>,
        are_results_over_broker: bool,
    ) -> Landed {
        let is_trial = self.trial.is_some();
        let mut landed = Landed { trial: self.trial, ..Landed::default() };
        let unanswered = || Err(PublishError::Lost("a publication was not answered".to_owned()));
        let answers = answers.into_iter().chain(std::iter::repeat_with(unanswered));
        for (slot, answer) in self.slots.into_iter().zip(answers) {
            landed.count(&answer);
            match slot {
                Slot::Own(debt, kept) => {
                    let is_over_broker = are_results_over_broker || !debt.role.is_result();
                    let (role, is_passing, tries) = (debt.role, debt.is_passing, debt.tries);
                    let sent = Sent { role, is_passing, is_trial, is_over_broker, tries };
                    let (fate, content) = Fate::of(answer, sent, kept);
                    landed.settled.push(Settled { debt, fate, content: content.map(Content::Publication) });
                }
                Slot::Events(members) => {
                    let role = Role::Event;
                    let sent = Sent { role, is_passing: false, is_trial, is_over_broker: true, tries: 0 };
                    let (fate, _) = Fate::of(answer, sent, None);
                    landed.settled.extend(members.into_iter().map(|(debt, event)| Settled {
                        debt,
                        fate: fate.clone(),
                        content: Some(Content::Event(event)),
                    }));
                }
            }
        }
        landed
    }
}

impl Landed {
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
