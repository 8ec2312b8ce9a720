//! Errors on the way to a bucket of Cloud Storage, and the one function that turns them into errors of this room.

use std::error::Error as Cause;
use std::fmt;
use std::io;
use std::time::Duration;

use google_cloud_auth::errors::CredentialsError;
use google_cloud_auth::signer;
use google_cloud_storage::error::{ReadError, SigningError};
use http::{HeaderMap, StatusCode};

use super::address::GcsAddress;
use super::{Error, ErrorKind, Key, Operation};
use crate::storage::backends::http::outside::Outside;
use crate::storage::backends::http::{cut, retry_after};
use crate::storage::files::spool::spool_fault;

/// How a user without credentials gets some.
const LOGIN: &str = "log in with `gcloud auth application-default login`, or name a key file in gcs_credentials_path";

/// A failed step, without the command that it was for.
#[derive(Debug)]
pub(super) enum GcsFault {
    /// The answer is no success.
    Answer(Answer),
    /// The answer did not arrive, or not completely.
    Unreachable(String),
    /// No bytes were transferred for this time.
    Stalled(Duration),
    /// The answer is none that Cloud Storage can give: its outside, if known, and what is wrong with it.
    Strange(Option<Outside>, String),
    /// The pages of a listing repeat.
    Repeating(&'static str),
    /// No token could be obtained.
    Login { passing: bool, why: String },
    /// The service that signs for this identity failed.
    Unsigned { passing: bool, why: String },
    /// The bucket does not exist.
    NoBucket,
    /// The bucket does not exist, and this identity may not create it.
    NotCreated(Answer),
    /// The object is replaced faster than it can be read.
    Replaced,
    /// Bytes are damaged: the message names fault and remedy.
    Damaged(String),
    /// Bytes in transit cannot be read from, or written to, the local disk.
    Disk(io::Error),
    /// The error is already one of this room.
    Other(Error),
}

/// An answer that is no success.
#[derive(Debug)]
pub(super) struct Answer {
    pub(super) status: u16,
    outside: Outside,
    /// Whether the body has a text that is not in Google's format.
    foreign: bool,
    /// The text of the server about the failure.
    reason: String,
    retry_after: Option<Duration>,
    /// In an upload session, the number of bytes that the bucket has.
    pub(super) persisted: u64,
}

impl Answer {
    pub(super) fn new(outside: Outside, headers: &HeaderMap, body: &[u8]) -> Self {
        let reason = reason(body);
        Self {
            status: outside.status.as_u16(),
            foreign: reason.is_empty() && !body.trim_ascii().is_empty(),
            outside,
            reason,
            retry_after: retry_after(headers),
            persisted: persisted(headers),
        }
    }

    /// Tells whether the answer cannot be Google's: a web page, JSON of another service, or a redirect, which this API
    /// never sends.
    pub(super) fn is_strange(&self) -> bool {
        match self.status {
            308 => self.outside.location().is_some(),
            300..=399 => true,
            407 | 412 | 429 => false,
            400..=499 => self.foreign,
            _ => false,
        }
    }

    /// Tells whether the answer says that an upload session is incomplete.
    pub(super) fn is_incomplete(&self) -> bool {
        self.status == 308 && !self.is_strange()
    }

    /// Tells whether the text of the answer says that the bucket or the object is missing.
    pub(super) fn missing(&self) -> Option<Missing> {
        if self.reason.contains("No such object") {
            Some(Missing::Object)
        } else if self.reason.contains("bucket does not exist") {
            Some(Missing::Bucket)
        } else {
            None
        }
    }

    /// Returns the kind of error for the status of the answer.
    fn kind(&self) -> ErrorKind {
        let about_bytes = || self.says("match") && ["crc32c", "md5", "checksum"].iter().any(|word| self.says(word));
        match self.status {
            403 if self.says("rateLimitExceeded") || self.says("rate limit") => ErrorKind::Throttled,
            401 | 403 | 407 => ErrorKind::Denied,
            412 => ErrorKind::Precondition,
            429 => ErrorKind::Throttled,
            400 if about_bytes() => ErrorKind::Integrity,
            // A name, a size or an option that the bucket does not accept.
            400 | 411 | 413 | 414 | 422 | 431 => ErrorKind::Invalid,
            // A conflict with another request, a lost session or position, or a failure of the server.
            308 | 404 | 408..=410 | 416 | 500..=599 => ErrorKind::Unavailable,
            _ => ErrorKind::Io,
        }
    }

