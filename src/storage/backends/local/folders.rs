//! Folders below the root: made when missing, synced so that what is in them can be found after a power cut.

use std::collections::HashSet;
use std::fs::{self, File};
use std::io;
use std::os::unix::fs::MetadataExt as _;
use std::path::{Path, PathBuf};
use std::sync::{Mutex, MutexGuard, PoisonError};

/// Most folders remembered; beyond it all are forgotten, which costs a few more syncs.
const REMEMBERED: usize = 65_536;

/// Remembers which folders have been synced up to the root by this process.
///
/// A folder that another process made a moment ago can be seen but may not yet be on stable storage, so existing is not
/// enough: the first write into a folder syncs the whole chain. Nothing of this program removes a folder.
#[derive(Debug)]
pub(super) struct Folders {
    root: PathBuf,
    durable: Mutex<HashSet<PathBuf>>,
}

impl Folders {
    pub(super) fn new(root: PathBuf) -> Self {
        Self { root, durable: Mutex::default() }
    }

    /// Makes the folder and what is missing above it; [`Folders::sync`] makes that last.
    pub(super) fn create(&self, folder: &Path) -> io::Result<()> {
        {
            let mut durable = self.durable();
            for ancestor in folder.ancestors() {
                durable.remove(ancestor);
            }
        }
        create_again(folder)
    }

    /// Syncs the names in a folder, and once the folder's own name and those above it.
    pub(super) fn sync(&self, folder: &Path) -> io::Result<()> {
        sync_folder(folder)?;
        if self.durable().contains(folder) {
            return Ok(());
        }
        for ancestor in folder.ancestors().skip(1).take_while(|ancestor| ancestor.starts_with(&self.root)) {
            sync_folder(ancestor)?;
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

/// Syncs a folder and all above it on its file system, from below; what is above a mount point is its operator's.
///
/// Also those that were there: whoever made one may have been killed before it synced it.
pub(super) fn sync_chain(folder: &Path, sync: impl Fn(&Path) -> io::Result<()>) -> io::Result<()> {
    let device = fs::metadata(folder)?.dev();
    sync(folder)?;
    for ancestor in folder.ancestors().skip(1) {
        if fs::metadata(ancestor)?.dev() != device {
            break;
        }
        match sync(ancestor) {
            // One that this user cannot read is hardly one that this program made.
            Err(error) if error.kind() == io::ErrorKind::PermissionDenied => {}
            result => result?,
        }
    }
    Ok(())
}

/// Makes a folder that was not there; that somebody removes what is above it meanwhile is left to the next try.
pub(super) fn create_again(folder: &Path) -> io::Result<()> {
    match fs::create_dir_all(folder) {
        Err(error) if error.kind() == io::ErrorKind::NotFound => Ok(()),
        result => result,
    }
}

pub(super) fn sync_folder(folder: &Path) -> io::Result<()> {
    File::open(folder)?.sync_all()
}

#[cfg(test)]
mod tests {
    use std::cell::RefCell;

    use super::*;

    #[test]
    fn folders_that_were_there_are_synced_up_to_the_mount_point() {
        let place = tempfile::tempdir().unwrap();
        let root = place.path().canonicalize().unwrap().join("storage/objects");
        fs::create_dir_all(&root).unwrap();
        let synced = RefCell::new(Vec::new());
        sync_chain(&root, |folder| {
            synced.borrow_mut().push(folder.to_owned());
            sync_folder(folder)
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
