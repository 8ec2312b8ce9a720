//! One session's work: the conductor of every command, from its delivery to its acknowledgement.

mod control;
mod deferred;
mod delivery;
mod intake;
mod parking;
mod retry;
mod start;
mod waits;

use std::collections::HashMap;
use std::panic;
use std::sync::Arc;
use std::time::Duration;

use futures_util::StreamExt as _;
use futures_util::future::BoxFuture;
use futures_util::stream::FuturesUnordered;
use jiff::Timestamp;
use tokio::sync::watch;
use tokio::task::{AbortHandle, Id, JoinError, JoinSet};
use tokio::time::Instant;

use crate::broker::{Consumer, DOUBT, End, OpenSession};
use crate::celery::error::Exception;
use crate::celery::event::WorkerEvent;
use crate::celery::message::Publication;
use crate::celery::reply::Revocation;
use crate::commands::{CommitGuard, Definition, Engine, Facts, Finished, Held, Keys};
use crate::telemetry::{self, Command, CommandOutcome, Component, ComponentState};
use crate::worker::consumed_queues::Rejoin;
use crate::worker::context::WorkerContext;
use crate::worker::delivery::in_flight::InFlightBatches;
use crate::worker::delivery::outbox::Outbox;
use crate::worker::delivery::pending_ack::{PendingAck, Weight};
use crate::worker::delivery::refusal;
use crate::worker::execution::answer::{Answer, KeptCommand, Outcome};
use crate::worker::execution::run::{Ended, Limit, panic_text};
use crate::worker::execution::scheduler::{Scheduler, Share};
use crate::worker::execution::settlement::{TaskEnd, exception};
use crate::worker::intake::lines::Intake;
use crate::worker::intake::policy::{Policy, ReadyTask, TaskContext};
use crate::worker::invalidations::Stale;
use crate::worker::own_queues::{self, Looked};
use crate::worker::remote::Pidbox;
use crate::worker::signals::Stop;
use deferred::{AnswerToCompose, Deferred, PATIENCE};
use parking::ParkingState;
use waits::{looked, notified, sleep_until};

/// A broker that has said nothing for so long may be cut off: what ends is written down at once, for siblings to find.
const HUSH: Duration = Duration::from_secs(1);
/// How far the clocks of two workers may differ.
const SKEW: Duration = Duration::from_secs(2);
/// How long an orderly goodbye may take.
const FAREWELL: Duration = Duration::from_secs(3);
/// How long writes past their commit point are waited for when a session is lost.
const LAST_WRITES: Duration = Duration::from_secs(5);

/// How a session's work ended.
#[derive(Debug)]
pub(super) struct SessionEnd {
    /// The reason when the session was lost; none when the work ended as asked.
    pub(super) lost: Option<String>,
    /// Commands were begun that are not answered and acknowledged.
    pub(super) left_work: bool,
}

/// A command that runs.
#[derive(Debug)]
struct RunningCommand {
    /// Counts the commands of the session in the order they began.
    number: u64,
    context: TaskContext,
    definition: &'static Definition,
    keys: Keys,
    share: Share,
    writes: bool,
    commit_guard: CommitGuard,
    /// What other workers are told before its answer leaves.
    stale: Stale,
    started: Instant,
    held: Option<Held>,
    /// When an earlier run of it began.
    began_before: Option<Timestamp>,
    /// Ends its run.
    handle: AbortHandle,
    /// It was stopped by a signal of this number.
    terminated: Option<i32>,
    _in_flight: telemetry::InFlight,
}

impl RunningCommand {
    /// Returns what its event tells of its keys where it did nothing.
    fn facts(&self, engine: &Engine) -> Vec<Facts> {
        Facts::of_each(&self.keys, engine)
    }
}