    fn says(&self, word: &str) -> bool {
        self.reason.to_ascii_lowercase().contains(&word.to_ascii_lowercase())
    }
}

impl fmt::Display for Answer {
    fn fmt(&self, formatter: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(formatter, "{}", self.status)?;
        if self.reason.is_empty() { Ok(()) } else { write!(formatter, ": {}", self.reason) }
    }
}

/// The subject of a 404.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Missing {
    Object,
    Bucket,
}

impl GcsFault {
    /// Makes the error of an answer that Cloud Storage cannot have given.
    pub(super) fn strange(outside: Outside, what: impl Into<String>) -> Self {
        Self::Strange(Some(outside), what.into())
    }

    /// Tells whether the answer says that something is missing, and is no web page.
    pub(super) fn is_missing(&self) -> bool {
        matches!(self, Self::Answer(answer) if answer.status == 404 && !answer.is_strange())
    }

    /// Returns the status of an answer that is no success.
    pub(super) const fn status(&self) -> Option<u16> {
        match self {
            Self::Answer(answer) => Some(answer.status),
            _ => None,
        }
    }

    /// Tells whether an upload session can continue after this error.
    pub(super) fn can_continue(&self) -> bool {
        match self {
            Self::Unreachable(_) | Self::Stalled(_) => true,
            // 308 itself says that not all bytes have arrived.
            Self::Answer(answer) => answer.is_incomplete() || matches!(answer.status, 408 | 500..=599),
            _ => false,
        }
    }

    /// Turns the error into one of this room. No other function reads its variants for this purpose.
    pub(super) fn into_error(self, address: &GcsAddress, operation: Operation, key: Option<&Key>) -> Error {
        let bucket = address.bucket();
        let (kind, why) = match self {
            Self::Other(error) => return error,
            Self::Disk(error) => return spool_fault(operation, key, error),
            Self::Answer(answer) if answer.is_strange() => {
                let what = "is no answer of Cloud Storage";
                return Error::unexpected_answer(operation, key, strange(address, Some(&answer.outside), what));
            }
            Self::Strange(outside, what) => {
                return Error::unexpected_answer(operation, key, strange(address, outside.as_ref(), &what));
            }
            Self::Repeating(what) => {
                (ErrorKind::Io, format!("{address}: {what}; check which server answers instead of Cloud Storage"))
            }
            Self::Answer(answer) => {
                let retry_after = answer.retry_after;
                let (kind, why) = explain(address, &answer);
                return Error::new(kind, operation, key, why).with_retry_after(retry_after);
            }
            Self::Unreachable(why) => {
                let remedy = "check the network between this machine and the bucket, and try again";
                (ErrorKind::Unavailable, format!("{address} cannot be reached: {why}; {remedy}"))
            }
            Self::Stalled(idle_limit) => {
                let seconds = idle_limit.as_secs_f64();
                let remedy = "try again, or raise timeout_seconds if the line is slow";
                (ErrorKind::Unavailable, format!("{address} has not sent or taken any bytes for {seconds} s; {remedy}"))
            }
            Self::Login { passing: true, why } => (
                ErrorKind::Unavailable,
                format!("no token for {address} can be obtained now: {why}; try again, or {LOGIN}"),
            ),
            Self::Login { passing: false, why } => {
                (ErrorKind::Denied, format!("no token for {address} can be obtained: {why}; {LOGIN}"))
            }
            Self::Unsigned { passing, why } => {
                let kind = if passing { ErrorKind::Unavailable } else { ErrorKind::Denied };
                let remedy = "name a service account's key in gcs_credentials_path, or give this identity \
                            roles/iam.serviceAccountTokenCreator on itself";
                (kind, format!("no URL can be signed for {address}: {why}; {remedy}"))
            }
            Self::NoBucket => {
                let remedy = format!(
                    "`gcloud storage buckets create gs://{bucket}`, or set gcs_project_id, with which a store creates it"
                );
                (ErrorKind::Invalid, format!("{address} does not exist; create it with {remedy}"))
            }
            Self::NotCreated(answer) => {
                let remedy = format!("have it created with `gcloud storage buckets create gs://{bucket}`");
                let why = format!("{address} does not exist, and this identity may not create it ({answer}); {remedy}");
                (ErrorKind::Denied, why)
            }
            Self::Replaced => {
                let remedy = "try again when it is written less often";
                (ErrorKind::Unavailable, format!("the object is replaced faster than it can be read; {remedy}"))
            }
            Self::Damaged(why) => (ErrorKind::Integrity, why),
        };
        Error::new(kind, operation, key, why)
    }
}

