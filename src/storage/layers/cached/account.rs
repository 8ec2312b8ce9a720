//! The account of the bytes in the cache, which never exceeds its bound.

use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};

use crate::telemetry::Metrics;

/// Counts the bytes and the entries of a cache. Bytes count from the moment when the cache holds them until it has let go of them.
#[derive(Debug)]
pub(super) struct Account {
    bound: u64,
    bytes: AtomicU64,
    entries: AtomicU64,
    metrics: Metrics,
}

/// The bytes of one entry. Dropping it gives them back.
#[derive(Debug)]
pub(super) struct Claim {
    account: Arc<Account>,
    bytes: u64,
}

impl Account {
    pub(super) fn new(bound: u64, metrics: Metrics) -> Arc<Self> {
        Arc::new(Self { bound, bytes: AtomicU64::new(0), entries: AtomicU64::new(0), metrics })
    }

    pub(super) fn bytes(&self) -> u64 {
        self.bytes.load(Ordering::Acquire)
    }

    pub(super) fn entries(&self) -> u64 {
        self.entries.load(Ordering::Acquire)
    }

    /// Takes the bytes of an entry; `None` when they would exceed the bound.
    pub(super) fn claim(self: &Arc<Self>, bytes: u64) -> Option<Claim> {
        let within = |present: u64| present.checked_add(bytes).filter(|sum| *sum <= self.bound);
        self.bytes.fetch_update(Ordering::AcqRel, Ordering::Acquire, within).ok()?;
        self.entries.fetch_add(1, Ordering::AcqRel);
        self.report();
        Some(Claim { account: Arc::clone(self), bytes })
    }

    fn report(&self) {
        self.metrics.record_cache_content(self.entries(), self.bytes());
    }
}

impl Drop for Claim {
    fn drop(&mut self) {
        self.account.bytes.fetch_sub(self.bytes, Ordering::AcqRel);
        self.account.entries.fetch_sub(1, Ordering::AcqRel);
        self.account.report();
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn claims_never_exceed_the_bound() {
        let account = Account::new(100, Metrics::new());
        let first = account.claim(60).unwrap();
        assert!(account.claim(41).is_none() && account.claim(u64::MAX).is_none());
        let second = account.claim(40).unwrap();
        assert_eq!((account.bytes(), account.entries()), (100, 2));
        drop(first);
        assert_eq!((account.bytes(), account.entries()), (40, 1));
        drop(second);
        assert_eq!((account.bytes(), account.entries()), (0, 0));
    }
}
