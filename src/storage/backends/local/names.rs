//! Names in the root that are no keys. Each begins with `#`, as no encoded key does.

/// Folder of files that are being written.
pub(super) const TEMPORARY: &str = "#tmp";

/// Final name of the file that a probe begins; no file ever has it.
pub(super) const PROBE: &str = "#probe";

/// Folder of the lock files.
pub(super) const LOCKS: &str = "#locks";

/// Folder of the quarantine.
pub(super) const QUARANTINE: &str = "#aside";

/// File that contains the writer id of an overlay.
pub(super) const WRITER_ID: &str = "#origin";

/// File that names the bucket of an overlay, for people.
pub(super) const BUCKET: &str = "#bucket";
