//! Listings: names in the bucket, page by page.
//!
//! The store is asked to escape names, so that every name survives XML. Its listings have sizes and no metadata, so the
//! attributes of each object are requested separately, several at a time, unless only sizes are needed.

use std::collections::BTreeMap;
use std::sync::atomic::Ordering;

use futures_util::stream::{self, StreamExt as _, TryStreamExt as _};
use http::Method;
use percent_encoding::percent_decode_str;

use super::S3;
use super::error::RequestContext;
use super::read;
use super::wire::Call;
use crate::storage::backend::{Entry, Listing, Page};
use crate::storage::backends::http::cut;
use crate::storage::backends::http::pages::Pages;
use crate::storage::error::{ErrorKind, Operation, Result};
use crate::storage::object::Key;

/// The number of objects whose attributes are requested at once.
pub(super) const AT_ONCE: usize = 16;

/// The largest number of names in one answer. No store returns more.
pub(super) const MOST: usize = 1_000;

/// One answer of ListObjectsV2.
#[derive(Debug, Default, serde::Deserialize)]
#[serde(rename_all = "PascalCase", default)]
struct Document {
    name: Option<String>,
    contents: Vec<Content>,
    is_truncated: Option<bool>,
    next_continuation_token: Option<String>,
    encoding_type: Option<String>,
}

#[derive(Debug, serde::Deserialize)]
#[serde(rename_all = "PascalCase")]
struct Content {
    key: String,
    size: Option<u64>,
}

/// A key, and the stored bytes of its object where the store tells their number.
type SizedKey = (Key, Option<u64>);

/// The names of one answer.
#[derive(Debug, Default)]
pub(super) struct Names {
    /// The keys, each with the size of its object where the store tells it.
    keys: Vec<SizedKey>,
    foreign: u64,
    /// The token of the next answer; `None` after the last.
    next: Option<String>,
    /// Whether the names are in the order of their bytes.
    sorted: bool,
}

/// The keys that were found for a page.
#[derive(Debug, Default)]
struct Found {
    keys: Vec<SizedKey>,
    foreign: u64,
    more: bool,
}

impl S3 {
    pub(super) async fn list_page(&self, page: &Page) -> Result<Listing> {
        let mut page = page.clone();
        let mut foreign = 0;
        loop {
            let found = self.find(&page).await?;
            foreign += found.foreign;
            if page.sizes_only {
                let entries = found.keys.into_iter().map(|(key, size)| Entry::sized(key, size)).collect();
                return Ok(Listing { entries, foreign, more: found.more });
            }
            let last = found.keys.last().map(|(key, _)| key.as_str().to_owned());
            let entries = stream::iter(found.keys).map(|(key, size)| self.entry(key, size)).buffered(AT_ONCE);
            let entries: Vec<_> = entries.try_filter_map(async |entry| Ok(entry)).try_collect().await?;
            match last {
                // A page without entries would not tell the caller where to continue.
                Some(last) if entries.is_empty() && found.more => page.start_after = Some(last),
                _ => return Ok(Listing { entries, foreign, more: found.more }),
            }
        }
    }

    /// Finds the keys of a page.
    async fn find(&self, page: &Page) -> Result<Found> {
        if !self.0.unsorted.load(Ordering::Relaxed)
            && let Some(found) = self.find_in_order(page).await?
        {
            return Ok(found);
        }
        self.find_anywhere(page).await
    }

    /// Reads from the beginning of the page on; `None` when the store lists in another order than that of bytes.
    async fn find_in_order(&self, page: &Page) -> Result<Option<Found>> {
        let wanted = page.limit.unwrap_or(usize::MAX);
        let (mut found, mut next, mut pages) = (Found::default(), None, Pages::default());
        loop {
            // One name more than requested shows whether more follow.
            let most = wanted.saturating_sub(found.keys.len()).saturating_add(1).min(MOST);
            let names = self.names(page, next.take(), most, &mut pages).await?;
            let first = names.keys.first().map(text);
            // A store may ignore `start-after`, which counts as a wrong order, too.
            let follows =
                first.is_none() || (found.keys.last().map(text) < first && page.start_after.as_deref() < first);
            if !names.sorted || !follows || self.0.unsorted.load(Ordering::Relaxed) {
                self.0.unsorted.store(true, Ordering::Relaxed);
                return Ok(None);
            }
            found.foreign += names.foreign;
            found.keys.extend(names.keys);
            next = names.next;
            if found.keys.len() > wanted || next.is_none() {
                found.more = found.keys.len() > wanted;
                found.keys.truncate(wanted);
                return Ok(Some(found));
            }
        }
    }

