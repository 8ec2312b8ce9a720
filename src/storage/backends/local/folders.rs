//! Folders below the root: created when missing, and synced so that their files can be found after a power failure.

use std::collections::HashSet;
use std::fs;
use std::io;
use std::os::unix::fs::MetadataExt as _;
use std::path::{Path, PathBuf};
use std::sync::{Mutex, MutexGuard, PoisonError};

use crate::storage::files::folder;

/// The largest number of folders that are remembered. Beyond it all are forgotten, which costs a few more syncs.
const REMEMBERED: usize = 65_536;

/// Remembers which folders this process has synced up to the root.
///
/// A folder that another process has just created can be seen but may not yet be on stable storage. So the first write
/// into a folder syncs the whole chain, even if the folder exists. This program removes no folders.
#[derive(Debug)]
pub(super) struct Folders {
    root: PathBuf,
    durable: Mutex<HashSet<PathBuf>>,
}

impl Folders {
    pub(super) fn new(root: PathBuf) -> Self {
        Self { root, durable: Mutex::default() }
    }

    /// Creates the folder and the missing folders above it. [`Folders::sync`] makes them durable.
    pub(super) fn create(&self, folder: &Path) -> io::Result<()> {
        {
            let mut durable = self.durable();
            for ancestor in folder.ancestors() {
                durable.remove(ancestor);
            }
        }
        folder::create(folder)
    }

    /// Syncs the names in a folder and, once in the life of the process, the folder's own name and those above it.
    pub(super) fn sync(&self, folder: &Path) -> io::Result<()> {
        folder::sync(folder)?;
        if self.durable().contains(folder) {
            return Ok(());
        }
        for ancestor in folder.ancestors().skip(1).take_while(|ancestor| ancestor.starts_with(&self.root)) {
            folder::sync(ancestor)?;
        }
        let mut durable = self.durable();
        if durable.len() >= REMEMBERED {
            durable.clear();
        }
        durable.insert(folder.to_owned());
        Ok(())
    }

    fn durable(&self) -> MutexGuard<'_, HashSet<PathBuf>> {
        self.durable.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

/// Syncs a folder and all folders above it on its file system, from below. Folders above a mount point are the
/// operator's.
///
/// Existing folders are synced, too: the process that created one may have been killed before the sync.
pub(super) fn sync_chain(folder: &Path, sync: impl Fn(&Path) -> io::Result<()>) -> io::Result<()> {
    let device = fs::metadata(folder)?.dev();
    sync(folder)?;
    for ancestor in folder.ancestors().skip(1) {
        if fs::metadata(ancestor)?.dev() != device {
            break;
        }
        match sync(ancestor) {
            // A folder that this user cannot read was hardly created by this program.
            Err(error) if error.kind() == io::ErrorKind::PermissionDenied => {}
            result => result?,
        }
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use std::cell::RefCell;

    use super::*;

    #[test]
    fn existing_folders_are_synced_up_to_the_mount_point() {
        let place = tempfile::tempdir().unwrap();
        let root = place.path().canonicalize().unwrap().join("storage/objects");
        fs::create_dir_all(&root).unwrap();
        let synced = RefCell::new(Vec::new());
        sync_chain(&root, |folder| {
            synced.borrow_mut().push(folder.to_owned());
            folder::sync(folder)
        })
        .unwrap();
        let synced = synced.into_inner();
        let chain: Vec<_> = root.ancestors().take(synced.len()).collect();
        assert!(synced == chain && synced.len() >= 3, "{synced:?}");
    }

    #[test]
    fn only_the_folder_itself_must_be_readable() {
        let place = tempfile::tempdir().unwrap();
        let root = place.path().canonicalize().unwrap();
        let refuse = |refused: &Path| {
            let refused = refused.to_owned();
            move |folder: &Path| if folder == refused { Err(io::ErrorKind::PermissionDenied.into()) } else { Ok(()) }
        };
        assert!(sync_chain(&root, refuse(root.parent().unwrap())).is_ok());
        assert!(sync_chain(&root, refuse(&root)).is_err());
    }
}
