//! The form in which a publication is parked: its own body and headers, and plain headers of ours for what a queue would strip,
//! refuse or act upon.

use jiff::Timestamp;

use crate::celery::message::{Address, Field, Headers, Message, Publication};
use crate::celery::{is_routing, is_trace};
use crate::worker::delivery::role::Role;

/// The prefix of the headers that are added.
const PREFIX: &str = "x-filestorage-parked-";
/// The version of the form. A worker reads its own and every earlier one.
const VERSION: i64 = 1;
/// The delivery mode of a message that survives a restart of the broker.
const PERSISTENT: u8 = 2;

/// A publication that is parked.
#[derive(Clone, Debug, PartialEq)]
pub(in crate::worker) struct Envelope {
    pub(in crate::worker) role: Role,
    /// The task of the command.
    pub(in crate::worker) task_id: Option<String>,
    /// When the publication was first parked.
    pub(in crate::worker) since: Timestamp,
    /// The number of times that it was parked again.
    pub(in crate::worker) step: usize,
    pub(in crate::worker) publication: Publication,
}

impl Envelope {
    /// Writes the message that is parked.
    pub(in crate::worker) fn seal(&self) -> Message {
        let Publication { address, message } = &self.publication;
        let mut sealed = message.clone();
        sealed.headers = Headers::default();
        for (name, value) in message.headers.iter() {
            sealed.headers.set(hidden(name).unwrap_or_else(|| name.to_owned()), value.clone());
        }
        let mut note = |name: &str, value: Field| sealed.headers.set(format!("{PREFIX}{name}"), value);
        note("version", Field::Int(VERSION));
        note("role", text(self.role).into());
        note("exchange", address.exchange.as_str().into());
        note("routing-key", address.routing_key.as_str().into());
        note("since", Field::Int(self.since.as_millisecond()));
        note("step", Field::Int(i64::try_from(self.step).unwrap_or(i64::MAX)));
        if let Some(id) = &self.task_id {
            note("task-id", id.as_str().into());
        }
        if let Some(expiration) = sealed.properties.expiration.take() {
            note("expiration", expiration.into());
        }
        if let Some(user) = sealed.properties.user_id.take() {
            note("user-id", user.into());
        }
        match sealed.properties.delivery_mode.replace(PERSISTENT) {
            Some(PERSISTENT) => {}
            Some(mode) => note("delivery-mode", Field::Int(mode.into())),
            None => note("delivery-mode", Field::Void),
        }
        sealed
    }

    /// Reads a parked message. The publication is what it was, but for its expiration, of which only the rest is left.
    ///
    /// # Errors
    /// Says what is missing or unknown.
    pub(in crate::worker) fn open(sealed: &Message, now: Timestamp) -> Result<Self, String> {
        let ours = |name: &str| sealed.headers.get(&format!("{PREFIX}{name}"));
        let word = |name: &str| match ours(name) {
            Some(Field::Text(text)) => Ok(text.clone()),
            _ => Err(format!("the header {PREFIX}{name} is missing or no text")),
        };
        let number = |name: &str| match ours(name) {
            Some(Field::Int(number)) => Ok(*number),
            _ => Err(format!("the header {PREFIX}{name} is missing or no number")),
        };
        let version = number("version")?;
        if !(1..=VERSION).contains(&version) {
            return Err(format!("version {version} of a parked publication is not known to this worker"));
        }
        let role = role(&word("role")?)?;
        let address = Address { exchange: word("exchange")?, routing_key: word("routing-key")? };
        let since = Timestamp::from_millisecond(number("since")?).map_err(|error| error.to_string())?;
        let step = usize::try_from(number("step")?).unwrap_or(0);
        let mut message = sealed.clone();
        message.headers = Headers::default();
        // What the broker wrote on the way here belongs to that way. What had such a name before is restored after it.
        for (name, value) in sealed.headers.iter().filter(|(name, _)| hidden(name).is_none()) {
            match name.strip_prefix(PREFIX) {
                None => message.headers.set(name, value.clone()),
                Some(name) => {
                    if let Some(name) = shown(name) {
                        message.headers.set(name, value.clone());
                    }
                }
            }
        }
        message.properties.user_id = word("user-id").ok();
        message.properties.expiration = word("expiration").ok().map(|expiration| rest(expiration, since, now));
        match ours("delivery-mode") {
            None => {}
            Some(Field::Int(mode)) => message.properties.delivery_mode = u8::try_from(*mode).ok(),
            Some(_) => message.properties.delivery_mode = None,
        }
        let publication = Publication { address, message };
        Ok(Self { role, task_id: word("task-id").ok(), since, step, publication })
    }
}

