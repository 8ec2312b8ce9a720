//! What is handed out to sessions, and how it is settled or comes back.

use std::time::Duration;

use filestorage::broker::PARKED_QUEUE;
use tokio::time::Instant;

use super::sessions::{Delayed, Unsettled};
use super::{Model, Mood, Queue, Stored, commands_of, name_of};

/// RabbitMQ ends the channel of a delivery that is not settled for 30 minutes; nothing shall come near that.
const LONGEST_HOLD: Duration = Duration::from_secs(29 * 60);

impl Model {
    /// Hands deliveries out to a session, as far as its prefetch goes.
    pub(crate) fn hand_out(&mut self, number: u64) -> Vec<(u64, String, Stored)> {
        let consumed = self.clients.get(&number).map(|client| client.consumed.clone()).unwrap_or_default();
        self.deliver(number, &consumed, |model| usize::try_from(model.random.between(1, model.batch as u64)).unwrap())
    }

    /// Hands parked publications out to a session.
    pub(crate) fn hand_out_parked(&mut self, number: u64) -> Vec<(u64, String, Stored)> {
        let prefetch = self.clients.get(&number).and_then(|client| client.parked);
        let consumed = prefetch.map(|prefetch| (PARKED_QUEUE.to_owned(), prefetch));
        self.deliver(number, &Vec::from_iter(consumed), |_| usize::MAX)
    }

    /// Hands out what is there; how much at most is asked where there is something only.
    fn deliver(
        &mut self,
        number: u64,
        consumed: &[(String, usize)],
        most: impl Fn(&mut Self) -> usize,
    ) -> Vec<(u64, String, Stored)> {
        let mut batch = Vec::new();
        if self.clients.get(&number).is_none_or(|client| client.cut.is_some()) {
            return batch;
        }
        let mut left = None;
        for (name, prefetch) in consumed {
            let held = self.clients[&number].unsettled.values().filter(|unsettled| unsettled.queue == *name).count();
            let mut room = prefetch.saturating_sub(held);
            let takes = |queue: &Queue| queue.mood != Mood::Down && !queue.messages.is_empty();
            if room == 0 || !self.queues.get(name).is_some_and(takes) {
                continue;
            }
            let left = left.get_or_insert_with(|| most(self));
            let (Some(client), Some(queue)) = (self.clients.get_mut(&number), self.queues.get_mut(name)) else { break };
            while room > 0 && *left > 0 {
                let Some(stored) = queue.messages.pop_front() else { break };
                let tag = client.next_tag;
                client.next_tag += 1;
                let unsettled = Unsettled { queue: name.clone(), stored: stored.clone(), since: Instant::now() };
                client.unsettled.insert(tag, unsettled);
                batch.push((tag, name.clone(), stored));
                room -= 1;
                *left -= 1;
            }
        }
        if !batch.is_empty() {
            let ids: Vec<_> = batch.iter().map(|(.., stored)| name_of(&stored.message)).collect();
            self.note(&format!("deliver {number} {}", ids.join(",")));
        }
        batch
    }

    /// Tells whether a worker holds a delivery with a body of more bytes.
    pub(crate) fn holds_more_than(&self, node: &str, bytes: usize) -> bool {
        let held =
            self.clients.values().filter(|client| client.node == node).flat_map(|client| client.unsettled.values());
        held.into_iter().any(|unsettled| unsettled.stored.message.body.len() > bytes)
    }

    /// Takes acknowledgements of a session.
    pub(crate) fn settle(&mut self, number: u64, tags: &[u64]) {
        let confirmed = self.confirmed.len();
        let Some(client) = self.clients.get_mut(&number) else { return };
        if client.cut.is_some() {
            let held = tags.iter().filter_map(|tag| client.unsettled.get(tag));
            let ids: Vec<_> = held.map(|unsettled| name_of(&unsettled.stored.message)).collect();
            client.delayed.push(Delayed::Acks(tags.to_owned()));
            self.note(&format!("delayed ack {number} {}", ids.join(",")));
            return;
        }
        let (mut settled, mut unknown) = (Vec::new(), Vec::new());
        for tag in tags.iter().filter(|tag| !client.void.remove(tag)) {
            match client.unsettled.remove(tag) {
                Some(unsettled) => settled.push(unsettled),
                None => unknown.push(*tag),
            }
        }
        assert!(unknown.is_empty(), "session {number} settles {unknown:?} again\n{}", self.trace);
        let ids: Vec<_> = settled.iter().map(|unsettled| name_of(&unsettled.stored.message)).collect();
        self.note(&format!("ack {number} {}", ids.join(",")));
        for (unsettled, id) in settled.iter().zip(ids) {
            self.judge_hold(unsettled);
            self.settled.push((Instant::now(), id.clone()));
            if unsettled.queue != PARKED_QUEUE {
                self.acknowledged.push((id, confirmed));
            }
        }
    }

