//! A broker in memory: queues with their faults, sessions with what they hold, and a trace of everything that happens.

use std::collections::{BTreeMap, BTreeSet, VecDeque};
use std::fmt::Write as _;
use std::time::Duration;

use bytes::Bytes;
use filestorage::broker::{EVENTS_EXCHANGE, METRICS_QUEUE, State};
use filestorage::celery::message::{Address, Field, Message, Publication};
use tokio::sync::{mpsc, watch};
use tokio::time::Instant;

use crate::random::Random;

/// How long after a silence a delivery may have been handed out before.
const LATE: Duration = Duration::from_secs(60);
/// The exchanges of delay queues.
const DELAY: &str = "filestorage.delay.";

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
    place: u64,
}

/// A queue.
#[derive(Debug, Default)]
pub(crate) struct Queue {
    pub(crate) messages: VecDeque<Stored>,
    /// Messages it holds at most.
    pub(crate) bound: Option<usize>,
    pub(crate) mood: Mood,
}

/// What the broker does with one publication.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) enum Verdict {
    Routed,
    Returned,
    Nacked,
    Silent,
    Refused(u16, String),
}

/// One session as the broker knows it.
#[derive(Debug)]
pub(crate) struct Client {
    pub(crate) state: watch::Sender<State>,
    pub(crate) stopped: watch::Sender<bool>,
    /// What was handed out and not settled: its queue and the message.
    pub(crate) unsettled: BTreeMap<u64, (String, Stored)>,
    pub(crate) next_tag: u64,
    /// Consumed queues with their prefetch.
    pub(crate) consumed: Vec<(String, usize)>,
    /// Since when nothing comes through in either direction.
    pub(crate) cut: Option<Instant>,
    /// Silences that are over.
    gaps: Vec<(Instant, Instant)>,
    pub(crate) listeners: Vec<mpsc::UnboundedSender<Bytes>>,
}

/// Why no session is given.
#[derive(Clone, Debug)]
pub(crate) enum Door {
    Open,
    Unreachable,
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
    /// Ids that were handed out again, or whose publications were not confirmed.
    pub(crate) doubtful: BTreeSet<String>,
    /// When each publication arrived, by queue and correlation id.
    pub(crate) arrivals: Vec<(Instant, String, Option<String>)>,
    /// Ids of what waits in delay queues.
    pub(crate) delayed: Vec<String>,
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
            doubtful: BTreeSet::new(),
            arrivals: Vec::new(),
            delayed: Vec::new(),
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

    pub(crate) fn queue(&mut self, name: &str) -> &mut Queue {
        self.queues.entry(name.to_owned()).or_default()
    }

    /// Finds the queue for an address.
    fn route(&self, address: &Address) -> Option<String> {
        let queue = match address.exchange.as_str() {
            "" => address.routing_key.as_str(),
            EVENTS_EXCHANGE => METRICS_QUEUE,
            exchange if exchange.starts_with(DELAY) => return Some(exchange.to_owned()),
            _ => return None,
        };
        self.queues.contains_key(queue).then(|| queue.to_owned())
    }

    /// Takes a publication in as far as its queue wants it.
    pub(crate) fn arrive(&mut self, publication: &Publication) -> Verdict {
        let Publication { address, message } = publication;
        let verdict = self.judge(address, message);
        let id = message.properties.correlation_id.clone();
        let queue = self.route(address).unwrap_or_else(|| address.routing_key.clone());
        let text = format!("{verdict:?} {queue} {} {:08x}", id.as_deref().unwrap_or("-"), digest(message));
        self.note(&text);
        self.arrivals.push((Instant::now(), queue, id));
        verdict
    }

    fn judge(&mut self, address: &Address, message: &Message) -> Verdict {
        let Some(name) = self.route(address) else { return Verdict::Returned };
        if name.starts_with(DELAY) {
            self.delayed.push(name_of(message));
            return Verdict::Routed;
        }
        let stored = self.stored(address, message);
        self.coin = !self.coin;
        let takes = self.coin;
        let queue = self.queue(&name);
        match &queue.mood {
            Mood::Refuses(code, text) => Verdict::Refused(*code, text.clone()),
            Mood::Full | Mood::Down => Verdict::Nacked,
            Mood::Silent => {
                if takes {
                    queue.messages.push_back(stored);
                }
                Verdict::Silent
            }
            Mood::Takes if queue.bound.is_some_and(|bound| queue.messages.len() >= bound) => Verdict::Nacked,
            Mood::Takes => {
                queue.messages.push_back(stored);
                Verdict::Routed
            }
        }
    }

    /// Notes that a session was told that a publication arrived.
    pub(crate) fn confirm(&mut self, publication: &Publication) {
        let queue = self.route(&publication.address).unwrap_or_else(|| publication.address.routing_key.clone());
        self.confirmed.push((queue, publication.message.clone()));
    }

