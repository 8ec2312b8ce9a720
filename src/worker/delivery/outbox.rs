//! What must be confirmed by the broker before a delivery may be acknowledged.
//!
//! The publication is the unit: each waits, leaves, comes back and is parked by itself, and a command counts what is outstanding.
//! Whatever gathers while the previous batch is being confirmed leaves together, but for what goes to addresses that take nothing:
//! it waits apart, in a line for each address.

use std::collections::{BTreeMap, BTreeSet, HashMap, HashSet, VecDeque};
use std::time::Duration;

use jiff::Timestamp;
use tokio::time::Instant;

use crate::celery::message::{Address, Publication};
use crate::telemetry::{GivenUp, Parked};
use crate::worker::delivery::batch::{Batch, Landed, Settled, pack};
use crate::worker::delivery::destinations::{ANSWER_PATIENCE, Destinations, Fault};
use crate::worker::delivery::fate::Fate;
use crate::worker::delivery::held::HeldCommands;
use crate::worker::delivery::owed::{CommandNumber, Content, Debt, Owed};
use crate::worker::delivery::pending_ack::PendingAck;
use crate::worker::delivery::role::{Role, own_queue};
use crate::worker::own_queues::OwnQueue;

/// What finished commands owe, and the commands that owe it.
#[derive(Debug, Default)]
pub(in crate::worker) struct Outbox {
    commands: HashMap<CommandNumber, PendingAck>,
    last: u64,
    /// What leaves with the next batch, in order.
    line: VecDeque<Owed>,
    /// The state of the addresses by which the front of the line was last looked at, and its length.
    seen: (u64, usize),
    /// What waits for addresses that take nothing.
    apart: BTreeMap<Address, VecDeque<Owed>>,
    /// Commands that owe nothing more.
    done: Vec<PendingAck>,
    held: HeldCommands,
}

/// What is to be parked.
#[derive(Debug)]
pub(in crate::worker) struct Parkable {
    pub(super) owed: Owed,
    /// The task of its command.
    pub(super) task_id: Option<String>,
    /// When it was first parked, if it was.
    pub(super) parked_at: Option<Timestamp>,
    pub(super) step: usize,
}

/// What the broker's words leave to be done by others.
#[derive(Debug, Default)]
pub(in crate::worker) struct DeliveryReport {
    /// Refused for good, in the broker's words, with the publication where it is at hand.
    pub(in crate::worker) refused: Vec<(Debt, String, Option<Content>)>,
    /// The session is lost, with the reason.
    pub(in crate::worker) lost: Option<String>,
    /// Events that arrived.
    pub(in crate::worker) published: u64,
    /// Events that nobody wants.
    pub(in crate::worker) unheard: u64,
    /// It was looked after, and nobody listens to events.
    pub(in crate::worker) has_no_listener: bool,
    /// The broker refuses events; its words.
    pub(in crate::worker) events_refused: Option<String>,
    /// How many were not taken, the task of the first, and why.
    pub(in crate::worker) not_taken: Option<(usize, Option<String>, String)>,
    /// Queues of our own that took something not, and why.
    pub(in crate::worker) held_back: BTreeMap<OwnQueue, String>,
    /// A queue of our own that is missing or down, in the broker's words.
    pub(in crate::worker) away: Option<(OwnQueue, String)>,
    /// Addresses that take what they get again.
    pub(in crate::worker) closed: Vec<Address>,
    /// Counts for the metrics: confirmed, returned, refused, unconfirmed.
    pub(in crate::worker) counts: [u64; 4],
}

impl Outbox {
    /// Takes a command in, and what it owes.
    pub(in crate::worker) fn push(&mut self, pending: PendingAck) {
        self.last += 1;
        let number = CommandNumber(self.last);
        self.commands.insert(number, pending);
        self.go_on(number);
    }

    /// Returns the count of commands that keep their slots because something of theirs is not taken.
    pub(in crate::worker) const fn held(&self) -> &HeldCommands {
        &self.held
    }

