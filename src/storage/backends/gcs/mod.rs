//! Objects in a bucket of Google Cloud Storage.
//!
//! ```text
//! names, attributes, writing    the JSON API, by one pool of connections
//! reading                       Google's crate, which goes on where a read broke off
//! signed URLs, credentials      Google's crates
//! ```
//!
//! An object is an ordinary one of the bucket: its name is the key, its content type and encoding are the value's, and
//! one reserved metadata value holds our attributes. Nothing is tried twice here.

mod address;
mod client;
mod download;
mod error;
mod login;
mod names;
mod progress;
mod resource;
mod sign;
mod source;
mod upload;

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
    Backend, Condition, DeleteOptions, Entry, GetOptions, Grant, Listing, Method, Page, Probe, PutOptions, Removal,
};
use crate::storage::backends::{http::leftovers, metadata_header};
use crate::storage::commit_guard::CommitGuard;
use crate::storage::error::{Error, ErrorKind, Operation, Result};
use crate::storage::files::{Spool, SpoolWriter};
use crate::storage::object::{Attributes, Checksum, Key, Object, ObjectInfo, Payload};

#[cfg(test)]
use crate::storage::object::Kind;

/// Objects of at least so many bytes are written in sessions that go on where they broke off.
const RESUMABLE_FROM: u64 = 16 * 1024 * 1024;

/// Where a bucket is and how it is used.
#[derive(Clone, Debug)]
pub struct GcsOptions {
    /// The bucket's name.
    pub bucket: String,
    /// The project for which a missing bucket is created.
    pub project: Option<String>,
    /// Where a missing bucket is created.
    pub location: String,
    /// A key file, or the configuration of an external account; application default credentials without.
    pub credentials: Option<PathBuf>,
    /// Another server than Google's, which is asked without credentials, e.g. `http://127.0.0.1:4443`.
    pub endpoint: Option<String>,
    /// What requests pass through, for errors to name; the client finds it in the environment by itself.
    pub proxy: Option<String>,
    /// Longest wait in which nothing moves.
    pub timeout: Duration,
    /// Where large values pass through.
    pub spool: Spool,
}

/// Keeps objects in a bucket.
///
/// Attributes that came with a payload do not say when the bucket received it; those of `stat` do. A part of an object is
/// cut from the whole, which is read through: the bucket has one checksum of all its bytes and none of some.
pub struct Gcs {
    address: GcsAddress,
    client: Client,
    storage: Storage,
    login: Login,
    project: Option<String>,
    location: String,
    patience: Duration,
    resumable_from: u64,
    spool: Spool,
    /// The bucket was there once.
    seen: AtomicBool,
}

impl Gcs {
    /// Reads the credentials; asks nobody, so a bucket that is away or missing is noticed only when it is used.
    ///
    /// # Errors
    ///
    /// [`ErrorKind::Invalid`] for a name that is none, and for credentials that cannot be read.
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
            patience: timeout,
            resumable_from: RESUMABLE_FROM,
            spool,
            seen: AtomicBool::new(false),
        })
    }

    /// Writes objects of at least so many bytes in sessions that go on where they broke off; 16 MiB by default.
    #[must_use]
    pub fn with_resumable_from(self, bytes: u64) -> Self {
        Self { resumable_from: bytes.max(1), ..self }
    }

    /// Names what another tool said of its object and a bucket of Cloud Storage keeps for this program alone, or not at all.
    #[must_use]
    pub fn lost(attributes: &Attributes) -> Vec<String> {
        upload::lost(attributes)
    }

    /// Runs a command's work; where the bucket turns out to be missing, it may be created and the work runs again.
    async fn run<T, F>(&self, operation: Operation, key: Option<&Key>, work: impl Fn() -> F + Send + Sync) -> Result<T>
    where
        T: Send,
        F: Future<Output = Result<T, GcsFault>> + Send,
    {
        let outcome = match work().await {
            Err(GcsFault::NoBucket) if self.may_create(operation) => match self.make().await {
                Ok(()) => work().await,
                Err(fault) => Err(fault),
            },
            outcome => outcome,
        };
        outcome.map_err(|fault| fault.tell(&self.address, operation, key))
    }

    /// Tells whether an operation creates the bucket it misses: a write does, and what looks whether there is one at all.
    ///
    /// To everything else a bucket that is gone is a fault: an empty one in its place would say that nothing is there.
    fn may_create(&self, operation: Operation) -> bool {
        match operation {
            Operation::Store => true,
            Operation::Probe => !self.seen.load(Ordering::Relaxed),
            _ => false,
        }
    }

    async fn remove(&self, key: &Key, how: &DeleteOptions) -> Result<Removal, GcsFault> {
        let mut native = None;
        if let Some(generation) = &how.generation {
            let Some(found) = self.look(key, None).await? else { return Ok(Removal::default()) };
            let present = found.attributes.map_err(|why| Self::damaged(&why))?;
            Condition::Generation(generation.clone()).check(Operation::Delete, key, Some(&present))?;
            native = Some(found.native);
        }
        if !how.commit_guard.commit() {
            return Err(Error::abandoned(Operation::Delete, key).into());
        }
        Ok(Removal { found: self.erase(key, native).await?, pending: false })
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
        self.run(Operation::Retrieve, Some(key), || self.read(key, options)).await
    }

    async fn stat(&self, key: &Key) -> Result<Option<Attributes>> {
        let look = || async {
            let found = self.look(key, None).await?;
            found.map(|found| found.attributes.map_err(|why| Self::damaged(&why))).transpose()
        };
        self.run(Operation::Stat, Some(key), look).await
    }

    async fn delete(&self, key: &Key, options: &DeleteOptions) -> Result<Removal> {
        self.run(Operation::Delete, Some(key), || self.remove(key, options)).await
    }

    async fn list(&self, page: &Page) -> Result<Listing> {
        self.run(Operation::List, None, || self.names(page)).await
    }

    /// What the bucket has acknowledged is safe.
    async fn flush(&self, _: &Key) -> Result<()> {
        Ok(())
    }

    async fn probe(&self) -> Result<Probe> {
        let skew = self.run(Operation::Probe, None, || self.ask()).await?;
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
