//! What is published: where it goes, and what the broker says to it.

use std::time::Duration;

use filestorage::broker::{EVENTS_EXCHANGE, METRICS_QUEUE};
use filestorage::celery::message::{Address, Field, Message, Publication};
use tokio::time::Instant;

use super::parking::destination;
use super::{Model, Mood, Stored, Waiting, commands_of, name_of, names};

/// The exchanges of delay queues.
pub(super) const DELAY: &str = "filestorage.delay.";

/// What the broker does with one publication.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) enum Verdict {
    Routed,
    Returned,
    Nacked,
    Silent,
    Refused(u16, String),
}

/// A publication that reached the broker.
#[derive(Clone, Debug)]
pub(crate) struct Arrival {
    pub(crate) at: Instant,
    /// Its queue, or where it was to go.
    pub(crate) queue: String,
    pub(crate) verdict: Verdict,
}

impl Model {
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
        let queue = self.route(address).unwrap_or_else(|| address.routing_key.clone());
        self.note(&names::line(&verdict, &queue, publication));
        self.arrivals.push(Arrival { at: Instant::now(), queue, verdict: verdict.clone() });
        verdict
    }

    fn judge(&mut self, address: &Address, message: &Message) -> Verdict {
        let Some(name) = self.route(address) else { return Verdict::Returned };
        if let Some(step) = name.strip_prefix(DELAY) {
            self.delayed.push(name_of(message));
            let mut message = message.clone();
            message.headers.set("x-first-death-queue", name.as_str().into());
            let queue = address.routing_key.clone();
            self.waiting.push((Duration::from_millis(step.parse().unwrap()), Waiting::Delay(queue, Box::new(message))));
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
                if takes && !queue.would_overflow(message) {
                    self.enter(&name, stored);
                }
                Verdict::Silent
            }
            Mood::Takes if queue.would_overflow(message) => Verdict::Nacked,
            Mood::Takes => {
                self.enter(&name, stored);
                Verdict::Routed
            }
        }
    }

    /// Puts a message into a queue, where its time may begin.
    fn enter(&mut self, name: &str, stored: Stored) {
        let queue = self.queue(name);
        queue.push(stored);
        let wait = queue.wait.as_ref().map(|(wait, _)| *wait);
        self.waiting.extend(wait.map(|wait| (wait, Waiting::Expiry(name.to_owned()))));
    }

    /// Ends a wait.
    pub(crate) fn end_wait(&mut self, waiting: Waiting) {
        match waiting {
            Waiting::Expiry(queue) => self.expire(&queue),
            Waiting::Delay(queue, message) => {
                let id = name_of(&message);
                let index = self.delayed.iter().position(|delayed| *delayed == id).unwrap();
                self.delayed.remove(index);
                self.put(&queue, &message);
            }
        }
    }

    /// Notes that a session was told that a publication arrived; a parked one counts for the queue to which it goes.
    pub(crate) fn confirm(&mut self, publication: &Publication) {
        let queue = self.route(&publication.address).unwrap_or_else(|| publication.address.routing_key.clone());
        let queue = destination(&publication.message).unwrap_or(queue);
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
        Stored { message, address: address.clone(), redelivered: false, place: self.places, expires: None }
    }

    /// Puts a message into a queue as a producer does.
    pub(crate) fn put(&mut self, queue: &str, message: &Message) {
        let stored = self.stored(&Address::queue(queue), message);
        let id = message.properties.correlation_id.clone().unwrap_or_default();
        self.note(&format!("put {queue} {id}"));
        self.enter(queue, stored);
    }
}
