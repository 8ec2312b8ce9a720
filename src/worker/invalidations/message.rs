//! What workers tell each other of changed keys: the form of a message, and what its receiver does.

use std::collections::{HashMap, HashSet};

use bytes::Bytes;
use serde::{Deserialize, Serialize};

use crate::commands::{Cache, Key};

/// The form of this version.
const VERSION: u32 = 1;
/// Bytes of the keys in one message, about.
const MESSAGE: usize = 64 << 10;
/// Bytes of a message at most; a key has up to six in JSON for each of its own.
const LONGEST_MESSAGE: usize = 1 << 20;
/// Keys that wait at most, and their bytes: beyond, everything counts as changed.
const MOST_KEYS: usize = 10_000;
const MOST_BYTES: usize = 1 << 20;
/// Workers whose numbers are remembered; beyond, all are forgotten.
const MOST_WORKERS: usize = 1_000;
/// Bytes of a worker's name at most.
const LONGEST_NAME: usize = 64;

/// A message as it is written.
#[derive(Debug, Serialize, Deserialize)]
struct Wire {
    version: u32,
    /// The process that sends it: random, and another after a restart.
    worker: String,
    /// Counts the messages of this process from 0, so that a gap shows.
    number: u64,
    /// The changed keys; none in a message that only says that its sender is there.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    keys: Option<Vec<String>>,
    /// Any key may have changed.
    #[serde(default, skip_serializing_if = "std::ops::Not::not")]
    all: bool,
    /// The sender listens from now on, and wants to know the numbers of the others.
    #[serde(default, skip_serializing_if = "std::ops::Not::not")]
    hello: bool,
}

/// Which cached values are old.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(in crate::worker) enum Stale {
    /// Those of these keys.
    Keys(HashSet<Key>),
    /// All.
    All,
}

impl Default for Stale {
    fn default() -> Self {
        Self::Keys(HashSet::new())
    }
}

impl Stale {
    /// Tells whether it is none.
    pub(in crate::worker) fn is_none(&self) -> bool {
        matches!(self, Self::Keys(keys) if keys.is_empty())
    }

    /// Drops it from this worker's own cache.
    pub(in crate::worker) fn drop_from(&self, cache: &Cache) {
        match self {
            Self::Keys(keys) => keys.iter().for_each(|key| cache.drop_key(key)),
            Self::All => {
                cache.clear();
            }
        }
    }

    /// Adds others; too many keys become all.
    pub(super) fn add(&mut self, other: Self) {
        match (&mut *self, other) {
            (Self::Keys(keys), Self::Keys(more)) => {
                keys.extend(more);
                // A key has 1,024 bytes at most, so the sum matters for many only.
                let may_be_much = keys.len() > MOST_BYTES / 1_024;
                let is_much = || keys.iter().map(|key| key.as_str().len()).sum::<usize>() > MOST_BYTES;
                if keys.len() > MOST_KEYS || may_be_much && is_much() {
                    *self = Self::All;
                }
            }
            (Self::All, _) => {}
            (_, Self::All) => *self = Self::All,
        }
    }

    /// Writes the messages that say it; one that says only that the sender is there where it is none.
    pub(super) fn write(&self, worker: &str, first: u64, hello: bool) -> Vec<Bytes> {
        let mut parts = vec![Vec::new()];
        let mut bytes = 0;
        if let Self::Keys(keys) = self {
            for key in keys {
                bytes += key.as_str().len();
                if bytes > MESSAGE {
                    bytes = key.as_str().len();
                    parts.push(Vec::new());
                }
                if let Some(part) = parts.last_mut() {
                    part.push(key.as_str().to_owned());
                }
            }
        }
        let all = *self == Self::All;
        let wires = parts.into_iter().enumerate().map(|(place, keys)| {
            let (version, worker, keys) = (VERSION, worker.to_owned(), (!all).then_some(keys));
            let number = first.saturating_add(place as u64);
            serde_json::to_vec(&Wire { version, worker, number, keys, all, hello }).unwrap_or_default().into()
        });
        wires.collect()
    }
}

