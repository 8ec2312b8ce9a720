//! Large messages whose turn has come: room is reserved for each, then it is read off the loop.

use std::collections::VecDeque;

use futures_util::StreamExt as _;
use futures_util::future::BoxFuture;
use futures_util::stream::FuturesUnordered;

use crate::celery::message::{Message, Origin};
use crate::commands::{Budget, Command, Held, Keys};
use crate::telemetry::CommandOutcome;
use crate::worker::delivery::pending_ack::{PendingAck, Weight};
use crate::worker::execution::scheduler::{Schedulable as _, Share};
use crate::worker::intake::fault::fault;
use crate::worker::intake::policy::{Decision, Policy, ReadyTask, Work};
use crate::worker::intake::reader::{MessageReader, Reading};
use crate::worker::intake::sealed::{Known, Restored, Sealed};
use crate::worker::journal::Digest;

/// The tasks whose message is read, or waits for the room to be read.
///
/// A message is read in two steps, because only its text tells how much its values take: the room for the text is reserved before
/// the task keeps a permit, the room for the values once the text is there.
#[derive(Debug)]
pub(in crate::worker) struct Readings {
    budget: Budget,
    /// Tasks whose turn came before there was room to read them; without a permit, their keys stay taken.
    thirsty: VecDeque<ReadyTask>,
    /// Tasks being read.
    under_way: FuturesUnordered<BoxFuture<'static, Result<(ReadingTask, Reading), String>>>,
    /// Tasks whose text is there and for whose values there is no room yet.
    short: VecDeque<ShortTask>,
    /// What the journal knows those by that it was told of; two equal messages may be read at once.
    entries: Vec<Digest>,
}

/// A task that is being read.
#[derive(Debug)]
pub(in crate::worker) struct ReadingTask {
    task: ReadyTask,
    message: Message,
    origin: Origin,
    end: Option<Known>,
    held: Held,
    /// What counts for the body.
    body: Restored,
}

/// A task whose values need so many bytes more than were reserved.
#[derive(Debug)]
struct ShortTask {
    task: ReadingTask,
    text: Option<Vec<u8>>,
    need: u64,
}

/// What is done with a task that was read.
#[derive(Debug)]
pub(in crate::worker) enum AfterReading {
    /// It begins; it keeps its permit and its keys.
    Begin(Box<ReadyTask>, Box<dyn Command>),
    /// It has ended: its permit and its keys are given back.
    Ended { pending: Box<PendingAck>, outcome: CommandOutcome, keys: Keys, share: Share, noted: Option<Digest> },
}

impl Readings {
    pub(in crate::worker) fn new(budget: &Budget) -> Self {
        Self {
            budget: budget.clone(),
            thirsty: VecDeque::new(),
            under_way: FuturesUnordered::new(),
            short: VecDeque::new(),
            entries: Vec::new(),
        }
    }

    /// Tells whether nothing that has begun is being read.
    pub(in crate::worker) fn is_idle(&self) -> bool {
        self.under_way.is_empty() && self.short.is_empty()
    }

    /// Walks the tasks that wait for room without a permit.
    pub(in crate::worker) fn put_off_tasks(&self) -> impl Iterator<Item = &ReadyTask> {
        self.thirsty.iter()
    }

    /// Counts the tasks that wait for room without a permit.
    pub(in crate::worker) fn waiting(&self) -> usize {
        self.thirsty.len()
    }

    /// Drops what has not begun.
    pub(in crate::worker) fn clear(&mut self) {
        self.thirsty.clear();
    }

    /// Drops everything and returns what the journal knows those by that have begun.
    pub(in crate::worker) fn abandon(&mut self) -> Vec<Digest> {
        self.clear();
        self.short.clear();
        self.under_way.clear();
        std::mem::take(&mut self.entries)
    }

    /// Reserves what a task takes to be read; `false` when there is no room for it now, or others came before.
    pub(in crate::worker) fn reserve(&self, task: &mut ReadyTask, reader: &MessageReader) -> bool {
        let Work::Read(sealed) = &task.work else { return true };
        if task.held.is_some() {
            return true;
        }
        let need = need(sealed, reader);
        if task.is_suspect() {
            // Nothing runs beside it. Were it put off, small ones would go on without end, and it would never be alone again.
            task.held = Some(self.budget.take(need));
            return true;
        }
        if !self.thirsty.is_empty() || !self.short.is_empty() {
            return false;
        }
        task.held = self.budget.try_use(need);
        task.held.is_some()
    }

    /// Takes in a task for which there was no room. It has no permit.
    pub(in crate::worker) fn put_off(&mut self, task: ReadyTask) {
        self.thirsty.push_back(task);
    }

    /// Goes on with what waited for room, and returns the tasks that are to be scheduled again. `is_idle`: no command runs.
    pub(in crate::worker) fn go_on(
        &mut self,
        reader: &MessageReader,
        is_idle: bool,
        may_run: impl Fn(&ReadyTask) -> bool,
    ) -> Vec<ReadyTask> {
        let mut admitted = Vec::new();
        while let Some(mut short) = self.short.pop_front() {
            // When all others wait as well, one of them has to go on: nothing is read, and what runs, if anything, waits for room.
            let is_stuck = is_idle || self.budget.has_line();
            if !short.task.held.try_grow(short.need) {
                if !is_stuck || !self.under_way.is_empty() {
                    self.short.push_front(short);
                    break;
                }
                short.task.held.grow(short.need);
            }
            self.read_on(short, reader.clone());
        }
        // What was let in earlier comes first: it holds a part of the room already.
        while self.short.is_empty()
            && let Some(task) = self.thirsty.front()
            && let Work::Read(sealed) = &task.work
            && may_run(task)
            && let Some(held) = self.budget.try_use(need(sealed, reader))
            && let Some(mut task) = self.thirsty.pop_front()
        {
            task.held = Some(held);
            admitted.push(task);
        }
        admitted
    }