/// One session at work.
pub(super) struct SessionLoop<'b> {
    worker: &'b mut WorkerContext,
    policy: Policy,
    session: OpenSession,
    consumer: Box<dyn Consumer>,
    scheduler: Scheduler<ReadyTask>,
    intake: Intake,
    tasks: JoinSet<Ended>,
    running: HashMap<Id, RunningCommand>,
    /// How many commands have begun.
    begun: u64,
    outbox: Outbox,
    in_flight: InFlightBatches,
    parking: ParkingState,
    /// Requests of remote control.
    pidbox: Pidbox,
    /// Answers to them.
    replies: Vec<Publication>,
    /// What monitors and those who asked are being told.
    notifying: Option<BoxFuture<'static, Option<String>>>,
    /// When it was last looked what waits for too long.
    looked: Option<Instant>,
    /// Pending acknowledgements whose queue is being seen to, or that wait for it.
    deferred: FuturesUnordered<BoxFuture<'static, Deferred>>,
    /// Large answers that are being composed.
    composing: usize,
    /// Looks for own queues that were not there.
    looking: Option<BoxFuture<'static, Looked>>,
    /// When the broker last ended the consumer of a queue: what had come from it and has not begun comes again.
    lost_queues: HashMap<String, Instant>,
    /// One for each consumed queue that is missing.
    trials: FuturesUnordered<BoxFuture<'static, Rejoin>>,
    stop: Stop,
    deadline: Option<Instant>,
    /// The broker has been silent for so long ([`DOUBT`]) that it may have handed the deliveries of this session to other consumers.
    is_hushed: bool,
}

impl<'b> SessionLoop<'b> {
    pub(super) fn new(worker: &'b mut WorkerContext, session: OpenSession, consumer: Box<dyn Consumer>) -> Self {
        let trials = worker.consumed_queues.trials(&session, &consumer.joiner()).into_iter().collect();
        let mut policy = Policy::new(&worker.options, session.frame_max());
        policy.set_limits(worker.limits.clone());
        worker.monitor.forget();
        worker.monitor.worker(WorkerEvent::Online, 0);
        Self {
            policy,
            scheduler: Scheduler::new(worker.options.concurrency),
            intake: Intake::new(&worker.budget, &worker.options.spool),
            parking: ParkingState::new(&session, worker),
            pidbox: Pidbox::new(
                session.share(),
                &worker.options.node,
                worker.options.remote_control,
                worker.readiness.clone(),
            ),
            replies: Vec::new(),
            notifying: None,
            worker,
            session,
            consumer,
            tasks: JoinSet::new(),
            running: HashMap::new(),
            begun: 0,
            outbox: Outbox::default(),
            in_flight: InFlightBatches::default(),
            looked: None,
            deferred: FuturesUnordered::new(),
            composing: 0,
            looking: None,
            lost_queues: HashMap::new(),
            trials,
            stop: Stop::No,
            deadline: None,
            is_hushed: false,
        }
    }

    /// Counts that this session is not the first.
    pub(super) fn count_reconnect(&self) {
        self.worker.metrics.record_reconnect();
    }

    /// Works until told to stop or the session is lost.
    pub(super) async fn work(mut self, stop: &mut watch::Receiver<Stop>) -> SessionEnd {
        let lost = self.run(stop).await.err();
        let left_work = !self.is_idle() || !self.outbox.is_empty() || !self.deferred.is_empty();
        if lost.is_some() {
            // At once: whoever is given what was acknowledged asks whether that arrived.
            self.worker.journal.begin_session();
            self.worker.commit_journal();
        }
        self.abandon().await;
        let mut closed = false;
        if lost.is_none() {
            self.say_goodbye().await;
        }
        // A cold or late stop says no farewell: the broker requeues what a closed socket leaves behind.
        let late = self.deadline.is_some_and(|deadline| deadline <= Instant::now());
        if lost.is_none() && self.stop != Stop::Cold && !late {
            let farewell = async {
                let settled = self.consumer.close().await;
                if let Err(error) = &settled {
                    tracing::debug!(%error, "closing the consuming channel");
                }
                self.session.close().await && settled.is_ok()
            };
            match tokio::time::timeout(FAREWELL, farewell).await {
                Ok(answered) => closed = answered,
                Err(_) => tracing::debug!("the broker does not answer; leaving all the same"),
            }
        }
        if closed {
            self.worker.journal.close_session();
        } else {
            self.worker.journal.begin_session();
        }
        self.worker.commit_journal();
        SessionEnd { lost, left_work }
    }

