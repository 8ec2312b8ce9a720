//! The bound on the bytes of commands that are in memory at once.

use std::collections::VecDeque;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

use tokio::sync::oneshot;

/// Bounds the bytes of commands in memory: waiting bodies, values in use, and answers that are being sent. Clones share
/// the bound.
///
/// Waiting bytes may take half of the budget, so that they never keep work from beginning. A piece of work that is
/// larger than the whole budget is admitted when no other is under way.
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
    /// The number of pieces of work under way.
    works: usize,
    /// The requests that wait, in order of arrival.
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

    /// Returns the size of the whole budget in bytes.
    #[must_use]
    pub fn total(&self) -> u64 {
        self.0.total
    }

    /// Counts the bytes that are held now.
    #[must_use]
    pub fn held(&self) -> u64 {
        self.0.lock().held()
    }

    /// Tells whether work that has begun waits in line for more bytes.
    #[must_use]
    pub fn has_line(&self) -> bool {
        self.0.lock().line.iter().any(|waiting| waiting.has_begun && !waiting.sender.is_closed())
    }

    /// Takes bytes that wait, even if the budget is exhausted.
    #[must_use]
    pub fn keep(&self, bytes: u64) -> Held {
        self.0.lock().waiting += bytes;
        Held { shared: Arc::clone(&self.0), class: Class::Waiting, bytes }
    }

    /// Takes bytes that wait, if their half of the budget has room.
    #[must_use]
    pub fn try_keep(&self, bytes: u64) -> Option<Held> {
        let mut state = self.0.lock();
        if state.waiting + bytes > self.0.total / 2 || state.held() + bytes > self.0.total {
            return None;
        }
        state.waiting += bytes;
        Some(Held { shared: Arc::clone(&self.0), class: Class::Waiting, bytes })
    }

    /// Takes bytes for a piece of work, if there is room and nobody waits in line.
    #[must_use]
    pub fn try_use(&self, bytes: u64) -> Option<Held> {
        let mut state = self.0.lock();
        if !state.line.is_empty() || !state.has_room(self.0.total, bytes) {
            return None;
        }
        Some(self.0.work(&mut state, bytes))
    }

    /// Takes bytes for a piece of work that must not wait, even if the budget is exhausted.
    #[must_use]
    pub fn take(&self, bytes: u64) -> Held {
        self.0.work(&mut self.0.lock(), bytes)
    }

    /// Takes more bytes for work that has begun; waits in line until there is room.
    pub async fn use_when_free(&self, bytes: u64) -> Held {
        self.line_up(bytes, true).await
    }

    /// Takes bytes for work that has not begun; waits in line until there is room.
    pub async fn begin_when_free(&self, bytes: u64) -> Held {
        self.line_up(bytes, false).await
    }

    async fn line_up(&self, bytes: u64, has_begun: bool) -> Held {
        let turn = {
            let mut state = self.0.lock();
            if state.line.is_empty() && state.has_room(self.0.total, bytes) {
                return self.0.work(&mut state, bytes);
            }
            let (sender, turn) = oneshot::channel();
            state.line.push_back(Waiting { bytes, sender, has_begun });
            turn
        };
        match turn.await {
            Ok(held) => held,
            // The line is never dropped while a request waits in it. If it were, work would go on uncounted.
            Err(_) => self.0.work(&mut self.0.lock(), bytes),
        }
    }
}

impl Held {
    /// Returns the number of bytes.
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

    /// Takes more bytes for the same piece of work, even if the budget is exhausted.
    ///
    /// Pieces of work that wait for each other's bytes would otherwise never end.
    pub fn grow(&mut self, bytes: u64) {
        let more = bytes.saturating_sub(self.bytes);
        self.shared.lock().working += more;
        self.bytes += more;
    }

    /// Ends the piece of work. Of its bytes, only this many stay taken, and they count as waiting from now on.
    pub fn end_work(&mut self, bytes: u64) {
        let (class, less) = (self.class, self.bytes);
        (self.class, self.bytes) = (Class::Waiting, bytes);
        self.shared.lock().waiting += bytes;
        self.shared.give_back(class, less, usize::from(class == Class::Working));
    }

    /// Gives all but this many bytes back.
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
            // A request that was cancelled meanwhile gives the bytes back when they are dropped.
            drop(sender.send(held));
        }
    }
}

#[cfg(test)]
mod tests {
    use futures_util::FutureExt as _;

    use super::*;

    #[test]
    fn waiting_bytes_take_half_and_work_takes_the_rest() {
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
    fn work_larger_than_the_budget_runs_alone() {
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
        assert_eq!((alone.bytes(), budget.held()), (21, 101), "pieces of work that wait for each other go on");
        assert!(alone.try_grow(21), "the bytes taken already are enough");
        drop(other);
    }

    #[tokio::test]
    async fn requests_are_served_in_order_of_arrival() {
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
        assert!(
            (&mut outside).now_or_never().is_none() && !budget.has_line(),
            "work that has not begun holds no bytes"
        );
        let mut inside = Box::pin(budget.use_when_free(10));
        assert!((&mut inside).now_or_never().is_none() && budget.has_line());
        drop((outside, inside));
        drop((large, last));
        assert_eq!(budget.held(), 0);
    }
}
