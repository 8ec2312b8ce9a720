//! Tells whether a file is still the version that was read.

use std::os::unix::fs::MetadataExt as _;
use std::path::Path;

/// Identifies one version of a file: device, inode, size and time of change.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(in crate::storage) struct Stamp(u64, u64, u64, i64, i64);

impl Stamp {
    /// Returns the stamp of a file, through links; `None` where no file exists.
    pub(in crate::storage) fn of(file: &Path) -> Option<Self> {
        let found = std::fs::metadata(file).ok()?;
        Some(Self(found.dev(), found.ino(), found.size(), found.ctime(), found.ctime_nsec()))
    }
}
