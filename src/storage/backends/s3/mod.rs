//! Objects in a bucket of S3, or of a store that speaks like it.
//!
//! ```text
//! mod          the backend, probe, signed URLs        read     look, get
//! options      where the bucket is, who asks          write    put, delete, conditions on them
//! keys         who asks, where files say it
//! wire         one signed request, its answer         upload   bytes in one request or in parts
//! error        what a failure means                   list     names, page by page
//! conditions   which of them the store enforces
//! proof        what each answer must have to be one
//! ```
//!
//! `object_store` finds credentials and signs; see `wire` for why it does no more. Its own retries are off, and nothing
//! here tries again: that is another layer's.

mod conditions;
mod error;
mod guard;
mod identity;
mod keys;
mod list;
mod options;
mod proof;
mod read;
mod upload;
mod wire;
mod write;
mod xml;

use std::fmt;
use std::sync::Arc;
use std::sync::atomic::AtomicBool;
use std::time::Duration;

use async_trait::async_trait;
use jiff::Timestamp;
use object_store::path::Path;
use object_store::signer::Signer as _;
use tokio::sync::OnceCell;

use self::conditions::Conditions;
pub use self::options::S3Options;
use self::wire::Wire;
use crate::storage::backend::{
    Backend, DeleteOptions, GetOptions, Grant, Listing, Method, Page, Probe, PutOptions, Removal,
};
use crate::storage::backends::http::clock_skew;
use crate::storage::error::{Error, ErrorKind, Operation, Result};
use crate::storage::files::Spool;
use crate::storage::object::{Attributes, Key, Object};

/// Longest a signed URL can last: a week.
const LONGEST_GRANT: Duration = Duration::from_hours(7 * 24);

/// Keeps objects in an S3 bucket, each under its key's own bytes. Cheap to clone.
///
/// - An object is an ordinary one: content type, content encoding, and the caller's plain strings as metadata.
/// - Conditions on writes and removals are refused ([`ErrorKind::Invalid`]) where the store does not enforce them, which is
///   tried once on an object of its own. A tag is made of the bytes, so an unconditional write of the very same bytes that
///   falls between look and write of a conditional one is not noticed.
/// - A listing asks for each object's expiry by itself, 16 at a time. A store that lists in another order than that of
///   bytes (SeaweedFS goes folder by folder) is read through with the prefix and sorted.
/// - `stat` of an object that another tool wrote, and whose CRC32C the store does not know, reads it through.
/// - Metadata of the caller has at most 1 KiB of ASCII-escaped JSON, an object at most 625 GiB.
#[derive(Clone)]
pub struct S3(Arc<Inner>);

struct Inner {
    wire: Arc<Wire>,
    spool: Spool,
    /// Asked the first time that a condition is to be enforced.
    conditions: OnceCell<Conditions>,
    /// The store lists in another order than that of bytes.
    scattered: AtomicBool,
}

impl S3 {
    /// Prepares to use a bucket; asks nobody.
    ///
    /// # Errors
    ///
    /// [`ErrorKind::Invalid`] for options that cannot be used, naming the setting.
    pub fn open(options: S3Options) -> Result<Self> {
        let (address, builder) = options::parse(&options)?;
        let wire = Arc::new(Wire::open(address, builder, options.timeout)?);
        let (conditions, scattered) = (OnceCell::new(), AtomicBool::new(false));
        Ok(Self(Arc::new(Inner { wire, spool: options.spool, conditions, scattered })))
    }

    /// Names what another tool said of its object and a bucket of S3 keeps for this program alone, or not at all.
    #[must_use]
    pub fn lost(attributes: &Attributes) -> Vec<String> {
        write::lost(attributes)
    }
}

impl fmt::Display for S3 {
    fn fmt(&self, formatter: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(formatter, "s3 {}", self.0.wire.address.url)
    }
}

impl fmt::Debug for S3 {
    fn fmt(&self, formatter: &mut fmt::Formatter<'_>) -> fmt::Result {
        formatter.debug_tuple("S3").field(&self.0.wire).finish()
    }
}

#[async_trait]
impl Backend for S3 {
    async fn put(&self, key: &Key, object: &Object, options: &PutOptions) -> Result<Attributes> {
        self.write(key, object, options).await?;
        Ok(object.attributes.clone())
    }

    async fn get(&self, key: &Key, options: GetOptions) -> Result<Option<Object>> {
        self.0.wire.get(key, options, &self.0.spool).await
    }

    async fn stat(&self, key: &Key) -> Result<Option<Attributes>> {
        self.0.wire.stat(key).await
    }

    async fn delete(&self, key: &Key, options: &DeleteOptions) -> Result<Removal> {
        self.remove(key, options).await
    }

    async fn list(&self, page: &Page) -> Result<Listing> {
        self.list_page(page).await
    }

    /// Nothing is left to do: what the store has shown is on its stable storage.
    async fn flush(&self, _: &Key) -> Result<()> {
        Ok(())
    }

    async fn probe(&self) -> Result<Probe> {
        let before = Timestamp::now();
        let (headers, _) = self.0.wire.listing(proof::smallest(Operation::Probe)).await?;
        let skew = clock_skew(&headers, before, Timestamp::now());
        Ok(Probe { skew })
    }

    fn validate(&self, key: &Key, attributes: &Attributes) -> Result<()> {
        write::validate(key, attributes).map(drop)
    }

    async fn sign(&self, key: &Key, grant: &Grant) -> Result<String> {
        let invalid = |why: String| Error::new(ErrorKind::Invalid, Operation::Sign, Some(key), why);
        if grant.lifetime < Duration::from_secs(1) || grant.lifetime > LONGEST_GRANT {
            return Err(invalid(format!("a signed URL of S3 lasts 1 to {} seconds", LONGEST_GRANT.as_secs())));
        }
        let method = match grant.method {
            Method::Get => http::Method::GET,
            Method::Put => http::Method::PUT,
        };
        // What a path may not have, a key may not have either.
        let path = Path::parse(key.as_str()).map_err(|error| invalid(error.to_string()))?;
        let asked = self.0.wire.asked(Operation::Sign, Some(key));
        let url = self.0.wire.store.signed_url(method, &path, grant.lifetime).await;
        url.map(String::from).map_err(|cause| asked.unknown(cause, false))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn every_key_is_a_path_as_it_is() {
        for text in ["~", "a\\b", "%2E%2E/x", "a?b#c", "*|<>:", "\u{feff}", "\u{10ffff}", "...", "é/ ", " /x"] {
            assert_eq!(Path::parse(Key::parse(text).unwrap().as_str()).unwrap().as_ref(), text);
        }
    }
}
