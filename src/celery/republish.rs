//! Copies a message for publishing it again: into a delay queue, or into the dead queue.

use jiff::Timestamp;

use super::error::Exception;
use super::fit::{AddedHeaders, fit};
use super::message::{Address, Field, Headers, Message, Origin, Publication};

/// Tells whether the broker wrote this header; in the copy, it would be taken for a record of the copy's own way.
#[must_use]
pub fn is_trace(name: &str) -> bool {
    name == "x-death"
        || name.starts_with("x-first-death-")
        || name.starts_with("x-last-death-")
        || matches!(name, "x-delivery-count" | "x-acquired-count")
}

/// Tells whether the broker acts upon this header when the copy is published, and would deliver it to further queues.
#[must_use]
pub fn is_routing(name: &str) -> bool {
    matches!(name, "CC" | "BCC")
}

/// Creates the copy of a message for a delay queue, from which it is delivered again later.
///
/// Body, headers and properties stay, with these exceptions. The `x-death` headers are removed, which the broker wrote.
/// `CC` and `BCC` are removed, since each copy would reach those queues again. `user_id` is removed, since the broker
/// refuses the name of another user. `expiration` is removed, since a time to live would end the delay early; the
/// `expires` header counts instead.
#[must_use]
pub fn park(message: &Message) -> Message {
    let mut parked = message.clone();
    parked.headers = kept(&message.headers, |name| !is_trace(name) && !is_routing(name));
    parked.properties.user_id = None;
    parked.properties.expiration = None;
    parked
}

fn kept(headers: &Headers, keep: impl Fn(&str) -> bool) -> Headers {
    headers.iter().filter(|(name, _)| keep(name)).map(|(name, value)| (name.to_owned(), value.clone())).collect()
}

/// The reason for which a message was given up, with time and worker.
#[derive(Clone, Copy, Debug)]
pub struct Death<'a> {
    /// The reason in one word, for tools: `not-registered`, `content-disallowed`, `crashed`…
    pub reason: &'a str,
    /// The exception with which the command was answered, or would have been.
    pub exception: &'a Exception,
    /// The time at which the message was given up.
    pub at: Timestamp,
    /// The node name of the worker that gave the message up.
    pub worker: &'a str,
}

/// The beginning of the names of all headers that this program adds to a dead copy.
pub(super) const DEAD_PREFIX: &str = "x-filestorage-dead-";

/// The reason of dead copies of publications that could not be delivered.
pub const UNDELIVERABLE: &str = "undeliverable";

/// The headers that this program adds to a dead copy.
const ADDED: AddedHeaders<'_> = AddedHeaders {
    names: &[
        "x-filestorage-dead-reason",
        "x-filestorage-dead-exception",
        "x-filestorage-dead-at",
        "x-filestorage-dead-worker",
        "x-filestorage-dead-queue",
        "x-filestorage-dead-exchange",
        "x-filestorage-dead-routing-key",
        "x-filestorage-dead-redelivered",
        "x-filestorage-dead-user-id",
        "x-filestorage-dead-expiration",
        "x-filestorage-dead-delivery-mode",
    ],
    text: "x-filestorage-dead-exception",
    cut: "x-filestorage-dead-cut",
};

