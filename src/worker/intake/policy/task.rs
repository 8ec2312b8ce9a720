//! A delivery that is a task, from its reading to its end.

use tokio::time::Instant;

use crate::broker::AckToken;
use crate::celery::message::{Message, Origin};
use crate::celery::reply::Extended;
use crate::celery::request::TaskRequest;
use crate::celery::retry::FirstAttempt;
use crate::commands::{Command, Definition, Held, KeyUse, Keys, Redelivered};
use crate::worker::execution::run::Limit;
use crate::worker::execution::scheduler::{Schedulable, Share};
use crate::worker::intake::sealed::Sealed;
use crate::worker::invalidations::Stale;
use crate::worker::journal::{History, Identity};
use crate::worker::remote::limits::PromisedStart;

/// Bytes from which on a command moves a large value, and may have a part of the permits only.
pub(in crate::worker) const LARGE: u64 = 1 << 20;

/// One delivery that is a task, and what its end needs to know of it.
#[derive(Debug)]
pub(in crate::worker) struct TaskContext {
    pub(in crate::worker) ack_token: AckToken,
    /// How it came.
    pub(in crate::worker) origin: Origin,
    /// It was in a delay queue of ours before; monitors know it.
    pub(in crate::worker) was_delayed: bool,
    /// The priority of its message.
    pub(in crate::worker) priority: Option<u8>,
    pub(in crate::worker) request: TaskRequest,
    pub(in crate::worker) extended: Option<Extended>,
    /// What the journal knows it by.
    pub(in crate::worker) identity: Identity,
    /// When the producer sent it or else the broker took it in, in Unix milliseconds.
    pub(in crate::worker) sent: Option<i64>,
    pub(in crate::worker) received: Instant,
    /// What a retry knows of the first attempt.
    pub(in crate::worker) first_attempt: Option<FirstAttempt>,
    /// Its message, where the command may have to run again because the storage is unreachable.
    pub(in crate::worker) message: Option<Box<Message>>,
    /// The message and how it came, where what follows the command may turn out too large to be sent.
    pub(in crate::worker) kept: Option<Box<(Message, Origin)>>,
}

impl TaskContext {
    /// Tells whether the message is kept until what follows the command has arrived.
    pub(in crate::worker) const fn keeps_message(&self) -> bool {
        self.kept.is_some()
    }
}

/// A command that waits for its turn.
#[derive(Debug)]
pub(in crate::worker) struct ReadyTask {
    pub(in crate::worker) context: TaskContext,
    pub(in crate::worker) definition: &'static Definition,
    /// By which it is ordered. Of one that was not read, whether it writes them is not known.
    pub(in crate::worker) keys: Keys,
    pub(in crate::worker) writes: bool,
    /// It was read after it was ordered by its keys, and none of them is one that it writes.
    pub(in crate::worker) writes_unnamed: bool,
    pub(in crate::worker) work: Work,
    /// Which permits it may have.
    pub(in crate::worker) share: Share,
    /// What counts for it on the budget.
    pub(in crate::worker) held: Option<Held>,
    pub(in crate::worker) limit: Option<Limit>,
    pub(in crate::worker) redelivered: Option<Redelivered>,
    /// What is known of its delivery; the journals are asked again right before it runs.
    pub(super) history: History,
    /// When it may begin, where its task has a rate limit.
    pub(in crate::worker) promised: Option<PromisedStart>,
    /// Since when it waits for the end of a run elsewhere.
    pub(super) waits_since: Option<Instant>,
}

/// What a task does when its turn comes.
#[derive(Debug)]
pub(in crate::worker) enum Work {
    /// It runs.
    Run(Box<dyn Command>),
    /// It is read first.
    Read(Box<Sealed>),
    /// It is being read.
    Reading,
}

impl ReadyTask {
    /// Notes of a task that waits for its turn that it moves so many bytes.
    pub(in crate::worker) fn note_size(&mut self, bytes: u64) {
        if bytes >= LARGE && self.share == Share::Small {
            self.share = Share::Large;
        }
    }

    /// Returns the values that other workers must drop before the answer is sent. There are none where only this run can have
    /// changed values, because the run announces them itself.
    pub(in crate::worker) fn stale(&self) -> Stale {
        let is_told = self.history.came_again() && self.writes;
        if is_told && self.writes_unnamed { Stale::All } else { Stale::of(&self.keys, is_told) }
    }
}

impl Schedulable for ReadyTask {
    fn keys(&self) -> &[KeyUse] {
        &self.keys
    }

    fn is_suspect(&self) -> bool {
        self.history.is_suspect()
    }

    fn share(&self) -> Share {
        self.share
    }
}
