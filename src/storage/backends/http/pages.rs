//! Whether a listing gets on from page to page.

use std::collections::HashSet;
use std::hash::{DefaultHasher, Hash as _, Hasher as _};

/// The pages of one listing so far.
///
/// A place that gives a page token again, or the same page under another token, would be asked for ever.
#[derive(Debug, Default)]
pub(in crate::storage) struct Pages {
    /// Hashes of the tokens, of which a bucket of millions has thousands.
    tokens: HashSet<u64>,
    /// First and last name of the page before.
    before: Option<(String, String)>,
}

impl Pages {
    /// Takes note of a page and the token of the next one; says what is wrong when that leads nowhere.
    pub(in crate::storage) fn turn(
        &mut self,
        names: Option<(&str, &str)>,
        next: Option<&str>,
    ) -> Result<(), &'static str> {
        let Some(next) = next else { return Ok(()) };
        if !self.tokens.insert(hash(next)) {
            return Err("the listing does not get on: its page token is one that it has given before");
        }
        // A page may be empty and the listing get on.
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
    fn a_listing_that_stands_still_is_found_out_at_the_second_page() {
        let mut pages = Pages::default();
        pages.turn(Some(("a", "b")), Some("1")).unwrap();
        pages.turn(Some(("c", "d")), Some("2")).unwrap();
        pages.turn(None, Some("3")).unwrap();
        pages.turn(None, Some("4")).unwrap();
        pages.turn(Some(("e", "f")), None).unwrap();
        let mut stuck = Pages::default();
        stuck.turn(Some(("a", "b")), Some("1")).unwrap();
        assert!(stuck.turn(Some(("c", "d")), Some("1")).unwrap_err().contains("page token"));
        let mut round = Pages::default();
        round.turn(None, Some("1")).unwrap();
        round.turn(None, Some("2")).unwrap();
        round.turn(None, Some("1")).unwrap_err();
        let mut same = Pages::default();
        same.turn(Some(("a", "b")), Some("1")).unwrap();
        same.turn(Some(("a", "b")), Some("2")).unwrap_err();
        // The last page may be any.
        let mut last = Pages::default();
        last.turn(Some(("a", "b")), Some("1")).unwrap();
        last.turn(Some(("a", "b")), None).unwrap();
    }
}
