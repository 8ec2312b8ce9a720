//! The messages by which workers announce changed keys, and the receiver that reads them.

use std::collections::{BTreeSet, HashMap};

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
/// A larger difference between two numbers of one worker is no gap: one of the two messages is a forgery or a fault.
const MAX_JUMP: u64 = 1_000_000;

/// A message as it is written.
#[derive(Debug, Serialize, Deserialize)]
struct Wire {
    version: u32,
    /// The process that sends it: random, and another after a restart.
    worker: String,
    /// The store whose keys changed. A message without it counts for every store.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    store: Option<String>,
    /// Counts the messages of this process from 0, so that a gap shows.
    number: u64,
    /// The changed keys; none in a message that only says that its sender is there.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    keys: Option<Vec<String>>,
    /// Any key may have changed.
    #[serde(default, skip_serializing_if = "std::ops::Not::not")]
    all: bool,
    /// Asks all other workers to send a message soon, so that the sender learns their numbers.
    #[serde(default, skip_serializing_if = "std::ops::Not::not")]
    presence_request: bool,
}

/// The worker that sends a message, and its store.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) struct Sender {
    /// The name of this process.
    pub(super) worker: String,
    /// The hash that names the store.
    pub(super) store: String,
}

/// The set of cached values that may be out of date.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(in crate::worker) enum Stale {
    /// The values of these keys.
    Keys(BTreeSet<Key>),
    /// Every value.
    All,
}

impl Default for Stale {
    fn default() -> Self {
        Self::Keys(BTreeSet::new())
    }
}

impl Stale {
    /// Tells whether no cached value is out of date.
    pub(in crate::worker) fn is_none(&self) -> bool {
        matches!(self, Self::Keys(keys) if keys.is_empty())
    }

    /// Drops the stale values from a cache.
    pub(in crate::worker) fn drop_from(&self, cache: &Cache) {
        match self {
            Self::Keys(keys) => keys.iter().for_each(|key| cache.drop_key(key)),
            Self::All => {
                cache.clear();
            }
        }
    }

    /// Adds the values of another set. Too many keys become [`Stale::All`].
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

    /// Writes the messages that announce the set: at least one, which names no key when the set is empty.
    pub(super) fn write(&self, sender: &Sender, first: u64, presence_request: bool) -> Vec<Bytes> {
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
            let Sender { worker, store } = sender.clone();
            let number = first.saturating_add(place as u64);
            let (store, keys) = (Some(store), (!all).then_some(keys));
            let wire = Wire { version: VERSION, worker, store, number, keys, all, presence_request };
            serde_json::to_vec(&wire).unwrap_or_default().into()
        });
        wires.collect()
    }
}

/// Reads the messages of other workers and finds gaps in their numbers.
#[derive(Debug)]
pub(super) struct Receiver {
    own: Sender,
    /// The number after the last one of each other worker.
    next: HashMap<String, u64>,
    /// The number after the last own message that came back from the broker.
    pub(super) own_next: u64,
    /// Another worker has asked for a message, to learn this worker's number.
    pub(super) is_presence_requested: bool,
    has_complained: bool,
}

impl Receiver {
    pub(super) fn new(own: Sender) -> Self {
        Self { own, next: HashMap::new(), own_next: 0, is_presence_requested: false, has_complained: false }
    }

