//! The kind of a file system, which tells whether the times of its files prove that they have not changed.

use std::fmt;
use std::path::Path;

use rustix::fs::FsWord;

/// The number of a tmpfs.
const TMPFS: FsWord = 0x0102_1994;

/// Numbers (`f_type` of `statfs`, from `linux/magic.h` and the file systems themselves) and names, and whether this
/// machine alone changes the files, so that it always knows their times.
const KNOWN: &[(FsWord, &str, bool)] = &[
    (0xef53, "ext2, ext3 or ext4", true),
    (0x5846_5342, "XFS", true),
    (0x9123_683e, "Btrfs", true),
    (TMPFS, "tmpfs", true),
    (0x8584_58f6, "ramfs", true),
    (0x2fc1_2fc1, "ZFS", true),
    (0xf2f5_2010, "F2FS", true),
    (0x794c_7630, "OverlayFS", true),
    (0xca45_1a4e, "bcachefs", true),
    (0x3153_464a, "JFS", true),
    (0x3434, "NILFS2", true),
    (0x6969, "NFS", false),
    (0x517b, "SMB", false),
    (0xff53_4d42, "CIFS", false),
    (0xfe53_4d42, "SMB 2", false),
    (0x6573_5546, "FUSE", false),
    (0x0102_1997, "9P", false),
    (0x00c3_6400, "Ceph", false),
    (0x5346_414f, "AFS", false),
    (0x7375_7245, "Coda", false),
    (0x0bd0_0bd0, "Lustre", false),
    (0x4750_4653, "GPFS", false),
    (0x0116_1970, "GFS2", false),
    (0x7461_636f, "OCFS2", false),
];

/// The kind of a file system by its number; the default is one that cannot be told.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub(super) struct FileSystem(Option<FsWord>);

impl FileSystem {
    /// Looks at the file system of a folder.
    pub(super) fn of(folder: &Path) -> Self {
        Self(rustix::fs::statfs(folder).map(|found| found.f_type).ok())
    }

    /// Tells whether it is known that only this machine changes the files.
    pub(super) fn is_local(self) -> bool {
        self.known().is_some_and(|(_, is_local)| is_local)
    }

    pub(super) fn is_tmpfs(self) -> bool {
        self.0 == Some(TMPFS)
    }

    fn known(self) -> Option<(&'static str, bool)> {
        let known = KNOWN.iter().find(|(number, ..)| Some(*number) == self.0);
        known.map(|(_, name, is_local)| (*name, *is_local))
    }
}

impl fmt::Display for FileSystem {
    fn fmt(&self, formatter: &mut fmt::Formatter<'_>) -> fmt::Result {
        match (self.known(), self.0) {
            (Some((name, _)), _) => formatter.write_str(name),
            (None, Some(number)) => write!(formatter, "a file system of unknown kind (number {number:#x})"),
            (None, None) => formatter.write_str("a file system whose kind cannot be told"),
        }
    }
}

#[cfg(test)]
mod tests {
    use std::collections::HashSet;

    use super::*;

    #[test]
    fn only_a_known_local_file_system_is_local() {
        let kind = |number| FileSystem(Some(number));
        assert!(kind(0xef53).is_local() && kind(TMPFS).is_local() && kind(TMPFS).is_tmpfs());
        assert!(!kind(0x6969).is_local() && !kind(0x6573_5546).is_local() && !kind(0xef53).is_tmpfs());
        assert!(!kind(0x1234_5678).is_local() && !FileSystem::default().is_local(), "an unknown one is not trusted");
        assert_eq!(kind(0x6969).to_string(), "NFS");
        assert!(kind(0x1234_5678).to_string().contains("0x12345678"));
        let numbers: HashSet<_> = KNOWN.iter().map(|(number, ..)| number).collect();
        assert_eq!(numbers.len(), KNOWN.len());
    }
}
