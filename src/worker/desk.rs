//! From a delivery to what is done with it, and from its end to what the broker must confirm: the settlement table.

mod finished;
mod turn;
mod unseal;

use std::time::{Duration, Instant};

use jiff::Timestamp;

use super::WorkerOptions;
use super::answer::{Answer, Outcome};
use super::event::Event;
use super::invalidations::Stale;
use super::journal::{Identity, Journal, Recall};
use super::outbox::{Parcel, Role, Weight};
use super::reader::{Call, Opened, Reader};
use super::run::Limit;
use super::schedule;
use super::sealed::Sealed;
use crate::broker::{Delivery, Inflow, Ticket};
use crate::celery::canvas::{self, AfterSuccess, CanvasOptions, Withheld};
use crate::celery::error::Exception;
use crate::celery::message::{Message, Origin};
use crate::celery::reply::{self, Child, Extended, ReplyOptions, ReplyTo, Revocation, State};
use crate::celery::request::{ReadOptions, TaskRequest, Unreadable};
use crate::celery::{Death, dead};
use crate::commands::{self, Command, CommandTable, Definition, Facts, Held, KeyUse, Keys, Redelivered};
use crate::telemetry::CommandOutcome;

/// Reason of a copy whose command was answered and whose follow-ups are too large to be sent.
const TOO_LARGE: &str = "follow-ups-too-large";

pub(super) use crate::broker::DEAD_QUEUE;
pub(super) use finished::exception;
use finished::failure_of;
pub(super) use turn::{Turn, doubt, reconsider};

/// Bytes of all messages that follow one command; never more than may be in flight.
const LONGEST_FOLLOW: usize = 64 << 20;
/// The least that brokers take as one message unless told otherwise; RabbitMQ 4's default.
const LEAST_MESSAGE: usize = 16 << 20;

/// One delivery that is a task, and what its end needs to know of it.
#[derive(Debug)]
pub(super) struct Case {
    pub(super) ticket: Ticket,
    pub(super) request: TaskRequest,
    extended: Option<Extended>,
    /// What the journal knows it by.
    pub(super) identity: Identity,
    /// When the producer sent it or else the broker took it in, in Unix milliseconds.
    sent: Option<i64>,
    pub(super) received: Instant,
    /// The message and how it came, where what follows the command may turn out too large to be sent.
    kept: Option<Box<(Message, Origin)>>,
}

impl Case {
    /// Tells whether the message is kept until what follows the command has arrived.
    pub(super) const fn keeps_message(&self) -> bool {
        self.kept.is_some()
    }
}

/// A command that waits for its turn.
#[derive(Debug)]
pub(super) struct Job {
    pub(super) case: Case,
    pub(super) definition: &'static Definition,
    /// By which it is ordered. Of one that was not read, whether it writes them is not known.
    pub(super) keys: Keys,
    pub(super) writes: bool,
    /// It was read after it was ordered by its keys, and none of them is one that it writes.
    pub(super) writes_unnamed: bool,
    pub(super) work: Work,
    /// What counts for it on the budget.
    pub(super) held: Option<Held>,
    pub(super) limit: Option<Limit>,
    pub(super) redelivered: Option<Redelivered>,
    /// It came again, or may have: the journals are asked right before it runs.
    pub(super) again: bool,
    /// Since when somebody else may have begun it, once somebody has: what is older is no answer to it.
    doubted: Option<Timestamp>,
    /// Since when it waits for the end of a run elsewhere.
    waits_since: Option<Instant>,
    suspect: bool,
}

/// What a job does when its turn comes.
#[derive(Debug)]
pub(super) enum Work {
    /// It runs.
    Run(Box<dyn Command>),
    /// It is read first.
    Read(Box<Sealed>),
    /// It is being read.
    Reading,
}

impl Job {
    /// Returns the values that other workers must drop before the answer is sent. There are none where only this run can have
    /// changed values, because the run announces them itself.
    pub(super) fn stale(&self) -> Stale {
        let is_told = self.again && self.writes;
        if is_told && self.writes_unnamed { Stale::All } else { Stale::of(&self.keys, is_told) }
    }
}

impl schedule::Job for Job {
    fn keys(&self) -> &[KeyUse] {
        &self.keys
    }

    fn is_suspect(&self) -> bool {
        self.suspect
    }

