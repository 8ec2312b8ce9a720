//! The error type of this room: kind, operation, key and source.

use std::fmt;
use std::io;
use std::time::Duration;

use crate::redact::redact;
use crate::storage::object::Key;

/// Result of the storage room.
pub type Result<T, E = Error> = std::result::Result<T, E>;

/// The kind of an error, which alone decides whether a retry can help.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum ErrorKind {
    /// The request itself is wrong: a value, an option, a combination this backend cannot enforce.
    Invalid,
    /// `if_absent` or `if_generation` is not met.
    Precondition,
    /// Stored bytes do not match their checksum, cannot be decoded, or name another key.
    Integrity,
    /// A source, or the folder of a destination, does not exist. A key without an object is never this error.
    Missing,
    /// The disk is full.
    NoSpace,
    /// The write would store more than a quota allows.
    QuotaExceeded,
    /// The backend refuses this identity.
    Denied,
    /// The backend cannot be reached, or failed in a way that may pass by itself.
    Unavailable,
    /// The backend can be reached and limits the rate of requests (429): a retry helps, and another place does not.
    Throttled,
    /// The write was abandoned before its commit point, see [`super::CommitGuard`].
    Abandoned,
    /// Any other failure of the backend, such as an input/output error of the disk.
    Io,
}

/// Which operation failed.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Operation {
    /// Writing an object.
    Store,
    /// Storing the bytes of an object under another key.
    Copy,
    /// Reading an object.
    Retrieve,
    /// Reading attributes.
    Stat,
    /// Removing an object.
    Delete,
    /// Listing the versions of an object.
    Versions,
    /// Listing keys.
    List,
    /// Checking whether the place can be used.
    Probe,
    /// Making a signed URL.
    Sign,
}

impl Operation {
    /// Names the operation as commands do.
    #[must_use]
    pub const fn as_str(self) -> &'static str {
        match self {
            Self::Store => "store",
            Self::Copy => "copy",
            Self::Retrieve => "retrieve",
            Self::Stat => "stat",
            Self::Delete => "delete",
            Self::Versions => "versions",
            Self::List => "list",
            Self::Probe => "probe",
            Self::Sign => "signed_url",
        }
    }
}

/// A failed storage operation. The message names key, operation and remedy, never a payload or a secret.
#[derive(Debug, thiserror::Error)]
pub struct Error {
    /// The kind of the failure.
    pub kind: ErrorKind,
    /// The operation that failed.
    pub operation: Operation,
    /// The key, where the error concerns one.
    pub key: Option<Key>,
    /// How long the backend asks its caller to wait before the next attempt.
    pub retry_after: Option<Duration>,
    /// The file or foreign object that the error concerns, besides the key.
    pub subject: Option<String>,
    /// The answer is not one of the place itself, or it cannot be understood.
    unexpected_answer: bool,
    message: String,
    #[source]
    source: Option<Box<dyn std::error::Error + Send + Sync>>,
}

impl Error {
    /// Makes an error. `message` names the cause and the remedy.
    pub fn new(kind: ErrorKind, operation: Operation, key: Option<&Key>, message: impl Into<String>) -> Self {
        Self {
            kind,
            operation,
            key: key.cloned(),
            retry_after: None,
            subject: None,
            unexpected_answer: false,
            // Messages of other libraries contain URLs, and those of signed requests and of upload sessions are
            // secrets.
            message: redact(&message.into()).into_owned(),
            source: None,
        }
    }

    /// Adds the underlying error.
    #[must_use]
    pub fn with_source(mut self, source: impl Into<Box<dyn std::error::Error + Send + Sync>>) -> Self {
        self.source = Some(source.into());
        self
    }

    /// Adds how long the backend asks to wait.
    #[must_use]
    pub fn with_retry_after(self, retry_after: Option<Duration>) -> Self {
        Self { retry_after, ..self }
    }

    /// Adds which file or foreign object is concerned.
    #[must_use]
    pub fn with_subject(self, subject: impl Into<String>) -> Self {
        Self { subject: Some(subject.into()), ..self }
    }

    /// Makes the error of an answer that the place itself cannot have given. Such a place counts as unreachable.
    pub(in crate::storage) fn unexpected_answer(
        operation: Operation,
        key: Option<&Key>,
        message: impl Into<String>,
    ) -> Self {
        Self { unexpected_answer: true, ..Self::new(ErrorKind::Unavailable, operation, key, message) }
    }

    /// Notes whether the last answer of a place that gets no requests for now was one that the place itself cannot have
    /// given.
    pub(in crate::storage) fn with_unexpected_answer(self, unexpected_answer: bool) -> Self {
        Self { unexpected_answer, ..self }
    }

    /// Makes the error of a write that its commit guard forbade.
    pub(in crate::storage) fn abandoned(operation: Operation, key: &Key) -> Self {
        let why = "abandoned before its commit point; nothing was changed";
        Self::new(ErrorKind::Abandoned, operation, Some(key), why)
    }

    /// Makes the error of a place that has no signed URLs.
    pub(in crate::storage) fn unsigned(key: &Key) -> Self {
        let why = "only a bucket has signed URLs; retrieve the value, or name a bucket in the settings";
        Self::new(ErrorKind::Invalid, Operation::Sign, Some(key), why)
    }

    /// Makes the error of a place that keeps only the present object of each key. `place` begins the message.
    pub(in crate::storage) fn unversioned(operation: Operation, key: &Key, place: &str) -> Self {
        let why =
            format!("{place} keeps no earlier versions; leave the generation out, or use a bucket with versioning");
        Self::new(ErrorKind::Invalid, operation, Some(key), why)
    }

    /// Makes the error of bytes in a file that cannot be read.
    pub(in crate::storage) fn unread(operation: Operation, key: &Key, error: io::Error) -> Self {
        let (kind, why) = match error.kind() {
            io::ErrorKind::UnexpectedEof => {
                (ErrorKind::Integrity, "the source became shorter while it was read; try again".to_owned())
            }
            _ => (ErrorKind::Io, format!("the value's bytes cannot be read: {error}; check the disk they are on")),
        };
        Self::new(kind, operation, Some(key), why).with_source(error)
    }

    /// Replaces the operation: the error of one step becomes that of the whole operation.
    #[must_use]
    pub(in crate::storage) fn during(self, operation: Operation) -> Self {
        Self { operation, ..self }
    }

    /// Appends a remark to the message.
    #[must_use]
    pub(crate) fn noting(mut self, remark: &str) -> Self {
        self.message = format!("{}; {remark}", self.message);
        self
    }

    /// Returns the message, which names cause and remedy, without operation and key.
    #[must_use]
    pub fn message(&self) -> &str {
        &self.message
    }

    /// Tells whether the answer was not one of the place itself, or could not be understood. A person has to look at
    /// the cause, though the state may also pass by itself.
    #[must_use]
    pub const fn is_unexpected_answer(&self) -> bool {
        self.unexpected_answer
    }

    /// Tells whether a later retry can help.
    #[must_use]
    pub const fn is_transient(&self) -> bool {
        matches!(self.kind, ErrorKind::Unavailable | ErrorKind::Throttled)
    }
}

impl fmt::Display for Error {
    fn fmt(&self, formatter: &mut fmt::Formatter<'_>) -> fmt::Result {
        // Nobody asked for a probe by that name, so the message stands alone.
        if self.operation == Operation::Probe && self.key.is_none() {
            return formatter.write_str(&self.message);
        }
        write!(formatter, "{}", self.operation.as_str())?;
        if let Some(key) = &self.key {
            write!(formatter, " {key:?}")?;
        }
        write!(formatter, ": {}", self.message)
    }
}
