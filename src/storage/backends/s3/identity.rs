//! What is known of who answers at the bucket's URL.

use std::sync::OnceLock;
use std::sync::atomic::{AtomicBool, Ordering};

use http::HeaderMap;

/// What is known of who answers at the bucket's URL.
#[derive(Debug, Default)]
pub(super) struct BucketIdentity {
    /// It has listed the bucket, or said that this identity may not.
    pub(super) recognized: OnceLock<()>,
    /// A listing was marked.
    marks: AtomicBool,
}

impl BucketIdentity {
    /// Tells whether the store was seen to mark its answers.
    pub(super) fn marks(&self) -> bool {
        self.marks.load(Ordering::Relaxed)
    }

    pub(super) fn listed(&self, headers: &HeaderMap) {
        if is_marked(headers) {
            self.marks.store(true, Ordering::Relaxed);
        }
        self.recognized.get_or_init(|| ());
    }
}

/// Tells whether an answer has what stores put on every one, and nothing else does.
pub(super) fn is_marked(headers: &HeaderMap) -> bool {
    ["x-amz-request-id", "x-amz-id-2", "x-guploader-uploadid"].iter().any(|name| headers.contains_key(*name))
}
