//! The quarantine: pending writes that lost a conflict, moved out of the keys and otherwise unchanged.
//!
//! Each write has a root of its own, `#aside/<generation>`, and below it the path that its key has in every root. So
//! its header still names its key, and the same code reads it.

use std::fs;
use std::io;
use std::path::{Path, PathBuf};

use uuid::Uuid;

use super::write::Needs;
use super::{Local, Root, fault, list, names, path, read};
use crate::storage::backend::Page;
use crate::storage::error::{ErrorKind, Operation, Result};
use crate::storage::object::{Attributes, Key};

/// One object in quarantine.
#[derive(Debug)]
pub(in crate::storage) struct Quarantined {
    pub(in crate::storage) key: Key,
    pub(in crate::storage) path: PathBuf,
    /// The attributes; `None` where the file is damaged.
    pub(in crate::storage) attributes: Option<Attributes>,
}

impl Local {
    /// Moves exactly this state of the key to quarantine and returns its new path, or `None` when the key has another
    /// state.
    pub(in crate::storage) async fn quarantine(&self, key: &Key, generation: String) -> Result<Option<PathBuf>> {
        let key = key.clone();
        self.run(Operation::Store, false, move |root| root.quarantine(&key, &generation)).await
    }

    /// Lists the objects in quarantine.
    pub(in crate::storage) async fn quarantined(&self) -> Result<Vec<Quarantined>> {
        self.run(Operation::List, false, Root::quarantined).await
    }
}

impl Root {
    fn quarantine(&self, key: &Key, generation: &str) -> Result<Option<PathBuf>> {
        let from = self.path(key);
        let to = self.root.join(names::QUARANTINE).join(name(generation)).join(path::encode(key));
        let folder = to.parent().unwrap_or(&self.root);
        let failed = |error| fault(Operation::Store, Some(key), &to, error);
        let mut tries = 0;
        loop {
            self.folders.create(folder).map_err(failed)?;
            let needs = Needs::State(Some(generation));
            let moved = match self.commit(key, needs, Operation::Store, || Ok(fs::rename(&from, &to))) {
                Err(error) if error.kind == ErrorKind::Precondition => return Ok(None),
                moved => moved?,
            };
            tries += 1;
            match moved {
                Ok(()) => break,
                // Somebody removed the folder.
                Err(error) if error.kind() == io::ErrorKind::NotFound && tries < super::TRIES => {}
                Err(error) => return Err(failed(error)),
            }
        }
        self.sync(folder).map_err(failed)?;
        self.sync(from.parent().unwrap_or(&self.root)).map_err(failed)?;
        Ok(Some(to))
    }

    fn quarantined(&self) -> Result<Vec<Quarantined>> {
        let top = self.root.join(names::QUARANTINE);
        let failed = |path: &Path, error| fault(Operation::List, None, path, error);
        let folders = match fs::read_dir(&top) {
            Err(error) if error.kind() == io::ErrorKind::NotFound => return Ok(Vec::new()),
            folders => folders.map_err(|error| failed(&top, error))?,
        };
        let mut all = Vec::new();
        for folder in folders {
            let folder = folder.map_err(|error| failed(&top, error))?;
            if !folder.file_type().map_err(|error| failed(&top, error))?.is_dir() {
                continue;
            }
            let folder = folder.path();
            for key in list::walk(&folder, &Page::default()).map_err(|error| failed(&folder, error))?.keys {
                let path = folder.join(path::encode(&key));
                let attributes = match read::attributes(&path, &key) {
                    // Somebody removed the object after the walk.
                    Ok(None) => continue,
                    Ok(attributes) => attributes,
                    Err(_) => None,
                };
                all.push(Quarantined { key, path, attributes });
            }
        }
        all.sort_unstable_by(|one, other| (&one.key, &one.path).cmp(&(&other.key, &other.path)));
        Ok(all)
    }
}

/// Returns the folder name for a generation: the generation itself where it can be a name, else a UUID made from it.
fn name(generation: &str) -> String {
    let plain = generation.bytes().all(|byte| byte.is_ascii_alphanumeric() || byte == b'-');
    if plain && (1..=40).contains(&generation.len()) {
        generation.to_owned()
    } else {
        Uuid::new_v5(&Uuid::NAMESPACE_OID, generation.as_bytes()).simple().to_string()
    }
}
