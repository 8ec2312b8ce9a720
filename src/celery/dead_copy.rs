//! Reads the copies in the dead queue, and makes of a copy the message that it was.

use aws_lc_rs::digest::{Context, SHA256};
use jiff::Timestamp;

use super::message::{Address, Field, Headers, Message, Publication};
use super::republish::{DEAD_PREFIX, UNDELIVERABLE, is_trace};
use super::request;
use super::retry::is_of_retry;
use crate::instant;

/// The header that counts how often a message was replayed from the dead queue.
///
/// It belongs to the message: its next dead copy has it, too, and a replayed command is another one for the journal.
pub const REPLAYS: &str = "x-filestorage-replays";

/// The number of digits of a fingerprint.
const FINGERPRINT: usize = 12;

/// Tells how often a message was replayed from the dead queue; 0 when the header is absent or no number.
#[must_use]
pub fn replays(message: &Message) -> u32 {
    match message.headers.get(REPLAYS) {
        Some(Field::Int(count)) => u32::try_from(*count).unwrap_or(0),
        _ => 0,
    }
}

/// The headers of a dead copy that say what happened to the message.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct DeadCopy {
    /// 12 hexadecimal digits that tell this copy from others of the same task id.
    pub fingerprint: String,
    /// The task id, when a header or property has it.
    pub id: Option<String>,
    /// The name of the task, when a header has it.
    pub task: Option<String>,
    /// The reason in one word.
    pub reason: Option<String>,
    /// The exception as Python shows it.
    pub exception: Option<String>,
    /// The time at which the message was given up.
    pub at: Option<Timestamp>,
    /// The node name of the worker that gave the message up.
    pub worker: Option<String>,
    /// The queue from which the message came, or to which it was to go.
    pub queue: Option<String>,
    /// The exchange to which the message was published.
    pub exchange: Option<String>,
    /// The routing key of that publication.
    pub routing_key: Option<String>,
    /// Tells whether the message was delivered before.
    pub redelivered: bool,
    /// The number of replays so far, each of which failed.
    pub replays: u32,
    /// The names of the headers and properties that did not fit into the copy.
    pub cut: Option<String>,
}

/// The reason why a dead copy cannot be replayed.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum NotReplayable {
    /// The copy does not say where the message came from.
    #[error(
        "its headers do not say where it came from, so somebody else put it there; publish it yourself, or drop it"
    )]
    Foreign,
    /// Parts of the message are missing.
    #[error("the copy is not whole, these headers did not fit: {0}; replay it without them with --force")]
    Cut(String),
}

impl DeadCopy {
    /// Reads the headers of a copy. Whatever is absent or of another type stays empty.
    #[must_use]
    pub fn read(message: &Message) -> Self {
        let text = |name: &str| message.headers.text(&format!("{DEAD_PREFIX}{name}")).map(str::to_owned);
        let peek = request::peek(message);
        let mut copy = Self {
            fingerprint: String::new(),
            id: peek.id.map(str::to_owned),
            task: peek.task.map(str::to_owned),
            reason: text("reason"),
            exception: text("exception"),
            at: text("at").and_then(|at| instant::read(&at)),
            worker: text("worker"),
            queue: text("queue"),
            exchange: text("exchange"),
            routing_key: text("routing-key"),
            redelivered: message.headers.get(&format!("{DEAD_PREFIX}redelivered")) == Some(&Field::Bool(true)),
            replays: replays(message),
            cut: text("cut"),
        };
        copy.fingerprint = copy.digest(message);
        copy
    }

    /// Returns the name of the exception without its arguments.
    #[must_use]
    pub fn exception_type(&self) -> Option<&str> {
        self.exception.as_deref().map(|shown| shown.split('(').next().unwrap_or(shown))
    }

    /// Returns the address to which the message is replayed; `None` when the headers do not say it.
    ///
    /// What came from a queue goes to that queue alone: its exchange would also deliver it to other queues, which had it. What
    /// never reached its destination is published as it was.
    #[must_use]
    pub fn destination(&self) -> Option<Address> {
        if self.is_undelivered() {
            let exchange = self.exchange.clone()?;
            let routing_key = self.routing_key.clone()?;
            if !exchange.is_empty() || !routing_key.is_empty() {
                return Some(Address { exchange, routing_key });
            }
        }
        self.queue.clone().filter(|queue| !queue.is_empty()).map(Address::queue)
    }

