//! Finds out by trying which conditions the store enforces.
//!
//! A store that does not know `If-Match` ignores it: it writes or removes, and reports success. So each condition is
//! tried once, with a tag that cannot match, on a scratch object that is removed afterwards.

use bytes::Bytes;
use http::{HeaderMap, HeaderValue, Method};
use uuid::Uuid;

use super::S3;
use super::copy_request::{self, METADATA_DIRECTIVE};
use super::guard::Guard;
use super::list::SCRATCH;
use super::upload::{self, Upload};
use super::wire::Call;
use crate::storage::error::{Error, ErrorKind, Operation, Result};
use crate::storage::object::Key;

/// The conditions that the store enforces.
#[derive(Clone, Copy, Debug)]
pub(super) struct Conditions {
    /// Whether conditions of a write in one request are enforced.
    pub(super) writes: bool,
    /// Whether conditions of a write in parts are enforced. SeaweedFS first checks and then acts, so several concurrent
    /// writers may succeed, which counts as not enforced.
    pub(super) uploads: bool,
    /// Whether conditions of a removal are enforced.
    pub(super) deletes: bool,
}

/// What the store enforces when it copies.
#[derive(Clone, Copy, Debug)]
pub(super) struct CopyConditions {
    /// Whether the state of the source is enforced.
    pub(super) sources: bool,
    /// Whether it is enforced for each part, too.
    pub(super) parts: bool,
    /// Whether conditions of the destination are enforced.
    pub(super) destinations: bool,
}

impl S3 {
    /// Returns the conditions that the store enforces. The first call tries them.
    pub(super) async fn conditions(&self, key: &Key, operation: Operation) -> Result<Conditions> {
        let found = self.0.conditions.get_or_try_init(|| self.try_conditions(key)).await;
        found.copied().map_err(|error| {
            let mut error = error.during(operation);
            error.key = Some(key.clone());
            error
        })
    }

    /// Makes the error of a condition that the store does not enforce.
    pub(super) fn unenforced(&self, key: &Key, operation: Operation, what: &str) -> Error {
        let why = format!("{self} does not enforce {what}; leave it out, or use a store that does");
        Error::new(ErrorKind::Invalid, operation, Some(key), why)
    }

    async fn try_conditions(&self, near: &Key) -> Result<Conditions> {
        let scratch = scratch(near)?;
        self.put_scratch(&scratch, &Guard::None).await?;
        let tried = self.try_conditions_on(&scratch).await;
        let cleanup = Call::new(Operation::Store, Method::DELETE, Some(&scratch));
        if let Err(error) = self.removed(&scratch, cleanup).await {
            tracing::warn!(%error, "a scratch object of the trial of conditions could not be removed");
        }
        let found = tried?;
        let Conditions { writes, uploads, deletes } = found;
        tracing::info!(writes, uploads, deletes, backend = %self, "tried which conditions the store enforces");
        Ok(found)
    }

    async fn try_conditions_on(&self, scratch: &Key) -> Result<Conditions> {
        let other = Guard::Same("0".repeat(32));
        let writes = refused(self.put_scratch(scratch, &Guard::Absent).await)?
            && refused(self.put_scratch(scratch, &other).await)?;
        let uploads = !self.0.wire.is_seaweedfs()
            && refused(self.upload_scratch(scratch, &other).await)?
            && refused(self.upload_scratch(scratch, &Guard::Absent).await)?;
        let removal = Call::new(Operation::Store, Method::DELETE, Some(scratch)).headers(other.headers());
        let deletes = refused(self.removed(scratch, removal).await)?;
        Ok(Conditions { writes, uploads, deletes })
    }

    /// Returns what the store enforces when it copies. The first call tries it.
    pub(super) async fn copy_conditions(&self, key: &Key) -> Result<CopyConditions> {
        let found = self.0.copy_conditions.get_or_try_init(|| self.try_copies(key)).await;
        found.copied().map_err(|error| {
            let mut error = error.during(Operation::Copy);
            error.key = Some(key.clone());
            error
        })
    }

