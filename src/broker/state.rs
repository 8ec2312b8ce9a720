//! How a session is, and waiting with that in view.

use std::{future::Future, pin::pin, sync::Arc, time::Duration};

use tokio::sync::watch;

use super::{Error, Result};

/// How a session is, as a whole.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum State {
    /// Both connections work.
    Open,
    /// The broker takes no publications (memory or disk alarm), with its reason; nothing is lost, everything waits.
    Blocked(String),
    /// Over for good, with the reason; open a new session.
    Lost(String),
}

/// The one state of a session; once lost it stays lost.
#[derive(Clone, Debug)]
pub(super) struct StateCell(Arc<watch::Sender<State>>);

impl StateCell {
    pub(super) fn new() -> Self {
        Self(Arc::new(watch::Sender::new(State::Open)))
    }

    pub(super) fn now(&self) -> State {
        self.0.borrow().clone()
    }

    pub(super) fn watch(&self) -> watch::Receiver<State> {
        self.0.subscribe()
    }

    pub(super) fn set(&self, next: State) {
        self.0.send_if_modified(|state| {
            let changes = !matches!(state, State::Lost(_)) && *state != next;
            if changes {
                *state = next;
            }
            changes
        });
    }

    pub(super) fn lose(&self, reason: impl Into<String>) {
        self.set(State::Lost(reason.into()));
    }

    /// Waits until the session is lost and returns the reason.
    pub(super) async fn lost(&self) -> String {
        lost(self.watch()).await
    }

    /// Waits for an answer of the broker as [`StateCell::within`] does. A missed limit is an answer that never comes: the
    /// session is lost.
    pub(super) async fn patiently<T>(&self, limit: Duration, what: &str, answer: impl Future<Output = T>) -> Result<T> {
        let Some(answer) = self.within(limit, answer).await? else {
            self.lose(format!("no answer to {what} within {} s", limit.as_secs_f32()));
            return Err(self.fault());
        };
        Ok(answer)
    }

    /// Waits for an answer of the broker: not after the session is lost, and not longer than `limit` while it is open; `None`
    /// when there is none by then. While the session is blocked the clock stands.
    pub(super) async fn within<T>(&self, limit: Duration, answer: impl Future<Output = T>) -> Result<Option<T>> {
        within(self.watch(), limit, answer).await
    }

    /// Tells whether the broker blocks the session.
    pub(super) fn is_blocked(&self) -> bool {
        matches!(self.now(), State::Blocked(_))
    }

    fn fault(&self) -> Error {
        fault(&self.now())
    }
}

/// Waits until a session is lost and returns the reason.
pub async fn lost(mut state: watch::Receiver<State>) -> String {
    loop {
        if let State::Lost(reason) = &*state.borrow_and_update() {
            return reason.clone();
        }
        if state.changed().await.is_err() {
            return "the session was dropped".to_owned();
        }
    }
}

/// Waits for a future no longer than `limit`, and returns `None` when it has not ended by then. The clock stands while the
/// broker blocks the session.
///
/// # Errors
/// The session is lost.
pub async fn within<T>(
    mut state: watch::Receiver<State>,
    limit: Duration,
    future: impl Future<Output = T>,
) -> Result<Option<T>> {
    let mut future = pin!(future);
    loop {
        let now = state.borrow_and_update().clone();
        let clock = async {
            match now {
                State::Open => tokio::time::sleep(limit).await,
                State::Blocked(_) => std::future::pending().await,
                State::Lost(_) => {}
            }
        };
        tokio::select! {
            biased;
            answer = &mut future => return Ok(Some(answer)),
            Ok(()) = state.changed() => {}
            () = clock => {
                let now = state.borrow().clone();
                return if matches!(now, State::Lost(_)) { Err(fault(&now)) } else { Ok(None) };
            }
        }
    }
}

fn fault(state: &State) -> Error {
    match state {
        State::Lost(reason) => Error::lost(reason),
        State::Open | State::Blocked(_) => Error::lost("the session is over"),
    }
}

#[cfg(test)]
mod tests {
    use std::future::pending;

    use super::*;
    use crate::broker::ErrorKind;

    fn run(test: impl Future<Output = ()>) {
        let runtime = tokio::runtime::Builder::new_current_thread().enable_time().build().unwrap();
        runtime.block_on(test);
    }

    #[test]
    fn silence_loses_the_session_for_good() {
        run(async {
            let state = StateCell::new();
            let error = state.patiently(Duration::from_millis(5), "a confirm", pending::<()>()).await.unwrap_err();
            assert_eq!(error.kind(), ErrorKind::Lost);
            assert!(error.to_string().contains("a confirm"));
            state.set(State::Open);
            assert!(matches!(state.now(), State::Lost(_)));
            state.lost().await;
        });
    }

    #[test]
    fn the_clock_stands_while_the_broker_blocks() {
        run(async {
            let state = StateCell::new();
            state.set(State::Blocked("low on memory".to_owned()));
            let limit = Duration::from_millis(1);
            let slow = tokio::time::sleep(Duration::from_millis(50));
            state.patiently(limit, "a confirm", slow).await.unwrap();
            let end = async {
                tokio::task::yield_now().await;
                state.set(State::Open);
            };
            let (answer, ()) = tokio::join!(state.patiently(limit, "a confirm", pending::<()>()), end);
            answer.unwrap_err();
        });
    }

    #[test]
    fn a_lost_session_ends_every_wait_but_hands_over_what_is_there() {
        run(async {
            let state = StateCell::new();
            state.lose("gone");
            let limit = Duration::from_secs(3600);
            assert_eq!(state.patiently(limit, "x", std::future::ready(1)).await.unwrap(), 1);
            let error = state.patiently(limit, "x", pending::<()>()).await.unwrap_err();
            assert_eq!(error.to_string(), "gone");
        });
    }
}
