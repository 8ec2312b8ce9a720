//! The identity of the server at the bucket's URL.

use std::sync::OnceLock;
use std::sync::atomic::{AtomicBool, Ordering};

use http::HeaderMap;

/// What earlier answers have shown about the server at the bucket's URL.
#[derive(Debug, Default)]
pub(super) struct BucketIdentity {
    /// Set when the server has listed the bucket, or has said that this identity may not list it.
    pub(super) recognized: OnceLock<()>,
    /// Whether a listing had a request id.
    sends_request_ids: AtomicBool,
}

impl BucketIdentity {
    /// Tells whether the store puts a request id on its answers, as far as was seen.
    pub(super) fn sends_request_ids(&self) -> bool {
        self.sends_request_ids.load(Ordering::Relaxed)
    }

    pub(super) fn listed(&self, headers: &HeaderMap) {
        if has_request_id(headers) {
            self.sends_request_ids.store(true, Ordering::Relaxed);
        }
        self.recognized.get_or_init(|| ());
    }
}

/// Tells whether an answer has a request id, which stores put on every answer and other servers on none.
pub(super) fn has_request_id(headers: &HeaderMap) -> bool {
    ["x-amz-request-id", "x-amz-id-2", "x-guploader-uploadid"].iter().any(|name| headers.contains_key(*name))
}
