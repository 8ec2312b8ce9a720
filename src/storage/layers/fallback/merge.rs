//! Merges the listings of overlay and bucket. An entry of the overlay hides the bucket's object of the same key.

use super::overlay::Overlay;
use crate::storage::backend::{Backend, Listing, Page};
use crate::storage::error::Result;
use crate::storage::layers::listings::append;

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
        let range =
            |limit| Page { prefix: page.prefix.clone(), start_after: from.clone(), limit, sizes_only: page.sizes_only };
        let over = overlay.list(&range(most.map(|most| most.max(STRIDE)))).await?;
        if over.entries.is_empty() {
            let under = bucket.list(&range(missing)).await?;
            merged.entries.extend(under.entries);
            return Ok(Listing { foreign: merged.foreign + under.foreign, more: under.more, ..merged });
        }
        let hiding = over.entries.iter().filter(|entry| entry.tombstone).count();
        let under = bucket.list(&range(most.map(|most| most.saturating_add(hiding)))).await?;
        merged.foreign += under.foreign;
        let horizon = match (over.horizon()?, under.horizon()?) {
            (Some(one), Some(other)) => Some(one.min(other)),
            (one, other) => one.or(other),
        };
        append(&mut merged.entries, over, under, horizon.as_deref());
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
