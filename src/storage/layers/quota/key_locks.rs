//! Locks by key, within one process.

use std::collections::HashMap;
use std::sync::{Arc, Mutex, PoisonError};

use tokio::sync::OwnedMutexGuard;

use crate::storage::object::Key;

/// The number of locks above which those that nobody has are forgotten.
const KEPT: usize = 1_024;

/// Locks by key. A lock exists while somebody has it or waits for it.
#[derive(Debug, Default)]
pub(super) struct KeyLocks(Mutex<HashMap<Key, Arc<tokio::sync::Mutex<()>>>>);

impl KeyLocks {
    /// Waits for the lock of a key, which ends when the guard is dropped.
    pub(super) async fn lock(&self, key: &Key) -> OwnedMutexGuard<()> {
        let lock = {
            let mut locks = self.0.lock().unwrap_or_else(PoisonError::into_inner);
            if locks.len() >= KEPT {
                locks.retain(|_, lock| Arc::strong_count(lock) > 1);
            }
            Arc::clone(locks.entry(key.clone()).or_default())
        };
        lock.lock_owned().await
    }
}