    async fn run(&mut self, stop: &mut watch::Receiver<Stop>) -> Result<(), String> {
        let mut state = self.session.watch();
        let mut blocked = self.worker.note_state(&state.borrow_and_update().clone())?;
        self.look_after_queues();
        loop {
            let asked = (*stop.borrow()).max(self.worker.shutdown);
            if asked > self.stop {
                self.begin_stop(asked, stop).await;
                // What was asked meanwhile counts as seen and would wake nobody.
                continue;
            }
            if self.stop == Stop::Cold {
                return Ok(());
            }
            let silence = self.session.silence();
            if self.is_hushed != (silence >= DOUBT) {
                self.is_hushed = silence >= DOUBT;
                // Both when a silence begins and when it ends: the broker may not have received the acknowledgements sent before
                // that moment, and the journal has to know that their commands may be delivered again.
                self.worker.journal.doubt();
            }
            // No command begins while the broker is silent, because another worker may have been given the same delivery; nor while
            // the broker blocks publishers or the journal is full, because no answer could leave.
            if silence < DOUBT && !blocked && !self.worker.journal.is_full() {
                self.start_ready()?;
            }
            self.send()?;
            let beat = self.worker.monitor.beat(self.running.len());
            self.notify();
            // Either nothing else will write the last lines for us, which must not look open after a crash; or the flight
            // may never land, and a sibling that is given what ended here meanwhile must find its answer.
            if self.in_flight.is_clear() || silence > HUSH {
                self.worker.commit_journal();
            }
            if self.stop == Stop::Warm && self.is_idle() {
                // What only waits for a queue goes back to the broker; it has had its chance.
                let last = Instant::now() + 2 * PATIENCE;
                match self.deadline {
                    _ if self.deferred.is_empty() && self.outbox.is_empty() => return Ok(()),
                    Some(deadline) if deadline <= last => {}
                    _ => self.deadline = Some(last),
                }
            }
            self.count_blocked();
            let (deadline, wake) = (self.deadline, self.next_wake().min(beat));
            let full = self.worker.journal.is_full();
            tokio::select! {
                biased;
                Ok(()) = stop.changed() => {}
                Ok(()) = state.changed() => blocked = self.worker.note_state(&state.borrow_and_update().clone())?,
                Some(landed) = self.in_flight.land(&*self.worker.options.results) => self.landed(landed)?,
                Some(joined) = self.tasks.join_next_with_id() => {
                    self.ended(joined);
                    while let Some(joined) = self.tasks.try_join_next_with_id() {
                        self.ended(joined);
                    }
                }
                Some(reading) = self.intake.readings.next() => self.was_read(reading)?,
                Some(deferred) = self.deferred.next() => self.deferred(deferred)?,
                looked = looked(&mut self.looking) => {
                    self.looking = None;
                    self.looked(looked);
                }
                Some(rejoin) = self.trials.next(), if self.stop == Stop::No => self.rejoined(rejoin)?,
                request = self.pidbox.next() => self.control(&request),
                failed = notified(&mut self.notifying) => self.notified(failed),
                batch = self.parking.consumer.next(), if self.stop == Stop::No => self.came_back(batch),
                // While the broker blocks as well: what is on its way is kept where the budget wants it, and nothing is begun.
                batch = self.consumer.next(), if self.stop == Stop::No && !full => match batch {
                    Ok(batch) => {
                        self.receive(batch)?;
                        // Large ones took their time, and others are on this thread, too.
                        tokio::task::yield_now().await;
                    }
                    Err(End::Cancelled { queue }) => self.cancelled(&queue),
                    Err(end) => return Err(format!("{end:?}")),
                },
                // Neither the broker's silence nor a deleted journal wakes anybody by itself.
                () = tokio::time::sleep_until(wake) => {}
                () = sleep_until(deadline) => {
                    tracing::warn!(running = self.running.len(), "the grace is over; what still runs is given back");
                    return Ok(());
                }
            }
        }
    }

