//! Creates the results of tasks, exactly as Celery writes them, and the messages of the `rpc://` backend.

use std::fmt::Write as _;

use bytes::Bytes;
use jiff::Timestamp;

use super::error::Exception;
use super::message::{Address, Field, Headers, Message, Origin, Properties, Publication};
pub use super::request::ReplyTo;
use super::request::TaskRequest;
use super::time::iso;
use crate::json::write_string;

/// The longest short string of AMQP, in bytes.
const MAX_SHORT: usize = 255;

/// The beginning of the body of a success.
const SUCCESS: &str = "{\"status\":\"SUCCESS\",\"result\":";

/// The bytes of most bodies beside the result.
const AROUND: usize = 320;

/// The options for replies.
#[derive(Clone, Debug)]
pub struct ReplyOptions {
    /// The node name of the worker, such as `filestorage@host`.
    pub worker: String,
    /// The process id, which STARTED replies hold.
    pub pid: u32,
    /// Tells whether replies survive a restart of the broker (delivery mode 2 instead of 1).
    pub persistent: bool,
}

/// The state of a task that a reply reports.
#[derive(Clone, Copy, Debug)]
pub enum State<'a> {
    /// The task runs now.
    Started,
    /// The task returned.
    Success {
        /// The return value as JSON text, which is embedded unchanged.
        result: &'a str,
        /// The tasks that were published after this one.
        children: &'a [Child],
    },
    /// The task failed and is not retried.
    Failure(&'a Exception),
    /// The task failed with this exception and is retried.
    Retry(&'a Exception),
    /// The task was revoked: it did not run, or was terminated.
    Revoked(Revocation),
}

/// The reason why a task was revoked.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Revocation {
    /// The time `expires` of the task had passed.
    Expired,
    /// The task was revoked by its id before it ran.
    Revoked,
    /// The task was terminated while it ran.
    Terminated,
}

/// A task or workflow that a task published, in the form for its result.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Child {
    /// One task.
    Task(String),
    /// A chain, by the ids of its tasks, first to last.
    Chain(Vec<String>),
    /// A group.
    Group {
        /// The id of the group.
        id: String,
        /// The members in order.
        members: Vec<Self>,
    },
}

/// The fields that `result_extended` adds to a reply.
///
/// They are collected before the arguments are moved into the command.
#[derive(Clone, Debug)]
pub struct Extended {
    fields: String,
}

impl Extended {
    /// Collects name, arguments, worker, retries, queue and stamps of a request.
    #[must_use]
    pub fn of(request: &TaskRequest, origin: &Origin, worker: &str) -> Self {
        let mut fields = String::from("\"name\":");
        write_string(&mut fields, &request.task);
        fields.push_str(",\"args\":");
        super::encode::write_list(&mut fields, &request.args);
        fields.push_str(",\"kwargs\":");
        super::encode::write_members(&mut fields, &request.kwargs);
        fields.push_str(",\"worker\":");
        write_string(&mut fields, worker);
        push(&mut fields, format_args!(",\"retries\":{},\"queue\":", request.retries));
        write_string(&mut fields, &origin.routing_key);
        if !request.stamped_headers.is_empty() {
            fields.push_str(",\"stamped_headers\":[");
            for (index, name) in request.stamped_headers.iter().enumerate() {
                if index > 0 {
                    fields.push(',');
                }
                write_string(&mut fields, name);
            }
            fields.push(']');
            for name in &request.stamped_headers {
                if let Some(stamp) = request.stamps.get(name) {
                    fields.push(',');
                    write_string(&mut fields, name);
                    fields.push(':');
                    write_field(&mut fields, stamp);
                }
            }
        }
        Self { fields }
    }

    /// Returns the fields for a task that is not registered, which Celery sets to null.
    #[must_use]
    pub fn unregistered() -> Self {
        Self {
            fields: "\"name\":null,\"args\":null,\"kwargs\":null,\"worker\":null,\"retries\":null,\"queue\":null"
                .to_owned(),
        }
    }
}

/// Creates the result message of a request, or returns `None` when no result is wanted.
#[must_use]
pub fn reply(
    request: &TaskRequest,
    state: &State<'_>,
    extended: Option<&Extended>,
    options: &ReplyOptions,
    now: Timestamp,
) -> Option<Publication> {
    Some(reply_to(&request.reply_address()?, state, extended, options, now))
}

/// Creates the result message of a request that returned, as [`reply`] does for [`State::Success`].
///
/// The body is written around the result in the memory of the result: that of a large value is not copied.
#[must_use]
pub fn success(
    request: &TaskRequest,
    result: String,
    children: &[Child],
    extended: Option<&Extended>,
    options: &ReplyOptions,
    now: Timestamp,
) -> Option<Publication> {
    let to = request.reply_address()?;
    let mut body = result;
    body.reserve_exact(AROUND);
    body.insert_str(0, SUCCESS);
    write_rest(&mut body, &to, None, children, Some(now), extended);
    Some(publication(&to, body, options))
}

/// Creates a result message for an address, which may be that of a message that could not be read.
///
/// `date_done` is `now` for final states and null for STARTED and RETRY. The body is compact UTF-8 JSON.
#[must_use]
pub fn reply_to(
    to: &ReplyTo,
    state: &State<'_>,
    extended: Option<&Extended>,
    options: &ReplyOptions,
    now: Timestamp,
) -> Publication {
    publication(to, text(to, state, extended, options, now), options)
}

