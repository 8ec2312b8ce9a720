//! Conflicts: two states of one key whose writers did not know of each other.

use std::path::PathBuf;

use jiff::{SignedDuration, Timestamp};

use crate::storage::backends::local::Quarantined;
use crate::storage::object::{Attributes, Key};

/// A pending write that lost against a change of the same key in the bucket. Its file is kept in quarantine.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Conflict {
    /// The key, under which the bucket has the other state.
    pub key: Key,
    /// The file in quarantine: a header line and the payload, as of every local object.
    pub path: PathBuf,
    /// When the write was stored; `None` where the file is damaged.
    pub stored_at: Option<Timestamp>,
    /// The number of bytes of its payload; 0 where the file is damaged.
    pub size: u64,
}

impl From<Quarantined> for Conflict {
    fn from(quarantined: Quarantined) -> Self {
        let Quarantined { key, path, attributes } = quarantined;
        let size = attributes.as_ref().map_or(0, |attributes| attributes.stored_size);
        Self { key, path, stored_at: attributes.map(|attributes| attributes.stored_at), size }
    }
}

/// The relation of the bucket's object to a pending entry.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Relation {
    /// The object is the entry itself, or was written by an earlier attempt of the same command.
    Same,
    /// The entry was written later and replaces the object.
    Older,
    /// Somebody else wrote the object after the entry.
    Newer,
}

/// Tells which of the two was written later. `skew` is how much the bucket's clock is ahead of this machine's.
///
/// Workers that share the overlay stamp by the same clock or by clocks close to each other, so their stamps can be
/// compared. For objects of everybody else only the bucket's own time of receipt is trusted.
pub(super) fn compare(entry: &Attributes, present: &Attributes, skew: SignedDuration) -> Relation {
    if present.generation == entry.generation {
        return Relation::Same;
    }
    let written_at = if present.writer_id.is_some() && present.writer_id == entry.writer_id {
        present.stored_at
    } else {
        present
            .received_at()
            .map_or(present.stored_at, |received_at| received_at.checked_sub(skew).unwrap_or(received_at))
    };
    if written_at <= entry.stored_at {
        return Relation::Older;
    }
    if entry.is_same_write(present, Some(entry.stored_at)) { Relation::Same } else { Relation::Newer }
}
