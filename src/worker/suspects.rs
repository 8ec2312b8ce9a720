//! Addresses whose queue lately said neither yes nor no, as one without a leader does.

use std::collections::HashMap;
use std::time::{Duration, Instant};

use crate::celery::message::Address;

/// So often in a row an address may confirm nothing before answers to it are given up.
const PATIENCE: u8 = 3;
/// How long such an answer is waited for all the same, to notice that the queue is back.
pub(super) const GLANCE: Duration = Duration::from_secs(1);
/// An address nobody has tried for so long is as good as new.
const MEMORY: Duration = Duration::from_secs(300);

/// What is known of one address.
#[derive(Debug)]
struct Suspect {
    /// How often in a row it confirmed nothing.
    times: u8,
    last: Instant,
}

/// Addresses apart from which everything else is sent, so that one queue's silence holds up nobody but its own clients.
#[derive(Debug, Default)]
pub(super) struct Suspects(HashMap<Address, Suspect>);

impl Suspects {
    /// Tells whether there is none.
    pub(super) fn is_empty(&self) -> bool {
        self.0.is_empty()
    }

    /// Tells whether this address is one.
    pub(super) fn contains(&self, address: &Address) -> bool {
        self.0.contains_key(address)
    }

    /// Tells whether answers to this address are given up.
    pub(super) fn is_hopeless(&self, address: &Address) -> bool {
        self.0.get(address).is_some_and(|suspect| suspect.times >= PATIENCE)
    }

    /// Notes that it confirmed nothing, once more.
    pub(super) fn silent(&mut self, address: &Address) {
        self.0.retain(|_, suspect| suspect.last.elapsed() < MEMORY);
        let suspect = self.0.entry(address.clone()).or_insert(Suspect { times: 0, last: Instant::now() });
        suspect.times = suspect.times.saturating_add(1);
        suspect.last = Instant::now();
        let Address { exchange, routing_key } = address;
        match suspect.times {
            1 => tracing::warn!(exchange, routing_key, "not confirmed; what goes there is sent apart"),
            PATIENCE => tracing::error!(
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
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn an_address_is_suspect_until_it_answers_and_hopeless_after_some_tries() {
        let mut suspects = Suspects::default();
        let (silent, other) = (Address::queue("silent"), Address::queue("other"));
        for times in 1..=PATIENCE {
            suspects.silent(&silent);
            assert!(suspects.contains(&silent) && !suspects.contains(&other));
            assert_eq!(suspects.is_hopeless(&silent), times == PATIENCE);
        }
        suspects.heard(&other);
        assert!(suspects.is_hopeless(&silent));
        suspects.heard(&silent);
        assert!(suspects.is_empty() && !suspects.is_hopeless(&silent));
    }
}
