//! From a delivery to what is done with it.

mod ask;
mod task;
mod unseal;

use std::sync::Arc;
use std::time::Duration;

use jiff::Timestamp;
use tokio::time::Instant;

use crate::broker::{DEAD_QUEUE, Delivery, Inflow};
use crate::celery::error::Exception;
use crate::celery::message::{Message, Origin};
use crate::celery::reply::{Extended, Revocation};
use crate::celery::request::{ReadOptions, TaskRequest, Unreadable};
use crate::celery::retry::{FirstAttempt, max_retries};
use crate::commands::{self, CommandTable, Definition, Facts, Keys, Redelivered};
use crate::telemetry::CommandOutcome;
use crate::worker::delivery::pending_ack::{PendingAck, Weight};
use crate::worker::execution::answer::{Answer, Outcome};
use crate::worker::execution::run::Limit;
use crate::worker::execution::scheduler::Share;
use crate::worker::execution::settlement::{Settlement, TaskEnd, exception};
use crate::worker::intake::reader::{MessageReader, OpenedMessage, TaskCall};
use crate::worker::intake::sealed::KnownEnd;
use crate::worker::invalidations::Stale;
use crate::worker::journal::{Admission, History, Identity, Journal, Revocations, was_delayed};
use crate::worker::remote::{Arrival, TaskLimits, UnrunTask};
use crate::worker::{WallClock, WorkerOptions};

#[cfg(test)]
pub(in crate::worker) use task::LARGE;
pub(in crate::worker) use task::{ReadyTask, TaskContext, Work};

/// What is done with a delivery.
#[derive(Debug)]
pub(in crate::worker) enum Decision {
    /// It runs when its turn comes.
    Run(Box<ReadyTask>),
    /// It has ended already.
    Ended(Box<PendingAck>, CommandOutcome),
    /// It is read when its turn comes, and runs then, unless it has ended in this way already.
    Seal(Box<ReadyTask>, Box<Message>, Origin, Option<KnownEnd>, Inflow),
    /// It waits in the broker until its eta.
    Delay(Box<TaskContext>, Box<Message>, Origin, Timestamp, Inflow),
}

/// The rules by which a delivery runs, waits or ends; nothing here waits.
#[derive(Debug)]
pub(in crate::worker) struct Policy {
    pub(in crate::worker) reader: MessageReader,
    /// What comes after the run, however it ends.
    pub(in crate::worker) settlement: Arc<Settlement>,
    commands: CommandTable,
    extended: bool,
    hard: Option<Duration>,
    soft: Option<Duration>,
    limits: TaskLimits,
    /// The values are in a bucket.
    is_remote: bool,
    /// Retries of a message whose header says nothing.
    max_retries: u32,
    max_crashes: u32,
    clock: WallClock,
}

/// Tells why a task must not begin, if it must not.
pub(in crate::worker) fn revocation(
    request: &TaskRequest,
    now: Timestamp,
    revocations: &mut Revocations,
) -> Option<Revocation> {
    if request.expires.is_some_and(|expires| expires <= now) {
        return Some(Revocation::Expired);
    }
    revocations.contains(request).then_some(Revocation::Revoked)
}

/// The failure of a command of which workers died.
fn crashed(crashes: u32) -> Exception {
    Exception::worker_lost(format!(
        "worker exited prematurely: the command was running alone in {crashes} crashes of a worker; it is kept in {DEAD_QUEUE}"
    ))
}

impl Policy {
    pub(in crate::worker) fn new(options: &WorkerOptions, frame_max: usize) -> Self {
        Self {
            reader: MessageReader::new(
                ReadOptions { accept: options.accept_content.clone(), ..ReadOptions::default() },
                options.result_extended.then(|| options.node.clone()),
                options.commands,
            ),
            settlement: Arc::new(Settlement::new(options, frame_max)),
            commands: options.commands,
            extended: options.result_extended,
            hard: options.time_limit,
            soft: options.soft_time_limit,
            limits: TaskLimits::default(),
            is_remote: options.is_shared,
            max_retries: options.message_max_retries,
            max_crashes: options.max_crashes,
            clock: options.clock,
        }
    }

    /// Decides what is done with a delivery, which is read at once.
    #[cfg(test)]
    pub(in crate::worker) fn decide(&self, delivery: Delivery, journal: &mut Journal) -> Decision {
        let opened = self.reader.open(&delivery.message, &delivery.origin);
        self.judge(delivery, opened, journal)
    }

