//! From the broker into the schedule: small messages are read at once, large ones when their turn comes.

use std::collections::{HashMap, VecDeque};
use std::time::Duration;

use futures_util::future::BoxFuture;
use futures_util::stream::FuturesUnordered;

use super::SessionLoop;
use crate::broker::Delivery;
use crate::celery::message::{Message, Origin};
use crate::celery::{body, park};
use crate::commands::{Budget, Held, Keys, Spool};
use crate::telemetry::{self, Command, CommandOutcome};
use crate::worker::delivery::deferred::{self, Read};
use crate::worker::delivery::pending_ack::{PendingAck, Weight};
use crate::worker::execution::answer::Answer;
use crate::worker::execution::scheduler;
use crate::worker::intake::policy::{Decision, ReadyTask, Work};
use crate::worker::intake::reader::{Reading, SMALL, Size};
use crate::worker::intake::sealed::{Sealed, Store};
use crate::worker::journal::Digest;

/// Bytes a small message may take however little is left of the budget: nothing small waits for something large.
const TRIFLE: u64 = 16 * 1024;
/// Bytes that a key takes in memory and in the schedule beside its text, about.
const KEY: u64 = 128;

/// What is taken in and not yet ready to run.
pub(super) struct Intake {
    store: Store,
    budget: Budget,
    /// Jobs whose turn came before there was room to read them; without a permit, their keys stay taken.
    pub(super) thirsty: VecDeque<ReadyTask>,
    /// Jobs being read.
    pub(super) readings: FuturesUnordered<BoxFuture<'static, Result<Part, String>>>,
    /// What the journal knows those by that it was told of; two equal messages may be read at once.
    entries: Vec<Digest>,
    /// Jobs whose text is there and for whose values there is no room yet.
    short: VecDeque<Part>,
    /// What came behind a message of the same queue whose keys are searched for.
    lines: HashMap<String, VecDeque<Delivery>>,
}

/// A task that is being read.
pub(super) struct Part {
    task: ReadyTask,
    message: Message,
    origin: Origin,
    answer: Option<Box<Answer>>,
    held: Held,
    /// What counts for the body.
    weight: Option<crate::worker::intake::sealed::Restored>,
    reading: Option<Reading>,
}

impl Intake {
    pub(super) fn new(budget: &Budget, spool: &Spool) -> Self {
        Self {
            store: Store::new(budget.clone(), spool.clone()),
            budget: budget.clone(),
            thirsty: VecDeque::new(),
            readings: FuturesUnordered::new(),
            entries: Vec::new(),
            short: VecDeque::new(),
            lines: HashMap::new(),
        }
    }

    /// Tells whether nothing that has begun is being read.
    pub(super) fn is_idle(&self) -> bool {
        self.readings.is_empty() && self.short.is_empty()
    }

    /// Counts the keys of a message that is not read: a list of them may be long.
    fn weigh(&self, keys: &Keys) -> Option<Held> {
        let bytes = keys.iter().map(|used| used.key.as_str().len() as u64 + KEY).sum();
        matches!(keys, Keys::Several(_)).then(|| self.budget.keep(bytes))
    }

    /// Drops what has not begun.
    pub(super) fn clear(&mut self) {
        self.thirsty.clear();
        self.lines.clear();
    }

    /// Drops everything and returns what the journal knows those by that have begun.
    pub(super) fn abandon(&mut self) -> Vec<Digest> {
        self.clear();
        self.short.clear();
        self.readings.clear();
        std::mem::take(&mut self.entries)
    }
}