    fn is_idle(&self) -> bool {
        // What goes to addresses that take nothing is nobody's work.
        self.running.is_empty()
            && self.composing == 0
            && self.intake.is_idle()
            && !self.outbox.has_next()
            && self.in_flight.is_idle()
    }

    /// Stops taking; what has not begun goes back with the channel.
    async fn begin_stop(&mut self, asked: Stop, stop: &mut watch::Receiver<Stop>) {
        self.stop = asked;
        if asked == Stop::Warm {
            tracing::info!(running = self.running.len(), "draining");
            self.worker.readiness.set(Component::Worker, ComponentState::Unready("draining".to_owned()));
            self.worker.metrics.record_session(telemetry::Session::Draining);
            self.deadline = Some(Instant::now() + self.worker.options.grace);
            tokio::select! {
                biased;
                Ok(_) = stop.wait_for(|stop| *stop == Stop::Cold) => {}
                stopped = self.consumer.stop() => if let Err(error) = stopped {
                    tracing::debug!(%error, "cancelling the consumers");
                },
                // The broker's words may lie behind much that is on its way.
                () = sleep_until(self.deadline) => {}
            }
        }
        self.scheduler.clear();
        self.intake.clear();
    }

    /// Ends a task that is not run any more.
    fn pass_over(&mut self, task: ReadyTask, outcome: CommandOutcome, end: &TaskEnd<'_>) {
        self.scheduler.done(&task.keys, task.share);
        self.worker.metrics.record_command(Command::Other, outcome, Duration::ZERO);
        let stale = task.stale();
        let mut pending = self.policy.settlement.close(task.context, end);
        pending.stale = stale;
        self.post(pending);
    }

    /// Hands over what a command owes. Over a bucket, the other workers are first told which values its earlier run may have
    /// changed; those of a local store compare files.
    fn post(&mut self, mut pending: PendingAck) {
        if let Some(news) = pending.unrun.take() {
            self.worker.monitor.ended(&news);
        }
        self.intake.count(&mut pending);
        let stale = std::mem::take(&mut pending.stale);
        if stale.is_none() || !self.worker.options.is_shared {
            return self.outbox.push(pending);
        }
        if let Some(cache) = self.worker.engine.cache() {
            stale.drop_from(cache);
        }
        let announcer = self.worker.options.announcer.clone();
        self.deferred.push(Box::pin(async move {
            announcer.publish(stale).await;
            Deferred::Owes(Box::new(pending))
        }));
    }

    /// Takes in how a command ended.
    fn ended(&mut self, joined: Result<(Id, Ended), JoinError>) {
        let (id, mut ended) = parted(joined);
        let Some(mut running) = self.running.remove(&id) else { return };
        self.scheduler.done(&running.keys, running.share);
        // The end of the run frees the room of the command's arguments, unless its message is kept for a dead copy. The room of
        // the answer stays taken until the broker has confirmed the answer.
        let mut kept = running.held.take().filter(|_| running.context.keeps_message());
        if let Some(kept) = &mut kept {
            // A kept message counts on the budget, but no command that waits for room has to wait for its end.
            kept.end_work(kept.bytes());
        }
        let held = ended.as_mut().ok().and_then(Ended::take_held);
        let stale = std::mem::take(&mut running.stale);
        let ended = match ended {
            Ok(Ended::Finished(Finished { result: Err(error), .. }))
                if error.is_outage() && running.context.message.is_some() && running.terminated.is_none() =>
            {
                let message = running.context.message.take().unwrap_or_default();
                return self.retry(running, &message, error, stale);
            }
            ended => ended,
        };
        if let (Some(signum), Err(_)) = (running.terminated, &ended) {
            return self.was_terminated(running, signum, stale);
        }
        let (answer, context) = self.record(running, ended);
        let held = [kept, held].into_iter().flatten().map(|held| Weight::Held { bytes: held }).collect();
        let ended = AnswerToCompose { context, answer, stale, held };
        if ended.is_large() {
            self.composing += 1;
            self.deferred.push(Box::pin(deferred::compose(Arc::clone(&self.policy.settlement), ended)));
        } else {
            self.post(ended.compose(&self.policy.settlement));
        }
    }

