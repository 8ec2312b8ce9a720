//! Converts JSON into header values, and writes lists of JSON values as text.

use super::message::Field;
use crate::json::{Json, write_string};

/// Converts a JSON value into a header value; an integer that is too large for AMQP becomes a float.
pub(super) fn field(value: &Json) -> Field {
    match value {
        Json::Null => Field::Void,
        Json::Bool(value) => Field::Bool(*value),
        Json::Number(_) => match value.as_i64() {
            Some(number) => Field::Int(number),
            None => Field::Float(value.as_f64().unwrap_or(f64::NAN)),
        },
        Json::Text(text) => Field::Text(text.clone()),
        Json::Array(items) => Field::List(items.iter().map(field).collect()),
        Json::Object(members) => {
            Field::Table(members.iter().map(|(name, value)| (name.clone(), field(value))).collect())
        }
    }
}

/// Appends the values as a JSON array.
pub(super) fn write_list(out: &mut String, items: &[Json]) {
    out.push('[');
    for (index, item) in items.iter().enumerate() {
        if index > 0 {
            out.push(',');
        }
        item.write_compact(out);
    }
    out.push(']');
}

/// Appends the members as a JSON object.
pub(super) fn write_members(out: &mut String, members: &[(String, Json)]) {
    out.push('{');
    for (index, (name, value)) in members.iter().enumerate() {
        if index > 0 {
            out.push(',');
        }
        write_string(out, name);
        out.push(':');
        value.write_compact(out);
    }
    out.push('}');
}
