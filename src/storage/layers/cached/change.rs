//! A change of a key: dropped here while it is under way, and announced to the other workers before it is answered.

use std::sync::Arc;

use tokio::runtime::Handle;

use super::cache::{Cache, Writing};
use super::late::LateChanges;
use crate::storage::error::{Error, ErrorKind};
use crate::storage::object::{Key, Object};

/// A write or delete under way. One that is dropped without an end may have happened, and is announced as well.
#[derive(Debug)]
pub(super) struct Change {
    writing: Option<Writing>,
    /// The way of the announcement, until it has been made.
    changes: Option<Arc<LateChanges>>,
    key: Key,
}

impl Change {
    pub(super) fn begin(cache: Option<&Cache>, changes: Option<Arc<LateChanges>>, key: &Key) -> Self {
        Self { writing: cache.map(|cache| cache.begin_write(key)), changes, key: key.clone() }
    }

    /// Ends a change that has happened, and keeps what was written.
    pub(super) async fn done(mut self, written: Option<&Object>) {
        match (self.writing.take(), written) {
            (Some(writing), Some(written)) => writing.keep(written),
            (writing, _) => drop(writing),
        }
        self.announce().await;
    }

    /// Ends a change that failed; announces it unless it certainly did not happen, now and once more later.
    ///
    /// An error concerns the last attempt. An earlier one, whose outcome is unknown, may have changed the bucket, or may
    /// change it after the answer.
    pub(super) async fn failed(mut self, error: Error) -> Error {
        match error.kind {
            ErrorKind::Invalid | ErrorKind::Precondition | ErrorKind::QuotaExceeded => self.changes = None,
            ErrorKind::Unavailable
            | ErrorKind::Throttled
            | ErrorKind::Io
            | ErrorKind::Integrity
            | ErrorKind::Missing
            | ErrorKind::NoSpace
            | ErrorKind::Denied
            | ErrorKind::Abandoned => {
                drop(self.writing.take());
                if let Some(changes) = &self.changes {
                    changes.repeat_later(&self.key);
                }
                self.announce().await;
            }
        }
        error
    }

    async fn announce(&mut self) {
        if let Some(changes) = &self.changes {
            changes.announce(&self.key).await;
        }
        self.changes = None;
    }
}

impl Drop for Change {
    fn drop(&mut self) {
        if let Some(changes) = self.changes.take()
            && let Ok(runtime) = Handle::try_current()
        {
            let key = self.key.clone();
            changes.repeat_later(&key);
            runtime.spawn(async move { changes.announce(&key).await });
        }
    }
}
