//! The last look at a task right before it runs.

use std::time::Duration;

use jiff::Timestamp;
use tokio::time::Instant;

use super::{ReadyTask, recall, redelivered};
use crate::worker::execution::answer::Answer;
use crate::worker::journal::Journal;

/// So old a stamped message has become that the broker may have handed it out before without saying so: a cluster takes
/// longer to give a node up.
const OLD: i64 = 1000;

/// Tells since when somebody may have begun this task although the broker does not say so; the journal is followed then before
/// it is reconsidered. `late_since` is since when the broker was silent, if it was. Of a message with a stamp every run counts,
/// since only a message with the same id, stamp and body has its entry in the journal.
pub(in crate::worker) fn doubt(task: &ReadyTask, late_since: Option<Timestamp>, now: Timestamp) -> Option<Timestamp> {
    match task.context.identity.stamp {
        _ if task.again => None,
        None => late_since,
        Some(stamp) => {
            let age = now.as_millisecond().saturating_sub(stamp);
            // One from the future tells that the clocks differ, and nothing of its age.
            (!(0..OLD).contains(&age) || late_since.is_some()).then_some(Timestamp::UNIX_EPOCH)
        }
    }
}

/// How long the end of a run elsewhere is waited for: who lost its session has given up by then what it ran. What takes longer is
/// run here as well.
pub(super) const LONGEST_WAIT: Duration = Duration::from_secs(15);

/// What a look right before a task runs says.
#[derive(Debug)]
pub(in crate::worker) enum Turn {
    /// It is to run.
    Begin,
    /// It has run, with this answer.
    Answered(Box<Answer>),
    /// Somebody else runs it: two runs would give two answers.
    Wait,
}

/// How long it is waited for whether the session holds in which a living sibling answered an equal command: who lost its session
/// knows it at once, and from a silence before the broker gives anything to others.
pub(super) const SESSION_WAIT: Duration = Duration::from_secs(2);

/// Looks once more right before a task runs: somebody else may have been given it since it was decided about, which the broker
/// told (it is redelivered) or could not tell (in [`doubt`] since then).
pub(in crate::worker) fn reconsider(task: &mut ReadyTask, since: Option<Timestamp>, journal: &mut Journal) -> Turn {
    if !task.again {
        let identity = &task.context.identity;
        let is_taken =
            |since| journal.is_taken(identity, since) || identity.stamp.is_some() && journal.is_done(identity);
        task.doubted = since.filter(|since| is_taken(*since));
        if task.doubted.is_none() {
            return Turn::Begin;
        }
        task.again = true;
    }
    // Where somebody else was given it unsaid, what is older answered another message.
    let recall = recall(journal, &task.context, task.doubted);
    if let Some(answer) = recall.answer.as_deref().and_then(Answer::read) {
        tracing::info!(task_id = task.context.request.id, "answered again from the journal");
        journal.answered_again(&task.context.identity, &recall);
        return Turn::Answered(Box::new(answer));
    }
    task.redelivered = redelivered(&recall);
    task.suspect |= recall.suspect;
    if (recall.runs_elsewhere || recall.unsure) && task.writes {
        let waited = task.waits_since.get_or_insert_with(Instant::now).elapsed();
        if recall.runs_elsewhere && waited < LONGEST_WAIT || waited < SESSION_WAIT {
            return Turn::Wait;
        }
        if recall.runs_elsewhere {
            tracing::warn!(
                task_id = task.context.request.id,
                "another worker still runs this command; it is run here as well"
            );
        }
    }
    Turn::Begin
}
