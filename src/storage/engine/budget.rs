//! How many bytes of commands are held in memory at once.

use std::collections::VecDeque;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

use tokio::sync::oneshot;

/// Bounds the bytes of commands in memory: bodies that wait, values that are worked on, answers on their way. Clones share it.
///
/// Bytes that wait may take half of it, so that what waits never keeps work from beginning. A piece of work that is larger than
/// the whole is let in when no other is under way.
#[derive(Clone, Debug)]
pub struct Budget(Arc<Shared>);

#[derive(Debug)]
struct Shared {
    total: u64,
    state: Mutex<State>,
}

#[derive(Debug, Default)]
struct State {
    waiting: u64,
    working: u64,
    /// Pieces of work under way.
    works: usize,
    /// Who waits, in order.
    line: VecDeque<Waiting>,
}

#[derive(Debug)]
struct Waiting {
    bytes: u64,
    sender: oneshot::Sender<Held>,
    has_begun: bool,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Class {
    Waiting,
    Working,
}

/// Bytes taken from a budget; dropping it gives them back.
#[derive(Debug)]
pub struct Held {
    shared: Arc<Shared>,
    class: Class,
    bytes: u64,
}

impl Budget {
    /// Makes a budget of so many bytes.
    #[must_use]
    pub fn new(total: u64) -> Self {
        Self(Arc::new(Shared { total, state: Mutex::default() }))
    }

    /// Returns the whole of it in bytes.
    #[must_use]
    pub fn total(&self) -> u64 {
        self.0.total
    }

    /// Counts the bytes that are held now.
    #[must_use]
    pub fn held(&self) -> u64 {
        self.0.lock().held()
    }

    /// Tells whether some work that has begun waits in line.
    #[must_use]
    pub fn has_line(&self) -> bool {
        self.0.lock().line.iter().any(|waiting| waiting.has_begun && !waiting.sender.is_closed())
    }

    /// Takes bytes for something that waits, whatever is left.
    #[must_use]
    pub fn keep(&self, bytes: u64) -> Held {
        self.0.lock().waiting += bytes;
        Held { shared: Arc::clone(&self.0), class: Class::Waiting, bytes }
    }

    /// Takes bytes for something that waits, if its share has room.
    #[must_use]
    pub fn try_keep(&self, bytes: u64) -> Option<Held> {
        let mut state = self.0.lock();
        if state.waiting + bytes > self.0.total / 2 || state.held() + bytes > self.0.total {
            return None;
        }
        state.waiting += bytes;
        Some(Held { shared: Arc::clone(&self.0), class: Class::Waiting, bytes })
    }

    /// Takes bytes for a piece of work, if there is room and nobody came before.
    #[must_use]
    pub fn try_use(&self, bytes: u64) -> Option<Held> {
        let mut state = self.0.lock();
        if !state.line.is_empty() || !state.has_room(self.0.total, bytes) {
            return None;
        }
        Some(self.0.work(&mut state, bytes))
    }

    /// Takes bytes for a piece of work, whatever is left: it is alone and shall wait for nobody.
    #[must_use]
    pub fn take(&self, bytes: u64) -> Held {
        self.0.work(&mut self.0.lock(), bytes)
    }

    /// Takes more bytes for work that has begun, waiting in line until there is room.
    pub async fn use_when_free(&self, bytes: u64) -> Held {
        self.line_up(bytes, true).await
    }

    /// Takes bytes for work that has not begun, waiting in line until there is room.
    pub async fn begin_when_free(&self, bytes: u64) -> Held {
        self.line_up(bytes, false).await
    }

    async fn line_up(&self, bytes: u64, has_begun: bool) -> Held {
        let place = {
            let mut state = self.0.lock();
            if state.line.is_empty() && state.has_room(self.0.total, bytes) {
                return self.0.work(&mut state, bytes);
            }
            let (sender, place) = oneshot::channel();
            state.line.push_back(Waiting { bytes, sender, has_begun });
            place
        };
        match place.await {
            Ok(held) => held,
            // The line is never dropped while somebody stands in it; were it, work would go on uncounted.
            Err(_) => self.0.work(&mut self.0.lock(), bytes),
        }
    }
}

impl Held {
    /// Counts the bytes.
    #[must_use]
    pub const fn bytes(&self) -> u64 {
        self.bytes
    }

    /// Takes more bytes for the same piece of work, if there is room or no other work is under way.
    #[must_use]
    pub fn try_grow(&mut self, bytes: u64) -> bool {
        let mut state = self.shared.lock();
        let more = bytes.saturating_sub(self.bytes);
        if more > 0 && state.works > 1 && state.held() + more > self.shared.total {
            return false;
        }
        state.working += more;
        self.bytes += more;
        true
    }

