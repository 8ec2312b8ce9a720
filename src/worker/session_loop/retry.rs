//! Commands that failed because the storage is unreachable: they run again later.

use std::time::Duration;

use jiff::SignedDuration;
use rand::RngExt as _;

use super::{RunningCommand, SessionLoop, deferred};
use crate::celery::message::Message;
use crate::celery::retry::{FirstAttempt, retry};
use crate::commands::CommandError;
use crate::telemetry::{Command, CommandOutcome};
use crate::worker::delivery::pending_ack::Weight;
use crate::worker::execution::settlement::exception;

/// The first and the longest wait before another attempt; it doubles with each. A random part of up to half is taken off, so that
/// not all come back at once.
const WAITS: (Duration, Duration) = (Duration::from_secs(10), Duration::from_secs(300));

impl SessionLoop<'_> {
    /// Has a command run again: its message goes through the delay queues, and its caller is told.
    pub(super) fn retry(&mut self, running: RunningCommand, message: &Message, error: CommandError) {
        let RunningCommand { context, definition, started, .. } = running;
        let exception = exception(error);
        let now = self.worker.options.clock.now();
        let retries = context.request.retries.saturating_add(1);
        let wait = wait(context.request.retries, rand::rng().random_range(0.5..=1.0));
        let later = |span: Duration| SignedDuration::try_from(span).unwrap_or_default();
        let eta = now.checked_add(later(wait)).unwrap_or(now);
        tracing::info!(
            task_id = context.request.id,
            task = definition.task,
            retries,
            wait_seconds = wait.as_secs_f64(),
            %exception,
            "the storage is unreachable; the command runs again later"
        );
        self.worker.journal.ended(context.identity.digest);
        self.worker.monitor.retried(&context.request, &exception);
        let command = Command::from_task(definition.task);
        self.worker.metrics.record_command(command, CommandOutcome::Retried, context.received.elapsed());
        let first = context.first_attempt.clone().unwrap_or_else(|| FirstAttempt {
            began: now.checked_sub(later(started.elapsed())).unwrap_or(now),
            identity: context.identity.digest.to_string(),
        });
        let next = retry(message, retries, eta, &first);
        let queue = context.origin.queue.clone();
        let mut pending = self.policy.settlement.retried(context, &exception);
        pending.weights.push(Weight::Held { bytes: self.worker.budget.keep(message.body.len() as u64) });
        let (session, clock) = (self.session.share(), self.worker.options.clock);
        self.deferred.push(Box::pin(deferred::delay(session, clock, pending, next, queue, eta)));
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
