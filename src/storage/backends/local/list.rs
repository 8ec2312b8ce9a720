//! Listing: a walk through the folders that omits every folder without requested keys.

use std::collections::BinaryHeap;
use std::ffi::OsStr;
use std::fs;
use std::io;
use std::path::Path;

use super::{names, path};
use crate::storage::backend::Page;
use crate::storage::object::Key;

/// The keys that a walk found.
#[derive(Debug, Default)]
pub(super) struct WalkedKeys {
    /// The keys in byte order, at most as many as requested.
    pub(super) keys: Vec<Key>,
    /// The number of names in the walked folders that are no keys.
    pub(super) foreign: u64,
    /// Whether more keys follow than were requested.
    pub(super) more: bool,
}

/// Walks the root for one page. Folders are not in the order of keys, so the smallest keys are gathered in a heap.
pub(super) fn walk(root: &Path, page: &Page) -> io::Result<WalkedKeys> {
    let wanted = page.limit.unwrap_or(usize::MAX);
    let mut walk = Walk {
        root,
        prefix: page.prefix.as_bytes(),
        start_after: page.start_after.as_deref().map(str::as_bytes),
        capacity: wanted.saturating_add(1),
        smallest: BinaryHeap::new(),
        foreign: 0,
    };
    walk.visit(&mut String::new(), &mut Vec::new())?;
    let mut keys = walk.smallest.into_sorted_vec();
    let more = keys.len() > wanted;
    keys.truncate(wanted);
    Ok(WalkedKeys { keys, foreign: walk.foreign, more })
}

struct Walk<'a> {
    root: &'a Path,
    prefix: &'a [u8],
    start_after: Option<&'a [u8]>,
    capacity: usize,
    smallest: BinaryHeap<Key>,
    foreign: u64,
}

impl Walk<'_> {
    /// Visits the folder at `path` (empty or ending in `/`), whose keys all begin with `begin`.
    fn visit(&mut self, path: &mut String, begin: &mut Vec<u8>) -> io::Result<()> {
        let mut folders = self.read(path, begin)?;
        folders.sort_unstable();
        let (path_length, begin_length) = (path.len(), begin.len());
        for (part, name) in folders {
            begin.extend_from_slice(&part);
            // Checked only now, after the folders before have filled the heap.
            if self.may_have_requested(begin) {
                path.push_str(&name);
                path.push('/');
                self.visit(path, begin)?;
            }
            path.truncate(path_length);
            begin.truncate(begin_length);
        }
        Ok(())
    }

    /// Takes the files of one folder and returns its folders: the bytes that each adds to a key, and its name.
    fn read(&mut self, path: &str, begin: &[u8]) -> io::Result<Vec<(Vec<u8>, String)>> {
        let mut folders = Vec::new();
        let entries = match fs::read_dir(self.root.join(path)) {
            // Somebody removed the folder after its name was read.
            Err(error) if error.kind() == io::ErrorKind::NotFound && !path.is_empty() => return Ok(folders),
            entries => entries?,
        };
        for entry in entries {
            let entry = entry?;
            let name = entry.file_name();
            let kind = entry.file_type()?;
            if path.is_empty() && is_own(&name, kind.is_dir()) {
                continue;
            }
            let part = path::decode_name(&name, kind.is_dir()).filter(|_| kind.is_dir() || kind.is_file());
            match (part, name.into_string()) {
                (Some(part), Ok(name)) if kind.is_dir() && begin.len() + part.len() <= Key::MAX_BYTES => {
                    folders.push((part, name));
                }
                (Some(part), Ok(name)) if kind.is_file() => self.take([begin, &part].concat(), path, &name),
                _ => self.foreign += 1,
            }
        }
        Ok(folders)
    }

    fn take(&mut self, key: Vec<u8>, path: &str, name: &str) {
        if !key.starts_with(self.prefix) || self.start_after.is_some_and(|after| key.as_slice() <= after) {
            return;
        }
        // A key that is not on the page is not looked at more closely. Its turn comes.
        if self.smallest.len() >= self.capacity
            && self.smallest.peek().is_some_and(|largest| key.as_slice() >= largest.as_str().as_bytes())
        {
            return;
        }
        let key = String::from_utf8(key).ok().and_then(|text| Key::parse(&text).ok());
        let Some(key) = key.filter(|key| path::encode(key).strip_prefix(path) == Some(name)) else {
            self.foreign += 1;
            return;
        };
        if self.smallest.len() < self.capacity {
            self.smallest.push(key);
        } else if let Some(mut largest) = self.smallest.peek_mut()
            && key < *largest
        {
            *largest = key;
        }
    }

    /// Tells whether keys with this beginning can be among the requested ones.
    fn may_have_requested(&self, begin: &[u8]) -> bool {
        let fits = begin.starts_with(self.prefix) || self.prefix.starts_with(begin);
        let before = self.start_after.is_some_and(|after| begin < after && !after.starts_with(begin));
        let full = self.smallest.len() >= self.capacity;
        let behind = full && self.smallest.peek().is_some_and(|largest| begin >= largest.as_str().as_bytes());
        fits && !before && !behind
    }
}

/// Tells whether a name in the root is that of a folder or file of this program, not of an object.
fn is_own(name: &OsStr, is_folder: bool) -> bool {
    if is_folder {
        [names::LOCKS, names::TEMPORARY, names::QUARANTINE].iter().any(|own| name == *own)
    } else {
        [names::WRITER_ID, names::BUCKET].iter().any(|own| name == *own)
    }
}