/// Reads what other workers say.
#[derive(Debug)]
pub(super) struct Receiver {
    own: String,
    /// The number after the last one of each other worker.
    next: HashMap<String, u64>,
    /// The number after the last one of this worker's own that came back.
    pub(super) own_next: u64,
    /// Somebody wants to know this worker's number.
    pub(super) is_asked: bool,
    has_complained: bool,
}

impl Receiver {
    pub(super) fn new(own: &str) -> Self {
        Self { own: own.to_owned(), next: HashMap::new(), own_next: 0, is_asked: false, has_complained: false }
    }

    /// Takes one message and returns what is old by it.
    ///
    /// All is after a gap in the numbers of a worker, also before the first message heard of it, and after a message that
    /// cannot be read.
    pub(super) fn take(&mut self, body: &[u8]) -> Stale {
        let (Wire { worker, number, hello, .. }, stale) = match read(body) {
            Ok(read) => read,
            Err(why) => {
                if !std::mem::replace(&mut self.has_complained, true) {
                    let bytes = body.len();
                    tracing::warn!(
                        why,
                        bytes,
                        "a message of changed keys cannot be read, so the cache is emptied; further ones are not logged"
                    );
                }
                return Stale::All;
            }
        };
        if worker == self.own {
            self.own_next = self.own_next.max(number.saturating_add(1));
            return Stale::default();
        }
        self.is_asked |= hello;
        if self.next.len() >= MOST_WORKERS && !self.next.contains_key(&worker) {
            self.next.clear();
        }
        let next = self.next.entry(worker).or_default();
        let is_gap = number > *next;
        *next = (*next).max(number.saturating_add(1));
        if is_gap { Stale::All } else { stale }
    }
}

fn read(body: &[u8]) -> Result<(Wire, Stale), &'static str> {
    if body.len() > LONGEST_MESSAGE {
        return Err("too long");
    }
    let mut wire: Wire = serde_json::from_slice(body).map_err(|_| "not of the known form")?;
    if wire.version != VERSION {
        return Err("of another version");
    }
    if wire.worker.len() > LONGEST_NAME {
        return Err("the worker's name is too long");
    }
    let stale = match (wire.keys.take(), wire.all) {
        (None, true) => Stale::All,
        (Some(keys), false) => {
            let keys = keys.iter().map(|key| Key::parse(key)).collect::<Result<_, _>>();
            Stale::Keys(keys.map_err(|_| "a key is none")?)
        }
        _ => return Err("neither keys nor all"),
    };
    Ok((wire, stale))
}

#[cfg(test)]
mod tests {
    use super::*;

    fn keys(names: &[&str]) -> Stale {
        Stale::Keys(names.iter().map(|name| Key::parse(name).unwrap()).collect())
    }

    fn wire(worker: &str, number: u64, stale: &Stale) -> Bytes {
        stale.write(worker, number, false).remove(0)
    }

