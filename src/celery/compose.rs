//! Creates the task message of a signature, as Celery would publish it.

use bytes::Bytes;
use jiff::Timestamp;

use super::encode::{field, write_list, write_members};
use super::message::{Address, Field, Headers, Message, Properties, Publication};
use super::options::iso_text;
use super::signature::Signature;
use super::{repr, time};
use crate::instant;
use crate::json::Json;

/// The options for the messages that follow a task.
#[derive(Clone, Debug)]
pub struct CanvasOptions {
    /// The queue for signatures that name no queue.
    pub default_queue: String,
    /// The node name of the worker, for the header `origin`.
    pub origin: String,
    /// The reply queue for signatures that name none.
    ///
    /// Celery names a queue of the worker process that nobody reads. The name of a queue that does not exist has the same
    /// effect, and no answers pile up.
    pub reply_to: String,
    /// The most bytes of all messages together that follow one task.
    pub max_bytes: usize,
    /// Tells whether chords are started, which takes a result backend that joins them.
    pub joins_chords: bool,
    /// Tells whether what follows the success of a task has the priority of the task.
    pub inherits_priority: bool,
}

impl CanvasOptions {
    /// Bytes of all messages that follow one task at most.
    const LONGEST: usize = 64 << 20;

    /// Makes the options of a node; `max_bytes` is the most that it has in flight.
    #[must_use]
    pub fn new(default_queue: &str, node: &str, max_bytes: u64, joins_chords: bool) -> Self {
        Self {
            default_queue: default_queue.to_owned(),
            origin: node.to_owned(),
            // The same after a restart, so that what is published again is the same message.
            reply_to: uuid::Uuid::new_v5(&uuid::Uuid::NAMESPACE_OID, node.as_bytes()).to_string(),
            max_bytes: usize::try_from(max_bytes).unwrap_or(usize::MAX).min(Self::LONGEST),
            joins_chords,
            inherits_priority: false,
        }
    }
}

/// The values that all messages of one finished task share.
pub(super) struct ComposeContext<'a> {
    /// The first argument of signatures that are not immutable.
    pub(super) first: First<'a>,
    /// The id of the finished task.
    pub(super) parent_id: &'a str,
    /// The id of the first task of the workflow.
    pub(super) root_id: &'a str,
    /// The options for messages.
    pub(super) options: &'a CanvasOptions,
    /// The present time.
    pub(super) now: Timestamp,
    /// The priority of the messages, whatever their signatures say.
    pub(super) priority: Option<u8>,
}

/// The argument that the finished task passes to the next.
pub(super) struct First<'a> {
    /// The argument as JSON text, which is embedded unchanged.
    pub(super) text: &'a str,
    /// The argument as a tree, for display.
    pub(super) value: Json,
}

/// The position of a message in a workflow.
#[derive(Clone, Copy)]
pub(super) struct MessageRole<'a> {
    /// The group id, and the index of the message in the group.
    pub(super) group: Option<(&'a str, usize)>,
    /// Tells whether Celery would have the arguments as a list from JSON, not as a tuple, which shows only in `argsrepr`.
    pub(super) direct: bool,
}

