//! From a delivery to what is done with it, and from its end to what the broker must confirm: the settlement table.

mod ask;
mod finished;
mod task;
mod unseal;

use std::sync::Arc;
use std::time::Duration;

use jiff::Timestamp;
use tokio::time::Instant;

use crate::broker::{AckToken, Delivery, Inflow};
use crate::celery::canvas::{self, AfterSuccess, CanvasOptions, Withheld};
use crate::celery::error::Exception;
use crate::celery::message::{Message, Origin};
use crate::celery::reply::{Child, Extended, ReplyTo, Revocation, State};
use crate::celery::request::{ReadOptions, TaskRequest, Unreadable};
use crate::celery::{Death, dead};
use crate::commands::{self, CommandTable, Definition, Facts, Keys, Redelivered};
use crate::results::ResultBackend;
use crate::telemetry::CommandOutcome;
use crate::worker::delivery::pending_ack::{PendingAck, Weight};
use crate::worker::delivery::role::Role;
use crate::worker::events::Event;
use crate::worker::execution::answer::{Answer, Outcome};
use crate::worker::execution::run::Limit;
use crate::worker::execution::scheduler::Share;
use crate::worker::intake::reader::{Call, Opened, Reader};
use crate::worker::invalidations::Stale;
use crate::worker::journal::{Admission, History, Identity, Journal};
use crate::worker::{WallClock, WorkerOptions};

/// Reason of a copy whose command was answered and whose follow-ups are too large to be sent.
const TOO_LARGE: &str = "follow-ups-too-large";

pub(in crate::worker) use crate::broker::DEAD_QUEUE;
pub(in crate::worker) use finished::exception;
use finished::failure_of;
#[cfg(test)]
pub(in crate::worker) use task::LARGE;
pub(in crate::worker) use task::{ReadyTask, TaskContext, Work};

/// Bytes of all messages that follow one command; never more than may be in flight.
const LONGEST_FOLLOW: usize = 64 << 20;
/// The least that brokers take as one message unless told otherwise; RabbitMQ 4's default.
const LEAST_MESSAGE: usize = 16 << 20;

/// What is done with a delivery.
#[derive(Debug)]
pub(in crate::worker) enum Decision {
    /// It runs when its turn comes.
    Run(Box<ReadyTask>),
    /// It has ended already.
    Ended(Box<PendingAck>, CommandOutcome),
    /// It is read and run when its turn comes; the journal may know its answer.
    Seal(Box<ReadyTask>, Box<Message>, Origin, Option<Box<Answer>>, Inflow),
    /// It waits in the broker until its eta.
    Park(Box<TaskContext>, Box<Message>, Origin, Timestamp, Inflow),
}

