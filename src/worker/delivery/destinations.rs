//! Addresses whose queue lately said neither yes nor no, as one without a leader does, or no, as a full one does.

use std::collections::HashMap;
use std::time::Duration;

use tokio::time::Instant;

use crate::celery::message::Address;

/// So often in a row an address may confirm nothing before answers to it are given up.
const TRIES: u8 = 3;
/// How long such an answer is waited for all the same, to notice that the queue is back.
pub(in crate::worker) const GLANCE: Duration = Duration::from_secs(1);
/// After so long without a try answers to it are waited for as at first.
const HOPE: Duration = Duration::from_secs(300);
/// After so long without another refusal a queue that was full is one like all others.
const FULL: Duration = Duration::from_secs(60);
/// How often an address that takes nothing is tried by one of the commands that owe it something.
const TRIAL: Duration = Duration::from_secs(5);
/// After so long without a try it is an address like all others.
const MEMORY: Duration = Duration::from_secs(3600);

/// What is known of one address.
#[derive(Debug)]
struct Unanswered {
    /// How often in a row it confirmed nothing.
    times: u8,
    last: Instant,
}

/// Addresses apart from which everything else is sent, so that one queue holds up nobody but its own clients.
#[derive(Debug, Default)]
pub(in crate::worker) struct Destinations {
    silent: HashMap<Address, Unanswered>,
    /// When a queue last took something not.
    full: HashMap<Address, Instant>,
    /// What goes there is parked at once; when the address was last tried.
    open: HashMap<Address, Instant>,
}

impl Destinations {
    /// Forgets what is too old to be true, and tells whether there is any silent or full address.
    pub(in crate::worker) fn any(&mut self) -> bool {
        self.silent.retain(|_, silence| silence.last.elapsed() < MEMORY);
        self.full.retain(|_, last| last.elapsed() < FULL);
        let (silent, full) = (&self.silent, &self.full);
        self.open.retain(|address, _| silent.contains_key(address) || full.contains_key(address));
        !self.silent.is_empty() || !self.full.is_empty()
    }

    /// Tells whether this address is silent or full.
    pub(in crate::worker) fn contains(&self, address: &Address) -> bool {
        self.silent.contains_key(address) || self.full.contains_key(address)
    }

    /// Notes that something for this address was parked: whatever follows is parked at once, until the address takes something.
    pub(in crate::worker) fn parked(&mut self, address: Address) {
        if self.contains(&address) {
            self.open.entry(address).or_insert_with(Instant::now);
        }
    }

    /// Tells whether what goes to this address is parked at once.
    pub(in crate::worker) fn is_open(&self, address: &Address) -> bool {
        self.open.contains_key(address)
    }

    /// Tells whether it is time to try an address to which everything is parked, and begins the time until the next try.
    pub(in crate::worker) fn begin_trial(&mut self, address: &Address) -> bool {
        let Some(last) = self.open.get_mut(address).filter(|last| last.elapsed() >= TRIAL) else { return false };
        *last = Instant::now();
        true
    }

    /// Lists the routing keys of the addresses that take nothing.
    pub(in crate::worker) fn names(&self) -> Vec<&str> {
        let mut names: Vec<&str> =
            self.silent.keys().chain(self.full.keys()).map(|address| address.routing_key.as_str()).collect();
        names.sort_unstable();
        names.dedup();
        names
    }

    /// Tells whether answers to this address are given up.
    pub(in crate::worker) fn is_hopeless(&self, address: &Address) -> bool {
        self.silent.get(address).is_some_and(|silence| silence.times >= TRIES && silence.last.elapsed() < HOPE)
    }

    /// Notes that it confirmed nothing, once more.
    pub(in crate::worker) fn note(&mut self, address: &Address) {
        let silence = self.silent.entry(address.clone()).or_insert(Unanswered { times: 0, last: Instant::now() });
        silence.times = silence.times.saturating_add(1);
        silence.last = Instant::now();
        let Address { exchange, routing_key } = address;
        match silence.times {
            1 => tracing::warn!(exchange, routing_key, "not confirmed; what goes there is sent apart"),
            TRIES => tracing::error!(
                exchange,
                routing_key,
                "nothing is confirmed; answers that go there are given up until it confirms again. Has the queue lost \
                 its leader? See rabbitmqctl list_queues name type state"
            ),
            _ => {}
        }
    }

