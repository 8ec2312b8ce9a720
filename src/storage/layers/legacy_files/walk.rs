//! Walks the folder of old files in the order of their keys.

use std::fs;
use std::io;
use std::os::unix::fs::DirEntryExt as _;
use std::path::Path;

use jiff::Timestamp;

use super::own::{OwnEntries, OwnFiles};
use crate::storage::backend::{Entry, Listing, Page};
use crate::storage::files::shortage;
use crate::storage::legacy::names;
use crate::storage::object::Key;

/// A name in a folder. Sorted by these, names are in the order of the keys below them.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub(super) struct Name {
    /// The name; of a folder with a `/` behind it.
    text: String,
    pub(super) is_folder: bool,
    pub(super) is_file: bool,
}

impl Name {
    pub(super) fn text(&self) -> &str {
        self.text.trim_end_matches('/')
    }
}

/// Names the path in an error, unless the error may pass: then its number is needed.
pub(super) fn at(path: &Path, error: io::Error) -> io::Error {
    if shortage::may_pass(&error) {
        error
    } else {
        io::Error::new(error.kind(), format!("{}: {error}", path.display()))
    }
}

/// The names of one folder in order, and the number of those that are not UTF-8.
///
/// `own` are the folders of this program in it, and `files` those of its configuration.
pub(super) fn names(path: &Path, own: &[&str], files: &OwnFiles<'_>) -> io::Result<(Vec<Name>, u64)> {
    read_names(path, own, files).map_err(|error| at(path, error))
}

fn read_names(path: &Path, own: &[&str], files: &OwnFiles<'_>) -> io::Result<(Vec<Name>, u64)> {
    let entries = match fs::read_dir(path) {
        // Somebody removed the folder after its name was read, or nothing was ever stored.
        Err(error) if error.kind() == io::ErrorKind::NotFound => return Ok((Vec::new(), 0)),
        entries => entries?,
    };
    let (mut names, mut foreign) = (Vec::new(), 0);
    for entry in entries {
        let entry = entry?;
        let kind = entry.file_type()?;
        match entry.file_name().into_string() {
            Ok(name) if own.contains(&name.as_str()) || (!own.is_empty() && name == names::LOST_AND_FOUND) => {}
            Ok(name) if !kind.is_dir() && files.has_entry(path, &name, entry.ino()) => {}
            Ok(mut text) => {
                if kind.is_dir() {
                    text.push('/');
                }
                names.push(Name { text, is_folder: kind.is_dir(), is_file: kind.is_file() });
            }
            Err(_) => foreign += 1,
        }
    }
    names.sort_unstable();
    Ok((names, foreign))
}

/// Lists one page. At most the names of the folders on the way to the last key are in memory.
pub(super) fn list(root: &Path, own: &OwnEntries, page: &Page) -> io::Result<Listing> {
    let mut listing = Listing::default();
    let wanted = page.limit.unwrap_or(usize::MAX);
    let after = page.start_after.as_deref();
    let files = own.files();
    let (first, foreign) = names(root, own.folders(), &files)?;
    listing.foreign += foreign;
    // The folders that are open: what their keys begin with, and the names that follow.
    let mut open = vec![(String::new(), first.into_iter())];
    while let Some((begin, rest)) = open.last_mut() {
        let Some(name) = rest.next() else {
            open.pop();
            continue;
        };
        let key = format!("{begin}{}", name.text);
        if name.is_folder {
            let fits = key.starts_with(&page.prefix) || page.prefix.starts_with(&key);
            let passed = after.is_some_and(|after| key.as_str() < after && !after.starts_with(&key));
            if fits && !passed && key.len() <= Key::MAX_BYTES {
                let (inside, foreign) = names(&root.join(&key), &[], &files)?;
                listing.foreign += foreign;
                open.push((key, inside.into_iter()));
            }
            continue;
        }
        if key.ends_with(names::SIDECAR)
            || !key.starts_with(&page.prefix)
            || after.is_some_and(|after| key.as_str() <= after)
        {
            continue;
        }
        match Key::parse(&key) {
            Ok(key) if name.is_file => {
                if listing.entries.len() == wanted {
                    listing.more = true;
                    break;
                }
                let state = fs::symlink_metadata(root.join(key.as_str())).ok();
                let stored_size = state.as_ref().map(fs::Metadata::len);
                let modified = state.and_then(|state| state.modified().ok());
                let stored_at = modified.and_then(|time| Timestamp::try_from(time).ok());
                listing.entries.push(Entry { stored_at, ..Entry::sized(key, stored_size) });
            }
            _ => listing.foreign += 1,
        }
    }
    Ok(listing)
}

/// Removes the empty folders below a root, the deepest first, and returns how many.
pub(super) fn remove_empty_folders(root: &Path, own: &OwnEntries) -> io::Result<u64> {
    let (mut removed, mut found) = (0, Vec::new());
    let files = own.files();
    let mut open = vec![(root.to_owned(), own.folders())];
    while let Some((path, own)) = open.pop() {
        for name in names(&path, own, &files)?.0.into_iter().filter(|name| name.is_folder) {
            let inside = path.join(name.text());
            found.push(inside.clone());
            open.push((inside, &[]));
        }
    }
    // Each folder was found before those inside it.
    for path in found.iter().rev() {
        match fs::remove_dir(path) {
            Ok(()) => removed += 1,
            Err(error) if matches!(error.kind(), io::ErrorKind::DirectoryNotEmpty | io::ErrorKind::NotFound) => {}
            Err(error) => return Err(at(path, error)),
        }
    }
    Ok(removed)
}
