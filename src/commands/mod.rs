//! The tasks: typed arguments in, JSON out. They know the engine, not the queue.
//!
//! A command is one file: its [`Definition`] (name, signature, parser) and a struct that runs. Adding one is a file
//! and a row in [`COMMANDS`].

mod arguments;
mod delete;
mod error;
mod exists;
mod get_stats;
mod keys;
mod list_keys;
mod retrieve;
mod schemas;
mod signed_url;
mod stat;
mod store;
mod sync;

use std::fmt;

use async_trait::async_trait;

pub use arguments::{Arguments, CallSignature, Parameter, ParameterKind};
pub use error::{CommandError, ExceptionClass};
pub use keys::{KeyArgument, KeyPlaces, KeyUse, Keys};
pub use schemas::schemas;

pub use crate::storage::{Budget, CommitGuard, Engine, Held, Key, Redelivered, Spool};

use crate::json::Json;
use crate::storage::{self, Receipt, Reference};

/// The parameter nearly every task begins with.
const KEY: Parameter = Parameter::new("key", ParameterKind::Key, "Name of the object: 1 to 1024 bytes of UTF-8.");

/// The tasks that a worker runs.
#[derive(Clone, Copy, Debug)]
pub struct CommandTable(pub &'static [&'static Definition]);

impl CommandTable {
    /// Finds a task by its Celery name.
    #[must_use]
    pub fn find(self, task: &str) -> Option<&'static Definition> {
        self.0.iter().find(|definition| definition.task == task).copied()
    }
}

impl Default for CommandTable {
    fn default() -> Self {
        Self(COMMANDS)
    }
}

/// Every task of this program.
pub static COMMANDS: &[&Definition] = &[
    &delete::DEFINITION,
    &exists::DEFINITION,
    &get_stats::DEFINITION,
    &list_keys::DEFINITION,
    &retrieve::DEFINITION,
    &signed_url::DEFINITION,
    &stat::DEFINITION,
    &store::DEFINITION,
    &sync::DEFINITION,
];

/// What a task is called and how its call is read.
#[derive(Clone, Copy)]
pub struct Definition {
    /// Celery task name.
    pub task: &'static str,
    /// Operation of its metric event; `None` for a task that touches no storage.
    pub operation: Option<&'static str>,
    /// Its parameters.
    pub signature: CallSignature,
    /// How to ask for less when an answer is larger than a reply may be.
    pub less: &'static str,
    /// Whether it goes through many objects: few of those run at once, so that others are not kept waiting.
    pub walks: bool,
    /// Schema of its result.
    pub result: fn() -> serde_json::Value,
    /// Checks the values of bound arguments.
    pub parse: fn(Arguments) -> Result<Box<dyn Command>, CommandError>,
}

impl Definition {
    /// Tells where the keys stand by which calls are ordered.
    #[must_use]
    pub fn key_places(&self) -> KeyPlaces {
        let arguments: Vec<KeyArgument> = self.signature.key_arguments().collect();
        if arguments.is_empty() { KeyPlaces::Nowhere } else { KeyPlaces::Arguments(arguments) }
    }

    /// Reads a call: binds the arguments and checks their values.
    ///
    /// # Errors
    ///
    /// `TypeError` for what Python itself would refuse, `ValueError` for a bad key, value or option.
    pub fn parse(
        &'static self,
        args: Vec<Json>,
        kwargs: Vec<(String, Json)>,
    ) -> Result<Box<dyn Command>, CommandError> {
        (self.parse)(self.signature.bind(args, kwargs)?)
    }
}

impl fmt::Debug for Definition {
    fn fmt(&self, formatter: &mut fmt::Formatter<'_>) -> fmt::Result {
        formatter.debug_struct("Definition").field("task", &self.task).finish_non_exhaustive()
    }
}

/// A call that was read and can run.
#[async_trait]
pub trait Command: Send + Sync + fmt::Debug {
    /// Every key it names. On each of them commands run one after another, in the order they arrived.
    fn keys(&self) -> &[KeyUse];

    /// Whether it changes something, so that its answer is recorded and never made twice: by default, whether it writes one of its
    /// keys.
    fn writes(&self) -> bool {
        self.keys().iter().any(|used| used.writes)
    }

    /// Runs to the end.
    async fn run(self: Box<Self>, engine: &Engine, context: Context) -> Finished;
}

