//! Places outside the store that commands may name: files below the exchange directories, objects of buckets.
//!
//! [`Reference`] names one, [`Directory`] keeps files within their directory, [`ExternalReferences`] reads and writes. What a
//! command does with it is in `transfer`: [`Engine::store_from`](super::Engine::store_from) and
//! [`Engine::retrieve_to`](super::Engine::retrieve_to).

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
use crate::storage::object::payload::hop;
use crate::storage::object::value::unmarked;
use crate::storage::object::{
    Attributes, Checksum, Content, ContentType, Foreign, Key, Kind, Object, Payload, foreign,
};
use crate::storage::reading::read;

/// Largest JSON value taken from a bucket, in bytes: it is read whole to see that it is JSON.
const MAX_JSON_BYTES: u64 = 16 << 20;

/// Opens buckets by name; only those that a [`Permission`] lists are asked for.
#[async_trait]
pub trait Buckets: std::fmt::Debug + Send + Sync {
    /// Opens a bucket.
    async fn open(&self, provider: Provider, bucket: &str) -> Result<Arc<dyn Backend>>;
}

/// Opens no bucket.
#[derive(Clone, Copy, Debug, Default)]
pub struct NoBuckets;

#[async_trait]
impl Buckets for NoBuckets {
    async fn open(&self, _: Provider, _: &str) -> Result<Arc<dyn Backend>> {
        Err(Error::new(ErrorKind::Denied, Operation::Probe, None, "this store has no access to other buckets"))
    }
}

/// Reads and writes what references name; cheap to clone.
///
/// # Contract
///
/// - Nothing but regular files below the listed directories is read or written; no link is followed, none leads out.
/// - Nothing but objects of the listed buckets, and of the store's own, is read or written; for any other no request is
///   made, not even for credentials.
/// - A file is written whole or not at all and synced; its folder must be there.
/// - Values pass in bounded memory.
#[derive(Clone, Debug)]
pub struct ExternalReferences {
    permission: Arc<Permission>,
    buckets: Arc<dyn Buckets>,
}

/// What was read from a reference.
#[derive(Debug)]
pub(in crate::storage) struct Incoming {
    pub(in crate::storage) content: Content,
    /// As the source says it, where it does.
    pub(in crate::storage) content_type: Option<ContentType>,
    pub(in crate::storage) metadata: Option<Box<RawValue>>,
}

/// What is to be written to a reference.
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

/// What a reference is used for; what errors name.
#[derive(Clone, Copy, Debug)]
pub(in crate::storage) struct Purpose<'a> {
    pub(in crate::storage) operation: Operation,
    pub(in crate::storage) key: &'a Key,
    pub(in crate::storage) reference: &'a Reference,
}

impl ExternalReferences {
    /// Lets commands name what the permission lists.
    #[must_use]
    pub fn new(permission: Permission, buckets: Arc<dyn Buckets>) -> Self {
        Self { permission: Arc::new(permission), buckets }
    }

