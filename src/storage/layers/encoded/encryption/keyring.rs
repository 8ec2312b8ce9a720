//! The keyring: the master keys of this program, which wrap the data keys of the objects.

use std::fmt;
use std::sync::Arc;

use aws_lc_rs::error::Unspecified;
use zeroize::Zeroizing;

use super::cipher::{NONCE, TAG, derive, joined, open, seal};
use super::data_key::DataKey;
use super::fault::SealFault;
use crate::encryption_key::{EncryptionKey, EncryptionKeyError};
use crate::storage::object::{Attributes, Binary, Envelope, Key, KeyId};

/// The master keys: the first encrypts, all decrypt. `Debug` shows their ids only.
///
/// Cheap to clone; the bytes of the keys are overwritten when the last clone is dropped.
#[derive(Clone)]
pub struct Keyring(Arc<[MasterKey]>);

struct MasterKey {
    id: KeyId,
    secret: EncryptionKey,
}

/// The reason why there is no keyring. The message never holds any part of a key.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum KeyringError {
    /// The text of the keys is wrong.
    #[error(transparent)]
    Text(#[from] EncryptionKeyError),
    /// There are no keys, or the cryptographic library has failed.
    #[error("{0}")]
    Unusable(&'static str),
}

impl Keyring {
    /// Reads the keys as `encryption_key` holds them: base64 of 32 bytes each, joined by commas or one a line.
    ///
    /// # Errors
    ///
    /// [`KeyringError`], which says which entry is wrong.
    pub fn parse(text: &str) -> Result<Self, KeyringError> {
        Self::new(EncryptionKey::parse_all(text)?)
    }

    /// Makes a keyring of these keys.
    ///
    /// # Errors
    ///
    /// [`KeyringError::Unusable`] for no keys.
    pub fn new(keys: Vec<EncryptionKey>) -> Result<Self, KeyringError> {
        let keys: Result<Vec<MasterKey>, Unspecified> = keys.into_iter().map(MasterKey::new).collect();
        match keys {
            Ok(keys) if keys.is_empty() => Err(KeyringError::Unusable("there is no encryption key")),
            Ok(keys) => Ok(Self(keys.into())),
            Err(Unspecified) => {
                Err(KeyringError::Unusable("the cryptographic library could not use an encryption key"))
            }
        }
    }

    /// Returns the ids of the keys, that of the encrypting one first.
    pub fn ids(&self) -> impl Iterator<Item = KeyId> {
        self.0.iter().map(|key| key.id)
    }

    /// Wraps a data key under the first master key, for an object of this name.
    pub(super) fn wrap(&self, name: &Key, data_key: &DataKey) -> Result<(KeyId, Binary<60>), Unspecified> {
        let master = self.0.first().ok_or(Unspecified)?;
        let wrapping = derive(master.secret.expose(), &data_key.message_id(), &[b"filestorage wrap v1"])?;
        let wrapped = seal(&wrapping, &associated(master.id, name), data_key.expose())?;
        let wrapped: [u8; NONCE + 32 + TAG] = wrapped.try_into().map_err(|_| Unspecified)?;
        Ok((master.id, Binary(wrapped)))
    }

    /// Opens the data key of an object of this name and checks that the envelope was made for it.
    pub(super) fn unwrap(&self, name: &Key, envelope: &Envelope) -> Result<DataKey, SealFault> {
        let id = envelope.key_id;
        let master = self
            .0
            .iter()
            .find(|master| master.id == id)
            .ok_or_else(|| SealFault::UnknownKey { id, known: self.ids().collect() })?;
        let message_id = envelope.message_id.0;
        let wrapping = derive(master.secret.expose(), &message_id, &[b"filestorage wrap v1"])?;
        let opened =
            open(&wrapping, &associated(id, name), &envelope.wrapped_key.0).map_err(|_| SealFault::WrongKey(id))?;
        let secret: [u8; 32] = opened.as_slice().try_into().map_err(|_| SealFault::WrongKey(id))?;
        let data_key = DataKey::from_parts(Zeroizing::new(secret), message_id);
        if !data_key.is_committed(&envelope.commitment.0)? {
            return Err(SealFault::Uncommitted);
        }
        Ok(data_key)
    }

    /// Stands for the identity of a command, its value and its metadata, which are sealed; `None` without an identity.
    ///
    /// Under one master key it is the same for the same command and value, so two attempts of it are still recognized.
    pub(super) fn pseudonym(&self, value: &Attributes) -> Result<Option<String>, Unspecified> {
        let Some(operation_id) = value.operation_id.as_deref() else { return Ok(None) };
        let master = self.0.first().ok_or(Unspecified)?;
        let metadata = value.metadata.as_ref().map(|metadata| metadata.get()).unwrap_or_default();
        let info = joined(&["filestorage operation v1", operation_id, &value.checksum.to_string(), metadata]);
        let derived = derive(master.secret.expose(), &[], &[&info])?;
        Ok(Some(derived[..16].iter().map(|byte| format!("{byte:02x}")).collect()))
    }
}

impl MasterKey {
    fn new(secret: EncryptionKey) -> Result<Self, Unspecified> {
        let derived = derive(secret.expose(), &[], &[b"filestorage key id v1"])?;
        let id = derived.first_chunk().copied().map(KeyId).ok_or(Unspecified)?;
        Ok(Self { id, secret })
    }
}

impl fmt::Debug for Keyring {
    fn fmt(&self, formatter: &mut fmt::Formatter<'_>) -> fmt::Result {
        formatter.write_str("Keyring")?;
        formatter.debug_list().entries(self.ids()).finish()
    }
}

/// Returns the bytes to which a wrapped data key is bound.
fn associated(id: KeyId, name: &Key) -> Vec<u8> {
    joined(&["filestorage wrap v1", &id.to_string(), name.as_str()])
}

#[cfg(test)]
mod tests {
    use serde_json::value::RawValue;

    use super::*;
    use crate::storage::object::{Checksum, Kind};

    const OLD: &str = "AQEBAQEBAQEBAQEBAQEBAQEBAQEBAQEBAQEBAQEBAQE=";
    const NEW: &str = "AgICAgICAgICAgICAgICAgICAgICAgICAgICAgICAgI=";

    #[test]
    fn a_keyring_shows_ids_only() {
        let keyring = Keyring::parse(&format!("{NEW},{OLD}")).unwrap();
        assert_eq!(format!("{keyring:?}"), "Keyring[bc65713dcac86b22, 78d6c8062da7af58]");
        let error = Keyring::parse("aHVudGVyMg==").unwrap_err();
        assert!(error.to_string().contains("entry 1 has 7 bytes") && !format!("{error:?}").contains("aHVu"), "{error}");
        assert!(Keyring::new(Vec::new()).is_err());
    }

    #[test]
    fn a_pseudonym_is_the_same_under_one_key_only() {
        let (old, new) = (Keyring::parse(OLD).unwrap(), Keyring::parse(NEW).unwrap());
        let value = |id: &str, value: &[u8], metadata: Option<String>| {
            let size = value.len() as u64;
            Attributes {
                operation_id: Some(id.to_owned()),
                metadata: metadata.map(|text| RawValue::from_string(text).unwrap()),
                ..Attributes::new(Kind::Bytes, "text/plain".to_owned(), size, Checksum::of(value))
            }
        };
        let metadata = || Some(format!("{{\"a\":\"{}\"}}", "x".repeat(4_000)));
        let pseudonym = |keyring: &Keyring, value: &Attributes| keyring.pseudonym(value).unwrap().unwrap();
        let it = value("id", b"value", metadata());
        assert_eq!(pseudonym(&old, &it), pseudonym(&old, &value("id", b"value", metadata())));
        for other in
            [value("other", b"value", metadata()), value("id", b"other", metadata()), value("id", b"value", None)]
        {
            assert_ne!(pseudonym(&old, &it), pseudonym(&old, &other));
        }
        assert_ne!(pseudonym(&old, &it), pseudonym(&new, &it));
        assert_eq!(pseudonym(&old, &it).len(), 32);
        assert_eq!(old.pseudonym(&Attributes { operation_id: None, ..it }).unwrap(), None);
    }
}