    /// Reads all names with the prefix and keeps the first that the page asks for.
    async fn find_anywhere(&self, page: &Page) -> Result<Found> {
        let wanted = page.limit.unwrap_or(usize::MAX);
        let all = Page { start_after: None, ..page.clone() };
        let after = page.start_after.as_deref().unwrap_or_default();
        let (mut keys, mut foreign, mut more, mut next) = (BTreeMap::new(), 0, false, None);
        let mut pages = Pages::default();
        loop {
            let names = self.names(&all, next.take(), MOST, &mut pages).await?;
            foreign += names.foreign;
            for (key, size) in names.keys.into_iter().filter(|(key, _)| key.as_str() > after) {
                keys.insert(key, size);
                if keys.len() > wanted {
                    more = true;
                    drop(keys.pop_last());
                }
            }
            next = names.next;
            if next.is_none() {
                return Ok(Found { keys: keys.into_iter().collect(), foreign, more });
            }
        }
    }

    async fn names(&self, page: &Page, next: Option<String>, most: usize, pages: &mut Pages) -> Result<Names> {
        let wire = &self.0.wire;
        let mut call = Call::new(Operation::List, Method::GET, None)
            .query("list-type", "2")
            .query("encoding-type", "url")
            .query("max-keys", most.to_string())
            .query("prefix", &*page.prefix);
        match (next, &page.start_after) {
            (Some(next), _) => call = call.query("continuation-token", next),
            (None, Some(after)) if !after.is_empty() => call = call.query("start-after", &**after),
            (None, _) => {}
        }
        let (_, names) = wire.listing(call).await?;
        // SeaweedFS lists the content of a folder right after its name (`a`, `a/b`, `a!`), which a short page need not
        // show.
        if wire.is_seaweedfs() {
            self.0.unsorted.store(true, Ordering::Relaxed);
        }
        let context = wire.context(Operation::List, None);
        if names.keys.iter().any(|(key, _)| !key.as_str().starts_with(&*page.prefix)) {
            return Err(context.repeating("it lists names that do not begin with the prefix it was asked for"));
        }
        let ends = names.keys.first().map(text).zip(names.keys.last().map(text));
        pages.advance(ends, names.next.as_deref()).map_err(|what| context.repeating(what))?;
        Ok(names)
    }

    /// Requests the attributes of a listed object; `None` when the object has been removed meanwhile.
    async fn entry(&self, key: Key, size: Option<u64>) -> Result<Option<Entry>> {
        let wire = &self.0.wire;
        let remote = match wire.find_object_quickly(Operation::List, &key, None).await {
            Ok(Some(remote)) => remote,
            Ok(None) => return Ok(None),
            // The error concerns one object only, e.g. its encryption key. That the bucket may be listed is known.
            Err(error) if matches!(error.kind, ErrorKind::Denied | ErrorKind::Invalid) => {
                return Ok(Some(Entry::sized(key, size)));
            }
            Err(error) => return Err(error),
        };
        Ok(Some(match read::attributes(remote, &wire.context(Operation::List, Some(&key))) {
            Ok(attributes) => Entry::of(&key, &attributes),
            // The object exists, whatever is wrong with its attributes.
            Err(error) if error.kind == ErrorKind::Integrity => Entry::sized(key, size),
            Err(error) => return Err(error),
        }))
    }
}

/// Returns the text of a listed key.
fn text((key, _): &SizedKey) -> &str {
    key.as_str()
}

