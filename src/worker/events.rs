//! Metric events: one CloudEvent for every finished storage operation, and one for each key of a command of several.

use jiff::Timestamp;
use serde::{Deserialize, Serialize};

use crate::celery::message::{Address, Message, Properties, Publication};
use crate::commands::Facts;
use crate::worker::journal::Digest;

pub(super) use crate::broker::EVENTS_EXCHANGE as EXCHANGE;

const ONE: &str = "application/cloudevents+json";
const MANY: &str = "application/cloudevents-batch+json";

/// How an operation ended.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize, schemars::JsonSchema)]
#[serde(rename_all = "lowercase")]
pub(super) enum EventOutcome {
    /// Its caller got a result.
    Succeeded,
    /// Its caller got an exception.
    Failed,
}

impl EventOutcome {
    const fn as_str(self) -> &'static str {
        match self {
            Self::Succeeded => "succeeded",
            Self::Failed => "failed",
        }
    }
}

/// The exception an operation failed with.
#[derive(Clone, Debug, Serialize, Deserialize, schemars::JsonSchema)]
pub(super) struct EventError {
    /// Python class name.
    #[serde(rename = "type")]
    pub(super) class: String,
    /// What it says.
    pub(super) message: String,
}

/// The `data` of an event.
#[derive(Clone, Debug, Serialize, Deserialize, schemars::JsonSchema)]
pub(super) struct EventData {
    /// `store`, `retrieve`, `delete`…
    pub(super) operation: String,
    /// How it ended.
    pub(super) outcome: EventOutcome,
    /// Why it failed, else null.
    pub(super) error: Option<EventError>,
    #[serde(flatten)]
    pub(super) facts: Facts,
    /// Seconds between the producer's `timestamp` property, or else the broker's stamp, and the start; null without both.
    pub(super) queue_seconds: Option<f64>,
    /// Seconds the command ran.
    pub(super) duration_seconds: f64,
    /// Celery task id.
    pub(super) task_id: String,
    /// Node name of the worker.
    pub(super) worker: String,
}

impl EventData {
    /// Sets how the operation ended.
    pub(super) fn ended(self, error: Option<EventError>) -> Self {
        let outcome = if error.is_none() { EventOutcome::Succeeded } else { EventOutcome::Failed };
        Self { outcome, error, ..self }
    }
}

/// What one further event of a command of several keys tells.
#[derive(Clone, Debug, Serialize, Deserialize)]
pub(super) struct More {
    #[serde(flatten)]
    pub(super) facts: Facts,
    /// The key's own failure, where the command as a whole has a result.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub(super) error: Option<EventError>,
}

/// A CloudEvents 1.0 event.
#[derive(Clone, Debug, Serialize, schemars::JsonSchema)]
pub(super) struct CloudEvent<'a> {
    /// `1.0`.
    specversion: &'a str,
    /// Derived from the command's identity, the outcome, and which of its keys the event is about: a copy of an event has the same.
    id: String,
    /// The worker, as `/filestorage/<node>`.
    source: String,
    /// `filestorage.<operation>.<outcome>`.
    #[serde(rename = "type")]
    kind: String,
    /// The key, where there is one.
    #[serde(skip_serializing_if = "Option::is_none")]
    subject: Option<&'a str>,
    /// When the operation ended, RFC 3339 in UTC.
    time: String,
    /// `application/json`.
    datacontenttype: &'a str,
    /// What happened.
    data: &'a EventData,
}

/// An event ready to be published: alone, or with others of its routing key.
#[derive(Clone, Debug)]
pub(super) struct Event {
    /// `<operation>.<outcome>`.
    pub(super) routing_key: String,
    json: String,
}

/// Returns the JSON Schema of an event as it is published.
#[must_use]
pub fn event_schema() -> serde_json::Value {
    let settings = schemars::generate::SchemaSettings::draft2020_12().for_serialize();
    settings.into_generator().into_root_schema_for::<CloudEvent<'_>>().to_value()
}

impl Event {
    /// Returns its bytes in memory, about.
    pub(super) const fn bytes(&self) -> u64 {
        (self.json.len() + self.routing_key.len()) as u64
    }

    /// Writes the events of a finished operation: one that tells `data`, and one for each of the facts of further keys.
    ///
    /// `failure` is that of the command as a whole, which is the failure of every key that has none of its own.
    pub(super) fn all(
        data: &EventData,
        more: &[More],
        failure: Option<&EventError>,
        command: Digest,
        at: Timestamp,
    ) -> Vec<Self> {
        let first = Self::new(data, command, 0, at);
        let others = more.iter().zip(1..).map(|(More { facts, error }, number)| {
            let data = EventData { facts: facts.clone(), ..data.clone().ended(error.as_ref().or(failure).cloned()) };
            Self::new(&data, command, number, at)
        });
        std::iter::once(first).chain(others).collect()
    }

