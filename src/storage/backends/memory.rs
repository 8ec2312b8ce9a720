//! A backend that keeps objects in memory.

use std::collections::BTreeMap;
use std::fmt;
use std::ops::Bound;
use std::sync::{Mutex, MutexGuard, PoisonError};

use async_trait::async_trait;

use crate::storage::backend::{
    Backend, Condition, CopySource, DeleteOptions, Entry, GetOptions, Grant, Listing, Page, Probe, PutOptions, Removal,
    Versions, VersionsRequest,
};
use crate::storage::error::{Error, ErrorKind, Operation, Result};
use crate::storage::object::{Attributes, Checksum, Key, Object};

/// Keeps objects in this process's memory, with the whole contract of a backend except durability.
///
/// This backend is for tests and for programs that embed the engine. Nothing outlives the process.
#[derive(Debug, Default)]
pub struct Memory(Mutex<BTreeMap<Key, Object>>);

impl Memory {
    /// Makes an empty backend.
    #[must_use]
    pub fn new() -> Self {
        Self::default()
    }

    fn objects(&self) -> MutexGuard<'_, BTreeMap<Key, Object>> {
        // Every change is one insert or remove, so the map is consistent also after a panic elsewhere.
        self.0.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

fn is_sound(Object { attributes, payload }: &Object) -> bool {
    let matches = payload.checksum_blocking().is_ok_and(|checksum| checksum == attributes.stored_checksum);
    matches && attributes.stored_size == payload.len()
}

fn damaged(key: &Key) -> Error {
    let why = "the bytes do not match their checksum; store the value again";
    Error::new(ErrorKind::Integrity, Operation::Retrieve, Some(key), why)
}

impl fmt::Display for Memory {
    fn fmt(&self, formatter: &mut fmt::Formatter<'_>) -> fmt::Result {
        formatter.write_str("memory")
    }
}

#[async_trait]
impl Backend for Memory {
    async fn put(&self, key: &Key, object: &Object, options: &PutOptions) -> Result<Attributes> {
        let Object { attributes, payload } = object.clone();
        let payload = payload.into_memory().await.map_err(|error| Error::unread(Operation::Store, key, error))?;
        if attributes.stored_checksum != Checksum::of(&payload) {
            let why = "the source changed while it was stored; store it again";
            return Err(Error::new(ErrorKind::Integrity, Operation::Store, Some(key), why));
        }
        let stored = attributes.clone();
        let object = Object { attributes, payload: payload.into() };
        let mut objects = self.objects();
        options.condition.check(Operation::Store, key, objects.get(key).map(|present| &present.attributes))?;
        if !options.commit_guard.commit() {
            return Err(Error::abandoned(Operation::Store, key));
        }
        objects.insert(key.clone(), object);
        Ok(stored)
    }

    async fn get(&self, key: &Key, options: GetOptions) -> Result<Option<Object>> {
        if options.version.is_some() {
            return Err(Error::unversioned(Operation::Retrieve, key, "a store in memory"));
        }
        let Some(found) = self.objects().get(key).cloned() else { return Ok(None) };
        let part = options.kept_part(key, &found.attributes)?;
        if !is_sound(&found) {
            return Err(damaged(key));
        }
        let Object { attributes, payload } = found;
        Ok(Some(Object { attributes, payload: payload.slice(part) }))
    }

    async fn copy(
        &self,
        source: &CopySource,
        key: &Key,
        attributes: &Attributes,
        options: &PutOptions,
    ) -> Result<Option<Attributes>> {
        let mut objects = self.objects();
        let Some(found) = objects.get(&source.key).filter(|found| source.is(&found.attributes)).cloned() else {
            return Ok(None);
        };
        if !is_sound(&found) {
            return Err(damaged(&source.key).during(Operation::Copy));
        }
        options.condition.check(Operation::Copy, key, objects.get(key).map(|present| &present.attributes))?;
        if !options.commit_guard.commit() {
            return Err(Error::abandoned(Operation::Copy, key));
        }
        let stored = attributes.clone();
        objects.insert(key.clone(), Object { attributes: attributes.clone(), payload: found.payload });
        Ok(Some(stored))
    }

    async fn stat(&self, key: &Key) -> Result<Option<Attributes>> {
        Ok(self.objects().get(key).map(|object| object.attributes.clone()))
    }

    async fn versions(&self, key: &Key, _: &VersionsRequest) -> Result<Versions> {
        Err(Error::unversioned(Operation::Versions, key, "a store in memory"))
    }

    async fn delete(&self, key: &Key, options: &DeleteOptions) -> Result<Removal> {
        let mut objects = self.objects();
        if let (Some(generation), Some(present)) = (&options.generation, objects.get(key)) {
            Condition::Generation(generation.clone()).check(Operation::Delete, key, Some(&present.attributes))?;
        }
        if !options.commit_guard.commit() {
            return Err(Error::abandoned(Operation::Delete, key));
        }
        Ok(Removal { found: objects.remove(key).is_some(), pending: false })
    }

    async fn list(&self, page: &Page) -> Result<Listing> {
        let objects = self.objects();
        let from = match &page.start_after {
            Some(after) if *after >= page.prefix => Bound::Excluded(after.as_str()),
            _ => Bound::Included(page.prefix.as_str()),
        };
        let mut matching = objects
            .range::<str, _>((from, Bound::Unbounded))
            .take_while(|(key, _)| key.as_str().starts_with(&page.prefix))
            .map(|(key, object)| Entry::of(key, &object.attributes));
        let entries = matching.by_ref().take(page.limit.unwrap_or(usize::MAX)).collect();
        Ok(Listing { entries, foreign: 0, more: matching.next().is_some() })
    }

    async fn flush(&self, _: &Key) -> Result<()> {
        Ok(())
    }

    async fn probe(&self) -> Result<Probe> {
        Ok(Probe::default())
    }

    fn validate(&self, _: &Key, _: &Attributes) -> Result<()> {
        Ok(())
    }

    async fn sign(&self, key: &Key, _: &Grant) -> Result<String> {
        Err(Error::unsigned(key))
    }
}