    fn is_undelivered(&self) -> bool {
        self.reason.as_deref() == Some(UNDELIVERABLE)
    }

    fn digest(&self, message: &Message) -> String {
        let mut context = Context::new(&SHA256);
        let at = message.headers.text(&format!("{DEAD_PREFIX}at"));
        let texts = [&self.id, &self.task, &self.reason, &self.worker, &self.queue, &self.exchange, &self.routing_key];
        for text in texts.map(Option::as_deref).into_iter().chain([at]) {
            let text = text.unwrap_or_default();
            context.update(&(text.len() as u64).to_be_bytes());
            context.update(text.as_bytes());
        }
        context.update(&self.replays.to_be_bytes());
        context.update(&message.body);
        let digest = context.finish();
        let mut digits: String =
            digest.as_ref().iter().take(FINGERPRINT / 2).map(|byte| format!("{byte:02x}")).collect();
        digits.truncate(FINGERPRINT);
        digits
    }
}

/// Makes of a dead copy the message that it was, for publishing it again.
///
/// Headers and properties are restored with these exceptions. `user_id` stays away, since the broker refuses the name of
/// another user. `expiration` stays away, since the time has passed. Headers that the broker wrote are removed. `CC` and
/// `BCC` are restored only for what never reached its destination; the other queues of a delivered message had it.
/// [`REPLAYS`] is counted up.
///
/// # Errors
///
/// [`NotReplayable::Foreign`] when the copy does not say where it came from; [`NotReplayable::Cut`] when parts of it are
/// missing, unless `force`.
pub fn replay(message: &Message, force: bool) -> Result<Publication, NotReplayable> {
    let copy = DeadCopy::read(message);
    let address = copy.destination().ok_or(NotReplayable::Foreign)?;
    if let Some(cut) = copy.cut.as_ref().filter(|_| !force) {
        return Err(NotReplayable::Cut(cut.clone()));
    }
    let mut fresh = message.clone();
    let restored = |name: &str| match name {
        "cc" if copy.is_undelivered() => Some("CC"),
        "bcc" if copy.is_undelivered() => Some("BCC"),
        _ => None,
    };
    let mut headers = Headers::default();
    for (name, value) in message.headers.iter() {
        match name.strip_prefix(DEAD_PREFIX) {
            Some(name) => {
                if let (Some(name), Field::List(_)) = (restored(name), value) {
                    headers.set(name, value.clone());
                }
            }
            None if is_trace(name) || is_of_retry(name) => {}
            None => headers.set(name, value.clone()),
        }
    }
    headers.set(REPLAYS, Field::Int(i64::from(copy.replays.saturating_add(1))));
    fresh.headers = headers;
    if let Some(Field::Int(mode)) = message.headers.get(&format!("{DEAD_PREFIX}delivery-mode")) {
        fresh.properties.delivery_mode = u8::try_from(*mode).ok().or(fresh.properties.delivery_mode);
    }
    fresh.properties.user_id = None;
    fresh.properties.expiration = None;
    Ok(Publication { address, message: fresh })
}

