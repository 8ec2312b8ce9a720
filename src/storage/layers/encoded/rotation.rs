//! Rotation: the data keys of stored objects are wrapped again, under the first master key.
//!
//! The payload is encrypted under the data key, so it stays as it is. The object is still in the same state: generation
//! token, value, metadata and times do not change. Only the bucket's own generation and time of receipt do.

use std::future::Future;

use jiff::Timestamp;

use crate::storage::backend::{CopySource, PutOptions};
use crate::storage::error::{Error, ErrorKind, Operation, Result};
use crate::storage::layers::encoded::Encoded;
use crate::storage::object::{Attributes, Envelope, Key, KeyId};

/// How often an object is looked at anew that others keep changing.
const LOOKS: usize = 16;

/// What a rotation has found under one key.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Rotation {
    /// The key has no object any more.
    Gone,
    /// The object is not encrypted.
    NotEncrypted,
    /// The data key is under the first master key already.
    Current,
    /// The data key is under the first master key now, or would be after more than a dry run.
    Rotated,
    /// The data key is under a master key that is not in the keyring. Nothing was changed.
    UnknownKey(KeyId),
}

impl Encoded {
    /// Wraps the data key of an object under the first master key of the keyring, if it is under another one.
    ///
    /// A write or delete of the key that happens meanwhile wins: its result is looked at anew. A dry run only checks that
    /// the data key can be opened.
    ///
    /// # Errors
    ///
    /// [`ErrorKind::Integrity`] for an object that cannot be opened with its master key, [`ErrorKind::Invalid`] without
    /// a keyring, [`ErrorKind::Precondition`] where others keep changing the object; the errors of the backend.
    pub async fn rotate(&self, key: &Key, dry_run: bool) -> Result<Rotation> {
        let failed = |kind, why: &str| Error::new(kind, Operation::Copy, Some(key), why);
        let keyring =
            self.encryption.keyring().ok_or_else(|| failed(ErrorKind::Invalid, "there is no encryption key"))?;
        for _ in 0..LOOKS {
            let Some(sealed) = self.inner.stat(key).await? else { return Ok(Rotation::Gone) };
            if !sealed.encrypted {
                return Ok(Rotation::NotEncrypted);
            }
            if let Some(Envelope { key_id, .. }) = sealed.encryption {
                if keyring.ids().next() == Some(key_id) {
                    return Ok(Rotation::Current);
                }
                if !keyring.ids().any(|id| id == key_id) {
                    return Ok(Rotation::UnknownKey(key_id));
                }
            }
            let mut rewrapped = keyring.rewrap(key, key, &sealed)?;
            if let Some(envelope) = &mut rewrapped.encryption {
                envelope.received_at = sealed.received_at();
            }
            if dry_run {
                return Ok(Rotation::Rotated);
            }
            let source = CopySource::of(key, &sealed);
            if self.inner.copy(&source, key, &rewrapped, &PutOptions::default()).await?.is_some() {
                return Ok(Rotation::Rotated);
            }
        }
        Err(failed(ErrorKind::Precondition, "others keep changing the object; run it again"))
    }

    /// Tries a conditional write again that failed though the object is in the state which the condition names.
    ///
    /// A bucket enforces conditions by its own generation, which is another one after a rotation.
    pub(super) async fn despite_rotation<T, W>(
        &self,
        key: &Key,
        generation: Option<&str>,
        write: impl Fn() -> W,
    ) -> Result<T>
    where
        W: Future<Output = Result<T>>,
    {
        let holds = |present: &Attributes| {
            let is_named = generation == Some(present.generation.as_str());
            is_named && present.is_sealed() && !present.is_expired(Timestamp::now())
        };
        let mut looks = 0;
        loop {
            let error = match write().await {
                Err(error) if error.kind == ErrorKind::Precondition && generation.is_some() && looks < LOOKS => error,
                outcome => return outcome,
            };
            looks += 1;
            match self.inner.stat(key).await {
                Ok(Some(present)) if holds(&present) => {}
                _ => return Err(error),
            }
        }
    }
}
