//! The request of a task, as read from a message of protocol 2 or 1.

use std::time::Duration;

use jiff::Timestamp;

use super::body::Limits;
use super::error::Exception;
use super::message::{Headers, Message};
use super::signature::Signature;
use crate::json::Json;

/// The content types and sizes of messages that are read.
#[derive(Clone, Debug)]
pub struct ReadOptions {
    /// The names of the accepted serializers, as in Celery's `accept_content`: `json`, `msgpack`, `yaml`.
    pub accept: Vec<String>,
    /// The limits of a body: size and depth of nesting.
    pub limits: Limits,
}

impl Default for ReadOptions {
    fn default() -> Self {
        Self { accept: vec!["json".to_owned()], limits: Limits::default() }
    }
}

/// One call of a task.
#[derive(Clone, Debug, Default, PartialEq)]
pub struct TaskRequest {
    /// The version of the protocol of the message: 2 or 1.
    pub protocol: u8,
    /// The registered name of the task.
    pub task: String,
    /// The task id: any text that is not empty.
    pub id: String,
    /// The id of the first task of the workflow.
    pub root_id: Option<String>,
    /// The id of the task that published this one.
    pub parent_id: Option<String>,
    /// The id of the group to which the task belongs.
    pub group: Option<String>,
    /// The index of the task in its group.
    pub group_index: Option<i64>,
    /// The number of retries so far.
    pub retries: u32,
    /// The time before which the task must not start.
    pub eta: Option<Timestamp>,
    /// The time after which the task must not start.
    pub expires: Option<Timestamp>,
    /// The time limit; `None` means that of the worker.
    pub time_limit: Option<Duration>,
    /// The soft time limit; `None` means that of the worker.
    pub soft_time_limit: Option<Duration>,
    /// Positional arguments.
    pub args: Vec<Json>,
    /// Named arguments.
    pub kwargs: Vec<(String, Json)>,
    /// The callbacks, which are published when the task succeeds.
    pub callbacks: Vec<Signature>,
    /// The errbacks, which are published when the task fails.
    pub errbacks: Vec<Signature>,
    /// The remaining steps of the chain in reverse order: the next step is the last element.
    pub chain: Vec<Signature>,
    /// The body of the chord, when the task is a member of the header of a chord.
    pub chord: Option<Json>,
    /// The queue for the result.
    pub reply_to: Option<String>,
    /// The correlation id of the result: the task id, unless the producer chose another.
    pub correlation_id: String,
    /// Tells whether no result is wanted; an absent or void header means false.
    pub ignore_result: bool,
    /// The name that is shown instead of [`Self::task`].
    pub shadow: Option<String>,
    /// The names of the stamps.
    pub stamped_headers: Vec<String>,
    /// The stamps by name.
    pub stamps: Headers,
    /// The positional arguments for display, as the producer wrote them.
    pub argsrepr: Option<String>,
    /// The named arguments for display, as the producer wrote them.
    pub kwargsrepr: Option<String>,
    /// The queue for the metric event of this command, by a header of this program's own.
    pub metrics_reply_to: Option<String>,
    /// The number of times that the task was replaced.
    pub replaced_task_nesting: i64,
    /// The node name of the publisher.
    pub origin: Option<String>,
    /// The priority of the message.
    pub priority: Option<u8>,
}

/// The address of the answer to one task, with the ids that the answer repeats.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct ReplyTo {
    /// The reply queue of the client.
    pub queue: String,
    /// The task id, by which clients match the answer.
    pub task_id: String,
    /// The correlation id: the task id, unless the producer chose another.
    pub correlation_id: String,
    /// The id of the group to which the task belongs.
    pub group: Option<String>,
    /// The id of the task that published this one.
    pub parent_id: Option<String>,
    /// The name of the task, for tracebacks; empty when unknown.
    pub task: String,
}

impl TaskRequest {
    /// Returns the address of the answer, or `None` when no answer is wanted.
    #[must_use]
    pub fn reply_address(&self) -> Option<ReplyTo> {
        self.reply_to.as_ref()?;
        self.recipient()
    }

