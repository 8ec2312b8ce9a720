//! One session's work: the conductor of every command, from its delivery to its acknowledgement.

mod intake;
mod start;

use std::collections::HashMap;
use std::panic;
use std::time::{Duration, Instant};

use futures_util::StreamExt as _;
use futures_util::future::BoxFuture;
use futures_util::stream::FuturesUnordered;
use jiff::Timestamp;
use tokio::sync::watch;
use tokio::task::{Id, JoinError, JoinSet};

use super::bench::Bench;
use super::desk::{Case, Desk, End, Job, exception};
use super::errand::{self, Errand, PATIENCE};
use super::flights::Flights;
use super::invalidations::Stale;
use super::outbox::{Answered, Outbox, Parcel, Role, Weight};
use super::refusal;
use super::run::{Ended, Limit, panic_text};
use super::schedule::Schedule;
use super::signals::Stop;
use super::waits::{looked, sleep_until};
use crate::broker::{DOUBT, Deliveries, Session, Settler};
use crate::celery::error::Exception;
use crate::commands::{CommitGuard, Definition, Facts, Held, Keys};
use crate::telemetry::{self, Command, CommandOutcome, Component, ComponentState};
use crate::worker::answer::{Answer, Outcome};
use intake::Intake;

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
pub(super) struct ShiftEnd {
    /// The reason when the session was lost; none when the work ended as asked.
    pub(super) lost: Option<String>,
    /// Commands were begun that are not answered and acknowledged.
    pub(super) left_work: bool,
}

/// A command that runs.
#[derive(Debug)]
struct Running {
    case: Case,
    definition: &'static Definition,
    keys: Keys,
    writes: bool,
    commit_guard: CommitGuard,
    /// What other workers are told before its answer leaves.
    stale: Stale,
    started: Instant,
    held: Option<Held>,
    _in_flight: telemetry::InFlight,
}

/// One session at work.
pub(super) struct Shift<'b> {
    bench: &'b mut Bench,
    desk: Desk,
    session: Session,
    deliveries: Deliveries,
    settler: Settler,
    schedule: Schedule<Job>,
    intake: Intake,
    tasks: JoinSet<Ended>,
    running: HashMap<Id, Running>,
    outbox: Outbox,
    flights: Flights,
    /// Parcels whose queue is being seen to, or that wait for it.
    errands: FuturesUnordered<BoxFuture<'static, Errand>>,
    events_on: bool,
    /// Until then events that come back are known to have no listener; set until one is heard again.
    unheard_until: Option<Instant>,
    /// Looks after queues that were not there.
    looking: Option<BoxFuture<'static, Option<String>>>,
    /// Tries the queues that a look cannot judge.
    trials: FuturesUnordered<BoxFuture<'static, String>>,
    stop: Stop,
    deadline: Option<tokio::time::Instant>,
    /// The broker has been silent for so long that its other consumers may have been given what is held here.
    is_hushed: bool,
}

impl<'b> Shift<'b> {
    pub(super) fn new(bench: &'b mut Bench, session: Session, deliveries: Deliveries, settler: Settler) -> Self {
        let stalled = deliveries.down().iter().filter(|(queue, _)| bench.stalled.contains_key(queue));
        let trials =
            stalled.map(|(queue, _)| Box::pin(errand::try_again(session.options(), queue.clone())) as _).collect();
        Self {
            desk: Desk::new(&bench.options, session.publisher().frame_max()),
            schedule: Schedule::new(bench.options.concurrency),
            intake: Intake::new(&bench.budget, &bench.options.spool),
            events_on: bench.options.events,
            bench,
            session,
            deliveries,
            settler,
            tasks: JoinSet::new(),
            running: HashMap::new(),
            outbox: Outbox::default(),
            flights: Flights::default(),
            errands: FuturesUnordered::new(),
            unheard_until: None,
            looking: None,
            trials,
            stop: Stop::No,
            deadline: None,
            is_hushed: false,
        }
    }

    /// Counts that this session is not the first.
    pub(super) fn count_reconnect(&self) {
        self.bench.metrics.record_reconnect();
    }

