//! The identity of one version of a file, by which a reader knows that a file has not changed.

use std::fmt;
use std::fs;
use std::os::unix::fs::MetadataExt as _;
use std::path::Path;
use std::time::{Duration, SystemTime, UNIX_EPOCH};

use crate::storage::object::Key;

/// The age below which the times of a file prove nothing. The clock of a file system ticks every 1 to 10 ms, and two
/// changes within one tick can have the same times.
const TICK: Duration = Duration::from_millis(20);

/// The longest tick of a file system that stores times of whole seconds: ext3, ext4 with inodes of 128 bytes, or two
/// seconds with FAT.
const LONG_TICK: Duration = Duration::from_secs(2);

/// Identifies one version of a file, without links.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct FileIdentity {
    /// The device and the inode.
    pub inode: (u64, u64),
    /// The number of bytes.
    pub size: u64,
    /// The time of the last change of the bytes: seconds and nanoseconds since 1970.
    pub modified: (i64, i64),
    /// The time of the last change of the bytes, the name or the attributes, which no program can set.
    pub changed: (i64, i64),
}

impl FileIdentity {
    /// Reads the identity of a file; `None` where there is none, or where it cannot be looked at.
    pub(in crate::storage) fn of(path: &Path) -> Option<Self> {
        let found = fs::symlink_metadata(path).ok()?;
        Some(Self {
            inode: (found.dev(), found.ino()),
            size: found.size(),
            modified: (found.mtime(), found.mtime_nsec()),
            changed: (found.ctime(), found.ctime_nsec()),
        })
    }

    /// Tells whether every change after this moment gives the file another identity.
    ///
    /// A file that changed less than 20 ms before may change again within the same tick of the clock; one whose times are
    /// whole seconds, up to 2 s after. So may one whose time lies in the future, because the clock was set back.
    #[must_use]
    pub fn is_settled(&self, now: SystemTime) -> bool {
        let (Ok(seconds), Ok(nanoseconds)) = (u64::try_from(self.changed.0), u32::try_from(self.changed.1)) else {
            return false;
        };
        let changed = UNIX_EPOCH.checked_add(Duration::new(seconds, nanoseconds));
        let age = changed.and_then(|changed| now.duration_since(changed).ok());
        let has_whole_seconds = (self.modified.1, self.changed.1) == (0, 0);
        age.is_some_and(|age| if has_whole_seconds { age > LONG_TICK } else { age >= TICK })
    }
}

/// Tells which version of its file a key has.
pub trait FileIdentities: fmt::Debug + Send + Sync + 'static {
    /// Returns the identity of the key's file now; `None` where there is no file, or where its identity proves nothing.
    ///
    /// Blocks for one system call, which does not wait for a device once the file was read.
    fn identity(&self, key: &Key) -> Option<FileIdentity>;
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn every_change_of_a_file_gives_another_identity() {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("file");
        assert_eq!(FileIdentity::of(&path), None);
        let write = |text: &str| {
            fs::write(folder.path().join("new"), text).unwrap();
            fs::rename(folder.path().join("new"), &path).unwrap();
            std::thread::sleep(TICK);
            FileIdentity::of(&path).unwrap()
        };
        let first = write("one");
        assert_eq!(FileIdentity::of(&path), Some(first));
        let second = write("one");
        assert_ne!(first, second, "the same bytes in a new file");
        fs::write(&path, "two").unwrap();
        let third = FileIdentity::of(&path).unwrap();
        assert_ne!(second, third, "other bytes in the same file");
        std::thread::sleep(TICK);
        fs::File::options().append(true).open(&path).unwrap().set_modified(UNIX_EPOCH).unwrap();
        assert_ne!(third, FileIdentity::of(&path).unwrap(), "a time of the bytes that a program has set");
    }

    #[test]
    fn a_file_is_settled_twenty_milliseconds_after_its_change() {
        let identity = FileIdentity { inode: (1, 2), size: 3, modified: (0, 0), changed: (1_000, 500_000_000) };
        let at = |milliseconds| UNIX_EPOCH + Duration::from_millis(milliseconds);
        assert!(!identity.is_settled(at(999_000)) && !identity.is_settled(at(1_000_519)));
        assert!(identity.is_settled(at(1_000_520)) && identity.is_settled(at(9_000_000)));
        assert!(!FileIdentity { changed: (-1, 0), ..identity }.is_settled(at(0)));
    }

    #[test]
    fn a_file_with_times_of_whole_seconds_settles_later() {
        let identity = FileIdentity { inode: (1, 2), size: 3, modified: (900, 0), changed: (1_000, 0) };
        let at = |milliseconds| UNIX_EPOCH + Duration::from_millis(milliseconds);
        assert!(!identity.is_settled(at(1_000_020)) && !identity.is_settled(at(1_002_000)));
        assert!(identity.is_settled(at(1_002_001)));
        let exact = FileIdentity { modified: (900, 1), ..identity };
        assert!(exact.is_settled(at(1_000_020)), "its change fell on a whole second by chance");
    }
}