    /// Tells whether no command owes anything. What came back from its parking is no command's any more.
    pub(in crate::worker) fn is_empty(&self) -> bool {
        self.commands.values().all(|pending| pending.returned.is_some()) && self.done.is_empty()
    }

    /// Tells whether something waits that may leave with the next batch.
    pub(in crate::worker) fn has_next(&self) -> bool {
        !self.line.is_empty()
    }

    /// Tells whether something waits for addresses that take nothing.
    pub(in crate::worker) fn has_apart(&self) -> bool {
        !self.apart.is_empty()
    }

    /// Takes out the commands that owe nothing more.
    pub(in crate::worker) fn take_done(&mut self) -> Vec<PendingAck> {
        std::mem::take(&mut self.done)
    }

    /// Puts what goes to addresses that take nothing apart, and back what goes to none any more.
    pub(in crate::worker) fn divert(&mut self, destinations: &Destinations) {
        let closed: Vec<Address> =
            self.apart.keys().filter(|address| !destinations.is_open(address)).cloned().collect();
        for address in closed {
            self.line.extend(self.apart.remove(&address).unwrap_or_default());
        }
        if destinations.is_empty() {
            return;
        }
        // What is at the front was looked at already, unless an address was found since that takes nothing.
        let seen = if self.seen.0 == destinations.changes() { self.seen.1.min(self.line.len()) } else { 0 };
        for mut owed in self.line.split_off(seen) {
            if !owed.content.is_for_open(destinations) {
                self.line.push_back(owed);
            } else if owed.debt.is_passing {
                self.pay(&owed.debt);
            } else {
                self.stall(&mut owed.debt);
                self.apart.entry(owed.content.address()).or_default().push_back(owed);
            }
        }
        self.seen = (destinations.changes(), self.line.len());
    }

    /// Takes out up to `limit` publications, not counting events; at most `events` events share a message (0: no events at all).
    pub(in crate::worker) fn take(&mut self, limit: usize, events: usize) -> (Batch, Vec<Publication>) {
        let mut room = limit;
        let is_over = |owed: &Owed| {
            // Events share messages.
            room -= usize::from(owed.debt.role != Role::Event && room > 0);
            room == 0
        };
        let count = self.line.iter().position(is_over).map_or(self.line.len(), |last| last + 1);
        let mut taken: Vec<Owed> = self.line.drain(..count).collect();
        // The rest may be other events than those that were looked at.
        self.seen = (self.seen.0, self.seen.1.saturating_sub(count));
        if events == 0 {
            // They are delivered to nobody.
            for owed in taken.extract_if(.., |owed| owed.debt.role == Role::Event).collect::<Vec<_>>() {
                self.pay(&owed.debt);
            }
        }
        taken.iter().for_each(|owed| self.note_sent(owed));
        pack(taken.into_iter(), events, None)
    }

    /// Finds the address that is to be tried next of those for which something waits, other than these.
    pub(in crate::worker) fn next_trial(
        &self,
        destinations: &Destinations,
        busy: &HashSet<Address>,
    ) -> Option<(Instant, Address)> {
        let waiting = self.apart.keys().filter(|address| !busy.contains(*address));
        waiting
            .map(|address| (destinations.next_try(address), address))
            .min()
            .map(|(at, address)| (at, address.clone()))
    }

    /// Takes out what tries an address.
    pub(in crate::worker) fn take_trial(&mut self, address: &Address) -> Option<Owed> {
        let line = self.apart.get_mut(address)?;
        let owed = line.pop_front();
        if line.is_empty() {
            self.apart.remove(address);
        }
        owed.iter().for_each(|owed| self.note_sent(owed));
        owed
    }