    /// Works until told to stop or the session is lost.
    pub(super) async fn work(mut self, stop: &mut watch::Receiver<Stop>) -> ShiftEnd {
        let lost = self.run(stop).await.err();
        let left_work = !self.is_idle() || !self.errands.is_empty();
        if lost.is_some() {
            // At once: whoever is given what was acknowledged asks whether that arrived.
            self.bench.journal.begin_session();
            self.bench.commit_journal();
        }
        self.abandon().await;
        let mut closed = false;
        // A cold or late stop says no farewell: the broker requeues what a closed socket leaves behind.
        let late = self.deadline.is_some_and(|deadline| deadline <= tokio::time::Instant::now());
        if lost.is_none() && self.stop != Stop::Cold && !late {
            let farewell = async {
                let settled = self.settler.close().await;
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
            self.bench.journal.close_session();
        } else {
            self.bench.journal.begin_session();
        }
        self.bench.commit_journal();
        ShiftEnd { lost, left_work }
    }

    async fn run(&mut self, stop: &mut watch::Receiver<Stop>) -> Result<(), String> {
        let mut state = self.session.watch();
        let mut blocked = self.bench.note_state(&state.borrow_and_update().clone())?;
        self.look_after_queues();
        loop {
            let asked = *stop.borrow();
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
                // Also when it is over: what was sent meanwhile may have gone nowhere.
                self.bench.journal.doubt();
            }
            // In doubt, somebody else may have been given what we hold: nothing more is begun. Nor while no answer could leave.
            if silence < DOUBT && !blocked && !self.bench.journal.is_full() {
                self.start_ready();
            }
            self.send();
            // Either nothing else will write the last lines for us, which must not look open after a crash; or the flight
            // may never land, and a sibling that is given what ended here meanwhile must find its answer.
            if self.flights.is_clear() || silence > HUSH {
                self.bench.commit_journal();
            }
            if self.stop == Stop::Warm && self.is_idle() {
                // What only waits for a queue goes back to the broker; it has had its chance.
                let last = tokio::time::Instant::now() + 2 * PATIENCE;
                match self.deadline {
                    _ if self.errands.is_empty() => return Ok(()),
                    Some(deadline) if deadline <= last => {}
                    _ => self.deadline = Some(last),
                }
            }
            self.count_blocked();
            let deadline = self.deadline;
            let full = self.bench.journal.is_full();
            tokio::select! {
                biased;
                Ok(()) = stop.changed() => {}
                Ok(()) = state.changed() => blocked = self.bench.note_state(&state.borrow_and_update().clone())?,
                Some(answered) = self.flights.land(&mut self.bench.silences) => self.answered(answered)?,
                Some(joined) = self.tasks.join_next_with_id() => {
                    self.ended(joined);
                    while let Some(joined) = self.tasks.try_join_next_with_id() {
                        self.ended(joined);
                    }
                }
                Some(reading) = self.intake.readings.next() => self.was_read(reading)?,
                Some(errand) = self.errands.next() => self.errand(errand)?,
                back = looked(&mut self.looking) => {
                    self.looking = None;
                    if let Some(queue) = back.filter(|_| self.stop == Stop::No) {
                        return Err(format!("queue '{queue}' is back, and the next session consumes it"));
                    }
                    self.look_after_queues();
                }
                Some(queue) = self.trials.next(), if self.stop == Stop::No => {
                    self.bench.stalled.remove(&queue);
                    return Err(format!("queue '{queue}' gives a consumer again, and the next session consumes it"));
                }
                // While the broker blocks as well: what is on its way is kept where the budget wants it, and nothing is begun.
                batch = self.deliveries.next(), if self.stop == Stop::No && !full => match batch {
                    Ok(batch) => {
                        self.receive(batch);
                        // Large ones took their time, and others are on this thread, too.
                        tokio::task::yield_now().await;
                    }
                    Err(end) => return Err(format!("{end:?}")),
                },
                // Neither the broker's silence nor a deleted journal wakes anybody by itself.
                () = tokio::time::sleep(HUSH) => {}
                () = sleep_until(deadline) => {
                    tracing::warn!(running = self.running.len(), "the grace is over; what still runs is given back");
                    return Ok(());
                }
            }
        }
    }