    /// Refuses a place that is not listed, without asking anybody.
    pub(in crate::storage) fn check(&self, purpose: Purpose<'_>) -> Result<()> {
        match &purpose.reference.0 {
            Target::File(path) => self.locate(purpose, path).map(drop),
            target if self.permission.is_own(target) => Ok(()),
            Target::Object { provider, bucket, .. } if self.permission.lists(*provider, bucket) => Ok(()),
            Target::Object { provider, bucket, .. } => {
                let scheme = provider.scheme();
                let mend = "let the worker's operator list it there, or name an object of the worker's own bucket";
                let why = format!("{scheme}://{bucket} is not one of the exchange_buckets; {mend}");
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

    /// Opens what a reference names. A file's bytes are read later, checked against a checksum taken before.
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

    /// Writes to what a reference names, replacing what is there.
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
                let draft = begun.await.map_err(|fault| purpose.fault(fault))?;
                let written = draft.write(&outgoing.payload).await.map_err(|error| purpose.fault(error.into()))?;
                if written != outgoing.checksum {
                    return Err(purpose.fail(ErrorKind::Integrity, "the value changed while it was read; try again"));
                }
                let key = purpose.key.clone();
                let placed = blocking(move || place(draft, &commit_guard, &key));
                placed.await.map_err(|fault| purpose.fault(fault))?
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

/// Gives a finished file its name if nobody has forbidden it; a forbidden one is the inner error.
fn place(draft: AtomicFile, commit_guard: &CommitGuard, key: &Key) -> Result<Result<()>, FileFault> {
    draft.sync()?;
    if !commit_guard.commit() {
        return Ok(Err(Error::abandoned(Operation::Retrieve, key)));
    }
    draft.place()?;
    Ok(Ok(()))
}

/// Runs work that opens and syncs on a thread that may block.
async fn blocking<T: Send + 'static>(
    work: impl FnOnce() -> Result<T, FileFault> + Send + 'static,
) -> Result<T, FileFault> {
    hop(move || Ok(work())).await?
}

/// Knows no directory and no bucket.
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
    /// Takes an object of a bucket if it was found.
    pub(in crate::storage) async fn take_found(self, found: Option<Object>) -> Result<Incoming> {
        match found {
            Some(object) => self.take(object).await,
            None => Err(self.fail(ErrorKind::Missing, "the object is not there")),
        }
    }

    /// Takes an object of a bucket: what it is, it stays.
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
            // The engine looks whether it is JSON when it is in memory.
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
            // What no header may hold is left out.
            content_type: ContentType::parse(&content_type).ok(),
            metadata: attributes.metadata,
        })
    }

    /// Brings a foreign text into UTF-8, in which the store keeps text, and says so in its content type.
    pub(in crate::storage) async fn in_utf8(
        self,
        said: &Foreign,
        payload: Payload,
        content_type: String,
    ) -> Result<(Payload, String)> {
        if said.charset.is_none() {
            return Ok((payload, content_type));
        }
        if payload.len() > MAX_JSON_BYTES {
            let why = format!(
                "a text of {} bytes in another charset than UTF-8; at most {MAX_JSON_BYTES} are taken; give the object the content type application/octet-stream",
                payload.len()
            );
            return Err(self.fail(ErrorKind::Invalid, why));
        }
        let bytes = payload.into_memory().await.map_err(|error| Error::unread(self.operation, self.key, error))?;
        let text = said.decode(&bytes).map_err(|why| self.fail(ErrorKind::Invalid, why))?;
        Ok((text.into(), foreign::in_utf8(&content_type)))
    }

    pub(in crate::storage) fn fail(self, kind: ErrorKind, why: impl std::fmt::Display) -> Error {
        let reference = self.reference;
        Error::new(kind, self.operation, Some(self.key), format!("{reference:?}: {why}"))
            .with_subject(reference.to_string())
    }

    /// Makes a bucket's error one of this purpose.
    pub(in crate::storage) fn foreign(self, error: Error) -> Error {
        let retry_after = error.retry_after;
        self.fail(error.kind, error.message()).with_retry_after(retry_after).with_source(error)
    }

    /// Turns what the file system said into the room's error: the one place where its kinds are read.
    fn fault(self, fault: FileFault) -> Error {
        let (error, of_folder) = match fault {
            FileFault::Link => {
                let why = "a symbolic link stands in this path, and none is followed below exchange_directories; name the file itself";
                return self.fail(ErrorKind::Invalid, why);
            }
            FileFault::NoFile => return self.fail(ErrorKind::Invalid, "is no regular file; name one"),
            FileFault::Io(error) => (error, false),
            FileFault::Folder(error) => (error, true),
        };
        let (kind, mend) = match error.kind() {
            io::ErrorKind::NotFound if of_folder => (ErrorKind::Missing, "make its folder first"),
            io::ErrorKind::NotFound => (ErrorKind::Missing, "look whether the name is right"),
            io::ErrorKind::StorageFull | io::ErrorKind::QuotaExceeded => {
                (ErrorKind::NoSpace, "free space or inodes on its file system")
            }
            io::ErrorKind::PermissionDenied | io::ErrorKind::ReadOnlyFilesystem => {
                (ErrorKind::Denied, "let the worker's user at it")
            }
            io::ErrorKind::UnexpectedEof => {
                (ErrorKind::Integrity, "the value became shorter while it was read; try again")
            }
            _ => (ErrorKind::Io, "look at the path and the disk it is on"),
        };
        let failed = self.fail(kind, format!("{error}; {mend}")).with_source(error);
        match &self.reference.0 {
            Target::File(path) if of_folder => failed.with_subject(path.parent().unwrap_or(path).display().to_string()),
            _ => failed,
        }
    }
}

#[cfg(test)]
mod tests;