    /// Reads a task whose turn it is, within what was reserved; it keeps its permit and its keys.
    ///
    /// # Errors
    /// The task is not to be read, or nothing was reserved: rules contradict each other, and the session is lost.
    pub(in crate::worker) fn begin(&mut self, mut task: ReadyTask, reader: MessageReader) -> Result<(), String> {
        let (Work::Read(sealed), Some(held)) = (std::mem::replace(&mut task.work, Work::Reading), task.held.take())
        else {
            return Err(fault("a task is to be read that has no message or no room"));
        };
        let Sealed { mut message, origin, body, length, end, .. } = *sealed;
        if is_noted(end.as_ref()) {
            self.entries.push(task.context.identity.digest);
        }
        self.under_way.push(Box::pin(async move {
            let body = body.settled().await?;
            let mut held = held;
            let reading = tokio::task::spawn_blocking(move || {
                let body = body.restore(&mut message, length)?;
                let reading = reader.read_within(&message, &origin, None, &mut held);
                Ok::<_, String>((message, origin, held, body, reading))
            });
            let (message, origin, held, body, reading) =
                reading.await.map_err(|error| format!("reading a message: {error}"))??;
            Ok::<_, String>((ReadingTask { task, message, origin, end, held, body }, reading))
        }));
        Ok(())
    }

    fn read_on(&mut self, short: ShortTask, reader: MessageReader) {
        self.under_way.push(Box::pin(async move {
            let ShortTask { task: ReadingTask { task, message, origin, end, mut held, body }, text, .. } = short;
            let reading = tokio::task::spawn_blocking(move || {
                let reading = reader.read_within(&message, &origin, text, &mut held);
                (message, origin, held, reading)
            });
            let (message, origin, held, reading) =
                reading.await.map_err(|error| format!("reading a message: {error}"))?;
            Ok::<_, String>((ReadingTask { task, message, origin, end, held, body }, reading))
        }));
    }

    /// Waits for the next task that was read, and returns it with what came of that; `None` while nothing is being read.
    /// Dropping the future loses none.
    ///
    /// # Errors
    /// What waits for its turn cannot be read back: the session is lost with it.
    pub(in crate::worker) async fn next(&mut self) -> Option<Result<(ReadingTask, Reading), String>> {
        self.under_way.next().await
    }

    /// Decides what is done with a task that was read; `None` where its values wait for room.
    ///
    /// # Errors
    /// Rules contradict each other, and the session is lost: nothing is left that would settle the delivery.
    pub(in crate::worker) fn was_read(
        &mut self,
        task: ReadingTask,
        reading: Reading,
        policy: &Policy,
    ) -> Result<Option<AfterReading>, String> {
        let opened = match reading {
            Reading::Done(opened) => *opened,
            Reading::Short(text, need) => {
                self.short.push_back(ShortTask { task, text, need });
                return Ok(None);
            }
        };
        let ReadingTask { task, message, origin, end, mut held, body } = task;
        let (keys, share, entry) = (task.keys.clone(), task.share, task.context.identity.digest);
        let was_noted = is_noted(end.as_ref());
        if let Some(place) = self.entries.iter().position(|noted| was_noted && *noted == entry) {
            self.entries.swap_remove(place);
        }
        match policy.unseal(task, opened, &message, &origin, end.as_ref().map(Known::end)) {
            Decision::Run(mut task) => {
                drop(body);
                if policy.may_retry(&task.context.request, &message) {
                    held.grow(held.bytes() + message.body.len() as u64);
                    task.context.message = Some(Box::new(message));
                }
                if !task.writes {
                    // A read waits for room for its answer: what its question takes is no work that others have to wait for.
                    let bytes = held.bytes();
                    held.end_work(bytes);
                }
                task.held = Some(held);
                let Work::Run(command) = std::mem::replace(&mut task.work, Work::Reading) else {
                    return Err(fault("a command is to run that was not read"));
                };
                Ok(Some(AfterReading::Begin(task, command)))
            }
            Decision::Ended(mut pending, outcome) => {
                pending.weights.push(Weight::Held { bytes: held });
                Ok(Some(AfterReading::Ended { pending, outcome, keys, share, noted: was_noted.then_some(entry) }))
            }
            Decision::Delay(..) => Err(fault("a task is to wait for its eta that had its turn")),
            Decision::Seal(..) => Err(fault("a message is to be read that was read already")),
        }
    }
}

/// Tells whether the journal knows of a task that is read: it runs, or may have crashed the worker before.
fn is_noted(end: Option<&Known>) -> bool {
    end.is_none_or(Known::is_noted)
}

/// Returns how many bytes must be reserved before a message is read.
fn need(sealed: &Sealed, reader: &MessageReader) -> u64 {
    let back = if sealed.body.is_spooled() { sealed.length } else { 0 };
    back + reader.need(&sealed.message, sealed.length)
}