    /// Takes in what came of a batch, and opens and closes circuits. `is_unheard` says that nobody listens to events, as is known.
    pub(in crate::worker) fn land(
        &mut self,
        landed: Landed,
        destinations: &mut Destinations,
        is_unheard: bool,
    ) -> DeliveryReport {
        let Landed { settled, trial, slow, waiting, was_slow, denied, away, counts } = landed;
        let mut report = DeliveryReport { counts, away, ..DeliveryReport::default() };
        let mut tripped: BTreeMap<Address, Fault> = BTreeMap::new();
        let mut is_taken = false;
        for Settled { mut debt, fate, content } in settled {
            match (fate, content) {
                (Fate::Taken, _) => {
                    is_taken = true;
                    report.published += u64::from(debt.role == Role::Event);
                    self.pay(&debt);
                }
                (Fate::Unheard, _) if trial.is_some() || is_unheard => {
                    is_taken = true;
                    report.unheard += 1;
                    report.has_no_listener |= trial.is_some();
                    self.pay(&debt);
                }
                (Fate::Unheard, Some(content)) => {
                    tripped.insert(content.address(), Fault::Missing);
                    self.owe_again(Owed { debt, content });
                }
                (Fate::NotTaken(fault, words), Some(content)) => {
                    let address = content.address();
                    if let Some(queue) = own_queue(&address).filter(|_| fault != Fault::Missing) {
                        report.held_back.entry(queue).or_insert_with(|| words.clone());
                    }
                    let id = || self.commands.get(&debt.command).and_then(|pending| pending.id.clone());
                    report.not_taken.get_or_insert_with(|| (0, id(), words)).0 += 1;
                    tripped.insert(address, fault);
                    debt.tries = debt.tries.saturating_add(u8::from(trial.is_some() && fault == Fault::Missing));
                    self.owe_again(Owed { debt, content });
                }
                (Fate::Refused(words), _) if debt.role == Role::Event => {
                    report.events_refused = Some(words);
                    self.pay(&debt);
                }
                (Fate::Refused(words), content) => self.refused(&debt, words, content, &mut report),
                (Fate::Doubted(reason), content) => {
                    tripped.extend(content.map(|content| (content.address(), Fault::Silent)));
                    report.lost = Some(reason);
                }
                (Fate::Lost(reason), _) => report.lost = Some(reason),
                // Whatever may be sent again is brought back or was kept.
                (Fate::Unheard | Fate::NotTaken(..), None) => {
                    report.lost = Some("a publication that was not taken is not at hand".to_owned());
                }
            }
        }
        tripped.iter().for_each(|(address, fault)| destinations.trip(address, *fault));
        slow.iter().for_each(|address| destinations.doubt(address, Fault::Silent));
        waiting.into_iter().for_each(|mut debt| self.stall(&mut debt));
        for address in was_slow {
            if report.lost.is_none() && !tripped.contains_key(&address) && destinations.close(&address) {
                report.closed.push(address);
            }
        }
        if let Some(address) = trial {
            if let Some(words) = denied {
                self.deny(&address, &words, &mut report);
            }
            if is_taken && destinations.close(&address) {
                report.closed.push(address);
            }
        }
        report
    }

    /// Nobody but others can make the queue at this address, and they have not: its follow-ups are refused.
    fn deny(&mut self, address: &Address, words: &str, report: &mut DeliveryReport) {
        let Some(line) = self.apart.get_mut(address) else { return };
        let is_denied = |owed: &Owed| owed.debt.role == Role::FollowUp;
        let denied = extract(line, usize::MAX, is_denied);
        denied.into_iter().for_each(|owed| self.refused(&owed.debt, words.to_owned(), Some(owed.content), report));
        self.apart.retain(|_, line| !line.is_empty());
    }

    fn refused(&mut self, debt: &Debt, words: String, content: Option<Content>, report: &mut DeliveryReport) {
        let Some(pending) = self.commands.get_mut(&debt.command) else { return };
        if debt.refusals < pending.refusals {
            return self.pay(debt);
        }
        if debt.role == Role::Reply {
            pending.replied = false;
        }
        // It is owed until it is known what is sent instead.
        report.refused.push((debt.clone(), words, content));
    }

