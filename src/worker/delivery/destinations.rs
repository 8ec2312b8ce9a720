//! One circuit breaker for each address whose queue lately took nothing.

use std::collections::BTreeMap;
use std::time::Duration;

use tokio::time::Instant;

use crate::celery::message::Address;

/// How long an address that took nothing is not tried at first; each failure doubles it.
const FIRST_WAIT: Duration = Duration::from_secs(1);
/// How long at most an address is not tried that refuses: a queue may be read, or made, at any time.
const LONGEST_REFUSAL: Duration = Duration::from_secs(5);
/// How long at most one is not tried that says neither yes nor no: each try may have been taken all the same.
const LONGEST_SILENCE: Duration = Duration::from_secs(60);
/// So often in a row, and for [`ANSWER_PATIENCE`], an address may confirm nothing before answers to it are given up.
const TRIES: u8 = 3;
/// How long a confirm is waited for then, and an address not tried: only to notice that the queue is back.
pub(in crate::worker) const GLANCE: Duration = Duration::from_secs(1);
/// After so long without a try answers to it are waited for as at first.
const HOPE: Duration = Duration::from_secs(300);
/// After so long without another refusal a queue that refused is one like all others.
const REFUSAL_MEMORY: Duration = Duration::from_secs(60);
/// After so long without a try a silent address is one like all others.
const SILENCE_MEMORY: Duration = Duration::from_secs(3600);

/// Why an address takes nothing.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(in crate::worker) enum Fault {
    /// Its queue refuses, as a full one does.
    Full,
    /// No queue is there, or it is down.
    Missing,
    /// Its queue says neither yes nor no, as one without a leader does.
    Silent,
    /// The store of results does not confirm. It is there for everybody: what it shall keep is never given up.
    Away,
}

/// An open circuit: what goes there waits apart from everything else, and one publication at a time tries the address.
#[derive(Debug)]
struct Breaker {
    fault: Fault,
    /// How often in a row it took nothing; 0 while that is a guess.
    times: u8,
    /// When it first did, in this row.
    first: Instant,
    /// When it last took nothing.
    last: Instant,
    next_try: Instant,
    /// Something was parked: what follows is parked at once.
    is_parking: bool,
}

/// How long an answer is tried again at least whose queue takes nothing.
pub(in crate::worker) const ANSWER_PATIENCE: Duration = Duration::from_secs(45);

/// The addresses that take nothing; all others take what they get, as far as anybody knows. Outlives sessions.
#[derive(Debug, Default)]
pub(in crate::worker) struct Destinations {
    open: BTreeMap<Address, Breaker>,
    /// Counts how often an address was found that takes nothing.
    changes: u64,
}

impl Destinations {
    /// Tells whether all addresses take what they get.
    pub(in crate::worker) fn is_empty(&self) -> bool {
        self.open.is_empty()
    }

    /// Forgets what is too old to be true, and returns it.
    pub(in crate::worker) fn expire(&mut self) -> Vec<Address> {
        let is_over = |_: &Address, breaker: &mut Breaker| {
            let is_silent = breaker.fault == Fault::Silent && breaker.times > 0;
            let memory = if is_silent { SILENCE_MEMORY } else { REFUSAL_MEMORY };
            breaker.last.elapsed() >= memory
        };
        self.open.extract_if(.., is_over).map(|(address, _)| address).collect()
    }

    /// Tells whether this address takes nothing.
    pub(in crate::worker) fn is_open(&self, address: &Address) -> bool {
        self.open.contains_key(address)
    }

    /// Returns why an address takes nothing.
    pub(in crate::worker) fn fault(&self, address: &Address) -> Option<Fault> {
        self.open.get(address).map(|breaker| breaker.fault)
    }

    /// Returns when an address is to be tried again; at once where it takes what it gets.
    pub(in crate::worker) fn next_try(&self, address: &Address) -> Instant {
        self.open.get(address).map_or_else(Instant::now, |breaker| breaker.next_try)
    }

    /// Returns since when an address has taken nothing, and when that was last seen; nothing where it was not seen.
    pub(in crate::worker) fn failures(&self, address: &Address) -> Option<(Instant, Instant)> {
        self.open.get(address).filter(|breaker| breaker.times > 0).map(|breaker| (breaker.first, breaker.last))
    }

