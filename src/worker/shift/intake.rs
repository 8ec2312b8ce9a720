//! From the broker into the schedule: small messages are read at once, large ones when their turn comes.

use std::collections::{HashMap, VecDeque};
use std::time::Duration;

use futures_util::future::BoxFuture;
use futures_util::stream::FuturesUnordered;

use super::Shift;
use crate::broker::Delivery;
use crate::celery::message::{Message, Origin};
use crate::celery::{body, park};
use crate::commands::{Budget, Held, Keys, Spool};
use crate::telemetry::{self, Command, CommandOutcome};
use crate::worker::answer::Answer;
use crate::worker::desk::{Decision, Job, Work};
use crate::worker::errand::{self, Read};
use crate::worker::journal::Digest;
use crate::worker::outbox::{Parcel, Weight};
use crate::worker::reader::{Reading, SMALL, Size};
use crate::worker::schedule;
use crate::worker::sealed::{Sealed, Store};

/// Bytes a small message may take however little is left of the budget: nothing small waits for something large.
const TRIFLE: u64 = 16 * 1024;
/// Bytes that a key takes in memory and in the schedule beside its text, about.
const KEY: u64 = 128;

/// What is taken in and not yet ready to run.
pub(super) struct Intake {
    store: Store,
    budget: Budget,
    /// Jobs whose turn came before there was room to read them; without a permit, their keys stay taken.
    pub(super) thirsty: VecDeque<Job>,
    /// Jobs being read.
    pub(super) readings: FuturesUnordered<BoxFuture<'static, Result<Part, String>>>,
    /// What the journal knows those by that it was told of; two equal messages may be read at once.
    entries: Vec<Digest>,
    /// Jobs whose text is there and for whose values there is no room yet.
    short: VecDeque<Part>,
    /// What came behind a message of the same queue whose keys are searched for.
    lines: HashMap<String, VecDeque<Delivery>>,
}

