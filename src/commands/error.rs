//! Why a command failed, in terms of the exception its caller sees.

use std::fmt;

use crate::json::Json;
use crate::storage::{Error, ErrorKind, Key};

/// A failed command: the Python exception its caller raises, and whether trying again can help.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct CommandError {
    /// Which exception.
    pub exception: ExceptionClass,
    /// The exception's arguments.
    pub args: Vec<Json>,
    /// Whether the same command may succeed later.
    pub transient: bool,
}

/// The exceptions a command can answer with.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum ExceptionClass {
    /// Wrong arguments.
    TypeError,
    /// A bad key, value or option.
    ValueError,
    /// A file system or disk error: `[errno, text, name]`.
    OsError,
    /// What a command needs is not there: `[2, text, name]`.
    FileNotFoundError,
    /// The backend refuses.
    PermissionError,
    /// `if_absent` or `if_generation` not met.
    PreconditionFailed,
    /// Damaged bytes.
    IntegrityError,
    /// The backend cannot be reached.
    StorageUnavailable,
}

impl ExceptionClass {
    /// Returns class name and module, as `exc_type` and `exc_module` of a Celery result.
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
            Self::StorageUnavailable => ("StorageUnavailable", "filestorage.exceptions"),
        }
    }
}

impl CommandError {
    fn with_text(exception: ExceptionClass, text: impl Into<String>) -> Self {
        Self { exception, args: vec![Json::Text(text.into())], transient: false }
    }

    /// Makes a `TypeError`.
    pub fn type_error(text: impl Into<String>) -> Self {
        Self::with_text(ExceptionClass::TypeError, text)
    }

    /// Makes a `ValueError`.
    pub fn value_error(text: impl Into<String>) -> Self {
        Self::with_text(ExceptionClass::ValueError, text)
    }
}

/// `OSError`'s three arguments, the last naming the file or, without one, the key; Python makes the fitting subclass and `errno`, `strerror`, `filename` of them.
fn os_error(errno: i64, text: &str, error: &Error) -> Vec<Json> {
    let mut args = vec![errno.into(), text.into()];
    let name = error.subject.as_deref().or(error.key.as_ref().map(Key::as_str));
    args.extend(name.map(Json::from));
    args
}

/// "Input/output error", for a fault that has no number of its own.
const EIO: i64 = 5;

/// Finds the operating system's number behind an error.
fn errno(error: &Error) -> Option<i64> {
    let source = std::error::Error::source(error)?;
    source.downcast_ref::<std::io::Error>()?.raw_os_error().map(i64::from)
}

impl From<Error> for CommandError {
    /// Maps the storage room's kinds; the one table between both rooms.
    fn from(error: Error) -> Self {
        let transient = error.is_transient();
        let text = || vec![Json::Text(error.to_string())];
        let (exception, args) = match error.kind {
            ErrorKind::Invalid => (ExceptionClass::ValueError, text()),
            ErrorKind::Precondition => (ExceptionClass::PreconditionFailed, text()),
            ErrorKind::Integrity => (ExceptionClass::IntegrityError, text()),
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