    /// Notes that a session was told that no queue wanted a publication.
    pub(crate) fn confirm_returned(&mut self, publication: &Publication) {
        self.confirmed.push((format!("nowhere:{}", publication.address.routing_key), publication.message.clone()));
    }

    /// Notes that nobody knows whether publications arrived: they may arrive once more.
    pub(crate) fn doubt(&mut self, batch: &[Publication]) {
        self.note(&format!("unknown {}", batch.len()));
        let ids = batch.iter().flat_map(|publication| commands_of(&publication.message));
        self.doubtful.extend(ids);
    }

    fn stored(&mut self, address: &Address, message: &Message) -> Stored {
        self.places += 1;
        let mut message = message.clone();
        // A message that is published again keeps its stamp.
        if let (Some(from), None) = (self.stamps_from, message.stamp()) {
            let elapsed = i64::try_from(self.began.elapsed().as_millis()).unwrap();
            message.headers.set("timestamp_in_ms", Field::Int(from + elapsed));
        }
        Stored { message, address: address.clone(), redelivered: false, place: self.places }
    }

    /// Returns how long a publication waits in a delay queue, and the queue and the message that come of it then.
    pub(crate) fn delay(publication: &Publication) -> Option<(Duration, String, Message)> {
        let Address { exchange, routing_key } = &publication.address;
        let step = exchange.strip_prefix(DELAY)?.parse().unwrap();
        let mut message = publication.message.clone();
        message.headers.set("x-first-death-queue", exchange.as_str().into());
        Some((Duration::from_millis(step), routing_key.clone(), message))
    }

    /// Puts a message into a queue as a producer does.
    pub(crate) fn put(&mut self, queue: &str, message: &Message) {
        let stored = self.stored(&Address::queue(queue), message);
        let id = message.properties.correlation_id.clone().unwrap_or_default();
        self.note(&format!("put {queue} {id}"));
        self.queue(queue).messages.push_back(stored);
    }

    /// Hands deliveries out to a session, as far as its prefetch goes.
    pub(crate) fn hand_out(&mut self, number: u64) -> Vec<(u64, String, Stored)> {
        let mut batch = Vec::new();
        let most = usize::try_from(self.random.between(1, self.batch as u64)).unwrap();
        let Some(client) = self.clients.get_mut(&number) else { return batch };
        if client.cut.is_some() {
            return batch;
        }
        for (name, prefetch) in client.consumed.clone() {
            let mut held = client.unsettled.values().filter(|(queue, _)| *queue == name).count();
            let Some(queue) = self.queues.get_mut(&name).filter(|queue| queue.mood != Mood::Down) else { continue };
            while held < prefetch && batch.len() < most {
                let Some(stored) = queue.messages.pop_front() else { break };
                let tag = client.next_tag;
                client.next_tag += 1;
                client.unsettled.insert(tag, (name.clone(), stored.clone()));
                batch.push((tag, name.clone(), stored));
                held += 1;
            }
        }
        if !batch.is_empty() {
            let ids: Vec<_> = batch.iter().map(|(.., stored)| name_of(&stored.message)).collect();
            self.note(&format!("deliver {number} {}", ids.join(",")));
        }
        batch
    }

    /// Takes acknowledgements of a session.
    pub(crate) fn settle(&mut self, number: u64, tags: &[u64]) {
        let confirmed = self.confirmed.len();
        let Some(client) = self.clients.get_mut(&number) else { return };
        let is_cut = client.cut.is_some();
        let mut ids = Vec::new();
        for tag in tags {
            if is_cut {
                let held = client.unsettled.get(tag);
                ids.extend(held.map(|(_, stored)| name_of(&stored.message)));
            } else {
                let (_, stored) = client.unsettled.remove(tag).expect("a tag is settled once");
                ids.push(name_of(&stored.message));
            }
        }
        if is_cut {
            self.note(&format!("lost ack {number} {}", ids.join(",")));
            return;
        }
        self.note(&format!("ack {number} {}", ids.join(",")));
        self.acknowledged.extend(ids.into_iter().map(|id| (id, confirmed)));
    }

    /// Puts one unsettled delivery back to its place.
    pub(crate) fn give_one_back(&mut self, number: u64, tag: u64) {
        let Some((name, mut stored)) = self.clients.get_mut(&number).and_then(|client| client.unsettled.remove(&tag))
        else {
            return;
        };
        stored.redelivered = true;
        let id = name_of(&stored.message);
        self.note(&format!("back {number} {id}"));
        self.doubtful.insert(id);
        if let Some(queue) = self.queues.get_mut(&name) {
            let index = queue.messages.partition_point(|other| other.place < stored.place);
            queue.messages.insert(index, stored);
        }
    }

