//! Reads and checks those options of a signature that its message depends on.

use jiff::Timestamp;

use super::time;
use crate::instant;
use crate::json::Json;

/// Checks the types of all options that messages are made from; the error names the option.
pub(super) fn check(options: &[(String, Json)]) -> Result<(), String> {
    let wrong = |name: &str, value: &Json| Err(format!("has an unusable {} as option {name}", value.python_type()));
    let epoch = Timestamp::UNIX_EPOCH;
    for name in ["countdown", "time_limit", "soft_time_limit", "priority", "group_index", "retries", "expiration"] {
        if let Some(value) = option(options, name)
            && value.as_f64().is_none_or(|number| time::later(epoch, number).is_none())
        {
            return wrong(name, value);
        }
    }
    for name in ["eta", "expires", "timestamp"] {
        if let Some(value) = option(options, name) {
            let number = name != "eta" && value.as_f64().is_some_and(|s| time::later(epoch, s).is_some());
            if !number && iso_text(value).and_then(instant::read).is_none() {
                return wrong(name, value);
            }
        }
    }
    if let Some(value) = option(options, "headers")
        && value.as_object().is_none()
        && !value.is_falsy()
    {
        return wrong("headers", value);
    }
    Ok(())
}

/// Returns a member by name; a member with the value null counts as absent.
pub(super) fn option<'j>(members: &'j [(String, Json)], name: &str) -> Option<&'j Json> {
    members.iter().find(|(key, _)| key == name).map(|(_, value)| value).filter(|value| !value.is_null())
}

/// Returns the ISO 8601 text of a date and time, plain or typed as kombu types it.
pub(super) fn iso_text(value: &Json) -> Option<&str> {
    match value {
        Json::Text(text) => Some(text),
        value if value.get("__type__").and_then(Json::as_text) == Some("datetime") => value.get("__value__")?.as_text(),
        value => value.get("datetime")?.as_text(),
    }
}
