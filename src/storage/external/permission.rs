//! Which places beside the store commands may name; what is not listed is refused before anybody is asked.

use std::path::{Path, PathBuf};

use super::reference::Target;
use crate::provider::Provider;

/// The places that the worker's operator lists; by default none.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Permission {
    /// Folders below which files may be named; absolute.
    pub directories: Vec<PathBuf>,
    /// The bucket that values are kept in, whose objects are the store's own keys.
    pub own: Option<(Provider, String)>,
    /// Other buckets whose objects may be named.
    pub buckets: Vec<(Provider, String)>,
}

impl Permission {
    /// Tells whether a target lies in the store's own bucket.
    pub(super) fn is_own(&self, target: &Target) -> bool {
        matches!((target, &self.own), (Target::Object { provider, bucket, .. }, Some(own))
            if own.0 == *provider && own.1 == *bucket)
    }

    /// Tells whether a bucket beside the store's own is listed.
    pub(super) fn lists(&self, provider: Provider, bucket: &str) -> bool {
        self.buckets.iter().any(|listed| listed.0 == provider && listed.1 == bucket)
    }

    /// Finds the listed directory a path lies in, and the path below it; of nested ones the innermost.
    pub(super) fn locate(&self, path: &Path) -> Option<(PathBuf, PathBuf)> {
        let within =
            self.directories.iter().filter_map(|directory| Some((directory, path.strip_prefix(directory).ok()?)));
        within
            .min_by_key(|(_, below)| below.components().count())
            .map(|(directory, below)| (directory.clone(), below.to_owned()))
    }
}
