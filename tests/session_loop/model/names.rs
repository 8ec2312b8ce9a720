//! How messages are named in the trace, and which commands they are about.

use filestorage::celery::message::{Message, Publication};
use serde_json::Value;

/// Returns the ids of the commands that a publication is about.
pub(crate) fn commands_of(message: &Message) -> Vec<String> {
    if let Some(parent) = message.headers.text("parent_id") {
        return vec![parent.to_owned()];
    }
    if let Some(id) = &message.properties.correlation_id {
        return vec![id.clone()];
    }
    let Ok(body) = serde_json::from_slice::<Value>(&message.body) else { return Vec::new() };
    let events = match body {
        Value::Array(events) => events,
        event => vec![event],
    };
    events.iter().filter_map(|event| Some(event["data"]["task_id"].as_str()?.to_owned())).collect()
}

/// Names a message in the trace.
pub(crate) fn name_of(message: &Message) -> String {
    message.properties.correlation_id.clone().unwrap_or_else(|| format!("{:08x}", digest(message)))
}

/// Writes a line about a publication.
pub(super) fn line(verdict: &impl std::fmt::Debug, queue: &str, Publication { message, .. }: &Publication) -> String {
    let id = message.properties.correlation_id.as_deref().unwrap_or("-");
    format!("{verdict:?} {queue} {id} {:08x}", digest(message))
}

/// Returns a short digest of a message as it is on the wire, the same in every run.
fn digest(message: &Message) -> u32 {
    let text = format!("{message:?}");
    text.bytes().fold(0x811c_9dc5, |hash: u32, byte| (hash ^ u32::from(byte)).wrapping_mul(0x0100_0193))
}