    #[test]
    fn a_message_says_what_was_written() {
        assert_eq!(
            wire("w", 7, &keys(&["a/é\"b"])),
            r#"{"version":1,"worker":"w","number":7,"keys":["a/é\"b"]}"#.as_bytes()
        );
        assert_eq!(wire("w", 0, &Stale::All), br#"{"version":1,"worker":"w","number":0,"all":true}"#.as_slice());
        for stale in [Stale::default(), keys(&["a", "b/c"]), Stale::All] {
            let mut receiver = Receiver::new("me");
            assert_eq!(receiver.take(&wire("w", 0, &stale)), stale);
            assert!(!receiver.has_complained);
        }
    }

    #[test]
    fn many_keys_are_several_messages_and_too_many_are_all() {
        let long = "k".repeat(1_000);
        let mut stale = Stale::default();
        for number in 0..500 {
            stale.add(keys(&[&format!("{long}{number}")]));
        }
        let messages = stale.write("w", 3, false);
        assert!(messages.len() > 5 && messages.iter().all(|message| message.len() < 2 * MESSAGE), "{}", messages.len());
        let mut receiver = Receiver::new("me");
        receiver.next.insert("w".to_owned(), 3);
        let mut told = Stale::default();
        messages.iter().for_each(|message| told.add(receiver.take(message)));
        assert_eq!(told, stale);
        for number in 500..1_100 {
            stale.add(keys(&[&format!("{long}{number}")]));
        }
        assert_eq!(stale, Stale::All, "the bytes are bounded");
        let mut stale = keys(&["x"]);
        stale.add(Stale::Keys((0..MOST_KEYS).map(|number| Key::parse(&number.to_string()).unwrap()).collect()));
        assert_eq!(stale, Stale::All, "so is the number");
        stale.add(keys(&["x"]));
        assert_eq!(stale.write("w", 0, false).len(), 1);
    }

    #[test]
    fn ones_own_messages_drop_nothing() {
        let mut receiver = Receiver::new("me");
        assert!(receiver.take(&wire("me", 0, &keys(&["a"]))).is_none());
        assert!(receiver.take(&wire("me", 5, &Stale::All)).is_none());
        assert_eq!(receiver.own_next, 6);
        receiver.take(&wire("me", u64::MAX, &Stale::All));
        receiver.take(&Stale::default().write("me", 0, true)[0]);
        assert!(!receiver.is_asked);
    }

    #[test]
    fn who_begins_to_listen_asks_for_the_numbers_of_the_others() {
        let hello = Stale::default().write("w", 0, true).remove(0);
        assert_eq!(hello, br#"{"version":1,"worker":"w","number":0,"keys":[],"hello":true}"#.as_slice());
        let mut receiver = Receiver::new("me");
        assert!(receiver.take(&hello).is_none() && receiver.is_asked);
    }

    #[test]
    fn a_gap_in_the_numbers_of_a_worker_drops_all() {
        let mut receiver = Receiver::new("me");
        assert_eq!(receiver.take(&wire("a", 0, &keys(&["k"]))), keys(&["k"]));
        assert_eq!(receiver.take(&wire("a", 1, &Stale::default())), Stale::default());
        assert_eq!(receiver.take(&wire("a", 1, &keys(&["k"]))), keys(&["k"]), "a copy is none");
        assert_eq!(receiver.take(&wire("a", 3, &keys(&["k"]))), Stale::All);
        assert_eq!(receiver.take(&wire("a", 2, &keys(&["late"]))), keys(&["late"]));
        assert_eq!(receiver.take(&wire("a", 4, &keys(&["k"]))), keys(&["k"]));
        assert_eq!(receiver.take(&wire("b", 9, &keys(&["k"]))), Stale::All, "what it said before is not known");
        assert_eq!(receiver.take(&wire("b", 10, &keys(&["k"]))), keys(&["k"]));
        receiver.take(&wire("c", u64::MAX, &keys(&["k"])));
        assert_eq!(receiver.take(&wire("c", u64::MAX, &keys(&["k"]))), keys(&["k"]));
        for number in 0..2 * MOST_WORKERS {
            receiver.take(&wire(&format!("w{number}"), 0, &Stale::default()));
            assert!(receiver.next.len() <= MOST_WORKERS);
        }
    }

    #[test]
    fn what_cannot_be_read_drops_all_and_is_logged_once() {
        let deep = "[".repeat(100_000);
        let long = format!(r#"{{"version":1,"worker":"w","number":0,"keys":["{}"]}}"#, "k".repeat(LONGEST_MESSAGE));
        let name = format!(r#"{{"version":1,"worker":"{}","number":0,"all":true}}"#, "w".repeat(LONGEST_NAME + 1));
        for body in [
            "",
            "null",
            "{}",
            "\u{0}",
            r#"{"version":2,"worker":"w","number":0,"all":true}"#,
            r#"{"version":1,"worker":"w","number":0}"#,
            r#"{"version":1,"worker":"w","number":-1,"keys":[]}"#,
            r#"{"version":1,"worker":"w","number":0,"keys":["no//key"]}"#,
            r#"{"version":1,"worker":"w","number":0,"keys":[],"all":true}"#,
            &deep,
            &long,
            &name,
        ] {
            let mut receiver = Receiver::new("me");
            assert_eq!(receiver.take(body.as_bytes()), Stale::All, "{}", &body[..body.len().min(80)]);
            assert!(receiver.has_complained);
        }
        let mut receiver = Receiver::new("me");
        let more = r#"{"version":1,"worker":"w","number":0,"keys":["k"],"later":{"x":1}}"#;
        assert_eq!(receiver.take(more.as_bytes()), keys(&["k"]), "what is added later is passed over");
    }
}