    /// Notes that it answers, and takes everything.
    pub(in crate::worker) fn heard(&mut self, address: &Address) {
        let (silent, full) = (self.silent.remove(address), self.full.remove(address));
        self.open.remove(address);
        if silent.is_some() || full.is_some() {
            let Address { exchange, routing_key } = address;
            tracing::info!(exchange, routing_key, "confirms again");
        }
    }

    /// Notes that it answers, and that its queue took something not.
    pub(in crate::worker) fn refused(&mut self, address: &Address) {
        self.silent.remove(address);
        if self.full.insert(address.clone(), Instant::now()).is_none() {
            let Address { exchange, routing_key } = address;
            tracing::warn!(
                exchange,
                routing_key,
                "refused by its queue, which may be full; what goes there is sent apart"
            );
        }
    }

    /// Notes that nothing reaches a queue there.
    pub(in crate::worker) fn missing(&mut self, address: &Address) {
        self.silent.remove(address);
        if self.full.insert(address.clone(), Instant::now()).is_none() {
            let Address { exchange, routing_key } = address;
            tracing::warn!(exchange, routing_key, "its queue is missing or down; what goes there is sent apart");
        }
    }

    #[cfg(test)]
    fn age(&mut self, address: &Address, by: Duration) {
        if let Some(silence) = self.silent.get_mut(address) {
            silence.last = silence.last.checked_sub(by).unwrap_or(silence.last);
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn an_address_is_silent_until_it_answers_and_hopeless_after_some_tries() {
        let mut destinations = Destinations::default();
        let (silent, other) = (Address::queue("silent"), Address::queue("other"));
        for times in 1..=TRIES {
            destinations.note(&silent);
            assert!(destinations.contains(&silent) && !destinations.contains(&other));
            assert_eq!(destinations.is_hopeless(&silent), times == TRIES);
        }
        destinations.heard(&other);
        assert!(destinations.is_hopeless(&silent));
        destinations.heard(&silent);
        assert!(!destinations.any() && !destinations.is_hopeless(&silent));
    }

    #[test]
    fn a_full_address_is_apart_until_it_takes_everything_and_never_hopeless() {
        let mut destinations = Destinations::default();
        let full = Address::queue("full");
        (0..TRIES).for_each(|_| destinations.note(&full));
        (0..=TRIES).for_each(|_| destinations.refused(&full));
        assert!(destinations.any() && destinations.contains(&full) && !destinations.is_hopeless(&full));
        destinations.heard(&full);
        assert!(!destinations.any() && !destinations.contains(&full));
    }

    #[test]
    fn what_was_parked_opens_an_address_until_it_takes_something_and_is_tried_from_time_to_time() {
        let mut destinations = Destinations::default();
        let (full, other) = (Address::queue("full"), Address::queue("other"));
        destinations.parked(other.clone());
        assert!(!destinations.is_open(&other), "it takes everything");
        destinations.refused(&full);
        assert!(!destinations.is_open(&full));
        destinations.parked(full.clone());
        assert!(destinations.is_open(&full) && !destinations.begin_trial(&full));
        let long_ago = Instant::now().checked_sub(TRIAL).unwrap();
        destinations.open.insert(full.clone(), long_ago);
        assert!(destinations.begin_trial(&full) && !destinations.begin_trial(&full), "one at a time");
        assert_eq!(destinations.names(), ["full"]);
        destinations.heard(&full);
        assert!(!destinations.any() && !destinations.is_open(&full));
        destinations.missing(&full);
        assert!(destinations.contains(&full) && !destinations.is_open(&full));
    }

    #[test]
    fn what_nobody_tried_for_long_is_waited_for_again_and_forgotten_in_the_end() {
        let mut destinations = Destinations::default();
        let silent = Address::queue("silent");
        (0..TRIES).for_each(|_| destinations.note(&silent));
        destinations.age(&silent, HOPE);
        assert!(destinations.any() && !destinations.is_hopeless(&silent));
        destinations.note(&silent);
        assert!(destinations.is_hopeless(&silent), "still silent");
        destinations.age(&silent, MEMORY);
        assert!(!destinations.any() && !destinations.contains(&silent));
    }
}