/// Says which server gave an answer that Cloud Storage cannot have given, and what to do.
fn strange(address: &GcsAddress, outside: Option<&Outside>, what: &str) -> String {
    let server = address.server();
    let (named, remedy) = if address.is_emulator() {
        ("STORAGE_EMULATOR_HOST", "give it the address of the emulator's API, or leave it out to ask Google")
    } else {
        (
            "Google, since STORAGE_EMULATOR_HOST is unset,",
            "check the proxies and servers between this machine and Google",
        )
    };
    match outside {
        Some(outside) => format!(
            "{named} ({server}) cannot be understood: it answered {outside}, and that {what}; {}; {remedy}",
            outside.suspicion(server)
        ),
        None => format!("{named} ({server}) cannot be understood: its answer {what}; {remedy}"),
    }
}

/// Says what an answer means and what to do.
fn explain(address: &GcsAddress, answer: &Answer) -> (ErrorKind, String) {
    let bucket = address.bucket();
    let (kind, said) = (answer.kind(), answer);
    let why = match kind {
        ErrorKind::Denied if answer.status == 403 => format!(
            "{address} refuses this identity ({said}); let it in with `gcloud storage buckets add-iam-policy-binding \
             gs://{bucket} --member=… --role=roles/storage.objectAdmin`"
        ),
        ErrorKind::Denied => format!("{address} does not accept these credentials ({said}); {LOGIN}"),
        ErrorKind::Precondition => "another writer changed the object meanwhile; stat it and decide again".to_owned(),
        ErrorKind::Throttled => {
            format!(
                "{address} limits the rate of requests ({said}); try again later, and write one key at most once a second"
            )
        }
        ErrorKind::Integrity => {
            format!("{address} received other bytes than were sent ({said}); nothing was stored; store it again")
        }
        ErrorKind::Invalid => {
            format!("{address} does not accept the request ({said}); change the value that its answer names")
        }
        ErrorKind::Unavailable => format!("{address} answers {said}; try again later"),
        _ => format!("{address} answers {said}; check the bucket in the console"),
    };
    (kind, why)
}

impl From<Error> for GcsFault {
    fn from(error: Error) -> Self {
        Self::Other(error)
    }
}

/// The errors of other libraries are not kept as sources, because their texts contain addresses of upload sessions,
/// which are secrets.
impl From<reqwest::Error> for GcsFault {
    fn from(error: reqwest::Error) -> Self {
        Self::Unreachable(root(&error))
    }
}

impl From<google_cloud_storage::Error> for GcsFault {
    fn from(error: google_cloud_storage::Error) -> Self {
        if let Some(status) = error.http_status_code() {
            let none = HeaderMap::new();
            let headers = error.http_headers().unwrap_or(&none);
            let said = error.status().map(|status| status.message.as_bytes());
            let body = said.or_else(|| error.http_payload().map(AsRef::as_ref));
            let outside = Outside::of(StatusCode::from_u16(status).unwrap_or_default(), headers, "");
            return Self::Answer(Answer::new(outside, headers, body.unwrap_or_default()));
        }
        if error.is_authentication() {
            let cause = chain(&error).find_map(|cause| cause.downcast_ref::<CredentialsError>());
            return cause.map_or_else(|| Self::Login { passing: false, why: root(&error) }, Self::from);
        }
        match chain(&error).find_map(|cause| cause.downcast_ref::<ReadError>()) {
            Some(ReadError::ChecksumMismatch(_)) => {
                Self::Damaged("the bytes that arrived do not match their checksum; retrieve it again".to_owned())
            }
            Some(
                read @ (ReadError::MissingHeader(_)
                | ReadError::BadHeaderFormat(..)
                | ReadError::UnexpectedSuccessCode(_)),
            ) => Self::Strange(None, format!("is no object: {}", cut(&read.to_string()))),
            _ => Self::Unreachable(root(&error)),
        }
    }
}

