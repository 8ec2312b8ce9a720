//! What each answer must have to be one: of a store, of this bucket, to what was asked.
//!
//! A web server, a log-in page or a console may answer 200 to everything, or 204, and its pages have an `ETag`, too. So:
//!
//! ```text
//! listing            200, root ListBucketResult, and this bucket's name in it
//! begun, completed   200, their root, and the upload's id or the object's ETag in it
//! written, part      200, a strong ETag, no text, and the checksum that was sent where there is one
//! removed            204 or 200 without text, and marked; without a mark, a look that finds nothing
//! object             200, ETag, length and time; marked where the store marks its answers, or bearing our label
//! ```
//!
//! Marked is an answer with a request's id. Stores of Amazon, Ceph, MinIO, SeaweedFS and others put one on every answer;
//! of one that was seen to do so an answer without it is somebody else's, unless it names SeaweedFS as its server: before
//! version 4 that marks no objects.

use http::header::{CONTENT_LENGTH, ETAG};
use http::{HeaderMap, Method, StatusCode};
use serde::de::DeserializeOwned;

use super::error::{Asked, S3Refusal};
use super::identity::is_marked;
use super::list::{self, Names};
use super::read::{self, CHECKSUM};
use super::wire::{Call, Outcome, Reply, Wire};
use super::xml;
use crate::storage::backends::http::outside::Outside;
use crate::storage::error::{Error, Operation, Result};
use crate::storage::object::{Checksum, Key};

impl Wire {
    /// Makes sure, the first time that an object is asked for, that the place is the bucket it is meant to be.
    ///
    /// A store takes `PUT /bucket/bucket/key` for a write of `bucket/key`, and confirms it; only what lists a bucket says
    /// which it is. Who may not list it is told so by a store, and then at least that is known.
    pub(super) async fn recognize(&self, asked: &Asked<'_>) -> Result<()> {
        if self.place.recognized.get().is_some() {
            return Ok(());
        }
        // Each by itself: of a place that says nothing, one after another would wait for as long as all of them together.
        let outcome = self.exchange(smallest(Operation::Probe)).await.map_err(|error| asked.instead(error))?;
        match outcome {
            Outcome::Refused(refusal) if refusal.forbids_listing(asked.address) => {
                self.place.recognized.get_or_init(|| ());
                Ok(())
            }
            outcome => self.read_listing(outcome, asked).await.map(drop),
        }
    }

    /// Asks for a listing; returns its headers and names.
    pub(super) async fn listing(&self, call: Call<'_>) -> Result<(HeaderMap, Names)> {
        let asked = self.asked(call.operation, None);
        let outcome = self.exchange(call).await?;
        self.read_listing(outcome, &asked).await
    }

    /// Proves a removal by its answer, else by a look that finds nothing.
    pub(super) async fn prove_removal(&self, reply: Reply, key: &Key, asked: &Asked<'_>) -> Result<()> {
        match reply.removed(asked).await? {
            Some(doubt) if self.look(asked.operation, key).await?.is_some() => Err(doubt),
            _ => Ok(()),
        }
    }

    async fn read_listing(&self, outcome: Outcome, asked: &Asked<'_>) -> Result<(HeaderMap, Names)> {
        let reply = match outcome {
            Outcome::Done(reply) => reply,
            // Only of an object can a store say that.
            Outcome::Missing { .. } => return Err(asked.misplaced("it takes the bucket's name for an object's key")),
            Outcome::Refused(refusal) => return Err(asked.refused(refusal)),
        };
        let (headers, outside) = (reply.headers.clone(), reply.outside(asked));
        let is_object = is_marked(&headers) && headers.contains_key(ETAG);
        let right = reply.status == StatusCode::OK;
        let text = reply.into_text(asked).await?;
        match xml::root(&text).as_deref() {
            Some("ListBucketResult") if right => {}
            Some("ListAllMyBucketsResult") => {
                return Err(asked.misplaced("it lists all buckets, so the URL names none"));
            }
            _ if is_object => return Err(asked.misplaced("it takes the bucket's name for an object's key")),
            _ => return Err(asked.strange(&outside, "is no listing of a bucket")),
        }
        let names = list::parse(&text, asked)?;
        self.place.listed(&headers);
        Ok((headers, names))
    }
}

