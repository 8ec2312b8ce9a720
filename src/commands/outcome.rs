//! The task `filestorage.outcome`: tells what became of a command, for a caller that lost its reply queue.

use std::fmt;
use std::sync::Arc;

use async_trait::async_trait;
use schemars::JsonSchema;
use serde::Serialize;
use serde_json::Value;

use super::arguments::{Parameter, ParameterKind};
use super::{
    Arguments, CallSignature, Command, CommandError, Context, Definition, Engine, Facts, Finished, KeyUse, schemas,
};

pub(super) static DEFINITION: Definition = Definition {
    task: "filestorage.outcome",
    operation: None,
    signature: CallSignature {
        function: "outcome",
        required: &[Parameter::new("task_id", ParameterKind::Text, "The id of the command.")],
        optional: &[],
        keyword_only: &[],
    },
    less: "nothing",
    // It goes through the journals.
    walks: true,
    result: schemas::of::<CommandOutcomeReport>,
    parse,
};

/// What a journal knows of the newest command under an id.
#[derive(Clone, Debug, PartialEq, Serialize, JsonSchema)]
pub struct CommandOutcomeReport {
    /// `done`, `running`, or `unknown`, which proves nothing.
    pub state: OutcomeState,
    /// The task, where the command is known.
    pub task: Option<String>,
    /// When the command ended, as ISO 8601.
    pub finished_at: Option<String>,
    /// The answer as a result of Celery: `status`, and the result or the exception. Null for reads, whose answers are not kept.
    pub answer: Option<Value>,
}

/// Whether a command has ended.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, JsonSchema)]
#[serde(rename_all = "lowercase")]
pub enum OutcomeState {
    /// It has ended.
    Done,
    /// It runs, or its worker died while it ran.
    Running,
    /// No journal has it, or none any more.
    Unknown,
}

/// What knows the outcomes of commands.
#[async_trait]
pub trait Outcomes: fmt::Debug + Send + Sync {
    /// Finds the newest command under an id.
    ///
    /// # Errors
    /// Whatever the file system answers, as text.
    async fn outcome(&self, task_id: &str) -> Result<CommandOutcomeReport, String>;
}

/// The commands of a place without a journal.
#[derive(Clone, Debug, Default)]
pub struct KnownOutcomes(pub Option<Arc<dyn Outcomes>>);

#[derive(Debug)]
struct Outcome {
    task_id: String,
}

fn parse(mut arguments: Arguments) -> Result<Box<dyn Command>, CommandError> {
    Ok(Box::new(Outcome { task_id: arguments.text("task_id")? }))
}

#[async_trait]
impl Command for Outcome {
    fn keys(&self) -> &[KeyUse] {
        &[]
    }

    async fn run(self: Box<Self>, engine: &Engine, context: Context) -> Finished {
        let result = match &context.outcomes.0 {
            Some(outcomes) => outcomes.outcome(&self.task_id).await.map_err(CommandError::io_error),
            None => Err(CommandError::value_error("there is no journal here; ask a worker")),
        };
        Finished {
            result: result.and_then(|report| super::json(&report)),
            facts: vec![Facts::of(None, engine)],
            held: None,
        }
    }
}
