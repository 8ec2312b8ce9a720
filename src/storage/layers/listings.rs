//! Merges the listings of two places. The first place hides the keys of the second.

use std::cmp::Ordering;
use std::collections::VecDeque;

use crate::storage::backend::{Entry, Listing};
use crate::storage::error::Result;

/// Merges one page of each of two places, which both begin after the same key and have at most `limit` entries.
pub(super) fn merge(over: Listing, under: Listing, limit: Option<usize>) -> Result<Listing> {
    if limit == Some(0) {
        let (foreign, more) = (over.foreign + under.foreign, over.more || under.more);
        return Ok(Listing { entries: Vec::new(), foreign, more });
    }
    let end = match (over.horizon()?, under.horizon()?) {
        (Some(one), Some(other)) => Some(one.min(other)),
        (one, other) => one.or(other),
    };
    let mut merged = Listing { entries: Vec::new(), foreign: over.foreign + under.foreign, more: end.is_some() };
    append(&mut merged.entries, over, under, end.as_deref());
    if let Some(limit) = limit.filter(|limit| merged.entries.len() > *limit) {
        merged.entries.truncate(limit);
        merged.more = true;
    }
    Ok(merged)
}

/// Appends the entries of both listings up to the horizon, in order. The first listing wins, and its tombstones hide
/// keys.
pub(super) fn append(merged: &mut Vec<Entry>, over: Listing, under: Listing, horizon: Option<&str>) {
    let within = |listing: Listing| -> VecDeque<Entry> {
        let known = |entry: &Entry| horizon.is_none_or(|horizon| entry.key.as_str() <= horizon);
        listing.entries.into_iter().take_while(known).collect()
    };
    let (mut over, mut under) = (within(over), within(under));
    loop {
        let next = match (over.front(), under.front()) {
            (Some(one), Some(other)) => match one.key.cmp(&other.key) {
                Ordering::Less => over.pop_front(),
                Ordering::Greater => under.pop_front(),
                Ordering::Equal => {
                    under.pop_front();
                    over.pop_front()
                }
            },
            (Some(_), None) => over.pop_front(),
            (None, _) => under.pop_front(),
        };
        match next {
            None => return,
            Some(entry) if entry.tombstone => {}
            Some(entry) => merged.push(entry),
        }
    }
}
