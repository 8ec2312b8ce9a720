//! The versions of one object, in a bucket with object versioning.

use std::collections::BTreeMap;

use reqwest::Method;

use super::error::GcsFault;
use super::names::LONGEST_PAGE;
use super::resource::{FIELDS, FoundObject};
use super::{Error, ErrorKind, Gcs, Key, Operation, Version, VersionId, Versions, VersionsRequest};
use crate::storage::backends::http::pages::Pages;

/// The largest number of versions of one object that are read: a hundred pages.
const MOST_READ: usize = 100_000;

impl Gcs {
    /// Lists the newest versions of an object. The API lists the oldest first, so all are read and few are kept.
    pub(super) async fn versions_of(&self, key: &Key, wanted: &VersionsRequest) -> Result<Versions, GcsFault> {
        let (mut found, mut newest, mut read) = (Versions::default(), BTreeMap::new(), 0);
        let (mut token, mut pages) = (None::<String>, Pages::default());
        loop {
            let items = format!("kind,items({FIELDS},timeDeleted),nextPageToken");
            let mut query = vec![("fields", items), ("maxResults", LONGEST_PAGE.to_string())];
            query.extend([("versions", "true".to_owned()), ("prefix", key.as_str().to_owned())]);
            query.extend(end_of(key).map(|end| ("endOffset", end)));
            query.extend(token.take().map(|token| ("pageToken", token)));
            let request = self.client.request(Method::GET, &self.address.objects()).await?.query(&query);
            let answer = self.page(request).await?;
            // Names that begin with the key come behind it, and those that do not begin with it do not come at all.
            let is_past = answer.items.iter().any(|item| item.name.as_str() > key.as_str());
            for resource in answer.items.into_iter().filter(|item| item.is_of(self.address.bucket(), key)) {
                read += 1;
                let FoundObject { native, is_earlier, token, attributes } = resource.into();
                let Ok(attributes) = attributes else {
                    // A version whose token is another one is not the wanted version, whatever else is damaged.
                    let is_other = wanted.generation.is_some() && token.is_some() && token != wanted.generation;
                    found.unreadable += u64::from(!is_other);
                    continue;
                };
                if wanted.generation.as_ref().is_some_and(|generation| *generation != attributes.generation) {
                    continue;
                }
                let id = VersionId::new(&native.to_string());
                newest.insert(native, Version { id, attributes, is_current: !is_earlier });
                if newest.len() > wanted.limit {
                    newest.pop_first();
                    found.more = true;
                }
            }
            let next = answer.next_page_token.filter(|_| !is_past);
            pages.advance(None, next.as_deref()).map_err(GcsFault::Repeating)?;
            token = next;
            if token.is_none() {
                found.versions = newest.into_values().rev().collect();
                return Ok(found);
            }
            if read >= MOST_READ {
                return Err(too_many(key).into());
            }
        }
    }
}

/// Returns the first legal name after a key, so that a listing ends there. Behind the longest key comes none that begins
/// with it.
fn end_of(key: &Key) -> Option<String> {
    (key.as_str().len() < Key::MAX_BYTES).then(|| format!("{key} "))
}

fn too_many(key: &Key) -> Error {
    let why =
        format!("the key has more than {MOST_READ} versions; remove old ones with a lifecycle rule of the bucket");
    Error::new(ErrorKind::Invalid, Operation::Versions, Some(key), why)
}