    fn is_idle(&self) -> bool {
        self.running.is_empty() && self.intake.is_idle() && self.outbox.is_empty() && self.flights.is_empty()
    }

    /// Stops taking; what has not begun goes back with the channel.
    async fn begin_stop(&mut self, asked: Stop, stop: &mut watch::Receiver<Stop>) {
        self.stop = asked;
        if asked == Stop::Warm {
            tracing::info!(running = self.running.len(), "draining");
            self.bench.readiness.set(Component::Worker, ComponentState::Unready("draining".to_owned()));
            self.bench.metrics.record_session(telemetry::Session::Draining);
            self.deadline = Some(tokio::time::Instant::now() + self.bench.options.grace);
            tokio::select! {
                stopped = self.settler.stop() => if let Err(error) = stopped {
                    tracing::debug!(%error, "cancelling the consumers");
                },
                Ok(_) = stop.wait_for(|stop| *stop == Stop::Cold) => {}
                // The broker's words may lie behind much that is on its way.
                () = sleep_until(self.deadline) => {}
            }
        }
        self.schedule.clear();
        self.intake.clear();
    }

    /// Ends a job that is not run any more.
    fn pass_over(&mut self, job: Job, outcome: CommandOutcome, end: &End<'_>) {
        self.schedule.done(&job.keys, job.definition.walks);
        self.bench.metrics.record_command(Command::Other, outcome, Duration::ZERO);
        let stale = job.stale();
        let mut parcel = self.desk.close(job.case, end);
        parcel.stale = stale;
        self.post(parcel);
    }

    /// Hands over what a command owes. Over a bucket, the other workers are first told which values its earlier run may have
    /// changed; those of a local store compare files.
    fn post(&mut self, mut parcel: Parcel) {
        let stale = std::mem::take(&mut parcel.stale);
        if stale.is_none() || !self.bench.options.is_shared {
            return self.outbox.push(parcel);
        }
        if let Some(cache) = self.bench.engine.cache() {
            stale.drop_from(cache);
        }
        let announcer = self.bench.options.announcer.clone();
        self.errands.push(Box::pin(async move {
            announcer.publish(stale).await;
            Errand::Again(vec![parcel])
        }));
    }

    /// Takes in how a command ended.
    fn ended(&mut self, joined: Result<(Id, Ended), JoinError>) {
        let (id, mut ended) = parted(joined);
        let Some(mut running) = self.running.remove(&id) else { return };
        self.schedule.done(&running.keys, running.definition.walks);
        // The value is gone, unless its message is kept; what its answer took stays until the answer is confirmed.
        let mut kept = running.held.take().filter(|_| running.case.keeps_message());
        if let Some(kept) = &mut kept {
            // It is no work that others would have to wait for.
            kept.end_work(kept.bytes());
        }
        let held = ended.as_mut().ok().and_then(Ended::take_held);
        let stale = std::mem::take(&mut running.stale);
        let (answer, case) = self.record(running, ended);
        let mut parcel = self.desk.close_answered(case, answer);
        parcel.stale = stale;
        parcel.weights.extend([kept, held].into_iter().flatten().map(|held| Weight::Held { _bytes: held }));
        self.post(parcel);
    }

    /// Writes the answer of a command down and counts it.
    fn record(&mut self, running: Running, ended: Result<Ended, JoinError>) -> (Answer, Case) {
        let Running { case, definition, keys, writes, started, .. } = running;
        let facts = || Facts::of_each(&keys, &self.bench.engine);
        let (result, facts) = match ended {
            Ok(Ended::Finished(finished)) => (finished.result.map_err(exception), finished.facts),
            Ok(Ended::Limited(Limit::Hard(limit))) => (Err(Exception::time_limit_exceeded(limit)), facts()),
            Ok(Ended::Limited(Limit::Soft(_))) => (Err(Exception::soft_time_limit_exceeded()), facts()),
            Err(error) => (Err(Exception::runtime_error(panic_text(error))), facts()),
        };
        let id = case.request.id.as_str();
        if let Err(exception) = &result {
            tracing::info!(task_id = id, task = definition.task, %exception, "command failed");
        }
        let answer = self.desk.answer(definition, &case, result, facts, started.elapsed());
        // Only what wrote is answered from the journal.
        match writes.then(|| answer.write()).flatten() {
            Some(text) => self.bench.journal.finished(case.identity.digest, &text),
            None => self.bench.journal.ended(case.identity.digest),
        }
        let outcome = match &answer.outcome {
            Outcome::Success(_) => CommandOutcome::Succeeded,
            Outcome::Failure(_) => CommandOutcome::Failed,
        };
        self.bench.metrics.record_command(Command::from_task(definition.task), outcome, case.received.elapsed());
        (answer, case)
    }