fn publication(to: &ReplyTo, body: String, options: &ReplyOptions) -> Publication {
    Publication {
        address: Address::queue(to.queue.as_str()),
        message: Message {
            properties: Properties {
                // AMQP cannot carry a longer id. Clients match the result by the `task_id` in the body.
                correlation_id: Some(to.correlation_id.clone()).filter(|id| id.len() <= MAX_SHORT),
                ..Properties::json(options.persistent)
            },
            headers: Headers::default(),
            body: Bytes::from(body),
        },
    }
}

/// Creates the text of a result message, which a store of results keeps as well.
#[must_use]
pub fn text(
    to: &ReplyTo,
    state: &State<'_>,
    extended: Option<&Extended>,
    options: &ReplyOptions,
    now: Timestamp,
) -> String {
    let result_size = if let State::Success { result, .. } = state { result.len() } else { 256 };
    let mut out = String::with_capacity(result_size + AROUND);
    let mut traceback = None;
    let mut children: &[Child] = &[];
    let mut done = true;
    match state {
        State::Started => {
            done = false;
            push(&mut out, format_args!("{{\"status\":\"STARTED\",\"result\":{{\"pid\":{},\"hostname\":", options.pid));
            write_string(&mut out, &options.worker);
            out.push('}');
        }
        State::Success { result, children: published } => {
            children = published;
            out.push_str(SUCCESS);
            out.push_str(result);
        }
        State::Failure(exception) => {
            traceback = exception.traceback(&to.task);
            out.push_str("{\"status\":\"FAILURE\",\"result\":");
            exception.write_json(&mut out);
        }
        State::Retry(exception) => {
            done = false;
            traceback = exception.traceback(&to.task);
            out.push_str("{\"status\":\"RETRY\",\"result\":");
            exception.write_json(&mut out);
        }
        State::Revoked(why) => {
            out.push_str("{\"status\":\"REVOKED\",\"result\":");
            Exception::task_revoked(why.as_str()).write_json(&mut out);
        }
    }
    write_rest(&mut out, to, traceback.as_deref(), children, done.then_some(now), extended);
    out
}

/// Appends what a body has behind its result.
fn write_rest(
    out: &mut String,
    to: &ReplyTo,
    traceback: Option<&str>,
    children: &[Child],
    done: Option<Timestamp>,
    extended: Option<&Extended>,
) {
    out.push_str(",\"traceback\":");
    match traceback {
        Some(text) => write_string(out, text),
        None => out.push_str("null"),
    }
    out.push_str(",\"children\":[");
    for (index, child) in children.iter().enumerate() {
        if index > 0 {
            out.push(',');
        }
        child.write_tuple(out);
    }
    out.push_str("],\"date_done\":");
    match done {
        Some(at) => push(out, format_args!("\"{}\"", iso(at))),
        None => out.push_str("null"),
    }
    if let Some(group) = &to.group {
        out.push_str(",\"group_id\":");
        write_string(out, group);
    }
    if let Some(parent) = &to.parent_id {
        out.push_str(",\"parent_id\":");
        write_string(out, parent);
    }
    if let Some(extended) = extended {
        out.push(',');
        out.push_str(&extended.fields);
    }
    out.push_str(",\"task_id\":");
    write_string(out, &to.task_id);
    out.push('}');
}

impl Revocation {
    pub(super) const fn as_str(self) -> &'static str {
        match self {
            Self::Expired => "expired",
            Self::Revoked => "revoked",
            Self::Terminated => "terminated",
        }
    }
}

impl Child {
    /// Appends the child as Celery's result tuple: `[[id, parent], members]`.
    fn write_tuple(&self, out: &mut String) {
        match self {
            Self::Task(id) => {
                out.push_str("[[");
                write_string(out, id);
                out.push_str(",null],null]");
            }
            Self::Chain(ids) => {
                // The result is that of the last task; each earlier task is the parent of the next.
                for id in ids.iter().rev() {
                    out.push_str("[[");
                    write_string(out, id);
                    out.push(',');
                }
                out.push_str("null");
                for _ in ids {
                    out.push_str("],null]");
                }
            }
            Self::Group { id, members } => {
                out.push_str("[[");
                write_string(out, id);
                out.push_str(",null],[");
                for (index, member) in members.iter().enumerate() {
                    if index > 0 {
                        out.push(',');
                    }
                    member.write_tuple(out);
                }
                out.push_str("]]");
            }
        }
    }
}

/// Appends formatted text.
fn push(out: &mut String, text: std::fmt::Arguments<'_>) {
    out.write_fmt(text).unwrap_or_else(|error| unreachable!("writing to a String: {error}"));
}

/// Appends a header value as JSON.
fn write_field(out: &mut String, field: &Field) {
    match field {
        Field::Void => out.push_str("null"),
        Field::Bool(value) => push(out, format_args!("{value}")),
        Field::Int(value) => push(out, format_args!("{value}")),
        Field::Timestamp(value) => push(out, format_args!("{value}")),
        Field::Float(value) if value.is_finite() => push(out, format_args!("{value:?}")),
        Field::Float(value) if value.is_nan() => out.push_str("NaN"),
        Field::Float(value) => out.push_str(if *value > 0.0 { "Infinity" } else { "-Infinity" }),
        Field::Text(text) => write_string(out, text),
        Field::List(items) => {
            out.push('[');
            for (index, item) in items.iter().enumerate() {
                if index > 0 {
                    out.push(',');
                }
                write_field(out, item);
            }
            out.push(']');
        }
        Field::Table(table) => {
            out.push('{');
            for (index, (name, value)) in table.iter().enumerate() {
                if index > 0 {
                    out.push(',');
                }
                write_string(out, name);
                out.push(':');
                write_field(out, value);
            }
            out.push('}');
        }
    }
}
