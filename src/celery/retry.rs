//! The message of a task that failed and is to run again, and what it remembers of the first attempt.

use jiff::Timestamp;

use super::message::{Field, Message};
use super::republish::park;
use super::time::iso;

/// When the first attempt began, in Unix microseconds.
const FIRST_ATTEMPT: &str = "x-filestorage-first-attempt";
/// What the first attempt wrote as its identity.
const FIRST_IDENTITY: &str = "x-filestorage-first-identity";
/// The length of an identity, which is hexadecimal.
const IDENTITY: usize = 32;

/// What a retry knows of the first attempt of its command.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct FirstAttempt {
    /// When it began. What was written later is newer than the command.
    pub began: Timestamp,
    /// What it wrote as its identity.
    pub identity: String,
}

impl FirstAttempt {
    /// Reads what a message knows; `None` for a first attempt.
    #[must_use]
    pub fn of(message: &Message) -> Option<Self> {
        let Some(Field::Int(began)) = message.headers.get(FIRST_ATTEMPT) else { return None };
        if !matches!(message.headers.get("retries"), Some(Field::Int(1..))) {
            return None;
        }
        let is_identity = |text: &&str| text.len() == IDENTITY && text.bytes().all(|byte| byte.is_ascii_hexdigit());
        let identity = message.headers.text(FIRST_IDENTITY).filter(is_identity)?;
        Some(Self { began: Timestamp::from_microsecond(*began).ok()?, identity: identity.to_owned() })
    }
}

/// Tells whether a header is of a retry, and means nothing once the message is a command of its own.
pub(super) fn is_of_retry(name: &str) -> bool {
    name == FIRST_ATTEMPT || name == FIRST_IDENTITY
}

/// Returns how many retries a producer grants by the header `max_retries`; `None` where it says nothing.
#[must_use]
pub fn max_retries(message: &Message) -> Option<u32> {
    match message.headers.get("max_retries") {
        Some(Field::Int(most)) => Some(u32::try_from(*most).unwrap_or(if *most < 0 { 0 } else { u32::MAX })),
        _ => None,
    }
}

/// Creates the message of the next attempt, as Celery's `retry` does: the same task under the same id, with one retry more and a
/// time before which it does not start.
///
/// In protocol 1 both stand in the body; there the headers count, which Celery lays over the body as well.
#[must_use]
pub fn retry(message: &Message, retries: u32, eta: Timestamp, first: &FirstAttempt) -> Message {
    let mut next = park(message);
    next.headers.set("retries", Field::Int(retries.into()));
    next.headers.set("eta", Field::Text(iso(eta)));
    next.headers.set(FIRST_ATTEMPT, Field::Int(first.began.as_microsecond()));
    next.headers.set(FIRST_IDENTITY, Field::Text(first.identity.clone()));
    next
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_next_attempt_knows_the_first_one() {
        let mut message = Message { body: "[[], {}, {}]".into(), ..Message::default() };
        message.headers.set("id", "a".into());
        message.headers.set("x-death", "old".into());
        message.properties.reply_to = Some("me".to_owned());
        message.properties.expiration = Some("1".to_owned());
        assert_eq!(FirstAttempt::of(&message), None);
        let first = FirstAttempt {
            began: "2026-01-02T03:04:05.000006Z".parse().unwrap(),
            identity: "0123456789abcdef".repeat(2),
        };
        let next = retry(&message, 2, "2026-01-02T03:05:00Z".parse().unwrap(), &first);
        assert_eq!(FirstAttempt::of(&next), Some(first));
        assert_eq!(next.headers.get("retries"), Some(&Field::Int(2)));
        assert_eq!(next.headers.text("eta"), Some("2026-01-02T03:05:00.000000+00:00"));
        assert_eq!((next.headers.text("id"), next.headers.get("x-death")), (Some("a"), None));
        assert_eq!((next.properties.reply_to.as_deref(), next.properties.expiration), (Some("me"), None));
        assert_eq!(next.body, message.body);
    }

    #[test]
    fn a_producer_may_say_how_many_retries_there_are() {
        let with = |value| {
            let mut message = Message::default();
            message.headers.set("max_retries", value);
            max_retries(&message)
        };
        assert_eq!(max_retries(&Message::default()), None);
        assert_eq!(with(Field::Int(7)), Some(7));
        assert_eq!(with(Field::Int(-1)), Some(0));
        assert_eq!(with(Field::Void), None);
        assert_eq!(with("7".into()), None);
    }
}