    /// Decides what is done with a delivery of which so much was read.
    pub(in crate::worker) fn judge(
        &self,
        delivery: Delivery,
        opened: Result<OpenedMessage, Unreadable>,
        journal: &mut Journal,
    ) -> Decision {
        let Delivery { message, origin, ack_token, inflow } = delivery;
        let identity = Identity::of(&message, journal.has_earlier());
        let OpenedMessage { request, extended, call } = match opened {
            Ok(opened) => opened,
            Err(unreadable) => {
                let mut pending = self.settlement.unreadable(ack_token, &unreadable, &message, &origin);
                pending.weights.push(Weight::Read { _bytes: inflow });
                return Decision::Ended(Box::new(pending), CommandOutcome::DeadLettered);
            }
        };
        let stamp = message.stamp();
        let sent = message.properties.timestamp.and_then(|sent| i64::try_from(sent).ok());
        // RabbitMQ's timestamp interceptor sets `timestamp`, in whole seconds, together with the header of the stamp, in
        // milliseconds. Where both tell the same second, the stamp is the more exact one.
        let sent = sent.filter(|sent| stamp.is_none_or(|stamp| stamp / 1000 != *sent));
        let sent = sent.map(|seconds| seconds.saturating_mul(1000)).or(stamp);
        let kept = self.settlement.kept(&request, &message, &origin);
        let mut context = TaskContext {
            ack_token,
            origin: origin.clone(),
            was_delayed: was_delayed(&message),
            priority: message.properties.priority,
            request,
            extended,
            identity,
            sent,
            received: Instant::now(),
            first_attempt: FirstAttempt::of(&message),
            message: None,
            kept,
        };

        let Some(definition) = self.commands.find(&context.request.task) else {
            context.extended = self.extended.then(Extended::unregistered);
            let exception = Exception::not_registered(&context.request.task);
            return self.unrunnable(context, exception, "not-registered", &message, &origin, inflow);
        };
        let mut history = History::new(origin.redelivered);
        let is_unread = matches!(call, TaskCall::Later);
        let (mut answer, mut redelivered) = (None, None);
        match self.ask_once(&context, &mut history, journal) {
            Admission::Run { redelivered: told } => redelivered = told,
            Admission::Answer(known) => answer = Some(known),
            // The journal is asked again right before the command begins; until then the delivery is scheduled as any other.
            Admission::Wait => {}
            // It is read for what follows its failure. Where a worker died of that, too, it is not read again.
            Admission::Dead { crashes } if is_unread && crashes == self.max_crashes => {
                let task = self.task(context, definition, history, None);
                return Decision::Seal(
                    Box::new(task),
                    Box::new(message),
                    origin,
                    Some(KnownEnd::Crashed(crashes)),
                    inflow,
                );
            }
            Admission::Dead { crashes } => {
                let arrival = Arrival::of(&context.request, context.was_delayed);
                let dead = self.unrunnable(context, crashed(crashes), "crashed", &message, &origin, inflow);
                return arrived(dead, arrival);
            }
        }
        if let Some(answer) = answer.as_deref().filter(|_| !is_unread) {
            let mut pending = self.settlement.close(context, &TaskEnd::Answered(answer));
            if let TaskCall::Read(Ok(command)) = &call {
                pending.stale = Stale::of(command.keys(), command.writes());
            }
            return Decision::Ended(Box::new(pending), CommandOutcome::Replayed);
        }
        // What has an answer is over, whatever else may be said of it; a large one is read for what follows it only.
        let is_over = answer.is_some();
        let now = self.clock.now();
        if !is_over && let Some(revocation) = revocation(&context.request, now, &mut journal.revocations) {
            if is_unread && self.settlement.awaits_end(&context.request) {
                let task = self.task(context, definition, history, redelivered);
                let end = Some(KnownEnd::Revoked(revocation));
                return Decision::Seal(Box::new(task), Box::new(message), origin, end, inflow);
            }
            let pending = self.settlement.close(context, &TaskEnd::Revoked(revocation));
            return Decision::Ended(Box::new(pending), CommandOutcome::Revoked);
        }
        if let Some(eta) = context.request.eta.filter(|eta| *eta > now && !is_over) {
            return Decision::Delay(Box::new(context), Box::new(message), origin, eta, inflow);
        }
        if let Err(unsupported) = self.settlement.check(&context.request) {
            let arrival = Arrival::of(&context.request, context.was_delayed);
            let exception = unsupported.exception();
            return arrived(
                self.unrunnable(context, exception, "unsupported-canvas", &message, &origin, inflow),
                arrival,
            );
        }
        let (keys, writes, work) = match call {
            TaskCall::Read(Ok(command)) => (Keys::of(command.keys()), command.writes(), Work::Run(command)),
            TaskCall::Read(Err(error)) => {
                let arrival = Arrival::of(&context.request, context.was_delayed);
                return arrived(self.misused(definition, context, error), arrival);
            }
            // Until it is read, nobody knows.
            TaskCall::Later | TaskCall::Unknown => {
                let task = self.task(context, definition, history, redelivered);
                let end = answer.map(KnownEnd::Answered);
                return Decision::Seal(Box::new(task), Box::new(message), origin, end, inflow);
            }
        };
        let streams = matches!(&work, Work::Run(command) if command.streams());
        let mut task = self.task(context, definition, history, redelivered);
        task.context.message = self.may_retry(&task.context.request, &message).then(|| Box::new(message));
        if streams {
            // What it moves may have any size.
            task.note_size(u64::MAX);
        }
        Decision::Run(Box::new(ReadyTask { keys, writes, work, ..task }))
    }

