//! The attributes that nobody may read without the key, and their seal.

use serde_json::value::RawValue;

use super::cipher::{joined, open, seal};
use super::data_key::DataKey;
use super::fault::SealFault;
use crate::storage::object::{Attributes, Checksum, Key, Kind, SealedText};

/// The attributes that nobody may read without the key. They are sealed as JSON.
#[derive(serde::Serialize, serde::Deserialize)]
pub(super) struct Hidden {
    /// The checksum of the value, which tells small values.
    checksum: Checksum,
    /// The identity of the command, which tells the value to whoever can guess the command.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    operation_id: Option<String>,
    #[serde(default, skip_serializing_if = "Option::is_none")]
    metadata: Option<Box<RawValue>>,
}

impl Hidden {
    /// Takes the attributes of a value.
    pub(super) fn of(value: &Attributes) -> Self {
        let Attributes { checksum, operation_id, metadata, .. } = value;
        Self { checksum: *checksum, operation_id: operation_id.clone(), metadata: metadata.clone() }
    }

    /// Puts the hidden attributes back into the attributes of the object.
    pub(super) fn restore(self, attributes: &mut Attributes) {
        attributes.checksum = self.checksum;
        attributes.operation_id = self.operation_id;
        attributes.metadata = self.metadata;
    }

    /// Encrypts the hidden attributes, bound to the object's name and to the attributes that stay readable.
    pub(super) fn seal(
        &self,
        name: &Key,
        attributes: &Attributes,
        data_key: &DataKey,
    ) -> Result<SealedText, SealFault> {
        let text = serde_json::to_vec(self).map_err(SealFault::UnknownAttributes)?;
        Ok(SealedText(seal(&*data_key.attributes()?, &associated(name, attributes), &text)?))
    }

    /// Decrypts the hidden attributes where they belong to this name and to these attributes.
    pub(super) fn open(
        sealed: &SealedText,
        name: &Key,
        attributes: &Attributes,
        data_key: &DataKey,
    ) -> Result<Self, SealFault> {
        let text = open(&*data_key.attributes()?, &associated(name, attributes), &sealed.0);
        let text = text.map_err(|_| SealFault::WrongAttributes)?;
        serde_json::from_slice(&text).map_err(SealFault::UnknownAttributes)
    }
}

/// Returns the bytes to which the sealed attributes are bound.
fn associated(name: &Key, attributes: &Attributes) -> Vec<u8> {
    let kind = match attributes.kind {
        Kind::Text => "text",
        Kind::Bytes => "bytes",
        Kind::Json => "json",
    };
    joined(&[
        "filestorage attributes v1",
        name.as_str(),
        kind,
        &attributes.size.to_string(),
        attributes.compression.as_deref().unwrap_or_default(),
        &attributes.content_type,
    ])
}