    async fn try_copies(&self, near: &Key) -> Result<CopyConditions> {
        let scratch = scratch(near)?;
        self.put_scratch(&scratch, &Guard::None).await?;
        let tried = self.try_copies_of(&scratch).await;
        let cleanup = Call::new(Operation::Store, Method::DELETE, Some(&scratch));
        if let Err(error) = self.removed(&scratch, cleanup).await {
            tracing::warn!(%error, "a scratch object of the trial of copies could not be removed");
        }
        let found = tried?;
        let CopyConditions { sources, parts, destinations } = found;
        tracing::info!(sources, parts, destinations, backend = %self, "tried what the store enforces when it copies");
        Ok(found)
    }

    async fn try_copies_of(&self, scratch: &Key) -> Result<CopyConditions> {
        let wire = &self.0.wire;
        let none = CopyConditions { sources: false, parts: false, destinations: false };
        let Some(present) = wire.find_object(Operation::Store, scratch).await? else { return Ok(none) };
        let (same, other) = (&*present.generation, "0".repeat(32));
        let copy = async |etag: &str, guard: &Guard| {
            let mut headers = copy_request::from_source(wire, scratch, etag);
            headers.insert(METADATA_DIRECTIVE, HeaderValue::from_static("REPLACE"));
            refused(copy_request::copy(wire, scratch, headers, guard).await)
        };
        // A store that refuses every copy does not know them.
        if !copy(&other, &Guard::None).await? || copy(same, &Guard::None).await? {
            return Ok(none);
        }
        let destinations = copy(same, &Guard::Same(other.clone())).await? && copy(same, &Guard::Absent).await?;
        let upload = Upload::begin_copy(wire, scratch, HeaderMap::new()).await?;
        let part = async |etag: &str| upload.copy(1, copy_request::from_source(wire, scratch, etag)).await.map(drop);
        let parts = refused(part(&other).await)? && !refused(part(same).await)?;
        Ok(CopyConditions { sources: true, parts, destinations })
    }

    async fn removed(&self, scratch: &Key, call: Call<'_>) -> Result<()> {
        let context = self.0.wire.context(call.operation, call.key);
        match self.0.wire.send(call).await? {
            Some(reply) => self.0.wire.prove_removal(reply, scratch, &context).await,
            None => Ok(()),
        }
    }

    async fn put_scratch(&self, scratch: &Key, guard: &Guard) -> Result<()> {
        upload::put(&self.0.wire, scratch, Bytes::from_static(b"tried"), HeaderMap::new(), guard).await
    }

    async fn upload_scratch(&self, scratch: &Key, guard: &Guard) -> Result<()> {
        let upload = Upload::begin(&self.0.wire, scratch, HeaderMap::new()).await?;
        let part = upload.send(1, Bytes::from_static(b"tried")).await?;
        upload.complete(&[part], guard).await
    }
}

/// Tells whether the store refused. Only a success shows that the store does not know the condition.
fn refused(outcome: Result<()>) -> Result<bool> {
    match outcome {
        Ok(()) => Ok(false),
        Err(error) if error.kind == ErrorKind::Precondition => Ok(true),
        // The store says that it cannot, or this identity may not find out.
        Err(error) if matches!(error.kind, ErrorKind::Invalid | ErrorKind::Denied) => Ok(false),
        Err(error) => Err(error),
    }
}

/// Makes the key of the scratch object, in the same folder as another key, since an identity may have rights for some
/// folders only.
fn scratch(near: &Key) -> Result<Key> {
    let name = format!("{SCRATCH}{}", Uuid::new_v4().simple());
    let folder = near.as_str().rsplit_once('/').map_or("", |(folder, _)| folder);
    let key = Key::parse(&format!("{folder}/{name}")).or_else(|_| Key::parse(&name));
    key.map_err(|error| Error::new(ErrorKind::Invalid, Operation::Store, Some(near), error.to_string()))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_scratch_object_is_in_the_folder_of_the_key() {
        let near = |text: &str| scratch(&Key::parse(text).unwrap()).unwrap();
        assert!(near("a/b/c").as_str().starts_with("a/b/filestorage-tries-"));
        assert!(near("a").as_str().starts_with("filestorage-tries-"));
        let long = format!("{}/x", "é".repeat(500));
        assert!(near(&long).as_str().starts_with("filestorage-tries-"));
    }
}