/// A job that is being read.
pub(super) struct Part {
    job: Job,
    message: Message,
    origin: Origin,
    answer: Option<Box<Answer>>,
    held: Held,
    /// What counts for the body.
    weight: Option<crate::worker::sealed::Restored>,
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

impl Shift<'_> {
    /// Takes deliveries in, in the order they came.
    pub(super) fn receive(&mut self, batch: Vec<Delivery>) {
        for delivery in batch {
            let kind =
                if delivery.origin.redelivered { telemetry::Delivery::Redelivered } else { telemetry::Delivery::First };
            self.bench.metrics.record_delivery(kind);
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
        self.deliveries.set_blocked(self.schedule.blocked() + self.intake.thirsty.len());
    }

    fn take_in(&mut self, delivery: Delivery) {
        let mut size = self.desk.reader.size(&delivery.message);
        if let Size::Small(bytes) = size {
            let budget = &self.intake.budget;
            if let Some(held) = if bytes <= TRIFLE { Some(budget.keep(bytes)) } else { budget.try_keep(bytes) } {
                let opened = self.desk.reader.open(&delivery.message, &delivery.origin);
                let decision = self.desk.judge(delivery, opened, &mut self.bench.journal);
                self.decided(decision, Some(held));
                return;
            }
            let text = body::peek(&delivery.message, SMALL);
            size = self.desk.reader.large(&delivery.message, text.as_ref().map(|beginning| &*beginning.text));
        }
        match size {
            Size::Large(keys) => self.seal(delivery, keys),
            Size::Hidden | Size::Small(_) => {
                self.intake.lines.insert(delivery.origin.queue.clone(), VecDeque::new());
                let (reader, budget) = (self.desk.reader.clone(), self.intake.budget.clone());
                self.errands.push(Box::pin(errand::search(reader, budget, Box::new(delivery))));
            }
            Size::Old => {
                self.intake.lines.insert(delivery.origin.queue.clone(), VecDeque::new());
                self.open_first(delivery);
            }
        }
    }

    /// Reads a message while what came behind it waits.
    fn open_first(&mut self, delivery: Delivery) {
        let (reader, budget) = (self.desk.reader.clone(), self.intake.budget.clone());
        self.errands.push(Box::pin(errand::open(reader, budget, Box::new(delivery))));
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
        let decision = self.desk.judge(delivery, read.opened, &mut self.bench.journal);
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
        let Some(outline) = self.desk.reader.outline(&delivery.message) else { return };
        let decision = self.desk.judge(delivery, outline, &mut self.bench.journal);
        match decision {
            Decision::Seal(mut job, message, origin, answer, inflow) => {
                let length = message.body.len() as u64;
                let mut message = *message;
                let wire = self.intake.store.keep(&mut message, inflow);
                let weight = self.intake.weigh(&keys);
                job.keys = keys;
                job.work = Work::Read(Box::new(Sealed { message, origin, wire, length, answer, _keys: weight }));
                self.schedule.submit(*job);
            }
            other => self.decided(other, None),
        }
    }

    fn decided(&mut self, decision: Decision, held: Option<Held>) {
        match decision {
            Decision::Run(mut job) => {
                job.held = held;
                self.schedule.submit(*job);
            }
            Decision::End(parcel, outcome) => {
                self.bench.metrics.record_command(Command::Other, outcome, Duration::ZERO);
                self.post(*parcel);
            }
            Decision::Park(case, message, origin, eta, inflow) => {
                self.bench.metrics.record_command(Command::Other, CommandOutcome::Parked, Duration::ZERO);
                let mut parcel = Parcel::new(Some(case.ticket), None);
                parcel.reply_to = case.request.reply_address();
                parcel.weights.push(Weight::Read { _bytes: inflow });
                let (delay, message) = (self.session.delay(), park(&message));
                self.errands.push(Box::pin(errand::park(delay, parcel, message, origin.queue, eta)));
            }
            // Only what was not read is sealed, and that does not come here.
            Decision::Seal(..) => {}
        }
    }

    /// Reserves what a job takes to be read; `false` when there is no room for it now, or others came before.
    pub(super) fn reserve(&mut self, job: &mut Job) -> bool {
        let Work::Read(sealed) = &job.work else { return true };
        if job.held.is_some() {
            return true;
        }
        if schedule::Job::is_suspect(job) {
            // Nothing runs beside it. Were it put off, small ones would go on without end, and it would never be alone again.
            job.held = Some(self.intake.budget.take(self.need(sealed)));
            return true;
        }
        if !self.intake.thirsty.is_empty() || !self.intake.short.is_empty() {
            return false;
        }
        job.held = self.intake.budget.try_use(self.need(sealed));
        job.held.is_some()
    }

    fn need(&self, sealed: &Sealed) -> u64 {
        let back = if sealed.wire.is_spooled() { sealed.length } else { 0 };
        back + self.desk.reader.need(&sealed.message, sealed.length)
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
        while let Some(job) = self.intake.thirsty.front() {
            let Work::Read(sealed) = &job.work else { break };
            let may_run = self.schedule.may_run(job);
            let Some(held) = may_run.then(|| self.intake.budget.try_use(self.need(sealed))).flatten() else {
                break;
            };
            if let Some(mut job) = self.intake.thirsty.pop_front() {
                job.held = Some(held);
                self.schedule.resume(job);
            }
        }
    }

    /// Reads a job whose turn it is; it keeps its permit and its keys.
    pub(super) fn read(&mut self, mut job: Job) {
        let (Work::Read(sealed), Some(held)) = (std::mem::replace(&mut job.work, Work::Reading), job.held.take())
        else {
            return;
        };
        let Sealed { mut message, origin, wire, length, answer, .. } = *sealed;
        if answer.is_none() {
            self.intake.entries.push(job.case.identity.digest);
        }
        let reader = self.desk.reader.clone();
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
            Ok::<_, String>(Part { job, message, origin, answer, held, weight: Some(weight), reading: Some(reading) })
        }));
    }

    fn read_part(&mut self, part: Part) {
        let reader = self.desk.reader.clone();
        self.intake.readings.push(Box::pin(async move {
            let Part { job, message, origin, answer, mut held, weight, reading } = part;
            let text = if let Some(Reading::Short(text, _)) = reading { text } else { None };
            let reading = tokio::task::spawn_blocking(move || {
                let reading = reader.read_within(&message, &origin, text, &mut held);
                (message, origin, held, reading)
            });
            let (message, origin, held, reading) =
                reading.await.map_err(|error| format!("reading a message: {error}"))?;
            Ok::<_, String>(Part { job, message, origin, answer, held, weight, reading: Some(reading) })
        }));
    }

    /// Goes on with a job that was read: it runs, or has ended already.
    pub(super) fn was_read(&mut self, part: Result<Part, String>) -> Result<(), String> {
        let mut part = part?;
        let opened = match part.reading.take() {
            Some(Reading::Done(opened)) => *opened,
            reading => {
                self.intake.short.push_back(Part { reading, ..part });
                return Ok(());
            }
        };
        let Part { job, message, origin, answer, held, weight, .. } = part;
        let (keys, walks, entry) = (job.keys.clone(), job.definition.walks, job.case.identity.digest);
        let was_noted = answer.is_none();
        if let Some(place) = self.intake.entries.iter().position(|noted| was_noted && *noted == entry) {
            self.intake.entries.swap_remove(place);
        }
        match self.desk.unseal(job, opened, &message, &origin, answer.as_deref()) {
            Decision::Run(mut job) => {
                drop(weight);
                let mut held = held;
                if !job.writes {
                    // A read waits for room for its answer: what its question takes is no work that others have to wait for.
                    let bytes = held.bytes();
                    held.end_work(bytes);
                }
                job.held = Some(held);
                if let Work::Run(command) = std::mem::replace(&mut job.work, Work::Reading) {
                    self.begin(*job, command);
                }
            }
            Decision::End(mut parcel, outcome) => {
                if was_noted {
                    self.bench.journal.ended(entry);
                }
                self.schedule.done(&keys, walks);
                self.bench.metrics.record_command(Command::Other, outcome, Duration::ZERO);
                parcel.weights.push(Weight::Held { _bytes: held });
                self.post(*parcel);
            }
            // Whether it is parked or sealed was decided before.
            Decision::Park(..) | Decision::Seal(..) => {}
        }
        Ok(())
    }
}