/// What a parked message says of itself, for a person.
#[derive(Clone, Debug)]
pub struct ParkedNote {
    /// What it is for: `follow-up`, `reply`, `event`…
    pub role: &'static str,
    /// The task of the command that owes it.
    pub task_id: Option<String>,
    /// The routing key to which it is to go; through the default exchange the name of its queue.
    pub queue: String,
    /// When it was first parked.
    pub since: Timestamp,
}

impl ParkedNote {
    /// Reads a parked message.
    ///
    /// # Errors
    /// Says what is missing or unknown.
    pub fn read(message: &Message, now: Timestamp) -> Result<Self, String> {
        let Envelope { role, task_id, since, publication, .. } = Envelope::open(message, now)?;
        Ok(Self { role: text(role), task_id, queue: publication.address.routing_key, since })
    }
}

/// Returns the name under which a header travels that the broker would write or act upon itself.
fn hidden(name: &str) -> Option<String> {
    (is_trace(name) || is_routing(name)).then(|| format!("{PREFIX}header-{name}"))
}

/// Returns the name that such a header had before.
fn shown(name: &str) -> Option<&str> {
    name.strip_prefix("header-").filter(|name| is_trace(name) || is_routing(name))
}

/// Returns what is left of an expiration, in milliseconds like itself; one that is no number stays as it is.
fn rest(expiration: String, since: Timestamp, now: Timestamp) -> String {
    let waited = now.as_millisecond().saturating_sub(since.as_millisecond()).max(0);
    match expiration.parse::<i64>() {
        Ok(milliseconds) => milliseconds.saturating_sub(waited).max(0).to_string(),
        Err(_) => expiration,
    }
}

const fn text(role: Role) -> &'static str {
    match role {
        Role::FollowUp => "follow-up",
        Role::Reply => "reply",
        Role::Rest => "rest",
        Role::Part => "part",
        Role::Notice => "notice",
        Role::Event => "event",
        Role::Dead => "dead",
        Role::Delay => "delay",
    }
}

fn role(text: &str) -> Result<Role, String> {
    Ok(match text {
        "follow-up" => Role::FollowUp,
        "reply" => Role::Reply,
        "rest" => Role::Rest,
        "part" => Role::Part,
        "notice" => Role::Notice,
        "event" => Role::Event,
        "dead" => Role::Dead,
        other => return Err(format!("the role '{other}' of a parked publication is not known to this worker")),
    })
}

#[cfg(test)]
mod tests {
    use serde_json::{Value, json};

    use super::*;
    use crate::celery::message::Properties;

    /// Written by version 1; never changed, since such messages wait in brokers.
    const FIXTURE: &str = include_str!("../../../tests/fixtures/parked/version-1.json");

    fn at(milliseconds: i64) -> Timestamp {
        Timestamp::from_millisecond(milliseconds).unwrap()
    }

    fn envelope() -> Envelope {
        let headers = [
            ("task", Field::from("next.task")),
            ("CC", Field::List(vec!["copy".into()])),
            ("x-death", Field::List(Vec::new())),
            ("retries", Field::Int(2)),
            ("eta", Field::Void),
        ];
        let properties = Properties {
            content_type: Some("application/json".into()),
            correlation_id: Some("child".into()),
            priority: Some(3),
            delivery_mode: Some(1),
            expiration: Some("60000".into()),
            user_id: Some("worker".into()),
            ..Properties::default()
        };
        let headers = headers.into_iter().map(|(name, value)| (name.to_owned(), value)).collect();
        Envelope {
            role: Role::FollowUp,
            task_id: Some("id".into()),
            since: at(1_700_000_000_000),
            step: 1,
            publication: Publication {
                address: Address { exchange: "e".into(), routing_key: "k".into() },
                message: Message { properties, headers, body: "[[], {}, {}]".into() },
            },
        }
    }

