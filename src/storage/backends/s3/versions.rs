//! The versions of one object, in a bucket with versioning.
//!
//! A listing of versions has no metadata, so the attributes of each version are requested separately, several at a time.

use futures_util::stream::{self, StreamExt as _};
use http::Method;

use super::error::RequestContext;
use super::list::{AT_ONCE, MOST, name};
use super::wire::Call;
use super::{S3, read};
use crate::storage::backend::{Version, VersionId, Versions, VersionsRequest};
use crate::storage::backends::http::cut;
use crate::storage::backends::http::pages::Pages;
use crate::storage::error::{Error, ErrorKind, Operation, Result};
use crate::storage::object::Key;

/// The largest number of versions of one object whose attributes are read.
const MOST_READ: usize = 10_000;

/// The version id of an object that was written while versioning was off.
const UNVERSIONED: &str = "null";

/// One answer of ListObjectVersions, whose entries of both kinds are mixed.
#[derive(Debug, serde::Deserialize)]
struct Document {
    #[serde(rename = "$value", default)]
    items: Vec<Item>,
}

#[derive(Debug, serde::Deserialize)]
enum Item {
    Name(String),
    EncodingType(String),
    IsTruncated(bool),
    NextKeyMarker(String),
    NextVersionIdMarker(String),
    Version(ListedVersion),
    DeleteMarker(ListedVersion),
    #[serde(other)]
    Other,
}

/// A version, or a removal, in a listing.
#[derive(Debug, serde::Deserialize)]
#[serde(rename_all = "PascalCase")]
struct ListedVersion {
    key: String,
    version_id: String,
    is_latest: bool,
}

/// What one answer says of one key.
#[derive(Debug, Default)]
struct VersionPage {
    listed: Vec<ListedVersion>,
    /// Whether the key was ever written or removed while versioning was on.
    is_versioned: bool,
    /// The version after which the next answer begins; `None` when all versions of the key were listed.
    next: Option<String>,
}

/// What the request for one version brought.
enum Fetched {
    Version(Box<Version>),
    Unreadable,
    /// Somebody has removed the version meanwhile.
    Gone,
}

impl S3 {
    /// Lists the newest versions of an object.
    pub(super) async fn versions_of(&self, key: &Key, wanted: &VersionsRequest) -> Result<Versions> {
        let (mut found, mut read, mut is_versioned) = (Versions::default(), 0, false);
        let (mut next, mut pages) = (None, Pages::default());
        loop {
            let page = self.version_page(key, next.take(), &mut pages).await?;
            read += page.listed.len();
            is_versioned |= page.is_versioned;
            let mut fetched = stream::iter(page.listed).map(|listed| self.version(key, listed)).buffered(AT_ONCE);
            while let Some(fetched) = fetched.next().await {
                match fetched? {
                    Fetched::Gone => {}
                    Fetched::Unreadable => found.unreadable += 1,
                    Fetched::Version(version) if is_other(wanted, &version) => {}
                    Fetched::Version(_) if found.versions.len() >= wanted.limit => {
                        found.more = true;
                        return Ok(found);
                    }
                    Fetched::Version(version) => {
                        found.versions.push(*version);
                        if wanted.generation.is_some() && found.versions.len() >= wanted.limit {
                            return Ok(found);
                        }
                    }
                }
            }
            next = page.next;
            if next.is_none() {
                break;
            }
            if read >= MOST_READ {
                let why = format!(
                    "none of the newest {read} versions of the key is the wanted one, and no more are read; remove old ones \
                     with a lifecycle rule of the bucket"
                );
                return Err(Error::new(ErrorKind::Invalid, Operation::Versions, Some(key), why));
            }
        }
        if wanted.generation.is_some()
            && found.versions.is_empty()
            && found.unreadable == 0
            && read > 0
            && !is_versioned
        {
            return Err(self.unversioned(key));
        }
        Ok(found)
    }

    /// Makes the error of a generation that cannot have been kept.
    fn unversioned(&self, key: &Key) -> Error {
        let bucket = &self.0.wire.address.bucket;
        let why = format!(
            "the key was written while the bucket kept no versions, so it has no earlier one; turn versioning on with `aws s3api \
             put-bucket-versioning --bucket {bucket} --versioning-configuration Status=Enabled`, which keeps those from then on"
        );
        Error::new(ErrorKind::Invalid, Operation::Versions, Some(key), why)
    }

