//! From the end of a command to what the broker must confirm: the settlement table.

mod finished;

use std::sync::Arc;

use jiff::Timestamp;

use crate::broker::{AckToken, DEAD_QUEUE};
use crate::celery::canvas::{self, AfterSuccess, CanvasOptions, Unsupported, Withheld};
use crate::celery::chord::Part;
use crate::celery::error::Exception;
use crate::celery::message::{Message, Origin, Publication};
use crate::celery::reply::{Child, ReplyTo, Revocation, State};
use crate::celery::request::{TaskRequest, Unreadable};
use crate::celery::{Death, dead};
use crate::results::ResultBackend;
use crate::worker::delivery::pending_ack::PendingAck;
use crate::worker::delivery::role::Role;
use crate::worker::events::Event;
use crate::worker::execution::answer::{Answer, Outcome};
use crate::worker::intake::policy::TaskContext;
use crate::worker::journal::Identity;
use crate::worker::remote::UnrunTask;
use crate::worker::{WallClock, WorkerOptions};

pub(in crate::worker) use finished::exception;
use finished::failure_of;

/// Reason of a copy whose command was answered and whose follow-ups are too large to be sent.
const TOO_LARGE: &str = "follow-ups-too-large";

/// The least that brokers take as one message unless told otherwise; RabbitMQ 4's default.
const LEAST_MESSAGE: usize = 16 << 20;

