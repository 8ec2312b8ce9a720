//! Changes whose outcome is unknown, which the bucket may carry out after their answer.

use std::collections::{HashMap, VecDeque};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::Duration;

use tokio::runtime::Handle;
use tokio::time::{Instant, sleep_until};

use super::invalidation::CacheInvalidation;
use crate::storage::invalidation::Invalidation as _;
use crate::storage::object::Key;

/// The time after which a change with an unknown outcome is announced once more. A bucket carries out a request that its
/// client has given up within a few seconds, or never.
const DELAY: Duration = Duration::from_secs(30);

/// The most keys that wait. When there are more, all keys are announced at once instead, by one message.
const MOST: usize = 10_000;

/// Announces changes, and those with an unknown outcome a second time.
///
/// # Contract
///
/// - A key waits once, however many changes of it have an unknown outcome. It is announced at its first time, and again
///   at its last one if that is later.
/// - One task announces all keys, one after the other. It ends when none waits.
#[derive(Debug)]
pub(super) struct LateChanges {
    invalidation: CacheInvalidation,
    waiting: Mutex<Waiting>,
}

#[derive(Debug, Default)]
struct Waiting {
    /// The keys in the order in which they are announced; `None` stands for all keys.
    order: VecDeque<(Instant, Option<Key>)>,
    /// The last time at which each of them has to be announced.
    last: HashMap<Option<Key>, Instant>,
    /// Whether the task runs.
    is_served: bool,
}

impl LateChanges {
    pub(super) fn new(invalidation: CacheInvalidation) -> Self {
        Self { invalidation, waiting: Mutex::default() }
    }

    /// Announces a change now.
    pub(super) async fn announce(&self, key: &Key) {
        self.invalidation.siblings.announce(key).await;
    }

    /// Drops the key here and announces it once more after a while. Nothing happens outside a runtime, which ends with the
    /// worker.
    pub(super) fn repeat_later(self: &Arc<Self>, key: &Key) {
        let Ok(runtime) = Handle::try_current() else { return };
        let mut waiting = self.waiting();
        waiting.add(key.clone(), Instant::now() + DELAY);
        if !waiting.is_served {
            waiting.is_served = true;
            runtime.spawn(Arc::clone(self).serve());
        }
    }

    async fn serve(self: Arc<Self>) {
        loop {
            let next = {
                let mut waiting = self.waiting();
                let next = waiting.next();
                waiting.is_served = next.is_some();
                next
            };
            match next {
                None => return,
                Some(Next::Wait(due)) => sleep_until(due).await,
                Some(Next::Announce(Some(key))) => self.invalidation.announce(&key).await,
                Some(Next::Announce(None)) => self.invalidation.announce_all().await,
            }
        }
    }

    fn waiting(&self) -> MutexGuard<'_, Waiting> {
        self.waiting.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

/// What the task does next.
#[derive(Debug, PartialEq, Eq)]
enum Next {
    Wait(Instant),
    /// Announces a key, or all.
    Announce(Option<Key>),
}

impl Waiting {
    fn add(&mut self, key: Key, due: Instant) {
        let mut key = Some(key);
        if self.order.len() >= MOST && !self.last.contains_key(&key) {
            self.order.retain(|(_, waiting)| waiting.is_none());
            self.last.retain(|waiting, _| waiting.is_none());
            key = None;
        }
        if self.last.insert(key.clone(), due).is_none() {
            self.order.push_back((due, key));
        }
    }

    /// Returns what to do next; `None` when no key waits.
    fn next(&mut self) -> Option<Next> {
        let (due, _) = self.order.front()?;
        if *due > Instant::now() {
            return Some(Next::Wait(*due));
        }
        let (due, key) = self.order.pop_front()?;
        match self.last.get(&key) {
            // Another change of the key came later.
            Some(last) if *last > due => self.order.push_back((*last, key.clone())),
            _ => drop(self.last.remove(&key)),
        }
        Some(Next::Announce(key))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn key(number: usize) -> Key {
        Key::parse(&format!("key/{number}")).unwrap()
    }

    #[tokio::test(start_paused = true)]
    async fn a_key_waits_once_for_its_first_and_last_time() {
        let mut waiting = Waiting::default();
        let start = Instant::now();
        let at = |seconds| start + Duration::from_secs(seconds);
        for seconds in [30, 31, 32] {
            waiting.add(key(1), at(seconds));
        }
        waiting.add(key(2), at(33));
        assert_eq!((waiting.order.len(), waiting.last.len()), (2, 2));
        assert_eq!(waiting.next(), Some(Next::Wait(at(30))));
        tokio::time::advance(Duration::from_secs(30)).await;
        assert_eq!(waiting.next(), Some(Next::Announce(Some(key(1)))));
        tokio::time::advance(Duration::from_secs(3)).await;
        let rest = [waiting.next(), waiting.next(), waiting.next()];
        assert_eq!(rest, [Some(Next::Announce(Some(key(2)))), Some(Next::Announce(Some(key(1)))), None]);
        assert!(waiting.last.is_empty());
    }

    #[tokio::test(start_paused = true)]
    async fn of_too_many_keys_all_are_announced() {
        let mut waiting = Waiting::default();
        let due = Instant::now();
        for number in 0..3 * MOST {
            waiting.add(key(number), due);
            assert!(waiting.order.len() <= MOST && waiting.last.len() <= MOST);
        }
        assert_eq!(waiting.next(), Some(Next::Announce(None)));
    }
}
