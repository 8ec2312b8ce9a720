//! External references: places outside the store that commands may name.
//!
//! A [`Reference`] names a file below an exchange directory or an object of a bucket. [`Directory`] keeps files within
//! their directory, and [`ExternalReferences`] reads and writes. The commands that use them are in `transfer`:
//! [`Engine::store_from`](super::Engine::store_from) and [`Engine::retrieve_to`](super::Engine::retrieve_to).

mod directory;
mod permission;
mod reference;

use std::fs::File;
use std::io;
use std::path::{Path, PathBuf};
use std::sync::Arc;

use async_trait::async_trait;
use serde_json::value::RawValue;

use self::directory::{Directory, FileFault};
pub use self::permission::Permission;
use self::reference::Target;
pub use self::reference::{Reference, ReferenceError};
use crate::provider::Provider;
use crate::storage::backend::{Backend, GetOptions, PutOptions};
use crate::storage::commit_guard::CommitGuard;
use crate::storage::error::{Error, ErrorKind, Operation, Result};
use crate::storage::files::AtomicFile;
use crate::storage::object::payload::run_blocking;
use crate::storage::object::value::unmarked;
use crate::storage::object::{self, Attributes, Checksum, Content, ContentType, Foreign, Key, Kind, Object, Payload};
use crate::storage::reading::read;

/// Largest JSON value taken from a bucket, in bytes. The value is read whole to check that it is JSON.
const MAX_JSON_BYTES: u64 = 16 << 20;

/// Opens buckets by name. Only buckets that a [`Permission`] lists are opened.
#[async_trait]
pub trait Buckets: std::fmt::Debug + Send + Sync {
    /// Opens a bucket.
    async fn open(&self, provider: Provider, bucket: &str) -> Result<Arc<dyn Backend>>;
}

/// Refuses to open any bucket.
#[derive(Clone, Copy, Debug, Default)]
pub struct NoBuckets;

#[async_trait]
impl Buckets for NoBuckets {
    async fn open(&self, _: Provider, _: &str) -> Result<Arc<dyn Backend>> {
        Err(Error::new(ErrorKind::Denied, Operation::Probe, None, "this store has no access to other buckets"))
    }
}

/// Reads and writes the files and objects that references name; cheap to clone.
///
/// # Contract
///
/// - Only regular files below the listed directories are read or written. No link is followed, and no path leads out.
/// - Only objects of the listed buckets, and of the store's own bucket, are read or written. For any other bucket no
///   request is made, not even for credentials.
/// - A file is written whole or not at all, and synced. Its folder must exist.
/// - Values pass in bounded memory.
#[derive(Clone, Debug)]
pub struct ExternalReferences {
    permission: Arc<Permission>,
    buckets: Arc<dyn Buckets>,
}

/// A value that was read from a reference.
#[derive(Debug)]
pub(in crate::storage) struct Incoming {
    pub(in crate::storage) content: Content,
    /// The content type that the source names, if it names one.
    pub(in crate::storage) content_type: Option<ContentType>,
    pub(in crate::storage) metadata: Option<Box<RawValue>>,
}

/// A value that will be written to a reference.
#[derive(Debug)]
pub(in crate::storage) struct Outgoing {
    pub(in crate::storage) kind: Kind,
    pub(in crate::storage) content_type: String,
    pub(in crate::storage) metadata: Option<Box<RawValue>>,
    pub(in crate::storage) payload: Payload,
    pub(in crate::storage) checksum: Checksum,
    pub(in crate::storage) operation_id: Option<String>,
    pub(in crate::storage) foreign: Foreign,
}

/// The use of a reference by an operation, which errors name.
#[derive(Clone, Copy, Debug)]
pub(in crate::storage) struct Purpose<'a> {
    pub(in crate::storage) operation: Operation,
    pub(in crate::storage) key: &'a Key,
    pub(in crate::storage) reference: &'a Reference,
}

impl ExternalReferences {
    /// Lets commands name the places that the permission lists.
    #[must_use]
    pub fn new(permission: Permission, buckets: Arc<dyn Buckets>) -> Self {
        Self { permission: Arc::new(permission), buckets }
    }

    /// Refuses a place that is not listed, without any request.
    pub(in crate::storage) fn check(&self, purpose: Purpose<'_>) -> Result<()> {
        match &purpose.reference.0 {
            Target::File(path) => self.locate(purpose, path).map(drop),
            target if self.permission.is_own(target) => Ok(()),
            Target::Object { provider, bucket, .. } if self.permission.lists(*provider, bucket) => Ok(()),
            Target::Object { provider, bucket, .. } => {
                let scheme = provider.scheme();
                let remedy = "let the worker's operator list it there, or name an object of the worker's own bucket";
                let why = format!("{scheme}://{bucket} is not one of the exchange_buckets; {remedy}");
                Err(purpose.fail(ErrorKind::Denied, why))
            }
        }
    }

