//! Errors of requests to S3. No other module turns answers and broken connections into errors of this room.

use std::error::Error as StdError;
use std::time::Duration;

use http::{HeaderMap, StatusCode};
use object_store::client::HttpError;

use super::options::S3Address;
use super::xml;
use crate::storage::backends::http::outside::Outside;
use crate::storage::backends::http::{cut, retry_after, text as header_text};
use crate::storage::error::{Error, ErrorKind, Operation};
use crate::storage::object::Key;

/// The context of a request, which its errors name.
#[derive(Clone, Copy)]
pub(super) struct RequestContext<'a> {
    pub(super) address: &'a S3Address,
    pub(super) operation: Operation,
    pub(super) key: Option<&'a Key>,
}

/// An answer that is no success.
#[derive(Debug)]
pub(super) struct S3Refusal {
    outside: Outside,
    /// S3's code of the cause; empty where the answer has none.
    code: String,
    message: String,
    retry_after: Option<Duration>,
    /// The region that the bucket is really in.
    region: Option<String>,
    /// The bucket that the store looked for. The URL may have named another one than was meant.
    bucket: Option<String>,
    /// Whether the body has a text that is not in S3's format.
    foreign: bool,
}

/// The error document of S3.
#[derive(Default, serde::Deserialize)]
#[serde(rename_all = "PascalCase", default)]
struct Document {
    code: Option<String>,
    message: Option<String>,
    region: Option<String>,
    bucket_name: Option<String>,
}

impl S3Refusal {
    /// Reads an answer that is no success.
    pub(super) fn read(outside: Outside, headers: &HeaderMap, text: &str) -> Self {
        let is_error = xml::root(text).as_deref() == Some("Error");
        let document: Document =
            if is_error { quick_xml::de::from_str(text).unwrap_or_default() } else { Document::default() };
        let region = header_text(headers, "x-amz-bucket-region").map(str::to_owned);
        let code = document.code.unwrap_or_default();
        Self {
            outside,
            // A web page, or JSON of another service. A line of plain text may be anybody's.
            foreign: code.is_empty() && text.trim_start().starts_with(['<', '{', '[']),
            code,
            message: document.message.unwrap_or_default(),
            retry_after: retry_after(headers),
            region: document.region.or(region),
            bucket: document.bucket_name,
        }
    }

    /// Reads the body of an answer with a status of success, behind which S3 may report a failure.
    pub(super) fn within(headers: &HeaderMap, text: &str) -> Option<Self> {
        let outside = Outside::of(StatusCode::INTERNAL_SERVER_ERROR, headers, "");
        let refusal = Self::read(outside, headers, text);
        (!refusal.code.is_empty()).then_some(refusal)
    }

    /// Tells whether a store says that this identity may not list the bucket, if it names a bucket.
    pub(super) fn forbids_listing(&self, address: &S3Address) -> bool {
        self.code == "AccessDenied" && self.other_bucket(address).is_none()
    }

    fn other_bucket(&self, address: &S3Address) -> Option<&str> {
        self.bucket.as_deref().filter(|name| !address.is_named(name))
    }

    /// Tells whether the answer says that the object is missing.
    pub(super) fn is_missing(&self) -> bool {
        self.outside.status == StatusCode::NOT_FOUND && matches!(&*self.code, "NoSuchKey" | "NoSuchVersion")
    }

