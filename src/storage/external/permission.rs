//! The places outside the store that commands may name. Others are refused without any request.

use std::path::{Path, PathBuf};

use super::reference::Target;
use crate::provider::Provider;

/// The places that the worker's operator lists; by default none.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Permission {
    /// Folders, as absolute paths, below which commands may name files.
    pub directories: Vec<PathBuf>,
    /// The bucket in which the store keeps its values. Its objects are the store's own keys.
    pub own: Option<(Provider, String)>,
    /// Other buckets whose objects commands may name.
    pub buckets: Vec<(Provider, String)>,
}

impl Permission {
    /// Tells whether a target is in the store's own bucket.
    pub(super) fn is_own(&self, target: &Target) -> bool {
        matches!((target, &self.own), (Target::Object { provider, bucket, .. }, Some(own))
            if own.0 == *provider && own.1 == *bucket)
    }

    /// Tells whether a bucket other than the store's own is listed.
    pub(super) fn lists(&self, provider: Provider, bucket: &str) -> bool {
        self.buckets.iter().any(|listed| listed.0 == provider && listed.1 == bucket)
    }

    /// Finds the innermost listed directory that contains a path, and the rest of the path below it.
    pub(super) fn locate(&self, path: &Path) -> Option<(PathBuf, PathBuf)> {
        let within =
            self.directories.iter().filter_map(|directory| Some((directory, path.strip_prefix(directory).ok()?)));
        within
            .min_by_key(|(_, below)| below.components().count())
            .map(|(directory, below)| (directory.clone(), below.to_owned()))
    }
}