    fn json_of(field: &Field) -> Value {
        match field {
            Field::Void => Value::Null,
            Field::Int(number) => json!(number),
            Field::Text(text) => json!(text),
            Field::List(fields) => fields.iter().map(json_of).collect(),
            other => panic!("{other:?}"),
        }
    }

    fn field_of(value: &Value) -> Field {
        match value {
            Value::Null => Field::Void,
            Value::Number(number) => Field::Int(number.as_i64().unwrap()),
            Value::String(text) => Field::Text(text.clone()),
            Value::Array(values) => Field::List(values.iter().map(field_of).collect()),
            other => panic!("{other}"),
        }
    }

    #[test]
    fn what_is_parked_comes_back_as_it_was_and_with_the_rest_of_its_time() {
        let envelope = envelope();
        let mut sealed = envelope.seal();
        let Properties { expiration, user_id, delivery_mode, priority, .. } = &sealed.properties;
        assert_eq!((expiration, user_id, *delivery_mode, *priority), (&None, &None, Some(2), Some(3)));
        assert!(sealed.headers.iter().all(|(name, _)| !is_trace(name) && !is_routing(name)));
        // The broker's own, from the way through a step.
        sealed.headers.set("x-death", Field::List(vec!["ours".into()]));
        sealed.headers.set("x-first-death-queue", "filestorage.parked.5000".into());
        let mut opened = Envelope::open(&sealed, envelope.since).unwrap();
        let sorted = |headers: &Headers| {
            let mut sorted: Vec<_> = headers.iter().map(|(name, value)| (name.to_owned(), value.clone())).collect();
            sorted.sort_by(|left, right| left.0.cmp(&right.0));
            Headers::from_iter(sorted)
        };
        let mut expected = envelope.clone();
        for parked in [&mut opened, &mut expected] {
            parked.publication.message.headers = sorted(&parked.publication.message.headers);
        }
        assert_eq!(opened, expected);
        for (later, left) in [(1, "59999"), (60_000, "0"), (90_000, "0"), (-5, "60000")] {
            let opened = Envelope::open(&sealed, at(1_700_000_000_000 + later)).unwrap();
            assert_eq!(opened.publication.message.properties.expiration.as_deref(), Some(left));
        }
    }

    #[test]
    fn what_has_no_delivery_mode_and_no_task_has_none_afterwards() {
        let mut envelope = envelope();
        envelope.task_id = None;
        envelope.publication.message = Message { body: "x".into(), ..Message::default() };
        assert_eq!(Envelope::open(&envelope.seal(), envelope.since), Ok(envelope));
    }

    #[test]
    fn messages_of_the_first_version_are_read_and_written() {
        let fixture: Value = serde_json::from_str(FIXTURE).unwrap();
        let headers: Headers = fixture["headers"]
            .as_object()
            .unwrap()
            .iter()
            .map(|(name, value)| (name.clone(), field_of(value)))
            .collect();
        let envelope = envelope();
        let sealed = envelope.seal();
        let written: serde_json::Map<String, Value> =
            sealed.headers.iter().map(|(name, value)| (name.to_owned(), json_of(value))).collect();
        assert_eq!(Value::Object(written), fixture["headers"]);
        let body = fixture["body"].as_str().unwrap().to_owned();
        let read = Envelope::open(&Message { headers, body: body.into(), ..sealed }, envelope.since).unwrap();
        assert_eq!((read.role, read.since, read.step), (envelope.role, envelope.since, envelope.step));
        assert_eq!(read.task_id, envelope.task_id);
        assert_eq!(read.publication.address, envelope.publication.address);
        assert_eq!(read.publication.message.properties, envelope.publication.message.properties);
        assert_eq!(read.publication.message.body, envelope.publication.message.body);
    }

    #[test]
    fn what_cannot_be_read_says_why() {
        let fault = |message: &Message| Envelope::open(message, Timestamp::UNIX_EPOCH).unwrap_err();
        assert!(fault(&Message::default()).contains("version is missing"));
        for (name, value, why) in [
            ("version", Field::Int(2), "version 2"),
            ("role", "poem".into(), "role 'poem'"),
            ("routing-key", Field::Void, "routing-key is missing"),
            ("since", "now".into(), "since is missing"),
        ] {
            let mut sealed = envelope().seal();
            sealed.headers.set(format!("{PREFIX}{name}"), value);
            assert!(fault(&sealed).contains(why), "{name}");
        }
    }
}
