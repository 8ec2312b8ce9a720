//! Whether a file is still the one that was read.

use std::os::unix::fs::MetadataExt as _;
use std::path::Path;

/// Tells a file from its next version: device, inode, size, and when it was changed.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(in crate::storage) struct Stamp(u64, u64, u64, i64, i64);

impl Stamp {
    /// Looks at a file, through links; `None` where there is none.
    pub(in crate::storage) fn of(file: &Path) -> Option<Self> {
        let found = std::fs::metadata(file).ok()?;
        Some(Self(found.dev(), found.ino(), found.size(), found.ctime(), found.ctime_nsec()))
    }
}
