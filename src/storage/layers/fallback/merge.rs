//! One listing of two places, of which the first hides what it knows better.

use std::cmp::Ordering;
use std::collections::VecDeque;

use super::overlay::Overlay;
use crate::storage::backend::{Backend, Entry, Listing, Page};
use crate::storage::error::{Error, ErrorKind, Operation, Result};

/// Fewest entries of the overlay looked at in one step: its tombstones hide others, so few would mean many steps.
const STRIDE: usize = 1000;

/// Lists one page of what both together have.
///
/// Each step reads a stretch of the overlay and then the same stretch of the bucket, never the other way round: an entry
/// on its way from the one to the other is thus seen in at least one of them.
pub(super) async fn list(overlay: &Overlay, bucket: &dyn Backend, page: &Page) -> Result<Listing> {
    let mut merged = Listing::default();
    let mut from = page.start_after.clone();
    loop {
        let missing = page.limit.map(|limit| limit - merged.entries.len());
        // One more than is missing tells whether there are more.
        let most = missing.map(|missing| missing.saturating_add(1));
        let stretch = |limit| Page { prefix: page.prefix.clone(), start_after: from.clone(), limit };
        let over = overlay.list(&stretch(most.map(|most| most.max(STRIDE)))).await?;
        if over.entries.is_empty() {
            let under = bucket.list(&stretch(missing)).await?;
            merged.entries.extend(under.entries);
            return Ok(Listing { foreign: merged.foreign + under.foreign, more: under.more, ..merged });
        }
        let hiding = over.entries.iter().filter(|entry| entry.tombstone).count();
        let under = bucket.list(&stretch(most.map(|most| most.saturating_add(hiding)))).await?;
        merged.foreign += under.foreign;
        let horizon = match (horizon(&over)?, horizon(&under)?) {
            (Some(one), Some(other)) => Some(one.min(other)),
            (one, other) => one.or(other),
        };
        merge(&mut merged.entries, over, under, horizon.as_deref());
        if let Some(limit) = page.limit.filter(|limit| merged.entries.len() > *limit) {
            merged.entries.truncate(limit);
            return Ok(Listing { more: true, ..merged });
        }
        if horizon.is_none() {
            return Ok(merged);
        }
        from = horizon;
    }
}

/// Returns the key up to which a listing knows everything, or nothing where it knows all.
fn horizon(listing: &Listing) -> Result<Option<String>> {
    match listing.entries.last() {
        Some(last) if listing.more => Ok(Some(last.key.as_str().to_owned())),
        None if listing.more => {
            let why = "a page without entries came though more were announced; try again";
            Err(Error::new(ErrorKind::Io, Operation::List, None, why))
        }
        _ => Ok(None),
    }
}

/// Appends what the two have up to the horizon, in order; the first wins, and its tombstones hide.
fn merge(merged: &mut Vec<Entry>, over: Listing, under: Listing, horizon: Option<&str>) {
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
