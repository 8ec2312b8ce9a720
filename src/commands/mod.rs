//! The tasks of this program. Each takes typed arguments and returns JSON. They use the engine and know no queue.
//!
//! Each task has one file, with its [`Definition`] (name, signature, parser) and the struct that runs it. A new task
//! needs such a file and a row in [`COMMANDS`].

mod arguments;
mod cleanup;
mod clear_cache;
mod copy;
mod delete;
mod error;
mod exists;
mod get_health_status;
mod get_stats;
mod get_storage_usage;
mod hints;
mod keys;
mod list_keys;
mod many;
mod outcome;
mod retrieve;
mod schemas;
mod signed_url;
mod stat;
mod store;
mod sync;
mod verify;
mod versions;

use std::fmt;

use async_trait::async_trait;

pub use arguments::{Arguments, CallSignature, Parameter, ParameterKind};
pub use error::{CommandError, ExceptionClass};
pub use hints::Hints;
pub use keys::{KeyArgument, KeyPlaces, KeyUse, Keys};
pub use outcome::{CommandOutcomeReport, KnownOutcomes, OutcomeState, Outcomes};
pub use schemas::schemas;

pub use crate::storage::{Budget, Cache, CommitGuard, Engine, Held, Invalidation, Key, Redelivered, Spool};

use crate::json::Json;
use crate::provider::BackendKind;
use crate::storage::{self, CommandCounts, Receipt, Reference};

/// The first parameter of nearly every task.
const KEY: Parameter = Parameter::new("key", ParameterKind::Key, "Name of the object: 1 to 1024 bytes of UTF-8.");

/// The parameter that names an earlier state of an object.
const GENERATION: Parameter = Parameter::new(
    "generation",
    ParameterKind::Text,
    "Generation of the state to read, as receipts and filestorage.versions tell it. An earlier state is found where the bucket keeps versions.",
);

/// The tasks that a worker runs.
#[derive(Clone, Copy, Debug)]
pub struct CommandTable(pub &'static [&'static Definition]);

impl CommandTable {
    /// Finds a task by its Celery name.
    #[must_use]
    pub fn find(self, task: &str) -> Option<&'static Definition> {
        self.0.iter().find(|definition| definition.task == task).copied()
    }

    /// Walks the names of all tasks.
    pub fn names(self) -> impl Iterator<Item = &'static str> {
        self.0.iter().map(|definition| definition.task)
    }
}

impl Default for CommandTable {
    fn default() -> Self {
        Self(COMMANDS)
    }
}

/// All tasks of this program.
pub static COMMANDS: &[&Definition] = &[
    &cleanup::DEFINITION,
    &clear_cache::DEFINITION,
    &copy::COPY,
    &copy::MOVE,
    &delete::DEFINITION,
    &exists::DEFINITION,
    &get_health_status::DEFINITION,
    &get_stats::DEFINITION,
    &get_storage_usage::DEFINITION,
    &list_keys::DEFINITION,
    &many::DELETE,
    &many::EXISTS,
    &many::RETRIEVE,
    &many::STORE,
    &outcome::DEFINITION,
    &retrieve::DEFINITION,
    &signed_url::DEFINITION,
    &stat::DEFINITION,
    &store::DEFINITION,
    &sync::DEFINITION,
    &verify::DEFINITION,
    &versions::DEFINITION,
];

/// The name, the parameters and the parser of a task.
#[derive(Clone, Copy)]
pub struct Definition {
    /// Name of the task in Celery.
    pub task: &'static str,
    /// Name of the operation in metric events. `None` for a task that does not access the storage.
    pub operation: Option<&'static str>,
    /// The parameters of the task.
    pub signature: CallSignature,
    /// The remedy for an answer that is too large for a reply, as the object of "ask for".
    pub less: &'static str,
    /// Tells whether the task goes through many objects. Few such tasks run at once, so that they do not delay others.
    pub walks: bool,
    /// Makes the JSON Schema of the result.
    pub result: fn() -> serde_json::Value,
    /// Checks the values of bound arguments and makes the command.
    pub parse: fn(Arguments) -> Result<Box<dyn Command>, CommandError>,
}

/// The tasks whose results are values, metadata of values, or rights to them.
const UNSHOWN: [&str; 5] = [
    "filestorage.retrieve",
    "filestorage.retrieve_many",
    "filestorage.stat",
    "filestorage.signed_url",
    "filestorage.outcome",
];

impl Definition {
    /// Tells whether results of the task may be shown to monitors: they hold no value and no secret.
    #[must_use]
    pub fn shows_result(&self) -> bool {
        !UNSHOWN.contains(&self.task)
    }

    /// Returns the positions of the keys in a call. The worker orders calls by these keys.
    #[must_use]
    pub fn key_places(&self) -> KeyPlaces {
        if self.signature.has_items() {
            return KeyPlaces::Anywhere;
        }
        let arguments: Vec<KeyArgument> = self.signature.key_arguments().collect();
        if arguments.is_empty() { KeyPlaces::Nowhere } else { KeyPlaces::Arguments(arguments) }
    }

    /// Parses a call: binds the arguments and checks their values.
    ///
    /// # Errors
    ///
    /// `TypeError` for arguments that do not fit the signature or have a wrong type. `ValueError` for a key, a value or
    /// an option that is not allowed.
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

/// A call that was parsed and can run.
#[async_trait]
pub trait Command: Send + Sync + fmt::Debug {
    /// Returns every key that the command names. Commands that share a key run one after another, in the order of their
    /// arrival.
    fn keys(&self) -> &[KeyUse];

    /// Tells whether the command changes something. The answer of such a command is recorded, so that a redelivered one
    /// does not run again. By default, a command changes something when it writes one of its keys.
    fn writes(&self) -> bool {
        self.keys().iter().any(|used| used.writes)
    }