    /// Takes in that a command was stopped before it took effect.
    fn was_terminated(&mut self, running: RunningCommand, signum: i32, stale: Stale) {
        let context = running.context;
        tracing::info!(task_id = context.request.id, task = running.definition.task, signum, "terminated");
        self.worker.journal.ended(context.identity.digest);
        self.worker.monitor.terminated(&context.request, signum);
        let outcome = CommandOutcome::Revoked;
        let command = Command::from_task(running.definition.task);
        self.worker.metrics.record_command(command, outcome, context.received.elapsed());
        let mut pending = self.policy.settlement.close(context, &TaskEnd::Revoked(Revocation::Terminated));
        pending.stale = stale;
        self.post(pending);
    }

    /// Writes the answer of a command down and counts it.
    fn record(&mut self, running: RunningCommand, ended: Result<Ended, JoinError>) -> (Answer, TaskContext) {
        let RunningCommand { context, definition, keys, writes, started, .. } = running;
        let facts = || Facts::of_each(&keys, &self.worker.engine);
        let (result, facts) = match ended {
            Ok(Ended::Finished(finished)) => (finished.result.map_err(exception), finished.facts),
            Ok(Ended::Limited(Limit::Hard(limit))) => (Err(Exception::time_limit_exceeded(limit)), facts()),
            Ok(Ended::Limited(Limit::Soft(_))) => (Err(Exception::soft_time_limit_exceeded()), facts()),
            Err(error) => (Err(Exception::runtime_error(panic_text(error))), facts()),
        };
        let id = context.request.id.as_str();
        if let Err(exception) = &result {
            tracing::info!(task_id = id, task = definition.task, %exception, "command failed");
        }
        let answer = self.policy.settlement.answer(definition, &context, result, facts, started.elapsed());
        // Only what wrote is answered from the journal.
        let at = self.worker.options.clock.now().as_microsecond();
        let kept = || KeptCommand { id: id.to_owned(), task: definition.task.to_owned(), at };
        match writes.then(|| answer.write(Some(kept()))).flatten() {
            Some(text) => self.worker.journal.finished(context.identity.digest, &text),
            None => self.worker.journal.ended(context.identity.digest),
        }
        let (request, ran) = (&context.request, started.elapsed());
        let outcome = match &answer.outcome {
            Outcome::Success(result) => {
                self.worker.monitor.succeeded(request, result, definition.shows_result(), ran);
                CommandOutcome::Succeeded
            }
            Outcome::Failure(exception) => {
                self.worker.monitor.failed(request, exception);
                CommandOutcome::Failed
            }
        };
        self.worker.metrics.record_command(Command::from_task(definition.task), outcome, context.received.elapsed());
        (answer, context)
    }

    /// Has own queues looked for again as long as one is away.
    fn look_after_queues(&mut self) {
        let away = self.worker.own_queues.away_now();
        if !away.is_empty() && self.looking.is_none() {
            self.looking = Some(Box::pin(own_queues::look_again(self.session.share(), away)));
        }
    }

    /// Takes in what a look for own queues found.
    fn looked(&mut self, looked: Looked) {
        for (queue, found) in looked {
            // A lost session says so by itself.
            if let Err(error) = self.worker.own_queues.looked(queue, found) {
                tracing::debug!(queue = queue.name(), %error, "looking for a queue of our own");
            }
        }
        self.look_after_queues();
    }

    /// Goes on without a queue whose consumer the broker has ended, and has it tried. What came from it and runs is answered, though
    /// its acknowledgement may reach nobody; what has not begun is left to come again.
    fn cancelled(&mut self, queue: &str) {
        tracing::warn!(queue, "the broker ended the consumer of this queue");
        self.worker.journal.queue_lost();
        self.lost_queues.insert(queue.to_owned(), Instant::now());
        let trial = self.worker.consumed_queues.cancelled(queue, &self.session, &self.consumer.joiner());
        self.trials.extend(trial);
        self.report_queues();
    }