    /// Returns the kind of the error and the remedy.
    fn meaning(&self, address: &S3Address) -> (ErrorKind, String) {
        let S3Address { bucket, region, .. } = address;
        let fixed = |kind, remedy: &str| (kind, remedy.to_owned());
        match &*self.code {
            "NoSuchBucket" => {
                let remedy = match self.other_bucket(address) {
                    Some(other) => format!("the request named the bucket {other:?}; {}", address.without_bucket()),
                    None => format!(
                        "correct the bucket's name, or create it with `aws s3 mb s3://{bucket} --region {region}`"
                    ),
                };
                return (ErrorKind::Invalid, remedy);
            }
            "TemporaryRedirect" => {
                return (ErrorKind::Unavailable, self.redirected("try again when its name is known everywhere"));
            }
            "PreconditionFailed" | "ConditionalRequestConflict" => {
                return fixed(ErrorKind::Precondition, "the object has changed meanwhile; stat it and decide again");
            }
            "RequestTimeTooSkewed" | "RequestInTheFuture" => {
                return fixed(ErrorKind::Denied, "set this machine's clock, which the signature depends on");
            }
            "ExpiredToken" | "InvalidToken" | "TokenRefreshRequired" => {
                return fixed(ErrorKind::Denied, "set a new AWS_SESSION_TOKEN together with both keys");
            }
            "SignatureDoesNotMatch" | "InvalidAccessKeyId" => {
                return fixed(
                    ErrorKind::Denied,
                    "set AWS_ACCESS_KEY_ID and AWS_SECRET_ACCESS_KEY to a pair that is valid here",
                );
            }
            "SlowDown"
            | "Throttling"
            | "ThrottlingException"
            | "RequestLimitExceeded"
            | "TooManyRequests"
            | "OperationAborted" => {
                return fixed(ErrorKind::Throttled, "it limits the rate of requests; try again later");
            }
            "BadDigest" | "InvalidDigest" | "XAmzContentSHA256Mismatch" | "XAmzContentChecksumMismatch" => {
                return fixed(ErrorKind::Integrity, "the bytes were changed in transit; store them again");
            }
            // The connection broke while the request was sent, or somebody removed the upload.
            "IncompleteBody" | "RequestTimeout" | "NoSuchUpload" | "InvalidPart" => {
                return fixed(ErrorKind::Unavailable, "nothing was written; try again");
            }
            "KeyTooLongError" => return fixed(ErrorKind::Invalid, "this store accepts only shorter keys or segments"),
            "EntityTooLarge" | "MetadataTooLarge" => return fixed(ErrorKind::Invalid, "store less under one key"),
            "NotImplemented"
            | "InvalidArgument"
            | "InvalidRequest"
            | "InvalidObjectName"
            | "XMinioInvalidObjectName" => {
                return fixed(ErrorKind::Invalid, "this store cannot do that");
            }
            "QuotaExceeded" | "InsufficientStorage" | "XMinioStorageFull" => {
                return fixed(ErrorKind::NoSpace, "free space in the store");
            }
            _ => {}
        }
        let wrong_region = matches!(&*self.code, "AuthorizationHeaderMalformed" | "IllegalLocationConstraintException");
        match self.outside.status.as_u16() {
            300..=399 => self.wrong_region(region),
            400 if wrong_region => self.wrong_region(region),
            401 | 403 if let Some(other) = self.other_bucket(address) => {
                (ErrorKind::Denied, format!("the request named the bucket {other:?}; {}", address.without_bucket()))
            }
            401 | 403 => {
                let remedy = format!(
                    "allow this identity s3:GetObject, s3:PutObject, s3:DeleteObject and s3:AbortMultipartUpload on \
                     arn:aws:s3:::{bucket}/*, and s3:ListBucket on arn:aws:s3:::{bucket}; for earlier versions also s3:GetObjectVersion and \
                     s3:ListBucketVersions"
                );
                (ErrorKind::Denied, remedy)
            }
            412 => fixed(ErrorKind::Precondition, "the object has changed meanwhile; stat it and decide again"),
            429 => fixed(ErrorKind::Throttled, "it limits the rate of requests; try again later"),
            507 => fixed(ErrorKind::NoSpace, "free space in the store"),
            500..=599 => fixed(ErrorKind::Unavailable, "try again later"),
            // A server in between answers so while the store itself is down. A store names what is missing.
            404 | 408 | 425 if self.code.is_empty() => {
                fixed(ErrorKind::Unavailable, "is the store itself up? try again later")
            }
            _ => fixed(ErrorKind::Io, "check the log of the store"),
        }
    }

