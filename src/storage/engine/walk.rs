//! Walks the objects of the store, page by page.

use std::sync::Arc;

use crate::provider::BackendKind;
use crate::storage::backend::{Backend, Entry, Page};
use crate::storage::engine::Engine;
use crate::storage::error::Result;

/// The number of entries of one page of a bucket, which lists no more in one answer.
const BUCKET_PAGE: usize = 1_000;

/// The number of entries of one page of a local store. The store walks its folders once for each page, so that few large
/// pages cost less; 4,096 entries take about 2 MB.
const LOCAL_PAGE: usize = 4_096;

/// A walk over the entries of a store in byte order of their keys, expired ones included.
///
/// One page is in memory at a time, whatever the number of keys.
#[derive(Debug)]
pub struct EntryWalk {
    backend: Arc<dyn Backend>,
    page: Page,
    ended: bool,
}

impl EntryWalk {
    /// Walks a backend from a key on. A page has this many entries.
    pub(in crate::storage) fn new(backend: Arc<dyn Backend>, page: Page) -> Self {
        Self { backend, page, ended: false }
    }

    /// Returns the next entries, or `None` at the end.
    ///
    /// # Errors
    ///
    /// The errors of the backend. The walk can be continued where it failed.
    pub async fn next_page(&mut self) -> Result<Option<Vec<Entry>>> {
        while !self.ended {
            let listing = self.backend.list(&self.page).await?;
            match listing.horizon()? {
                Some(last) => self.page.start_after = Some(last),
                None => self.ended = true,
            }
            if !listing.entries.is_empty() {
                return Ok(Some(listing.entries));
            }
        }
        Ok(None)
    }
}

/// Returns the number of entries of one page, by the place that is listed.
#[must_use]
pub const fn page_size(kind: BackendKind) -> usize {
    match kind {
        BackendKind::Local => LOCAL_PAGE,
        BackendKind::Gcs | BackendKind::S3 => BUCKET_PAGE,
    }
}

impl Engine {
    /// Begins a walk over the entries whose keys begin with `prefix` and come after `start_after`.
    #[must_use]
    pub fn walk(&self, prefix: &str, start_after: Option<String>) -> EntryWalk {
        let limit = Some(page_size(self.0.kind));
        let page = Page { prefix: prefix.to_owned(), start_after, limit, sizes_only: false };
        EntryWalk::new(Arc::clone(&self.0.backend), page)
    }

    /// Begins a walk over entries of which only key and stored size are needed, which saves S3 a request for each object.
    #[must_use]
    pub fn walk_sizes(&self, prefix: &str) -> EntryWalk {
        let limit = Some(page_size(self.0.kind));
        let page = Page { prefix: prefix.to_owned(), limit, sizes_only: true, ..Page::default() };
        EntryWalk::new(Arc::clone(&self.0.backend), page)
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::storage::backends::Memory;
    use crate::storage::error::ErrorKind;
    use crate::storage::object::{Attributes, Checksum, Key, Kind, Object};

    #[tokio::test]
    async fn an_empty_page_that_more_follow_is_not_the_end() {
        let backend: Arc<dyn Backend> = Arc::new(Memory::new());
        let attributes = Attributes::new(Kind::Text, "text/plain".to_owned(), 0, Checksum::of(b""));
        let object = Object { attributes, payload: bytes::Bytes::new().into() };
        backend.put(&Key::parse("k").unwrap(), &object, &Default::default()).await.unwrap();
        let mut walk = EntryWalk::new(Arc::clone(&backend), Page { limit: Some(0), ..Page::default() });
        assert_eq!(walk.next_page().await.unwrap_err().kind, ErrorKind::Io);
        let mut walk = EntryWalk::new(backend, Page { limit: Some(1), ..Page::default() });
        assert_eq!(walk.next_page().await.unwrap().map(|entries| entries.len()), Some(1));
        assert!(walk.next_page().await.unwrap().is_none());
    }
}
