//! Merges the listings of overlay and bucket. An entry of the overlay hides the bucket's object of the same key.

use std::cmp::Ordering;
use std::collections::VecDeque;

use super::overlay::Overlay;
use crate::storage::backend::{Backend, Entry, Listing, Page};
use crate::storage::error::{Error, ErrorKind, Operation, Result};

/// The smallest number of overlay entries that one step reads. Tombstones hide other entries, so fewer would mean many
/// steps.
const STRIDE: usize = 1000;

/// Lists one page of the keys that overlay and bucket have together.
///
/// Each step reads a range of the overlay and then the same range of the bucket, never the other way round. So an entry
/// that is sent meanwhile is seen in at least one of the two.
pub(super) async fn list(overlay: &Overlay, bucket: &dyn Backend, page: &Page) -> Result<Listing> {
    let mut merged = Listing::default();
    let mut from = page.start_after.clone();
    loop {
        let missing = page.limit.map(|limit| limit - merged.entries.len());
        // One entry more than is missing shows whether more entries follow.
        let most = missing.map(|missing| missing.saturating_add(1));
        let range = |limit| Page { prefix: page.prefix.clone(), start_after: from.clone(), limit };
        let over = overlay.list(&range(most.map(|most| most.max(STRIDE)))).await?;
        if over.entries.is_empty() {
            let under = bucket.list(&range(missing)).await?;
            merged.entries.extend(under.entries);
            return Ok(Listing { foreign: merged.foreign + under.foreign, more: under.more, ..merged });
        }
        let hiding = over.entries.iter().filter(|entry| entry.tombstone).count();
        let under = bucket.list(&range(most.map(|most| most.saturating_add(hiding)))).await?;
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

/// Returns the key up to which a listing is complete, or `None` where the whole listing is.
fn horizon(listing: &Listing) -> Result<Option<String>> {
    match listing.entries.last() {
        Some(last) if listing.more => Ok(Some(last.key.as_str().to_owned())),
        None if listing.more => {
            let why = "the listing returned a page without entries although more follow; try again";
            Err(Error::new(ErrorKind::Io, Operation::List, None, why))
        }
        _ => Ok(None),
    }
}

/// Appends the entries of both listings up to the horizon, in order. The first listing wins, and its tombstones hide
/// keys.
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