    /// Puts one unsettled delivery back to its place.
    pub(crate) fn give_one_back(&mut self, number: u64, tag: u64) {
        let Some(client) = self.clients.get_mut(&number) else { return };
        if client.cut.is_some() {
            client.delayed.push(Delayed::Nack(tag));
            return self.note(&format!("delayed nack {number}"));
        }
        let unsettled = client.unsettled.remove(&tag);
        self.return_all(number, unsettled.into_iter().collect());
    }

    /// Puts everything unsettled of a session back to its place.
    pub(crate) fn give_back(&mut self, number: u64) {
        let Some(client) = self.clients.get_mut(&number) else { return };
        client.consumed.clear();
        client.parked = None;
        let unsettled = std::mem::take(&mut client.unsettled);
        self.return_all(number, unsettled.into_values().collect());
    }

    /// Ends the consumer of parked publications; what it holds goes back.
    pub(crate) fn give_back_parked(&mut self, number: u64) {
        let Some(client) = self.clients.get_mut(&number) else { return };
        if client.cut.is_some() && client.state.lost().is_none() {
            // It arrives after the acknowledgements before it.
            client.delayed.push(Delayed::CloseParked);
            return;
        }
        client.parked = None;
        let parked = client.unsettled.extract_if(.., |_, unsettled| unsettled.queue == PARKED_QUEUE);
        let parked = parked.map(|(_, unsettled)| unsettled).collect();
        self.return_all(number, parked);
    }

    /// Takes a queue's node down: its consumers end, and what they hold comes again once it is back.
    pub(crate) fn take_down(&mut self, queue: &str) {
        self.note(&format!("down {queue}"));
        self.queue(queue).mood = Mood::Down;
        for number in self.live() {
            let Some(client) = self.clients.get_mut(&number) else { continue };
            let before = client.consumed.len();
            client.consumed.retain(|(consumed, _)| consumed != queue);
            if client.consumed.len() < before {
                client.cancelled.push(queue.to_owned());
            }
            let held: Vec<_> = client.unsettled.extract_if(.., |_, unsettled| unsettled.queue == queue).collect();
            client.void.extend(held.iter().map(|(tag, _)| *tag));
            self.return_all(number, held.into_iter().map(|(_, unsettled)| unsettled).collect());
        }
    }

    fn return_all(&mut self, number: u64, all: Vec<Unsettled>) {
        if all.is_empty() {
            return;
        }
        let ids: Vec<_> = all.iter().map(|unsettled| name_of(&unsettled.stored.message)).collect();
        self.note(&format!("back {number} {}", ids.join(",")));
        for unsettled in all {
            self.judge_hold(&unsettled);
            let Unsettled { queue, stored, .. } = unsettled;
            self.doubtful.extend(commands_of(&stored.message));
            if let Some(queue) = self.queues.get_mut(&queue) {
                queue.put_back(stored);
            }
        }
    }

    /// Notes a delivery that was kept for so long that the broker would have ended its channel.
    fn judge_hold(&mut self, unsettled: &Unsettled) {
        let held = unsettled.since.elapsed();
        if held > LONGEST_HOLD {
            let id = name_of(&unsettled.stored.message);
            self.overdue.push(format!("{id} of {} was not settled for {} s", unsettled.queue, held.as_secs()));
        }
    }

    /// Returns what was kept for too long, also what still is.
    pub(crate) fn held_for_too_long(&mut self) -> Vec<String> {
        let clients = std::mem::take(&mut self.clients);
        clients.values().flat_map(|client| client.unsettled.values()).for_each(|unsettled| self.judge_hold(unsettled));
        self.clients = clients;
        self.overdue.clone()
    }
}