    /// Sends what is owed, as far as it may leave.
    fn send(&mut self) {
        let events = if self.events_on { self.bench.options.events_max_batch } else { 0 };
        self.outbox.part(&mut self.bench.silences);
        while self.flights.may_launch(&self.outbox) {
            // The answer stands in the journal before its reply is published.
            self.bench.commit_journal();
            self.flights.launch(&mut self.outbox, &self.bench.silences, self.session.publisher(), events);
        }
    }

    /// Acknowledges what owes nothing more and sees to the rest.
    fn answered(&mut self, answered: Answered) -> Result<(), String> {
        let Answered { done, again, held, unrouted, refused, unheard, events_refused, lost, counts, given_up, .. } =
            answered;
        self.bench.count_publishes(counts);
        given_up.into_iter().for_each(|why| self.bench.metrics.record_given_up(why));
        self.settle(done)?;
        again.into_iter().for_each(|parcel| self.outbox.push(parcel));
        if let Some((parcel, reason)) = held.first() {
            tracing::warn!(task_id = parcel.id, reason, parcels = held.len(), "held back");
        }
        for (mut parcel, reason) in held {
            self.bench.hold_back(&mut parcel, &reason);
            self.errands.push(Box::pin(errand::hold(parcel)));
        }
        for (parcel, role) in unrouted {
            let (topology, readiness) = (self.session.topology(), self.bench.readiness.clone());
            let queue_type = self.bench.options.queue_type;
            self.errands.push(Box::pin(errand::see_to_queue(topology, readiness, parcel, role, queue_type)));
        }
        for (parcel, role, words) in refused {
            self.give_up(parcel, role, &words);
        }
        if !unheard.is_empty() {
            self.look_for_listeners(unheard);
        }
        if let Some(words) = events_refused {
            self.events_on = false;
            self.bench.readiness.set(
                Component::Events,
                ComponentState::Degraded(format!(
                    "the broker refuses events: {words}; they are off until the next session"
                )),
            );
        }
        lost.map_or(Ok(()), Err)
    }

    fn settle(&mut self, done: Vec<Parcel>) -> Result<(), String> {
        let mut tickets = Vec::with_capacity(done.len());
        let mut entries = Vec::with_capacity(done.len());
        let mut events = 0;
        for parcel in done {
            events += parcel.told as u64;
            if parcel.held {
                self.bench.let_go();
            }
            if let Some(ticket) = parcel.ticket {
                tickets.push(ticket);
                entries.extend(parcel.entry);
            }
        }
        self.bench.metrics.record_events(telemetry::Event::Published, events);
        if events > 0 && self.unheard_until.take().is_some() {
            self.bench.readiness.set(Component::Events, ComponentState::Ready);
        }
        self.settler.settle(tickets).map_err(|error| error.to_string())?;
        entries.into_iter().for_each(|entry| self.bench.journal.settled(entry));
        Ok(())
    }

    /// Events came back: with their queue down they wait, with nobody bound they count as delivered to nobody.
    fn look_for_listeners(&mut self, parcels: Vec<Parcel>) {
        if self.unheard_until.is_some_and(|until| Instant::now() < until) {
            self.give_up_events(parcels);
        } else {
            let (topology, readiness) = (self.session.topology(), self.bench.readiness.clone());
            self.errands.push(Box::pin(errand::look_for_listeners(topology, readiness, parcels)));
        }
    }

