//! Commands that failed because the storage is unreachable: they run again later.

use std::time::Duration;

use jiff::SignedDuration;
use rand::RngExt as _;

use super::deferred::{RetryingCommand, find_way};
use super::{RunningCommand, SessionLoop};
use crate::celery::message::{Address, Message, Publication};
use crate::celery::retry::{FirstAttempt, retry};
use crate::commands::{CommandError, Finished};
use crate::telemetry::{Command, CommandOutcome};
use crate::worker::delivery::role::Role;
use crate::worker::execution::run::Ended;
use crate::worker::execution::settlement::exception;
use crate::worker::invalidations::Stale;

/// The first and the longest wait before another attempt; it doubles with each. A random part of up to half is taken off, so that
/// not all come back at once.
const WAITS: (Duration, Duration) = (Duration::from_secs(10), Duration::from_secs(300));

impl SessionLoop<'_> {
    /// Has a command run again: its message goes through the delay queues, and its caller is told.
    pub(super) fn retry(&mut self, running: RunningCommand, message: &Message, error: CommandError, stale: Stale) {
        let context = &running.context;
        let now = self.worker.options.clock.now();
        let wait = wait(context.request.retries, rand::rng().random_range(0.5..=1.0));
        let span = |span: Duration| SignedDuration::try_from(span).unwrap_or_default();
        let eta = now.checked_add(span(wait)).unwrap_or(now);
        let first = context.first_attempt.clone().unwrap_or_else(|| {
            let began = now.checked_sub(span(running.started.elapsed())).unwrap_or(now);
            let began = running.began_before.map_or(began, |before| before.min(began));
            FirstAttempt { began, identity: context.identity.digest.to_string() }
        });
        // Whatever becomes of it, this run is over.
        self.worker.journal.ended(context.identity.digest);
        let next = retry(message, context.request.retries.saturating_add(1), eta, &first);
        let (session, clock) = (self.session.share(), self.worker.options.clock);
        let command = Box::new(RetryingCommand { running, error, stale, next, eta });
        self.deferred.push(Box::pin(find_way(session, clock, command)));
    }

    /// Goes on with a command whose way is known; without one it fails as it would have without a retry.
    pub(super) fn retried(&mut self, command: RetryingCommand, way: Option<Address>) {
        let RetryingCommand { running, error, stale, next, .. } = command;
        let Some(address) = way else {
            let finished = Finished { result: Err(error), facts: running.facts(&self.worker.engine), held: None };
            let (answer, context) = self.record(running, Ok(Ended::Finished(finished)));
            let mut pending = self.policy.settlement.close_answered(context, answer);
            pending.stale = stale;
            return self.post(pending);
        };
        let RunningCommand { context, definition, .. } = running;
        let exception = exception(error);
        let retries = context.request.retries.saturating_add(1);
        tracing::info!(
            task_id = context.request.id,
            task = definition.task,
            retries,
            %exception,
            "the storage is unreachable; the command runs again later"
        );
        self.worker.monitor.retried(&context.request, &exception);
        let outcome = CommandOutcome::Retried;
        self.worker.metrics.record_command(Command::from_task(definition.task), outcome, context.received.elapsed());
        let mut pending = self.policy.settlement.retried(context, &exception);
        pending.first.push((Role::Delay, Publication { address, message: next }));
        pending.stale = stale;
        self.post(pending);
    }
}

/// Returns the wait before the attempt after so many retries; `part` of it, from a half to the whole.
fn wait(retries: u32, part: f64) -> Duration {
    let (first, longest) = WAITS;
    first.saturating_mul(1 << retries.min(16)).min(longest).mul_f64(part)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn waits_double_up_to_five_minutes() {
        let waits = [0, 1, 2, 5, 60].map(|retries| wait(retries, 1.0).as_secs());
        assert_eq!(waits, [10, 20, 40, 300, 300]);
        assert_eq!(wait(0, 0.5), Duration::from_secs(5));
    }
}
