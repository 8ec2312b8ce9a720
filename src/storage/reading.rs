//! Reads one object of a backend as the bytes of its value.

use jiff::Timestamp;

use crate::storage::backend::{Backend, GetOptions};
use crate::storage::error::{Error, ErrorKind, Operation, Result};
use crate::storage::object::{Attributes, Key, Object};

/// Reads the attributes of an object that has not expired.
pub(super) async fn live(backend: &dyn Backend, key: &Key) -> Result<Option<Attributes>> {
    let attributes = backend.stat(key).await?;
    Ok(attributes.filter(|attributes| !attributes.is_expired(Timestamp::now())))
}

/// Reads an object that has not expired. The payload has the requested bytes of the value.
pub(super) async fn read(backend: &dyn Backend, key: &Key, options: GetOptions) -> Result<Option<Object>> {
    let is_version = options.version.is_some();
    let found = match backend.get(key, options).await {
        // A refused object may have expired. Then the key has no object that could be refused.
        Err(error) if error.kind == ErrorKind::Invalid && !is_version => match live(backend, key).await {
            Ok(None) => None,
            Ok(Some(_)) => return Err(error),
            Err(fault) => return Err(fault.during(Operation::Retrieve)),
        },
        found => found?,
    };
    let Some(object) = found.filter(|object| !object.attributes.is_expired(Timestamp::now())) else { return Ok(None) };
    let attributes = &object.attributes;
    if attributes.info.decoded || object.payload.is_announced() {
        return Ok(Some(object));
    }
    if attributes.is_encoded() {
        return Err(damaged(key, "the object is encoded in a way that this store is not set up to decode"));
    }
    // The backend has verified the stored bytes, which are the bytes of the value here.
    if attributes.size != attributes.stored_size || attributes.checksum != attributes.stored_checksum {
        return Err(damaged(key, "the value's size or checksum does not match its bytes"));
    }
    Ok(Some(object))
}

/// Makes the error of an object whose bytes contradict its attributes.
pub(super) fn damaged(key: &Key, what: &str) -> Error {
    let remedy = "restore it from a backup or store it again";
    Error::new(ErrorKind::Integrity, Operation::Retrieve, Some(key), format!("{what}; {remedy}"))
}