    /// Tells whether the answer is no store's. A store names the cause of a refusal and the target of a redirect.
    fn is_strange(&self) -> bool {
        match self.outside.status.as_u16() {
            300..=399 => self.code.is_empty() && self.region.is_none(),
            412 | 429 | 507 => false,
            400..=499 => self.foreign,
            _ => false,
        }
    }

    fn wrong_region(&self, given: &str) -> (ErrorKind, String) {
        let remedy = match &self.region {
            Some(region) if region != given => {
                format!("the bucket is in the region {region}, not in {given}; set s3_region to it")
            }
            _ => {
                "the bucket is in another region, or at another endpoint; correct s3_region or the endpoint".to_owned()
            }
        };
        (ErrorKind::Invalid, self.redirected(&remedy))
    }

    /// Prepends the target of a redirect.
    fn redirected(&self, text: &str) -> String {
        match self.outside.location() {
            Some(location) => format!("it redirects to {location}; {text}"),
            None => text.to_owned(),
        }
    }
}

impl RequestContext<'_> {
    fn error(&self, kind: ErrorKind, message: String) -> Error {
        Error::new(kind, self.operation, self.key, message)
    }

    /// Makes the error of a refusal.
    pub(super) fn refused(&self, refusal: S3Refusal) -> Error {
        if refusal.is_strange() {
            return self.strange(&refusal.outside, "is no answer of a store");
        }
        let (kind, remedy) = match refusal.outside.status.as_u16() {
            // A store without copies refuses the request. Of any other request, such an answer is a fault on the way.
            405 | 501 if self.operation == Operation::Copy => {
                (ErrorKind::Invalid, "this store cannot copy so".to_owned())
            }
            _ => refusal.meaning(self.address),
        };
        let S3Refusal { outside, code, message, retry_after, .. } = refusal;
        let status = outside.status;
        let code = if code.is_empty() { status.to_string() } else { format!("{} {code}", status.as_u16()) };
        let dash = if message.is_empty() { "" } else { ": " };
        let message = cut(message.trim_end_matches('.'));
        let why = format!("{} answered {code}{dash}{message}; {remedy}", self.address.url);
        self.error(kind, why).with_retry_after(retry_after)
    }

    /// Makes the error of a connection that could not be made, broke or stalled.
    pub(super) fn broken(&self, cause: HttpError) -> Error {
        let why = format!(
            "{} cannot be reached: {}; check that it is up and can be reached from this machine",
            self.address.url,
            chain(&cause)
        );
        self.error(ErrorKind::Unavailable, why).with_source(cause)
    }

    /// Makes the error of an answer that no store should give.
    pub(super) fn unexpected_answer(&self, what: &str) -> Error {
        let S3Address { url, .. } = self.address;
        let why = format!("{url} cannot be understood: {}; check that it is an S3 store and up", cut(what));
        Error::unexpected_answer(self.operation, self.key, why)
    }

    /// Makes the error of an answer that is no store's. `what` describes the answer.
    pub(super) fn strange(&self, outside: &Outside, what: &str) -> Error {
        let S3Address { url, .. } = self.address;
        let (named, remedy) = self.address.setting_and_remedy();
        let suspicion = outside.suspicion(url);
        let why = format!(
            "{named} ({url}) cannot be understood: it answered {outside}, and that {what}; {suspicion}; {remedy}"
        );
        Error::unexpected_answer(self.operation, self.key, why)
    }

    /// Makes the error of a URL that is not that of the bucket.
    pub(super) fn wrong_place(&self, what: &str) -> Error {
        let S3Address { url, .. } = self.address;
        let why = format!("{url} is not the bucket: {what}; {}", self.address.without_bucket());
        self.error(ErrorKind::Invalid, why)
    }

    /// Turns the error of a preceding step into one of this request.
    pub(super) fn for_this_request(&self, mut error: Error) -> Error {
        error.key = self.key.cloned();
        error.during(self.operation)
    }

    /// Makes the error of a listing whose pages repeat. The store can be reached, so a retry does not help.
    pub(super) fn repeating(&self, what: &str) -> Error {
        let (named, _) = self.address.setting_and_remedy();
        let why =
            format!("{}: {what}; check the store, or which server answers instead of it ({named})", self.address.url);
        self.error(ErrorKind::Io, why)
    }

    /// Makes the error of bytes that do not match their checksum or attributes.
    pub(super) fn damaged(&self, what: &str) -> Error {
        self.error(ErrorKind::Integrity, format!("{what}; store the value again, or restore the object from a backup"))
    }

    /// Makes the error of credentials that could not be obtained. `before` tells whether they could be obtained
    /// earlier.
    pub(super) fn no_credentials(&self, cause: object_store::Error, before: bool) -> Error {
        let text = chain(&cause);
        // `object_store` reports the status only in its text. A test checks that text.
        let refused = text.contains("status code: 4");
        let (kind, remedy) = match (refused, self.address.only_instance_credentials && !before) {
            // The metadata service exists only on an EC2 instance, where it can always be reached.
            (_, true) => (
                ErrorKind::Denied,
                "set AWS_ACCESS_KEY_ID and AWS_SECRET_ACCESS_KEY (profiles are not read), or give this machine a role",
            ),
            (true, false) => (ErrorKind::Denied, "let this identity assume its role"),
            (false, false) => (ErrorKind::Unavailable, "check that the service that gives them can be reached"),
        };
        self.error(kind, format!("no AWS credentials: {text}; {remedy}")).with_source(cause)
    }

    /// Makes the error of a request or a URL that could not be signed although there were credentials. `what` names
    /// which of both.
    pub(super) fn unsigned(&self, what: &str, cause: &object_store::Error) -> Error {
        self.error(ErrorKind::Io, format!("the {what} cannot be signed: {}; report this", chain(cause)))
    }
}

