//! Encryption at rest: each object has a random data key, which a master key wraps.
//!
//! ```text
//! master key ── HKDF, message id ──► wrapping key ─► wrapped data key         bound to name and key id
//!
//! data key ── HKDF, message id ─┬─► commitment                               compared before anything is decrypted
//!                               ├─► attributes key ─► sealed attributes      bound to name, kind, size, …
//!                               └─► content key ────► payload, in chunks     bound to their places
//! ```
//!
//! The payload does not depend on the name or on the master key, so a copy, a move and a new master key need a new
//! envelope only. The book describes every byte in `reference/encryption-format.md`.

mod chunk;
mod cipher;
mod data_key;
mod fault;
mod hidden;
mod keyring;
mod stream;
#[cfg(test)]
mod tests;

use std::ops::Range;

use jiff::Timestamp;

pub use self::data_key::DataKey;
use self::fault::SealFault;
use self::hidden::Hidden;
pub use self::keyring::{Keyring, KeyringError};
use crate::storage::error::{Operation, Result};
use crate::storage::files::Spool;
use crate::storage::object::{Attributes, Binary, Checksum, Envelope, EnvelopeVersion, Key, Object, Payload};

/// Whether values are encrypted, and the keys with which objects are decrypted.
#[derive(Clone, Debug)]
pub struct Encryption {
    keyring: Option<Keyring>,
    writes: bool,
}

impl Encryption {
    /// Encrypts nothing, and reads nothing that is encrypted.
    #[must_use]
    pub const fn none() -> Self {
        Self { keyring: None, writes: false }
    }

    /// Encrypts with the first key, and decrypts with all.
    #[must_use]
    pub const fn on(keyring: Keyring) -> Self {
        Self { keyring: Some(keyring), writes: true }
    }

    /// Decrypts with all keys, and writes values as they are given.
    #[must_use]
    pub const fn reading(keyring: Keyring) -> Self {
        Self { keyring: Some(keyring), writes: false }
    }

    /// Decrypts as this does, and encrypts nothing.
    #[must_use]
    pub fn reading_only(&self) -> Self {
        Self { writes: false, ..self.clone() }
    }

    /// Returns the keys with which objects are decrypted, if there are any.
    #[must_use]
    pub const fn keyring(&self) -> Option<&Keyring> {
        self.keyring.as_ref()
    }

    /// Returns the keyring if new values are encrypted.
    pub(super) fn keyring_of_writes(&self) -> Option<&Keyring> {
        self.keyring.as_ref().filter(|_| self.writes)
    }

    /// Seals new attributes of an encrypted payload for another name, or for the same one under the first key.
    ///
    /// The data key is that of the sealed attributes of the object, which is under the name `from`.
    pub(super) fn rewrap(&self, from: &Key, to: &Key, sealed: &Attributes, value: &Attributes) -> Result<Attributes> {
        let (_, data_key) = self.open(from, sealed)?;
        match &self.keyring {
            Some(keyring) => keyring.seal_attributes(to, value, &data_key),
            None => Err(SealFault::NoEnvelope.into_error(Operation::Copy, from)),
        }
    }

    /// Opens attributes as [`Keyring::open_attributes`] does; without a keyring, that is the same error as with wrong keys.
    pub(super) fn open(&self, name: &Key, sealed: &Attributes) -> Result<(Attributes, DataKey)> {
        match (&self.keyring, &sealed.encryption) {
            (Some(keyring), _) => keyring.open_attributes(name, sealed),
            (None, Some(envelope)) => {
                let fault = SealFault::UnknownKey { id: envelope.key_id, known: Vec::new() };
                Err(fault.into_error(Operation::Retrieve, name))
            }
            (None, None) => Err(SealFault::NoEnvelope.into_error(Operation::Retrieve, name)),
        }
    }
}

impl Keyring {
    /// Returns attributes as they will be stored, for a check whether a place has room for them.
    ///
    /// # Errors
    ///
    /// As [`Keyring::seal_attributes`].
    pub fn form(&self, name: &Key, value: &Attributes) -> Result<Attributes> {
        let data_key = DataKey::random().map_err(|error| SealFault::from(error).into_error(Operation::Store, name))?;
        let stored_size = DataKey::sealed_size(value.stored_size);
        let mut sealed = self.seal_attributes(name, &Attributes { stored_size, ..value.clone() }, &data_key)?;
        // A rotation must find room, too.
        if let Some(envelope) = &mut sealed.encryption {
            envelope.received_at = Some(Timestamp::MAX);
        }
        Ok(sealed)
    }