/// How a task ended.
#[derive(Debug)]
pub(in crate::worker) enum TaskEnd<'a> {
    /// With an answer: it ran, or its arguments were refused, or the journal knows it.
    Answered(&'a Answer),
    /// It was not run in time, was revoked before it ran, or was stopped.
    Revoked(Revocation),
    /// It cannot be run: answered, and kept in the dead queue.
    Unrunnable { exception: Exception, reason: &'static str, message: &'a Message, origin: &'a Origin },
}

/// What comes after the run: replies, follow-ups, events and dead copies. Nothing here waits.
#[derive(Debug)]
pub(in crate::worker) struct Settlement {
    results: Arc<dyn ResultBackend>,
    /// Node name.
    node: String,
    canvas: CanvasOptions,
    track_started: bool,
    events: bool,
    max_reply_bytes: usize,
    clock: WallClock,
    /// Bytes of a frame on the connection that publishes.
    frame_max: usize,
}

impl Settlement {
    pub(in crate::worker) fn new(options: &WorkerOptions, frame_max: usize) -> Self {
        Self {
            results: Arc::clone(&options.results),
            node: options.node.clone(),
            canvas: CanvasOptions {
                inherits_priority: options.inherit_parent_priority,
                ..CanvasOptions::new(
                    &options.default_queue,
                    &options.node,
                    options.max_in_flight_bytes,
                    options.results.joins_chords(),
                )
            },
            track_started: options.track_started,
            events: options.events,
            max_reply_bytes: options.max_reply_bytes,
            clock: options.clock,
            frame_max,
        }
    }

    /// Keeps the message where what follows the command may turn out too large to be sent.
    pub(in crate::worker) fn kept(
        &self,
        request: &TaskRequest,
        message: &Message,
        origin: &Origin,
    ) -> Option<Box<(Message, Origin)>> {
        canvas::may_outgrow(request, self.max_reply_bytes, LEAST_MESSAGE.min(self.canvas.max_bytes))
            .then(|| Box::new((message.clone(), origin.clone())))
    }

    /// Checks, before a task runs, whether what follows it can be sent.
    pub(in crate::worker) fn check(&self, request: &TaskRequest) -> Result<(), Unsupported> {
        if self.results.joins_chords() { canvas::check_member(request) } else { canvas::check(request) }
    }

    /// Tells whether somebody else than the caller has to be told however a task ends, by what stands in its body.
    pub(in crate::worker) fn awaits_end(&self, request: &TaskRequest) -> bool {
        self.results.joins_chords() && request.group.is_some()
    }

    /// What becomes of a message that is no task: an answer where one can be addressed, and a dead copy.
    pub(in crate::worker) fn unreadable(
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
            let answer = self.results.answer_to(to, &State::Failure(&exception), None, now);
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
    ) -> Publication {
        let death = Death { reason, exception, at, worker: &self.node };
        dead(message, origin, &death, DEAD_QUEUE, self.frame_max)
    }

    /// Returns what a task owes whose command has this answer: a large result becomes the reply without a copy.
    pub(in crate::worker) fn close_answered(&self, context: TaskContext, mut answer: Answer) -> PendingAck {
        let result = answer.outcome.take_result();
        self.owe(context, &TaskEnd::Answered(&answer), result)
    }

    /// Returns what a task owes, however it ended.
    pub(in crate::worker) fn close(&self, context: TaskContext, end: &TaskEnd<'_>) -> PendingAck {
        match end {
            TaskEnd::Answered(answer) => self.close_answered(context, Answer::clone(answer)),
            end => self.owe(context, end, String::new()),
        }
    }

    /// The settlement table: what an end owes before its delivery is acknowledged. The result of a success is given apart.
    fn owe(&self, context: TaskContext, end: &TaskEnd<'_>, result: String) -> PendingAck {
        let TaskContext { ack_token, mut request, extended, identity, kept, .. } = context;
        let now = self.clock.now();
        let mut pending = PendingAck::new(Some(ack_token), Some(request.id.clone()));
        pending.entry = Some(identity.digest);
        pending.reply_to = self.results.recipient(&request);
        // Who counts members of chords is told of each end, before anything else is made of the request.
        let chord = request.chord.take_if(|_| self.results.joins_chords());
        let request = request;
        let answer = |state: &State<'_>| {
            self.results.answer(&request, state, extended.as_ref(), now).map(|reply| (Role::Reply, reply))
        };
        let part = |state: &State<'_>| {
            let part = Part::of(&request, chord.as_ref()?, state)?;
            self.results.part(&part).map(|part| (Role::Part, part))
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
                        pending.then.extend(part(&State::Success { result: &result, children: &[] }));
                        pending.then.extend(success(result, &[]));
                        let rest = canvas::fail_rest(&request, &|to| {
                            self.results.answer_to(to, &State::Failure(&why), None, now)
                        });
                        pending.then.extend(rest.into_iter().map(|answer| (Role::Rest, answer)));
                    }
                    Ok(follow) => {
                        pending.spare = kept.filter(|_| !follow.publications.is_empty()).map(|kept| {
                            let why = Exception::value_error("the broker refuses the size of what follows this task");
                            Box::new(self.dead(&kept.0, &kept.1, &why, TOO_LARGE, now))
                        });
                        let headers = follow.chords.iter().map(|header| Part::of_header(&request, header));
                        let sizes = headers.filter_map(|part| self.results.part(&part));
                        pending.first.extend(sizes.map(|size| (Role::Part, size)));
                        pending.first.extend(follow.publications.into_iter().map(|next| (Role::FollowUp, next)));
                        pending.then.extend(part(&State::Success { result: &result, children: &[] }));
                        pending.then.extend(success(result, &follow.children));
                    }
                    Err(unsupported) => {
                        pending.then.extend(part(&State::Failure(&unsupported.exception())));
                        pending.then.extend(answer(&State::Failure(&unsupported.exception())));
                    }
                }
                self.tell(&mut pending, &request, &identity, answered, now);
            }
            TaskEnd::Answered(answered @ Answer { outcome: Outcome::Failure(exception), .. }) => {
                pending.then.extend(part(&State::Failure(exception)));
                pending.then.extend(answer(&State::Failure(exception)));
                self.after_failure(&mut pending, &request, &identity, exception, kept.as_deref(), now);
                self.tell(&mut pending, &request, &identity, answered, now);
            }
            TaskEnd::Revoked(revocation) => {
                pending.then.extend(part(&State::Revoked(*revocation)));
                pending.then.extend(answer(&State::Revoked(*revocation)));
                // Of what ran, the monitors were told.
                pending.unrun = (*revocation != Revocation::Terminated)
                    .then(|| Box::new(UnrunTask::revoked(&request, *revocation == Revocation::Expired)));
            }
            TaskEnd::Unrunnable { exception, reason, message, origin } => {
                pending.unrun = Some(Box::new(UnrunTask::failed(&request, exception)));
                pending.then.extend(part(&State::Failure(exception)));
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
        let answer = |to: &ReplyTo| self.results.answer_to(to, &State::Failure(exception), None, now);
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
    pub(in crate::worker) fn delayed(&self, ack_token: AckToken, request: &TaskRequest) -> PendingAck {
        let mut pending = PendingAck::new(Some(ack_token), None);
        pending.reply_to = self.results.recipient(request);
        pending
    }

    /// Makes what a command owes that will run again: its caller is told once its message waits in the broker.
    pub(in crate::worker) fn retried(&self, context: TaskContext, exception: &Exception) -> PendingAck {
        let TaskContext { ack_token, request, extended, .. } = context;
        let mut pending = PendingAck::new(Some(ack_token), Some(request.id.clone()));
        pending.reply_to = self.results.recipient(&request);
        let answer = self.results.answer(&request, &State::Retry(exception), extended.as_ref(), self.clock.now());
        pending.then.extend(answer.map(|answer| (Role::Reply, answer)));
        pending
    }

    /// Makes the FAILURE that replaces what the broker refused.
    pub(in crate::worker) fn refused(&self, pending: &mut PendingAck, exception: &Exception) {
        if let Some(to) = pending.reply_to.take().filter(|_| !pending.replied) {
            let state = State::Failure(exception);
            pending.then.push((Role::Reply, self.results.answer_to(&to, &state, None, self.clock.now())));
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