impl From<&CredentialsError> for GcsFault {
    fn from(error: &CredentialsError) -> Self {
        if nobody_is_logged_in(error) {
            return Self::Login { passing: false, why: "nobody has logged in on this machine".to_owned() };
        }
        Self::Login { passing: error.is_transient(), why: root(error) }
    }
}

impl From<SigningError> for GcsFault {
    fn from(error: SigningError) -> Self {
        let cause = chain(&error).find_map(|cause| cause.downcast_ref::<signer::SigningError>());
        let passing = cause.is_some_and(signer::SigningError::is_transport) && !nobody_is_logged_in(&error);
        Self::Unsigned { passing, why: root(&error) }
    }
}

/// Tells whether the error is a lookup of the metadata server's name that failed.
///
/// The name exists only inside Google Cloud. Elsewhere the failure means that nobody has logged in, which does not
/// pass.
pub(super) fn nobody_is_logged_in(error: &(dyn Cause + 'static)) -> bool {
    chain(error).any(|cause| cause.to_string().contains("metadata.google.internal"))
        && chain(error).any(|cause| cause.to_string() == "dns error")
}

/// Iterates over an error and its causes.
pub(super) fn chain<'a>(error: &'a (dyn Cause + 'static)) -> impl Iterator<Item = &'a (dyn Cause + 'static)> {
    std::iter::successors(Some(error), |error| (*error).source())
}

/// Returns the text of the innermost cause, without the addresses that outer errors add.
pub(super) fn root(error: &(dyn Cause + 'static)) -> String {
    chain(error).last().map(|cause| cut(&cause.to_string())).unwrap_or_default()
}

/// Reads the server's text about a failed request: the message of Google's JSON, or a line of plain text.
fn reason(body: &[u8]) -> String {
    #[derive(serde::Deserialize)]
    struct Body {
        error: Said,
    }
    #[derive(serde::Deserialize)]
    struct Said {
        #[serde(default)]
        message: String,
        #[serde(default)]
        errors: Vec<Detail>,
    }
    #[derive(serde::Deserialize)]
    struct Detail {
        #[serde(default)]
        reason: String,
    }
    if let Ok(Body { error }) = serde_json::from_slice::<Body>(body) {
        let limits = error.errors.iter().find(|detail| detail.reason.contains("LimitExceeded"));
        return match limits {
            Some(detail) => cut(&format!("{}: {}", detail.reason, error.message)),
            None => cut(&error.message),
        };
    }
    let text = String::from_utf8_lossy(body);
    let text = text.trim();
    // A web page has no useful first line, and neither has the JSON of another service.
    if text.starts_with(['<', '{', '[']) { String::new() } else { cut(text.lines().next().unwrap_or_default()) }
}

/// Reads how many bytes of an upload session have arrived: `bytes=0-41` means 42, and no header means none.
fn persisted(headers: &HeaderMap) -> u64 {
    let range = headers.get(http::header::RANGE).and_then(|range| range.to_str().ok());
    let last = range.and_then(|range| range.strip_prefix("bytes=0-")?.parse::<u64>().ok());
    last.map_or(0, |last| last.saturating_add(1))
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::storage::backends::http::LONGEST_TEXT;

    fn answer(status: u16, headers: &HeaderMap, body: &str) -> Answer {
        let outside = Outside::of(StatusCode::from_u16(status).unwrap(), headers, "https://x/");
        Answer::new(outside, headers, body.as_bytes())
    }

    fn error_of(status: u16, headers: &HeaderMap, body: &str) -> Error {
        let address = GcsAddress::parse("b-1", None).unwrap();
        let answer = GcsFault::Answer(answer(status, headers, body));
        answer.into_error(&address, Operation::Store, Key::parse("k").ok().as_ref())
    }

    #[test]
    fn each_status_has_its_kind() {
        let json = |message: &str, reason: &str| {
            format!(r#"{{"error":{{"code":0,"message":{message:?},"errors":[{{"reason":{reason:?}}}]}}}}"#)
        };
        for (status, body, kind) in [
            (401, json("Invalid Credentials", "authError"), ErrorKind::Denied),
            (403, json("x does not have storage.objects.create access", "forbidden"), ErrorKind::Denied),
            (403, json("Too fast", "rateLimitExceeded"), ErrorKind::Throttled),
            (429, json("slow down", "rateLimitExceeded"), ErrorKind::Throttled),
            (412, json("conditionNotMet", "conditionNotMet"), ErrorKind::Precondition),
            (
                400,
                json("Provided CRC32C \"a\" doesn't match calculated CRC32C \"b\".", "invalid"),
                ErrorKind::Integrity,
            ),
            (400, json("Metadata too large", "invalid"), ErrorKind::Invalid),
            (400, json("Invalid name: md5/x", "invalid"), ErrorKind::Invalid),
            (413, String::new(), ErrorKind::Invalid),
            (404, String::new(), ErrorKind::Unavailable),
            (408, String::new(), ErrorKind::Unavailable),
            (410, String::new(), ErrorKind::Unavailable),
            (416, String::new(), ErrorKind::Unavailable),
            (500, String::new(), ErrorKind::Unavailable),
            (502, "<html>\n<title>Bad Gateway".to_owned(), ErrorKind::Unavailable),
            (503, "try later".to_owned(), ErrorKind::Unavailable),
            (402, String::new(), ErrorKind::Io),
            // None of these answers is Google's.
            (302, String::new(), ErrorKind::Unavailable),
            (403, "<html>Forbidden".to_owned(), ErrorKind::Unavailable),
            (405, "<html>Not Allowed".to_owned(), ErrorKind::Unavailable),
            (401, r#"{"detail":"log in"}"#.to_owned(), ErrorKind::Unavailable),
        ] {
            let error = error_of(status, &HeaderMap::new(), &body);
            assert_eq!(error.kind, kind, "{status} {body}: {error}");
            assert!(error.to_string().starts_with("store \"k\": ") && error.message().contains("; "), "{error}");
            assert!(!error.to_string().contains("html"), "{error}");
        }
        let denied = error_of(403, &HeaderMap::new(), &json("no access", "forbidden"));
        assert!(denied.message().contains("no access") && denied.message().contains("gs://b-1"), "{denied}");
    }

    #[test]
    fn texts_of_servers_are_shortened_and_cleaned() {
        let long = "x\n\u{1b}[31m".repeat(1000);
        let error =
            error_of(503, &HeaderMap::new(), &format!(r#"{{"error":{{"message":{}}}}}"#, serde_json::json!(long)));
        assert!(error.to_string().len() < 2 * LONGEST_TEXT && !error.to_string().contains('\u{1b}'), "{error}");
    }

    #[test]
    fn the_progress_of_a_session_is_read() {
        let persisted = |range: &str| {
            let headers = HeaderMap::from_iter([(http::header::RANGE, range.parse().unwrap())]);
            answer(308, &headers, "").persisted
        };
        assert_eq!([persisted("bytes=0-41"), persisted("bytes=5-41"), persisted("x")], [42, 0, 0]);
        assert_eq!(answer(308, &HeaderMap::new(), "").persisted, 0);
    }

    #[test]
    fn a_404_says_what_is_missing() {
        let missing = |body: &str| answer(404, &HeaderMap::new(), body).missing();
        assert_eq!(missing("No such object: b/k"), Some(Missing::Object));
        assert_eq!(missing(r#"{"error":{"message":"No such object: b/k"}}"#), Some(Missing::Object));
        let bucket = r#"{"error":{"message":"The specified bucket does not exist."}}"#;
        assert_eq!(missing(bucket), Some(Missing::Bucket));
        assert_eq!(missing("Not Found"), None);
    }
}
