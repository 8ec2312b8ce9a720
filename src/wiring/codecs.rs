//! Builds the codecs from the settings.

use std::sync::Arc;

use super::failure::{Code, Failure};
use super::folders::spool;
use super::memory_limit::in_flight_bytes;
use crate::config::StorageSettings;
use crate::storage::{Backend, Codec, Compression, Encoded, Encryption, Keyring};

/// Puts the codecs before a backend, so that every encoded object can be read. Values are written as they are given.
pub(crate) fn codecs(settings: &StorageSettings, inner: Arc<dyn Backend>, encryption: &Encryption) -> Encoded {
    let most = settings.max_in_flight_bytes.unwrap_or_else(in_flight_bytes);
    Encoded::new(inner, spool(settings)).with_memory_cap(most).with_encryption(encryption.reading_only())
}

/// Returns the keys of the settings, and whether new values are encrypted.
pub(crate) fn encryption(settings: &StorageSettings) -> Result<Encryption, Failure> {
    let failed = |why: String| Failure::new(Code::Configuration, format!("encryption_key: {why}"));
    match (settings.encryption_keys.is_empty(), settings.encryption) {
        (true, false) => Ok(Encryption::none()),
        (_, writes) => {
            let keyring = Keyring::new(settings.encryption_keys.clone()).map_err(|error| failed(error.to_string()))?;
            Ok(if writes { Encryption::on(keyring) } else { Encryption::reading(keyring) })
        }
    }
}

/// Returns the rule by which new values are compressed; `None` where compression is off.
pub(crate) fn compression(settings: &StorageSettings) -> Option<Compression> {
    let given = settings.compression.as_ref()?;
    let codec = Codec::named(&given.algorithm)?;
    let level = given.level.unwrap_or(codec.default_level()).clamp(1, codec.best_level());
    Some(Compression { codec, level, threshold: given.threshold })
}