/// Creates the message of a plain task.
///
/// `chain` holds the remaining steps in reverse order; `None` means that the task is not part of a chain.
pub(super) fn message(
    signature: &Signature,
    id: &str,
    role: MessageRole<'_>,
    chain: Option<&[Signature]>,
    context: &ComposeContext<'_>,
) -> Publication {
    let (expires, expiration) = expiry(signature, context.now);
    let mut headers = headers(signature, id, role, context);
    headers.set("expires", expires.map_or(Field::Void, Field::Text));
    for (name, value) in signature.option("headers").and_then(Json::as_object).unwrap_or_default() {
        headers.set(name.as_str(), field(value));
    }
    let own = signature.option("priority").and_then(Json::as_i64).map(|priority| priority.clamp(0, 255) as u8);
    let delivery_mode = match signature.option("delivery_mode") {
        Some(Json::Text(mode)) if mode == "transient" => 1,
        Some(mode) if mode.as_i64() == Some(1) => 1,
        _ => 2,
    };
    Publication {
        address: address(signature, &context.options.default_queue),
        message: Message {
            properties: Properties {
                content_type: Some("application/json".to_owned()),
                content_encoding: Some("utf-8".to_owned()),
                delivery_mode: Some(delivery_mode),
                priority: Some(context.priority.or(own).unwrap_or(0)),
                correlation_id: Some(signature.text("correlation_id").unwrap_or(id).to_owned()),
                // Celery also names a queue where the signature names none.
                reply_to: Some(signature.text("reply_to").unwrap_or(&context.options.reply_to).to_owned()),
                expiration,
                message_id: signature.text("message_id").map(str::to_owned),
                timestamp: timestamp(signature),
                kind: signature.text("type").map(str::to_owned),
                app_id: signature.text("app_id").map(str::to_owned),
                // The broker refuses a user other than that of the connection.
                user_id: None,
            },
            headers,
            body: Bytes::from(body(signature, chain, context)),
        },
    }
}

fn headers(signature: &Signature, id: &str, role: MessageRole<'_>, context: &ComposeContext<'_>) -> Headers {
    let text = |name: &str| signature.text(name).map_or(Field::Void, Field::from);
    let any = |name: &str| signature.option(name).map_or(Field::Void, field);
    let count = |name: &str| Field::Int(signature.option(name).and_then(Json::as_i64).unwrap_or(0));
    let args = if let Some(shown) = signature.text("argsrepr") {
        // What a producer hides from logs and monitors.
        shown.to_owned()
    } else if signature.immutable && role.direct {
        repr::args_list(&signature.args)
    } else {
        let first = (!signature.immutable).then_some(&context.first.value);
        repr::args_tuple(&first.into_iter().chain(&signature.args).collect::<Vec<_>>())
    };
    let stamped: Vec<&str> = signature
        .option("stamped_headers")
        .and_then(Json::as_array)
        .map(|names| names.iter().filter_map(Json::as_text).collect())
        .unwrap_or_default();
    let stamps: Headers =
        stamped.iter().filter_map(|name| Some(((*name).to_owned(), field(signature.option(name)?)))).collect();
    let group = signature.text("group_id").or(role.group.map(|(id, _)| id));
    let index = match role.group {
        Some((_, index)) => Field::Int(i64::try_from(index).unwrap_or(i64::MAX)),
        None => any("group_index"),
    };
    let stamped = stamped.into_iter().map(Field::from).collect::<Vec<_>>();
    [
        ("lang", Field::from("py")),
        ("task", signature.task.as_str().into()),
        ("id", id.into()),
        ("shadow", text("shadow")),
        ("eta", eta(signature, context.now).map_or(Field::Void, Field::Text)),
        ("expires", Field::Void),
        ("group", group.map_or(Field::Void, Field::from)),
        ("group_index", index),
        ("retries", count("retries")),
        ("timelimit", Field::List(vec![any("time_limit"), any("soft_time_limit")])),
        ("root_id", context.root_id.into()),
        ("parent_id", context.parent_id.into()),
        ("argsrepr", args.into()),
        (
            "kwargsrepr",
            signature.text("kwargsrepr").map_or_else(|| repr::kwargs(&signature.kwargs).into(), Field::from),
        ),
        ("origin", signature.text("origin").unwrap_or(&context.options.origin).into()),
        ("ignore_result", any("ignore_result")),
        ("replaced_task_nesting", count("replaced_task_nesting")),
        ("stamped_headers", if stamped.is_empty() { Field::Void } else { Field::List(stamped) }),
        ("stamps", Field::Table(stamps)),
    ]
    .into_iter()
    .map(|(name, value)| (name.to_owned(), value))
    .collect()
}