    /// Returns the recipient of an answer that is kept under the task id, or `None` when no answer is wanted.
    #[must_use]
    pub fn recipient(&self) -> Option<ReplyTo> {
        if self.ignore_result {
            return None;
        }
        Some(ReplyTo {
            queue: self.reply_to.clone().unwrap_or_default(),
            task_id: self.id.clone(),
            correlation_id: self.correlation_id.clone(),
            group: self.group.clone(),
            parent_id: self.parent_id.clone(),
            task: self.task.clone(),
        })
    }
}

/// The longest task id in bytes; the id stands in every record and every answer of its command.
pub const LONGEST_ID: usize = 1024;

/// The fault of a message that is not a runnable task.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Fault {
    /// The message has neither a `task` header nor a body of protocol 1.
    NotATask,
    /// The task has no id.
    MissingId,
    /// The id has more than [`LONGEST_ID`] bytes.
    LongId,
    /// The content type is not accepted.
    ContentDisallowed,
    /// The body cannot be decoded.
    Decode,
    /// The body is JSON that only Python reads: it has lone surrogates, or exceeds a limit.
    PythonOnlyJson,
    /// A part of the task has the wrong type.
    InvalidTask,
}

impl Fault {
    /// Returns the fault in one word, for logs, metrics and the reason in the dead copy.
    #[must_use]
    pub const fn as_str(self) -> &'static str {
        match self {
            Self::NotATask => "not-a-task",
            Self::MissingId => "missing-id",
            Self::LongId => "long-id",
            Self::ContentDisallowed => "content-disallowed",
            Self::Decode => "decode-error",
            Self::PythonOnlyJson => "python-only-json",
            Self::InvalidTask => "invalid-task",
        }
    }
}

/// A message that cannot be run as a task, with the fault and the address of the answer.
#[derive(Clone, Debug, PartialEq, thiserror::Error)]
#[error("{message}")]
pub struct Unreadable {
    /// The fault.
    pub what: Fault,
    /// The message for people: subject, cause and remedy, never the payload.
    pub message: String,
    /// The name of the task, when it could be read.
    pub task: Option<String>,
    /// The task id, when it could be read; of an id that is too long, the beginning.
    pub id: Option<String>,
    /// The address of the answer, when id and reply queue could be read and a result is wanted.
    ///
    /// The correlation id takes the place of an id that is too long.
    pub reply: Option<Box<ReplyTo>>,
}

impl Unreadable {
    /// Returns the exception for the answer.
    #[must_use]
    pub fn exception(&self) -> Exception {
        match self.what {
            Fault::ContentDisallowed => Exception::content_disallowed(&self.message),
            Fault::PythonOnlyJson => Exception::value_error(&self.message),
            Fault::NotATask | Fault::MissingId | Fault::LongId | Fault::Decode | Fault::InvalidTask => {
                Exception::decode_error(&self.message)
            }
        }
    }

    /// Tells whether a dead copy is kept; none is kept when the answer is a plain `ValueError`.
    #[must_use]
    pub fn keeps_dead_copy(&self) -> bool {
        self.what != Fault::PythonOnlyJson
    }
}

/// The information about a message that is available without reading its body.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Peek<'m> {
    /// The name of the task, from its header.
    pub task: Option<&'m str>,
    /// The task id, from its header, or else the correlation id.
    pub id: Option<&'m str>,
    /// The queue for the result; never empty.
    pub reply_to: Option<&'m str>,
}

/// Reads task name, id and reply queue from the headers and properties of a message.
#[must_use]
pub fn peek<'m>(message: &'m Message) -> Peek<'m> {
    let given = |text: Option<&'m str>| text.filter(|text| !text.is_empty());
    let properties = &message.properties;
    Peek {
        task: given(message.headers.text("task")),
        id: given(message.headers.text("id")).or_else(|| given(properties.correlation_id.as_deref())),
        reply_to: given(properties.reply_to.as_deref()),
    }
}
