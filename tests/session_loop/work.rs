//! Commands that only these tests know, and what they did.
//!
//! A run and its worker share one thread, so that what was done is kept for each thread.

use std::cell::RefCell;
use std::time::Duration;

use async_trait::async_trait;
use filestorage::commands::{
    Arguments, CallSignature, Command, CommandError, CommandTable, Context, Definition, Engine, Facts, Finished, Key,
    KeyUse, Parameter, ParameterKind,
};
use filestorage::storage::{Error, ErrorKind, Operation};

thread_local! {
    static EFFECTS: RefCell<Vec<Effect>> = const { RefCell::new(Vec::new()) };
    static RUNS: RefCell<Vec<u64>> = const { RefCell::new(Vec::new()) };
}

/// What a write did, once.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) struct Effect {
    /// The identity of the command.
    pub(crate) operation: String,
    pub(crate) key: String,
    pub(crate) number: u64,
}

/// Forgets what commands of this thread did.
pub(crate) fn forget() {
    EFFECTS.with_borrow_mut(Vec::clear);
    RUNS.with_borrow_mut(Vec::clear);
}

/// Returns what writes of this thread did, in order.
pub(crate) fn effects() -> Vec<Effect> {
    EFFECTS.with_borrow(Clone::clone)
}

/// Returns the numbers of the commands of this thread that were begun, in order.
pub(crate) fn runs() -> Vec<u64> {
    RUNS.with_borrow(Clone::clone)
}

/// Returns how often a command has begun.
fn attempts(number: u64) -> usize {
    runs().iter().filter(|run| **run == number).count()
}

/// The tasks of the tests.
pub(crate) static TABLE: CommandTable = CommandTable(&[&WRITE, &READ]);

const KEY: Parameter = Parameter::new("key", ParameterKind::Key, "Orders the calls.");
const NUMBER: Parameter = Parameter::new("number", ParameterKind::Count, "Tells the calls of a key apart.");
const MS: Parameter = Parameter::new("ms", ParameterKind::Count, "How long the call runs.");
const AFTER: Parameter = Parameter::new("after", ParameterKind::Count, "How long it runs after its effect.");
const PAD: Parameter = Parameter::new("pad", ParameterKind::Text, "Makes the message large.");
const END: Parameter = Parameter::new("end", ParameterKind::Text, "How it ends: fails, panics, or `away 2` times.");

const fn definition(task: &'static str, function: &'static str, parse: Parse) -> Definition {
    Definition {
        task,
        operation: Some(function),
        signature: CallSignature {
            function,
            required: &[KEY, NUMBER],
            optional: &[],
            keyword_only: &[MS, AFTER, END, PAD],
        },
        less: "less",
        walks: false,
        result: || serde_json::Value::Null,
        parse,
    }
}

type Parse = fn(Arguments) -> Result<Box<dyn Command>, CommandError>;

/// `test.write(key, number, *, ms, after, end, pad)` takes effect once, after `ms` milliseconds.
static WRITE: Definition = definition("test.write", "write", |arguments| call(arguments, KeyUse::write));
/// `test.read(key, number, *, ms, after, end, pad)` has no effect.
static READ: Definition = definition("test.read", "read", |arguments| call(arguments, KeyUse::read));

fn call(mut arguments: Arguments, used: fn(Key) -> KeyUse) -> Result<Box<dyn Command>, CommandError> {
    let key = Key::parse(&arguments.text("key")?).map_err(|error| CommandError::value_error(error.to_string()))?;
    drop(arguments.optional_text("pad")?);
    Ok(Box::new(Call {
        key: [used(key)],
        number: arguments.optional_count("number")?.unwrap_or_default(),
        pause: Duration::from_millis(arguments.optional_count("ms")?.unwrap_or_default()),
        after: Duration::from_millis(arguments.optional_count("after")?.unwrap_or_default()),
        end: arguments.optional_text("end")?,
    }))
}

#[derive(Debug)]
struct Call {
    key: [KeyUse; 1],
    number: u64,
    pause: Duration,
    after: Duration,
    end: Option<String>,
}

#[async_trait]
impl Command for Call {
    fn keys(&self) -> &[KeyUse] {
        &self.key
    }

    async fn run(self: Box<Self>, engine: &Engine, context: Context) -> Finished {
        let (key, number) = (self.key[0].key.as_str().to_owned(), self.number);
        let again = context.redelivered.is_some();
        RUNS.with_borrow_mut(|runs| runs.push(number));
        let facts = vec![Facts::of(Some(&self.key[0].key), engine)];
        let ended = |result| Finished { result, facts, held: None };
        tokio::time::sleep(self.pause).await;
        match self.end.as_deref() {
            Some("fails") => return ended(Err(CommandError::value_error("as asked"))),
            Some("panics") => panic!("as asked"),
            // As often as the text says: `away 2`.
            Some(end) if end.strip_prefix("away ").is_some_and(|times| attempts(number) <= times.parse().unwrap()) => {
                let error =
                    Error::new(ErrorKind::Unavailable, Operation::Store, Some(&self.key[0].key), "the bucket is away");
                return ended(Err(error.into()));
            }
            _ => {}
        }
        let effect = Effect { operation: context.operation_id, key, number };
        // As an object that says who wrote it.
        let is_own = |effects: &Vec<Effect>| effects.iter().any(|known| known.operation == effect.operation);
        if self.writes() && !(again && EFFECTS.with_borrow(is_own)) {
            if !context.commit_guard.commit() {
                return ended(Err(CommandError::value_error("abandoned")));
            }
            EFFECTS.with_borrow_mut(|effects| effects.push(effect));
            tokio::time::sleep(self.after).await;
        }
        ended(Ok(format!("{number}")))
    }
}