fn body(signature: &Signature, chain: Option<&[Signature]>, context: &ComposeContext<'_>) -> String {
    let mut out = String::with_capacity(context.first.text.len() + 256);
    out.push_str("[[");
    let mut empty = true;
    if !signature.immutable {
        out.push_str(context.first.text);
        empty = false;
    }
    for arg in &signature.args {
        if !empty {
            out.push(',');
        }
        empty = false;
        arg.write_compact(&mut out);
    }
    out.push_str("],");
    write_members(&mut out, &signature.kwargs);
    for (name, option) in [(",{\"callbacks\":", "link"), (",\"errbacks\":", "link_error")] {
        out.push_str(name);
        match signature.option(option) {
            None => out.push_str("null"),
            Some(list @ Json::Array(_)) => list.write_compact(&mut out),
            Some(one) => write_list(&mut out, std::slice::from_ref(one)),
        }
    }
    out.push_str(",\"chain\":");
    // The steps of the signature itself run before the waiting steps. In the reverse order they stand behind them.
    let own = signature.option("chain").map(|own| own.as_array().unwrap_or(std::slice::from_ref(own)));
    if chain.is_none() && own.is_none() {
        out.push_str("null");
    } else {
        out.push('[');
        let mut empty = true;
        let mut next = |out: &mut String| {
            if !std::mem::take(&mut empty) {
                out.push(',');
            }
        };
        for step in chain.unwrap_or_default() {
            next(&mut out);
            step.write_json(&mut out);
        }
        for step in own.unwrap_or_default() {
            next(&mut out);
            step.write_compact(&mut out);
        }
        out.push(']');
    }
    out.push_str(",\"chord\":");
    match signature.option("chord") {
        None => out.push_str("null"),
        Some(chord) => chord.write_compact(&mut out),
    }
    out.push_str("}]");
    out
}

/// Returns the address of a signature as Celery does: exchange and key when both are given, else the name of the queue.
fn address(signature: &Signature, default_queue: &str) -> Address {
    match (signature.text("exchange"), signature.text("routing_key")) {
        (Some(exchange), Some(key)) => Address { exchange: exchange.to_owned(), routing_key: key.to_owned() },
        // The default exchange reaches each queue by its name, and is always there.
        _ => Address::queue(signature.text("queue").unwrap_or(default_queue)),
    }
}

fn eta(signature: &Signature, now: Timestamp) -> Option<String> {
    let countdown = signature.option("countdown").and_then(Json::as_f64).filter(|seconds| *seconds != 0.0);
    match countdown.and_then(|seconds| time::later(now, seconds)) {
        Some(at) => Some(time::iso(at)),
        None => signature.option("eta").and_then(iso_text).map(str::to_owned),
    }
}

/// Reads the option `timestamp`, Unix seconds or a date and time, as Unix seconds.
fn timestamp(signature: &Signature) -> Option<u64> {
    let given = signature.option("timestamp")?;
    let seconds = given.as_i64().or_else(|| Some(given.as_f64()? as i64));
    let seconds = seconds.or_else(|| Some(instant::read(iso_text(given)?)?.as_second()));
    u64::try_from(seconds?).ok()
}

/// The longest time to live in milliseconds that the broker takes; RabbitMQ closes the channel for a longer one.
const LONGEST_EXPIRATION: i128 = u32::MAX as i128;

/// Returns the header `expires`, and the property `expiration` in milliseconds from now.
///
/// A time that is too long for the property is given in the header alone, which the consumer checks.
fn expiry(signature: &Signature, now: Timestamp) -> (Option<String>, Option<String>) {
    let expiration = |millis: i128| (millis <= LONGEST_EXPIRATION).then(|| millis.max(0).to_string());
    let Some(expires) = signature.option("expires") else {
        let seconds = signature.option("expiration").and_then(Json::as_f64);
        return (None, seconds.and_then(|seconds| expiration((seconds * 1000.0) as i128)));
    };
    let (text, at) = match expires.as_f64() {
        Some(seconds) => {
            let at = time::later(now, seconds);
            (at.map(time::iso), at)
        }
        None => {
            let text = iso_text(expires);
            (text.map(str::to_owned), text.and_then(instant::read))
        }
    };
    (text, at.and_then(|at| expiration(at.duration_since(now).as_millis())))
}