    /// Writes the event with this number among those of its command, from 0.
    fn new(data: &EventData, command: Digest, number: usize, at: Timestamp) -> Self {
        let routing_key = format!("{}.{}", data.operation, data.outcome.as_str());
        let name = match number {
            0 => format!("{command}/{}", data.outcome.as_str()),
            number => format!("{command}/{}/{number}", data.outcome.as_str()),
        };
        let event = CloudEvent {
            specversion: "1.0",
            id: uuid::Uuid::new_v5(&uuid::Uuid::NAMESPACE_OID, name.as_bytes()).to_string(),
            source: format!("/filestorage/{}", data.worker),
            kind: format!("filestorage.{routing_key}"),
            subject: data.facts.key.as_deref(),
            time: at.to_string(),
            datacontenttype: "application/json",
            data,
        };
        // Structs, strings and numbers only: cannot fail to serialize.
        let json = serde_json::to_string(&event).unwrap_or_default();
        Self { routing_key, json }
    }

    /// Returns where it is published.
    pub(super) fn address(&self) -> Address {
        Address { exchange: EXCHANGE.to_owned(), routing_key: self.routing_key.clone() }
    }

    /// Makes the copy for the queue a command named in `metrics_reply_to`.
    pub(super) fn to_queue(&self, queue: &str) -> Publication {
        publication(Address::queue(queue), ONE, self.json.clone())
    }

    /// Makes one with this routing key.
    #[cfg(test)]
    pub(super) fn of(routing_key: &str) -> Self {
        Self { routing_key: routing_key.to_owned(), json: "{}".to_owned() }
    }

    /// Makes the message that tells of it alone.
    pub(super) fn alone(&self) -> Publication {
        publication(self.address(), ONE, self.json.clone())
    }

    /// Joins events of one routing key into one message; a lone one stays plain.
    pub(super) fn join(events: &[&Self]) -> Option<Publication> {
        let first = events.first()?;
        if events.len() == 1 {
            return Some(first.alone());
        }
        let mut batch = String::with_capacity(events.iter().map(|event| event.json.len() + 1).sum::<usize>() + 2);
        batch.push('[');
        for (place, event) in events.iter().enumerate() {
            if place > 0 {
                batch.push(',');
            }
            batch.push_str(&event.json);
        }
        batch.push(']');
        Some(publication(first.address(), MANY, batch))
    }
}

fn publication(address: Address, content_type: &str, body: String) -> Publication {
    let properties = Properties {
        content_type: Some(content_type.to_owned()),
        content_encoding: Some("utf-8".to_owned()),
        delivery_mode: Some(2),
        ..Properties::default()
    };
    Publication { address, message: Message { properties, body: body.into(), ..Message::default() } }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::worker::journal::Identity;

    fn data(task_id: &str, outcome: EventOutcome) -> EventData {
        EventData {
            operation: "store".into(),
            outcome,
            error: None,
            facts: Facts { key: Some("a/b".into()), backend: Some("local".into()), attempts: 1, ..Facts::default() },
            queue_seconds: None,
            duration_seconds: 0.25,
            task_id: task_id.into(),
            worker: "w@h".into(),
        }
    }

    #[test]
    fn a_lone_event_is_plain_and_several_are_a_batch() {
        let now = Timestamp::UNIX_EPOCH;
        let event = |body: &'static str, outcome| {
            let message = Message { body: body.into(), ..Message::default() };
            Event::new(&data("1", outcome), Identity::of(&message, false).digest, 0, now)
        };
        let first = event("x", EventOutcome::Succeeded);
        let again = event("x", EventOutcome::Succeeded);
        let failed = event("x", EventOutcome::Failed);
        let other = event("y", EventOutcome::Succeeded);
        let id = |event: &Event| serde_json::from_str::<serde_json::Value>(&event.json).unwrap()["id"].clone();
        assert_eq!(id(&first), id(&again), "a copy is told by its id");
        assert_ne!(id(&first), id(&failed));
        assert_ne!(id(&first), id(&other), "another command under the same task id");
        assert_eq!(failed.routing_key, "store.failed");
        let alone = Event::join(&[&first]).unwrap();
        assert_eq!(alone.message.properties.content_type.as_deref(), Some(ONE));
        let two = Event::join(&[&first, &again]).unwrap();
        assert_eq!(two.message.properties.content_type.as_deref(), Some(MANY));
        let parsed: serde_json::Value = serde_json::from_slice(&two.message.body).unwrap();
        assert_eq!(parsed[1]["data"]["key"], "a/b");
        assert_eq!(parsed[1]["subject"], "a/b");
        assert_eq!(parsed[0]["specversion"], "1.0");
        assert!(Event::join(&[]).is_none());
    }
}
