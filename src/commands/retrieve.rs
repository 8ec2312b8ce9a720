//! The task `filestorage.retrieve`: returns a value, or writes it to a destination.

use async_trait::async_trait;

use super::arguments::{Parameter, ParameterKind};
use super::{
    Arguments, CallSignature, Command, CommandError, Context, Definition, Engine, Facts, Finished, GENERATION, KEY,
    Key, KeyUse, schemas,
};
use crate::json::{text_len, typed, write_string};
use crate::storage::{ByteRange, GetOptions, Reference, RetrieveOptions, StateOptions, Value};

pub(super) static DEFINITION: Definition = Definition {
    task: "filestorage.retrieve",
    operation: Some("retrieve"),
    signature: CallSignature {
        function: "retrieve",
        required: &[KEY],
        optional: &[],
        keyword_only: &[
            Parameter::new(
                "offset",
                ParameterKind::Count,
                "Position of the first byte to return, from 0, in a text or bytes value. The answer is bytes.",
            ),
            Parameter::new(
                "length",
                ParameterKind::Count,
                "The largest number of bytes to return from a text or bytes value. The answer is bytes.",
            ),
            Parameter::new(
                "destination",
                ParameterKind::Text,
                "URL of a file or object to write the value to: file:///…, gs://… or s3://…. The answer is the receipt.",
            ),
            GENERATION,
        ],
    },
    less: "a part with offset and length, or name a destination",
    walks: false,
    result: schemas::any_value,
    parse,
};

#[derive(Debug)]
struct Retrieve {
    target: KeyUse,
    generation: Option<String>,
    range: Option<ByteRange>,
    destination: Option<Reference>,
}

fn parse(mut arguments: Arguments) -> Result<Box<dyn Command>, CommandError> {
    let target = KeyUse::read(super::key(&mut arguments)?);
    let (offset, length) = (arguments.optional_count("offset")?, arguments.optional_count("length")?);
    let generation = arguments.optional_text("generation")?;
    let destination = arguments.optional_text("destination")?;
    let destination = destination.map(|text| super::reference("destination", &text)).transpose()?;
    let range = (offset.is_some() || length.is_some()).then(|| ByteRange { offset: offset.unwrap_or(0), length });
    Ok(Box::new(Retrieve { target, generation, range, destination }))
}

/// The room for what a reply has around a value, so that it is written there without a copy of the value.
const AROUND: usize = 512;

/// Writes a value as kombu's JSON. Text and JSON are plain, bytes have the typed form.
pub(super) fn json_of(value: Value) -> String {
    match value {
        Value::Json(json) => json.into(),
        Value::Text(text) => {
            let mut out = String::with_capacity(text.len() + AROUND);
            write_string(&mut out, &text);
            out
        }
        Value::Bytes(bytes) => {
            let mut out = String::with_capacity(bytes.len().div_ceil(3) * 4 + AROUND);
            typed::write_bytes(&mut out, &bytes);
            out
        }
    }
}

#[async_trait]
impl Command for Retrieve {
    fn keys(&self) -> &[KeyUse] {
        std::slice::from_ref(&self.target)
    }

    /// Returns `true` with a destination. A redelivered command must not write a destination again, because its content
    /// may be in use already.
    fn writes(&self) -> bool {
        self.destination.is_some()
    }

    fn streams(&self) -> bool {
        self.destination.is_some()
    }

    async fn run(self: Box<Self>, engine: &Engine, context: Context) -> Finished {
        let Self { target: KeyUse { key, .. }, generation, range, destination } = *self;
        match destination {
            Some(destination) => {
                let options = RetrieveOptions {
                    generation,
                    range,
                    operation_id: Some(context.operation_id),
                    commit_guard: context.commit_guard,
                };
                write(engine, &key, &destination, options).await
            }
            None => read(engine, &key, generation, range, context).await,
        }
    }
}