    /// Takes more bytes for the same piece of work, whatever is left: one of those that wait for each other has to go on.
    pub fn grow(&mut self, bytes: u64) {
        let more = bytes.saturating_sub(self.bytes);
        self.shared.lock().working += more;
        self.bytes += more;
    }

    /// Ends the work; so many bytes wait from now on.
    pub fn rest(&mut self, bytes: u64) {
        let (class, less) = (self.class, self.bytes);
        (self.class, self.bytes) = (Class::Waiting, bytes);
        self.shared.lock().waiting += bytes;
        self.shared.give_back(class, less, usize::from(class == Class::Working));
    }

    /// Gives all but so many bytes back.
    pub fn shrink(&mut self, bytes: u64) {
        let less = self.bytes.saturating_sub(bytes);
        self.bytes -= less;
        self.shared.give_back(self.class, less, 0);
    }
}

impl Drop for Held {
    fn drop(&mut self) {
        let works = usize::from(self.class == Class::Working);
        self.shared.give_back(self.class, self.bytes, works);
    }
}

impl State {
    const fn held(&self) -> u64 {
        self.waiting + self.working
    }

    const fn has_room(&self, total: u64, bytes: u64) -> bool {
        self.works == 0 || self.held() + bytes <= total
    }
}

impl Shared {
    fn lock(&self) -> MutexGuard<'_, State> {
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }

    fn work(self: &Arc<Self>, state: &mut State, bytes: u64) -> Held {
        state.working += bytes;
        state.works += 1;
        Held { shared: Arc::clone(self), class: Class::Working, bytes }
    }

    fn give_back(self: &Arc<Self>, class: Class, bytes: u64, works: usize) {
        let mut state = self.lock();
        match class {
            Class::Waiting => state.waiting -= bytes,
            Class::Working => state.working -= bytes,
        }
        state.works -= works;
        let mut granted = Vec::new();
        while let Some(waiting) = state.line.pop_front() {
            if waiting.sender.is_closed() {
                continue;
            }
            if !state.has_room(self.total, waiting.bytes) {
                state.line.push_front(waiting);
                break;
            }
            granted.push((waiting.sender, self.work(&mut state, waiting.bytes)));
        }
        drop(state);
        for (sender, held) in granted {
            // Who left the line meanwhile gives it back by dropping it.
            drop(sender.send(held));
        }
    }
}

#[cfg(test)]
mod tests {
    use futures_util::FutureExt as _;

    use super::*;

    #[test]
    fn what_waits_takes_half_and_work_takes_the_rest() {
        let budget = Budget::new(100);
        let kept = budget.try_keep(50).unwrap();
        assert!(budget.try_keep(1).is_none());
        let work = budget.try_use(50).unwrap();
        assert!(budget.try_use(1).is_none());
        assert_eq!(budget.held(), 100);
        drop(kept);
        assert!(budget.try_use(50).is_some());
        drop(work);
        assert_eq!(budget.held(), 0);
    }

    #[test]
    fn what_is_larger_than_the_whole_works_alone() {
        let budget = Budget::new(100);
        let first = budget.try_use(1000).unwrap();
        assert!(budget.try_use(1).is_none());
        drop(first);
        let small = budget.try_use(1).unwrap();
        assert!(budget.try_use(1000).is_none());
        drop(small);
        let mut alone = budget.try_use(10).unwrap();
        assert!(alone.try_grow(500), "no other work is under way");
        alone.shrink(20);
        assert_eq!(budget.held(), 20);
        let other = budget.take(80);
        assert!(!alone.try_grow(21));
        alone.grow(21);
        assert_eq!((alone.bytes(), budget.held()), (21, 101), "one of those that wait for each other goes on");
        assert!(alone.try_grow(21), "what it has taken is enough");
        drop(other);
    }

    #[tokio::test]
    async fn who_waits_is_served_in_turn_and_nobody_passes() {
        let budget = Budget::new(100);
        let first = budget.use_when_free(80).await;
        let mut large = Box::pin(budget.use_when_free(90));
        assert!((&mut large).now_or_never().is_none());
        assert!(budget.try_use(10).is_none(), "the large one came before");
        let mut gone = Box::pin(budget.use_when_free(90));
        assert!((&mut gone).now_or_never().is_none());
        let mut last = Box::pin(budget.use_when_free(10));
        assert!((&mut last).now_or_never().is_none());
        drop(gone);
        drop(first);
        let large = large.await;
        let last = last.await;
        assert_eq!(budget.held(), 100);
        let mut outside = Box::pin(budget.begin_when_free(10));
        assert!((&mut outside).now_or_never().is_none() && !budget.has_line(), "it holds nothing that others wait for");
        let mut inside = Box::pin(budget.use_when_free(10));
        assert!((&mut inside).now_or_never().is_none() && budget.has_line());
        drop((outside, inside));
        drop((large, last));
        assert_eq!(budget.held(), 0);
    }
}
