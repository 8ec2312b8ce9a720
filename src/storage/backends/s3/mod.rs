//! The backend of S3: objects in a bucket of S3, or of a store with the same API.
//!
//! ```text
//! mod          the backend, probe, signed URLs        read     attributes, get
//! options      address and credentials                write    put, delete, conditions on them
//! copy         copies within the bucket
//! keys         AWS keys in files
//! wire         one signed request, its answer         upload   bytes in one request or in parts
//! error        errors of requests                     list     names, page by page
//! conditions   which conditions are enforced          versions what the bucket keeps of one object
//! proof        the proof that each answer must have
//! ```
//!
//! `object_store` finds credentials and signs requests; `wire` says why it does no more. Its own retries are off, and
//! nothing here is retried, because retries belong to another layer.

mod conditions;
mod copy;
mod copy_request;
mod error;
mod guard;
mod identity;
mod keys;
mod list;
mod options;
mod proof;
mod read;
mod upload;
mod versions;
mod wire;
mod write;
mod xml;

use std::fmt;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::Duration;

use async_trait::async_trait;
use jiff::Timestamp;
use object_store::path::Path;
use object_store::signer::Signer as _;
use tokio::sync::OnceCell;

use self::conditions::{Conditions, CopyConditions};
use self::copy::CopyParts;
pub use self::options::S3Options;
use self::wire::Wire;
use crate::storage::backend::{
    Backend, CopySource, DeleteOptions, GetOptions, Grant, Listing, Method, Page, Probe, PutOptions, Removal, Versions,
    VersionsRequest,
};
use crate::storage::backends::http::clock_skew;
use crate::storage::error::{Error, ErrorKind, Operation, Result};
use crate::storage::files::Spool;
use crate::storage::object::{Attributes, Key, Object};

/// Longest lifetime of a signed URL: a week.
const LONGEST_GRANT: Duration = Duration::from_hours(7 * 24);

/// Stores objects in an S3 bucket, each under the bytes of its key. Cheap to clone.
///
/// - Each object is an ordinary object: content type, content encoding, and the caller's plain strings as metadata.
/// - Conditions of writes and removals are refused ([`ErrorKind::Invalid`]) where the store does not enforce them,
///   which is tried once on a scratch object. A tag is made from the bytes. So an unconditional write of the same bytes
///   between the look and the write of a conditional one is not noticed.
/// - A listing requests the expiry of each object separately, 16 at a time. A store that lists in another order than
///   that of bytes (SeaweedFS goes folder by folder) is read to the end of the prefix and sorted.
/// - `stat` of an object that another tool wrote, and whose CRC32C the store does not know, reads the whole object.
/// - The caller's metadata has at most 1 KiB of ASCII-escaped JSON, and an object at most 625 GiB.
#[derive(Clone)]
pub struct S3(Arc<Inner>);

struct Inner {
    wire: Arc<Wire>,
    spool: Spool,
    /// The conditions that the store enforces, tried when the first one is needed.
    conditions: OnceCell<Conditions>,
    /// What the store enforces when it copies, tried when the first copy is made.
    copy_conditions: OnceCell<CopyConditions>,
    /// Whether the store lists in another order than that of bytes.
    unsorted: AtomicBool,
    /// How large objects are copied.
    copies: CopyParts,
}

impl S3 {
    /// Prepares to use a bucket. Sends no request.
    ///
    /// # Errors
    ///
    /// [`ErrorKind::Invalid`] for options that cannot be used. The message names the setting.
    pub fn open(options: S3Options) -> Result<Self> {
        let (address, builder) = options::parse(&options)?;
        let wire = Arc::new(Wire::open(address, builder, options.timeout)?);
        let (conditions, unsorted) = (OnceCell::new(), AtomicBool::new(false));
        let (copies, copy_conditions) = (CopyParts::default(), OnceCell::new());
        let inner = Inner { wire, spool: options.spool, conditions, copy_conditions, unsorted, copies };
        Ok(Self(Arc::new(inner)))
    }

    /// Sets above how many bytes an object is copied in parts, and the bytes of a part; 5 GiB and 1 GiB by default.
    ///
    /// S3 copies no more than 5 GiB at once, and requires at least 5 MiB in each part but the last.
    #[must_use]
    pub fn with_copy_parts(self, above: u64, part: u64) -> Self {
        let (wire, spool) = (Arc::clone(&self.0.wire), self.0.spool.clone());
        let (conditions, copy_conditions) = (self.0.conditions.clone(), self.0.copy_conditions.clone());
        let unsorted = AtomicBool::new(self.0.unsorted.load(Ordering::Relaxed));
        let copies = CopyParts { above, part: part.max(1) };
        Self(Arc::new(Inner { wire, spool, conditions, copy_conditions, unsorted, copies }))
    }

