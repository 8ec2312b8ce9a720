//! The sessions as the broker knows them.

use std::collections::{BTreeMap, BTreeSet};
use std::time::Duration;

use bytes::Bytes;
use filestorage::broker::State;
use filestorage::celery::message::Message;
use tokio::sync::{mpsc, watch};
use tokio::time::Instant;

use super::{Model, Stored};

/// How long after a silence a delivery may have been handed out before.
const LATE: Duration = Duration::from_secs(60);

/// A message that was handed out and is not settled.
#[derive(Debug)]
pub(crate) struct Unsettled {
    pub(crate) queue: String,
    pub(crate) stored: Stored,
    pub(super) since: Instant,
}

/// The state of a session, of which everybody who asks has a channel of their own.
///
/// Those who wait at one channel are woken in a random order.
#[derive(Debug)]
pub(crate) struct Board {
    now: State,
    watchers: Vec<watch::Sender<State>>,
}

impl Board {
    /// Returns the state now, and all later ones.
    pub(crate) fn watch(&mut self) -> watch::Receiver<State> {
        self.watchers.retain(|watcher| !watcher.is_closed());
        let (sender, receiver) = watch::channel(self.now.clone());
        self.watchers.push(sender);
        receiver
    }

    /// Returns the reason when the session is lost.
    pub(crate) fn lost(&self) -> Option<&str> {
        if let State::Lost(reason) = &self.now { Some(reason) } else { None }
    }

    fn set(&mut self, state: &State) {
        if self.lost().is_none() && self.now != *state {
            self.now = state.clone();
            self.watchers.iter().for_each(|watcher| drop(watcher.send_replace(state.clone())));
        }
    }
}

/// One session as the broker knows it.
#[derive(Debug)]
pub(crate) struct Client {
    /// The worker whose session it is.
    pub(crate) node: String,
    pub(crate) state: Board,
    pub(crate) stopped: watch::Sender<bool>,
    pub(crate) unsettled: BTreeMap<u64, Unsettled>,
    pub(super) next_tag: u64,
    /// Consumed queues with their prefetch.
    pub(crate) consumed: Vec<(String, usize)>,
    /// Queues whose consumers the broker ended, and the session was not told yet.
    pub(crate) cancelled: Vec<String>,
    /// Tags whose queue was gone before they were settled.
    pub(super) void: BTreeSet<u64>,
    /// The prefetch of parked publications, while these are consumed.
    pub(crate) parked: Option<usize>,
    /// The queues of parked publications were there when the session last looked.
    pub(crate) has_parking: bool,
    /// Since when nothing comes through in either direction.
    pub(crate) cut: Option<Instant>,
    /// What was sent meanwhile: it arrives once the session is healed, and never when it is lost.
    pub(crate) delayed: Vec<Delayed>,
    /// Silences that are over.
    gaps: Vec<(Instant, Instant)>,
    pub(crate) listeners: Vec<mpsc::UnboundedSender<Bytes>>,
    /// Where requests of remote control go.
    pub(crate) controls: Vec<mpsc::UnboundedSender<Message>>,
}

/// What a session sent while nothing came through.
#[derive(Clone, Debug)]
pub(crate) enum Delayed {
    Acks(Vec<u64>),
    Nack(u64),
    /// The consumer of parked publications is closed.
    CloseParked,
}

impl Model {
    /// Opens a session.
    pub(crate) fn connect(&mut self, node: &str) -> u64 {
        let number = self.clients.len() as u64 + 1;
        let state = self.alarm.clone().map_or(State::Open, State::Blocked);
        let client = Client {
            node: node.to_owned(),
            state: Board { now: state, watchers: Vec::new() },
            stopped: watch::Sender::new(false),
            unsettled: BTreeMap::new(),
            next_tag: 1,
            consumed: Vec::new(),
            cancelled: Vec::new(),
            void: BTreeSet::new(),
            parked: None,
            has_parking: false,
            cut: None,
            delayed: Vec::new(),
            gaps: Vec::new(),
            listeners: Vec::new(),
            controls: Vec::new(),
        };
        self.clients.insert(number, client);
        self.note(&format!("open {number} {node}"));
        number
    }

    /// Returns the sessions that are not lost, in order.
    pub(crate) fn live(&self) -> Vec<u64> {
        self.clients.iter().filter(|(_, client)| client.state.lost().is_none()).map(|(number, _)| *number).collect()
    }

    /// Returns those of one worker.
    pub(crate) fn live_of(&self, node: &str) -> Vec<u64> {
        let mut live = self.live();
        live.retain(|number| self.clients[number].node == node);
        live
    }

    /// Ends all sessions.
    pub(crate) fn lose_all(&mut self, reason: &str) {
        self.live().into_iter().for_each(|number| self.lose(number, reason));
    }

    /// Ends a session for both sides.
    pub(crate) fn lose(&mut self, number: u64, reason: &str) {
        if self.clients[&number].state.lost().is_some() {
            return;
        }
        self.note(&format!("lost {number} {reason}"));
        self.give_back(number);
        let client = self.clients.get_mut(&number).unwrap();
        // What was under way ends with the connection.
        client.delayed.clear();
        client.state.set(&State::Lost(reason.to_owned()));
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
        let delayed = if is_cut { Vec::new() } else { std::mem::take(&mut client.delayed) };
        for delayed in delayed {
            match delayed {
                Delayed::Acks(tags) => self.settle(number, &tags),
                Delayed::Nack(tag) => self.give_one_back(number, tag),
                Delayed::CloseParked => self.give_back_parked(number),
            }
        }
    }

    /// Returns a queue whose consumer the broker ended, if the session was not told yet and hears anything.
    pub(crate) fn tell_cancelled(&mut self, number: u64) -> Option<String> {
        let client = self.clients.get_mut(&number)?;
        if client.cut.is_some() { None } else { client.cancelled.pop() }
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
        for client in self.clients.values_mut().filter(|client| client.cut.is_none()) {
            client.state.set(&next);
        }
    }
}
