//! The proof that each answer must have: that it is of a store, of this bucket, and to this request.
//!
//! A web server, a log-in page or a console may answer 200 or 204 to everything, and its pages have an `ETag`, too. So:
//!
//! ```text
//! listing            200, root ListBucketResult, and this bucket's name in it
//! begun, completed   200, their root, and the upload's id or the object's ETag in it
//! copied             200, the root of a copy, and an ETag in it
//! written, part      200, a strong ETag, no text, and the checksum that was sent where there is one
//! removed            204 or 200 without text and with a request id; without one, a request that finds no object
//! object             200, ETag, length, time, and our metadata header or a request id, if the store sends ids
//! ```
//!
//! Stores of Amazon, Ceph, MinIO, SeaweedFS and others put a request id on every answer. From a store that was seen to
//! do so, an answer without an id is another server's. The exception is an answer that names SeaweedFS as its server,
//! because before version 4 its answers about objects have none.

use http::header::{CONTENT_LENGTH, ETAG};
use http::{HeaderMap, Method, StatusCode};
use serde::de::DeserializeOwned;

use super::error::{RequestContext, S3Refusal};
use super::identity::has_request_id;
use super::list::{self, Names};
use super::read::{self, CHECKSUM};
use super::wire::{Call, Outcome, Reply, Wire};
use super::xml;
use crate::storage::backends::http::outside::Outside;
use crate::storage::error::{Error, Operation, Result};
use crate::storage::object::{Checksum, Key};

impl Wire {
    /// Makes sure, before the first request for an object, that the URL is that of the bucket.
    ///
    /// A store takes `PUT /bucket/bucket/key` for a write of `bucket/key`, and confirms it. Only a listing names its
    /// bucket. An identity that may not list the bucket gets that answer from a store, which shows at least that it is
    /// a store.
    pub(super) async fn recognize(&self, context: &RequestContext<'_>) -> Result<()> {
        if self.identity.recognized.get().is_some() {
            return Ok(());
        }
        // Concurrent requests check separately. With a server that does not answer, checks in sequence would wait as
        // long as all of them together.
        let outcome =
            self.execute(smallest(Operation::Probe)).await.map_err(|error| context.for_this_request(error))?;
        match outcome {
            Outcome::Refused(refusal) if refusal.forbids_listing(context.address) => {
                self.identity.recognized.get_or_init(|| ());
                Ok(())
            }
            outcome => self.read_listing(outcome, context).await.map(drop),
        }
    }

    /// Sends a request for a listing; returns its headers and names.
    pub(super) async fn listing(&self, call: Call<'_>) -> Result<(HeaderMap, Names)> {
        let context = self.context(call.operation, None);
        let outcome = self.execute(call).await?;
        self.read_listing(outcome, &context).await
    }

    /// Proves a removal by its answer, or else by a request that finds no object.
    pub(super) async fn prove_removal(&self, reply: Reply, key: &Key, context: &RequestContext<'_>) -> Result<()> {
        match reply.removed(context).await? {
            Some(doubt) if self.find_object(context.operation, key).await?.is_some() => Err(doubt),
            _ => Ok(()),
        }
    }

    async fn read_listing(&self, outcome: Outcome, context: &RequestContext<'_>) -> Result<(HeaderMap, Names)> {
        let reply = match outcome {
            Outcome::Done(reply) => reply,
            // A store can answer that only about an object.
            Outcome::Missing { .. } => {
                return Err(context.wrong_place("it takes the bucket's name for an object's key"));
            }
            Outcome::Refused(refusal) => return Err(context.refused(refusal)),
        };
        let (headers, outside) = (reply.headers.clone(), reply.outside(context));
        let is_object = has_request_id(&headers) && headers.contains_key(ETAG);
        let right = reply.status == StatusCode::OK;
        let text = reply.into_text(context).await?;
        match xml::root(&text).as_deref() {
            Some("ListBucketResult") if right => {}
            Some("ListAllMyBucketsResult") => {
                return Err(context.wrong_place("it lists all buckets, so the URL names none"));
            }
            _ if is_object => return Err(context.wrong_place("it takes the bucket's name for an object's key")),
            _ => return Err(context.strange(&outside, "is no listing of a bucket")),
        }
        let names = list::parse(&text, context)?;
        self.identity.listed(&headers);
        Ok((headers, names))
    }
}