    async fn version_page(&self, key: &Key, after: Option<String>, pages: &mut Pages) -> Result<VersionPage> {
        let wire = &self.0.wire;
        let context = wire.context(Operation::Versions, Some(key));
        wire.recognize(&context).await?;
        let mut call = Call::new(Operation::Versions, Method::GET, None)
            .query("versions", "")
            .query("encoding-type", "url")
            .query("max-keys", MOST.to_string())
            .query("prefix", key.as_str());
        if let Some(after) = after {
            call = call.query("key-marker", key.as_str()).query("version-id-marker", after);
        }
        let reply = wire.demand(call).await.map_err(|error| context.for_this_request(error))?;
        let document: Document = reply.document("ListVersionsResult", &context).await?;
        let page = page_of(document, key, wire.is_seaweedfs(), &context)?;
        pages.advance(None, page.next.as_deref()).map_err(|what| context.repeating(what))?;
        Ok(page)
    }

    /// Requests the attributes of a listed version.
    async fn version(&self, key: &Key, listed: ListedVersion) -> Result<Fetched> {
        let wire = &self.0.wire;
        let id = VersionId::new(&listed.version_id);
        let remote = match wire.find_object_quickly(Operation::Versions, key, Some(&id)).await {
            Ok(Some(remote)) => remote,
            Ok(None) => return Ok(Fetched::Gone),
            // The error concerns one version only, e.g. its encryption with a key of the customer.
            Err(error) if error.kind == ErrorKind::Invalid => return Ok(Fetched::Unreadable),
            Err(error) => return Err(error),
        };
        let is_known = read::is_known(&remote);
        match read::attributes(remote, &wire.context(Operation::Versions, Some(key))) {
            Ok(mut attributes) => {
                attributes.info.unread = !is_known;
                Ok(Fetched::Version(Box::new(Version { id, attributes, is_current: listed.is_latest })))
            }
            Err(error) if error.kind == ErrorKind::Integrity => Ok(Fetched::Unreadable),
            Err(error) => Err(error),
        }
    }
}

fn is_other(wanted: &VersionsRequest, version: &Version) -> bool {
    wanted.generation.as_ref().is_some_and(|generation| *generation != version.attributes.generation)
}

/// Returns what an answer says of one key. Other names that begin with the key come behind it.
fn page_of(document: Document, key: &Key, is_seaweedfs: bool, context: &RequestContext<'_>) -> Result<VersionPage> {
    let (mut entries, mut is_escaped, mut is_truncated) = (Vec::new(), false, None);
    let (mut next_key, mut next_version) = (None, None);
    for item in document.items {
        match item {
            Item::Name(name) if !context.address.is_named(&name) => {
                return Err(context.wrong_place(&format!("it lists the bucket {:?}", cut(&name))));
            }
            Item::EncodingType(kind) => is_escaped = kind.eq_ignore_ascii_case("url"),
            Item::IsTruncated(truncated) => is_truncated = Some(truncated),
            Item::NextKeyMarker(marker) => next_key = Some(marker),
            Item::NextVersionIdMarker(marker) => next_version = Some(marker),
            Item::Version(listed) => entries.push((listed, false)),
            Item::DeleteMarker(listed) => entries.push((listed, true)),
            Item::Name(_) | Item::Other => {}
        }
    }
    let Some(is_truncated) = is_truncated else {
        return Err(context.unexpected_answer("a listing of versions does not say whether it is complete"));
    };
    if is_truncated && is_seaweedfs {
        // SeaweedFS sorts what it has gathered of a folder by then: versions of the key may be missing in every answer.
        let why =
            format!("SeaweedFS lists versions only where fewer than {MOST} names and versions begin with the key");
        return Err(Error::new(ErrorKind::Invalid, Operation::Versions, Some(key), why));
    }
    let mut page = VersionPage::default();
    for (listed, is_removal) in entries {
        if name(listed.key.clone(), is_escaped).as_deref() != Some(key.as_str()) {
            continue;
        }
        page.is_versioned |= is_removal || listed.version_id != UNVERSIONED;
        if !is_removal {
            page.listed.push(listed);
        }
    }
    if is_truncated {
        let next_key = next_key.and_then(|marker| name(marker, is_escaped));
        page.next = match (next_key, next_version) {
            (Some(next), Some(version)) if next == key.as_str() => Some(version),
            (Some(next), _) if next.as_str() > key.as_str() => None,
            _ => return Err(context.unexpected_answer("a listing of versions is incomplete and has no usable marker")),
        };
    }
    Ok(page)
}
