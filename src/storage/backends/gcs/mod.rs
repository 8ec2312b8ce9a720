//! The backend of Google Cloud Storage: objects in a bucket.
//!
//! ```text
//! names, attributes, writing    the JSON API, by one pool of connections
//! reading                       Google's crate, which goes on where a read broke off
//! signed URLs, credentials      Google's crates
//! ```
//!
//! Each object is an ordinary object of the bucket: its name is the key, its content type and encoding are those of the
//! value, and one reserved metadata value has the exact attributes. No request is retried here.

mod address;
mod client;
mod copy;
mod download;
mod error;
mod login;
mod names;
mod progress;
mod resource;
mod sign;
mod source;
mod upload;
mod versions;

use std::fmt;
use std::future::Future;
use std::path::PathBuf;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::Duration;

use async_trait::async_trait;
use google_cloud_storage::client::Storage;

use self::address::GcsAddress;
use self::client::Client;
use self::error::GcsFault;
use self::login::Login;
use crate::storage::backend::{
    Backend, Condition, CopySource, DeleteOptions, Entry, GetOptions, Grant, Listing, Method, Page, Probe, PutOptions,
    Removal, Version, VersionId, Versions, VersionsRequest,
};
use crate::storage::backends::{http::cleanup, metadata_header};
use crate::storage::commit_guard::CommitGuard;
use crate::storage::error::{Error, ErrorKind, Operation, Result};
use crate::storage::files::{Spool, SpoolWriter};
use crate::storage::object::{Attributes, Checksum, Key, Object, ObjectInfo, Payload};

#[cfg(test)]
use crate::storage::object::Kind;

/// Objects of at least this many bytes are written in upload sessions, which continue where they were interrupted.
const RESUMABLE_FROM: u64 = 16 * 1024 * 1024;

/// The address of a bucket, and how it is used.
#[derive(Clone, Debug)]
pub struct GcsOptions {
    /// The name of the bucket.
    pub bucket: String,
    /// The project for which a missing bucket is created.
    pub project: Option<String>,
    /// The location in which a missing bucket is created.
    pub location: String,
    /// A key file, or the configuration of an external account; by default the application default credentials.
    pub credentials: Option<PathBuf>,
    /// A server other than Google's, which gets no credentials, e.g. `http://127.0.0.1:4443`.
    pub endpoint: Option<String>,
    /// The proxy that errors name. The client finds it in the environment itself.
    pub proxy: Option<String>,
    /// The longest wait without any progress.
    pub timeout: Duration,
    /// The spool that large values pass through.
    pub spool: Spool,
}

/// Stores objects in a bucket of Cloud Storage.
///
/// Attributes that come with a payload do not tell when the bucket received the object; those of `stat` do. A part of
/// an object is cut from the whole, which is read to its end: the bucket has one checksum of all bytes and none of a
/// part.
pub struct Gcs {
    address: GcsAddress,
    client: Client,
    storage: Storage,
    login: Login,
    project: Option<String>,
    location: String,
    idle_limit: Duration,
    resumable_from: u64,
    spool: Spool,
    /// Whether the bucket was found at least once.
    seen: AtomicBool,
}

impl Gcs {
    /// Reads the credentials. No request is made, so a missing or unreachable bucket is noticed when it is first used.
    ///
    /// # Errors
    ///
    /// [`ErrorKind::Invalid`] for an illegal name, and for credentials that cannot be read.
    pub async fn open(options: GcsOptions) -> Result<Self> {
        let GcsOptions { bucket, project, location, credentials, endpoint, proxy, timeout, spool } = options;
        let invalid = |why: String| Error::new(ErrorKind::Invalid, Operation::Probe, None, why);
        let address = GcsAddress::parse(&bucket, endpoint.as_deref()).map_err(invalid)?.through(proxy);
        let login = Login::open(credentials.as_deref(), address.is_emulator(), timeout).await.map_err(invalid)?;
        let client = Client::open(login.clone(), timeout).map_err(invalid)?;
        let storage = download::client(&address, login.clone()).await.map_err(invalid)?;
        Ok(Self {
            address,
            client,
            storage,
            login,
            project,
            location,
            idle_limit: timeout,
            resumable_from: RESUMABLE_FROM,
            spool,
            seen: AtomicBool::new(false),
        })
    }

    /// Sets the size from which objects are written in upload sessions; 16 MiB by default.
    #[must_use]
    pub fn with_resumable_from(self, bytes: u64) -> Self {
        Self { resumable_from: bytes.max(1), ..self }
    }

    /// Names the properties of another tool's object that a bucket of Cloud Storage cannot store for other tools.
    #[must_use]
    pub fn lost(attributes: &Attributes) -> Vec<String> {
        upload::lost(attributes)
    }