/// Makes of a dead copy the same one for the end of the dead queue, without the headers that the broker wrote.
#[must_use]
pub fn moved(message: &Message) -> Message {
    let mut moved = message.clone();
    moved.headers.retain(|name| !is_trace(name));
    moved.properties.user_id = None;
    moved.properties.expiration = None;
    moved
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::celery::error::Exception;
    use crate::celery::message::{Origin, Properties};
    use crate::celery::republish::{Death, dead};

    fn original() -> Message {
        let headers = [
            ("task", Field::from("filestorage.store")),
            ("id", "one".into()),
            ("CC", Field::List(vec!["other".into()])),
            ("x-death", Field::List(Vec::new())),
            ("x-delivery-count", Field::Int(3)),
            ("x-mine", Field::Int(1)),
        ];
        Message {
            properties: Properties {
                user_id: Some("producer".to_owned()),
                expiration: Some("1000".to_owned()),
                delivery_mode: Some(1),
                reply_to: Some("client".to_owned()),
                ..Properties::default()
            },
            headers: headers.into_iter().map(|(name, value)| (name.to_owned(), value)).collect(),
            body: "body".into(),
        }
    }

    fn died(message: &Message, reason: &str, exchange: &str) -> Message {
        let exception = Exception::not_registered("filestorage.nope");
        let origin = Origin {
            queue: "filestorage".to_owned(),
            exchange: exchange.to_owned(),
            routing_key: "files.all".to_owned(),
            redelivered: true,
        };
        let death = Death { reason, exception: &exception, at: Timestamp::UNIX_EPOCH, worker: "w@h" };
        dead(message, &origin, &death, "filestorage.dead", 131_072).message
    }

    #[test]
    fn a_copy_says_what_happened() {
        let copy = DeadCopy::read(&died(&original(), "not-registered", "tx"));
        assert_eq!(copy.exception_type(), Some("NotRegistered"));
        assert_eq!((copy.id.as_deref(), copy.task.as_deref()), (Some("one"), Some("filestorage.store")));
        assert_eq!((copy.at, copy.redelivered, copy.replays), (Some(Timestamp::UNIX_EPOCH), true, 0));
        assert_eq!((copy.queue.as_deref(), copy.exchange.as_deref()), (Some("filestorage"), Some("tx")));
        assert_eq!(copy.fingerprint.len(), FINGERPRINT);
        assert_eq!(DeadCopy::read(&Message::default()).reason, None);
    }

    #[test]
    fn a_replay_is_the_original_once_more() {
        let Publication { address, message } = replay(&died(&original(), "not-registered", "tx"), false).unwrap();
        assert_eq!(address, Address::queue("filestorage"), "its other queues had it");
        let names: Vec<&str> = message.headers.iter().map(|(name, _)| name).collect();
        assert_eq!(names, ["task", "id", "x-mine", REPLAYS]);
        assert_eq!(message.headers.get(REPLAYS), Some(&Field::Int(1)));
        let Properties { user_id, expiration, delivery_mode, reply_to, .. } = message.properties;
        assert_eq!((user_id, expiration, delivery_mode), (None, None, Some(1)));
        assert_eq!((reply_to.as_deref(), &message.body[..]), (Some("client"), &b"body"[..]));
    }

    #[test]
    fn what_never_arrived_goes_where_it_was_to_go() {
        let Publication { address, message } = replay(&died(&original(), UNDELIVERABLE, "tx"), false).unwrap();
        assert_eq!(address, Address { exchange: "tx".to_owned(), routing_key: "files.all".to_owned() });
        assert_eq!(message.headers.get("CC"), Some(&Field::List(vec!["other".into()])));
    }

    #[test]
    fn the_count_of_replays_survives_the_next_death() {
        let mut message = original();
        for expected in 1..=3 {
            message = replay(&died(&message, "crashed", ""), false).unwrap().message;
            assert_eq!(replays(&message), expected);
            assert_eq!(DeadCopy::read(&died(&message, "crashed", "")).replays, expected);
        }
    }

    #[test]
    fn copies_of_one_id_are_told_apart() {
        let first = died(&original(), "crashed", "");
        let again = died(&replay(&first, false).unwrap().message, "crashed", "");
        let mut other = first.clone();
        other.body = "other".into();
        let mut looked_at = first.clone();
        looked_at.headers.set("x-delivery-count", Field::Int(7));
        let of = |message: &Message| DeadCopy::read(message).fingerprint;
        assert_ne!(of(&first), of(&again));
        assert_ne!(of(&first), of(&other));
        assert_eq!(of(&first), of(&looked_at), "a look changes nothing");
        assert_eq!(of(&first), of(&moved(&looked_at)));
    }

    #[test]
    fn what_is_foreign_or_cut_is_not_replayed_by_itself() {
        assert_eq!(replay(&original(), true).unwrap_err(), NotReplayable::Foreign);
        let mut large = original();
        large.headers.set("x-large", "x".repeat(200_000).into());
        let copy = died(&large, "not-registered", "");
        let NotReplayable::Cut(cut) = replay(&copy, false).unwrap_err() else { panic!() };
        assert!(cut.contains("x-large"), "{cut}");
        let forced = replay(&copy, true).unwrap().message;
        assert_eq!((forced.headers.get("x-large"), forced.headers.text("id")), (None, Some("one")));
    }
}