    /// Returns the key of a reference into the store's own bucket.
    pub(in crate::storage) fn own<'r>(&self, reference: &'r Reference) -> Option<&'r Key> {
        match &reference.0 {
            target @ Target::Object { key, .. } if self.permission.is_own(target) => Some(key),
            _ => None,
        }
    }

    /// Opens the value that a reference names. The bytes of a file are read later and checked against a checksum taken
    /// before.
    pub(in crate::storage) async fn read(&self, purpose: Purpose<'_>) -> Result<Incoming> {
        match &purpose.reference.0 {
            Target::File(path) => {
                let (directory, below) = self.locate(purpose, path)?;
                let opened = blocking(move || {
                    let file = Directory::open(&directory)?.read(&below)?;
                    let length = file.metadata()?.len();
                    Ok((file, length))
                });
                let (file, length): (File, u64) = opened.await.map_err(|fault| purpose.fault(fault))?;
                let payload = Payload::file(Arc::new(file), 0, length);
                let content = Content::new(Kind::Bytes, payload);
                Ok(Incoming { content, content_type: None, metadata: None })
            }
            Target::Object { provider, bucket, key } => {
                let found = async {
                    let backend = self.buckets.open(*provider, bucket).await?;
                    read(&*backend, key, GetOptions { spooled: true, ..GetOptions::default() }).await
                };
                purpose.take_found(found.await.map_err(|error| purpose.foreign(error))?).await
            }
        }
    }

    /// Writes to the place that a reference names, and replaces the file or object that is there.
    pub(in crate::storage) async fn write(
        &self,
        purpose: Purpose<'_>,
        outgoing: Outgoing,
        commit_guard: CommitGuard,
    ) -> Result<()> {
        match &purpose.reference.0 {
            Target::File(path) => {
                let (directory, below) = self.locate(purpose, path)?;
                let begun = blocking(move || Directory::open(&directory).map_err(FileFault::Folder)?.write(&below));
                let mut file = begun.await.map_err(|fault| purpose.fault(fault))?;
                let written = file.write(&outgoing.payload).await.map_err(|error| purpose.fault(error.into()))?;
                if written != outgoing.checksum {
                    return Err(purpose.fail(ErrorKind::Integrity, "the value changed while it was read; try again"));
                }
                let key = purpose.key.clone();
                let committed = blocking(move || commit(file, &commit_guard, &key));
                committed.await.map_err(|fault| purpose.fault(fault))?
            }
            Target::Object { provider, bucket, key } => {
                let put = async {
                    let backend = self.buckets.open(*provider, bucket).await?;
                    let object = outgoing.into_object();
                    backend.validate(key, &object.attributes)?;
                    backend.put(key, &object, &PutOptions { commit_guard, ..PutOptions::default() }).await
                };
                put.await.map(drop).map_err(|error| purpose.foreign(error))
            }
        }
    }

    fn locate(&self, purpose: Purpose<'_>, path: &Path) -> Result<(PathBuf, PathBuf)> {
        self.permission.locate(path).ok_or_else(|| {
            let why = "is not below a directory that exchange_directories lists; move the file, or let the worker's operator list its folder";
            purpose.fail(ErrorKind::Invalid, why)
        })
    }
}

/// Gives a finished file its name unless the write was abandoned, which is the inner error.
fn commit(mut file: AtomicFile, commit_guard: &CommitGuard, key: &Key) -> Result<Result<()>, FileFault> {
    file.sync()?;
    if !commit_guard.commit() {
        file.discard();
        return Ok(Err(Error::abandoned(Operation::Retrieve, key)));
    }
    file.commit()?;
    Ok(Ok(()))
}

/// Runs work that opens or syncs files on a thread that may block.
async fn blocking<T: Send + 'static>(
    work: impl FnOnce() -> Result<T, FileFault> + Send + 'static,
) -> Result<T, FileFault> {
    run_blocking(move || Ok(work())).await?
}

/// Permits no directory and no bucket.
impl Default for ExternalReferences {
    fn default() -> Self {
        Self::new(Permission::default(), Arc::new(NoBuckets))
    }
}

impl Outgoing {
    fn into_object(self) -> Object {
        let attributes = Attributes {
            metadata: self.metadata,
            operation_id: self.operation_id,
            foreign: self.foreign,
            ..Attributes::new(self.kind, self.content_type, self.payload.len(), self.checksum)
        };
        Object { attributes, payload: self.payload }
    }
}