    /// Counts how often an address was found that takes nothing.
    pub(in crate::worker) const fn changes(&self) -> u64 {
        self.changes
    }

    /// Notes that something for this address was parked.
    pub(in crate::worker) fn parked(&mut self, address: &Address) {
        if let Some(breaker) = self.open.get_mut(address) {
            breaker.is_parking = true;
        }
    }

    /// Tells whether what goes there is parked at once.
    pub(in crate::worker) fn is_parking(&self, address: &Address) -> bool {
        self.open.get(address).is_some_and(|breaker| breaker.is_parking)
    }

    /// Tells whether answers to this address are given up.
    pub(in crate::worker) fn is_hopeless(&self, address: &Address) -> bool {
        self.open.get(address).is_some_and(Breaker::is_hopeless)
    }

    /// Lists the routing keys of the addresses that take nothing.
    pub(in crate::worker) fn names(&self) -> Vec<&str> {
        let mut names: Vec<&str> = self.open.keys().map(|address| address.routing_key.as_str()).collect();
        names.sort_unstable();
        names.dedup();
        names
    }

    /// Opens the circuit of an address that took nothing from another worker, or has not answered yet: it is tried before more is
    /// sent there.
    pub(in crate::worker) fn doubt(&mut self, address: &Address, fault: Fault) {
        let now = Instant::now();
        let doubted = Breaker { fault, times: 0, first: now, last: now, next_try: now, is_parking: false };
        self.open.entry(address.clone()).or_insert(doubted);
        self.changes += 1;
    }

    /// Opens the circuit of an address that took something not, or keeps it open for longer.
    pub(in crate::worker) fn trip(&mut self, address: &Address, fault: Fault) {
        let now = Instant::now();
        let fresh = Breaker { fault, times: 0, first: now, last: now, next_try: now, is_parking: false };
        self.changes += 1;
        let breaker = self.open.entry(address.clone()).or_insert(fresh);
        // After long without a try it is a new row; the last try of the old one may have taken a glance.
        if breaker.fault != fault || breaker.times == 0 || breaker.last.elapsed() > HOPE + GLANCE {
            (breaker.fault, breaker.times, breaker.first) = (fault, 0, now);
        }
        breaker.times = breaker.times.saturating_add(1);
        breaker.last = now;
        breaker.next_try = now + breaker.wait();
        let Address { exchange, routing_key } = address;
        match (fault, breaker.times) {
            (Fault::Silent, TRIES) => tracing::error!(
                exchange,
                routing_key,
                "nothing is confirmed; answers that go there are given up until it confirms again. Has the queue lost \
                 its leader? See rabbitmqctl list_queues name type state"
            ),
            (_, 1) => {
                let why = match fault {
                    Fault::Full => "refused by its queue, which may be full",
                    Fault::Missing => "its queue is missing or down",
                    Fault::Silent => "not confirmed",
                    Fault::Away => "not confirmed by the store of results",
                };
                tracing::warn!(exchange, routing_key, "{why}; what goes there is sent apart");
            }
            _ => {}
        }
    }

    /// Closes the circuit of an address that took something; tells whether it was open.
    pub(in crate::worker) fn close(&mut self, address: &Address) -> bool {
        let closed = self.open.remove(address);
        if closed.as_ref().is_some_and(|breaker| breaker.times > 0) {
            let Address { exchange, routing_key } = address;
            tracing::info!(exchange, routing_key, "confirms again");
        }
        closed.is_some()
    }
}

impl Breaker {
    fn is_hopeless(&self) -> bool {
        self.fault == Fault::Silent
            && self.times >= TRIES
            && self.first.elapsed() >= ANSWER_PATIENCE
            && self.last.elapsed() < HOPE
    }