    /// Puts everything unsettled of a session back to its place.
    pub(crate) fn give_back(&mut self, number: u64) {
        let Some(client) = self.clients.get_mut(&number) else { return };
        client.consumed.clear();
        let unsettled = std::mem::take(&mut client.unsettled);
        let mut ids = Vec::new();
        for (name, mut stored) in unsettled.into_values() {
            stored.redelivered = true;
            let id = name_of(&stored.message);
            self.doubtful.insert(id.clone());
            ids.push(id);
            if let Some(queue) = self.queues.get_mut(&name) {
                let index = queue.messages.partition_point(|other| other.place < stored.place);
                queue.messages.insert(index, stored);
            }
        }
        if !ids.is_empty() {
            self.note(&format!("back {number} {}", ids.join(",")));
        }
    }

    /// Ends a session for both sides.
    pub(crate) fn lose(&mut self, number: u64, reason: &str) {
        let Some(client) = self.clients.get(&number) else { return };
        let is_open = !matches!(*client.state.borrow(), State::Lost(_));
        if is_open {
            self.note(&format!("lost {number} {reason}"));
            self.give_back(number);
            self.clients[&number].state.send_replace(State::Lost(reason.to_owned()));
        }
    }

    /// Cuts a session off, or heals it: the broker keeps what it holds.
    pub(crate) fn cut(&mut self, number: u64, is_cut: bool) {
        self.note(&format!("cut {number} {is_cut}"));
        let now = Instant::now();
        let Some(client) = self.clients.get_mut(&number) else { return };
        match (client.cut, is_cut) {
            (None, true) => client.cut = Some(now),
            (Some(since), false) => {
                client.gaps.push((since, now));
                client.cut = None;
            }
            _ => {}
        }
    }

    /// Tells how long a session heard nothing.
    pub(crate) fn silence(&self, number: u64) -> Duration {
        self.clients[&number].cut.map(|since| since.elapsed()).unwrap_or_default()
    }

    /// Tells since when a session heard nothing around a time.
    pub(crate) fn late_since(&self, number: u64, received: Instant) -> Option<Instant> {
        let doubt = filestorage::broker::DOUBT;
        let client = &self.clients[&number];
        let long = client.gaps.iter().filter(|(from, until)| *until - *from >= doubt);
        let ended = long.filter(|(_, until)| received < *until + LATE).map(|(from, _)| *from).next();
        ended.or_else(|| client.cut.filter(|since| since.elapsed() >= doubt))
    }

    /// Raises an alarm, or ends it.
    pub(crate) fn block(&mut self, alarm: Option<&str>) {
        self.note(&format!("alarm {alarm:?}"));
        self.alarm = alarm.map(str::to_owned);
        let next = alarm.map_or(State::Open, |words| State::Blocked(words.to_owned()));
        for client in self.clients.values().filter(|client| client.cut.is_none()) {
            client.state.send_if_modified(|state| {
                let changes = !matches!(state, State::Lost(_)) && *state != next;
                if changes {
                    *state = next.clone();
                }
                changes
            });
        }
    }

    /// Opens a session.
    pub(crate) fn connect(&mut self) -> u64 {
        let number = self.clients.len() as u64 + 1;
        let state = self.alarm.clone().map_or(State::Open, State::Blocked);
        let client = Client {
            state: watch::Sender::new(state),
            stopped: watch::Sender::new(false),
            unsettled: BTreeMap::new(),
            next_tag: 1,
            consumed: Vec::new(),
            cut: None,
            gaps: Vec::new(),
            listeners: Vec::new(),
        };
        self.clients.insert(number, client);
        self.note(&format!("open {number}"));
        number
    }

    /// Returns the sessions that are not lost, in order.
    pub(crate) fn live(&self) -> Vec<u64> {
        let live = |client: &Client| !matches!(*client.state.borrow(), State::Lost(_));
        self.clients.iter().filter(|(_, client)| live(client)).map(|(number, _)| *number).collect()
    }
}

/// Returns the ids of the commands that a publication is about.
pub(crate) fn commands_of(message: &Message) -> Vec<String> {
    if let Some(parent) = message.headers.text("parent_id") {
        return vec![parent.to_owned()];
    }
    if let Some(id) = &message.properties.correlation_id {
        return vec![id.clone()];
    }
    let Ok(body) = serde_json::from_slice::<serde_json::Value>(&message.body) else { return Vec::new() };
    let events = match body {
        serde_json::Value::Array(events) => events,
        event => vec![event],
    };
    events.iter().filter_map(|event| Some(event["data"]["task_id"].as_str()?.to_owned())).collect()
}

/// Names a message in the trace.
pub(crate) fn name_of(message: &Message) -> String {
    message.properties.correlation_id.clone().unwrap_or_else(|| format!("{:08x}", digest(message)))
}

/// Returns a short digest of a message as it is on the wire, the same in every run.
fn digest(message: &Message) -> u32 {
    let text = format!("{message:?}");
    text.bytes().fold(0x811c_9dc5, |hash: u32, byte| (hash ^ u32::from(byte)).wrapping_mul(0x0100_0193))
}