/// What a command is told beside its arguments.
#[derive(Clone, Debug, Default)]
pub struct Context {
    /// Stands for the identity of the command, 32 hexadecimal digits; kept with what it writes.
    pub operation_id: String,
    /// Set when an earlier run of this same message may have happened and no answer of it is known.
    pub redelivered: Option<Redelivered>,
    /// Asked at the commit point. One guard stands for all writes of the command: the first of them decides, and once it has passed the
    /// others pass as well.
    pub commit_guard: CommitGuard,
    /// Most bytes an answer may have: a value with more is refused before it is read.
    pub max_reply_bytes: Option<usize>,
    /// What a large answer is made of counts on it.
    pub budget: Option<Budget>,
}

/// How a command ended.
#[derive(Debug)]
pub struct Finished {
    /// JSON text of the result (kombu's typed form where it is not plain JSON), or why it failed.
    pub result: Result<String, CommandError>,
    /// What its metric events tell, one event each: one for each key it names, in an order that another run repeats, or one for the
    /// whole.
    pub facts: Vec<Facts>,
    /// What its answer holds of the budget.
    pub held: Option<Held>,
}

/// The part of a metric event that only the command knows.
#[derive(Clone, Debug, Default, PartialEq, Eq, serde::Serialize, serde::Deserialize, schemars::JsonSchema)]
pub struct Facts {
    /// Key, where one is concerned.
    pub key: Option<String>,
    /// Place that answered: `gcs`, `s3`, `local`.
    pub backend: Option<String>,
    /// `hit`, `miss`, or null where no cache was asked.
    pub cache: Option<String>,
    /// Bytes of the value.
    pub size: Option<u64>,
    /// Bytes kept.
    pub stored_size: Option<u64>,
    /// Codec of the bytes kept.
    pub compression: Option<String>,
    /// How often the backend was asked.
    pub attempts: u32,
    /// Whether the value waits to be sent to the bucket.
    pub pending_sync: bool,
}

impl Facts {
    /// Tells what is known of a command that has not run to its end.
    #[must_use]
    pub fn of(key: Option<&Key>, engine: &Engine) -> Self {
        Self {
            key: key.map(|key| key.as_str().to_owned()),
            backend: Some(engine.kind().as_str().to_owned()),
            attempts: 1,
            ..Self::default()
        }
    }

    /// Tells what is known of each key of a command that has not run to its end; of a command without keys, of the whole.
    #[must_use]
    pub fn of_each(keys: &Keys, engine: &Engine) -> Vec<Self> {
        if keys.is_empty() {
            return vec![Self::of(None, engine)];
        }
        keys.iter().map(|used| Self::of(Some(&used.key), engine)).collect()
    }

    /// Tells what a receipt says of the object that was written or read.
    pub fn note(&mut self, receipt: &Receipt) {
        self.backend = Some(receipt.backend.as_str().to_owned());
        self.size = Some(receipt.size);
        self.stored_size = Some(receipt.stored_size);
        self.compression.clone_from(&receipt.compression);
        self.pending_sync = receipt.pending_sync;
    }
}

/// Runs a command to its end and counts how often the backend was asked for it.
pub async fn run(command: Box<dyn Command>, engine: &Engine, context: Context) -> Finished {
    let (mut finished, attempts) = storage::counted(command.run(engine, context)).await;
    // Of several keys only the command knows for which of them the backend was asked.
    if let [facts] = finished.facts.as_mut_slice() {
        // A place that is asked only once does not count.
        facts.attempts = attempts.max(1);
    }
    finished
}

/// Reads the `key` argument.
fn key(arguments: &mut Arguments) -> Result<Key, CommandError> {
    Key::parse(&arguments.text("key")?).map_err(|error| CommandError::value_error(error.to_string()))
}

/// Reads a text that names a place outside the store.
fn reference(name: &str, text: &str) -> Result<Reference, CommandError> {
    Reference::parse(text).map_err(|error| CommandError::value_error(format!("{name}: {error}")))
}

/// Writes a serializable result; the types that come here have string keys only and cannot fail.
fn json<T: serde::Serialize>(value: &T) -> Result<String, CommandError> {
    serde_json::to_string(value).map_err(|error| CommandError::value_error(error.to_string()))
}

#[cfg(test)]
mod tests;
