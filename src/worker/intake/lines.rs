//! Deliveries on their way in: what is read at once, what counts for it, and what waits behind it in its queue's line.
//!
//! One budget (`max_in_flight_bytes`) counts every byte of a command: the body that waits, the values that are made of it, and all
//! that is composed for its end, until the broker has confirmed that.

use std::collections::{HashMap, VecDeque};

use jiff::Timestamp;

use crate::broker::Delivery;
use crate::celery::body;
use crate::celery::message::{Message, Origin};
use crate::celery::request::{TaskRequest, Unreadable};
use crate::commands::{Budget, Held, Keys, Spool};
use crate::telemetry::CommandOutcome;
use crate::worker::delivery::pending_ack::{PendingAck, Weight};
use crate::worker::delivery::role::Role;
use crate::worker::events::Event;
use crate::worker::intake::fault::fault;
use crate::worker::intake::policy::{Decision, Policy, ReadyTask, TaskContext, Work};
use crate::worker::intake::reader::{OpenedMessage, SMALL, Size};
use crate::worker::intake::reading::Readings;
use crate::worker::intake::sealed::{BodyStore, Known, Sealed};
use crate::worker::journal::{Digest, Journal};

/// Bytes a small message may take however little is left of the budget: nothing small waits for something large.
const TRIFLE: u64 = 16 * 1024;
/// Bytes that a key takes in memory and in the schedule beside its text, about.
const KEY: u64 = 128;

/// Takes deliveries in, in the order they came: small messages are read at once, large ones when their turn comes.
#[derive(Debug)]
pub(in crate::worker) struct Intake {
    store: BodyStore,
    budget: Budget,
    /// For each queue, the message that must be looked into first, and what came behind it.
    lines: HashMap<String, QueueLine>,
    pub(in crate::worker) readings: Readings,
}

/// What waits in a queue's line.
#[derive(Debug)]
struct QueueLine {
    /// What counts for the message that is looked into.
    first: Option<Held>,
    behind: VecDeque<Behind>,
}

/// A delivery in a line.
#[derive(Debug)]
struct Behind {
    delivery: Delivery,
    _held: Held,
}

/// What is done next with a delivery.
#[derive(Debug)]
pub(in crate::worker) enum Next {
    /// It is scheduled.
    Schedule(Box<ReadyTask>),
    /// It has ended already.
    Ended(Box<PendingAck>, CommandOutcome),
    /// It waits in the broker until its eta.
    Delay(Box<DelayedTask>),
    /// Its keys are searched for: [`Intake::was_found`].
    Search(Box<Delivery>),
    /// It is read before anything behind it: [`Intake::was_opened`].
    Open(Box<Delivery>),
}

/// A task that waits in the broker until its eta, and comes back to its queue.
#[derive(Debug)]
pub(in crate::worker) struct DelayedTask {
    pub(in crate::worker) pending: PendingAck,
    pub(in crate::worker) request: TaskRequest,
    pub(in crate::worker) message: Message,
    pub(in crate::worker) origin: Origin,
    pub(in crate::worker) eta: Timestamp,
}

impl Intake {
    pub(in crate::worker) fn new(budget: &Budget, spool: &Spool) -> Self {
        let store = BodyStore::new(budget.clone(), spool.clone());
        Self { store, budget: budget.clone(), lines: HashMap::new(), readings: Readings::new(budget) }
    }

    /// Tells whether nothing that has begun is being read.
    pub(in crate::worker) fn is_idle(&self) -> bool {
        self.readings.is_idle()
    }

    /// Drops what has not begun.
    pub(in crate::worker) fn clear(&mut self) {
        self.lines.clear();
        self.readings.clear();
    }

    /// Drops everything and returns what the journal knows those by that have begun.
    pub(in crate::worker) fn abandon(&mut self) -> Vec<Digest> {
        self.lines.clear();
        self.readings.abandon()
    }

