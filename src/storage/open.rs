//! Reading one live object of a backend as a value's own bytes.

use jiff::Timestamp;

use super::{Attributes, Backend, Error, ErrorKind, Key, Object, Operation, Result, Want};

/// Reads the attributes of an object that has not expired.
pub(super) async fn live(backend: &dyn Backend, key: &Key) -> Result<Option<Attributes>> {
    let attributes = backend.stat(key).await?;
    Ok(attributes.filter(|attributes| !attributes.is_expired(Timestamp::now())))
}

/// Reads an object that has not expired; its payload is what is wanted of the value's bytes.
pub(super) async fn open(backend: &dyn Backend, key: &Key, want: Want) -> Result<Option<Object>> {
    let found = match backend.get(key, want).await {
        // What was refused may have expired, and then it is not there to be refused.
        Err(error) if error.kind == ErrorKind::Invalid => match live(backend, key).await {
            Ok(None) => None,
            Ok(Some(_)) => return Err(error),
            Err(fault) => return Err(fault.during(Operation::Retrieve)),
        },
        found => found?,
    };
    let Some(object) = found.filter(|it| !it.attributes.is_expired(Timestamp::now())) else { return Ok(None) };
    let attributes = &object.attributes;
    if attributes.compression.is_some() || attributes.encrypted {
        return Err(damaged(key, "the object is compressed or encrypted in a way this engine cannot undo"));
    }
    // The backend vouches for the bytes kept, which here are the value's bytes.
    if attributes.size != attributes.stored_size || attributes.checksum != attributes.stored_checksum {
        return Err(damaged(key, "the value's size or checksum does not match its bytes"));
    }
    Ok(Some(object))
}

/// Makes the error of an object that cannot be read as what it says it is.
pub(super) fn damaged(key: &Key, what: &str) -> Error {
    let mend = "restore it from a backup or store it again";
    Error::new(ErrorKind::Integrity, Operation::Retrieve, Some(key), format!("{what}; {mend}"))
}
