//! What tells one command from every other: an id alone does not, since people use ids again and anybody can choose one.

use std::fmt;

use aws_lc_rs::digest::{Context, SHA256};

use crate::broker::DELAY_PREFIX;
use crate::celery::message::{Field, Message};
use crate::celery::{replays, request};

/// The first 128 bits of a SHA-256.
#[derive(Clone, Copy, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub(in crate::worker) struct Digest([u8; 16]);

impl Digest {
    /// Computes the digest of bytes.
    fn of(bytes: &[u8]) -> Self {
        let mut context = Context::new(&SHA256);
        context.update(bytes);
        Self::finish(context)
    }

    fn finish(context: Context) -> Self {
        let mut first = [0; 16];
        first.copy_from_slice(&context.finish().as_ref()[..16]);
        Self(first)
    }

    /// Computes what stands for an entry in a journal of the earlier version, which was an id alone, or one with the
    /// broker's stamp and the body's CRC32C. It equals no digest of an identity.
    pub(super) fn earlier(entry: &str) -> Self {
        Self::of(format!("earlier\0{entry}").as_bytes())
    }

    /// Reads 32 hexadecimal digits.
    pub(super) fn parse(text: &str) -> Option<Self> {
        if text.len() != 32 || !text.bytes().all(|byte| byte.is_ascii_hexdigit()) {
            return None;
        }
        u128::from_str_radix(text, 16).ok().map(|number| Self(number.to_be_bytes()))
    }
}

impl fmt::Display for Digest {
    fn fmt(&self, formatter: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(formatter, "{:032x}", u128::from_be_bytes(self.0))
    }
}

impl fmt::Debug for Digest {
    fn fmt(&self, formatter: &mut fmt::Formatter<'_>) -> fmt::Result {
        fmt::Display::fmt(self, formatter)
    }
}

/// The identity of a command: id, task, retries, body, how often it was replayed from the dead queue, and the broker's stamp
/// where there is one.
///
/// A replay is a command of its own: neither the crashes nor the answers of the earlier one are its own.
/// It is told by headers and the body as it came, before anything is decoded. Of protocol 1, whose names stand in the
/// body, the body's digest says it all.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(in crate::worker) struct Identity {
    /// Stands for all of it.
    pub(in crate::worker) digest: Digest,
    /// Task id; empty when only the body names it.
    pub(super) id: Box<str>,
    /// Task name; empty when only the body names it.
    pub(super) task: Box<str>,
    pub(super) retries: i64,
    /// Digest of the body.
    pub(super) body: Digest,
    /// When the broker took it in, in Unix milliseconds; else its `eta`.
    pub(in crate::worker) stamp: Option<i64>,
    /// It comes from a delay queue, where it may have been twice.
    pub(in crate::worker) may_be_doubled: bool,
    /// What stands for it in journals of the earlier version, where there are any.
    pub(super) earlier: Option<Digest>,
}

impl Identity {
    /// Tells the identity of a message. `earlier`: there are journals of the earlier version.
    pub(in crate::worker) fn of(message: &Message, earlier: bool) -> Self {
        let peek = request::peek(message);
        let (id, task) = (peek.id.unwrap_or_default(), peek.task.unwrap_or_default());
        let retries = match message.headers.get("retries") {
            Some(Field::Int(retries)) => *retries,
            _ => 0,
        };
        // Also of the message as it came first: it may come again beside its copy from a delay queue.
        let stamp = message.stamp().or_else(|| message.eta().map(jiff::Timestamp::as_millisecond));
        let body = Digest::of(&message.body);
        let mut context = Context::new(&SHA256);
        for text in [id, task] {
            context.update(&(text.len() as u64).to_be_bytes());
            context.update(text.as_bytes());
        }
        context.update(&retries.to_be_bytes());
        context.update(&body.0);
        if let Some(stamp) = stamp {
            context.update(&stamp.to_be_bytes());
        }
        let replays = replays(message);
        if replays > 0 {
            context.update(b"replays");
            context.update(&replays.to_be_bytes());
        }
        // The earlier version knew the broker's stamp only.
        let earlier = (earlier && replays == 0).then(|| match message.stamp() {
            Some(stamp) => Digest::earlier(&format!("{id}@{stamp}.{:08x}", crc32c::crc32c(&message.body))),
            None => Digest::earlier(id),
        });
        let may_be_doubled = was_delayed(message) && message.eta().is_some();
        Self {
            digest: Digest::finish(context),
            id: id.into(),
            task: task.into(),
            retries,
            body,
            stamp,
            earlier,
            may_be_doubled,
        }
    }
}

/// Tells whether a message comes from a delay queue of ours.
///
/// A message is published to a delay queue and then acknowledged where it came from. A worker or broker that ends between the two
/// leaves two of it. The `eta` tells them from another command of the same id and body.
pub(in crate::worker) fn was_delayed(message: &Message) -> bool {
    message.headers.text("x-first-death-queue").is_some_and(|queue| queue.starts_with(DELAY_PREFIX))
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::celery::message::Headers;

    fn message(id: &str, task: &str, retries: i64, body: &str, stamp: Option<i64>) -> Message {
        let mut headers: Headers = [("id", Field::from(id)), ("task", Field::from(task))]
            .into_iter()
            .map(|(name, value)| (name.to_owned(), value))
            .collect();
        headers.set("retries", Field::Int(retries));
        if let Some(stamp) = stamp {
            headers.set("timestamp_in_ms", Field::Int(stamp));
        }
        Message { headers, body: body.to_owned().into(), ..Message::default() }
    }

    #[test]
    fn every_part_tells() {
        let all = [
            message("a", "t", 0, "x", None),
            message("b", "t", 0, "x", None),
            message("a", "u", 0, "x", None),
            message("a", "t", 1, "x", None),
            message("a", "t", 0, "y", None),
            message("a", "t", 0, "x", Some(1)),
            message("a", "t", 0, "x", Some(2)),
            message("at", "", 0, "x", None),
            message("", "at", 0, "x", None),
        ];
        let mut all = all.to_vec();
        all.extend([1, 2].map(|replays| {
            let mut replayed = message("a", "t", 0, "x", None);
            replayed.headers.set(crate::celery::REPLAYS, Field::Int(replays));
            replayed
        }));
        let digests: std::collections::BTreeSet<_> =
            all.iter().map(|message| Identity::of(message, false).digest).collect();
        assert_eq!(digests.len(), all.len());
        for message in &all {
            assert_eq!(Identity::of(message, true).digest, Identity::of(&message.clone(), false).digest);
        }
    }

    #[test]
    fn a_digest_is_the_beginning_of_a_sha_256_in_hexadecimal() {
        let digest = Digest::of(b"abc");
        assert_eq!(digest.to_string(), "ba7816bf8f01cfea414140de5dae2223");
        assert_eq!(Digest::parse(&digest.to_string()), Some(digest));
        for text in ["", "ba7816bf8f01cfea414140de5dae222", "+a7816bf8f01cfea414140de5dae2223", "nightly"] {
            assert_eq!(Digest::parse(text), None, "{text}");
        }
    }

    #[test]
    fn what_the_earlier_version_wrote_is_found_under_the_id_or_the_id_with_its_stamp() {
        let plain = Identity::of(&message("a", "t", 0, "x", None), true);
        assert_eq!(plain.earlier, Some(Digest::earlier("a")));
        let stamped = Identity::of(&message("a", "t", 0, "123456789", Some(5)), true);
        assert_eq!(stamped.earlier, Some(Digest::earlier("a@5.e3069283")));
    }
}
