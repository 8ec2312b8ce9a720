//! A remote place whose next answers are written down beforehand.

use std::collections::VecDeque;
use std::future::Future;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::sync::{Arc, Mutex};
use std::time::Duration;

use filestorage::storage::{Backend, Error, ErrorKind, Grant, Key, Memory, Operation, Result};
use tokio::time::{Instant, sleep};

use crate::forwarding::{Ask, Forwarding, Hook};

/// How the place takes one request.
#[derive(Clone, Copy, Debug)]
pub(crate) enum Turn {
    /// Carries it out and answers.
    Done,
    /// Does not carry it out.
    Fails(ErrorKind),
    /// Does not carry it out, and asks for a time.
    Asks(ErrorKind, Duration),
    /// Carries it out, and what comes back is this.
    Lost(ErrorKind),
    /// Never hears of it.
    Hangs,
    /// Carries it out, and nothing ever comes back.
    Swallows,
    /// Carries it out after a time.
    Slow(Duration),
    /// Fails after a time.
    SlowlyFails(Duration, ErrorKind),
}

/// Objects in memory behind written answers; what is not written is done.
pub(crate) type Scripted = Forwarding<Script>;

/// The written answers.
#[derive(Debug)]
pub(crate) struct Script {
    turns: Mutex<VecDeque<(Operation, Turn)>>,
    otherwise: Mutex<Turn>,
    asked: Mutex<Vec<(Operation, Instant)>>,
    under_way: AtomicUsize,
}

struct UnderWay<'a>(&'a AtomicUsize);

impl Drop for UnderWay<'_> {
    fn drop(&mut self) {
        self.0.fetch_sub(1, Ordering::Relaxed);
    }
}

impl Scripted {
    pub(crate) fn new() -> Arc<Self> {
        let script = Script {
            turns: Mutex::default(),
            otherwise: Mutex::new(Turn::Done),
            asked: Mutex::default(),
            under_way: AtomicUsize::new(0),
        };
        Self::over(Arc::new(Memory::new()), script)
    }
}

impl Script {
    /// Writes down the next answers to an operation.
    pub(crate) fn next(&self, operation: Operation, turns: impl IntoIterator<Item = Turn>) {
        self.turns.lock().unwrap().extend(turns.into_iter().map(|turn| (operation, turn)));
    }

    /// Writes down every answer that nothing else is written for.
    pub(crate) fn always(&self, turn: Turn) {
        *self.otherwise.lock().unwrap() = turn;
    }

    /// When it was asked for an operation.
    pub(crate) fn asked(&self, operation: Operation) -> Vec<Instant> {
        let asked = self.asked.lock().unwrap();
        asked.iter().filter(|(other, _)| *other == operation).map(|(_, at)| *at).collect()
    }

    /// How often it was asked for anything; forgets all of it, also what is written and has not been needed.
    pub(crate) fn reset(&self) -> usize {
        self.turns.lock().unwrap().clear();
        std::mem::take(&mut *self.asked.lock().unwrap()).len()
    }

    /// Requests that somebody waits for.
    pub(crate) fn under_way(&self) -> usize {
        self.under_way.load(Ordering::Relaxed)
    }

    async fn turn<T>(
        &self,
        operation: Operation,
        key: Option<&Key>,
        work: impl Future<Output = Result<T>> + Send,
    ) -> Result<T> {
        self.asked.lock().unwrap().push((operation, Instant::now()));
        self.under_way.fetch_add(1, Ordering::Relaxed);
        let _under_way = UnderWay(&self.under_way);
        let turn = {
            let mut turns = self.turns.lock().unwrap();
            let written = turns.iter().position(|(other, _)| *other == operation).and_then(|at| turns.remove(at));
            written.map_or_else(|| *self.otherwise.lock().unwrap(), |(_, turn)| turn)
        };
        let fault = |kind| Err(Error::new(kind, operation, key, "as written; look there"));
        match turn {
            Turn::Done => work.await,
            Turn::Fails(kind) => fault(kind),
            Turn::Asks(kind, time) => fault(kind).map_err(|error| error.with_retry_after(Some(time))),
            Turn::Lost(kind) => {
                drop(work.await);
                fault(kind)
            }
            Turn::Hangs => std::future::pending().await,
            Turn::Swallows => {
                drop(work.await);
                std::future::pending().await
            }
            Turn::Slow(time) => {
                sleep(time).await;
                work.await
            }
            Turn::SlowlyFails(time, kind) => {
                sleep(time).await;
                fault(kind)
            }
        }
    }
}

impl Hook for Script {
    async fn around<T: Send, F: Future<Output = Result<T>> + Send>(
        &self,
        _: &dyn Backend,
        ask: Ask,
        key: Option<&Key>,
        work: impl Fn() -> F + Send + Sync,
    ) -> Result<T> {
        // What is flushed is always done.
        if ask == Ask::Flush { work().await } else { self.turn(ask.operation(), key, work()).await }
    }

    async fn sign(&self, _: &dyn Backend, key: &Key, _: &Grant) -> Result<String> {
        self.turn(Operation::Sign, Some(key), async { Ok("https://signed".to_owned()) }).await
    }
}
