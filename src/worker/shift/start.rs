//! Beginning what may run.

use std::time::Instant;

use jiff::Timestamp;
use tracing::Instrument as _;

use super::{Running, SKEW, Shift, before};
use crate::commands::{Command as Runnable, CommitGuard, Context};
use crate::telemetry::CommandOutcome;
use crate::worker::desk::{self, End, Job, Turn, Work};
use crate::worker::run::run;
use crate::worker::{errand, schedule};

impl Shift<'_> {
    /// Begins what may run, after writing down that it does.
    pub(super) fn start_ready(&mut self) {
        let mut jobs = Vec::new();
        self.go_on_reading();
        while let Some(mut job) = self.schedule.next() {
            if !self.reserve(&mut job) {
                self.schedule.put_off(&job);
                self.intake.thirsty.push_back(job);
                continue;
            }
            if matches!(&job.work, Work::Read(sealed) if sealed.answer.is_some()) {
                // It does not run: only what follows its answer is to be read.
                self.read(job);
                continue;
            }
            let late_since = self.session.late_since(job.case.received).map(|since| before(since.elapsed() + SKEW));
            let doubt = desk::doubt(&job, late_since);
            if doubt.is_some() {
                self.bench.follow_journal();
            }
            let was_suspect = schedule::Job::is_suspect(&job);
            match desk::reconsider(&mut job, doubt, &mut self.bench.journal) {
                Turn::Begin if schedule::Job::is_suspect(&job) && !was_suspect => {
                    // It was not let in alone.
                    self.schedule.put_off(&job);
                    if matches!(job.work, Work::Read(_)) {
                        job.held = None;
                    }
                    self.schedule.resume(job);
                    continue;
                }
                Turn::Begin => {}
                Turn::Answered(answer) if matches!(job.work, Work::Read(_)) => {
                    // What follows it stands in the body.
                    if let Work::Read(sealed) = &mut job.work {
                        sealed.answer = Some(answer);
                    }
                    self.read(job);
                    continue;
                }
                Turn::Answered(answer) => {
                    self.pass_over(job, CommandOutcome::Replayed, &End::Answered(&answer));
                    continue;
                }
                Turn::Wait => {
                    self.schedule.put_off(&job);
                    if matches!(job.work, Work::Read(_)) {
                        job.held = None;
                    }
                    self.errands.push(Box::pin(errand::stand_by(Box::new(job))));
                    continue;
                }
            }
            if job.case.request.expires.is_some_and(|expires| expires <= Timestamp::now()) {
                self.pass_over(job, CommandOutcome::Revoked, &End::Expired);
                continue;
            }
            self.bench.journal.started(&job.case.identity, schedule::Job::is_suspect(&job));
            jobs.push(job);
        }
        if jobs.is_empty() {
            return;
        }
        self.bench.commit_journal();
        for mut job in jobs {
            match std::mem::replace(&mut job.work, Work::Reading) {
                Work::Run(command) => self.begin(job, command),
                work => {
                    job.work = work;
                    self.read(job);
                }
            }
        }
    }

    /// Begins a command.
    pub(super) fn begin(&mut self, job: Job, command: Box<dyn Runnable>) {
        if let Some(parcel) = self.desk.started(&job.case) {
            self.outbox.push(parcel);
        }
        let commit_guard = CommitGuard::default();
        let context = Context {
            operation_id: job.case.identity.digest.to_string(),
            redelivered: job.redelivered,
            commit_guard: commit_guard.clone(),
            max_reply_bytes: Some(self.bench.options.max_reply_bytes),
            budget: Some(self.bench.budget.clone()),
        };
        let span = tracing::info_span!("command", task_id = job.case.request.id, task = job.definition.task);
        let running = Running {
            stale: job.stale(),
            definition: job.definition,
            keys: job.keys,
            writes: job.writes,
            commit_guard,
            started: Instant::now(),
            held: job.held,
            _in_flight: self.bench.metrics.command_in_flight(),
            case: job.case,
        };
        let work = run(command, self.bench.engine.clone(), context, job.limit);
        let handle = self.tasks.spawn(work.instrument(span));
        self.running.insert(handle.id(), running);
    }
}
