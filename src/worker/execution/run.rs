//! One command's run, from its start to its result, its limit or its panic.

use std::time::Duration;

use tokio::task::JoinError;

use crate::commands::{self, Command, Context, Engine, Finished, Held};
use crate::redact::unquoted;

/// A time limit of one command.
#[derive(Clone, Copy, Debug)]
pub(in crate::worker) enum Limit {
    /// Celery's `time_limit`.
    Hard(Duration),
    /// Celery's `soft_time_limit`.
    Soft(Duration),
}

impl Limit {
    /// Returns how long the command may run.
    pub(in crate::worker) const fn after(&self) -> Duration {
        match self {
            Self::Hard(after) | Self::Soft(after) => *after,
        }
    }
}

/// How a command's run ended, short of a panic.
#[derive(Debug)]
pub(in crate::worker) enum Ended {
    Finished(Finished),
    Limited(Limit),
}

impl Ended {
    /// Takes what its answer holds of the budget.
    pub(in crate::worker) const fn take_held(&mut self) -> Option<Held> {
        match self {
            Self::Finished(finished) => finished.held.take(),
            Self::Limited(_) => None,
        }
    }
}

/// Runs a command within its limit.
pub(in crate::worker) async fn run(
    command: Box<dyn Command>,
    engine: Engine,
    context: Context,
    limit: Option<Limit>,
) -> Ended {
    let commit_guard = context.commit_guard.clone();
    let mut work = Box::pin(commands::run(command, &engine, context));
    let Some(limit) = limit else { return Ended::Finished(work.await) };
    tokio::select! {
        biased;
        finished = &mut work => return Ended::Finished(finished),
        () = tokio::time::sleep(limit.after()) => {}
    }
    if commit_guard.abandon() {
        return Ended::Limited(limit);
    }
    // It took effect already: whatever comes of it is the truth.
    Ended::Finished(work.await)
}

/// Returns what a panic said.
pub(in crate::worker) fn panic_text(error: JoinError) -> String {
    match error.try_into_panic() {
        Ok(payload) => {
            let text = payload
                .downcast_ref::<String>()
                .map(String::as_str)
                .or_else(|| payload.downcast_ref::<&str>().copied())
                .unwrap_or("no text");
            // Where it happened stands in the log.
            format!("the command panicked: {}", unquoted(text))
        }
        Err(error) => error.to_string(),
    }
}
