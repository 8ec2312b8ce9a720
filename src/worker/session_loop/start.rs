//! Beginning what may run.

use std::time::Duration;

use tokio::time::Instant;
use tracing::Instrument as _;

use super::deferred::{self, GLANCE, OUTAGE_LOOK};
use super::{RunningCommand, SKEW, SessionLoop, before};
use crate::commands::{Command as Runnable, CommitGuard, Context};
use crate::telemetry::CommandOutcome;
use crate::worker::delivery::parking::LONGEST_HOLD;
use crate::worker::execution::run::run;
use crate::worker::execution::scheduler;
use crate::worker::execution::settlement::TaskEnd;
use crate::worker::intake::policy::{ReadyTask, Work, revocation};
use crate::worker::intake::sealed::{Known, KnownEnd};
use crate::worker::journal::Admission;

impl SessionLoop<'_> {
    /// Begins what may run, after writing down that it does.
    ///
    /// # Errors
    /// Why the session is lost.
    pub(super) fn start_ready(&mut self) -> Result<(), String> {
        let mut tasks = Vec::new();
        self.go_on_reading();
        while let Some(mut task) = self.scheduler.next() {
            let lost_at = self.lost_queues.get(&task.context.origin.queue);
            if lost_at.is_some_and(|lost_at| task.context.received <= *lost_at) {
                self.scheduler.done(&task.keys, task.share);
                continue;
            }
            if !self.intake.readings.reserve(&mut task, &self.policy.reader) {
                self.scheduler.put_off(&task);
                self.intake.readings.put_off(task);
                continue;
            }
            if let Work::Read(sealed) = &task.work
                && let Some(end) = &sealed.end
            {
                // It does not run: only what follows its end is to be read.
                if end.is_noted() {
                    self.worker.journal.started(&task.context.identity, scheduler::Schedulable::is_suspect(&task));
                    self.worker.commit_journal();
                }
                self.intake.readings.begin(task, self.policy.reader.clone())?;
                continue;
            }
            let now = self.worker.options.clock.now();
            let late_since = self.session.late_since(task.context.received);
            let late_since = late_since.map(|since| before(now, since.elapsed() + SKEW));
            let was_suspect = scheduler::Schedulable::is_suspect(&task);
            match self.policy.ask_again(&mut task, late_since, &mut self.worker.journal) {
                Admission::Run { .. } if scheduler::Schedulable::is_suspect(&task) && !was_suspect => {
                    // The journal tells only now that a worker died while this command ran. The scheduler released it beside others,
                    // and has to release it again, alone.
                    let number = self.scheduler.rest(without_room(task));
                    self.scheduler.wake(number);
                    continue;
                }
                Admission::Run { .. } => {}
                Admission::Answer(answer) => {
                    match &mut task.work {
                        Work::Read(sealed) => {
                            // What follows it stands in the body.
                            sealed.end = Some(Known::new(KnownEnd::Answered(answer), &self.worker.budget));
                            self.intake.readings.begin(task, self.policy.reader.clone())?;
                        }
                        _ => self.pass_over(task, CommandOutcome::Replayed, &TaskEnd::Answered(&answer)),
                    }
                    continue;
                }
                Admission::Wait => {
                    self.rest(task, GLANCE);
                    continue;
                }
                Admission::Dead { crashes } => {
                    // Its message is not at hand here for the copy that is kept. It comes again, and ends when it is read.
                    tracing::warn!(
                        task_id = task.context.request.id,
                        crashes,
                        "a worker died of it meanwhile; given back"
                    );
                    self.scheduler.done(&task.keys, task.share);
                    self.consumer.give_back(&task.context.ack_token).map_err(|error| error.to_string())?;
                    continue;
                }
            }
            if let Some(revocation) = revocation(&task.context.request, now, &mut self.worker.journal.revocations) {
                match &mut task.work {
                    Work::Read(sealed) if self.policy.settlement.awaits_end(&task.context.request) => {
                        sealed.end = Some(Known::new(KnownEnd::Revoked(revocation), &self.worker.budget));
                        self.intake.readings.begin(task, self.policy.reader.clone())?;
                    }
                    _ => self.pass_over(task, CommandOutcome::Revoked, &TaskEnd::Revoked(revocation)),
                }
                continue;
            }
            if self.waits_for_storage(&task) {
                if task.context.received.elapsed() >= LONGEST_HOLD {
                    self.give_back(&task)?;
                    continue;
                }
                self.rest(task, OUTAGE_LOOK);
                continue;
            }
            if let Some(wait) = self.worker.limits.wait(task.definition.task, &mut task.promised) {
                if task.context.received.elapsed() >= LONGEST_HOLD {
                    self.worker.limits.release(task.definition.task, task.promised);
                    self.give_back(&task)?;
                    continue;
                }
                self.rest(task, wait);
                continue;
            }
            self.worker.journal.started(&task.context.identity, scheduler::Schedulable::is_suspect(&task));
            tasks.push(task);
        }
        if tasks.is_empty() {
            return Ok(());
        }
        self.worker.commit_journal();
        for mut task in tasks {
            match std::mem::replace(&mut task.work, Work::Reading) {
                Work::Run(command) => self.begin(task, command),
                work => {
                    task.work = work;
                    self.intake.readings.begin(task, self.policy.reader.clone())?;
                }
            }
        }
        Ok(())
    }

    /// Gives a delivery back that has waited for so long that the broker would end its channel; it comes again.
    fn give_back(&mut self, task: &ReadyTask) -> Result<(), String> {
        self.scheduler.done(&task.keys, task.share);
        self.consumer.give_back(&task.context.ack_token).map_err(|error| error.to_string())
    }

    /// Tells whether a task would fail only because the bucket is unreachable, and nothing may serve in its place.
    fn waits_for_storage(&self, task: &ReadyTask) -> bool {
        // What has no retry left is told at once, and a signature needs no bucket.
        let may_wait = match &task.work {
            Work::Read(sealed) => self.policy.may_retry(&task.context.request, &sealed.message),
            _ => task.context.message.is_some(),
        };
        may_wait
            && task.definition.operation.is_some_and(|operation| operation != "signed_url")
            && self.worker.engine.is_away()
    }

    /// Looks at a task again after a while that cannot begin yet.
    fn rest(&mut self, task: ReadyTask, time: Duration) {
        let number = self.scheduler.rest(without_room(task));
        self.deferred.push(Box::pin(deferred::rest(number, time)));
    }

    /// Begins a command.
    pub(super) fn begin(&mut self, task: ReadyTask, command: Box<dyn Runnable>) {
        if let Some(pending) = self.policy.settlement.started(&task.context) {
            self.outbox.push(pending);
        }
        self.worker.monitor.count(task.definition.task);
        self.worker.monitor.started(&task.context.request);
        let commit_guard = CommitGuard::default();
        let context = Context {
            operation_id: match &task.context.first_attempt {
                Some(first) => first.identity.clone(),
                None => task.context.identity.digest.to_string(),
            },
            redelivered: task.redelivered,
            commit_guard: commit_guard.clone(),
            max_reply_bytes: Some(self.worker.options.max_reply_bytes),
            budget: Some(self.worker.budget.clone()),
            outcomes: self.worker.outcomes.clone(),
        };
        let span = tracing::info_span!("command", task_id = task.context.request.id, task = task.definition.task);
        self.begun += 1;
        let work = run(command, self.worker.engine.clone(), context, task.limit);
        let handle = self.tasks.spawn(work.instrument(span));
        let id = handle.id();
        let running = RunningCommand {
            handle,
            terminated: None,
            number: self.begun,
            stale: task.stale(),
            definition: task.definition,
            keys: task.keys,
            share: task.share,
            writes: task.writes,
            commit_guard,
            started: Instant::now(),
            held: task.held,
            began_before: task.redelivered.and_then(|again| again.started_at),
            _in_flight: self.worker.metrics.command_in_flight(),
            context: task.context,
        };
        self.running.insert(id, running);
    }
}

/// Gives back the room to read a task that cannot begin yet.
fn without_room(mut task: ReadyTask) -> ReadyTask {
    if matches!(task.work, Work::Read(_)) {
        task.held = None;
    }
    task
}
