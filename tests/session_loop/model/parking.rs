//! The queues of parked publications: they wait in a step, and go to [`PARKED_QUEUE`] then.

use std::time::Duration;

use filestorage::broker::{EVENTS_EXCHANGE, METRICS_QUEUE, PARKED_QUEUE, Parking};
use filestorage::celery::message::{Address, Field, Headers, Message};

use super::queue::Queue;
use super::{Model, Mood, Stored, Waiting, name_of};

/// How often a queue that is down tries to move what waited in it.
const MOVE_AGAIN: Duration = Duration::from_secs(1);
/// The parts of the bound that the steps may hold.
const SHARES: [u64; 3] = [4, 4, 2];

impl Model {
    /// Makes the queues of parked publications impossible: none is there, and none may be made.
    pub(crate) fn forbid_parking(&mut self) {
        self.forbidden.extend(Parking::queues());
    }

    /// Returns what a queue is made as. One of parked publications has a part of the bound, where `max_bytes` is the bound of all together.
    pub(crate) fn parking_queue(name: &str, max_bytes: u64) -> Queue {
        let Some(wait) = name.strip_prefix(PARKED_QUEUE).and_then(|name| name.strip_prefix('.')) else {
            return Queue::default();
        };
        let step = (0..SHARES.len()).find(|step| Parking::address(*step).routing_key == name).unwrap();
        let wait = Duration::from_millis(wait.parse().unwrap());
        let wait = Some((wait, PARKED_QUEUE.to_owned()));
        Queue { max_bytes: Some(max_bytes / SHARES[step]), wait, ..Queue::default() }
    }

    /// Moves everything that has waited for its time out of a queue, as the broker does with dead letters.
    pub(crate) fn expire(&mut self, name: &str) {
        let now = tokio::time::Instant::now();
        let is_down = |model: &Self, name: &str| model.queues.get(name).is_none_or(|queue| queue.mood == Mood::Down);
        let Some((_, target)) = self.queues.get(name).and_then(|queue| queue.wait.clone()) else { return };
        if is_down(self, name) || is_down(self, &target) {
            self.waiting.push((MOVE_AGAIN, Waiting::Expiry(name.to_owned())));
            return;
        }
        let is_over = |stored: &Stored| stored.expires.is_some_and(|expires| expires <= now);
        while let Some(stored) = self.queue(name).messages.pop_front_if(|stored| is_over(stored)) {
            let mut stored = stored;
            let seconds = self.began.elapsed().as_secs();
            dead_letter(&mut stored.message, name, &stored.address, seconds);
            self.note(&format!("expired {name} {}", name_of(&stored.message)));
            self.places += 1;
            stored.place = self.places;
            stored.address = Address::queue(target.as_str());
            self.queue(&target).push(stored);
        }
    }

    /// Returns what waits or came back and is not acknowledged, of all commands.
    pub(crate) fn parked(&self) -> Vec<&Message> {
        let waits = Parking::queues().filter_map(|name| self.queues.get(&name)).flat_map(|queue| &queue.messages);
        let held = self.clients.values().flat_map(|client| client.unsettled.values());
        let held = held.filter(|unsettled| unsettled.queue == PARKED_QUEUE).map(|unsettled| &unsettled.stored);
        waits.chain(held).map(|stored| &stored.message).collect()
    }
}

/// Returns the queue to which a parked publication is to go in the end.
pub(super) fn destination(message: &Message) -> Option<String> {
    let exchange = message.headers.text("x-filestorage-parked-exchange")?;
    if exchange == EVENTS_EXCHANGE {
        return Some(METRICS_QUEUE.to_owned());
    }
    message.headers.text("x-filestorage-parked-routing-key").map(str::to_owned)
}

/// Writes what RabbitMQ writes on a message whose time in a queue is over.
fn dead_letter(message: &mut Message, queue: &str, address: &Address, seconds: u64) {
    let Address { exchange, routing_key } = address;
    let keys = Field::List(vec![routing_key.as_str().into()]);
    let entry: Headers = [
        ("count", Field::Int(1)),
        ("reason", "expired".into()),
        ("queue", queue.into()),
        ("time", Field::Timestamp(seconds)),
        ("exchange", exchange.as_str().into()),
        ("routing-keys", keys),
    ]
    .into_iter()
    .map(|(name, value)| (name.to_owned(), value))
    .collect();
    message.headers.set("x-death", Field::List(vec![Field::Table(entry)]));
    for when in ["first", "last"] {
        message.headers.set(format!("x-{when}-death-exchange"), exchange.as_str().into());
        message.headers.set(format!("x-{when}-death-queue"), queue.into());
        message.headers.set(format!("x-{when}-death-reason"), "expired".into());
    }
}
