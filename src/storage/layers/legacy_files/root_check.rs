//! Remembers whether the root holds anything else than this program's own folders.

use std::fs;
use std::io;
use std::os::unix::fs::{DirEntryExt as _, MetadataExt as _};
use std::path::Path;
use std::sync::{Mutex, PoisonError};
use std::time::{Duration, SystemTime, UNIX_EPOCH};

use super::own::OwnEntries;
use crate::storage::legacy::names::LOST_AND_FOUND;

/// The age below which the times of a folder say nothing: the clock of a file system may tick only so often, and two
/// changes within one tick have the same times.
const TICK: Duration = Duration::from_millis(50);

/// The last look into the root.
#[derive(Debug, Default)]
pub(super) struct RootCheck(Mutex<Option<Look>>);

#[derive(Clone, Copy, Debug)]
struct Look {
    /// Device, inode, and the times of the last change of the folder and of its attributes.
    state: (u64, u64, [i64; 4]),
    found: bool,
}

impl RootCheck {
    /// Tells whether the root may hold old files; reads its entries only after they have changed. Blocks for a moment.
    ///
    /// A root that cannot be read may hold some: the operation that follows reports why it cannot be read.
    pub(super) fn look(&self, root: &Path, own: &OwnEntries) -> bool {
        let metadata = match fs::metadata(root) {
            Ok(metadata) => metadata,
            Err(error) => return error.kind() != io::ErrorKind::NotFound,
        };
        let times = [metadata.mtime(), metadata.mtime_nsec(), metadata.ctime(), metadata.ctime_nsec()];
        let state = (metadata.dev(), metadata.ino(), times);
        let mut last = self.0.lock().unwrap_or_else(PoisonError::into_inner);
        if let Some(look) = last.filter(|look| look.state == state) {
            return look.found;
        }
        let Ok(found) = has_others(root, own) else { return true };
        let changed = UNIX_EPOCH
            + Duration::new(metadata.ctime().try_into().unwrap_or(0), 0)
            + Duration::from_nanos(metadata.ctime_nsec().try_into().unwrap_or(0));
        let old = SystemTime::now().duration_since(changed).is_ok_and(|age| age > TICK);
        // What was found stays found until the folder changes; that nothing was found is believed only after a tick.
        *last = (found || old).then_some(Look { state, found });
        found
    }
}

fn has_others(root: &Path, own: &OwnEntries) -> io::Result<bool> {
    let files = own.files();
    for entry in fs::read_dir(root)? {
        let entry = entry?;
        let name = entry.file_name();
        if name == LOST_AND_FOUND || own.folders().iter().any(|own| name == *own) {
            continue;
        }
        if !name.to_str().is_some_and(|name| files.has_entry(root, name, entry.ino())) {
            return Ok(true);
        }
    }
    Ok(false)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn anything_but_own_folders_is_seen_as_soon_as_it_is_there() {
        let folder = tempfile::tempdir().unwrap();
        let root = folder.path().join("root");
        let check = RootCheck::default();
        let own = OwnEntries::new(&["objects"], &[root.join("key")]);
        let look = || check.look(&root, &own);
        assert!(!look(), "there is no root yet");
        for own in ["objects/x", "lost+found"] {
            fs::create_dir_all(root.join(own)).unwrap();
        }
        fs::write(root.join("key"), "").unwrap();
        assert!(!look());
        // Within one tick and after it.
        for wait in [Duration::ZERO, 3 * TICK] {
            std::thread::sleep(wait);
            assert!(!look() && !look());
            fs::write(root.join("a"), "").unwrap();
            assert!(look() && look());
            fs::remove_file(root.join("a")).unwrap();
            assert!(!look());
        }
        assert!(check.0.lock().unwrap().is_none(), "the last change is too young to be remembered");
        std::thread::sleep(3 * TICK);
        look();
        assert!(check.0.lock().unwrap().is_some());
        fs::write(root.join("objects/y"), "").unwrap();
        assert!(!look());
    }
}
