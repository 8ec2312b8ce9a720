//! Names in the root that are no keys: each begins with `#`, which no encoded key does.

/// Folder of files in the making.
pub(super) const TEMPORARY: &str = "#tmp";

/// Folder of the lock files.
pub(super) const LOCKS: &str = "#locks";

/// Folder of the losers of conflicts.
pub(super) const QUARANTINE: &str = "#aside";

/// File that holds an overlay's id.
pub(super) const WRITER_ID: &str = "#origin";

/// File that names the bucket an overlay belongs to, for people.
pub(super) const BUCKET: &str = "#bucket";
