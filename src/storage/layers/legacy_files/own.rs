//! What lies in the root and is no value: this program's folders, and the files that its configuration names.

use std::collections::BTreeSet;
use std::fs::{self, Metadata};
use std::os::unix::fs::MetadataExt as _;
use std::path::{Path, PathBuf};

/// The parts of the root that belong to this program. None of them is ever a value, whatever the caller names.
#[derive(Clone, Debug, Default)]
pub struct OwnEntries {
    /// The names of folders in the root.
    folders: &'static [&'static str],
    /// The files that hold or are named by settings, anywhere. Many lie elsewhere, and some may not exist.
    files: Vec<PathBuf>,
}

impl OwnEntries {
    /// Takes the names of this program's folders in the root, and the paths of its configuration and secrets.
    #[must_use]
    pub fn new(folders: &'static [&'static str], files: &[PathBuf]) -> Self {
        Self { folders, files: files.iter().map(|file| place(file)).collect() }
    }

    pub(super) const fn folders(&self) -> &'static [&'static str] {
        self.folders
    }

    /// Looks which files those are at this moment. Blocks.
    pub(super) fn files(&self) -> OwnFiles<'_> {
        // The file at the path, which may be a link, and the one that it leads to.
        let states = self.files.iter().flat_map(|file| [fs::symlink_metadata(file), fs::metadata(file)]);
        OwnFiles { places: &self.files, found: states.flatten().map(|state| identity(&state)).collect() }
    }
}

/// The files of the configuration, as they are at one moment.
#[derive(Debug)]
pub(super) struct OwnFiles<'a> {
    /// Their paths, so that a file which comes into being or is replaced meanwhile is one, too.
    places: &'a [PathBuf],
    /// Devices and inodes, so that every other name of the file leads to it, too.
    found: BTreeSet<(u64, u64)>,
}

impl OwnFiles<'_> {
    /// Tells whether a file, of this state and in this folder, is one of them.
    pub(super) fn has(&self, folder: &Path, name: &str, state: &Metadata) -> bool {
        self.found.contains(&identity(state)) || self.has_place(folder, name)
    }

    /// Tells whether an entry of a folder, of this inode, is one of them. Looks at the entry only if it may be.
    pub(super) fn has_entry(&self, folder: &Path, name: &str, inode: u64) -> bool {
        let may_be = self.found.iter().any(|(_, found)| *found == inode);
        let is = || fs::symlink_metadata(folder.join(name)).is_ok_and(|state| self.found.contains(&identity(&state)));
        (may_be && is()) || self.has_place(folder, name)
    }

    fn has_place(&self, folder: &Path, name: &str) -> bool {
        let named = |place: &&PathBuf| place.file_name().is_some_and(|found| found == name);
        let mut named = self.places.iter().filter(named).peekable();
        // Most names are none of theirs, and need no system call.
        named.peek().is_some() && named.any(|path| *path == place(&folder.join(name)))
    }
}

fn identity(state: &Metadata) -> (u64, u64) {
    (state.dev(), state.ino())
}

/// Resolves the folder of a path, but not the file, which may be a link or missing.
fn place(path: &Path) -> PathBuf {
    let path = std::path::absolute(path).unwrap_or_else(|_| path.to_owned());
    match (path.parent().map(Path::canonicalize), path.file_name()) {
        (Some(Ok(folder)), Some(name)) => folder.join(name),
        _ => path,
    }
}

#[cfg(test)]
mod tests {
    use std::os::unix::fs::symlink;
    use std::sync::Arc;

    use super::super::{LegacyFiles, Survey};
    use super::*;
    use crate::storage::backend::{Backend as _, DeleteOptions, GetOptions, Page, PutOptions};
    use crate::storage::backends::Memory;
    use crate::storage::files::Spool;
    use crate::storage::object::{Attributes, Checksum, Key, Kind, Object};

    fn key(text: &str) -> Key {
        Key::parse(text).unwrap()
    }

    #[tokio::test]
    async fn files_of_the_configuration_are_no_values_by_whatever_name() {
        let (folder, outside) = (tempfile::tempdir().unwrap(), tempfile::tempdir().unwrap());
        let root = folder.path().join("root");
        fs::create_dir_all(root.join("secrets/..data")).unwrap();
        symlink(&root, folder.path().join("way")).unwrap();
        let secrets = ["filestorage.toml", "secrets/key.json", "secrets/..data/token", "hard", "value.metadata"];
        for secret in secrets {
            fs::write(root.join(secret), r#"{"secret": 1}"#).unwrap();
        }
        // A link in the root that leads out, one outside that leads into it, and a second name of a file.
        fs::write(outside.path().join("far"), "secret").unwrap();
        symlink(outside.path().join("far"), root.join("near")).unwrap();
        symlink(root.join("secrets/..data/token"), outside.path().join("token")).unwrap();
        fs::hard_link(root.join("hard"), outside.path().join("hard")).unwrap();
        for value in ["value", "secrets/value"] {
            fs::write(root.join(value), "old").unwrap();
        }
        let way = folder.path().join("way");
        let own = [
            root.join("filestorage.toml"),
            way.join("secrets/../secrets/key.json"),
            outside.path().join("token"),
            outside.path().join("hard"),
            root.join("near"),
            root.join("value.metadata"),
            root.join("secrets/later"),
        ];
        let spool = Spool::new(std::env::temp_dir());
        for root in [&root, &way] {
            let files = LegacyFiles::new(Arc::new(Memory::new()), root, OwnEntries::new(&[], &own), spool.clone());
            // One that is made later, and one that is replaced.
            fs::write(root.join("secrets/later"), "secret").unwrap();
            fs::write(root.join("new"), r#"{"secret": 2}"#).unwrap();
            fs::rename(root.join("new"), root.join("secrets/key.json")).unwrap();
            let listed = files.list(&Page::default()).await.unwrap();
            let listed: Vec<&str> = listed.entries.iter().map(|entry| entry.key.as_str()).collect();
            assert_eq!(listed, ["secrets/value", "value"]);
            assert_eq!(files.survey().await.unwrap(), Survey { files: 2, ..Survey::default() });
            for name in secrets.into_iter().chain(["secrets/later", "near"]) {
                // A name with `..data` in it is a key like any other.
                let (key, path) = (key(name), root.join(name));
                let before = fs::read(&path).unwrap();
                assert!(files.get(&key, GetOptions::default()).await.unwrap().is_none(), "{name}");
                assert!(files.stat(&key).await.unwrap().is_none(), "{name}");
                assert!(files.lock(&key).await.unwrap().is_none(), "{name}");
                assert!(!files.delete(&key, &DeleteOptions::default()).await.unwrap().found, "{name}");
                let attributes = Attributes::new(Kind::Text, "text/plain".to_owned(), 3, Checksum::of(b"new"));
                let object = Object { attributes, payload: bytes::Bytes::from_static(b"new").into() };
                files.put(&key, &object, &PutOptions::default()).await.unwrap();
                files.delete(&key, &DeleteOptions::default()).await.unwrap();
                assert_eq!(fs::read(&path).unwrap(), before, "{name}");
            }
            assert!(files.stat(&key("value")).await.unwrap().unwrap().metadata.is_none(), "a secret is no metadata");
        }
        let own = OwnEntries::new(&[], &own);
        let files = LegacyFiles::new(Arc::new(Memory::new()), &root, own, spool);
        assert!(files.delete(&key("value"), &DeleteOptions::default()).await.unwrap().found);
        assert!(!root.join("value").exists() && root.join("value.metadata").exists());
    }
}
