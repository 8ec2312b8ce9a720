//! Copies of a message as it came: one that waits for its time, one that stays with the dead.

use jiff::Timestamp;

use super::error::Exception;
use super::message::{Address, Field, Headers, Message, Origin, Publication};

/// What the broker wrote into the headers on the way; it would be taken for news on the next one.
fn is_trace(name: &str) -> bool {
    name == "x-death"
        || name.starts_with("x-first-death-")
        || name.starts_with("x-last-death-")
        || matches!(name, "x-delivery-count" | "x-acquired-count")
}

/// What the broker acts upon when a message is published again: it would refuse, drop or multiply the copy.
fn is_order(name: &str) -> bool {
    matches!(name, "CC" | "BCC")
}

/// Copies a message for publishing it again later.
///
/// Body, headers and properties stay, but for what only the first journey may carry: the broker's `x-death` traces,
/// `CC` and `BCC` (every copy would reach those queues again), `user_id` (the broker refuses a foreign one) and
/// `expiration` (the `expires` header is what counts; a time to live would cut the wait short).
#[must_use]
pub fn park(message: &Message) -> Message {
    let mut parked = message.clone();
    parked.headers = kept(&message.headers, |name| !is_trace(name) && !is_order(name));
    parked.properties.user_id = None;
    parked.properties.expiration = None;
    parked
}

fn kept(headers: &Headers, keep: impl Fn(&str) -> bool) -> Headers {
    headers.iter().filter(|(name, _)| keep(name)).map(|(name, value)| (name.to_owned(), value.clone())).collect()
}

/// Why and when a message was given up.
#[derive(Clone, Copy, Debug)]
pub struct Death<'a> {
    /// One word for tools: `not-registered`, `content-disallowed`, `crashed`…
    pub reason: &'a str,
    /// What was answered, or would have been.
    pub exception: &'a Exception,
    /// When.
    pub at: Timestamp,
    /// Who gave it up: the node name.
    pub worker: &'a str,
}

/// Makes the copy for the dead-letter queue `queue`: the original, and what happened to it.
///
/// Headers added: `x-filestorage-dead-reason`, `-exception` (as Python shows it), `-at` (ISO 8601), `-worker`,
/// `-queue`, `-exchange`, `-routing-key` and `-redelivered` (how it came). What the broker would act upon moves into
/// plain headers: `-user-id`, `-expiration`, `-delivery-mode`, `-cc`, `-bcc`, and the traces as `-x-death` and so on.
#[must_use]
pub fn dead(message: &Message, origin: &Origin, death: &Death<'_>, queue: &str) -> Publication {
    const PREFIX: &str = "x-filestorage-dead-";
    let mut copy = message.clone();
    copy.headers = message
        .headers
        .iter()
        // A copy that was replayed and died again speaks of its last death only.
        .filter(|(name, _)| !name.starts_with(PREFIX))
        .map(|(name, value)| {
            let name = match name {
                "CC" => format!("{PREFIX}cc"),
                "BCC" => format!("{PREFIX}bcc"),
                trace if is_trace(trace) => format!("{PREFIX}{trace}"),
                other => other.to_owned(),
            };
            (name, value.clone())
        })
        .collect();
    let mut note = |name: &str, value: Field| copy.headers.set(format!("{PREFIX}{name}"), value);
    note("reason", death.reason.into());
    note("exception", death.exception.to_string().into());
    note("at", super::time::iso(death.at).into());
    note("worker", death.worker.into());
    note("queue", origin.queue.as_str().into());
    note("exchange", origin.exchange.as_str().into());
    note("routing-key", origin.routing_key.as_str().into());
    note("redelivered", Field::Bool(origin.redelivered));
    if let Some(user) = copy.properties.user_id.take() {
        note("user-id", user.into());
    }
    if let Some(expiration) = copy.properties.expiration.take() {
        note("expiration", expiration.into());
    }
    if let Some(mode) = copy.properties.delivery_mode.replace(2).filter(|mode| *mode != 2) {
        note("delivery-mode", Field::Int(i64::from(mode)));
    }
    Publication { address: Address::queue(queue), message: copy }
}