/// Returns the value.
async fn read(
    engine: &Engine,
    key: &Key,
    generation: Option<String>,
    range: Option<ByteRange>,
    context: Context,
) -> Finished {
    let mut facts = Facts::of(Some(key), engine);
    // JSON is never shorter than the bytes it carries.
    let limit = context.max_reply_bytes.map(|bytes| bytes as u64);
    let want = StateOptions { generation, bytes: GetOptions { range, limit, ..GetOptions::default() } };
    let (result, held) = match &context.budget {
        Some(budget) => match engine.retrieve_within(key, want, budget).await {
            Ok((read, held)) => (Ok(read), held),
            Err(error) => (Err(error), None),
        },
        None => (engine.retrieve(key, want).await, None),
    };
    if let Ok(Some(read)) = &result {
        facts.note(&read.receipt);
    }
    let result = result.map_err(CommandError::from).and_then(|read| match read {
        Some(read) => fitting(&read.value, context.max_reply_bytes).map(|()| json_of(read.value)),
        None => Ok("null".to_owned()),
    });
    Finished { result, facts: vec![facts], held }
}

/// Refuses a text that has too many escapes for a reply before they are written: they may take six times its bytes.
fn fitting(value: &Value, most: Option<usize>) -> Result<(), CommandError> {
    let (Value::Text(text), Some(most)) = (value, most) else { return Ok(()) };
    // Only a text of at least a sixth can become too long. The quotes are left to whoever writes the reply.
    let length = if text.len() > most / 6 { text_len(text) } else { 0 };
    if length <= most + 2 {
        return Ok(());
    }
    Err(CommandError::value_error(format!(
        "the answer has {length} bytes and a reply may have {most} (max_reply_bytes); ask for {}",
        DEFINITION.less
    )))
}

/// Writes the value to its destination and returns the receipt.
async fn write(engine: &Engine, key: &Key, destination: &Reference, options: RetrieveOptions) -> Finished {
    let mut facts = Facts::of(Some(key), engine);
    let result = engine.retrieve_to(key, destination, options).await;
    if let Ok(Some(receipt)) = &result {
        facts.note(receipt);
    }
    Finished {
        result: result.map_err(CommandError::from).and_then(|receipt| super::json(&receipt)),
        facts: vec![facts],
        held: None,
    }
}

#[cfg(test)]
mod tests {
    use std::sync::Arc;

    use super::*;
    use crate::commands::ExceptionClass;
    use crate::json::Json;
    use crate::provider::BackendKind;
    use crate::storage::{Memory, StoreOptions};

    async fn run(engine: &Engine, name: &str, part: &[(&str, i64)]) -> Result<String, CommandError> {
        let kwargs = part.iter().map(|&(name, number)| (name.to_owned(), Json::from(number))).collect();
        let command = DEFINITION.parse(vec![Json::Text(name.to_owned())], kwargs).unwrap();
        command.run(engine, Context { max_reply_bytes: Some(4), ..Context::default() }).await.result
    }

    #[tokio::test]
    async fn a_value_too_large_for_a_reply_is_a_value_error() {
        let engine = Engine::new(Arc::new(Memory::new()), BackendKind::Local);
        for (name, value) in [("fits", "1234"), ("long", "12345")] {
            let value = Value::Text(value.to_owned());
            engine.store(&Key::parse(name).unwrap(), value, StoreOptions::default()).await.unwrap();
        }
        assert_eq!(run(&engine, "fits", &[]).await.unwrap(), "\"1234\"");
        assert!(run(&engine, "long", &[("offset", 1)]).await.unwrap().contains("\"2345\""));
        for part in [&[][..], &[("offset", 0)], &[("length", 5)]] {
            let error = run(&engine, "long", part).await.unwrap_err();
            assert_eq!(error.exception, ExceptionClass::ValueError);
            let text = error.to_string();
            assert!(text.contains("value of 5") && text.contains("4 may be read"), "{text}");
            assert!(text.contains("`offset` and `length`"), "{text}");
        }
    }

    #[tokio::test]
    async fn a_text_of_many_escapes_is_refused_unwritten() {
        let engine = Engine::new(Arc::new(Memory::new()), BackendKind::Local);
        let value = Value::Text("\u{1}".repeat(1_000));
        engine.store(&Key::parse("k").unwrap(), value, StoreOptions::default()).await.unwrap();
        let answer = async |most: usize| {
            let command = DEFINITION.parse(vec![Json::Text("k".to_owned())], Vec::new()).unwrap();
            command.run(&engine, Context { max_reply_bytes: Some(most), ..Context::default() }).await.result
        };
        assert_eq!(answer(6_000).await.unwrap().len(), 6_002);
        let error = answer(5_999).await.unwrap_err();
        assert_eq!(error.exception, ExceptionClass::ValueError);
        assert!(error.to_string().contains("6002 bytes") && error.to_string().contains("offset"), "{error}");
    }
}