    fn walks(&self) -> bool {
        self.definition.walks
    }
}

/// What is done with a delivery.
#[derive(Debug)]
pub(super) enum Decision {
    /// It runs when its turn comes.
    Run(Box<Job>),
    /// It has ended already.
    End(Box<Parcel>, CommandOutcome),
    /// It is read and run when its turn comes; the journal may know its answer.
    Seal(Box<Job>, Box<Message>, Origin, Option<Box<Answer>>, Inflow),
    /// It waits in the broker until its eta.
    Park(Box<Case>, Box<Message>, Origin, Timestamp, Inflow),
}

/// How a case ended.
#[derive(Debug)]
pub(super) enum End<'a> {
    /// With an answer: it ran, or its arguments were refused, or the journal knows it.
    Answered(&'a Answer),
    /// It was not run in time.
    Expired,
    /// It cannot be run: answered, and kept in the dead queue.
    Unrunnable { exception: Exception, reason: &'static str, message: &'a Message, origin: &'a Origin },
}

/// The rules: everything that decides without waiting.
#[derive(Debug)]
pub(super) struct Desk {
    pub(super) reader: Reader,
    commands: CommandTable,
    replies: ReplyOptions,
    canvas: CanvasOptions,
    extended: bool,
    track_started: bool,
    events: bool,
    hard: Option<Duration>,
    soft: Option<Duration>,
    max_reply_bytes: usize,
    max_crashes: u32,
    /// Bytes of a frame on the connection that publishes.
    frame_max: usize,
}

impl Desk {
    pub(super) fn new(options: &WorkerOptions, frame_max: usize) -> Self {
        Self {
            frame_max,
            reader: Reader::new(
                ReadOptions { accept: options.accept_content.clone(), ..ReadOptions::default() },
                options.result_extended.then(|| options.node.clone()),
                options.commands,
            ),
            commands: options.commands,
            replies: ReplyOptions {
                worker: options.node.clone(),
                pid: std::process::id(),
                persistent: options.result_persistent,
            },
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
        }
    }

    /// Decides what is done with a delivery, which is read at once.
    #[cfg(test)]
    pub(super) fn decide(&self, delivery: Delivery, journal: &mut Journal) -> Decision {
        let opened = self.reader.open(&delivery.message, &delivery.origin);
        self.judge(delivery, opened, journal)
    }

    /// Decides what is done with a delivery of which so much was read.
    pub(super) fn judge(
        &self,
        delivery: Delivery,
        opened: Result<Opened, Unreadable>,
        journal: &mut Journal,
    ) -> Decision {
        let Delivery { message, origin, ticket, inflow } = delivery;
        let identity = Identity::of(&message, journal.has_earlier());
        let Opened { request, extended, call } = match opened {
            Ok(opened) => opened,
            Err(unreadable) => {
                let mut parcel = self.unreadable(ticket, &unreadable, &message, &origin);
                parcel.weights.push(Weight::Read { _bytes: inflow });
                return Decision::End(Box::new(parcel), CommandOutcome::DeadLettered);
            }
        };
        let stamp = identity.stamp;
        let sent = message.properties.timestamp.and_then(|sent| i64::try_from(sent).ok());
        // Who stamps sets both, and this one in whole seconds only.
        let sent = sent.filter(|sent| stamp.is_none_or(|stamp| stamp / 1000 != *sent));
        let sent = sent.map(|seconds| seconds.saturating_mul(1000)).or(stamp);
        let kept = self.kept(&request, &message, &origin);
        let mut case = Case { ticket, request, extended, identity, sent, received: Instant::now(), kept };

        let Some(definition) = self.commands.find(&case.request.task) else {
            case.extended = self.extended.then(Extended::unregistered);
            let exception = Exception::not_registered(&case.request.task);
            return self.unrunnable(case, exception, "not-registered", &message, &origin, inflow);
        };
        let again = origin.redelivered || is_open(journal, &case);
        let recall = if again { recall(journal, &case, None) } else { Recall::default() };
        let answer = recall.answer.as_deref().and_then(Answer::read);
        if answer.is_some() {
            tracing::info!(task_id = case.request.id, "answered again from the journal");
            journal.answered_again(&case.identity, &recall);
        }
        if let Some(answer) = answer.as_ref().filter(|_| !matches!(call, Call::Later)) {
            let mut parcel = self.close(case, &End::Answered(answer));
            if let Call::Read(Ok(command)) = &call {
                parcel.stale = Stale::of(command.keys(), command.writes());
            }
            return Decision::End(Box::new(parcel), CommandOutcome::Replayed);
        }
        // What has an answer is over, whatever else may be said of it; a large one is read for what follows it only.
        let is_over = answer.is_some();
        if recall.crashes >= self.max_crashes && !is_over {
            let text = format!(
                "worker exited prematurely: the command was running alone in {} crashes of a worker; it is kept in {DEAD_QUEUE}",
                recall.crashes
            );
            return self.unrunnable(case, Exception::worker_lost(text), "crashed", &message, &origin, inflow);
        }
        let now = Timestamp::now();
        if !is_over && case.request.expires.is_some_and(|expires| expires <= now) {
            return Decision::End(Box::new(self.close(case, &End::Expired)), CommandOutcome::Revoked);
        }
        if let Some(eta) = case.request.eta.filter(|eta| *eta > now && !is_over) {
            return Decision::Park(Box::new(case), Box::new(message), origin, eta, inflow);
        }
        if let Err(unsupported) = canvas::check(&case.request) {
            return self.unrunnable(case, unsupported.exception(), "unsupported-canvas", &message, &origin, inflow);
        }
        let (keys, writes, work) = match call {
            Call::Read(Ok(command)) => (Keys::of(command.keys()), command.writes(), Work::Run(command)),
            Call::Read(Err(error)) => return self.misused(definition, case, error),
            // Until it is read, nobody knows.
            Call::Later | Call::Unknown => {
                let answer = answer.map(Box::new);
                return Decision::Seal(
                    Box::new(self.job(case, definition, again, &recall)),
                    Box::new(message),
                    origin,
                    answer,
                    inflow,
                );
            }
        };
        Decision::Run(Box::new(Job { keys, writes, work, ..self.job(case, definition, again, &recall) }))
    }

    /// Keeps the message where what follows the command may turn out too large to be sent.
    fn kept(&self, request: &TaskRequest, message: &Message, origin: &Origin) -> Option<Box<(Message, Origin)>> {
        canvas::may_outgrow(request, self.max_reply_bytes, LEAST_MESSAGE.min(self.canvas.max_bytes))
            .then(|| Box::new((message.clone(), origin.clone())))
    }

    fn job(&self, case: Case, definition: &'static Definition, again: bool, recall: &Recall) -> Job {
        let limit = self.limit(&case.request);
        let redelivered = redelivered(recall).filter(|_| again);
        Job {
            case,
            definition,
            keys: Keys::None,
            writes: true,
            writes_unnamed: false,
            work: Work::Reading,
            held: None,
            limit,
            redelivered,
            again,
            doubted: None,
            waits_since: None,
            suspect: recall.suspect,
        }
    }

    fn misused(&self, definition: &Definition, case: Case, error: commands::CommandError) -> Decision {
        let outcome = Outcome::Failure(exception(error));
        let event = self.event(definition, &case, &outcome, Facts::default(), 0.0);
        let answer = Answer { outcome, event, more: Vec::new() };
        Decision::End(Box::new(self.close(case, &End::Answered(&answer))), CommandOutcome::Failed)
    }

    fn limit(&self, request: &TaskRequest) -> Option<Limit> {
        let hard = request.time_limit.or(self.hard).map(Limit::Hard);
        let soft = request.soft_time_limit.or(self.soft).map(Limit::Soft);
        [soft, hard].into_iter().flatten().min_by_key(Limit::after)
    }

    fn unrunnable(
        &self,
        case: Case,
        exception: Exception,
        reason: &'static str,
        message: &Message,
        origin: &Origin,
        inflow: Inflow,
    ) -> Decision {
        tracing::warn!(task_id = case.request.id, task = case.request.task, reason, %exception, "cannot be run");
        let end = End::Unrunnable { exception, reason, message, origin };
        let mut parcel = self.close(case, &end);
        // The copy holds the body until it is confirmed.
        parcel.weights.push(Weight::Read { _bytes: inflow });
        Decision::End(Box::new(parcel), CommandOutcome::DeadLettered)
    }

    /// What becomes of a message that is no task: an answer where one can be addressed, and a dead copy.
    fn unreadable(&self, ticket: Ticket, unreadable: &Unreadable, message: &Message, origin: &Origin) -> Parcel {
        let reason = unreadable.what.as_str();
        tracing::warn!(task_id = unreadable.id, reason, cause = unreadable.message, "cannot be read");
        let exception = unreadable.exception();
        let now = Timestamp::now();
        let mut parcel = Parcel::new(Some(ticket), None);
        if let Some(to) = &unreadable.reply {
            let answer = reply::reply_to(to, &State::Failure(&exception), None, &self.replies, now);
            parcel.then.push((Role::Reply, answer));
            parcel.reply_to = Some(ReplyTo::clone(to));
        }
        if unreadable.keeps_dead_copy() {
            parcel.then.push((Role::Dead, self.dead(message, origin, &exception, reason, now)));
        }
        parcel
    }

    fn dead(
        &self,
        message: &Message,
        origin: &Origin,
        exception: &Exception,
        reason: &str,
        at: Timestamp,
    ) -> crate::celery::message::Publication {
        let death = Death { reason, exception, at, worker: &self.replies.worker };
        dead(message, origin, &death, DEAD_QUEUE, self.frame_max)
    }

    /// Closes a case with the answer of its command: a large result becomes the reply without a copy.
    pub(super) fn close_answered(&self, case: Case, mut answer: Answer) -> Parcel {
        let result = answer.outcome.take_result();
        self.settle(case, &End::Answered(&answer), result)
    }

    /// Closes a case, however it ended.
    pub(super) fn close(&self, case: Case, end: &End<'_>) -> Parcel {
        match end {
            End::Answered(answer) => self.close_answered(case, Answer::clone(answer)),
            end => self.settle(case, end, String::new()),
        }
    }

    /// The settlement table: what an end owes before its delivery is acknowledged. The result of a success is given apart.
    fn settle(&self, case: Case, end: &End<'_>, result: String) -> Parcel {
        let Case { ticket, request, extended, identity, kept, .. } = case;
        let now = Timestamp::now();
        let mut parcel = Parcel::new(Some(ticket), Some(request.id.clone()));
        parcel.entry = Some(identity.digest);
        parcel.reply_to = request.reply_address();
        let answer = |state: &State<'_>| {
            reply::reply(&request, state, extended.as_ref(), &self.replies, now).map(|reply| (Role::Reply, reply))
        };
        let success = |result, children: &[Child]| {
            reply::success(&request, result, children, extended.as_ref(), &self.replies, now)
                .map(|reply| (Role::Reply, reply))
        };
        match end {
            End::Answered(answered @ Answer { outcome: Outcome::Success(_), .. }) => {
                // Ids are derived, so that a repeated answer repeats them.
                let follow = canvas::after_success(&request, &result, &self.canvas, now, &mut ids(&identity));
                match follow {
                    Ok(AfterSuccess { withheld: Some(withheld), .. }) => {
                        let why = self.withheld(&mut parcel, &request, kept.as_deref(), &withheld, now);
                        parcel.then.extend(success(result, &[]));
                        let rest = canvas::fail_rest(&request, &why, &self.replies, now);
                        parcel.then.extend(rest.into_iter().map(|next| (Role::FollowUp, next)));
                    }
                    Ok(follow) => {
                        parcel.spare = kept.filter(|_| !follow.publications.is_empty()).map(|kept| {
                            let why = Exception::value_error("the broker refuses the size of what follows this task");
                            Box::new(self.dead(&kept.0, &kept.1, &why, TOO_LARGE, now))
                        });
                        parcel.first.extend(follow.publications.into_iter().map(|next| (Role::FollowUp, next)));
                        parcel.then.extend(success(result, &follow.children));
                    }
                    Err(unsupported) => parcel.then.extend(answer(&State::Failure(&unsupported.exception()))),
                }
                self.tell(&mut parcel, &request, &identity, answered, now);
            }
            End::Answered(answered @ Answer { outcome: Outcome::Failure(exception), .. }) => {
                parcel.then.extend(answer(&State::Failure(exception)));
                self.after_failure(&mut parcel, &request, &identity, exception, kept.as_deref(), now);
                self.tell(&mut parcel, &request, &identity, answered, now);
            }
            End::Expired => parcel.then.extend(answer(&State::Revoked(Revocation::Expired))),
            End::Unrunnable { exception, reason, message, origin } => {
                parcel.then.extend(answer(&State::Failure(exception)));
                if *reason != "not-registered" {
                    // It is kept as one that cannot be run already.
                    self.after_failure(&mut parcel, &request, &identity, exception, None, now);
                }
                parcel.then.push((Role::Dead, self.dead(message, origin, exception, reason, now)));
            }
        }
        parcel
    }

    fn after_failure(
        &self,
        parcel: &mut Parcel,
        request: &TaskRequest,
        identity: &Identity,
        exception: &Exception,
        kept: Option<&(Message, Origin)>,
        now: Timestamp,
    ) {
        let mut ids = ids(identity);
        let follow = canvas::after_failure(request, exception, &self.canvas, &self.replies, now, &mut ids);
        if let Some(unsupported) = follow.unsupported {
            tracing::warn!(task_id = request.id, %unsupported, "errback not sent");
        }
        if let Some(withheld) = follow.withheld {
            self.withheld(parcel, request, kept, &withheld, now);
        }
        parcel.then.extend(follow.publications.into_iter().map(|next| (Role::FollowUp, next)));
    }

    /// Keeps the message of a command whose answer stands and whose follow-ups are too large to be sent; returns why.
    fn withheld(
        &self,
        parcel: &mut Parcel,
        request: &TaskRequest,
        kept: Option<&(Message, Origin)>,
        withheld: &Withheld,
        now: Timestamp,
    ) -> Exception {
        tracing::error!(task_id = request.id, %withheld, queue = DEAD_QUEUE, "follow-ups not sent; the message is kept");
        let why = Exception::value_error(withheld.to_string());
        if let Some((message, origin)) = kept {
            parcel.then.push((Role::Dead, self.dead(message, origin, &why, TOO_LARGE, now)));
        }
        why
    }

    fn tell(&self, parcel: &mut Parcel, request: &TaskRequest, identity: &Identity, answer: &Answer, now: Timestamp) {
        let Some(data) = &answer.event else { return };
        let failure = failure_of(&answer.outcome);
        let events = Event::all(data, &answer.more, failure.as_ref(), identity.digest, now);
        if let Some(queue) = &request.metrics_reply_to {
            parcel.then.extend(events.iter().map(|event| (Role::Notice, event.to_queue(queue))));
        }
        if self.events {
            parcel.events = events;
        }
    }

    /// Makes the STARTED reply where tracking is on and somebody listens.
    pub(super) fn started(&self, case: &Case) -> Option<Parcel> {
        if !self.track_started {
            return None;
        }
        let extended = case.extended.as_ref();
        let reply = reply::reply(&case.request, &State::Started, extended, &self.replies, Timestamp::now())?;
        let mut parcel = Parcel::new(None, None);
        parcel.then.push((Role::Reply, reply));
        Some(parcel)
    }

    /// Makes the FAILURE that replaces what the broker refused.
    pub(super) fn refused(&self, parcel: &mut Parcel, exception: &Exception) {
        // What is kept of a message that cannot be run stays owed whatever else is refused.
        parcel.keep_only(Role::Dead);
        if let Some(to) = parcel.reply_to.take().filter(|_| !parcel.replied) {
            let state = State::Failure(exception);
            parcel.then.push((Role::Reply, reply::reply_to(&to, &state, None, &self.replies, Timestamp::now())));
        }
    }
}

/// Tells what a command that came again is told of its first try: nothing where an equal one was answered and acknowledged without
/// doubt, since then this is another one, and what the object says was written by that.
fn redelivered(recall: &Recall) -> Option<Redelivered> {
    (recall.started_at.is_some() || !recall.another).then_some(Redelivered { started_at: recall.started_at })
}

/// Asks the journal; what it cannot say is treated as unknown, which a redelivered write copes with.
fn recall(journal: &mut Journal, case: &Case, since: Option<Timestamp>) -> Recall {
    journal.recall(&case.identity, since).unwrap_or_else(|error| {
        tracing::error!(task_id = case.request.id, %error, "journal cannot be read");
        Recall::default()
    })
}

/// Asks the journal whether a fresh message may be a second copy; what it cannot say counts as no.
fn is_open(journal: &mut Journal, case: &Case) -> bool {
    journal.is_open(&case.identity).unwrap_or_else(|error| {
        tracing::error!(task_id = case.request.id, %error, "journal cannot be read");
        false
    })
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
mod tests;