    /// Runs the work of an operation. Where the bucket is missing, it may be created, and then the work runs again.
    async fn run<T, F>(&self, operation: Operation, key: Option<&Key>, work: impl Fn() -> F + Send + Sync) -> Result<T>
    where
        T: Send,
        F: Future<Output = Result<T, GcsFault>> + Send,
    {
        let outcome = match work().await {
            Err(GcsFault::NoBucket) if self.may_create(operation) => match self.create_bucket().await {
                Ok(()) => work().await,
                Err(fault) => Err(fault),
            },
            outcome => outcome,
        };
        outcome.map_err(|fault| fault.into_error(&self.address, operation, key))
    }

    /// Tells whether an operation creates a missing bucket: a write does, and so does the first probe.
    ///
    /// For everything else a missing bucket is an error, because a new empty bucket would say that no objects exist.
    fn may_create(&self, operation: Operation) -> bool {
        match operation {
            Operation::Store => true,
            Operation::Probe => !self.seen.load(Ordering::Relaxed),
            _ => false,
        }
    }

    async fn remove(&self, key: &Key, options: &DeleteOptions) -> Result<Removal, GcsFault> {
        let mut native = None;
        if let Some(generation) = &options.generation {
            let Some(found) = self.find(key, None).await? else { return Ok(Removal::default()) };
            let present = found.attributes.map_err(|why| Self::damaged(&why))?;
            Condition::Generation(generation.clone()).check(Operation::Delete, key, Some(&present))?;
            native = Some(found.native);
        }
        if !options.commit_guard.commit() {
            return Err(Error::abandoned(Operation::Delete, key).into());
        }
        Ok(Removal { found: self.remove_object(key, native).await?, pending: false })
    }
}

impl fmt::Debug for Gcs {
    fn fmt(&self, formatter: &mut fmt::Formatter<'_>) -> fmt::Result {
        formatter.debug_tuple("Gcs").field(&self.address).finish()
    }
}

impl fmt::Display for Gcs {
    fn fmt(&self, formatter: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(formatter, "gcs {}", self.address.bucket())
    }
}

#[async_trait]
impl Backend for Gcs {
    async fn put(&self, key: &Key, object: &Object, options: &PutOptions) -> Result<Attributes> {
        let work = || self.write(key, object, &options.condition, &options.commit_guard);
        self.run(Operation::Store, Some(key), work).await?;
        Ok(object.attributes.clone())
    }

    async fn get(&self, key: &Key, options: GetOptions) -> Result<Option<Object>> {
        self.run(Operation::Retrieve, Some(key), || self.read(key, &options)).await
    }

    async fn copy(
        &self,
        source: &CopySource,
        key: &Key,
        attributes: &Attributes,
        options: &PutOptions,
    ) -> Result<Option<Attributes>> {
        self.run(Operation::Copy, Some(key), || self.copy_object(source, key, attributes, options)).await
    }

    async fn stat(&self, key: &Key) -> Result<Option<Attributes>> {
        let look = || async {
            let found = self.find(key, None).await?;
            found.map(|found| found.attributes.map_err(|why| Self::damaged(&why))).transpose()
        };
        self.run(Operation::Stat, Some(key), look).await
    }

    async fn versions(&self, key: &Key, request: &VersionsRequest) -> Result<Versions> {
        self.run(Operation::Versions, Some(key), || self.versions_of(key, request)).await
    }

    async fn delete(&self, key: &Key, options: &DeleteOptions) -> Result<Removal> {
        self.run(Operation::Delete, Some(key), || self.remove(key, options)).await
    }

    async fn list(&self, page: &Page) -> Result<Listing> {
        self.run(Operation::List, None, || self.names(page)).await
    }

    /// A write that the bucket has acknowledged is durable.
    async fn flush(&self, _: &Key) -> Result<()> {
        Ok(())
    }

    async fn probe(&self) -> Result<Probe> {
        let skew = self.run(Operation::Probe, None, || self.probe_bucket()).await?;
        self.seen.store(true, Ordering::Relaxed);
        Ok(Probe { skew })
    }

    fn validate(&self, key: &Key, attributes: &Attributes) -> Result<()> {
        let refused = |why: String| Error::new(ErrorKind::Invalid, Operation::Store, Some(key), why);
        if key.as_str().starts_with(".well-known/acme-challenge/") {
            return Err(refused(
                "a bucket takes no key below `.well-known/acme-challenge/`; choose another".to_owned(),
            ));
        }
        upload::metadata(attributes).map(|_| ()).map_err(refused)
    }

    async fn sign(&self, key: &Key, grant: &Grant) -> Result<String> {
        self.run(Operation::Sign, Some(key), || self.signed(key, grant)).await
    }
}