    /// Says how the consumed queues stand.
    fn report_queues(&self) {
        self.worker.readiness.set(Component::Queues, self.worker.consumed_queues.condition());
    }

    /// Consumes a queue that is back, besides the others; nothing that runs or waits has to end for it.
    fn rejoined(&mut self, rejoin: Rejoin) -> Result<(), String> {
        let joined = rejoin.queue.clone();
        let Some(queue) = self.worker.consumed_queues.rejoin(rejoin)? else {
            // It was given up meanwhile.
            self.consumer.join(&joined);
            self.consumer.leave(&joined);
            return Ok(());
        };
        // A node that is back in its cluster may hand out again what it had handed out before, without saying so.
        self.worker.journal.queue_found();
        self.consumer.join(&queue);
        if !self.worker.options.queues.contains(&queue) {
            self.worker.options.queues.push(queue);
        }
        self.report_queues();
        Ok(())
    }

    fn deferred(&mut self, deferred: Deferred) -> Result<(), String> {
        match deferred {
            Deferred::Owes(pending) => self.outbox.push(*pending),
            Deferred::Composed(pending) => {
                self.composing -= 1;
                self.post(*pending);
            }
            Deferred::Found(delivery, keys) if self.stop == Stop::No => self.was_found(*delivery, keys)?,
            Deferred::Opened(delivery, opened) if self.stop == Stop::No => self.was_opened(*delivery, *opened)?,
            Deferred::Found(..) | Deferred::Opened(..) => {}
            Deferred::Reconsider(number) => self.scheduler.wake(number),
            Deferred::Retried(command, way) => self.retried(*command, way),
            Deferred::Parked(result) => self.was_parked(result)?,
            Deferred::Refused(mut pending, role, words) => {
                refusal::give_up(&self.policy.settlement, &mut pending, role, &words);
                self.outbox.push(*pending);
            }
            Deferred::Lost(reason) => return Err(reason),
        }
        self.look_after_queues();
        Ok(())
    }

    /// Ends everything at once: writes before their commit point never happen, those past it are written down.
    async fn abandon(&mut self) {
        self.scheduler.clear();
        let mut abandoned = 0_u64;
        for entry in self.intake.abandon() {
            self.worker.journal.ended(entry);
            abandoned += 1;
        }
        let given_back = self.running.extract_if(|_, running| running.commit_guard.abandon());
        let mut given_back: Vec<_> = given_back.map(|(_, running)| (running.number, running)).collect();
        given_back.sort_unstable_by_key(|(number, _)| *number);
        for (_, running) in given_back {
            self.worker.journal.ended(running.context.identity.digest);
            abandoned += 1;
        }
        let deadline = Instant::now() + LAST_WRITES;
        while !self.running.is_empty() {
            match tokio::time::timeout_at(deadline, self.tasks.join_next_with_id()).await {
                Ok(Some(joined)) => {
                    let (id, ended) = parted(joined);
                    if let Some(running) = self.running.remove(&id) {
                        self.record(running, ended);
                    }
                }
                Ok(None) | Err(_) => break,
            }
        }
        self.tasks.abort_all();
        if abandoned > 0 {
            tracing::info!(abandoned, "running commands were given back");
        }
        self.worker.commit_journal();
    }
}

/// Tells apart whose end it is and how it ended.
fn parted(joined: Result<(Id, Ended), JoinError>) -> (Id, Result<Ended, JoinError>) {
    match joined {
        Ok((id, ended)) => (id, Ok(ended)),
        Err(error) => (error.id(), Err(error)),
    }
}

/// Tells the time so long before another one.
fn before(now: Timestamp, age: Duration) -> Timestamp {
    now.checked_sub(age).unwrap_or(Timestamp::UNIX_EPOCH)
}
