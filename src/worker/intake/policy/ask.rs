//! The question whether a delivery may run, asked when it was read and right before it begins.

use std::time::Duration;

use jiff::Timestamp;
use tokio::time::Instant;

use super::{Policy, ReadyTask, TaskContext};
use crate::celery::retry::FirstAttempt;
use crate::commands::Redelivered;
use crate::worker::journal::{Admission, History, Journal, Question};

/// Lets a retry that may run look at the object first: what was written since its first attempt is newer.
fn with_first(admission: Admission, first: Option<&FirstAttempt>) -> Admission {
    match (admission, first) {
        (Admission::Run { redelivered }, Some(first)) => {
            let known = redelivered.and_then(|again| again.started_at);
            let started_at = Some(known.map_or(first.began, |known| known.min(first.began)));
            Admission::Run { redelivered: Some(Redelivered { started_at }) }
        }
        (admission, _) => admission,
    }
}

impl Policy {
    /// Asks whether a delivery may run that was just read.
    pub(super) fn ask_once(&self, context: &TaskContext, history: &mut History, journal: &mut Journal) -> Admission {
        with_first(journal.admit(self.question(context, history, None, None)), context.first_attempt.as_ref())
    }

    /// Asks again right before a task begins. `late_since` is since when the broker was silent, if it may have given the delivery to
    /// somebody else meanwhile.
    pub(in crate::worker) fn ask_again(
        &self,
        task: &mut ReadyTask,
        late_since: Option<Timestamp>,
        journal: &mut Journal,
    ) -> Admission {
        let waited = task.waits_since.map_or(Duration::ZERO, |since| since.elapsed());
        let waited = task.writes.then_some(waited);
        let admission = journal.admit(self.question(&task.context, &mut task.history, late_since, waited));
        let admission = with_first(admission, task.context.first_attempt.as_ref());
        match &admission {
            Admission::Run { redelivered } => task.redelivered = *redelivered,
            Admission::Wait => {
                task.waits_since.get_or_insert_with(Instant::now);
            }
            Admission::Answer(_) | Admission::Dead { .. } => {}
        }
        admission
    }

    fn question<'q>(
        &self,
        context: &'q TaskContext,
        history: &'q mut History,
        late_since: Option<Timestamp>,
        waited: Option<Duration>,
    ) -> Question<'q> {
        Question {
            identity: &context.identity,
            task_id: &context.request.id,
            history,
            late_since,
            waited,
            max_crashes: self.max_crashes,
            now: self.clock.now(),
        }
    }
}