/// Makes the smallest request whose answer names the bucket.
pub(super) fn smallest<'a>(operation: Operation) -> Call<'a> {
    Call::new(operation, Method::GET, None).query("list-type", "2").query("max-keys", "1")
}

impl Reply {
    /// Proves a write by its ETag, which it returns. A wrong checksum is
    /// [`ErrorKind::Integrity`](crate::storage::error::ErrorKind::Integrity).
    pub(super) async fn written(self, sent: Checksum, context: &RequestContext<'_>) -> Result<String> {
        let outside = self.outside(context);
        let what = "does not confirm a write";
        let etag = self.header(ETAG.as_str()).filter(|etag| is_strong(etag)).map(str::to_owned);
        let echo = self.header(CHECKSUM.as_str()).map(str::to_owned);
        let (status, lacks_request_id) = (self.status, self.lacks_request_id);
        let empty = self.has_no_text(context).await?;
        let Some(etag) = etag.filter(|_| status == StatusCode::OK && empty && !lacks_request_id) else {
            return Err(context.strange(&outside, what));
        };
        match echo {
            // The checksum of an object in parts has a dash.
            Some(echo) if !echo.contains('-') && echo != read::checksum_value(sent) => {
                Err(context.damaged("the store received other bytes than were sent"))
            }
            _ => Ok(etag),
        }
    }

    /// Checks the answer to a removal. An answer without proof is returned as the error that it is if the object still
    /// exists.
    pub(super) async fn removed(self, context: &RequestContext<'_>) -> Result<Option<Error>> {
        let (outside, has_id) = (self.outside(context), has_request_id(&self.headers));
        let strange = || context.strange(&outside, "does not confirm a removal");
        let right = matches!(self.status, StatusCode::NO_CONTENT | StatusCode::OK);
        if !right || !self.has_no_text(context).await? {
            return Err(strange());
        }
        Ok((!has_id).then(strange))
    }

    /// Reads the end of an upload in parts or of a copy, in which S3 may report a failure behind a status of success.
    pub(super) async fn completed<T: DeserializeOwned>(self, wanted: &str, context: &RequestContext<'_>) -> Result<T> {
        let (headers, outside, status) = (self.headers.clone(), self.outside(context), self.status);
        let text = self.into_text(context).await?;
        match S3Refusal::within(&headers, &text) {
            Some(refusal) => Err(context.refused(refusal)),
            None => parsed(&text, wanted, status, &outside, context),
        }
    }

    /// Reads a document with this root.
    pub(super) async fn document<T: DeserializeOwned>(self, wanted: &str, context: &RequestContext<'_>) -> Result<T> {
        let (outside, status) = (self.outside(context), self.status);
        let text = self.into_text(context).await?;
        parsed(&text, wanted, status, &outside, context)
    }

    /// Fails for an answer that is not about an object.
    pub(super) fn object(&self, has_header: bool, context: &RequestContext<'_>) -> Result<()> {
        if self.status == StatusCode::OK && (has_header || !self.lacks_request_id) && self.headers.contains_key(ETAG) {
            return Ok(());
        }
        Err(context.strange(&self.outside(context), "is no object"))
    }

    async fn has_no_text(self, context: &RequestContext<'_>) -> Result<bool> {
        if self.header(CONTENT_LENGTH.as_str()) == Some("0") || self.status == StatusCode::NO_CONTENT {
            return Ok(true);
        }
        Ok(self.into_text(context).await?.trim().is_empty())
    }
}

fn parsed<T: DeserializeOwned>(
    text: &str,
    wanted: &str,
    status: StatusCode,
    outside: &Outside,
    context: &RequestContext<'_>,
) -> Result<T> {
    let strange = || context.strange(outside, &format!("is no {wanted}"));
    if status != StatusCode::OK || xml::root(text).as_deref() != Some(wanted) {
        return Err(strange());
    }
    quick_xml::de::from_str(text).map_err(|_| strange())
}

/// Tells whether a tag is strong, as a store's tags are. Weak tags are those of web frameworks.
fn is_strong(etag: &str) -> bool {
    !etag.starts_with("W/") && !etag.trim_matches('"').is_empty()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_weak_tag_proves_nothing() {
        assert!(is_strong("\"9dd4\"") && is_strong("9dd4-2"));
        assert!(!is_strong("W/\"0-2jmj7l5rSw0yVb/vlWAYkK/YBwk\"") && !is_strong("\"\"") && !is_strong(""));
    }
}