impl SessionLoop<'_> {
    /// Takes deliveries in, in the order they came.
    pub(super) fn receive(&mut self, batch: Vec<Delivery>) {
        for delivery in batch {
            let kind =
                if delivery.origin.redelivered { telemetry::Delivery::Redelivered } else { telemetry::Delivery::First };
            self.worker.metrics.record_delivery(kind);
            if let Some(count) = delivery.message.headers.get("x-delivery-count") {
                // Told, never counted: most of them were only fetched ahead by a worker that went away.
                let id = delivery.message.properties.correlation_id.as_deref();
                tracing::debug!(task_id = id, delivery_count = ?count, "redelivered");
            }
            match self.intake.lines.get_mut(&delivery.origin.queue) {
                Some(line) => line.push_back(delivery),
                None => self.take_in(delivery),
            }
        }
    }

    /// Tells the broker's side how many deliveries only wait for others of their key, or for room.
    pub(super) fn count_blocked(&mut self) {
        self.consumer.set_blocked(self.scheduler.blocked() + self.intake.thirsty.len());
    }

    fn take_in(&mut self, delivery: Delivery) {
        let mut size = self.policy.reader.size(&delivery.message);
        if let Size::Small(bytes) = size {
            let budget = &self.intake.budget;
            if let Some(held) = if bytes <= TRIFLE { Some(budget.keep(bytes)) } else { budget.try_keep(bytes) } {
                let opened = self.policy.reader.open(&delivery.message, &delivery.origin);
                let decision = self.policy.judge(delivery, opened, &mut self.worker.journal);
                self.decided(decision, Some(held));
                return;
            }
            let text = body::peek(&delivery.message, SMALL);
            size = self.policy.reader.large(&delivery.message, text.as_ref().map(|beginning| &*beginning.text));
        }
        match size {
            Size::Large(keys) => self.seal(delivery, keys),
            Size::Hidden | Size::Small(_) => {
                self.intake.lines.insert(delivery.origin.queue.clone(), VecDeque::new());
                let (reader, budget) = (self.policy.reader.clone(), self.intake.budget.clone());
                self.deferred.push(Box::pin(deferred::search(reader, budget, Box::new(delivery))));
            }
            Size::Old => {
                self.intake.lines.insert(delivery.origin.queue.clone(), VecDeque::new());
                self.open_first(delivery);
            }
        }
    }

    /// Reads a message while what came behind it waits.
    fn open_first(&mut self, delivery: Delivery) {
        let (reader, budget) = (self.policy.reader.clone(), self.intake.budget.clone());
        self.deferred.push(Box::pin(deferred::open(reader, budget, Box::new(delivery))));
    }

    /// The keys of a message were searched for: it and what waits behind it goes on, or what waits does so until it was read.
    pub(super) fn was_found(&mut self, delivery: Delivery, keys: Option<Keys>) {
        let Some(keys) = keys else { return self.open_first(delivery) };
        let queue = delivery.origin.queue.clone();
        self.seal(delivery, keys);
        self.advance(&queue);
    }

    /// A message that told nothing before was read.
    pub(super) fn was_opened(&mut self, delivery: Delivery, read: Read) {
        let queue = delivery.origin.queue.clone();
        let decision = self.policy.judge(delivery, read.opened, &mut self.worker.journal);
        self.decided(decision, Some(read.held));
        self.advance(&queue);
    }

    fn advance(&mut self, queue: &str) {
        let mut line = self.intake.lines.remove(queue).unwrap_or_default();
        while let Some(delivery) = line.pop_front() {
            self.take_in(delivery);
            if let Some(next) = self.intake.lines.get_mut(queue) {
                next.append(&mut line);
            }
        }
    }

    fn seal(&mut self, delivery: Delivery, keys: Keys) {
        let Some(outline) = self.policy.reader.outline(&delivery.message) else { return };
        let decision = self.policy.judge(delivery, outline, &mut self.worker.journal);
        match decision {
            Decision::Seal(mut task, message, origin, answer, inflow) => {
                let length = message.body.len() as u64;
                let mut message = *message;
                let wire = self.intake.store.keep(&mut message, inflow);
                let weight = self.intake.weigh(&keys);
                task.note_size(if body::is_compressed(&message) { u64::MAX } else { length });
                task.keys = keys;
                task.work = Work::Read(Box::new(Sealed { message, origin, wire, length, answer, _keys: weight }));
                self.scheduler.submit(*task);
            }
            other => self.decided(other, None),
        }
    }

    fn decided(&mut self, decision: Decision, held: Option<Held>) {
        match decision {
            Decision::Run(mut task) => {
                task.note_size(held.as_ref().map_or(0, Held::bytes));
                task.held = held;
                self.scheduler.submit(*task);
            }
            Decision::Ended(pending, outcome) => {
                self.worker.metrics.record_command(Command::Other, outcome, Duration::ZERO);
                self.post(*pending);
            }
            Decision::Park(context, message, origin, eta, inflow) => {
                self.worker.metrics.record_command(Command::Other, CommandOutcome::Parked, Duration::ZERO);
                let mut pending = PendingAck::new(Some(context.ack_token), None);
                pending.reply_to = self.worker.options.results.recipient(&context.request);
                pending.weights.push(Weight::Read { _bytes: inflow });
                let (session, message) = (self.session.share(), park(&message));
                self.deferred.push(Box::pin(deferred::park(
                    session,
                    self.worker.options.clock,
                    pending,
                    message,
                    origin.queue,
                    eta,
                )));
            }
            // Only what was not read is sealed, and that does not come here.
            Decision::Seal(..) => {}
        }
    }

    /// Reserves what a task takes to be read; `false` when there is no room for it now, or others came before.
    pub(super) fn reserve(&mut self, task: &mut ReadyTask) -> bool {
        let Work::Read(sealed) = &task.work else { return true };
        if task.held.is_some() {
            return true;
        }
        if scheduler::Schedulable::is_suspect(task) {
            // Nothing runs beside it. Were it put off, small ones would go on without end, and it would never be alone again.
            task.held = Some(self.intake.budget.take(self.need(sealed)));
            return true;
        }
        if !self.intake.thirsty.is_empty() || !self.intake.short.is_empty() {
            return false;
        }
        task.held = self.intake.budget.try_use(self.need(sealed));
        task.held.is_some()
    }

    fn need(&self, sealed: &Sealed) -> u64 {
        let back = if sealed.wire.is_spooled() { sealed.length } else { 0 };
        back + self.policy.reader.need(&sealed.message, sealed.length)
    }

    /// Goes on with what waited for room.
    pub(super) fn go_on_reading(&mut self) {
        while let Some(mut part) = self.intake.short.pop_front() {
            let Some(Reading::Short(_, need)) = &part.reading else { continue };
            // When all others wait as well, one of them has to go on: nothing is read, and what runs, if anything, waits for room.
            let is_stuck = self.running.is_empty() || self.intake.budget.has_line();
            if !part.held.try_grow(*need) {
                if !is_stuck || !self.intake.readings.is_empty() {
                    self.intake.short.push_front(part);
                    break;
                }
                part.held.grow(*need);
            }
            self.read_part(part);
        }
        // What was let in earlier comes first: it holds a part of the room already.
        if !self.intake.short.is_empty() {
            return;
        }
        while let Some(task) = self.intake.thirsty.front() {
            let Work::Read(sealed) = &task.work else { break };
            let may_run = self.scheduler.may_run(task);
            let Some(held) = may_run.then(|| self.intake.budget.try_use(self.need(sealed))).flatten() else {
                break;
            };
            if let Some(mut task) = self.intake.thirsty.pop_front() {
                task.held = Some(held);
                self.scheduler.resume(task);
            }
        }
    }

    /// Reads a task whose turn it is; it keeps its permit and its keys.
    pub(super) fn read(&mut self, mut task: ReadyTask) {
        let (Work::Read(sealed), Some(held)) = (std::mem::replace(&mut task.work, Work::Reading), task.held.take())
        else {
            return;
        };
        let Sealed { mut message, origin, wire, length, answer, .. } = *sealed;
        if answer.is_none() {
            self.intake.entries.push(task.context.identity.digest);
        }
        let reader = self.policy.reader.clone();
        self.intake.readings.push(Box::pin(async move {
            let body = wire.settled().await?;
            let mut held = held;
            let reading = tokio::task::spawn_blocking(move || {
                let weight = body.restore(&mut message, length)?;
                let reading = reader.read_within(&message, &origin, None, &mut held);
                Ok::<_, String>((message, origin, held, weight, reading))
            });
            let (message, origin, held, weight, reading) =
                reading.await.map_err(|error| format!("reading a message: {error}"))??;
            Ok::<_, String>(Part { task, message, origin, answer, held, weight: Some(weight), reading: Some(reading) })
        }));
    }

    fn read_part(&mut self, part: Part) {
        let reader = self.policy.reader.clone();
        self.intake.readings.push(Box::pin(async move {
            let Part { task, message, origin, answer, mut held, weight, reading } = part;
            let text = if let Some(Reading::Short(text, _)) = reading { text } else { None };
            let reading = tokio::task::spawn_blocking(move || {
                let reading = reader.read_within(&message, &origin, text, &mut held);
                (message, origin, held, reading)
            });
            let (message, origin, held, reading) =
                reading.await.map_err(|error| format!("reading a message: {error}"))?;
            Ok::<_, String>(Part { task, message, origin, answer, held, weight, reading: Some(reading) })
        }));
    }

    /// Goes on with a task that was read: it runs, or has ended already.
    pub(super) fn was_read(&mut self, part: Result<Part, String>) -> Result<(), String> {
        let mut part = part?;
        let opened = match part.reading.take() {
            Some(Reading::Done(opened)) => *opened,
            reading => {
                self.intake.short.push_back(Part { reading, ..part });
                return Ok(());
            }
        };
        let Part { task, message, origin, answer, held, weight, .. } = part;
        let (keys, share, entry) = (task.keys.clone(), task.share, task.context.identity.digest);
        let was_noted = answer.is_none();
        if let Some(place) = self.intake.entries.iter().position(|noted| was_noted && *noted == entry) {
            self.intake.entries.swap_remove(place);
        }
        match self.policy.unseal(task, opened, &message, &origin, answer.as_deref()) {
            Decision::Run(mut task) => {
                drop(weight);
                let mut held = held;
                if !task.writes {
                    // A read waits for room for its answer: what its question takes is no work that others have to wait for.
                    let bytes = held.bytes();
                    held.end_work(bytes);
                }
                task.held = Some(held);
                if let Work::Run(command) = std::mem::replace(&mut task.work, Work::Reading) {
                    self.begin(*task, command);
                }
            }
            Decision::Ended(mut pending, outcome) => {
                if was_noted {
                    self.worker.journal.ended(entry);
                }
                self.scheduler.done(&keys, share);
                self.worker.metrics.record_command(Command::Other, outcome, Duration::ZERO);
                pending.weights.push(Weight::Held { _bytes: held });
                self.post(*pending);
            }
            // Whether it is parked or sealed was decided before.
            Decision::Park(..) | Decision::Seal(..) => {}
        }
        Ok(())
    }
}