    /// Goes on with a command of which something was refused, after `mend` has said what it owes instead.
    pub(in crate::worker) fn mend(&mut self, refused: &Debt, mend: impl FnOnce(&mut PendingAck)) {
        let Some(pending) = self.commands.get_mut(&refused.command) else { return };
        if refused.refusals < pending.refusals {
            // Another refusal, of the same batch, has said already what is sent instead.
            return self.pay(refused);
        }
        mend(pending);
        let (command, refusals) = (refused.command, pending.refusals);
        let is_dropped = |owed: &Owed| {
            let debt = &owed.debt;
            debt.command == command && debt.refusals < refusals && !debt.role.outlives_refusal()
        };
        self.seen.1 = 0;
        let mut dropped = extract(&mut self.line, usize::MAX, is_dropped);
        self.apart.values_mut().for_each(|line| dropped.extend(extract(line, usize::MAX, is_dropped)));
        self.apart.retain(|_, line| !line.is_empty());
        dropped.iter().for_each(|owed| self.pay(&owed.debt));
        self.pay(refused);
    }

    /// Tells whether something that came back from its parking is neither delivered nor parked again.
    pub(in crate::worker) fn has_returned(&self) -> bool {
        self.commands.values().any(|pending| pending.returned.is_some())
    }

    /// Takes out what has waited apart for `patience`, or whose address is known to take nothing; without any patience, only what
    /// came back from its parking. That waits as long as its address is being tried, as these are, or is to be tried.
    pub(in crate::worker) fn take_parkable(
        &mut self,
        destinations: &Destinations,
        tried: &HashSet<Address>,
        patience: Option<Duration>,
        limit: usize,
    ) -> Vec<Parkable> {
        let (mut taken, now) = (Vec::new(), Instant::now());
        for (address, line) in &mut self.apart {
            let (is_parking, is_tried) = (destinations.is_parking(address), tried.contains(address));
            let is_due_trial = destinations.next_try(address) <= now;
            let is_due = |owed: &Owed| match &owed.debt {
                // A command that waits for its time has no publication that could wait elsewhere.
                Debt { role: Role::Delay, .. } | Debt { is_unparkable: true, .. } => false,
                Debt { is_returned: true, .. } => !is_tried && !is_due_trial,
                debt => patience.is_some_and(|patience| is_parking || debt.age() >= patience),
            };
            for owed in extract(line, limit - taken.len(), is_due) {
                let pending = self.commands.get(&owed.debt.command);
                let returned = pending.and_then(|pending| pending.returned.as_ref());
                let (parked_at, step) =
                    returned.map_or((None, 0), |returned| (Some(returned.parked_at), returned.step));
                let task_id = pending.and_then(|pending| pending.id.clone());
                taken.push(Parkable { owed, task_id, parked_at, step });
            }
        }
        self.apart.retain(|_, line| !line.is_empty());
        taken
    }

    /// Takes out what came back from its parking, has been parked for longer than that is done, and was just tried in vain.
    pub(in crate::worker) fn take_aged(
        &mut self,
        destinations: &Destinations,
        tried: &HashSet<Address>,
        now: Timestamp,
        max_age: Duration,
    ) -> Vec<Owed> {
        let Self { commands, apart, .. } = self;
        let is_aged = |owed: &Owed| {
            let Debt { role, is_returned, command, .. } = &owed.debt;
            let returned = || commands.get(command).and_then(|pending| pending.returned.as_ref());
            *is_returned
                && !role.is_answer()
                && *role != Role::Dead
                && returned().is_some_and(|returned| returned.is_older(now, max_age))
        };
        let mut aged = Vec::new();
        for (address, line) in apart.iter_mut() {
            if !tried.contains(address) && destinations.next_try(address) > Instant::now() {
                aged.extend(extract(line, usize::MAX, is_aged));
            }
        }
        apart.retain(|_, line| !line.is_empty());
        aged
    }

