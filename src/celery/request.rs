//! One task message, protocol 2 or 1, as this program understands it.

use std::time::Duration;

use jiff::Timestamp;

use super::body::Limits;
use super::error::Exception;
use super::message::{Headers, Message};
use super::signature::Signature;
use crate::json::Json;

/// What is read, and how much of it.
#[derive(Clone, Debug)]
pub struct ReadOptions {
    /// Celery's `accept_content`: names of serializers. Only `json` can be read; whatever else is named is refused.
    pub accept: Vec<String>,
    /// Largest body and deepest nesting.
    pub limits: Limits,
}

impl Default for ReadOptions {
    fn default() -> Self {
        Self { accept: vec!["json".to_owned()], limits: Limits::default() }
    }
}

/// One call of a task.
#[derive(Clone, Debug, PartialEq)]
pub struct TaskRequest {
    /// Version of the protocol it came in: 2 or 1.
    pub protocol: u8,
    /// Registered name.
    pub task: String,
    /// Task id: any text, never empty.
    pub id: String,
    /// Id of the workflow's first task.
    pub root_id: Option<String>,
    /// Id of the task that published this one.
    pub parent_id: Option<String>,
    /// Group id.
    pub group: Option<String>,
    /// Place in the group.
    pub group_index: Option<i64>,
    /// Retries so far.
    pub retries: u32,
    /// Not to be started before.
    pub eta: Option<Timestamp>,
    /// Not to be started after.
    pub expires: Option<Timestamp>,
    /// Hard limit; `None`: the worker's own.
    pub time_limit: Option<Duration>,
    /// Soft limit; `None`: the worker's own.
    pub soft_time_limit: Option<Duration>,
    /// Positional arguments.
    pub args: Vec<Json>,
    /// Named arguments.
    pub kwargs: Vec<(String, Json)>,
    /// To be published with the result.
    pub callbacks: Vec<Signature>,
    /// To be published on failure.
    pub errbacks: Vec<Signature>,
    /// Remaining steps in reverse: the next one is the last.
    pub chain: Vec<Signature>,
    /// Body of the chord this is a header member of.
    pub chord: Option<Json>,
    /// Queue that wants the result.
    pub reply_to: Option<String>,
    /// Correlation id of the result; the task id unless the producer chose another.
    pub correlation_id: String,
    /// Nobody wants a result; absent and void mean false.
    pub ignore_result: bool,
    /// Name to show instead of [`Self::task`].
    pub shadow: Option<String>,
    /// Names of the stamps.
    pub stamped_headers: Vec<String>,
    /// The stamps by name.
    pub stamps: Headers,
    /// Positional arguments for display, as the producer wrote them.
    pub argsrepr: Option<String>,
    /// Named arguments for display, as the producer wrote them.
    pub kwargsrepr: Option<String>,
    /// Queue that wants this command's metric event (a header of ours).
    pub metrics_reply_to: Option<String>,
    /// How often the task was replaced.
    pub replaced_task_nesting: i64,
    /// Who published it.
    pub origin: Option<String>,
}

/// Where the answer to one task goes, and the ids it repeats.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct ReplyTo {
    /// Queue of the client.
    pub queue: String,
    /// The task's id; clients match by it.
    pub task_id: String,
    /// Correlation id; the task's id unless the producer chose another.
    pub correlation_id: String,
    /// Group the task belongs to.
    pub group: Option<String>,
    /// Task that published this one.
    pub parent_id: Option<String>,
    /// Task name, for tracebacks; empty when unknown.
    pub task: String,
}

impl TaskRequest {
    /// Says where the answer goes; `None` when nobody wants one.
    #[must_use]
    pub fn reply_address(&self) -> Option<ReplyTo> {
        if self.ignore_result {
            return None;
        }
        Some(ReplyTo {
            queue: self.reply_to.clone()?,
            task_id: self.id.clone(),
            correlation_id: self.correlation_id.clone(),
            group: self.group.clone(),
            parent_id: self.parent_id.clone(),
            task: self.task.clone(),
        })
    }
}

/// Bytes of a task id at most: it stands in every record and every answer of its command.
pub const LONGEST_ID: usize = 1024;

/// What is wrong with a message that is no runnable task.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Fault {
    /// Neither a `task` header nor a protocol 1 body.
    NotATask,
    /// A task without an id.
    MissingId,
    /// An id of more than [`LONGEST_ID`] bytes.
    LongId,
    /// A content type that is not accepted.
    ContentDisallowed,
    /// A body that cannot be decoded.
    Decode,
    /// JSON that only Python reads: lone surrogates, too deep.
    PythonOnlyJson,
    /// A task whose parts have the wrong shape.
    InvalidTask,
}

impl Fault {
    /// Names the fault in one word: for logs, metrics and the dead copy's reason.
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

/// A message that cannot be run: what, why, and whom to tell.
#[derive(Clone, Debug, PartialEq, thiserror::Error)]
#[error("{message}")]
pub struct Unreadable {
    /// Which fault.
    pub what: Fault,
    /// The thing, the cause and the mend; never the payload.
    pub message: String,
    /// Task name, as far as it could be read.
    pub task: Option<String>,
    /// Task id, as far as it could be read; the beginning of one that is too long.
    pub id: Option<String>,
    /// Whom to answer, when id and reply address could be read and a result is wanted. The correlation id stands for an id that is
    /// too long.
    pub reply: Option<Box<ReplyTo>>,
}

impl Unreadable {
    /// Makes the exception to answer with.
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

    /// Tells whether a dead copy is to be kept; not of what the caller was told as a plain `ValueError`.
    #[must_use]
    pub fn keeps_dead_copy(&self) -> bool {
        self.what != Fault::PythonOnlyJson
    }
}

/// What can be said about a message without reading its body.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Peek<'m> {
    /// Task name, from the header.
    pub task: Option<&'m str>,
    /// Task id: the header, else the correlation id.
    pub id: Option<&'m str>,
    /// Queue that wants the result; never empty.
    pub reply_to: Option<&'m str>,
}

/// Looks at headers and properties only.
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
