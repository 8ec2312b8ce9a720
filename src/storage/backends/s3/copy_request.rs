//! The requests that copy an object or a part of one.

use http::{HeaderMap, HeaderName, HeaderValue, Method};
use percent_encoding::utf8_percent_encode;

use super::error::RequestContext;
use super::guard::Guard;
use super::wire::{Call, PATH, Wire};
use crate::storage::error::{Error, ErrorKind, Operation, Result};
use crate::storage::object::Key;

const SOURCE: HeaderName = HeaderName::from_static("x-amz-copy-source");
const SOURCE_IF_MATCH: HeaderName = HeaderName::from_static("x-amz-copy-source-if-match");
pub(super) const METADATA_DIRECTIVE: HeaderName = HeaderName::from_static("x-amz-metadata-directive");
pub(super) const SOURCE_RANGE: HeaderName = HeaderName::from_static("x-amz-copy-source-range");

/// The answer to a copy in one request. That to a part has another root and the same members.
#[derive(serde::Deserialize)]
#[serde(rename_all = "PascalCase")]
pub(super) struct Copied {
    #[serde(rename = "ETag")]
    pub(super) etag: String,
}

/// Names a source and the state that it must have.
pub(super) fn from_source(wire: &Wire, key: &Key, etag: &str) -> HeaderMap {
    let name = format!("/{}/{}", wire.address.bucket, utf8_percent_encode(key.as_str(), &PATH));
    let (name, etag) = (HeaderValue::try_from(name), HeaderValue::try_from(format!("\"{etag}\"")));
    // Both are printable ASCII: one is encoded, and the other was received in a header.
    [(SOURCE, name), (SOURCE_IF_MATCH, etag)]
        .into_iter()
        .filter_map(|(name, value)| Some((name, value.ok()?)))
        .collect()
}

/// Copies in one request.
pub(super) async fn copy(wire: &Wire, key: &Key, headers: HeaderMap, guard: &Guard) -> Result<()> {
    let context = wire.context(Operation::Copy, Some(key));
    let call = Call::new(Operation::Copy, Method::PUT, Some(key)).headers(headers).headers(guard.headers());
    let reply = wire.send(call).await?.ok_or_else(|| gone(&context))?;
    let Copied { etag } = reply.completed("CopyObjectResult", &context).await?;
    if etag.trim_matches('"').is_empty() {
        return Err(context.unexpected_answer("it copied an object without an ETag"));
    }
    Ok(())
}

/// Makes the error of a copy that found one of the two objects missing.
pub(super) fn gone(context: &RequestContext<'_>) -> Error {
    let why = "the object has been removed meanwhile; stat it and decide again";
    Error::new(ErrorKind::Precondition, context.operation, context.key, why)
}