    /// Encrypts an object for its name: the payload, metadata, the checksum of the value, the identity of the command.
    ///
    /// Kind, content type, times, both sizes and the name of the compression stay readable. Up to 64 KiB are encrypted
    /// at once, more on a thread that may block; many encrypted bytes go into a file of the spool.
    ///
    /// # Errors
    ///
    /// [`Integrity`](crate::storage::ErrorKind) for a payload in a file that has changed since its checksum was
    /// computed; the errors of the file system.
    pub async fn seal(&self, name: &Key, object: &Object, spool: &Spool) -> Result<Object> {
        let failed = |fault: SealFault| fault.into_error(Operation::Store, name);
        let value = &object.attributes;
        let data_key = DataKey::random().map_err(|error| failed(error.into()))?;
        let content = data_key.content().map_err(|error| failed(error.into()))?;
        let sealed = stream::seal(content, &object.payload, value.stored_checksum, spool).await;
        let (payload, stored_checksum) = sealed.map_err(failed)?;
        let mut attributes = value.clone();
        (attributes.stored_size, attributes.stored_checksum) = (payload.len(), stored_checksum);
        let attributes = self.seal_attributes(name, &attributes, &data_key)?;
        Ok(Object { attributes, payload })
    }

    /// Seals the attributes of a value whose payload is encrypted under this data key, and wraps the data key.
    ///
    /// Stored size and checksum are those of the encrypted payload.
    ///
    /// # Errors
    ///
    /// [`Io`](crate::storage::ErrorKind) when the cryptographic library fails.
    pub fn seal_attributes(&self, name: &Key, value: &Attributes, data_key: &DataKey) -> Result<Attributes> {
        let sealed = || -> Result<Attributes, SealFault> {
            let (key_id, wrapped_key) = self.wrap(name, data_key)?;
            let envelope = Envelope {
                version: EnvelopeVersion,
                key_id,
                message_id: Binary(data_key.message_id()),
                wrapped_key,
                commitment: Binary(data_key.commitment()?),
                sealed: Hidden::of(value).seal(name, value, data_key)?,
                received_at: None,
            };
            let operation_id = self.pseudonym(value)?;
            Ok(Attributes {
                checksum: value.stored_checksum,
                operation_id,
                metadata: None,
                encrypted: true,
                encryption: Some(envelope),
                ..value.clone()
            })
        };
        sealed().map_err(|fault| fault.into_error(Operation::Store, name))
    }

    /// Opens sealed attributes: returns those of the value, without an envelope, and the data key of the payload.
    ///
    /// # Errors
    ///
    /// [`Integrity`](crate::storage::ErrorKind) for a master key that is not in the keyring, and for whatever
    /// was changed since it was sealed, the object's name included.
    pub fn open_attributes(&self, name: &Key, sealed: &Attributes) -> Result<(Attributes, DataKey)> {
        let opened = || -> Result<(Attributes, DataKey), SealFault> {
            let envelope = sealed.encryption.as_ref().ok_or(SealFault::NoEnvelope)?;
            let data_key = self.unwrap(name, envelope)?;
            let hidden = Hidden::open(&envelope.sealed, name, sealed, &data_key)?;
            let mut attributes = Attributes { encryption: None, ..sealed.clone() };
            hidden.restore(&mut attributes);
            Ok((attributes, data_key))
        };
        opened().map_err(|fault| fault.into_error(Operation::Retrieve, name))
    }

    /// Seals attributes for another name, or under the first master key, for the same encrypted payload.
    ///
    /// # Errors
    ///
    /// As [`Keyring::open_attributes`] and [`Keyring::seal_attributes`].
    pub fn rewrap(&self, from: &Key, to: &Key, sealed: &Attributes) -> Result<Attributes> {
        let (attributes, data_key) = self.open_attributes(from, sealed)?;
        self.seal_attributes(to, &attributes, &data_key)
    }
}

impl DataKey {
    /// Returns the number of bytes that a payload has once it is encrypted.
    #[must_use]
    pub fn sealed_size(plain: u64) -> u64 {
        chunk::Layout::of_plain(plain).sealed()
    }

    /// Returns the number of bytes that an encrypted payload has once it is decrypted.
    ///
    /// # Errors
    ///
    /// [`Integrity`](crate::storage::ErrorKind) for a number of bytes that no encrypted payload has.
    pub fn opened_size(name: &Key, payload: &Payload) -> Result<u64> {
        stream::plain_size(payload).map_err(|fault| fault.into_error(Operation::Retrieve, name))
    }

    /// Decrypts a part of a payload, by the numbers of the bytes before encryption; an end beyond the last byte is cut.
    ///
    /// Only the chunks of the part and the last one are decrypted. Nothing is returned unless all of them are unchanged.
    /// Many bytes go into a file of the spool; without one, all stay in memory.
    ///
    /// # Errors
    ///
    /// [`Integrity`](crate::storage::ErrorKind) for a payload that was changed, cut, extended or reordered, or
    /// that belongs to another object; the errors of the file system.
    pub async fn open(
        &self,
        name: &Key,
        payload: &Payload,
        part: Range<u64>,
        spool: Option<&Spool>,
    ) -> Result<(Payload, Checksum)> {
        let failed = |fault: SealFault| fault.into_error(Operation::Retrieve, name);
        let content = self.content().map_err(|error| failed(error.into()))?;
        stream::open(content, payload, part, spool).await.map_err(failed)
    }
}
