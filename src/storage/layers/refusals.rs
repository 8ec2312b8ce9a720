//! Detects a backend that refuses every operation.

use std::fmt;
use std::sync::Arc;

use tokio::sync::watch;

use crate::storage::error::{Error, ErrorKind};

/// After this many refused operations in a row, the backend is taken to refuse every operation.
const ALL: u32 = 3;

/// Receives the outcomes of the operations of one backend; cheap to clone.
///
/// # Contract
///
/// - A refusal is [`ErrorKind::Denied`]: a failure that lasts until somebody removes the cause, e.g. a token that has
///   expired.
/// - Three refusals in a row, with no success in between, count as a refusal of all operations. A success ends that
///   state.
/// - Probes and signed URLs do not count, since a backend may answer probes and refuse every other operation.
#[derive(Clone)]
pub struct Refusals(Arc<watch::Sender<State>>);

#[derive(Debug, Default)]
struct State {
    in_a_row: u32,
    words: String,
    /// The number of faults so far that may concern all operations.
    faults: u64,
}

impl Refusals {
    pub(in crate::storage) fn new() -> Self {
        Self(Arc::new(watch::Sender::new(State::default())))
    }

    /// Returns the message of the last refusal, when the backend refuses every operation.
    #[must_use]
    pub fn all(&self) -> Option<String> {
        let state = self.0.borrow();
        (state.in_a_row >= ALL).then(|| state.words.clone())
    }

    /// Begins to receive the faults that may concern all operations.
    #[must_use]
    pub fn subscribe(&self) -> FaultReceiver {
        let state = self.0.subscribe();
        let counted = state.borrow().faults;
        FaultReceiver { state, counted }
    }

    pub(in crate::storage) fn succeeded(&self) {
        self.0.send_if_modified(|state| std::mem::take(&mut state.in_a_row) > 0);
    }

    pub(in crate::storage) fn failed(&self, error: &Error) {
        let refused = error.kind == ErrorKind::Denied;
        if !refused && !matches!(error.kind, ErrorKind::Invalid | ErrorKind::Io) {
            return;
        }
        self.0.send_modify(|state| {
            state.faults += 1;
            if refused {
                state.in_a_row = state.in_a_row.saturating_add(1);
                state.words = error.message().to_owned();
            }
        });
    }
}

/// Receives faults that may concern all operations: refusals, and answers that call the request wrong.
#[derive(Debug)]
pub struct FaultReceiver {
    state: watch::Receiver<State>,
    counted: u64,
}

impl FaultReceiver {
    /// Waits for the next fault. Never returns once nobody uses the backend any more.
    pub async fn next(&mut self) {
        let counted = self.counted;
        let next = self.state.wait_for(|state| state.faults != counted).await.map(|state| state.faults);
        match next {
            Ok(faults) => self.counted = faults,
            Err(_) => std::future::pending().await,
        }
    }
}

impl fmt::Debug for Refusals {
    fn fmt(&self, formatter: &mut fmt::Formatter<'_>) -> fmt::Result {
        formatter.debug_tuple("Refusals").field(&*self.0.borrow()).finish()
    }
}

#[cfg(test)]
mod tests {
    use futures_util::FutureExt as _;

    use super::*;
    use crate::storage::error::Operation;

    #[test]
    fn three_refusals_in_a_row_are_a_refusal_of_all() {
        let refusals = Refusals::new();
        let fails = |kind| refusals.failed(&Error::new(kind, Operation::Store, None, "no right"));
        for _ in 0..2 {
            fails(ErrorKind::Denied);
            fails(ErrorKind::Denied);
            assert_eq!(refusals.all(), None);
            refusals.succeeded();
        }
        fails(ErrorKind::Denied);
        fails(ErrorKind::Denied);
        // These errors tell nothing about rights.
        fails(ErrorKind::Unavailable);
        fails(ErrorKind::Precondition);
        fails(ErrorKind::Invalid);
        assert_eq!(refusals.all(), None);
        fails(ErrorKind::Denied);
        assert_eq!(refusals.all().as_deref(), Some("no right"));
        refusals.succeeded();
        assert_eq!(refusals.all(), None);
    }

    #[test]
    fn a_subscriber_receives_the_next_fault() {
        let refusals = Refusals::new();
        let fails = |kind| refusals.failed(&Error::new(kind, Operation::Store, None, "x"));
        fails(ErrorKind::Denied);
        let mut faults = refusals.subscribe();
        assert!(faults.next().now_or_never().is_none(), "that was before");
        fails(ErrorKind::Unavailable);
        assert!(faults.next().now_or_never().is_none());
        fails(ErrorKind::Invalid);
        fails(ErrorKind::Denied);
        assert!(faults.next().now_or_never().is_some(), "also a fault that came while nobody waited");
        assert!(faults.next().now_or_never().is_none());
    }
}
