//! A dead message as it is shown.

use jiff::Timestamp;
use serde::Serialize;

use super::filter::keys;
use super::walk::FoundMessage;
use crate::redact::redact;
use crate::storage::format_timestamp;

/// The most characters that are shown of one text.
const LONGEST: usize = 1024;

/// One dead message.
#[derive(Debug, Serialize)]
pub(super) struct Row {
    pub(super) fingerprint: String,
    pub(super) position: u64,
    pub(super) id: Option<String>,
    pub(super) task: Option<String>,
    pub(super) keys: Vec<String>,
    pub(super) reason: Option<String>,
    pub(super) exception: Option<String>,
    pub(super) dead_at: Option<String>,
    pub(super) worker: Option<String>,
    pub(super) queue: Option<String>,
    pub(super) exchange: Option<String>,
    pub(super) routing_key: Option<String>,
    pub(super) redelivered: bool,
    /// How often it was replayed, and failed again.
    pub(super) replays: u32,
    pub(super) body_bytes: usize,
    /// The names of the headers that did not fit into the copy.
    pub(super) cut: Option<String>,
}

impl Row {
    /// Makes the row of a message. `accept` names the serializers that are read.
    pub(super) fn new(found: &FoundMessage, accept: &[String]) -> Self {
        let copy = &found.copy;
        let text = |text: &Option<String>| text.as_deref().map(shown);
        Self {
            fingerprint: copy.fingerprint.clone(),
            position: found.position,
            id: text(&copy.id),
            task: text(&copy.task),
            keys: keys(&found.message, accept).iter().map(|key| shown(key)).collect(),
            reason: text(&copy.reason),
            exception: text(&copy.exception),
            dead_at: copy.at.map(format_timestamp),
            worker: text(&copy.worker),
            queue: text(&copy.queue),
            exchange: text(&copy.exchange),
            routing_key: text(&copy.routing_key),
            redelivered: copy.redelivered,
            replays: copy.replays,
            body_bytes: found.message.body.len(),
            cut: text(&copy.cut),
        }
    }
}

/// Shows a text of a message: without secrets, without what a terminal would act upon, and not too long.
pub(super) fn shown(text: &str) -> String {
    let end = text.char_indices().nth(LONGEST).map_or(text.len(), |(end, _)| end);
    let mut out = printable(&redact(&text[..end]));
    if end < text.len() {
        out.push('…');
    }
    out
}

/// Replaces control characters by escapes.
pub(super) fn printable(text: &str) -> String {
    let mut out = String::with_capacity(text.len());
    for character in text.chars() {
        if character.is_control() { out.extend(character.escape_default()) } else { out.push(character) }
    }
    out
}

/// Shows a time in seconds, in UTC.
pub(super) fn seconds(at: Option<Timestamp>) -> String {
    at.map_or_else(|| "-".to_owned(), |at| at.strftime("%Y-%m-%dT%H:%M:%SZ").to_string())
}

/// Shortens a text for a column.
pub(super) fn column(text: Option<&str>, width: usize) -> String {
    let text = text.unwrap_or("-");
    match text.char_indices().nth(width) {
        None => text.to_owned(),
        Some(_) => text.chars().take(width - 1).chain(['…']).collect(),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn nothing_shown_moves_the_cursor_or_tells_a_secret() {
        assert_eq!(shown("a\u{1b}[2Jb\n"), "a\\u{1b}[2Jb\\n");
        assert!(!shown("amqp://user:hidden-password@host/").contains("hidden-password"));
        assert_eq!(shown(&"é".repeat(LONGEST + 1)).chars().count(), LONGEST + 1);
        assert_eq!(column(Some("abcdef"), 4), "abc…");
        assert_eq!((column(Some("abcd"), 4), column(None, 4)), ("abcd".to_owned(), "-".to_owned()));
    }
}
