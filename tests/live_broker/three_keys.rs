//! Commands of three keys that only tests know: one writes all of them, one reads two and writes the third.

use std::sync::atomic::{AtomicUsize, Ordering};
use std::time::Duration;

use async_trait::async_trait;
use filestorage::commands::{
    Arguments, COMMANDS, CallSignature, Command, CommandError, CommandTable, Context, Definition, Engine, Facts,
    Finished, Key, KeyUse, Keys, Parameter, ParameterKind,
};
use filestorage::storage::{Error, GetOptions, JsonText, StoreOptions, Value};

/// How many of them run at once now, and how many did at most.
static RUNNING: [AtomicUsize; 2] = [AtomicUsize::new(0), AtomicUsize::new(0)];

/// The program's own commands and those of the tests.
pub(crate) fn table() -> CommandTable {
    let own = COMMANDS.iter().chain([&&ADD, &&MIX]).copied().collect::<Vec<_>>();
    CommandTable(own.leak())
}

pub(crate) fn most_at_once() -> usize {
    RUNNING[1].load(Ordering::Relaxed)
}

const PADDING: Parameter = Parameter::new("padding", ParameterKind::Text, "Makes the message large.");
const BEFORE: Parameter = Parameter::new("before_ms", ParameterKind::Count, "How long to wait before the first write.");
const BETWEEN: Parameter = Parameter::new("between_ms", ParameterKind::Count, "How long to wait between two writes.");

/// `test.add(keys, number)`: adds a number to the counters under all keys, and answers what they were.
pub(crate) static ADD: Definition = Definition {
    task: "test.add",
    operation: Some("add"),
    signature: CallSignature {
        function: "add",
        required: &[
            Parameter::new("keys", ParameterKind::Keys, "Counters."),
            Parameter::new("number", ParameterKind::Count, "Addend."),
        ],
        optional: &[],
        keyword_only: &[PADDING, BEFORE, BETWEEN],
    },
    less: "fewer keys",
    walks: false,
    result: || serde_json::Value::Null,
    parse: |mut arguments: Arguments| {
        let keys = arguments.texts("keys")?.iter().map(|text| key(text)).collect::<Result<Vec<_>, _>>()?;
        let keys = Keys::of(&keys.into_iter().map(KeyUse::write).collect::<Vec<_>>());
        let number = number(&mut arguments, "number")?;
        let (before, between) = (pause(&mut arguments, "before_ms")?, pause(&mut arguments, "between_ms")?);
        Ok(Box::new(Add { keys, number, before, between }))
    },
};

/// `test.mix(left, right, into, number)`: writes what it makes of two values to a third key, and answers the two.
pub(crate) static MIX: Definition = Definition {
    task: "test.mix",
    operation: Some("mix"),
    signature: CallSignature {
        function: "mix",
        required: &[
            Parameter::new("left", ParameterKind::Key, "Read."),
            Parameter::new("right", ParameterKind::Key, "Read."),
            Parameter::new("into", ParameterKind::Key, "Written."),
            Parameter::new("number", ParameterKind::Count, "Part of what is written."),
        ],
        optional: &[],
        keyword_only: &[PADDING],
    },
    less: "nothing",
    walks: false,
    result: || serde_json::Value::Null,
    parse: |mut arguments: Arguments| {
        let read = |arguments: &mut Arguments, name| key(&arguments.text(name)?);
        let (left, right) = (read(&mut arguments, "left")?, read(&mut arguments, "right")?);
        let into = read(&mut arguments, "into")?;
        let keys = [KeyUse::read(left), KeyUse::read(right), KeyUse::write(into)];
        Ok(Box::new(Mix { keys, number: number(&mut arguments, "number")? }))
    },
};

/// What `test.mix` writes.
pub(crate) fn mixed(left: i64, right: i64, number: i64) -> i64 {
    (left * 31 + right * 7 + number) % 1_000_003
}