    /// Notes that something was parked: its command owes it no more.
    pub(in crate::worker) fn parked(&mut self, debt: &Debt) {
        if let Some(pending) = self.commands.get_mut(&debt.command) {
            pending.replied |= debt.role == Role::Reply;
            if let Some(returned) = &mut pending.returned {
                returned.end = None;
            }
        }
        self.pay(debt);
    }

    /// Gives up the answers that have waited for long enough while their address took nothing.
    pub(in crate::worker) fn give_up(&mut self, destinations: &Destinations) -> Vec<GivenUp> {
        let mut given_up = Vec::new();
        let mut dropped = Vec::new();
        for (address, line) in &mut self.apart {
            let Some((first, last)) = destinations.failures(address) else { continue };
            if destinations.fault(address) == Some(Fault::Away) {
                continue;
            }
            let patience = if destinations.is_hopeless(address) { Duration::ZERO } else { ANSWER_PATIENCE };
            let is_silent = destinations.fault(address) == Some(Fault::Silent);
            // It, or another one, was not taken at the end of its patience: another worker may have found meanwhile that the queue takes
            // again. Where a queue refuses, patience begins anew once it takes anything; a silent one is known as such some time later.
            // What came back from its parking is tried at least once since then.
            let commands = &self.commands;
            let is_over = |owed: &Owed| {
                let Debt { role, since, command, .. } = &owed.debt;
                let returned = commands.get(command).and_then(|pending| pending.returned.as_ref());
                let from = match (since, returned) {
                    (Some(since), Some(returned)) if returned.came < last => Some(*since),
                    (_, Some(_)) => None,
                    (Some(since), None) if is_silent => Some(*since),
                    (since, None) => since.map(|since| since.max(first)),
                };
                role.is_answer() && from.is_some_and(|from| from < last && last - from >= patience)
            };
            for owed in extract(line, usize::MAX, is_over) {
                given_up.push(if is_silent { GivenUp::Silent } else { GivenUp::Full });
                let task_id = self.commands.get(&owed.debt.command).and_then(|pending| pending.id.as_deref());
                let (role, seconds) = (owed.debt.role, owed.debt.age().as_secs());
                let queue = &address.routing_key;
                tracing::error!(task_id, ?role, queue, seconds, is_silent, "answer given up: its queue takes nothing");
                dropped.push(owed);
            }
        }
        self.apart.retain(|_, line| !line.is_empty());
        for Owed { debt, .. } in dropped {
            let pending = self.commands.get_mut(&debt.command);
            if let Some(returned) = pending.and_then(|pending| pending.returned.as_mut()) {
                returned.end = Some(Parked::GivenUp);
            }
            self.pay(&debt);
        }
        given_up
    }

    /// Takes out the commands of which something has not been taken for longer than a delivery may be kept.
    pub(in crate::worker) fn take_overdue(&mut self, limit: Duration) -> Vec<PendingAck> {
        let overdue = self.apart.values().flatten().filter(|owed| {
            let pending = self.commands.get(&owed.debt.command);
            let came = pending.and_then(|pending| pending.returned.as_ref()).map(|returned| returned.came);
            came.map_or_else(|| owed.debt.age(), |came| came.elapsed()) >= limit
        });
        let overdue: BTreeSet<CommandNumber> = overdue.map(|owed| owed.debt.command).collect();
        if overdue.is_empty() {
            return Vec::new();
        }
        self.seen.1 = 0;
        self.line.retain(|owed| !overdue.contains(&owed.debt.command));
        self.apart.values_mut().for_each(|line| line.retain(|owed| !overdue.contains(&owed.debt.command)));
        self.apart.retain(|_, line| !line.is_empty());
        overdue.iter().filter_map(|command| self.commands.remove(command)).collect()
    }

