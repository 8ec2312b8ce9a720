//! From what a command returned to its answer and its events.

use std::time::Duration;

use super::Settlement;
use crate::celery::error::Exception;
use crate::commands::{CommandError, Definition, Facts};
use crate::json::Json;
use crate::worker::events::{EventData, EventError, EventOutcome, More};
use crate::worker::execution::answer::{Answer, Outcome};
use crate::worker::intake::policy::TaskContext;

/// Bytes of one text in an exception; Linux has no longer path.
const LONGEST_TEXT: usize = 4096;

impl Settlement {
    /// Turns what a command returned into its answer, with an event for each of its facts.
    pub(in crate::worker) fn answer(
        &self,
        definition: &'static Definition,
        context: &TaskContext,
        result: Result<String, Exception>,
        facts: Vec<Facts>,
        duration: Duration,
    ) -> Answer {
        let outcome = match result {
            Ok(text) if text.len() > self.max_reply_bytes => Outcome::Failure(Exception::value_error(format!(
                "the answer has {} bytes and a reply may have {} (max_reply_bytes); ask for {}",
                text.len(),
                self.max_reply_bytes,
                definition.less
            ))),
            Ok(text) => Outcome::Success(text),
            Err(exception) => Outcome::Failure(exception),
        };
        let mut facts = facts.into_iter();
        let first = facts.next().unwrap_or_default();
        let event = self.event(definition, context, &outcome, first, duration.as_secs_f64());
        let more = |mut facts: Facts| More { error: facts.failure.take().map(own_failure), facts };
        let more = if event.is_some() { facts.map(more).collect() } else { Vec::new() };
        Answer { outcome, event, more }
    }

    /// Makes the event of a command; `None` where nobody is told of it.
    pub(in crate::worker) fn event(
        &self,
        definition: &Definition,
        context: &TaskContext,
        outcome: &Outcome,
        mut facts: Facts,
        duration_seconds: f64,
    ) -> Option<EventData> {
        if !self.events && context.request.metrics_reply_to.is_none() {
            return None;
        }
        let error = facts.failure.take().map(own_failure).or_else(|| failure_of(outcome));
        Some(EventData {
            operation: definition.operation?.to_owned(),
            outcome: if error.is_none() { EventOutcome::Succeeded } else { EventOutcome::Failed },
            error,
            facts,
            queue_seconds: context.sent.map(|sent| {
                let waited = (self.clock.now().as_millisecond() - sent) as f64 / 1000.0 - duration_seconds;
                waited.max(0.0)
            }),
            duration_seconds,
            task_id: context.request.id.clone(),
            worker: self.node.clone(),
        })
    }
}

/// Returns what events tell of the failure of a command.
pub(super) fn failure_of(outcome: &Outcome) -> Option<EventError> {
    match outcome {
        Outcome::Success(_) => None,
        Outcome::Failure(exception) => Some(event_error(exception)),
    }
}

/// Returns what an event tells of the failure of one key.
fn own_failure(error: CommandError) -> EventError {
    event_error(&exception(error))
}

fn event_error(exception: &Exception) -> EventError {
    EventError { class: exception.exc_type().to_owned(), message: exception.text() }
}

/// Maps a command's error to the exception its caller raises.
pub(in crate::worker) fn exception(error: CommandError) -> Exception {
    let (name, module) = error.exception.class();
    Exception::custom(module, name, error.args.into_iter().map(cropped).collect())
}

/// Shortens what a producer had repeated: it would stand in the reply, the event, the log, and in the failure of every
/// step that waits for this one.
fn cropped(arg: Json) -> Json {
    match arg {
        Json::Text(text) if text.len() > LONGEST_TEXT => {
            let shown = &text[..text.floor_char_boundary(LONGEST_TEXT)];
            Json::Text(format!("{shown}… ({} bytes)", text.len()))
        }
        other => other,
    }
}
