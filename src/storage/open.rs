//! Reading one live object of a backend as a value's own bytes.

use jiff::Timestamp;

use super::unpack::{self, unpack};
use super::{Attributes, Backend, Error, ErrorKind, Key, Object, Operation, Result, Spool, Want};

/// Reads the attributes of an object that has not expired.
pub(super) async fn live(backend: &dyn Backend, key: &Key) -> Result<Option<Attributes>> {
    let attributes = backend.stat(key).await?;
    Ok(attributes.filter(|attributes| !attributes.is_expired(Timestamp::now())))
}

/// Reads an object that has not expired; its payload is what is wanted of the value's bytes. What is unpacked is spooled.
pub(super) async fn open(backend: &dyn Backend, key: &Key, want: Want, spool: &Spool) -> Result<Option<Object>> {
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
    if attributes.encrypted {
        return Err(damaged(key, "the object is encrypted in a way this engine cannot undo"));
    }
    if let Some(codec) = attributes.compression.clone() {
        return unpacked(backend, key, want, object, &codec, spool).await;
    }
    // The backend vouches for the bytes kept, which here are the value's bytes.
    if attributes.size != attributes.stored_size || attributes.checksum != attributes.stored_checksum {
        return Err(damaged(key, "the value's size or checksum does not match its bytes"));
    }
    Ok(Some(object))
}

/// Unpacks an object; a range of one whose packing is unknown is one of its bytes as they are kept.
async fn unpacked(
    backend: &dyn Backend,
    key: &Key,
    want: Want,
    object: Object,
    codec: &str,
    spool: &Spool,
) -> Result<Option<Object>> {
    if !unpack::is_known(codec) {
        if want.range.is_some() {
            return Ok(Some(object));
        }
        let mend = "read its bytes as they are kept with `offset=0`, or correct the header with the bucket's own tool";
        let why = format!("the object's Content-Encoding is {codec:?}, which is not undone here; {mend}");
        return Err(Error::new(ErrorKind::Invalid, Operation::Retrieve, Some(key), why));
    }
    let (object, most) = match want.range {
        None => (object, want.limit),
        // A range counts in the bytes of the value, for which all that is kept is needed.
        Some(_) => match backend.get(key, Want { range: None, limit: None, spooled: true }).await? {
            Some(whole) => (whole, None),
            None => return Ok(None),
        },
    };
    let Object { mut attributes, payload } = object;
    let (payload, checksum) = unpack(key, codec, &payload, most, spool).await?;
    let size = payload.len();
    let of_kept = attributes.size == attributes.stored_size && attributes.checksum == attributes.stored_checksum;
    // Nobody knows the value's own size and checksum where another tool packed it.
    if !of_kept && (attributes.size, attributes.checksum) != (size, checksum) {
        return Err(damaged(key, "the value's size or checksum does not match what was unpacked"));
    }
    (attributes.size, attributes.checksum) = (size, checksum);
    let payload = match want.range {
        None => payload,
        Some(range) => {
            let end = range.length.map_or(size, |length| range.offset.saturating_add(length));
            payload.slice(range.offset..end)
        }
    };
    if let Some(limit) = want.limit.filter(|limit| payload.len() > *limit) {
        let why = format!("{} bytes are wanted, and {limit} may be read at once; read smaller parts", payload.len());
        return Err(Error::new(ErrorKind::Invalid, Operation::Retrieve, Some(key), why));
    }
    Ok(Some(Object { attributes, payload }))
}

/// Makes the error of an object that cannot be read as what it says it is.
pub(super) fn damaged(key: &Key, what: &str) -> Error {
    let mend = "restore it from a backup or store it again";
    Error::new(ErrorKind::Integrity, Operation::Retrieve, Some(key), format!("{what}; {mend}"))
}