    /// Drops what came back from its parking on an earlier channel: it comes again.
    pub(in crate::worker) fn drop_returned(&mut self) {
        let dropped = self.commands.extract_if(|_, pending| pending.returned.is_some());
        let dropped: HashSet<CommandNumber> = dropped.map(|(command, _)| command).collect();
        self.seen.1 = 0;
        self.line.retain(|owed| !dropped.contains(&owed.debt.command));
        self.apart.values_mut().for_each(|line| line.retain(|owed| !dropped.contains(&owed.debt.command)));
        self.apart.retain(|_, line| !line.is_empty());
    }

    /// Takes back what was not taken.
    pub(in crate::worker) fn owe_again(&mut self, mut owed: Owed) {
        let debt = &mut owed.debt;
        let Some(pending) = self.commands.get_mut(&debt.command) else { return };
        if debt.role == Role::Reply {
            pending.replied = false;
        }
        // What is said in between would, if late, contradict the answer that came meanwhile.
        if debt.is_passing || debt.refusals < pending.refusals && !debt.role.outlives_refusal() {
            return self.pay(&owed.debt);
        }
        self.stall(&mut owed.debt);
        self.line.push_back(owed);
    }

    fn stall(&mut self, debt: &mut Debt) {
        debt.since.get_or_insert_with(Instant::now);
        if let Some(pending) = self.commands.get_mut(&debt.command) {
            pending.stall(&self.held);
        }
    }

    fn note_sent(&mut self, owed: &Owed) {
        if owed.debt.role == Role::Reply
            && let Some(pending) = self.commands.get_mut(&owed.debt.command)
        {
            pending.replied = true;
        }
    }

    /// Notes that a debt is paid, or is none any more.
    fn pay(&mut self, debt: &Debt) {
        let Some(pending) = self.commands.get_mut(&debt.command) else { return };
        pending.outstanding -= 1;
        if debt.is_first && debt.refusals == pending.refusals {
            pending.awaited -= 1;
        }
        self.go_on(debt.command);
    }

    /// Lets leave what a command owes next, or lets the command go that owes nothing more.
    fn go_on(&mut self, command: CommandNumber) {
        let Some(pending) = self.commands.get_mut(&command) else { return };
        let (refusals, is_passing) = (pending.refusals, pending.is_passing());
        let since = pending.returned.as_ref().map(|returned| returned.since);
        let debt = |role, is_first| Debt {
            command,
            role,
            is_first,
            refusals,
            is_passing,
            tries: 0,
            since,
            is_returned: since.is_some(),
            is_unparkable: false,
        };
        pending.awaited += pending.first.len();
        pending.outstanding += pending.first.len();
        for (role, publication) in pending.first.drain(..) {
            self.line.push_back(Owed { debt: debt(role, true), content: Content::Publication(Box::new(publication)) });
        }
        if pending.awaited > 0 {
            return;
        }
        pending.outstanding += pending.then.len() + pending.events.len();
        for (role, publication) in pending.then.drain(..) {
            if role == Role::Reply {
                pending.reply_bytes = pending.reply_bytes.max(publication.message.body.len());
            }
            self.line.push_back(Owed { debt: debt(role, false), content: Content::Publication(Box::new(publication)) });
        }
        for event in pending.events.drain(..) {
            self.line.push_back(Owed { debt: debt(Role::Event, false), content: Content::Event(event) });
        }
        if pending.is_done() {
            self.done.extend(self.commands.remove(&command));
        }
    }
}

/// Takes out of a line, in order, up to `limit` of those that are meant.
fn extract(line: &mut VecDeque<Owed>, limit: usize, is_meant: impl Fn(&Owed) -> bool) -> Vec<Owed> {
    let mut taken = Vec::new();
    if line.iter().any(&is_meant) {
        for owed in std::mem::take(line) {
            if taken.len() < limit && is_meant(&owed) { taken.push(owed) } else { line.push_back(owed) }
        }
    }
    taken
}

#[cfg(test)]
mod tests;