/// Joins an error and its causes in one text, since the outermost error often says nothing.
fn chain(error: &dyn StdError) -> String {
    let mut text = error.to_string();
    let mut cause = error.source();
    while let Some(next) = cause {
        let more = next.to_string();
        // Some errors repeat the text of their cause.
        if !text.contains(&more) {
            text.push_str(": ");
            text.push_str(&more);
        }
        cause = next.source();
    }
    text
}

#[cfg(test)]
mod tests {
    use super::*;

    fn address() -> S3Address {
        S3Address {
            bucket: "b".to_owned(),
            region: "us-east-1".to_owned(),
            url: "https://x/b".to_owned(),
            setting: Some("s3_endpoint_url"),
            only_instance_credentials: false,
        }
    }

    fn read(status: u16, headers: &HeaderMap, text: &str) -> S3Refusal {
        let outside = Outside::of(StatusCode::from_u16(status).unwrap(), headers, "https://x/b");
        S3Refusal::read(outside, headers, text)
    }

    fn fault(status: u16, code: &str) -> Error {
        let address = address();
        let context = RequestContext { address: &address, operation: Operation::Store, key: None };
        let text = format!(
            "<?xml version=\"1.0\"?><Error><Code>{code}</Code><Message>m.</Message><StringToSign>s3cret</StringToSign></Error>"
        );
        let text = if code.is_empty() { String::new() } else { text };
        context.refused(read(status, &HeaderMap::new(), &text))
    }

