//! `filestorage.retrieve`.

use async_trait::async_trait;

use super::arguments::{Kind, Parameter};
use super::{
    Arguments, Command, CommandError, Context, Definition, Engine, Facts, Finished, KEY, Key, Signature, schemas,
};
use crate::json::{typed, write_string};
use crate::storage::{ByteRange, Value};

pub(super) static DEFINITION: Definition = Definition {
    task: "filestorage.retrieve",
    operation: Some("retrieve"),
    signature: Signature {
        function: "retrieve",
        required: &[KEY],
        optional: &[],
        keyword_only: &[
            Parameter::new("offset", Kind::Count, "First byte of a text or bytes value; the answer is bytes."),
            Parameter::new("length", Kind::Count, "Bytes at most."),
            Parameter::new("destination", Kind::Text, "Place to write the value to; not available in this version."),
        ],
    },
    less: "a part with offset and length",
    result: schemas::any_value,
    parse,
};

#[derive(Debug)]
struct Retrieve {
    key: Key,
    range: Option<ByteRange>,
}

fn parse(mut arguments: Arguments) -> Result<Box<dyn Command>, CommandError> {
    let key = super::key(&mut arguments)?;
    let (offset, length) = (arguments.optional_count("offset")?, arguments.optional_count("length")?);
    if arguments.optional_text("destination")?.is_some() {
        return Err(CommandError::value_error(
            "destination: this version cannot write a value elsewhere; leave it out and take the value from the result",
        ));
    }
    let range = (offset.is_some() || length.is_some()).then(|| ByteRange { offset: offset.unwrap_or(0), length });
    Ok(Box::new(Retrieve { key, range }))
}

/// Writes a value as kombu's JSON: text and JSON as themselves, bytes typed.
fn json_of(value: &Value) -> String {
    match value {
        Value::Json(text) => text.clone(),
        Value::Text(text) => {
            let mut out = String::with_capacity(text.len() + 2);
            write_string(&mut out, text);
            out
        }
        Value::Bytes(bytes) => {
            let mut out = String::with_capacity(bytes.len() * 4 / 3 + 48);
            typed::write_bytes(&mut out, bytes);
            out
        }
    }
}

#[async_trait]
impl Command for Retrieve {
    fn key(&self) -> Option<&Key> {
        Some(&self.key)
    }

    fn writes(&self) -> bool {
        false
    }

    async fn run(self: Box<Self>, engine: &Engine, _context: Context) -> Finished {
        let mut facts = Facts::of(Some(&self.key), engine);
        let result = engine.retrieve(&self.key, self.range).await;
        if let Ok(Some(read)) = &result {
            facts.size = Some(read.receipt.size);
            facts.stored_size = Some(read.receipt.stored_size);
            facts.compression.clone_from(&read.receipt.compression);
        }
        let result = result.map(|read| read.map_or_else(|| "null".to_owned(), |read| json_of(&read.value)));
        Finished { result: result.map_err(CommandError::from), facts }
    }
}
