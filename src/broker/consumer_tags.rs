//! Tags of the consumers on one channel.

use std::sync::{
    Mutex, MutexGuard, PoisonError,
    atomic::{AtomicU64, Ordering},
};

use lapin::types::ShortString;
use tokio::sync::{Mutex as Turn, MutexGuard as TurnGuard};

use super::{Error, ErrorKind, Result, convert::short};

/// Makes the tags of one channel's consumers, and knows which of these are there.
#[derive(Debug)]
pub(super) struct ConsumerTags {
    prefix: String,
    count: AtomicU64,
    active: Mutex<Vec<ShortString>>,
    /// Held while a consumer begins: a prefetch counts for the consumer that follows it on the channel.
    turn: Turn<()>,
}

impl ConsumerTags {
    pub(super) fn new(prefix: &str) -> Self {
        Self { prefix: prefix.to_owned(), count: AtomicU64::new(0), active: Mutex::default(), turn: Turn::default() }
    }

    /// Returns a tag that no other consumer of the channel has.
    pub(super) fn next(&self) -> Result<ShortString> {
        let count = self.count.fetch_add(1, Ordering::Relaxed);
        let tag = short("a consumer's tag", &format!("{}-{count}", self.prefix));
        tag.map_err(|text| Error::new(ErrorKind::Arguments, text))
    }

    /// Returns the tags of the consumers there are.
    pub(super) fn active(&self) -> MutexGuard<'_, Vec<ShortString>> {
        self.active.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Waits until no other consumer begins on the channel; none does while the guard lives.
    pub(super) async fn turn(&self) -> TurnGuard<'_, ()> {
        self.turn.lock().await
    }
}
