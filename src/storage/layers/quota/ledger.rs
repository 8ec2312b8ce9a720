//! The books of the quotas: what is stored below each prefix, what is reserved, and a count under way.

use std::collections::HashMap;
use std::sync::{Mutex, MutexGuard, PoisonError};

use crate::quota_rule::QuotaRule;
use crate::storage::backend::Entry;
use crate::storage::error::{Error, ErrorKind, Operation, Result};
use crate::storage::object::Key;

/// A number of bytes and a number of objects, or a change of both.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Amount {
    /// Stored bytes.
    pub bytes: i64,
    /// Objects.
    pub objects: i64,
}

impl Amount {
    /// Makes the amount of one object of this many stored bytes.
    pub(super) fn object(bytes: u64) -> Self {
        Self { bytes: i64::try_from(bytes).unwrap_or(i64::MAX), objects: 1 }
    }

    fn add(&mut self, change: Self) {
        self.bytes = self.bytes.saturating_add(change.bytes);
        self.objects = self.objects.saturating_add(change.objects);
    }

    pub(super) const fn minus(self, other: Self) -> Self {
        Self { bytes: self.bytes.saturating_sub(other.bytes), objects: self.objects.saturating_sub(other.objects) }
    }

    fn growth(self) -> Self {
        Self { bytes: self.bytes.max(0), objects: self.objects.max(0) }
    }
}

/// The books of all quotas of one process.
#[derive(Debug)]
pub(super) struct Ledger {
    rules: Vec<QuotaRule>,
    state: Mutex<State>,
}

#[derive(Debug, Default)]
struct State {
    /// What each rule has, with what is reserved; `None` before the first count.
    used: Option<Vec<Amount>>,
    /// The writes that are under way.
    open: HashMap<u64, Open>,
    next: u64,
    count: Option<Count>,
}

/// A write or removal that is under way.
#[derive(Debug)]
struct Open {
    key: Key,
    reserved: Amount,
    /// Where the count under way was when the change began, or has passed since.
    seen: Seen,
}

/// Whether a count under way has seen a change.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Seen {
    /// The key is listed later.
    NotYet,
    /// The key was listed before the change began.
    Before,
    /// The key was listed while the change was under way, so that the listing has either state.
    Either,
}

/// A count under way.
#[derive(Debug)]
struct Count {
    /// The last key that was listed.
    cursor: Option<Key>,
    listed: Vec<Amount>,
    /// Changes that ended while the present page was being listed.
    recent: Vec<(Key, Amount)>,
}

/// A count that is under way.
#[derive(Debug)]
pub(super) struct Counting<'a>(&'a Ledger);

/// A change that is under way. One that is dropped without an outcome stays reserved until the next count.
#[derive(Debug)]
pub(super) struct Reservation<'a> {
    ledger: &'a Ledger,
    id: Option<u64>,
}

impl Ledger {
    pub(super) fn new(rules: Vec<QuotaRule>) -> Self {
        Self { rules, state: Mutex::default() }
    }

    pub(super) fn rules(&self) -> &[QuotaRule] {
        &self.rules
    }

    pub(super) fn covers(&self, key: &Key) -> bool {
        self.rules.iter().any(|rule| key.as_str().starts_with(&rule.prefix))
    }