    /// Returns how long the address is not tried.
    fn wait(&self) -> Duration {
        let wait = |doublings: u8| FIRST_WAIT.saturating_mul(2_u32.saturating_pow(u32::from(doublings)));
        match self.fault {
            // It is made, or looked for, before anything else is sent there.
            Fault::Missing if self.times == 1 => Duration::ZERO,
            Fault::Missing => wait(self.times - 2).min(LONGEST_REFUSAL),
            Fault::Full | Fault::Away => wait(self.times - 1).min(LONGEST_REFUSAL),
            Fault::Silent if self.is_hopeless() && !self.is_parking => GLANCE,
            Fault::Silent => wait(self.times - 1).min(LONGEST_SILENCE),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn address() -> Address {
        Address::queue("queue")
    }

    /// The waits after each of so many failures.
    fn waits(fault: Fault, count: usize) -> Vec<u64> {
        let mut destinations = Destinations::default();
        let mut waits = Vec::new();
        for _ in 0..count {
            destinations.trip(&address(), fault);
            waits.push((destinations.next_try(&address()) - Instant::now()).as_secs());
        }
        waits
    }

    #[tokio::test(start_paused = true)]
    async fn a_breaker_waits_longer_after_each_failure() {
        assert_eq!(waits(Fault::Full, 5), [1, 2, 4, 5, 5]);
        assert_eq!(waits(Fault::Away, 5), [1, 2, 4, 5, 5]);
        assert_eq!(waits(Fault::Missing, 6), [0, 1, 2, 4, 5, 5]);
        assert_eq!(waits(Fault::Silent, 8), [1, 2, 4, 8, 16, 32, 60, 60]);
    }

    #[tokio::test(start_paused = true)]
    async fn a_silent_address_to_which_all_is_parked_is_tried_seldom() {
        let mut destinations = Destinations::default();
        destinations.trip(&address(), Fault::Silent);
        destinations.parked(&address());
        (0..10).for_each(|_| destinations.trip(&address(), Fault::Silent));
        assert_eq!(destinations.next_try(&address()) - Instant::now(), LONGEST_SILENCE);
    }

    #[tokio::test(start_paused = true)]
    async fn a_circuit_is_open_until_something_is_taken() {
        let mut destinations = Destinations::default();
        let other = Address::queue("other");
        destinations.parked(&other);
        assert!(!destinations.is_parking(&other), "it takes everything");
        for _ in 0..TRIES {
            destinations.trip(&address(), Fault::Silent);
            assert!(destinations.is_open(&address()) && !destinations.is_open(&other));
            assert!(!destinations.is_hopeless(&address()), "it is so for no time yet");
        }
        tokio::time::advance(ANSWER_PATIENCE).await;
        assert!(destinations.is_hopeless(&address()));
        destinations.trip(&address(), Fault::Silent);
        assert_eq!(destinations.next_try(&address()) - Instant::now(), GLANCE);
        destinations.parked(&address());
        assert!(!destinations.close(&other) && destinations.is_parking(&address()));
        destinations.trip(&address(), Fault::Full);
        assert!(!destinations.is_hopeless(&address()), "it answers");
        assert_eq!(destinations.names(), ["queue"]);
        assert!(destinations.close(&address()) && destinations.is_empty());
    }

    #[tokio::test(start_paused = true)]
    async fn what_nobody_tried_for_long_is_forgotten() {
        let mut destinations = Destinations::default();
        let full = Address::queue("full");
        destinations.trip(&full, Fault::Full);
        (0..TRIES).for_each(|_| destinations.trip(&address(), Fault::Silent));
        tokio::time::advance(REFUSAL_MEMORY - Duration::from_millis(1)).await;
        assert!(destinations.expire().is_empty());
        tokio::time::advance(Duration::from_millis(1)).await;
        assert_eq!(destinations.expire(), std::slice::from_ref(&full));
        destinations.doubt(&full, Fault::Silent);
        assert!(destinations.is_open(&full) && destinations.failures(&full).is_none(), "a guess is no failure");
        tokio::time::advance(REFUSAL_MEMORY).await;
        assert_eq!(destinations.expire(), [full], "and is forgotten soon");
        tokio::time::advance(HOPE - 2 * REFUSAL_MEMORY - Duration::from_millis(1)).await;
        assert!(destinations.is_hopeless(&address()));
        tokio::time::advance(Duration::from_millis(1)).await;
        assert!(!destinations.is_hopeless(&address()));
        tokio::time::advance(2 * GLANCE).await;
        destinations.trip(&address(), Fault::Silent);
        tokio::time::advance(ANSWER_PATIENCE).await;
        assert!(!destinations.is_hopeless(&address()), "one silence is not three");
        tokio::time::advance(SILENCE_MEMORY - ANSWER_PATIENCE).await;
        assert_eq!(destinations.expire(), [address()]);
    }
}