/// How a task ended.
#[derive(Debug)]
pub(in crate::worker) enum TaskEnd<'a> {
    /// With an answer: it ran, or its arguments were refused, or the journal knows it.
    Answered(&'a Answer),
    /// It was not run in time.
    Expired,
    /// It cannot be run: answered, and kept in the dead queue.
    Unrunnable { exception: Exception, reason: &'static str, message: &'a Message, origin: &'a Origin },
}

/// The rules: everything that decides without waiting.
#[derive(Debug)]
pub(in crate::worker) struct Policy {
    pub(in crate::worker) reader: Reader,
    commands: CommandTable,
    results: Arc<dyn ResultBackend>,
    /// Node name.
    node: String,
    canvas: CanvasOptions,
    extended: bool,
    track_started: bool,
    events: bool,
    hard: Option<Duration>,
    soft: Option<Duration>,
    max_reply_bytes: usize,
    max_crashes: u32,
    clock: WallClock,
    /// Bytes of a frame on the connection that publishes.
    frame_max: usize,
}

impl Policy {
    pub(in crate::worker) fn new(options: &WorkerOptions, frame_max: usize) -> Self {
        Self {
            frame_max,
            reader: Reader::new(
                ReadOptions { accept: options.accept_content.clone(), ..ReadOptions::default() },
                options.result_extended.then(|| options.node.clone()),
                options.commands,
            ),
            commands: options.commands,
            results: Arc::clone(&options.results),
            node: options.node.clone(),
            canvas: CanvasOptions {
                default_queue: options.default_queue.clone(),
                origin: options.node.clone(),
                // The same after a restart, so that what is published again is the same message.
                reply_to: uuid::Uuid::new_v5(&uuid::Uuid::NAMESPACE_OID, options.node.as_bytes()).to_string(),
                max_bytes: usize::try_from(options.max_in_flight_bytes).unwrap_or(usize::MAX).min(LONGEST_FOLLOW),
            },
            extended: options.result_extended,
            track_started: options.track_started,
            events: options.events,
            hard: options.time_limit,
            soft: options.soft_time_limit,
            max_reply_bytes: options.max_reply_bytes,
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
        opened: Result<Opened, Unreadable>,
        journal: &mut Journal,
    ) -> Decision {
        let Delivery { message, origin, ack_token, inflow } = delivery;
        let identity = Identity::of(&message, journal.has_earlier());
        let Opened { request, extended, call } = match opened {
            Ok(opened) => opened,
            Err(unreadable) => {
                let mut pending = self.unreadable(ack_token, &unreadable, &message, &origin);
                pending.weights.push(Weight::Read { _bytes: inflow });
                return Decision::Ended(Box::new(pending), CommandOutcome::DeadLettered);
            }
        };
        let stamp = identity.stamp;
        let sent = message.properties.timestamp.and_then(|sent| i64::try_from(sent).ok());
        // Who stamps sets both, and this one in whole seconds only.
        let sent = sent.filter(|sent| stamp.is_none_or(|stamp| stamp / 1000 != *sent));
        let sent = sent.map(|seconds| seconds.saturating_mul(1000)).or(stamp);
        let kept = self.kept(&request, &message, &origin);
        let mut context = TaskContext { ack_token, request, extended, identity, sent, received: Instant::now(), kept };

        let Some(definition) = self.commands.find(&context.request.task) else {
            context.extended = self.extended.then(Extended::unregistered);
            let exception = Exception::not_registered(&context.request.task);
            return self.unrunnable(context, exception, "not-registered", &message, &origin, inflow);
        };
        let mut history = History::new(origin.redelivered);
        let (mut answer, mut redelivered) = (None, None);
        match self.ask_once(&context, &mut history, journal) {
            Admission::Run { redelivered: told } => redelivered = told,
            Admission::Answer(known) => answer = Some(known),
            // Nothing begins yet, and it is asked again then.
            Admission::Wait => {}
            Admission::Dead { crashes } => {
                let text = format!(
                    "worker exited prematurely: the command was running alone in {crashes} crashes of a worker; it is kept in {DEAD_QUEUE}"
                );
                return self.unrunnable(context, Exception::worker_lost(text), "crashed", &message, &origin, inflow);
            }
        }
        if let Some(answer) = answer.as_deref().filter(|_| !matches!(call, Call::Later)) {
            let mut pending = self.close(context, &TaskEnd::Answered(answer));
            if let Call::Read(Ok(command)) = &call {
                pending.stale = Stale::of(command.keys(), command.writes());
            }
            return Decision::Ended(Box::new(pending), CommandOutcome::Replayed);
        }
        // What has an answer is over, whatever else may be said of it; a large one is read for what follows it only.
        let is_over = answer.is_some();
        let now = self.clock.now();
        if !is_over && context.request.expires.is_some_and(|expires| expires <= now) {
            return Decision::Ended(Box::new(self.close(context, &TaskEnd::Expired)), CommandOutcome::Revoked);
        }
        if let Some(eta) = context.request.eta.filter(|eta| *eta > now && !is_over) {
            return Decision::Park(Box::new(context), Box::new(message), origin, eta, inflow);
        }
        if let Err(unsupported) = canvas::check(&context.request) {
            return self.unrunnable(context, unsupported.exception(), "unsupported-canvas", &message, &origin, inflow);
        }
        let (keys, writes, work) = match call {
            Call::Read(Ok(command)) => (Keys::of(command.keys()), command.writes(), Work::Run(command)),
            Call::Read(Err(error)) => return self.misused(definition, context, error),
            // Until it is read, nobody knows.
            Call::Later | Call::Unknown => {
                let task = self.task(context, definition, history, redelivered);
                return Decision::Seal(Box::new(task), Box::new(message), origin, answer, inflow);
            }
        };
        let streams = matches!(&work, Work::Run(command) if command.streams());
        let mut task = self.task(context, definition, history, redelivered);
        if streams {
            // What it moves may have any size.
            task.note_size(u64::MAX);
        }
        Decision::Run(Box::new(ReadyTask { keys, writes, work, ..task }))
    }

    /// Keeps the message where what follows the command may turn out too large to be sent.
    fn kept(&self, request: &TaskRequest, message: &Message, origin: &Origin) -> Option<Box<(Message, Origin)>> {
        canvas::may_outgrow(request, self.max_reply_bytes, LEAST_MESSAGE.min(self.canvas.max_bytes))
            .then(|| Box::new((message.clone(), origin.clone())))
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
            waits_since: None,
        }
    }

    fn misused(&self, definition: &Definition, context: TaskContext, error: commands::CommandError) -> Decision {
        let outcome = Outcome::Failure(exception(error));
        let event = self.event(definition, &context, &outcome, Facts::default(), 0.0);
        let answer = Answer { outcome, event, more: Vec::new() };
        Decision::Ended(Box::new(self.close(context, &TaskEnd::Answered(&answer))), CommandOutcome::Failed)
    }

    fn limit(&self, request: &TaskRequest) -> Option<Limit> {
        let hard = request.time_limit.or(self.hard).map(Limit::Hard);
        let soft = request.soft_time_limit.or(self.soft).map(Limit::Soft);
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
        let mut pending = self.close(context, &end);
        // The copy holds the body until it is confirmed.
        pending.weights.push(Weight::Read { _bytes: inflow });
        Decision::Ended(Box::new(pending), CommandOutcome::DeadLettered)
    }

    /// What becomes of a message that is no task: an answer where one can be addressed, and a dead copy.
    fn unreadable(
        &self,
        ack_token: AckToken,
        unreadable: &Unreadable,
        message: &Message,
        origin: &Origin,
    ) -> PendingAck {
        let reason = unreadable.what.as_str();
        tracing::warn!(task_id = unreadable.id, reason, cause = unreadable.message, "cannot be read");
        let exception = unreadable.exception();
        let now = self.clock.now();
        let mut pending = PendingAck::new(Some(ack_token), None);
        if let Some(to) = &unreadable.reply {
            let answer = self.results.answer_to(to, &State::Failure(&exception), now);
            pending.then.push((Role::Reply, answer));
            pending.reply_to = Some(ReplyTo::clone(to));
        }
        if unreadable.keeps_dead_copy() {
            pending.then.push((Role::Dead, self.dead(message, origin, &exception, reason, now)));
        }
        pending
    }

    fn dead(
        &self,
        message: &Message,
        origin: &Origin,
        exception: &Exception,
        reason: &str,
        at: Timestamp,
    ) -> crate::celery::message::Publication {
        let death = Death { reason, exception, at, worker: &self.node };
        dead(message, origin, &death, DEAD_QUEUE, self.frame_max)
    }

    /// Closes a task with the answer of its command: a large result becomes the reply without a copy.
    pub(in crate::worker) fn close_answered(&self, context: TaskContext, mut answer: Answer) -> PendingAck {
        let result = answer.outcome.take_result();
        self.settle(context, &TaskEnd::Answered(&answer), result)
    }

    /// Closes a case, however it ended.
    pub(in crate::worker) fn close(&self, context: TaskContext, end: &TaskEnd<'_>) -> PendingAck {
        match end {
            TaskEnd::Answered(answer) => self.close_answered(context, Answer::clone(answer)),
            end => self.settle(context, end, String::new()),
        }
    }

    /// The settlement table: what an end owes before its delivery is acknowledged. The result of a success is given apart.
    fn settle(&self, context: TaskContext, end: &TaskEnd<'_>, result: String) -> PendingAck {
        let TaskContext { ack_token, request, extended, identity, kept, .. } = context;
        let now = self.clock.now();
        let mut pending = PendingAck::new(Some(ack_token), Some(request.id.clone()));
        pending.entry = Some(identity.digest);
        pending.reply_to = self.results.recipient(&request);
        let answer = |state: &State<'_>| {
            self.results.answer(&request, state, extended.as_ref(), now).map(|reply| (Role::Reply, reply))
        };
        let success = |result, children: &[Child]| {
            self.results.success(&request, result, children, extended.as_ref(), now).map(|reply| (Role::Reply, reply))
        };
        match end {
            TaskEnd::Answered(answered @ Answer { outcome: Outcome::Success(_), .. }) => {
                // Ids are derived, so that a repeated answer repeats them.
                let follow = canvas::after_success(&request, &result, &self.canvas, now, &mut ids(&identity));
                match follow {
                    Ok(AfterSuccess { withheld: Some(withheld), .. }) => {
                        let why = self.withheld(&mut pending, &request, kept.as_deref(), &withheld, now);
                        pending.then.extend(success(result, &[]));
                        let rest =
                            canvas::fail_rest(&request, &|to| self.results.answer_to(to, &State::Failure(&why), now));
                        pending.then.extend(rest.into_iter().map(|answer| (Role::Rest, answer)));
                    }
                    Ok(follow) => {
                        pending.spare = kept.filter(|_| !follow.publications.is_empty()).map(|kept| {
                            let why = Exception::value_error("the broker refuses the size of what follows this task");
                            Box::new(self.dead(&kept.0, &kept.1, &why, TOO_LARGE, now))
                        });
                        pending.first.extend(follow.publications.into_iter().map(|next| (Role::FollowUp, next)));
                        pending.then.extend(success(result, &follow.children));
                    }
                    Err(unsupported) => pending.then.extend(answer(&State::Failure(&unsupported.exception()))),
                }
                self.tell(&mut pending, &request, &identity, answered, now);
            }
            TaskEnd::Answered(answered @ Answer { outcome: Outcome::Failure(exception), .. }) => {
                pending.then.extend(answer(&State::Failure(exception)));
                self.after_failure(&mut pending, &request, &identity, exception, kept.as_deref(), now);
                self.tell(&mut pending, &request, &identity, answered, now);
            }
            TaskEnd::Expired => pending.then.extend(answer(&State::Revoked(Revocation::Expired))),
            TaskEnd::Unrunnable { exception, reason, message, origin } => {
                pending.then.extend(answer(&State::Failure(exception)));
                if *reason != "not-registered" {
                    // It is kept as one that cannot be run already.
                    self.after_failure(&mut pending, &request, &identity, exception, None, now);
                }
                pending.then.push((Role::Dead, self.dead(message, origin, exception, reason, now)));
            }
        }
        pending
    }

    fn after_failure(
        &self,
        pending: &mut PendingAck,
        request: &TaskRequest,
        identity: &Identity,
        exception: &Exception,
        kept: Option<&(Message, Origin)>,
        now: Timestamp,
    ) {
        let mut ids = ids(identity);
        let answer = |to: &ReplyTo| self.results.answer_to(to, &State::Failure(exception), now);
        let follow = canvas::after_failure(request, &self.canvas, &answer, now, &mut ids);
        if let Some(unsupported) = follow.unsupported {
            tracing::warn!(task_id = request.id, %unsupported, "errback not sent");
        }
        if let Some(withheld) = follow.withheld {
            self.withheld(pending, request, kept, &withheld, now);
        }
        pending.then.extend(follow.answers.into_iter().map(|answer| (Role::Rest, answer)));
        pending.then.extend(follow.publications.into_iter().map(|next| (Role::FollowUp, next)));
    }

    /// Keeps the message of a command whose answer stands and whose follow-ups are too large to be sent; returns why.
    fn withheld(
        &self,
        pending: &mut PendingAck,
        request: &TaskRequest,
        kept: Option<&(Message, Origin)>,
        withheld: &Withheld,
        now: Timestamp,
    ) -> Exception {
        tracing::error!(task_id = request.id, %withheld, queue = DEAD_QUEUE, "follow-ups not sent; the message is kept");
        let why = Exception::value_error(withheld.to_string());
        if let Some((message, origin)) = kept {
            pending.then.push((Role::Dead, self.dead(message, origin, &why, TOO_LARGE, now)));
        }
        why
    }

    fn tell(
        &self,
        pending: &mut PendingAck,
        request: &TaskRequest,
        identity: &Identity,
        answer: &Answer,
        now: Timestamp,
    ) {
        let Some(data) = &answer.event else { return };
        let failure = failure_of(&answer.outcome);
        let events = Event::all(data, &answer.more, failure.as_ref(), identity.digest, now);
        if let Some(queue) = &request.metrics_reply_to {
            pending.then.extend(events.iter().map(|event| (Role::Notice, event.to_queue(queue))));
        }
        if self.events {
            pending.events = events;
        }
    }

    /// Makes the STARTED reply where tracking is on and somebody listens.
    pub(in crate::worker) fn started(&self, context: &TaskContext) -> Option<PendingAck> {
        if !self.track_started {
            return None;
        }
        let extended = context.extended.as_ref();
        let reply = self.results.answer(&context.request, &State::Started, extended, self.clock.now())?;
        let mut pending = PendingAck::new(None, None);
        pending.then.push((Role::Reply, reply));
        Some(pending)
    }

    /// Makes what a command owes that waits in the broker until its eta; where, is found out later.
    pub(in crate::worker) fn parked(&self, context: TaskContext) -> PendingAck {
        let mut pending = PendingAck::new(Some(context.ack_token), None);
        pending.reply_to = self.results.recipient(&context.request);
        pending
    }

    /// Makes the FAILURE that replaces what the broker refused.
    pub(in crate::worker) fn refused(&self, pending: &mut PendingAck, exception: &Exception) {
        if let Some(to) = pending.reply_to.take().filter(|_| !pending.replied) {
            let state = State::Failure(exception);
            pending.then.push((Role::Reply, self.results.answer_to(&to, &state, self.clock.now())));
        }
    }
}

/// Ids of the tasks a command spawns: always the same ones for the same command, and others for another under its id.
fn ids(identity: &Identity) -> impl FnMut() -> String {
    let mut number = 0_u32;
    let digest = identity.digest;
    move || {
        number += 1;
        uuid::Uuid::new_v5(&uuid::Uuid::NAMESPACE_OID, format!("{digest}/child/{number}").as_bytes()).to_string()
    }
}

#[cfg(test)]
pub(in crate::worker::intake) mod tests;
