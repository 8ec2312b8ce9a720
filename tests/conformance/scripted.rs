//! A remote place whose next answers are written down beforehand.

use std::collections::VecDeque;
use std::fmt;
use std::future::Future;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::sync::{Arc, Mutex};
use std::time::Duration;

use async_trait::async_trait;
use filestorage::storage::{
    Attributes, Backend, DeleteOptions, Error, ErrorKind, GetOptions, Grant, Key, Listing, Memory, Object, Operation,
    Page, Probe, PutOptions, Removal, Result,
};
use tokio::time::{Instant, sleep};

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
#[derive(Debug)]
pub(crate) struct Scripted {
    pub(crate) memory: Memory,
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
        Arc::new(Self {
            memory: Memory::new(),
            turns: Mutex::default(),
            otherwise: Mutex::new(Turn::Done),
            asked: Mutex::default(),
            under_way: AtomicUsize::new(0),
        })
    }

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

impl fmt::Display for Scripted {
    fn fmt(&self, formatter: &mut fmt::Formatter<'_>) -> fmt::Result {
        formatter.write_str("scripted")
    }
}

#[async_trait]
impl Backend for Scripted {
    async fn put(&self, key: &Key, object: &Object, how: &PutOptions) -> Result<Attributes> {
        self.turn(Operation::Store, Some(key), self.memory.put(key, &object, &how)).await
    }

    async fn get(&self, key: &Key, want: GetOptions) -> Result<Option<Object>> {
        self.turn(Operation::Retrieve, Some(key), self.memory.get(key, want)).await
    }

    async fn stat(&self, key: &Key) -> Result<Option<Attributes>> {
        self.turn(Operation::Stat, Some(key), self.memory.stat(key)).await
    }

    async fn delete(&self, key: &Key, how: &DeleteOptions) -> Result<Removal> {
        self.turn(Operation::Delete, Some(key), self.memory.delete(key, &how)).await
    }

    async fn list(&self, page: &Page) -> Result<Listing> {
        self.turn(Operation::List, None, self.memory.list(page)).await
    }

    async fn flush(&self, key: &Key) -> Result<()> {
        self.memory.flush(key).await
    }

    async fn probe(&self) -> Result<Probe> {
        self.turn(Operation::Probe, None, self.memory.probe()).await
    }

    fn validate(&self, key: &Key, attributes: &Attributes) -> Result<()> {
        self.memory.validate(key, attributes)
    }

    async fn sign(&self, key: &Key, _: &Grant) -> Result<String> {
        self.turn(Operation::Sign, Some(key), async { Ok("https://signed".to_owned()) }).await
    }
}
