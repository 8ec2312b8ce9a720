//! The data key of one object, and the keys that are derived from it.

use std::fmt;

use aws_lc_rs::constant_time::verify_slices_are_equal;
use aws_lc_rs::error::Unspecified;

use super::chunk::ContentKey;
use super::cipher::{SecretBytes, aead, derive, random};

/// The random key of one object. `Debug` shows nothing of it.
///
/// The payload and the sealed attributes are encrypted under keys derived from it, with the message id as salt. So
/// whoever wraps the same data key again, under another name or another master key, keeps the payload as it is.
#[derive(Clone)]
pub struct DataKey {
    secret: SecretBytes,
    message_id: [u8; 32],
}

impl DataKey {
    /// Makes the key of a new object.
    pub(super) fn random() -> Result<Self, Unspecified> {
        Ok(Self { secret: random()?.into(), message_id: random()? })
    }

    /// Puts a key together again from what its envelope holds.
    pub(super) fn from_parts(secret: SecretBytes, message_id: [u8; 32]) -> Self {
        Self { secret, message_id }
    }

    pub(super) fn expose(&self) -> &[u8; 32] {
        &self.secret
    }

    pub(super) const fn message_id(&self) -> [u8; 32] {
        self.message_id
    }

    /// Returns the key of the payload.
    pub(super) fn content(&self) -> Result<ContentKey, Unspecified> {
        Ok(ContentKey::new(aead(&*self.derive(b"filestorage content v1")?)?))
    }

    /// Returns the key of the sealed attributes.
    pub(super) fn attributes(&self) -> Result<SecretBytes, Unspecified> {
        self.derive(b"filestorage attributes v1")
    }

    /// Returns the value that belongs to this data key and to no other.
    ///
    /// AES-GCM alone does not commit: bytes can be made that open under two keys. That matters where several keys may
    /// decrypt.
    pub(super) fn commitment(&self) -> Result<[u8; 32], Unspecified> {
        Ok(*self.derive(b"filestorage commitment v1")?)
    }

    /// Tells in constant time whether a commitment is the one of this data key.
    pub(super) fn is_committed(&self, commitment: &[u8; 32]) -> Result<bool, Unspecified> {
        Ok(verify_slices_are_equal(&self.commitment()?, commitment).is_ok())
    }

    fn derive(&self, info: &[u8]) -> Result<SecretBytes, Unspecified> {
        derive(&self.secret, &self.message_id, &[info])
    }
}

impl fmt::Debug for DataKey {
    fn fmt(&self, formatter: &mut fmt::Formatter<'_>) -> fmt::Result {
        formatter.write_str("DataKey(***)")
    }
}