    /// Takes a delivery in; `None` where it waits for others of its queue.
    ///
    /// # Errors
    /// Rules contradict each other, and the session is lost: nothing is left that would settle the delivery.
    pub(in crate::worker) fn receive(
        &mut self,
        delivery: Delivery,
        policy: &Policy,
        journal: &mut Journal,
    ) -> Result<Option<Next>, String> {
        if let Some(line) = self.lines.get_mut(&delivery.origin.queue) {
            let _held = self.budget.keep(delivery.message.body.len() as u64);
            line.behind.push_back(Behind { delivery, _held });
            return Ok(None);
        }
        self.take_in(delivery, policy, journal)
    }

    fn take_in(&mut self, delivery: Delivery, policy: &Policy, journal: &mut Journal) -> Result<Option<Next>, String> {
        let mut size = policy.reader.size(&delivery.message);
        if let Size::Small(bytes) = size {
            let held = if bytes <= TRIFLE { Some(self.budget.keep(bytes)) } else { self.budget.try_keep(bytes) };
            if let Some(held) = held {
                let opened = policy.reader.open(&delivery.message, &delivery.origin);
                return self.judge(delivery, opened, held, policy, journal).map(Some);
            }
            let text = body::peek(&delivery.message, SMALL);
            size = policy.reader.large(&delivery.message, text.as_ref().map(|beginning| &*beginning.text));
        }
        match size {
            Size::Large(keys) => self.seal(delivery, keys, policy, journal).map(Some),
            Size::Hidden | Size::Small(_) => Ok(Some(Next::Search(self.look_into(delivery)))),
            Size::Old => Ok(Some(Next::Open(self.look_into(delivery)))),
        }
    }

    /// Has others of its queue wait behind a delivery.
    fn look_into(&mut self, delivery: Delivery) -> Box<Delivery> {
        let first = Some(self.budget.keep(delivery.message.body.len() as u64));
        self.lines.insert(delivery.origin.queue.clone(), QueueLine { first, behind: VecDeque::new() });
        Box::new(delivery)
    }

    /// Takes in the keys of a message that were searched for: it and what waits behind it goes on. Without keys, what waits does so
    /// until the message was read.
    ///
    /// # Errors
    /// As [`Intake::receive`].
    pub(in crate::worker) fn was_found(
        &mut self,
        delivery: Delivery,
        keys: Option<Keys>,
        policy: &Policy,
        journal: &mut Journal,
    ) -> Result<Vec<Next>, String> {
        let Some(keys) = keys else { return Ok(vec![Next::Open(Box::new(delivery))]) };
        let queue = self.looked_into(&delivery);
        let first = self.seal(delivery, keys, policy, journal)?;
        self.advance(&queue, first, policy, journal)
    }

    /// Takes in a message that told nothing before it was read; what waits behind it goes on.
    ///
    /// # Errors
    /// As [`Intake::receive`].
    pub(in crate::worker) fn was_opened(
        &mut self,
        delivery: Delivery,
        opened: Result<OpenedMessage, Unreadable>,
        held: Held,
        policy: &Policy,
        journal: &mut Journal,
    ) -> Result<Vec<Next>, String> {
        let queue = self.looked_into(&delivery);
        let first = self.judge(delivery, opened, held, policy, journal)?;
        self.advance(&queue, first, policy, journal)
    }

    /// Has a delivery that was looked into count by what becomes of it, and returns its queue.
    fn looked_into(&mut self, delivery: &Delivery) -> String {
        let queue = &delivery.origin.queue;
        drop(self.lines.get_mut(queue).and_then(|line| line.first.take()));
        queue.clone()
    }

    fn advance(
        &mut self,
        queue: &str,
        first: Next,
        policy: &Policy,
        journal: &mut Journal,
    ) -> Result<Vec<Next>, String> {
        let mut all = vec![first];
        let mut behind = self.lines.remove(queue).map(|line| line.behind).unwrap_or_default();
        while let Some(delivery) = behind.pop_front().map(|behind| behind.delivery) {
            all.extend(self.take_in(delivery, policy, journal)?);
            if let Some(line) = self.lines.get_mut(queue) {
                line.behind.append(&mut behind);
            }
        }
        Ok(all)
    }

