//! Detects a listing whose pages repeat.

use std::collections::HashSet;
use std::hash::{DefaultHasher, Hash as _, Hasher as _};

/// The pages of one listing so far.
///
/// A bucket that repeats a page token, or the same page under another token, would be asked forever.
#[derive(Debug, Default)]
pub(in crate::storage) struct Pages {
    /// Hashes of the tokens. The listing of a bucket with millions of objects has thousands.
    tokens: HashSet<u64>,
    /// The first and last name of the previous page.
    before: Option<(String, String)>,
}

impl Pages {
    /// Notes a page and the token of the next page; returns an error when the listing repeats.
    pub(in crate::storage) fn advance(
        &mut self,
        names: Option<(&str, &str)>,
        next: Option<&str>,
    ) -> Result<(), &'static str> {
        let Some(next) = next else { return Ok(()) };
        if !self.tokens.insert(hash(next)) {
            return Err("the listing does not get on: its page token is one that it has given before");
        }
        // A listing may advance with an empty page.
        let Some((first, last)) = names else { return Ok(()) };
        let before = self.before.replace((first.to_owned(), last.to_owned()));
        if before.is_some_and(|before| (&*before.0, &*before.1) == (first, last)) {
            return Err("the listing does not get on: another page token brings the page before once more");
        }
        Ok(())
    }
}

fn hash(token: &str) -> u64 {
    let mut hasher = DefaultHasher::new();
    token.hash(&mut hasher);
    hasher.finish()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_listing_that_repeats_is_detected_at_the_second_page() {
        let mut pages = Pages::default();
        pages.advance(Some(("a", "b")), Some("1")).unwrap();
        pages.advance(Some(("c", "d")), Some("2")).unwrap();
        pages.advance(None, Some("3")).unwrap();
        pages.advance(None, Some("4")).unwrap();
        pages.advance(Some(("e", "f")), None).unwrap();
        let mut stuck = Pages::default();
        stuck.advance(Some(("a", "b")), Some("1")).unwrap();
        assert!(stuck.advance(Some(("c", "d")), Some("1")).unwrap_err().contains("page token"));
        let mut round = Pages::default();
        round.advance(None, Some("1")).unwrap();
        round.advance(None, Some("2")).unwrap();
        round.advance(None, Some("1")).unwrap_err();
        let mut same = Pages::default();
        same.advance(Some(("a", "b")), Some("1")).unwrap();
        same.advance(Some(("a", "b")), Some("2")).unwrap_err();
        // The last page may equal the one before.
        let mut last = Pages::default();
        last.advance(Some(("a", "b")), Some("1")).unwrap();
        last.advance(Some(("a", "b")), None).unwrap();
    }
}
