//! What the lines of one writer add up to.

use std::collections::{HashMap, HashSet};
use std::hash::{BuildHasher as _, RandomState};

use super::record::Record;

/// Where the line with an answer stands: segment, offset, length without newline.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) struct Place {
    pub(super) segment: u64,
    pub(super) offset: u64,
    pub(super) length: usize,
}

/// How often an id was running when a worker died, and when the first of those runs began in Unix microseconds.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) struct Crash {
    pub(super) times: u32,
    pub(super) at: i64,
}

/// An answer that was given.
#[derive(Clone, Copy, Debug)]
struct Answered {
    place: Place,
    /// When the command began to run, in Unix microseconds.
    began: i64,
}

/// The state of every command one writer wrote about.
///
/// Answers are indexed by a hash of their id, 48 bytes each; whoever reads the line compares the id itself.
#[derive(Debug, Default)]
pub(super) struct Ledger {
    /// Started and not over: id to Unix microseconds.
    pub(super) running: HashMap<Box<str>, i64>,
    /// What was running when a worker died and is not over.
    pub(super) crashes: HashMap<Box<str>, Crash>,
    answers: HashMap<u64, Answered>,
    /// Answered and not known to be acknowledged.
    unsettled: HashSet<u64>,
    /// Those of them that were so when this session began.
    earlier: HashSet<u64>,
    hasher: RandomState,
}

impl Ledger {
    fn hash(&self, id: &str) -> u64 {
        self.hasher.hash_one(id)
    }

    /// Takes one line in, which stands at `place`.
    pub(super) fn fold(&mut self, record: Record<'_>, place: Place) {
        match record {
            Record::Started { id, at } => self.started(&id, at),
            Record::Finished { id, began, .. } => self.finished(&id, began, place),
            Record::Ended { id } => self.ended(&id),
            Record::Settled { id } => self.settled(&id),
            Record::Crashed { id, times, at } => {
                self.crashes.insert(id.into(), Crash { times, at });
            }
        }
    }

    pub(super) fn started(&mut self, id: &str, at: i64) {
        let hash = self.hash(id);
        // A fresh message under a used id runs anew: what an earlier one answered is no answer to it.
        self.answers.remove(&hash);
        self.unsettled.remove(&hash);
        self.earlier.remove(&hash);
        self.running.insert(id.into(), at);
    }

    pub(super) fn finished(&mut self, id: &str, began: i64, place: Place) {
        let hash = self.hash(id);
        self.over(id);
        self.answers.insert(hash, Answered { place, began });
        self.unsettled.insert(hash);
    }

    pub(super) fn ended(&mut self, id: &str) {
        self.over(id);
    }

    pub(super) fn settled(&mut self, id: &str) {
        // Acknowledged, in whatever way it ended: a message under this id is a new one.
        self.crashes.remove(id);
        let hash = self.hash(id);
        self.unsettled.remove(&hash);
        self.earlier.remove(&hash);
    }

    fn over(&mut self, id: &str) {
        self.running.remove(id);
        self.crashes.remove(id);
    }

    /// Takes in that another writer saw this id to its end.
    pub(super) fn over_elsewhere(&mut self, id: &str) {
        self.crashes.remove(id);
    }

    /// Finds where the answer to an id stands.
    pub(super) fn answer(&self, id: &str) -> Option<Place> {
        self.answers.get(&self.hash(id)).map(|answered| answered.place)
    }

    /// Tells whether the command began to run at this time (Unix microseconds) or later, and runs still, crashed or was
    /// answered.
    pub(super) fn has_begun(&self, id: &str, since: i64) -> bool {
        let running = self.running.get(id).copied();
        let answered = self.answers.get(&self.hash(id)).map(|answered| answered.began);
        running.max(answered).is_some_and(|began| began >= since) || self.has_crashed(id, since)
    }

    /// Tells whether the command was running when a worker died, and had begun at this time or later.
    pub(super) fn has_crashed(&self, id: &str, since: i64) -> bool {
        self.crashes.get(id).is_some_and(|crash| crash.at >= since)
    }

    /// Begins a session: what is unsettled now was answered in an earlier one.
    pub(super) fn begin_session(&mut self) {
        self.earlier.clone_from(&self.unsettled);
    }

    /// Tells whether a message with this id may be the second copy of one from an earlier session, although the broker
    /// does not say so; `None` when nothing is known here.
    pub(super) fn is_open(&self, id: &str) -> Option<bool> {
        if self.crashes.contains_key(id) {
            return Some(true);
        }
        let hash = self.hash(id);
        self.answers.contains_key(&hash).then(|| self.earlier.contains(&hash))
    }

    /// Returns the places of answers whose acknowledgement is not known to be sent.
    pub(super) fn open_answers(&self) -> impl Iterator<Item = Place> {
        self.unsettled.iter().filter_map(|hash| self.answers.get(hash).map(|answered| answered.place))
    }

    /// Keeps the answers only: what ran and crashed is written down by whoever took this writer over.
    pub(super) fn retire(&mut self) {
        self.begin_session();
        self.running.clear();
        self.crashes.clear();
    }

    /// Drops what would stand beyond the end of a segment.
    pub(super) fn forget_at(&mut self, segment: u64, end: u64) {
        self.answers.retain(|_, Answered { place, .. }| place.segment != segment || place.offset < end);
        self.prune();
    }

    /// Drops what stands in segments that no longer exist.
    pub(super) fn forget_before(&mut self, segment: u64) {
        self.answers.retain(|_, answered| answered.place.segment >= segment);
        self.prune();
    }

    fn prune(&mut self) {
        let answers = &self.answers;
        self.unsettled.retain(|hash| answers.contains_key(hash));
        self.earlier.retain(|hash| answers.contains_key(hash));
    }
}

impl Ledger {
    /// Begins a new segment of the same writer: what runs and what crashed stands at its head again.
    pub(super) fn with_answers_of(earlier: Self) -> Self {
        Self { running: HashMap::new(), crashes: HashMap::new(), ..earlier }
    }
}
