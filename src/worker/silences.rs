//! Addresses whose queue lately said neither yes nor no, as one without a leader does.

use std::collections::HashMap;
use std::time::{Duration, Instant};

use crate::celery::message::Address;

/// So often in a row an address may confirm nothing before answers to it are given up.
const TRIES: u8 = 3;
/// How long such an answer is waited for all the same, to notice that the queue is back.
pub(super) const GLANCE: Duration = Duration::from_secs(1);
/// After so long without a try answers to it are waited for as at first.
const HOPE: Duration = Duration::from_secs(300);
/// After so long without a try it is an address like all others.
const MEMORY: Duration = Duration::from_secs(3600);

/// What is known of one address.
#[derive(Debug)]
struct Silence {
    /// How often in a row it confirmed nothing.
    times: u8,
    last: Instant,
}

/// Addresses apart from which everything else is sent, so that one queue's silence holds up nobody but its own clients.
#[derive(Debug, Default)]
pub(super) struct Silences(HashMap<Address, Silence>);

impl Silences {
    /// Forgets what is too old to be true, and tells whether there is any silent address.
    pub(super) fn any(&mut self) -> bool {
        self.0.retain(|_, silence| silence.last.elapsed() < MEMORY);
        !self.0.is_empty()
    }

    /// Tells whether this address is silent.
    pub(super) fn contains(&self, address: &Address) -> bool {
        self.0.contains_key(address)
    }

    /// Tells whether answers to this address are given up.
    pub(super) fn is_hopeless(&self, address: &Address) -> bool {
        self.0.get(address).is_some_and(|silence| silence.times >= TRIES && silence.last.elapsed() < HOPE)
    }

    /// Notes that it confirmed nothing, once more.
    pub(super) fn note(&mut self, address: &Address) {
        let silence = self.0.entry(address.clone()).or_insert(Silence { times: 0, last: Instant::now() });
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

    /// Notes that it answers.
    pub(super) fn heard(&mut self, address: &Address) {
        if self.0.remove(address).is_some() {
            let Address { exchange, routing_key } = address;
            tracing::info!(exchange, routing_key, "confirms again");
        }
    }

    #[cfg(test)]
    fn age(&mut self, address: &Address, by: Duration) {
        if let Some(silence) = self.0.get_mut(address) {
            silence.last = silence.last.checked_sub(by).unwrap_or(silence.last);
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn an_address_is_silent_until_it_answers_and_hopeless_after_some_tries() {
        let mut silences = Silences::default();
        let (silent, other) = (Address::queue("silent"), Address::queue("other"));
        for times in 1..=TRIES {
            silences.note(&silent);
            assert!(silences.contains(&silent) && !silences.contains(&other));
            assert_eq!(silences.is_hopeless(&silent), times == TRIES);
        }
        silences.heard(&other);
        assert!(silences.is_hopeless(&silent));
        silences.heard(&silent);
        assert!(!silences.any() && !silences.is_hopeless(&silent));
    }

    #[test]
    fn what_nobody_tried_for_long_is_waited_for_again_and_forgotten_in_the_end() {
        let mut silences = Silences::default();
        let silent = Address::queue("silent");
        (0..TRIES).for_each(|_| silences.note(&silent));
        silences.age(&silent, HOPE);
        assert!(silences.any() && !silences.is_hopeless(&silent));
        silences.note(&silent);
        assert!(silences.is_hopeless(&silent), "still silent");
        silences.age(&silent, MEMORY);
        assert!(!silences.any() && !silences.contains(&silent));
    }
}
