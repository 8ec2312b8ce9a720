//! Whether a place refuses all that is asked of it.

use std::fmt;
use std::sync::Arc;

use tokio::sync::watch;

use crate::storage::error::{Error, ErrorKind};

/// So many operations in a row that were refused are all of them.
const ALL: u32 = 3;

/// Hears how the operations of one place end; cheap to clone.
///
/// # Contract
///
/// - A refusal is [`ErrorKind::Denied`]: what lasts until somebody does something about it, e.g. a token that has expired.
/// - Three in a row, with no success in between, are taken for all; a success ends that.
/// - Looks and signed URLs say nothing of it: a place may be looked at whose every other use is refused.
#[derive(Clone)]
pub struct Refusals(Arc<watch::Sender<State>>);

#[derive(Debug, Default)]
struct State {
    in_a_row: u32,
    words: String,
    /// What may concern all operations was heard so often.
    doubts: u64,
}

impl Refusals {
    pub(in crate::storage) fn new() -> Self {
        Self(Arc::new(watch::Sender::new(State::default())))
    }

    /// Returns what the place says when it refuses everything.
    #[must_use]
    pub fn all(&self) -> Option<String> {
        let state = self.0.borrow();
        (state.in_a_row >= ALL).then(|| state.words.clone())
    }

    /// Listens from now on.
    #[must_use]
    pub fn listen(&self) -> Doubts {
        let state = self.0.subscribe();
        let heard = state.borrow().doubts;
        Doubts { state, heard }
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
            state.doubts += 1;
            if refused {
                state.in_a_row = state.in_a_row.saturating_add(1);
                state.words = error.message().to_owned();
            }
        });
    }
}

/// Hears of answers that may concern everything: a refusal, or one that says the request is wrong.
#[derive(Debug)]
pub struct Doubts {
    state: watch::Receiver<State>,
    heard: u64,
}

impl Doubts {
    /// Waits for one since the last; never ends once nobody uses the place any more.
    pub async fn next(&mut self) {
        let heard = self.heard;
        let next = self.state.wait_for(|state| state.doubts != heard).await.map(|state| state.doubts);
        match next {
            Ok(doubts) => self.heard = doubts,
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
    fn three_in_a_row_are_all_until_one_succeeds() {
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
        // These say nothing of rights.
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
    fn who_waits_hears_of_the_next_doubt() {
        let refusals = Refusals::new();
        let fails = |kind| refusals.failed(&Error::new(kind, Operation::Store, None, "x"));
        fails(ErrorKind::Denied);
        let mut doubts = refusals.listen();
        assert!(doubts.next().now_or_never().is_none(), "that was before");
        fails(ErrorKind::Unavailable);
        assert!(doubts.next().now_or_never().is_none());
        fails(ErrorKind::Invalid);
        fails(ErrorKind::Denied);
        assert!(doubts.next().now_or_never().is_some(), "also when nobody waited just then");
        assert!(doubts.next().now_or_never().is_none());
    }
}