    /// Tells whether the command moves a value of any size, one that passes through no message. A part of the permits is
    /// kept from such commands, so that they do not delay others.
    fn streams(&self) -> bool {
        false
    }

    /// Runs the command to its end.
    async fn run(self: Box<Self>, engine: &Engine, context: Context) -> Finished;
}

/// The inputs of a command besides its arguments.
#[derive(Clone, Debug, Default)]
pub struct Context {
    /// The identity of the command: 32 hexadecimal digits. Objects that the command writes store the identity.
    pub operation_id: String,
    /// Set when the same message may have run before and the answer of that run is not known.
    pub redelivered: Option<Redelivered>,
    /// The guard that is asked right before a write takes effect. All writes of the command share one guard. The first
    /// write asks for the decision, and the other writes get the same one.
    pub commit_guard: CommitGuard,
    /// The largest number of bytes of an answer. A larger value is refused before it is read.
    pub max_reply_bytes: Option<usize>,
    /// The byte budget that counts the bytes of a large answer.
    pub budget: Option<Budget>,
    /// What knows the outcomes of earlier commands.
    pub outcomes: KnownOutcomes,
}

/// The outcome of a command.
#[derive(Debug)]
pub struct Finished {
    /// The result as JSON text, or the failure. Values that JSON cannot express have kombu's typed form.
    pub result: Result<String, CommandError>,
    /// The contents of the metric events, one item for each event. A command with keys has one event for each key, and
    /// every run has the same order. A command without keys has one event.
    pub facts: Vec<Facts>,
    /// The part of the byte budget that the answer takes.
    pub held: Option<Held>,
}

/// The part of a metric event that only the command knows.
#[derive(Clone, Debug, Default, PartialEq, Eq, serde::Serialize, serde::Deserialize, schemars::JsonSchema)]
pub struct Facts {
    /// The key of the operation, or null for an operation without a key.
    pub key: Option<String>,
    /// The backend that answered: `gcs`, `s3` or `local`.
    pub backend: Option<String>,
    /// The result of the cache lookup: `hit`, `miss`, or null when there was none.
    pub cache: Option<String>,
    /// The number of bytes of the value.
    pub size: Option<u64>,
    /// The number of stored bytes, after compression and encryption.
    pub stored_size: Option<u64>,
    /// The compression codec of the stored bytes, or null when they are not compressed.
    pub compression: Option<String>,
    /// The number of attempts at the backend, including the first.
    pub attempts: u32,
    /// Whether the write or delete still waits to be sent to the bucket.
    pub pending_sync: bool,
    /// Why the operation on this key failed, where the command as a whole has a result. The event says so as its error.
    #[serde(skip)]
    pub failure: Option<CommandError>,
}

impl Facts {
    /// Returns the facts that are known before a command has ended.
    #[must_use]
    pub fn of(key: Option<&Key>, engine: &Engine) -> Self {
        Self {
            key: key.map(|key| key.as_str().to_owned()),
            backend: Some(engine.kind().as_str().to_owned()),
            attempts: 1,
            ..Self::default()
        }
    }

    /// Returns the facts that are known before a command has ended, for each of its keys. A command without keys has one
    /// item.
    #[must_use]
    pub fn of_each(keys: &Keys, engine: &Engine) -> Vec<Self> {
        if keys.is_empty() {
            return vec![Self::of(None, engine)];
        }
        keys.iter().map(|used| Self::of(Some(&used.key), engine)).collect()
    }

    /// Notes whether a delete waits to be sent to the bucket.
    pub fn note_removal(&mut self, pending: bool) {
        if pending {
            self.backend = Some(BackendKind::Local.as_str().to_owned());
            self.pending_sync = true;
        }
    }

    /// Adds what the layers below have counted. A task of many keys counts each key by itself.
    fn note_counts(&mut self, counts: CommandCounts) {
        // A backend without retries does not count its only attempt.
        self.attempts = self.attempts.max(counts.attempts).max(1);
        if let Some(lookup) = counts.cache {
            self.cache = Some(lookup.as_str().to_owned());
        }
    }

    /// Adds the facts of the receipt of an object that was written or read.
    pub fn note(&mut self, receipt: &Receipt) {
        self.backend = Some(receipt.backend.as_str().to_owned());
        self.size = receipt.size;
        self.stored_size = Some(receipt.stored_size);
        self.compression.clone_from(&receipt.compression);
        self.pending_sync = receipt.pending_sync;
    }
}

/// Runs a command to its end and counts its attempts at the backend.
pub async fn run(command: Box<dyn Command>, engine: &Engine, context: Context) -> Finished {
    let (mut finished, counts) = storage::counted(command.run(engine, context)).await;
    // The counts cover the whole command. With several keys, only the command can tell those of each key.
    if let [facts] = finished.facts.as_mut_slice() {
        facts.note_counts(counts);
    }
    finished
}

/// Takes the `key` argument.
fn key(arguments: &mut Arguments) -> Result<Key, CommandError> {
    Key::parse(&arguments.text("key")?).map_err(|error| CommandError::value_error(error.to_string()))
}

/// Parses a reference to a file or object outside the store. `name` is the argument in error messages.
fn reference(name: &str, text: &str) -> Result<Reference, CommandError> {
    Reference::parse(text).map_err(|error| CommandError::value_error(format!("{name}: {error}")))
}

/// Writes a result as JSON. Cannot fail for the types of results, because their maps have string keys only.
fn json<T: serde::Serialize>(value: &T) -> Result<String, CommandError> {
    serde_json::to_string(value).map_err(|error| CommandError::value_error(error.to_string()))
}

#[cfg(test)]
mod tests;