impl Purpose<'_> {
    /// Takes the object of a bucket that was found; fails where none was found.
    pub(in crate::storage) async fn take_found(self, found: Option<Object>) -> Result<Incoming> {
        match found {
            Some(object) => self.take(object).await,
            None => Err(self.fail(ErrorKind::Missing, "the object is not there")),
        }
    }

    /// Takes the object of a bucket with its kind, content type and metadata.
    async fn take(self, object: Object) -> Result<Incoming> {
        let Object { attributes, payload } = object;
        let kind = attributes.kind;
        let unread = |error| Error::unread(self.operation, self.key, error);
        let (payload, content_type) = self.in_utf8(&attributes.foreign, payload, attributes.content_type).await?;
        let payload = match kind {
            Kind::Bytes => payload,
            Kind::Text if payload.is_utf8().await.map_err(unread)? => payload,
            Kind::Text => {
                let why = "the object is text by its content type, but not UTF-8; give the object a content type that is not text/*";
                return Err(self.fail(ErrorKind::Invalid, why));
            }
            // The engine checks the syntax of JSON in memory.
            Kind::Json if payload.len() <= MAX_JSON_BYTES => {
                Payload::Memory(unmarked(payload.into_memory().await.map_err(unread)?))
            }
            Kind::Json => {
                let why = format!(
                    "a JSON value of {} bytes; at most {MAX_JSON_BYTES} are taken from a bucket; give the object the content type application/octet-stream",
                    payload.len()
                );
                return Err(self.fail(ErrorKind::Invalid, why));
            }
        };
        Ok(Incoming {
            content: Content::new(kind, payload),
            // A content type that no header may contain is left out.
            content_type: ContentType::parse(&content_type).ok(),
            metadata: attributes.metadata,
        })
    }

    /// Converts the text of a foreign object to UTF-8, the store's charset, and names UTF-8 in its content type.
    pub(in crate::storage) async fn in_utf8(
        self,
        foreign: &Foreign,
        payload: Payload,
        content_type: String,
    ) -> Result<(Payload, String)> {
        if foreign.charset.is_none() {
            return Ok((payload, content_type));
        }
        if payload.len() > MAX_JSON_BYTES {
            let why = format!(
                "a text of {} bytes in another charset than UTF-8; at most {MAX_JSON_BYTES} are converted; give the object the content type application/octet-stream",
                payload.len()
            );
            return Err(self.fail(ErrorKind::Invalid, why));
        }
        let bytes = payload.into_memory().await.map_err(|error| Error::unread(self.operation, self.key, error))?;
        let text = foreign.decode(&bytes).map_err(|why| self.fail(ErrorKind::Invalid, why))?;
        Ok((text.into(), object::foreign::in_utf8(&content_type)))
    }

    pub(in crate::storage) fn fail(self, kind: ErrorKind, why: impl std::fmt::Display) -> Error {
        let reference = self.reference;
        Error::new(kind, self.operation, Some(self.key), format!("{reference:?}: {why}"))
            .with_subject(reference.to_string())
    }

    /// Turns an error of a bucket into one of this purpose.
    pub(in crate::storage) fn foreign(self, error: Error) -> Error {
        let retry_after = error.retry_after;
        self.fail(error.kind, error.message()).with_retry_after(retry_after).with_source(error)
    }

    /// Turns an error of the file system into one of this module. No other place reads those errors.
    fn fault(self, fault: FileFault) -> Error {
        let (error, of_folder) = match fault {
            FileFault::Link => {
                let why = "the path contains a symbolic link, and no links are followed below exchange_directories; name the file itself";
                return self.fail(ErrorKind::Invalid, why);
            }
            FileFault::NoFile => return self.fail(ErrorKind::Invalid, "is no regular file; name one"),
            FileFault::Io(error) => (error, false),
            FileFault::Folder(error) => (error, true),
        };
        let (kind, remedy) = match error.kind() {
            io::ErrorKind::NotFound if of_folder => (ErrorKind::Missing, "make its folder first"),
            io::ErrorKind::NotFound => (ErrorKind::Missing, "check the name"),
            io::ErrorKind::StorageFull | io::ErrorKind::QuotaExceeded => {
                (ErrorKind::NoSpace, "free space or inodes on its file system")
            }
            io::ErrorKind::PermissionDenied | io::ErrorKind::ReadOnlyFilesystem => {
                (ErrorKind::Denied, "give the worker's user the right to use it")
            }
            io::ErrorKind::UnexpectedEof => {
                (ErrorKind::Integrity, "the value became shorter while it was read; try again")
            }
            _ => (ErrorKind::Io, "check the path and its disk"),
        };
        let failed = self.fail(kind, format!("{error}; {remedy}")).with_source(error);
        match &self.reference.0 {
            Target::File(path) if of_folder => failed.with_subject(path.parent().unwrap_or(path).display().to_string()),
            _ => failed,
        }
    }
}

#[cfg(test)]
mod tests;
