//! Builds the codecs from the settings.

use std::sync::Arc;

use super::folders::spool;
use super::memory_limit::in_flight_bytes;
use crate::config::StorageSettings;
use crate::storage::{Backend, Codec, Compression, Encoded};

/// Puts the codecs before a backend, so that every encoded object can be read. Values are written as they are given.
pub(crate) fn codecs(settings: &StorageSettings, inner: Arc<dyn Backend>) -> Encoded {
    let most = settings.max_in_flight_bytes.unwrap_or_else(in_flight_bytes);
    Encoded::new(inner, spool(settings)).with_memory_cap(most)
}

/// Returns the rule by which new values are compressed; `None` where compression is off.
pub(crate) fn compression(settings: &StorageSettings) -> Option<Compression> {
    let given = settings.compression.as_ref()?;
    let codec = Codec::named(&given.algorithm)?;
    let level = given.level.unwrap_or(codec.default_level()).clamp(1, codec.best_level());
    Some(Compression { codec, level, threshold: given.threshold })
}