    /// Has queues looked at again as long as one is not there: nothing else may ever ask for it.
    fn look_after_queues(&mut self) {
        let conditions = self.bench.readiness.conditions();
        let is_degraded = |component| matches!(conditions.get(&component), Some(ComponentState::Degraded(_)));
        // Neither is what would be taken for there, and takes nothing.
        let held = &self.bench.held_back;
        let dead = is_degraded(Component::DeadQueue) && !held.contains(&Component::DeadQueue);
        // Events that are refused, or that nobody listens to, are no matter of a queue that comes back.
        let events = is_degraded(Component::Events)
            && self.events_on
            && self.unheard_until.is_none()
            && !held.contains(&Component::Events);
        let down = self.deliveries.down().iter().map(|(queue, _)| queue);
        let consumed: Vec<String> = down.filter(|queue| !self.bench.stalled.contains_key(*queue)).cloned().collect();
        if (dead || events || !consumed.is_empty()) && self.looking.is_none() {
            let (topology, readiness) = (self.session.topology(), self.bench.readiness.clone());
            self.looking = Some(Box::pin(errand::look_again(topology, readiness, dead, events, consumed)));
        }
    }

    fn errand(&mut self, errand: Errand) -> Result<(), String> {
        match errand {
            Errand::Again(parcels) => parcels.into_iter().for_each(|parcel| self.outbox.push(parcel)),
            Errand::Found(delivery, keys) if self.stop == Stop::No => self.was_found(*delivery, keys),
            Errand::Opened(delivery, opened) if self.stop == Stop::No => self.was_opened(*delivery, *opened),
            Errand::Found(..) | Errand::Opened(..) => {}
            Errand::Reconsider(job) if self.stop == Stop::No => self.schedule.resume(*job),
            // It has not begun: it goes back with the channel.
            Errand::Reconsider(_) => {}
            Errand::Refused(parcel, role, words) => self.give_up(*parcel, role, &words),
            Errand::Unheard(parcels) => {
                self.unheard_until = Some(Instant::now() + PATIENCE);
                self.give_up_events(parcels);
            }
            Errand::Lost(reason) => return Err(reason),
        }
        self.look_after_queues();
        Ok(())
    }

    /// Counts events as delivered to nobody: their queue is gone or unbound, as an operator wanted.
    fn give_up_events(&mut self, parcels: Vec<Parcel>) {
        let events: usize = parcels.iter().map(|parcel| parcel.events.len()).sum();
        self.bench.metrics.record_events(telemetry::Event::Undeliverable, events as u64);
        for mut parcel in parcels {
            parcel.told = parcel.told.saturating_sub(parcel.events.len());
            parcel.events.clear();
            self.outbox.push(parcel);
        }
    }

    /// Something is refused for good: the caller is told instead, once.
    fn give_up(&mut self, mut parcel: Parcel, role: Role, words: &str) {
        refusal::take(&self.desk, &mut parcel, role, words);
        self.outbox.push(parcel);
    }

    /// Ends everything at once: writes before their commit point never happen, those past it are written down.
    async fn abandon(&mut self) {
        self.schedule.clear();
        let mut abandoned = 0_u64;
        for entry in self.intake.abandon() {
            self.bench.journal.ended(entry);
            abandoned += 1;
        }
        self.running.retain(|_, running| {
            if running.commit_guard.abandon() {
                self.bench.journal.ended(running.case.identity.digest);
                abandoned += 1;
                return false;
            }
            true
        });
        let deadline = tokio::time::Instant::now() + LAST_WRITES;
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
        self.bench.commit_journal();
    }
}

/// Tells apart whose end it is and how it ended.
fn parted(joined: Result<(Id, Ended), JoinError>) -> (Id, Result<Ended, JoinError>) {
    match joined {
        Ok((id, ended)) => (id, Ok(ended)),
        Err(error) => (error.id(), Err(error)),
    }
}

/// Tells the time so long ago.
fn before(age: Duration) -> Timestamp {
    Timestamp::now().checked_sub(age).unwrap_or(Timestamp::UNIX_EPOCH)
}