    fn task(
        &self,
        context: TaskContext,
        definition: &'static Definition,
        history: History,
        redelivered: Option<Redelivered>,
    ) -> ReadyTask {
        let limit = self.limit(&context.request);
        ReadyTask {
            context,
            definition,
            keys: Keys::None,
            writes: true,
            writes_unnamed: false,
            work: Work::Reading,
            share: if definition.walks { Share::Scan } else { Share::Small },
            held: None,
            limit,
            redelivered,
            history,
            promised: None,
            waits_since: None,
        }
    }

    fn misused(&self, definition: &Definition, context: TaskContext, error: commands::CommandError) -> Decision {
        let outcome = Outcome::Failure(exception(error));
        let event = self.settlement.event(definition, &context, &outcome, Facts::default(), 0.0);
        let news = match &outcome {
            Outcome::Failure(exception) => Some(Box::new(UnrunTask::failed(&context.request, exception))),
            Outcome::Success(_) => None,
        };
        let answer = Answer { outcome, event, more: Vec::new() };
        let mut pending = self.settlement.close(context, &TaskEnd::Answered(&answer));
        pending.unrun = news;
        Decision::Ended(Box::new(pending), CommandOutcome::Failed)
    }

    /// Tells whether a command may have to run again because the storage is unreachable.
    pub(in crate::worker) fn may_retry(&self, request: &TaskRequest, message: &Message) -> bool {
        self.is_remote && request.retries < max_retries(message).unwrap_or(self.max_retries)
    }

    /// Takes over the limits that remote control has set.
    pub(in crate::worker) fn set_limits(&mut self, limits: TaskLimits) {
        self.limits = limits;
    }

    fn limit(&self, request: &TaskRequest) -> Option<Limit> {
        let set = self.limits.times(&request.task);
        let (hard, soft) = set.map_or((self.hard, self.soft), |set| (set.hard, set.soft));
        let hard = request.time_limit.or(hard).map(Limit::Hard);
        let soft = request.soft_time_limit.or(soft).map(Limit::Soft);
        [soft, hard].into_iter().flatten().min_by_key(Limit::after)
    }

    fn unrunnable(
        &self,
        context: TaskContext,
        exception: Exception,
        reason: &'static str,
        message: &Message,
        origin: &Origin,
        inflow: Inflow,
    ) -> Decision {
        tracing::warn!(task_id = context.request.id, task = context.request.task, reason, %exception, "cannot be run");
        let end = TaskEnd::Unrunnable { exception, reason, message, origin };
        let mut pending = self.settlement.close(context, &end);
        // The copy holds the body until it is confirmed.
        pending.weights.push(Weight::Read { _bytes: inflow });
        Decision::Ended(Box::new(pending), CommandOutcome::DeadLettered)
    }
}

/// Has the arrival of a task told before its end.
fn arrived(mut decision: Decision, arrival: Option<Arrival>) -> Decision {
    if let Decision::Ended(pending, _) = &mut decision
        && let Some(news) = &mut pending.unrun
    {
        news.arrived(arrival);
    }
    decision
}

#[cfg(test)]
pub(in crate::worker::intake) mod tests;
