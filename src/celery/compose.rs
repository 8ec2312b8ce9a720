//! From a signature to the task message Celery would publish for it.

use crate::json::{Json, write_string};

/// Appends a JSON array.
pub(super) fn write_list(out: &mut String, items: &[Json]) {
    out.push('[');
    for (place, item) in items.iter().enumerate() {
        if place > 0 {
            out.push(',');
        }
        item.write_compact(out);
    }
    out.push(']');
}

/// Appends a JSON object.
pub(super) fn write_members(out: &mut String, members: &[(String, Json)]) {
    out.push('{');
    for (place, (name, value)) in members.iter().enumerate() {
        if place > 0 {
            out.push(',');
        }
        write_string(out, name);
        out.push(':');
        value.write_compact(out);
    }
    out.push('}');
}
