//! The count of what is stored: a listing of all keys below a rule, at the start and at intervals.

use std::sync::atomic::Ordering;
use std::time::{Duration, Instant};

use rand::RngExt as _;
use tokio::time::sleep;

use super::Quota;
use crate::storage::backend::Page;
use crate::storage::error::Result;

/// The shortest wait between two counts that writes of unknown outcome ask for.
const SOON: Duration = Duration::from_secs(5);

/// The wait after a count that failed.
const RETRY: Duration = Duration::from_secs(2);

/// The wait after a count is at least so many times its duration.
const REST: u32 = 20;

impl Quota {
    /// Counts now and at intervals; never returns, and can be dropped at any time.
    ///
    /// The interval is longer where a count takes more than a twentieth of it.
    pub async fn count_loop(&self, interval: Duration) -> ! {
        self.in_background.store(true, Ordering::Relaxed);
        loop {
            let begun = Instant::now();
            match self.count().await {
                Ok(()) => {
                    let rest = begun.elapsed() * REST;
                    let interval = interval.mul_f64(rand::rng().random_range(0.75..1.0));
                    let soon = SOON.min(interval).max(rest);
                    sleep(soon).await;
                    tokio::select! {
                        () = sleep(interval.max(rest).saturating_sub(soon)) => {}
                        () = self.wanted.notified() => {}
                    }
                }
                Err(error) => {
                    if error.is_transient() {
                        tracing::debug!(%error, "what is stored cannot be counted yet; the numbers of before hold");
                    } else {
                        tracing::warn!(%error, "what is stored cannot be counted; the numbers of before hold");
                    }
                    sleep(RETRY.min(interval)).await;
                }
            }
        }
    }

    /// Counts unless that was done meanwhile.
    pub(super) async fn count_once(&self) -> Result<()> {
        let _alone = self.counting.lock().await;
        if self.ledger.is_counted() { Ok(()) } else { self.count_all().await }
    }

    /// Counts what is stored.
    ///
    /// # Errors
    ///
    /// The errors of the backend. The numbers of before hold then.
    pub async fn count(&self) -> Result<()> {
        let _alone = self.counting.lock().await;
        self.count_all().await
    }

    async fn count_all(&self) -> Result<()> {
        let counting = self.ledger.begin_count();
        let mut page = Page { limit: Some(self.page_size), sizes_only: true, ..Page::default() };
        // One rule, or rules of which one holds all others, need no more than its keys.
        page.prefix = common_prefix(self.ledger.rules().iter().map(|rule| rule.prefix.as_str()));
        loop {
            counting.begin_page();
            let listing = self.inner.list(&page).await?;
            page.start_after = listing.horizon()?;
            let is_last = page.start_after.is_none();
            counting.add_page(&listing.entries, is_last);
            if is_last {
                break;
            }
        }
        counting.end();
        self.counted.send_modify(|count| *count += 1);
        Ok(())
    }
}

/// Returns the longest text with which all prefixes begin.
fn common_prefix<'a>(mut prefixes: impl Iterator<Item = &'a str>) -> String {
    let Some(first) = prefixes.next() else { return String::new() };
    let common = prefixes.fold(first, |common, prefix| {
        let end = common.char_indices().zip(prefix.chars()).take_while(|((_, one), other)| one == other);
        let end = end.last().map_or(0, |((at, one), _)| at + one.len_utf8());
        &common[..end]
    });
    common.to_owned()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn prefixes_have_a_common_beginning() {
        for (prefixes, wanted) in [
            (&["users/"][..], "users/"),
            (&["users/", ""], ""),
            (&["a/é", "a/è"], "a/"),
            (&["ab", "abc"], "ab"),
            (&[], ""),
        ] {
            assert_eq!(common_prefix(prefixes.iter().copied()), wanted);
        }
    }
}
