//! Commands as Celery clients send them.

use filestorage::celery::message::{Field, Headers, Message, Properties};
use jiff::Timestamp;
use serde_json::{Value, json};

use crate::site::{REPLIES, START};

/// A command as a Celery client sends it.
#[derive(Clone, Debug)]
pub(crate) struct Sent {
    pub(crate) id: String,
    task: &'static str,
    kwargs: Value,
    embed: Value,
    pub(crate) reply_to: Option<String>,
    headers: Headers,
}

/// Makes a command that writes a key.
pub(crate) fn write(id: &str, key: &str) -> Sent {
    Sent::new("test.write", id, key)
}

/// Makes a command that reads a key.
pub(crate) fn read(id: &str, key: &str) -> Sent {
    Sent::new("test.read", id, key)
}

impl Sent {
    pub(crate) fn new(task: &'static str, id: &str, key: &str) -> Self {
        let number = id.bytes().fold(7_u64, |hash, byte| hash.wrapping_mul(257).wrapping_add(byte.into())) % (1 << 50);
        Self {
            id: id.to_owned(),
            task,
            kwargs: json!({"key": key, "number": number}),
            embed: json!({"callbacks": null, "errbacks": null, "chain": null, "chord": null}),
            reply_to: Some(REPLIES.to_owned()),
            headers: Headers::default(),
        }
    }

    /// Returns the number that tells the command apart.
    pub(crate) fn number(&self) -> u64 {
        self.kwargs["number"].as_u64().unwrap()
    }

    /// Sets an argument.
    pub(crate) fn with(mut self, name: &str, value: impl Into<Value>) -> Self {
        self.kwargs[name] = value.into();
        self
    }

    /// Sets a header.
    pub(crate) fn header(mut self, name: &str, value: impl Into<Field>) -> Self {
        self.headers.set(name, value.into());
        self
    }

    /// Lets a task in another queue follow: `callbacks` after a success, `errbacks` after a failure.
    pub(crate) fn followed(mut self, member: &str, queue: &str) -> Self {
        self.embed[member] = json!([{
            "task": "other.task", "args": [], "kwargs": {}, "options": {"queue": queue}, "subtask_type": null,
            "immutable": true, "chord_size": null
        }]);
        self
    }

    pub(crate) fn replying_to(mut self, queue: Option<&str>) -> Self {
        self.reply_to = queue.map(str::to_owned);
        self
    }

    pub(crate) fn message(&self) -> Message {
        let mut headers = self.headers.clone();
        headers.set("task", self.task.into());
        headers.set("id", self.id.clone().into());
        headers.set("root_id", self.id.clone().into());
        let properties = Properties {
            content_type: Some("application/json".to_owned()),
            content_encoding: Some("utf-8".to_owned()),
            correlation_id: Some(self.id.clone()),
            reply_to: self.reply_to.clone(),
            delivery_mode: Some(2),
            ..Properties::default()
        };
        Message { properties, headers, body: json!([[], self.kwargs, self.embed]).to_string().into() }
    }
}

/// Returns the time so many milliseconds after the beginning, as Celery writes it.
pub(crate) fn after_start(milliseconds: i64) -> String {
    Timestamp::from_millisecond(START * 1000 + milliseconds).unwrap().to_string().replace('Z', "+00:00")
}
