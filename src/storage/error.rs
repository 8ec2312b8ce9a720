//! One error for the whole room: kind, operation, key, source.

use std::fmt;
use std::io;
use std::time::Duration;

use crate::redact::redact;
use crate::storage::object::Key;

/// Result of the storage room.
pub type Result<T, E = Error> = std::result::Result<T, E>;

/// What went wrong; the kind alone decides whether trying again can help.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum ErrorKind {
    /// The request itself is wrong: a value, an option, a combination this backend cannot enforce.
    Invalid,
    /// `if_absent` or `if_generation` is not met.
    Precondition,
    /// Stored bytes do not match their checksum, cannot be decoded, or name another key.
    Integrity,
    /// What is needed is not there: a source, or the folder of a destination. Never what a miss of a key is.
    Missing,
    /// The disk is full.
    NoSpace,
    /// The backend refuses this identity.
    Denied,
    /// The backend cannot be reached, or failed in a way that may pass.
    Unavailable,
    /// The backend can be reached and asks for patience (429): trying again helps, going elsewhere does not.
    Throttled,
    /// The write was abandoned before its commit point, see [`super::CommitGuard`].
    Abandoned,
    /// Any other fault of the backend, e.g. an input/output error of the disk.
    Io,
}

/// Which operation failed.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Operation {
    /// Writing an object.
    Store,
    /// Reading an object.
    Retrieve,
    /// Reading attributes.
    Stat,
    /// Removing an object.
    Delete,
    /// Listing keys.
    List,
    /// Looking whether the place can be used.
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
            Self::Retrieve => "retrieve",
            Self::Stat => "stat",
            Self::Delete => "delete",
            Self::List => "list",
            Self::Probe => "probe",
            Self::Sign => "signed_url",
        }
    }
}

/// A failed storage operation. The message names key, operation and mend, never payload or secret.
#[derive(Debug, thiserror::Error)]
pub struct Error {
    /// What went wrong.
    pub kind: ErrorKind,
    /// Which operation.
    pub operation: Operation,
    /// Which key, when one is concerned.
    pub key: Option<Key>,
    /// How long the backend asks to wait before the next attempt.
    pub retry_after: Option<Duration>,
    /// Which file or foreign object, when one beside the key is concerned.
    pub subject: Option<String>,
    /// What answered is not the place, or not to be understood.
    senseless: bool,
    message: String,
    #[source]
    source: Option<Box<dyn std::error::Error + Send + Sync>>,
}

impl Error {
    /// Makes an error; `message` says the cause and the mend.
    pub fn new(kind: ErrorKind, operation: Operation, key: Option<&Key>, message: impl Into<String>) -> Self {
        Self {
            kind,
            operation,
            key: key.cloned(),
            retry_after: None,
            subject: None,
            senseless: false,
            // Foreign libraries' words hold URLs, and those of signed requests and upload sessions are secrets.
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

    /// Makes the error of an answer that the place itself cannot have given; it counts as unreachable.
    pub(in crate::storage) fn senseless(operation: Operation, key: Option<&Key>, message: impl Into<String>) -> Self {
        Self { senseless: true, ..Self::new(ErrorKind::Unavailable, operation, key, message) }
    }

    /// Makes the error of a place that is left alone, for the reason that it was last seen to have.
    pub(in crate::storage) fn while_senseless(self, senseless: bool) -> Self {
        Self { senseless, ..self }
    }

    /// Makes the error of a write that its commit_guard forbade.
    pub(in crate::storage) fn abandoned(operation: Operation, key: &Key) -> Self {
        let why = "abandoned before its commit point; nothing was changed";
        Self::new(ErrorKind::Abandoned, operation, Some(key), why)
    }

    /// Makes the error of a place that has no signed URLs.
    pub(in crate::storage) fn unsigned(key: &Key) -> Self {
        let why = "only a bucket has signed URLs; retrieve the value, or name a bucket in the settings";
        Self::new(ErrorKind::Invalid, Operation::Sign, Some(key), why)
    }

    /// Makes the error of bytes that lie in a file and cannot be read from there.
    pub(in crate::storage) fn unread(operation: Operation, key: &Key, error: io::Error) -> Self {
        let (kind, why) = match error.kind() {
            io::ErrorKind::UnexpectedEof => {
                (ErrorKind::Integrity, "the source became shorter while it was read; try again".to_owned())
            }
            _ => (ErrorKind::Io, format!("the value's bytes cannot be read: {error}; look at the disk they are on")),
        };
        Self::new(kind, operation, Some(key), why).with_source(error)
    }

    /// Renames the operation: a step's error as that of the whole.
    #[must_use]
    pub(in crate::storage) fn during(self, operation: Operation) -> Self {
        Self { operation, ..self }
    }

    /// Adds a remark behind cause and mend.
    #[must_use]
    pub(in crate::storage) fn noting(mut self, remark: &str) -> Self {
        self.message = format!("{}; {remark}", self.message);
        self
    }

    /// Returns cause and mend without operation and key.
    #[must_use]
    pub fn message(&self) -> &str {
        &self.message
    }

    /// Tells whether something answered that is not the place, or cannot be understood: a person has to look, and yet it
    /// may pass.
    #[must_use]
    pub const fn is_senseless(&self) -> bool {
        self.senseless
    }

    /// Tells whether trying again later can help.
    #[must_use]
    pub const fn is_transient(&self) -> bool {
        matches!(self.kind, ErrorKind::Unavailable | ErrorKind::Throttled)
    }
}

impl fmt::Display for Error {
    fn fmt(&self, formatter: &mut fmt::Formatter<'_>) -> fmt::Result {
        // What nobody asked for by that name needs none: the message says it all.
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
