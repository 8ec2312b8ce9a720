//! The reasons why something is not encrypted or not decrypted, before they become errors of this room.

use std::io;

use aws_lc_rs::error::Unspecified;

use crate::storage::error::{Error, ErrorKind, Operation};
use crate::storage::files::spool::spool_fault;
use crate::storage::object::{Key, KeyId};
use crate::storage::reading::damaged;

/// The reason why something is not encrypted or not decrypted.
#[derive(Debug)]
pub(super) enum SealFault {
    /// The object is marked as encrypted, and nothing says how.
    NoEnvelope,
    /// The object was encrypted with a master key that is not configured.
    UnknownKey { id: KeyId, known: Vec<KeyId> },
    /// The data key does not open: the envelope was changed, or it belongs to an object of another name.
    WrongKey(KeyId),
    /// The data key is not the one for which the envelope was made.
    Uncommitted,
    /// The sealed attributes do not belong to what stands beside them.
    WrongAttributes,
    /// The sealed attributes open, and they are not what this version writes.
    UnknownAttributes(serde_json::Error),
    /// No payload has this number of bytes.
    WrongLength(u64),
    /// A chunk does not open in its place.
    WrongChunk(u64),
    /// A payload in a file is not the one of the attributes any more.
    Changed,
    /// A payload in a file cannot be read.
    Unread(io::Error),
    /// The disk of the spool failed.
    Spool(io::Error),
    /// The cryptographic library failed, or the system gave no random bytes.
    Library,
}

impl SealFault {
    /// Makes the error of an operation on this object.
    pub(super) fn into_error(self, operation: Operation, name: &Key) -> Error {
        let integrity = |what: &str| damaged(name, what).during(operation);
        match self {
            Self::NoEnvelope => integrity("the object says that it is encrypted, and not how"),
            Self::UnknownKey { id, known } => {
                let known: Vec<String> = known.iter().map(KeyId::to_string).collect();
                let state =
                    if known.is_empty() { "is not set".to_owned() } else { format!("has {}", known.join(", ")) };
                let why = format!(
                    "the object is encrypted with the key {id}, and `encryption_key` {state}; add the key {id} to \
                     `encryption_key`, behind the first"
                );
                Error::new(ErrorKind::Integrity, operation, Some(name), why)
            }
            Self::WrongKey(id) => integrity(&format!(
                "the object's data key does not open with the key {id}: the object was changed, or renamed or copied \
                 without this program"
            )),
            Self::Uncommitted => integrity("the object's data key does not match its commitment"),
            Self::WrongAttributes => integrity(
                "the sealed attributes do not match the object's name, kind, size, compression and content type",
            ),
            Self::UnknownAttributes(error) => {
                // The text of the error may quote what is sealed; its place does not.
                let (line, column) = (error.line(), error.column());
                integrity(&format!("the sealed attributes cannot be read (line {line}, column {column})"))
            }
            Self::WrongLength(length) => integrity(&format!("no encrypted value has {length} bytes")),
            Self::WrongChunk(number) => integrity(&format!(
                "chunk {number} of the encrypted value was changed, or the value was cut, extended or reordered"
            )),
            Self::Changed => {
                let why = "the source changed while it was stored; nothing was stored; store it again";
                Error::new(ErrorKind::Integrity, operation, Some(name), why)
            }
            Self::Unread(error) => Error::unread(operation, name, error),
            Self::Spool(error) => spool_fault(operation, Some(name), error),
            Self::Library => {
                let why = "the cryptographic library failed; try again, and restart the program if it stays so";
                Error::new(ErrorKind::Io, operation, Some(name), why)
            }
        }
    }
}

impl From<Unspecified> for SealFault {
    fn from(_: Unspecified) -> Self {
        Self::Library
    }
}