    #[test]
    fn each_code_and_status_has_its_kind() {
        for (status, code, kind) in [
            (403, "AccessDenied", ErrorKind::Denied),
            (403, "", ErrorKind::Denied),
            (401, "", ErrorKind::Denied),
            (400, "ExpiredToken", ErrorKind::Denied),
            (403, "RequestTimeTooSkewed", ErrorKind::Denied),
            (404, "NoSuchBucket", ErrorKind::Invalid),
            (404, "NoSuchUpload", ErrorKind::Unavailable),
            (404, "", ErrorKind::Unavailable),
            (404, "NoSuchWebsiteConfiguration", ErrorKind::Io),
            (412, "PreconditionFailed", ErrorKind::Precondition),
            (412, "", ErrorKind::Precondition),
            (409, "ConditionalRequestConflict", ErrorKind::Precondition),
            (409, "BucketNotEmpty", ErrorKind::Io),
            (503, "SlowDown", ErrorKind::Throttled),
            (429, "", ErrorKind::Throttled),
            (503, "ServiceUnavailable", ErrorKind::Unavailable),
            (503, "", ErrorKind::Unavailable),
            (500, "InternalError", ErrorKind::Unavailable),
            (501, "NotImplemented", ErrorKind::Invalid),
            (507, "", ErrorKind::NoSpace),
            (400, "BadDigest", ErrorKind::Integrity),
            (400, "XAmzContentSHA256Mismatch", ErrorKind::Integrity),
            (400, "IncompleteBody", ErrorKind::Unavailable),
            (400, "EntityTooLarge", ErrorKind::Invalid),
            (400, "KeyTooLongError", ErrorKind::Invalid),
            (301, "PermanentRedirect", ErrorKind::Invalid),
            (400, "AuthorizationHeaderMalformed", ErrorKind::Invalid),
            (418, "", ErrorKind::Io),
        ] {
            let error = fault(status, code);
            assert_eq!(error.kind, kind, "{status} {code}");
            assert!(
                error.message().contains("https://x/b") && error.message().contains(&status.to_string()),
                "{error}"
            );
            assert!(!error.message().contains("s3cret"), "{error}");
        }
        assert!(fault(404, "NoSuchBucket").message().contains("aws s3 mb s3://b"));
        assert!(fault(403, "AccessDenied").message().contains("s3:ListBucket"));
    }

    #[test]
    fn a_missing_object_is_no_missing_bucket() {
        let read = |code: &str| {
            let text = format!("<Error><Code>{code}</Code></Error>");
            super::tests::read(404, &HeaderMap::new(), &text).is_missing()
        };
        assert!(read("NoSuchKey"));
        assert!(!read("NoSuchBucket") && !read("NoSuchUpload") && !read(""));
    }

    #[test]
    fn retry_after_and_region_are_read() {
        let headers = |name: &'static str, value: &str| {
            let mut headers = HeaderMap::new();
            headers.insert(name, value.parse().unwrap());
            headers
        };
        let read = |headers: &HeaderMap, text: &str| read(301, headers, text);
        assert_eq!(read(&headers("retry-after", "7"), "").retry_after, Some(Duration::from_secs(7)));
        let past = headers("retry-after", "Wed, 21 Oct 2015 07:28:00 GMT");
        assert_eq!(read(&past, "").retry_after, Some(Duration::ZERO));
        assert_eq!(read(&headers("retry-after", "soon"), "<not xml").retry_after, None);
        let region = read(&headers("x-amz-bucket-region", "eu-west-1"), "").meaning(&address()).1;
        assert!(region.contains("eu-west-1"), "{region}");
        let region = read(&HeaderMap::new(), "<Error><Code>x</Code><Region>eu-west-2</Region></Error>");
        assert!(region.meaning(&address()).1.contains("eu-west-2"));
    }

    #[test]
    fn a_failure_behind_a_success_status_is_a_failure() {
        let none = "<CompleteMultipartUploadResult><ETag>\"x\"</ETag></CompleteMultipartUploadResult>";
        assert!(S3Refusal::within(&HeaderMap::new(), none).is_none());
        let late = "  \n<Error><Code>InternalError</Code><Message>m</Message></Error>";
        let refusal = S3Refusal::within(&HeaderMap::new(), late).unwrap();
        assert_eq!(refusal.meaning(&address()).0, ErrorKind::Unavailable);
        let slow = "<Error><Code>SlowDown</Code></Error>";
        assert_eq!(S3Refusal::within(&HeaderMap::new(), slow).unwrap().meaning(&address()).0, ErrorKind::Throttled);
    }
}
