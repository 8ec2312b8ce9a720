//! Queues and what is in them.

use std::collections::VecDeque;
use std::time::Duration;

use filestorage::celery::message::{Address, Message};
use tokio::time::Instant;

/// What a queue does to publications.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub(crate) enum Mood {
    /// It takes them.
    #[default]
    Takes,
    /// It refuses them for now, by a negative confirmation.
    Full,
    /// It says neither yes nor no, and takes every other one.
    Silent,
    /// The broker refuses them for good.
    Refuses(u16, String),
    /// It cannot be reached.
    Down,
}

/// A message in a queue.
#[derive(Clone, Debug)]
pub(crate) struct Stored {
    pub(crate) message: Message,
    pub(crate) address: Address,
    pub(crate) redelivered: bool,
    /// The place in its queue.
    pub(super) place: u64,
    /// When its time to live is over.
    pub(super) expires: Option<Instant>,
}

/// A queue.
#[derive(Debug, Default)]
pub(crate) struct Queue {
    pub(crate) messages: VecDeque<Stored>,
    /// Messages it holds at most.
    pub(crate) bound: Option<usize>,
    /// Bytes of bodies it holds at most; what exceeds them is refused.
    pub(crate) max_bytes: Option<u64>,
    /// How long a message waits in it, and the queue to which it goes then.
    pub(crate) wait: Option<(Duration, String)>,
    pub(crate) mood: Mood,
}

impl Queue {
    /// Tells whether one more message would exceed a bound, as `x-overflow=reject-publish` counts.
    pub(super) fn would_overflow(&self, message: &Message) -> bool {
        let bytes = self.messages.iter().map(|stored| stored.message.body.len()).sum::<usize>() + message.body.len();
        self.bound.is_some_and(|bound| self.messages.len() >= bound)
            || self.max_bytes.is_some_and(|bound| bytes as u64 > bound)
    }

    /// Appends a message, whose time to live begins.
    pub(super) fn push(&mut self, mut stored: Stored) {
        stored.expires = self.wait.as_ref().map(|(wait, _)| Instant::now() + *wait);
        self.messages.push_back(stored);
    }

    /// Puts a message back to where it was.
    pub(super) fn put_back(&mut self, mut stored: Stored) {
        stored.redelivered = true;
        let index = self.messages.partition_point(|other| other.place < stored.place);
        self.messages.insert(index, stored);
    }
}
