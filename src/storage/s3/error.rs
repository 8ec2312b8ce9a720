//! What a failed request means: the one place where answers and broken connections become the room's errors.

use std::error::Error as StdError;
use std::time::Duration;

use http::{HeaderMap, StatusCode, header};
use jiff::Timestamp;
use object_store::client::HttpError;

use super::super::{Error, ErrorKind, Key, Operation};
use super::options::Address;
use super::wire;

/// Who was asked, and for what.
#[derive(Clone, Copy)]
pub(super) struct Asked<'a> {
    pub(super) address: &'a Address,
    pub(super) operation: Operation,
    pub(super) key: Option<&'a Key>,
}

/// An answer that is no success.
#[derive(Debug)]
pub(super) struct Refusal {
    status: StatusCode,
    /// S3's name of the cause; empty where the answer has none.
    code: String,
    message: String,
    retry_after: Option<Duration>,
    /// The region the bucket is really in.
    region: Option<String>,
}

/// S3's error document.
#[derive(Default, serde::Deserialize)]
#[serde(rename_all = "PascalCase", default)]
struct Document {
    code: Option<String>,
    message: Option<String>,
    region: Option<String>,
}

impl Refusal {
    /// Reads an answer that is no success.
    pub(super) fn read(status: StatusCode, headers: &HeaderMap, text: &str) -> Self {
        let document: Document = quick_xml::de::from_str(text).unwrap_or_default();
        let region = wire::text(headers, "x-amz-bucket-region").map(str::to_owned);
        Self {
            status,
            code: document.code.unwrap_or_default(),
            message: document.message.unwrap_or_default(),
            retry_after: wire::text(headers, header::RETRY_AFTER.as_str()).and_then(retry_after),
            region: document.region.or(region),
        }
    }

    /// Reads the text of an answer whose status says success; S3 may notice only behind it that it failed.
    pub(super) fn within(headers: &HeaderMap, text: &str) -> Option<Self> {
        let refusal = Self::read(StatusCode::INTERNAL_SERVER_ERROR, headers, text);
        (!refusal.code.is_empty()).then_some(refusal)
    }

    /// Tells whether the answer is that no object is there.
    pub(super) fn is_missing(&self) -> bool {
        self.status == StatusCode::NOT_FOUND && matches!(&*self.code, "NoSuchKey" | "NoSuchVersion")
    }