    fn state(&self) -> MutexGuard<'_, State> {
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }

    pub(super) fn is_counted(&self) -> bool {
        self.state().used.is_some()
    }

    /// Returns what each rule has.
    pub(super) fn used(&self) -> Option<Vec<Amount>> {
        self.state().used.clone()
    }

    fn apply(&self, amounts: &mut [Amount], key: &Key, change: Amount) {
        let covering = self.rules.iter().zip(amounts).filter(|(rule, _)| key.as_str().starts_with(&rule.prefix));
        covering.for_each(|(_, amount)| amount.add(change));
    }

    /// Reserves what a change adds; fails with [`ErrorKind::QuotaExceeded`] where that is more than a rule has left.
    pub(super) fn reserve(&self, operation: Operation, key: &Key, change: Amount) -> Result<Reservation<'_>> {
        let mut state = self.state();
        let reserved = change.growth();
        if let Some(used) = &mut state.used {
            for (rule, used) in self.rules.iter().zip(used.iter()) {
                if key.as_str().starts_with(&rule.prefix) {
                    self.check(operation, key, rule, *used, reserved)?;
                }
            }
            self.apply(used, key, reserved);
        }
        let passed = state.count.as_ref().is_some_and(|count| count.cursor.as_ref() >= Some(key));
        let seen = if passed { Seen::Before } else { Seen::NotYet };
        let id = state.next;
        state.next += 1;
        state.open.insert(id, Open { key: key.clone(), reserved, seen });
        Ok(Reservation { ledger: self, id: Some(id) })
    }

    #[expect(clippy::unused_self, reason = "a rule of the ledger")]
    fn check(&self, operation: Operation, key: &Key, rule: &QuotaRule, used: Amount, more: Amount) -> Result<()> {
        let exceeds = |used: i64, more: i64, limit: u64| {
            more > 0 && used.saturating_add(more) > i64::try_from(limit).unwrap_or(i64::MAX)
        };
        let prefix = &rule.prefix;
        let of = if prefix.is_empty() { "all keys".to_owned() } else { format!("the prefix {prefix:?}") };
        let why = match rule.objects {
            _ if exceeds(used.bytes, more.bytes, rule.bytes) => format!(
                "the quota of {of} is {} stored bytes, of which {} are used, and this needs {} more",
                rule.bytes, used.bytes, more.bytes
            ),
            Some(objects) if exceeds(used.objects, more.objects, objects) => {
                format!("the quota of {of} is {objects} objects, and there are {}", used.objects)
            }
            _ => return Ok(()),
        };
        let why = format!("{why}; delete values below it, or raise `quotas`");
        Err(Error::new(ErrorKind::QuotaExceeded, operation, Some(key), why))
    }

    /// Ends a change. `change` is what it has changed, which may be less than was reserved.
    fn close(&self, id: u64, change: Option<Amount>) {
        let mut state = self.state();
        let Some(Open { key, reserved, seen }) = state.open.remove(&id) else { return };
        // Without an outcome the change may have happened: what it needs stays reserved.
        let change = change.unwrap_or(reserved);
        if let Some(used) = &mut state.used {
            self.apply(used, &key, change.minus(reserved));
        }
        if let Some(count) = &mut state.count {
            match seen {
                Seen::NotYet => count.recent.push((key, change)),
                Seen::Before => self.apply(&mut count.listed, &key, change),
                Seen::Either => self.apply(&mut count.listed, &key, change.growth()),
            }
        }
    }

    /// Begins a count, which ends when it is dropped.
    pub(super) fn begin_count(&self) -> Counting<'_> {
        let mut state = self.state();
        state.open.values_mut().for_each(|open| open.seen = Seen::NotYet);
        let listed = vec![Amount::default(); self.rules.len()];
        state.count = Some(Count { cursor: None, listed, recent: Vec::new() });
        Counting(self)
    }
}

impl Counting<'_> {
    /// Notes that the listing of a page begins.
    pub(super) fn begin_page(&self) {
        if let Some(count) = &mut self.0.state().count {
            count.recent.clear();
        }
    }

    /// Counts a page that was listed. The last page covers all keys that follow.
    pub(super) fn add_page(&self, entries: &[Entry], is_last: bool) {
        let Self(ledger) = self;
        let mut state = ledger.state();
        let State { count, open, .. } = &mut *state;
        let Some(count) = count else { return };
        for entry in entries {
            ledger.apply(&mut count.listed, &entry.key, Amount::object(entry.stored_size.unwrap_or_default()));
        }
        let last = entries.last().map(|entry| entry.key.clone());
        let (from, to) = (count.cursor.take(), last.clone());
        let within = |key: &Key| from.as_ref() < Some(key) && (is_last || to.as_ref() >= Some(key));
        // What ended during the listing may or may not be in it. A growth counts, so that the count is never too low.
        for (key, change) in std::mem::take(&mut count.recent) {
            if within(&key) {
                ledger.apply(&mut count.listed, &key, change.growth());
            }
        }
        for open in open.values_mut().filter(|open| open.seen == Seen::NotYet && within(&open.key)) {
            open.seen = Seen::Either;
        }
        count.cursor = last.or(from);
    }

    /// Ends the count: from now on, its numbers hold.
    pub(super) fn end(self) {
        let Self(ledger) = &self;
        let mut state = ledger.state();
        let Some(Count { mut listed, .. }) = state.count.take() else { return };
        for open in state.open.values() {
            ledger.apply(&mut listed, &open.key, open.reserved);
        }
        state.used = Some(listed);
    }
}

impl Drop for Counting<'_> {
    /// A count that did not come to its end is forgotten.
    fn drop(&mut self) {
        self.0.state().count = None;
    }
}

impl Reservation<'_> {
    /// Ends a change that has happened.
    pub(super) fn settle(mut self, change: Amount) {
        if let Some(id) = self.id.take() {
            self.ledger.close(id, Some(change));
        }
    }

    /// Ends a change that has certainly not happened.
    pub(super) fn release(self) {
        self.settle(Amount::default());
    }
}

impl Drop for Reservation<'_> {
    fn drop(&mut self) {
        if let Some(id) = self.id.take() {
            self.ledger.close(id, None);
        }
    }
}
