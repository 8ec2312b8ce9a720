//! The question whether a delivery may run, asked when it was read and right before it begins.

use std::time::Duration;

use jiff::Timestamp;
use tokio::time::Instant;

use super::{Policy, ReadyTask, TaskContext};
use crate::worker::journal::{Admission, History, Journal, Question};

impl Policy {
    /// Asks whether a delivery may run that was just read.
    pub(super) fn ask_once(&self, context: &TaskContext, history: &mut History, journal: &mut Journal) -> Admission {
        journal.admit(self.question(context, history, None, None))
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