fn key(text: &str) -> Result<Key, CommandError> {
    Key::parse(text).map_err(|error| CommandError::value_error(error.to_string()))
}

fn number(arguments: &mut Arguments, name: &'static str) -> Result<i64, CommandError> {
    Ok(arguments.optional_count(name)?.unwrap_or_default() as i64)
}

fn pause(arguments: &mut Arguments, name: &'static str) -> Result<Duration, CommandError> {
    Ok(Duration::from_millis(arguments.optional_count(name)?.unwrap_or(1)))
}

#[derive(Debug)]
struct Add {
    keys: Keys,
    number: i64,
    before: Duration,
    between: Duration,
}

#[derive(Debug)]
struct Mix {
    keys: [KeyUse; 3],
    number: i64,
}

/// Reads a counter; one that is not there is 0.
pub(crate) async fn read(engine: &Engine, key: &Key) -> Result<i64, Error> {
    match engine.retrieve(key, GetOptions::default()).await?.map(|read| read.value) {
        Some(Value::Json(text)) => Ok(text.as_str().parse().unwrap()),
        Some(other) => panic!("{other:?}"),
        None => Ok(0),
    }
}

/// Counts what runs; ends with it, also when the run is given up.
struct Counted;

impl Counted {
    fn begin() -> Self {
        let now = RUNNING[0].fetch_add(1, Ordering::Relaxed) + 1;
        RUNNING[1].fetch_max(now, Ordering::Relaxed);
        Self
    }
}

impl Drop for Counted {
    fn drop(&mut self) {
        RUNNING[0].fetch_sub(1, Ordering::Relaxed);
    }
}

/// Reads all keys, waits, and writes those that are to be written, waiting before each but the first key.
async fn run(
    engine: &Engine,
    context: Context,
    keys: &[KeyUse],
    [before, between]: [Duration; 2],
    next: impl Fn(&[i64], usize) -> i64,
) -> (Result<Vec<i64>, Error>, Vec<Facts>) {
    let _counted = Counted::begin();
    let mut facts: Vec<Facts> = keys.iter().map(|used| Facts::of(Some(&used.key), engine)).collect();
    let result = async {
        let mut values = Vec::new();
        for used in keys {
            values.push(read(engine, &used.key).await?);
        }
        tokio::time::sleep(before).await;
        for (place, used) in keys.iter().enumerate().filter(|(_, used)| used.writes) {
            if place > 0 {
                tokio::time::sleep(between).await;
            }
            let options = StoreOptions {
                operation_id: Some(context.operation_id.clone()),
                redelivered: context.redelivered,
                commit_guard: context.commit_guard.clone(),
                ..StoreOptions::default()
            };
            let value = Value::Json(JsonText::of_parsed(next(&values, place).to_string()));
            facts[place].note(&engine.store(&used.key, value, options).await?);
        }
        Ok(values)
    };
    let result = result.await;
    (result, facts)
}

fn finished(result: Result<Vec<i64>, Error>, facts: Vec<Facts>) -> Finished {
    let result = result.map(|values| format!("{values:?}")).map_err(CommandError::from);
    Finished { result, facts, held: None }
}

#[async_trait]
impl Command for Add {
    fn keys(&self) -> &[KeyUse] {
        &self.keys
    }

    async fn run(self: Box<Self>, engine: &Engine, context: Context) -> Finished {
        let pauses = [self.before, self.between];
        let (result, facts) =
            run(engine, context, &self.keys, pauses, |values, place| values[place] + self.number).await;
        finished(result, facts)
    }
}

#[async_trait]
impl Command for Mix {
    fn keys(&self) -> &[KeyUse] {
        &self.keys
    }

    async fn run(self: Box<Self>, engine: &Engine, context: Context) -> Finished {
        let pauses = [Duration::from_millis(1); 2];
        let (result, facts) =
            run(engine, context, &self.keys, pauses, |values, _| mixed(values[0], values[1], self.number)).await;
        finished(result.map(|values| values[..2].to_vec()), facts)
    }
}
