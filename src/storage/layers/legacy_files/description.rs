//! The attributes of a file: what its state, its sidecar and its first bytes say.

use std::fs::{File, Metadata};
use std::io;
use std::os::unix::fs::{FileExt as _, MetadataExt as _};

use jiff::Timestamp;

use crate::storage::legacy::{CONTENT_TYPE, Sidecar, content_type, is_python_gzip};
use crate::storage::object::{Attributes, Checksum, Foreign, Kind, LegacyFile, ObjectInfo};

/// The first bytes that are looked at.
const BEGIN: usize = 10;

/// The sidecar of a file.
#[derive(Clone, Debug)]
pub(super) enum Beside {
    Nothing,
    Sidecar(Sidecar),
    /// A file that is no sidecar.
    Unreadable,
}

/// Returns the generation of a file: a token of its state.
pub(super) fn generation(state: &Metadata) -> String {
    let (modified, changed) = ((state.mtime(), state.mtime_nsec()), (state.ctime(), state.ctime_nsec()));
    let (inode, size) = (state.ino(), state.size());
    format!("python-{inode:x}-{size:x}-{:x}.{:x}-{:x}.{:x}", modified.0, modified.1, changed.0, changed.1)
}

/// Returns the attributes of a file except its checksum.
///
/// `is_shared` tells whether other files have the same sidecar; it is asked only where the sidecar contradicts the file.
pub(super) fn attributes(
    file: &File,
    state: &Metadata,
    beside: Beside,
    is_shared: impl FnOnce() -> io::Result<bool>,
) -> io::Result<Attributes> {
    let size = state.size();
    let mut legacy = LegacyFile { unreadable_sidecar: matches!(beside, Beside::Unreadable), ..LegacyFile::default() };
    let sidecar = match beside {
        Beside::Sidecar(sidecar) => sidecar,
        Beside::Nothing | Beside::Unreadable => Sidecar::default(),
    };
    let mut begin = [0; BEGIN];
    let mut end = [0; 4];
    let long = size >= BEGIN as u64;
    if long {
        file.read_exact_at(&mut begin, 0)?;
        file.read_exact_at(&mut end, size - 4)?;
    }
    let like_gzip = long && is_python_gzip(&begin, end);
    let packed = match sidecar.compressed {
        Some(true) if begin.starts_with(&[0x1f, 0x8b]) => true,
        // The class wrote the sidecar of another file there, or the file is damaged.
        Some(true) => !is_shared()?,
        Some(false) if like_gzip => {
            legacy.assumed_gzip = is_shared()?;
            legacy.assumed_gzip
        }
        Some(false) => false,
        None => {
            legacy.assumed_gzip = like_gzip;
            like_gzip
        }
    };
    let named = sidecar.metadata.as_deref().and_then(content_type);
    legacy.untyped = named.is_none();
    let written = Timestamp::new(state.mtime(), i32::try_from(state.mtime_nsec()).unwrap_or(0));
    Ok(Attributes {
        generation: generation(state),
        metadata: sidecar.metadata,
        stored_at: written.unwrap_or(Timestamp::UNIX_EPOCH),
        compression: packed.then(|| "gzip".to_owned()),
        foreign: Foreign { other_tool: true, ..Foreign::default() },
        info: ObjectInfo { legacy: Some(legacy), ..ObjectInfo::default() },
        ..Attributes::new(Kind::Text, named.unwrap_or_else(|| CONTENT_TYPE.to_owned()), size, Checksum::of(&[]))
    })
}