/// Parses a listing, which must be one of this bucket.
pub(super) fn parse(text: &str, context: &RequestContext<'_>) -> Result<Names> {
    let document: Document =
        quick_xml::de::from_str(text).map_err(|error| context.unexpected_answer(&error.to_string()))?;
    let Some(is_truncated) = document.is_truncated else {
        return Err(context.unexpected_answer("a listing does not say whether it is complete"));
    };
    if let Some(other) = document.name.filter(|name| !context.address.is_named(name)) {
        return Err(context.wrong_place(&format!("it lists the bucket {:?}", cut(&other))));
    }
    let escaped = document.encoding_type.is_some_and(|kind| kind.eq_ignore_ascii_case("url"));
    let count = document.contents.len() as u64;
    let names = document.contents.into_iter().map(|content| (name(content.key, escaped), content.size));
    let keys: Vec<SizedKey> = names
        .filter_map(|(name, size)| Some((Key::parse(&name?).ok().filter(|key| !is_scratch(key))?, size)))
        .collect();
    let next = match (is_truncated, document.next_continuation_token) {
        (false, _) => None,
        (true, Some(next)) => Some(next),
        (true, None) => {
            return Err(context.unexpected_answer("a listing is incomplete and has no token of the next page"));
        }
    };
    Ok(Names { foreign: count - keys.len() as u64, sorted: keys.is_sorted_by_key(|(key, _)| key), keys, next })
}

/// Decodes an escaped name, in which a blank is `+`; `None` for a name that is no UTF-8.
pub(super) fn name(listed: String, escaped: bool) -> Option<String> {
    if !escaped {
        return Some(listed);
    }
    let blanks = listed.replace('+', " ");
    percent_decode_str(&blanks).decode_utf8().ok().map(std::borrow::Cow::into_owned)
}

/// Prefix of the last segment of a scratch object's key.
pub(super) const SCRATCH: &str = "filestorage-tries-conditions-";

/// Tells whether a key is that of a scratch object, which listings omit even where it could not be removed.
fn is_scratch(key: &Key) -> bool {
    key.as_str().rsplit('/').next().is_some_and(|name| name.starts_with(SCRATCH))
}

#[cfg(test)]
mod tests {
    use super::super::options::S3Address;
    use super::*;

    fn parsed(text: &str) -> Result<Names> {
        let address = S3Address {
            bucket: "b".to_owned(),
            region: "r".to_owned(),
            url: "http://x/b".to_owned(),
            setting: Some("s3_endpoint_url"),
            only_instance_credentials: false,
        };
        parse(text, &RequestContext { address: &address, operation: Operation::List, key: None })
    }

    #[test]
    fn names_are_read_or_counted_as_foreign() {
        let listed = ["a//b", "dir/", "%2B+%2525/%C3%A9", "%EF%BF%BE", "x%00", "%FF", "+"];
        let contents: String =
            listed.iter().map(|key| format!("<Contents><Key>{key}</Key><Size>1</Size></Contents>")).collect();
        let listing = format!(
            "<?xml version=\"1.0\"?><ListBucketResult xmlns=\"http://s3.amazonaws.com/doc/2006-03-01/\"><Name>b</Name>\
             <IsTruncated>true</IsTruncated>{contents}<EncodingType>url</EncodingType>\
             <NextContinuationToken>t=</NextContinuationToken></ListBucketResult>"
        );
        let names = parsed(&listing).unwrap();
        assert_eq!(names.keys.iter().map(text).collect::<Vec<_>>(), ["+ %25/é", "\u{fffe}", " "]);
        assert!(names.keys.iter().all(|(_, size)| *size == Some(1)));
        assert_eq!((names.foreign, names.next.as_deref(), names.sorted), (4, Some("t="), false));
        let plain = parsed(&listing.replace("<EncodingType>url</EncodingType>", "")).unwrap();
        assert_eq!(text(&plain.keys[0]), "%2B+%2525/%C3%A9");
        let endless = listing.replace("<NextContinuationToken>t=</NextContinuationToken>", "");
        assert_eq!(parsed(&endless).unwrap_err().kind, ErrorKind::Unavailable);
        assert_eq!(parsed("no listing").unwrap_err().kind, ErrorKind::Unavailable);
        let other = parsed(&listing.replace("<Name>b</Name>", "<Name>other</Name>")).unwrap_err();
        assert!(other.kind == ErrorKind::Invalid && other.message().contains("\"other\""), "{other}");
        assert_eq!(parsed("<ListBucketResult/>").unwrap_err().kind, ErrorKind::Unavailable);
        assert_eq!(
            parsed("<ListBucketResult><IsTruncated>false</IsTruncated></ListBucketResult>").unwrap().keys.len(),
            0
        );
    }
}