    /// Takes one message and returns which cached values are out of date after it.
    ///
    /// A message of another store changes nothing. Returns [`Stale::All`] after a gap in the numbers of a worker, also before
    /// its first message, and after a message that cannot be read. A worker whose number jumps by more than [`MAX_JUMP`] is
    /// forgotten, so that one wrong number does not hide the gaps that follow.
    pub(super) fn take(&mut self, body: &[u8]) -> Stale {
        let (Wire { worker, store, number, presence_request, .. }, stale) = match read(body) {
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
        if store.is_some_and(|store| store != self.own.store) {
            return Stale::default();
        }
        if worker == self.own.worker {
            self.own_next = self.own_next.max(number.saturating_add(1));
            return Stale::default();
        }
        self.is_presence_requested |= presence_request;
        if self.next.get(&worker).is_some_and(|next| number.abs_diff(*next) > MAX_JUMP) {
            self.next.remove(&worker);
            return Stale::All;
        }
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

    fn worker(name: &str) -> Sender {
        Sender { worker: name.to_owned(), store: "s".to_owned() }
    }

    fn receiver() -> Receiver {
        Receiver::new(worker("me"))
    }

    fn wire(name: &str, number: u64, stale: &Stale) -> Bytes {
        stale.write(&worker(name), number, false).remove(0)
    }

    #[test]
    fn a_message_says_what_was_written() {
        assert_eq!(
            wire("w", 7, &keys(&["a/é\"b"])),
            r#"{"version":1,"worker":"w","store":"s","number":7,"keys":["a/é\"b"]}"#.as_bytes()
        );
        assert_eq!(
            wire("w", 0, &Stale::All),
            br#"{"version":1,"worker":"w","store":"s","number":0,"all":true}"#.as_slice()
        );
        for stale in [Stale::default(), keys(&["a", "b/c"]), Stale::All] {
            let mut receiver = receiver();
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
        let messages = stale.write(&worker("w"), 3, false);
        assert!(messages.len() > 5 && messages.iter().all(|message| message.len() < 2 * MESSAGE), "{}", messages.len());
        let mut receiver = receiver();
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
        assert_eq!(stale.write(&worker("w"), 0, false).len(), 1);
    }

    #[test]
    fn ones_own_messages_drop_nothing() {
        let mut receiver = receiver();
        assert!(receiver.take(&wire("me", 0, &keys(&["a"]))).is_none());
        assert!(receiver.take(&wire("me", 5, &Stale::All)).is_none());
        assert_eq!(receiver.own_next, 6);
        receiver.take(&wire("me", u64::MAX, &Stale::All));
        receiver.take(&Stale::default().write(&worker("me"), 0, true)[0]);
        assert!(!receiver.is_presence_requested);
    }

    #[test]
    fn a_new_listener_asks_for_the_numbers_of_the_others() {
        let request = Stale::default().write(&worker("w"), 0, true).remove(0);
        assert_eq!(
            request,
            br#"{"version":1,"worker":"w","store":"s","number":0,"keys":[],"presence_request":true}"#.as_slice()
        );
        let mut receiver = receiver();
        assert!(receiver.take(&request).is_none() && receiver.is_presence_requested);
    }

    #[test]
    fn a_gap_in_the_numbers_of_a_worker_drops_all() {
        let mut receiver = receiver();
        assert_eq!(receiver.take(&wire("a", 0, &keys(&["k"]))), keys(&["k"]));
        assert_eq!(receiver.take(&wire("a", 1, &Stale::default())), Stale::default());
        assert_eq!(receiver.take(&wire("a", 1, &keys(&["k"]))), keys(&["k"]), "a copy is none");
        assert_eq!(receiver.take(&wire("a", 3, &keys(&["k"]))), Stale::All);
        assert_eq!(receiver.take(&wire("a", 2, &keys(&["late"]))), keys(&["late"]));
        assert_eq!(receiver.take(&wire("a", 4, &keys(&["k"]))), keys(&["k"]));
        assert_eq!(receiver.take(&wire("b", 9, &keys(&["k"]))), Stale::All, "what it said before is not known");
        assert_eq!(receiver.take(&wire("b", 10, &keys(&["k"]))), keys(&["k"]));
        let last = wire("c", u64::MAX, &keys(&["k"]));
        assert_eq!(receiver.take(&last), Stale::All);
        assert_eq!(receiver.take(&last), keys(&["k"]));
        for number in 0..2 * MOST_WORKERS {
            receiver.take(&wire(&format!("w{number}"), 0, &Stale::default()));
            assert!(receiver.next.len() <= MOST_WORKERS);
        }
    }

    #[test]
    fn a_wrong_number_does_not_hide_later_gaps() {
        let mut receiver = receiver();
        let mut take = |number| receiver.take(&wire("a", number, &keys(&["k"])));
        assert_eq!((take(0), take(1)), (keys(&["k"]), keys(&["k"])));
        assert_eq!(take(u64::MAX), Stale::All, "a forged number");
        assert_eq!(take(2), Stale::All, "the worker was forgotten");
        assert_eq!(take(3), keys(&["k"]));
        assert_eq!(take(5), Stale::All, "a gap is found again");
        assert_eq!(receiver.take(&wire("b", u64::MAX, &keys(&["k"]))), Stale::All, "forged before the first real one");
        let mut take = |number| receiver.take(&wire("b", number, &keys(&["k"])));
        assert_eq!((take(7), take(8), take(9)), (Stale::All, Stale::All, keys(&["k"])));
        assert_eq!(take(11), Stale::All);
    }

    #[test]
    fn messages_of_another_store_are_passed_over() {
        let other = Sender { worker: "w".to_owned(), store: "other".to_owned() };
        let mut receiver = receiver();
        for (number, stale) in [(0, keys(&["k"])), (5, Stale::All), (u64::MAX, Stale::default())] {
            assert!(receiver.take(&stale.write(&other, number, true)[0]).is_none());
        }
        assert!(!receiver.is_presence_requested && receiver.next.is_empty());
        assert_eq!(receiver.take(&wire("w", 0, &Stale::All)), Stale::All);
        let unnamed = r#"{"version":1,"worker":"v","number":0,"keys":["k"]}"#;
        assert_eq!(receiver.take(unnamed.as_bytes()), keys(&["k"]), "no store is every store");
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
            let mut receiver = receiver();
            assert_eq!(receiver.take(body.as_bytes()), Stale::All, "{}", &body[..body.len().min(80)]);
            assert!(receiver.has_complained);
        }
        let mut receiver = receiver();
        let more = r#"{"version":1,"worker":"w","number":0,"keys":["k"],"later":{"x":1}}"#;
        assert_eq!(receiver.take(more.as_bytes()), keys(&["k"]), "what is added later is passed over");
    }
}