    /// Decides about a message that was read.
    fn judge(
        &self,
        delivery: Delivery,
        opened: Result<OpenedMessage, Unreadable>,
        held: Held,
        policy: &Policy,
        journal: &mut Journal,
    ) -> Result<Next, String> {
        match policy.judge(delivery, opened, journal) {
            Decision::Run(mut task) => {
                let held = match &task.context.message {
                    Some(message) => self.budget.keep(held.bytes() + message.body.len() as u64),
                    None => held,
                };
                task.note_size(held.bytes());
                task.held = Some(held);
                Ok(Next::Schedule(task))
            }
            other => self.ended(other, policy),
        }
    }

    /// Decides about a message that is read when its turn comes, and puts its body where it waits.
    fn seal(&self, delivery: Delivery, keys: Keys, policy: &Policy, journal: &mut Journal) -> Result<Next, String> {
        let outline = policy.reader.outline(&delivery.message);
        let outline = outline.ok_or_else(|| fault("a message without a task in its headers waits to be read"))?;
        match policy.judge(delivery, outline, journal) {
            Decision::Seal(mut task, message, origin, end, inflow) => {
                let length = message.body.len() as u64;
                let mut message = *message;
                let body = self.store.keep(&mut message, inflow);
                let end = end.map(|end| Known::new(end, &self.budget));
                let _keys = self.weigh(&keys);
                task.note_size(if body::is_compressed(&message) { u64::MAX } else { length });
                task.keys = keys;
                task.work = Work::Read(Box::new(Sealed { message, origin, body, length, end, _keys }));
                Ok(Next::Schedule(task))
            }
            other => self.ended(other, policy),
        }
    }

    fn ended(&self, decision: Decision, policy: &Policy) -> Result<Next, String> {
        match decision {
            Decision::Ended(pending, outcome) => Ok(Next::Ended(pending, outcome)),
            Decision::Delay(context, message, origin, eta, inflow) => {
                let TaskContext { ack_token, request, .. } = *context;
                let mut pending = policy.settlement.delayed(ack_token, &request);
                let bytes = self.budget.keep(message.body.len() as u64);
                pending.weights.extend([Weight::Held { bytes }, Weight::Read { _bytes: inflow }]);
                Ok(Next::Delay(Box::new(DelayedTask { pending, request, message: *message, origin, eta })))
            }
            Decision::Run(_) => Err(fault("a command is to run whose message was not read")),
            Decision::Seal(..) => Err(fault("a message is to be read that was read already")),
        }
    }

    /// Counts the keys of a message that is not read: a list of them may be long.
    fn weigh(&self, keys: &Keys) -> Option<Held> {
        let bytes = keys.iter().map(|used| used.key.as_str().len() as u64 + KEY).sum();
        matches!(keys, Keys::Several(_)).then(|| self.budget.keep(bytes))
    }

    /// Counts what was composed for the end of a command, until the broker has confirmed it. What the command holds for its answer
    /// already counts for its reply.
    pub(in crate::worker) fn count(&self, pending: &mut PendingAck) {
        let held = |weight: &Weight| if let Weight::Held { bytes } = weight { bytes.bytes() } else { 0 };
        let held: u64 = pending.weights.iter().map(held).sum();
        let (mut reply, mut others) = (0, 0);
        for (role, publication) in pending.first.iter().chain(&pending.then) {
            *(if *role == Role::Reply { &mut reply } else { &mut others }) += publication.message.body.len() as u64;
        }
        others += pending.events.iter().map(Event::bytes).sum::<u64>();
        let more = others + u64::saturating_sub(reply, held);
        if more > 0 {
            pending.weights.push(Weight::Held { bytes: self.budget.keep(more) });
        }
    }
}

#[cfg(test)]
mod tests;
