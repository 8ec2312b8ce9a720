//! Folders below the root: made when missing, synced so that what is in them can be found after a power cut.

use std::collections::HashSet;
use std::fs::{self, File};
use std::io;
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

/// Makes a folder and all missing ones above it, each on stable storage before this returns.
pub(super) fn create_durably(folder: &Path) -> io::Result<()> {
    let folder = std::path::absolute(folder)?;
    let missing: Vec<_> = folder.ancestors().take_while(|ancestor| !ancestor.exists()).collect();
    fs::create_dir_all(&folder)?;
    sync_folder(&folder)?;
    missing.into_iter().filter_map(Path::parent).try_for_each(sync_folder)
}

/// Makes a folder that was not there; that somebody removes what is above it meanwhile is left to the next try.
pub(super) fn create_again(folder: &Path) -> io::Result<()> {
    match fs::create_dir_all(folder) {
        Err(error) if error.kind() == io::ErrorKind::NotFound => Ok(()),
        result => result,
    }
}

fn sync_folder(folder: &Path) -> io::Result<()> {
    File::open(folder)?.sync_all()
}
