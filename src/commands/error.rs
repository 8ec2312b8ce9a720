//! The error of a command, as the Python exception that its caller gets.

use std::fmt;

use crate::json::Json;
use crate::storage::{Error, ErrorKind, Key};

/// The failure of a command: the Python exception that the caller gets, and whether a retry can help.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct CommandError {
    /// The class of the exception.
    pub exception: ExceptionClass,
    /// The arguments of the exception.
    pub args: Vec<Json>,
    /// Tells whether the same command may succeed later.
    pub transient: bool,
}

/// The classes of the exceptions that a command can raise.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum ExceptionClass {
    /// The arguments do not fit the signature, or have a wrong type.
    TypeError,
    /// A key, a value or an option is not allowed.
    ValueError,
    /// The file system or the disk failed. The arguments are `[errno, text, name]`.
    OsError,
    /// A file or folder that the command names does not exist. The arguments are `[2, text, name]`.
    FileNotFoundError,
    /// The backend refuses access. The arguments are `[13, text, name]`.
    PermissionError,
    /// The condition `if_absent` or `if_generation` is not met.
    PreconditionFailed,
    /// The stored bytes are damaged.
    IntegrityError,
    /// The write would store more than a quota allows.
    QuotaExceeded,
    /// The backend cannot be reached.
    StorageUnavailable,
}

impl ExceptionClass {
    /// Returns the name and the module of the class: `exc_type` and `exc_module` of a Celery result.
    #[must_use]
    pub const fn class(self) -> (&'static str, &'static str) {
        match self {
            Self::TypeError => ("TypeError", "builtins"),
            Self::ValueError => ("ValueError", "builtins"),
            Self::OsError => ("OSError", "builtins"),
            Self::FileNotFoundError => ("FileNotFoundError", "builtins"),
            Self::PermissionError => ("PermissionError", "builtins"),
            Self::PreconditionFailed => ("PreconditionFailed", "filestorage.exceptions"),
            Self::IntegrityError => ("IntegrityError", "filestorage.exceptions"),
            Self::QuotaExceeded => ("QuotaExceeded", "filestorage.exceptions"),
            Self::StorageUnavailable => ("StorageUnavailable", "filestorage.exceptions"),
        }
    }
}

impl CommandError {
    fn with_text(exception: ExceptionClass, text: impl Into<String>) -> Self {
        Self { exception, args: vec![Json::Text(text.into())], transient: false }
    }

    /// Tells whether the backend could not be reached, after all retries and without a fallback: the command may be tried again later.
    #[must_use]
    pub fn is_outage(&self) -> bool {
        self.transient && self.exception == ExceptionClass::StorageUnavailable
    }

    /// Makes a `TypeError`.
    pub fn type_error(text: impl Into<String>) -> Self {
        Self::with_text(ExceptionClass::TypeError, text)
    }

    /// Makes an `OSError` about a fault of the file system that has no number.
    pub fn io_error(text: impl Into<String>) -> Self {
        let args = vec![EIO.into(), Json::Text(text.into())];
        Self { exception: ExceptionClass::OsError, args, transient: false }
    }

    /// Makes a `ValueError`.
    pub fn value_error(text: impl Into<String>) -> Self {
        Self::with_text(ExceptionClass::ValueError, text)
    }
}

/// Makes the arguments of an `OSError`: number, text, and the name of the file or key.
///
/// From the number, Python chooses the subclass. From all three, it sets `errno`, `strerror` and `filename`.
fn os_error(errno: i64, text: &str, error: &Error) -> Vec<Json> {
    let mut args = vec![errno.into(), text.into()];
    let name = error.subject.as_deref().or(error.key.as_ref().map(Key::as_str));
    args.extend(name.map(Json::from));
    args
}

/// The number of "Input/output error", for a fault without a number.
const EIO: i64 = 5;

/// Returns the operating system's number of an error, where it has one.
fn errno(error: &Error) -> Option<i64> {
    let source = std::error::Error::source(error)?;
    source.downcast_ref::<std::io::Error>()?.raw_os_error().map(i64::from)
}

impl From<Error> for CommandError {
    /// Maps a kind of storage error to a class of exception. No other place maps them.
    fn from(error: Error) -> Self {
        let transient = error.is_transient();
        let text = || vec![Json::Text(error.to_string())];
        let (exception, args) = match error.kind {
            ErrorKind::Invalid => (ExceptionClass::ValueError, text()),
            ErrorKind::Precondition => (ExceptionClass::PreconditionFailed, text()),
            ErrorKind::Integrity => (ExceptionClass::IntegrityError, text()),
            ErrorKind::QuotaExceeded => (ExceptionClass::QuotaExceeded, text()),
            ErrorKind::Missing => (ExceptionClass::FileNotFoundError, os_error(2, "No such file or directory", &error)),
            ErrorKind::NoSpace => (ExceptionClass::OsError, os_error(28, "No space left on device", &error)),
            ErrorKind::Io => {
                (ExceptionClass::OsError, os_error(errno(&error).unwrap_or(EIO), &error.to_string(), &error))
            }
            ErrorKind::Denied => (ExceptionClass::PermissionError, os_error(13, &error.to_string(), &error)),
            ErrorKind::Unavailable | ErrorKind::Throttled | ErrorKind::Abandoned => {
                (ExceptionClass::StorageUnavailable, text())
            }
        };
        Self { exception, args, transient }
    }
}

impl fmt::Display for CommandError {
    fn fmt(&self, formatter: &mut fmt::Formatter<'_>) -> fmt::Result {
        let texts: Vec<String> =
            self.args.iter().map(|arg| arg.as_text().map_or_else(|| arg.compact(), str::to_owned)).collect();
        formatter.write_str(&texts.join(" "))
    }
}

impl std::error::Error for CommandError {}