/// Asks for the least that shows which bucket it is.
pub(super) fn smallest<'a>(operation: Operation) -> Call<'a> {
    Call::new(operation, Method::GET, None).query("list-type", "2").query("max-keys", "1")
}

impl Reply {
    /// Proves a write by its ETag, which it returns; a wrong checksum is damage.
    pub(super) async fn written(self, sent: Checksum, asked: &Asked<'_>) -> Result<String> {
        let outside = self.outside(asked);
        let what = "does not confirm a write";
        let etag = self.header(ETAG.as_str()).filter(|etag| is_strong(etag)).map(str::to_owned);
        let echo = self.header(CHECKSUM.as_str()).map(str::to_owned);
        let (status, unmarked) = (self.status, self.unmarked);
        let empty = self.has_no_text(asked).await?;
        let Some(etag) = etag.filter(|_| status == StatusCode::OK && empty && !unmarked) else {
            return Err(asked.strange(&outside, what));
        };
        match echo {
            // The sum of sums has a dash.
            Some(echo) if !echo.contains('-') && echo != read::checksum_value(sent) => {
                Err(asked.damaged("the store has got other bytes than were sent"))
            }
            _ => Ok(etag),
        }
    }

    /// Takes the answer to a removal; what may only be one is returned as the error that it is unless nothing is there any more.
    pub(super) async fn removed(self, asked: &Asked<'_>) -> Result<Option<Error>> {
        let (outside, marked) = (self.outside(asked), is_marked(&self.headers));
        let strange = || asked.strange(&outside, "does not confirm a removal");
        let right = matches!(self.status, StatusCode::NO_CONTENT | StatusCode::OK);
        if !right || !self.has_no_text(asked).await? {
            return Err(strange());
        }
        Ok((!marked).then(strange))
    }

    /// Reads how an upload in parts was completed; S3 may notice only behind its status that it failed.
    pub(super) async fn completed<T: DeserializeOwned>(self, asked: &Asked<'_>) -> Result<T> {
        let (headers, outside, status) = (self.headers.clone(), self.outside(asked), self.status);
        let text = self.into_text(asked).await?;
        match S3Refusal::within(&headers, &text) {
            Some(refusal) => Err(asked.refused(refusal)),
            None => parsed(&text, "CompleteMultipartUploadResult", status, &outside, asked),
        }
    }

    /// Reads a document of this root.
    pub(super) async fn document<T: DeserializeOwned>(self, wanted: &str, asked: &Asked<'_>) -> Result<T> {
        let (outside, status) = (self.outside(asked), self.status);
        let text = self.into_text(asked).await?;
        parsed(&text, wanted, status, &outside, asked)
    }

    /// Fails for an answer that is no object's.
    pub(super) fn object(&self, labelled: bool, asked: &Asked<'_>) -> Result<()> {
        if self.status == StatusCode::OK && (labelled || !self.unmarked) && self.headers.contains_key(ETAG) {
            return Ok(());
        }
        Err(asked.strange(&self.outside(asked), "is no object"))
    }

    async fn has_no_text(self, asked: &Asked<'_>) -> Result<bool> {
        if self.header(CONTENT_LENGTH.as_str()) == Some("0") || self.status == StatusCode::NO_CONTENT {
            return Ok(true);
        }
        Ok(self.into_text(asked).await?.trim().is_empty())
    }
}

fn parsed<T: DeserializeOwned>(
    text: &str,
    wanted: &str,
    status: StatusCode,
    outside: &Outside,
    asked: &Asked<'_>,
) -> Result<T> {
    let strange = || asked.strange(outside, &format!("is no {wanted}"));
    if status != StatusCode::OK || xml::root(text).as_deref() != Some(wanted) {
        return Err(strange());
    }
    quick_xml::de::from_str(text).map_err(|_| strange())
}

/// A store's tags are those of bytes; a weak one is a web framework's.
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
