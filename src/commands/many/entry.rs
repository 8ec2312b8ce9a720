//! The entry of one item in the answer of a command of many.

use serde_json::{Value, json};

use crate::commands::{CommandError, Facts, schemas};
use crate::json::{Json, write_string};

/// The longest name that an entry repeats, in bytes. No key is longer.
const LONGEST_NAME: usize = 1024;

/// The longest text of an error in an entry, in bytes.
const LONGEST_TEXT: usize = 4096;

/// What became of one item.
#[derive(Debug)]
pub(super) struct ItemOutcome {
    name: Option<String>,
    /// The result as JSON text.
    pub(super) result: Result<String, CommandError>,
    facts: Facts,
}

impl ItemOutcome {
    pub(super) const fn new(name: Option<String>, result: Result<String, CommandError>, facts: Facts) -> Self {
        Self { name, result, facts }
    }

    /// Makes the entry of an item whose arguments were refused.
    pub(super) fn refused(name: Option<String>, error: CommandError) -> Self {
        Self::new(name, Err(error), Facts::default())
    }

    /// Appends the entry as JSON, and returns what its event tells.
    pub(super) fn write(self, out: &mut String) -> Facts {
        let Self { name, result, mut facts } = self;
        out.push_str("{\"key\": ");
        match &name {
            Some(name) => write_string(out, cropped(name, LONGEST_NAME)),
            None => out.push_str("null"),
        }
        match result {
            Ok(result) => {
                out.push_str(", \"ok\": true, \"result\": ");
                out.push_str(&result);
            }
            Err(error) => {
                out.push_str(", \"ok\": false, \"error\": {\"type\": ");
                write_string(out, error.exception.class().0);
                out.push_str(", \"message\": ");
                write_string(out, cropped(&text(&error), LONGEST_TEXT));
                out.push('}');
                facts.failure = Some(error);
            }
        }
        out.push('}');
        facts
    }
}

/// Returns the schema of the answer of a command of many: `result` is the schema of one item's result.
pub(super) fn schema(mut result: Value) -> Value {
    let definitions = result.as_object_mut().map(|members| {
        members.remove("$schema");
        members.remove("title");
        members.remove("$defs").unwrap_or_else(|| json!({}))
    });
    let error = json!({
        "type": "object",
        "description": "The exception that the item failed with.",
        "properties": {
            "type": {"type": "string", "description": "The Python class of the exception."},
            "message": {"type": "string", "description": "What the exception says."},
        },
        "required": ["type", "message"],
    });
    json!({
        "type": "array",
        "description": "An entry for each item, in the order of the items. An item that failed has an error instead of a result.",
        "items": {
            "type": "object",
            "properties": {
                "key": {"type": ["string", "null"], "description": "The key as it was given, or null where it is no text."},
                "ok": {"type": "boolean", "description": "Whether the item has a result."},
                "result": result,
                "error": error,
            },
            "required": ["key", "ok"],
        },
        "$defs": definitions.unwrap_or_else(|| json!({})),
    })
}

/// Returns the schema of the answer for a type of result.
pub(super) fn schema_of<T: schemars::JsonSchema>() -> Value {
    schema(schemas::of::<T>())
}

/// Writes what an exception says, as Python's `str` does.
fn text(error: &CommandError) -> String {
    match error.args.as_slice() {
        [Json::Number(number), Json::Text(text), rest @ ..] if rest.len() <= 1 => match rest {
            [Json::Text(name)] => format!("[Errno {number}] {text}: {name:?}"),
            _ => format!("[Errno {number}] {text}"),
        },
        _ => error.to_string(),
    }
}

/// Cuts a text at a number of bytes.
fn cropped(text: &str, most: usize) -> &str {
    if text.len() > most { &text[..text.floor_char_boundary(most)] } else { text }
}