/// Creates the copy of a message for the dead queue `queue`: the original, and headers that say what happened to it.
///
/// The added headers are `x-filestorage-dead-reason`, `-exception` (as Python shows it), `-at` (ISO 8601), `-worker`, and
/// for the delivery `-queue`, `-exchange`, `-routing-key` and `-redelivered`. Properties and headers upon which the broker
/// would act become plain headers: `-user-id`, `-expiration`, `-delivery-mode`, `-cc`, `-bcc`, and `-x-death` and the like
/// for the headers that the broker wrote.
///
/// When the original headers leave no room for the added ones in a frame of `frame_max` bytes, they are cut, the largest
/// first, and `-cut` names them. So any message can be copied.
#[must_use]
pub fn dead(message: &Message, origin: &Origin, death: &Death<'_>, queue: &str, frame_max: usize) -> Publication {
    let mut copy = message.clone();
    copy.headers = message
        .headers
        .iter()
        // When a copy was replayed and is given up again, its headers describe the last time only.
        .filter(|(name, _)| !name.starts_with(DEAD_PREFIX))
        .map(|(name, value)| {
            let name = match name {
                "CC" => format!("{DEAD_PREFIX}cc"),
                "BCC" => format!("{DEAD_PREFIX}bcc"),
                trace if is_trace(trace) => format!("{DEAD_PREFIX}{trace}"),
                other => other.to_owned(),
            };
            (name, value.clone())
        })
        .collect();
    let mut note = |name: &str, value: Field| copy.headers.set(format!("{DEAD_PREFIX}{name}"), value);
    note("reason", death.reason.into());
    // All headers share one frame with the original ones, so a very long name in the exception must not take that space again.
    note("exception", death.exception.to_string().chars().take(1024).collect::<String>().into());
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
    fit(&mut copy, frame_max, ADDED);
    Publication { address: Address::queue(queue), message: copy }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::celery::message::Properties;

    fn delivered() -> Message {
        Message {
            properties: Properties {
                user_id: Some("producer".to_owned()),
                expiration: Some("1000".to_owned()),
                delivery_mode: Some(1),
                priority: Some(5),
                reply_to: Some("client".to_owned()),
                ..Properties::default()
            },
            headers: [
                ("task", Field::from("filestorage.store")),
                ("x-death", Field::List(Vec::new())),
                ("x-first-death-queue", "q".into()),
                ("x-last-death-reason", "expired".into()),
                ("x-delivery-count", Field::Int(3)),
                ("CC", Field::List(vec!["other".into()])),
                ("x-mine", Field::Int(1)),
            ]
            .into_iter()
            .map(|(name, value)| (name.to_owned(), value))
            .collect(),
            body: "body".into(),
        }
    }

    #[test]
    fn a_parked_message_is_fresh() {
        let original = delivered();
        let parked = park(&original);
        assert_eq!(parked.headers.iter().map(|(name, _)| name).collect::<Vec<_>>(), ["task", "x-mine"]);
        assert_eq!(parked.properties.user_id, None);
        assert_eq!(parked.properties.expiration, None);
        assert_eq!(parked.properties.reply_to, original.properties.reply_to);
        assert_eq!(parked.properties.delivery_mode, Some(1));
        assert_eq!(parked.body, original.body);
    }

    #[test]
    fn a_dead_copy_fits_whatever_came() {
        let exception = Exception::not_registered("n".repeat(300_000));
        let long = "q".repeat(255);
        let origin =
            Origin { queue: long.clone(), exchange: long.clone(), routing_key: long.clone(), redelivered: true };
        let death = Death { reason: "not-registered", exception: &exception, at: Timestamp::UNIX_EPOCH, worker: &long };
        for name in ["x-large", "CC", "BCC", "x-death", "task", "x-filestorage-dead-mine"] {
            let mut came = delivered();
            came.properties.user_id = Some(long.clone());
            came.headers.set(name, Field::List(vec!["x".repeat(129_500).into()]));
            for frame_max in [4096, 131_072] {
                let copy = dead(&came, &origin, &death, "filestorage.dead", frame_max).message;
                assert!(copy.header_frame() <= frame_max, "{name}: {} in {frame_max}", copy.header_frame());
                for ours in ADDED.names.iter().filter(|ours| !ours.ends_with("expiration")) {
                    assert!(copy.headers.get(ours).is_some(), "{name}: {ours}");
                }
                assert_eq!(copy.body, came.body);
            }
        }
    }

    #[test]
    fn a_dead_copy_says_what_happened() {
        let exception = Exception::not_registered("filestorage.nope");
        let origin = Origin {
            queue: "filestorage".to_owned(),
            exchange: "tx".to_owned(),
            routing_key: "files.all".to_owned(),
            redelivered: true,
        };
        let death = Death { reason: "not-registered", exception: &exception, at: Timestamp::UNIX_EPOCH, worker: "w@h" };
        let copy = dead(&delivered(), &origin, &death, "filestorage.dead", 131_072);
        assert_eq!(copy.address, Address::queue("filestorage.dead"));
        let properties = &copy.message.properties;
        assert_eq!((properties.delivery_mode, properties.priority), (Some(2), Some(5)));
        assert_eq!((&properties.user_id, &properties.expiration), (&None, &None));
        let headers = &copy.message.headers;
        for (name, value) in [
            ("reason", "not-registered"),
            ("exception", "NotRegistered('filestorage.nope')"),
            ("at", "1970-01-01T00:00:00.000000+00:00"),
            ("worker", "w@h"),
            ("queue", "filestorage"),
            ("exchange", "tx"),
            ("routing-key", "files.all"),
            ("user-id", "producer"),
            ("expiration", "1000"),
            ("x-first-death-queue", "q"),
        ] {
            assert_eq!(headers.text(&format!("x-filestorage-dead-{name}")), Some(value), "{name}");
        }
        assert_eq!(headers.get("x-filestorage-dead-delivery-mode"), Some(&Field::Int(1)));
        assert!(headers.get("x-filestorage-dead-cc").is_some() && headers.get("x-filestorage-dead-x-death").is_some());
        for name in ["CC", "x-death", "x-delivery-count"] {
            assert_eq!(headers.get(name), None, "{name}");
        }
        assert_eq!(headers.get("x-mine"), Some(&Field::Int(1)));

        // A copy that is replayed and given up again describes the last time only.
        let again = Death { reason: "crashed", ..death };
        let copy = dead(&copy.message, &origin, &again, "filestorage.dead", 131_072);
        assert_eq!(copy.message.headers.text("x-filestorage-dead-reason"), Some("crashed"));
    }
}