    /// Names the properties of another tool's object that a bucket of S3 cannot store for other tools.
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
        self.0.wire.get(key, &options, &self.0.spool).await
    }

    async fn copy(
        &self,
        source: &CopySource,
        key: &Key,
        attributes: &Attributes,
        options: &PutOptions,
    ) -> Result<Option<Attributes>> {
        self.copy_object(source, key, attributes, options).await
    }

    async fn stat(&self, key: &Key) -> Result<Option<Attributes>> {
        self.0.wire.stat(key).await
    }

    async fn versions(&self, key: &Key, request: &VersionsRequest) -> Result<Versions> {
        self.versions_of(key, request).await
    }

    async fn delete(&self, key: &Key, options: &DeleteOptions) -> Result<Removal> {
        self.remove(key, options).await
    }

    async fn list(&self, page: &Page) -> Result<Listing> {
        self.list_page(page).await
    }

    /// An object that the store has shown is on stable storage already.
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
            return Err(invalid(format!("a signed URL of S3 is valid for 1 to {} seconds", LONGEST_GRANT.as_secs())));
        }
        let method = match grant.method {
            Method::Get => http::Method::GET,
            Method::Put => http::Method::PUT,
        };
        // A key that is legal is also a legal path.
        let path = Path::parse(key.as_str()).map_err(|error| invalid(error.to_string()))?;
        let context = self.0.wire.context(Operation::Sign, Some(key));
        // `object_store` answers with one type of error to missing credentials and to all else that can go wrong. With
        // credentials at hand, the error is about something else.
        self.0.wire.credential(&context).await?;
        let url = self.0.wire.store.signed_url(method, &path, grant.lifetime).await;
        url.map(String::from).map_err(|cause| context.unsigned("URL", &cause))
    }
}

#[cfg(test)]
mod tests {
    use object_store::CredentialProvider;
    use object_store::aws::{AmazonS3Builder, AwsCredential};

    use super::options::S3Address;
    use super::*;

    /// Provides credentials, or fails to.
    #[derive(Debug)]
    struct Credentials(bool);

    #[async_trait]
    impl CredentialProvider for Credentials {
        type Credential = AwsCredential;

        async fn get_credential(&self) -> object_store::Result<Arc<AwsCredential>> {
            if !self.0 {
                return Err(object_store::Error::Generic { store: "S3", source: "the service is down".into() });
            }
            Ok(Arc::new(AwsCredential { key_id: "id".to_owned(), secret_key: "secret".to_owned(), token: None }))
        }
    }

    async fn signed_url(url: &str, has_credentials: bool) -> Result<String> {
        let address = S3Address {
            bucket: "b".to_owned(),
            region: "us-east-1".to_owned(),
            url: format!("{url}/b"),
            setting: None,
            only_instance_credentials: false,
        };
        let builder = AmazonS3Builder::new()
            .with_bucket_name("b")
            .with_region("us-east-1")
            .with_endpoint(url)
            .with_credentials(Arc::new(Credentials(has_credentials)));
        let wire = Arc::new(Wire::open(address, builder, Duration::from_secs(1))?);
        let folder = tempfile::tempdir().unwrap();
        let (spool, unsorted) = (Spool::new(folder.path().to_owned()), AtomicBool::new(false));
        let (conditions, copy_conditions, copies) = (OnceCell::new(), OnceCell::new(), CopyParts::default());
        let s3 = S3(Arc::new(Inner { wire, spool, conditions, copy_conditions, unsorted, copies }));
        let grant = Grant { method: Method::Get, lifetime: Duration::from_secs(60) };
        s3.sign(&Key::parse("k").unwrap(), &grant).await
    }

    #[tokio::test]
    async fn a_url_that_cannot_be_signed_has_its_own_cause() {
        let url = signed_url("http://127.0.0.1:1", true).await.unwrap();
        assert!(url.starts_with("http://127.0.0.1:1/b/k?") && url.contains("X-Amz-Signature="), "{url}");
        let error = signed_url("http://127.0.0.1:1", false).await.unwrap_err();
        assert_eq!(error.kind, ErrorKind::Unavailable);
        assert!(error.message().contains("no AWS credentials") && error.message().contains("is down"), "{error}");
        let error = signed_url("http://[", true).await.unwrap_err();
        assert_eq!(error.kind, ErrorKind::Io);
        let text = error.message();
        assert!(text.contains("the URL cannot be signed") && text.contains("http://[/b/k"), "{text}");
        assert!(!text.contains("credentials") && !text.contains("secret"), "{text}");
    }

    #[test]
    fn every_key_is_a_path_unchanged() {
        for text in ["~", "a\\b", "%2E%2E/x", "a?b#c", "*|<>:", "\u{feff}", "\u{10ffff}", "...", "é/ ", " /x"] {
            assert_eq!(Path::parse(Key::parse(text).unwrap().as_str()).unwrap().as_ref(), text);
        }
    }
}