    /// Decides the kind, and what to do about it.
    fn meaning(&self, address: &Address) -> (ErrorKind, String) {
        let Address { bucket, region, .. } = address;
        let fixed = |kind, mend: &str| (kind, mend.to_owned());
        match &*self.code {
            "NoSuchBucket" => {
                let mend =
                    format!("correct the bucket's name, or create it with `aws s3 mb s3://{bucket} --region {region}`");
                return (ErrorKind::Invalid, mend);
            }
            "PreconditionFailed" | "ConditionalRequestConflict" => {
                return fixed(ErrorKind::Precondition, "the object has changed meanwhile; stat it and decide again");
            }
            "RequestTimeTooSkewed" | "RequestInTheFuture" => {
                return fixed(ErrorKind::Denied, "set this machine's clock, which the signature depends on");
            }
            "ExpiredToken" | "InvalidToken" | "TokenRefreshRequired" => {
                return fixed(ErrorKind::Denied, "set AWS_SESSION_TOKEN anew together with both keys");
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
            | "OperationAborted" => return fixed(ErrorKind::Throttled, "it asks for patience; try again later"),
            "BadDigest" | "InvalidDigest" | "XAmzContentSHA256Mismatch" | "XAmzContentChecksumMismatch" => {
                return fixed(ErrorKind::Integrity, "the bytes were changed on the way; store them again");
            }
            // Of a connection that broke while the request was being sent, and of an upload that somebody tidied up.
            "IncompleteBody" | "RequestTimeout" | "NoSuchUpload" | "InvalidPart" => {
                return fixed(ErrorKind::Unavailable, "nothing was written; try again");
            }
            "KeyTooLongError" => return fixed(ErrorKind::Invalid, "this store takes only shorter keys or segments"),
            "EntityTooLarge" | "MetadataTooLarge" => return fixed(ErrorKind::Invalid, "store less under one key"),
            "NotImplemented"
            | "InvalidArgument"
            | "InvalidRequest"
            | "InvalidObjectName"
            | "XMinioInvalidObjectName" => {
                return fixed(ErrorKind::Invalid, "this store cannot do that");
            }
            "QuotaExceeded" | "InsufficientStorage" | "XMinioStorageFull" => {
                return fixed(ErrorKind::NoSpace, "make room in the store");
            }
            _ => {}
        }
        let wrong_region = matches!(&*self.code, "AuthorizationHeaderMalformed" | "IllegalLocationConstraintException");
        match self.status.as_u16() {
            300..=399 => self.elsewhere(region),
            400 if wrong_region => self.elsewhere(region),
            401 | 403 => {
                let mend = format!(
                    "allow this identity s3:GetObject, s3:PutObject, s3:DeleteObject and s3:AbortMultipartUpload on \
                     arn:aws:s3:::{bucket}/*, and s3:ListBucket on arn:aws:s3:::{bucket}"
                );
                (ErrorKind::Denied, mend)
            }
            412 => fixed(ErrorKind::Precondition, "the object has changed meanwhile; stat it and decide again"),
            429 => fixed(ErrorKind::Throttled, "it asks for patience; try again later"),
            507 => fixed(ErrorKind::NoSpace, "make room in the store"),
            500..=599 => fixed(ErrorKind::Unavailable, "try again later"),
            // Of something in between, while the store itself is away: a store names what is missing.
            404 | 408 | 425 if self.code.is_empty() => {
                fixed(ErrorKind::Unavailable, "is the store itself up? try again later")
            }
            _ => fixed(ErrorKind::Io, "look at the store's own log"),
        }
    }

    fn elsewhere(&self, given: &str) -> (ErrorKind, String) {
        let mend = match &self.region {
            Some(region) => format!("the bucket is in the region {region}, not in {given}; set s3_region to it"),
            None => format!("the bucket is not in the region {given}, or not at this endpoint; correct s3_region"),
        };
        (ErrorKind::Invalid, mend)
    }
}

impl Asked<'_> {
    fn error(&self, kind: ErrorKind, message: String) -> Error {
        Error::new(kind, self.operation, self.key, message)
    }

    /// The error of a refusal.
    pub(super) fn refused(&self, refusal: Refusal) -> Error {
        let (kind, mend) = refusal.meaning(self.address);
        let Refusal { status, code, message, retry_after, .. } = refusal;
        let code = if code.is_empty() { status.to_string() } else { format!("{} {code}", status.as_u16()) };
        let dash = if message.is_empty() { "" } else { ": " };
        let message = cut(message.trim_end_matches('.'));
        let why = format!("{} answered {code}{dash}{message}; {mend}", self.address.url);
        self.error(kind, why).with_retry_after(retry_after)
    }

    /// The error of a connection that could not be made, broke or stalled.
    pub(super) fn broken(&self, cause: HttpError) -> Error {
        let why =
            format!("{} cannot be reached: {}; is it up, and within reach from here?", self.address.url, chain(&cause));
        self.error(ErrorKind::Unavailable, why).with_source(cause)
    }

    /// The error of an answer that no store should give.
    pub(super) fn senseless(&self, what: &str) -> Error {
        let why = format!("{} cannot be understood: {}; is it an S3 store, and up?", self.address.url, cut(what));
        self.error(ErrorKind::Unavailable, why)
    }

    /// The error of bytes that are not those they are said to be.
    pub(super) fn damaged(&self, what: &str) -> Error {
        self.error(ErrorKind::Integrity, format!("{what}; store the value again, or restore the object from a backup"))
    }

