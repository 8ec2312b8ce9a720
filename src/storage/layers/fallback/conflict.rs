//! Two states of one key that were written without knowing of each other.

use std::path::PathBuf;

use jiff::{SignedDuration, Timestamp};

use crate::storage::backends::local::Quarantined;
use crate::storage::object::{Attributes, Key};

/// A write that lost against what somebody else had put into the bucket meanwhile; its file is kept.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Conflict {
    /// Its key, under which the bucket has the other one.
    pub key: Key,
    /// The file: a header line and the payload, as every local object.
    pub path: PathBuf,
    /// When it was stored; nothing where the file is damaged.
    pub stored_at: Option<Timestamp>,
    /// Bytes of its payload; 0 where the file is damaged.
    pub size: u64,
}

impl From<Quarantined> for Conflict {
    fn from(aside: Quarantined) -> Self {
        let Quarantined { key, path, attributes } = aside;
        let size = attributes.as_ref().map_or(0, |attributes| attributes.stored_size);
        Self { key, path, stored_at: attributes.map(|attributes| attributes.stored_at), size }
    }
}

/// What the bucket's object is to an entry that is to be sent.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Standing {
    /// It is the entry itself, or an earlier try of the same command.
    Same,
    /// The entry came later and takes its place.
    Older,
    /// Somebody else wrote it after the entry.
    Newer,
}

/// Tells who of the two came later; `skew` is how much the bucket's clock is ahead of ours.
///
/// Whoever shares the overlay stamps by the same clock or one close to it, so stamps tell. Of everybody else only the
/// bucket's own time of receipt is to be trusted.
pub(super) fn compare(entry: &Attributes, present: &Attributes, skew: SignedDuration) -> Standing {
    if present.generation == entry.generation {
        return Standing::Same;
    }
    let written_at = if present.writer_id.is_some() && present.writer_id == entry.writer_id {
        present.stored_at
    } else {
        present
            .info
            .received_at
            .map_or(present.stored_at, |received_at| received_at.checked_sub(skew).unwrap_or(received_at))
    };
    if written_at <= entry.stored_at {
        return Standing::Older;
    }
    if entry.is_same_write(present, Some(entry.stored_at)) { Standing::Same } else { Standing::Newer }
}
