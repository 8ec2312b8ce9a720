//! A broker in memory: queues with their faults, sessions with what they hold, and a trace of everything that happens.

mod arrivals;
mod deliveries;
mod names;
mod parking;
mod queue;
mod sessions;

use std::collections::{BTreeMap, BTreeSet};
use std::fmt::Write as _;
use std::time::Duration;

use filestorage::celery::message::{Message, Publication};
use tokio::time::Instant;

use crate::random::Random;

pub(crate) use arrivals::{Arrival, Verdict};
pub(crate) use names::{commands_of, name_of};
pub(crate) use queue::{Mood, Queue, Stored};
pub(crate) use sessions::Client;

/// Bytes that all steps of parking hold where a test makes them, and not the worker.
const MAX_BYTES: u64 = 1 << 30;

/// Why no session is given.
#[derive(Clone, Debug)]
pub(crate) enum Door {
    Open,
    Unreachable,
    /// The broker refuses the login.
    Refuses,
}

/// What the exchange of announcements does.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Exchange {
    Works,
    /// It confirms nothing.
    Unconfirmed,
    /// Nobody is bound to it.
    Unbound,
}

/// What happens by itself after a while.
#[derive(Debug)]
pub(crate) enum Waiting {
    /// A message in this queue has waited for its time.
    Expiry(String),
    /// A message goes to this queue.
    Delay(String, Box<Message>),
}

/// All of the broker's state.
#[derive(Debug)]
pub(crate) struct Model {
    pub(crate) queues: BTreeMap<String, Queue>,
    pub(crate) clients: BTreeMap<u64, Client>,
    pub(crate) door: Door,
    /// Why the broker takes no publications.
    pub(crate) alarm: Option<String>,
    /// Milliseconds that a step through the network takes, at least and at most.
    pub(crate) latency: (u64, u64),
    /// Deliveries handed over at once, at most.
    pub(crate) batch: usize,
    /// Queues and exchanges that this user may not make.
    pub(crate) forbidden: BTreeSet<String>,
    /// Queues that are there and give no consumer.
    pub(crate) stalled: BTreeSet<String>,
    /// The broker answers a close.
    pub(crate) answers_close: bool,
    /// The time of day at the beginning, in Unix milliseconds, where the broker stamps what it takes in.
    pub(crate) stamps_from: Option<i64>,
    pub(crate) random: Random,
    pub(crate) began: Instant,
    pub(crate) trace: String,
    /// What was confirmed to a session: the publication's queue and message.
    pub(crate) confirmed: Vec<(String, Message)>,
    /// Message ids of commands in the order they were acknowledged, and how much was confirmed by then.
    pub(crate) acknowledged: Vec<(String, usize)>,
    /// When each delivery, also of a parked publication, was acknowledged.
    pub(crate) settled: Vec<(Instant, String)>,
    /// Ids that were handed out again, or whose publications were not confirmed.
    pub(crate) doubtful: BTreeSet<String>,
    /// Every publication that reached the broker.
    pub(crate) arrivals: Vec<Arrival>,
    /// What may be lost is taken; otherwise whoever sends it waits for ever.
    pub(crate) takes_notices: bool,
    /// Another session has the queues of requests.
    pub(crate) locked: bool,
    /// What may be lost, and was sent: events for monitors and answers to remote control.
    pub(crate) notices: Vec<(Instant, Publication)>,
    pub(crate) exchange: Exchange,
    /// The delay queues cannot be reached.
    pub(crate) delays_are_down: bool,
    /// Ids of what waits in delay queues.
    pub(crate) delayed: Vec<String>,
    /// What begins to wait.
    pub(crate) waiting: Vec<(Duration, Waiting)>,
    /// Deliveries that were not settled for longer than a broker allows.
    overdue: Vec<String>,
    places: u64,
    coin: bool,
}

impl Model {
    pub(crate) fn new(seed: u64) -> Self {
        Self {
            queues: BTreeMap::new(),
            clients: BTreeMap::new(),
            door: Door::Open,
            alarm: None,
            latency: (1, 1),
            batch: 256,
            forbidden: BTreeSet::new(),
            stalled: BTreeSet::new(),
            answers_close: true,
            stamps_from: None,
            random: Random::new(seed),
            began: Instant::now(),
            trace: String::new(),
            confirmed: Vec::new(),
            acknowledged: Vec::new(),
            settled: Vec::new(),
            doubtful: BTreeSet::new(),
            arrivals: Vec::new(),
            takes_notices: true,
            locked: false,
            notices: Vec::new(),
            exchange: Exchange::Works,
            delays_are_down: false,
            delayed: Vec::new(),
            waiting: Vec::new(),
            overdue: Vec::new(),
            places: 0,
            coin: false,
        }
    }

    /// Writes a line of the trace.
    pub(crate) fn note(&mut self, what: &str) {
        let at = self.began.elapsed().as_millis();
        writeln!(self.trace, "{at} {what}").unwrap();
    }

    /// Draws how long a step through the network takes.
    pub(crate) fn step(&mut self) -> Duration {
        let (least, most) = self.latency;
        Duration::from_millis(self.random.between(least, most))
    }

    /// Returns a queue, which is made where it is missing.
    pub(crate) fn queue(&mut self, name: &str) -> &mut Queue {
        self.queues.entry(name.to_owned()).or_insert_with(|| Self::parking_queue(name, MAX_BYTES))
    }
}
