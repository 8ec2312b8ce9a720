//! Carries out what the intake decides: what is scheduled, read, answered at once, or sent to a delay queue.

use std::time::Duration;

use super::SessionLoop;
use super::deferred::{self, Read};
use crate::broker::Delivery;
use crate::celery::park;
use crate::commands::Keys;
use crate::telemetry::{self, Command, CommandOutcome};
use crate::worker::execution::settlement::TaskEnd;
use crate::worker::intake::lines::{DelayedTask, Next};
use crate::worker::intake::policy::{TaskContext, revocation};
use crate::worker::intake::reader::Reading;
use crate::worker::intake::reading::{AfterReading, ReadingTask};
use crate::worker::journal::was_delayed;

impl SessionLoop<'_> {
    /// Takes deliveries in, in the order they came.
    pub(super) fn receive(&mut self, batch: Vec<Delivery>) -> Result<(), String> {
        for delivery in batch {
            let kind =
                if delivery.origin.redelivered { telemetry::Delivery::Redelivered } else { telemetry::Delivery::First };
            self.worker.metrics.record_delivery(kind);
            if let Some(count) = delivery.message.headers.get("x-delivery-count") {
                // Told, never counted: most of them were only fetched ahead by a worker that went away.
                let id = delivery.message.properties.correlation_id.as_deref();
                tracing::debug!(task_id = id, delivery_count = ?count, "redelivered");
            }
            let next = self.intake.receive(delivery, &self.policy, &mut self.worker.journal)?;
            self.go_on(next);
        }
        Ok(())
    }

    /// Tells the broker's side how many deliveries only wait: for others of their kind, for room, or, as many again as there are slots,
    /// for a queue that takes nothing.
    pub(super) fn count_blocked(&mut self) {
        let held = self.outbox.held().count().min(self.slots());
        self.consumer.set_blocked(held + self.scheduler.blocked() + self.intake.readings.waiting());
    }

    /// The keys of a message were searched for.
    pub(super) fn was_found(&mut self, delivery: Delivery, keys: Option<Keys>) -> Result<(), String> {
        let next = self.intake.was_found(delivery, keys, &self.policy, &mut self.worker.journal)?;
        self.go_on(next);
        Ok(())
    }

    /// A message that told nothing before was read.
    pub(super) fn was_opened(&mut self, delivery: Delivery, Read { opened, held }: Read) -> Result<(), String> {
        let next = self.intake.was_opened(delivery, opened, held, &self.policy, &mut self.worker.journal)?;
        self.go_on(next);
        Ok(())
    }

    fn go_on(&mut self, all: impl IntoIterator<Item = Next>) {
        for next in all {
            match next {
                Next::Schedule(task) => {
                    let TaskContext { request, was_delayed, .. } = &task.context;
                    // A retry is received anew, as by a Python worker.
                    if !was_delayed || request.retries > 0 {
                        self.worker.monitor.received(request, &task.keys, None);
                    }
                    self.scheduler.submit(*task);
                }
                Next::Ended(pending, outcome) => {
                    self.worker.metrics.record_command(Command::Other, outcome, Duration::ZERO);
                    self.post(*pending);
                }
                Next::Delay(task) => {
                    let DelayedTask { pending, request, message, origin, eta } = *task;
                    if !was_delayed(&message) {
                        self.worker.monitor.received(&request, &[], Some(eta));
                    }
                    self.worker.metrics.record_command(Command::Other, CommandOutcome::Parked, Duration::ZERO);
                    let (session, clock) = (self.session.share(), self.worker.options.clock);
                    self.deferred.push(Box::pin(deferred::delay(
                        session,
                        clock,
                        pending,
                        park(&message),
                        origin.queue,
                        eta,
                    )));
                }
                Next::Search(delivery) => {
                    let (reader, budget) = (self.policy.reader.clone(), self.worker.budget.clone());
                    self.deferred.push(Box::pin(deferred::search(reader, budget, delivery)));
                }
                Next::Open(delivery) => {
                    let (reader, budget) = (self.policy.reader.clone(), self.worker.budget.clone());
                    self.deferred.push(Box::pin(deferred::open(reader, budget, delivery)));
                }
            }
        }
    }

    /// Goes on with what waited for room.
    pub(super) fn go_on_reading(&mut self) {
        let (scheduler, is_idle) = (&self.scheduler, self.running.is_empty());
        let admitted = self.intake.readings.go_on(&self.policy.reader, is_idle, |task| scheduler.may_run(task));
        admitted.into_iter().for_each(|task| self.scheduler.resume(task));
    }

    /// Goes on with a task that was read: it runs, or has ended already.
    pub(super) fn was_read(&mut self, read: Result<(ReadingTask, Reading), String>) -> Result<(), String> {
        let (task, reading) = read?;
        match self.intake.readings.was_read(task, reading, &self.policy)? {
            None => {}
            Some(AfterReading::Begin(task, command)) => {
                let now = self.worker.options.clock.now();
                // It may have been revoked, or its time may have passed, while it was read.
                match revocation(&task.context.request, now, &mut self.worker.journal.revocations) {
                    Some(revocation) => {
                        self.worker.journal.ended(task.context.identity.digest);
                        self.pass_over(*task, CommandOutcome::Revoked, &TaskEnd::Revoked(revocation));
                    }
                    None => self.begin(*task, command),
                }
            }
            Some(AfterReading::Ended { pending, outcome, keys, share, noted }) => {
                noted.into_iter().for_each(|entry| self.worker.journal.ended(entry));
                self.scheduler.done(&keys, share);
                self.worker.metrics.record_command(Command::Other, outcome, Duration::ZERO);
                self.post(*pending);
            }
        }
        Ok(())
    }
}