    /// The error of credentials that could not be had; `before` when they could be once.
    pub(super) fn unknown(&self, cause: object_store::Error, before: bool) -> Error {
        let text = chain(&cause);
        // `object_store` says it only in words; a test asks for them.
        let refused = text.contains("status code: 4");
        let (kind, mend) = match (refused, self.address.only_instance_credentials && !before) {
            // Nowhere but on an EC2 instance can it be asked for, and there it is always within reach.
            (_, true) => (
                ErrorKind::Denied,
                "set AWS_ACCESS_KEY_ID and AWS_SECRET_ACCESS_KEY (profiles are not read), or give this machine a role",
            ),
            (true, false) => (ErrorKind::Denied, "let this identity assume its role"),
            (false, false) => (ErrorKind::Unavailable, "is the service that gives them within reach?"),
        };
        self.error(kind, format!("no AWS credentials: {text}; {mend}")).with_source(cause)
    }

    /// The error of a request that could not be signed.
    pub(super) fn unsigned(&self, cause: &object_store::Error) -> Error {
        self.error(ErrorKind::Io, format!("the request cannot be signed: {}; report this", chain(cause)))
    }
}

/// Longest text of a store that is passed on, in characters.
const LONGEST_TEXT: usize = 300;

/// Shortens what a store says, and keeps it in one line.
fn cut(text: &str) -> String {
    let plain = |character: char| if character.is_control() { ' ' } else { character };
    text.chars().take(LONGEST_TEXT).map(plain).collect()
}

/// Seconds, or a date.
fn retry_after(text: &str) -> Option<Duration> {
    if let Ok(seconds) = text.parse() {
        return Some(Duration::from_secs(seconds));
    }
    let until = date(text)?.duration_since(Timestamp::now());
    Some(Duration::try_from(until).unwrap_or_default())
}

/// Reads a date as HTTP writes it.
pub(super) fn date(text: &str) -> Option<Timestamp> {
    jiff::fmt::rfc2822::parse(text).ok().map(|date| date.timestamp())
}

/// Says an error with all its causes, since the outermost often says nothing.
fn chain(error: &dyn StdError) -> String {
    let mut text = error.to_string();
    let mut cause = error.source();
    while let Some(next) = cause {
        let more = next.to_string();
        // Some say their cause's text themselves.
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

    fn address() -> Address {
        Address {
            bucket: "b".to_owned(),
            region: "us-east-1".to_owned(),
            url: "https://x/b".to_owned(),
            only_instance_credentials: false,
        }
    }

    fn fault(status: u16, code: &str) -> Error {
        let address = address();
        let asked = Asked { address: &address, operation: Operation::Store, key: None };
        let text = format!(
            "<?xml version=\"1.0\"?><Error><Code>{code}</Code><Message>m.</Message><StringToSign>s3cret</StringToSign></Error>"
        );
        let text = if code.is_empty() { String::new() } else { text };
        asked.refused(Refusal::read(StatusCode::from_u16(status).unwrap(), &HeaderMap::new(), &text))
    }

    #[test]
    fn the_table() {
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
            Refusal::read(StatusCode::NOT_FOUND, &HeaderMap::new(), &text).is_missing()
        };
        assert!(read("NoSuchKey"));
        assert!(!read("NoSuchBucket") && !read("NoSuchUpload") && !read(""));
    }

    #[test]
    fn the_store_says_how_long_and_where() {
        let headers = |name: &'static str, value: &str| {
            let mut headers = HeaderMap::new();
            headers.insert(name, value.parse().unwrap());
            headers
        };
        let read = |headers: &HeaderMap, text: &str| Refusal::read(StatusCode::MOVED_PERMANENTLY, headers, text);
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
    fn a_failure_behind_a_success_is_one() {
        let none = "<CompleteMultipartUploadResult><ETag>\"x\"</ETag></CompleteMultipartUploadResult>";
        assert!(Refusal::within(&HeaderMap::new(), none).is_none());
        let late = "  \n<Error><Code>InternalError</Code><Message>m</Message></Error>";
        let refusal = Refusal::within(&HeaderMap::new(), late).unwrap();
        assert_eq!(refusal.meaning(&address()).0, ErrorKind::Unavailable);
        let slow = "<Error><Code>SlowDown</Code></Error>";
        assert_eq!(Refusal::within(&HeaderMap::new(), slow).unwrap().meaning(&address()).0, ErrorKind::Throttled);
    }
}
