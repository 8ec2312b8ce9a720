//! The exit codes of the program, by sysexits, and the failure that ends a subcommand.

use std::process::ExitCode;

use crate::config::Faults;
use crate::storage::{Error, ErrorKind, KeyError, OptionError};

/// The exit code of the program.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[repr(u8)]
pub(crate) enum Code {
    Success = 0,
    Usage = 64,
    BadData = 65,
    NoInput = 66,
    Unavailable = 69,
    Io = 74,
    TryAgain = 75,
    NoPermission = 77,
    Configuration = 78,
}

impl From<Code> for ExitCode {
    fn from(code: Code) -> Self {
        Self::from(code as u8)
    }
}

/// The failure with which a subcommand ends.
#[derive(Debug)]
pub(crate) struct Failure {
    pub(crate) code: Code,
    /// The message for people, with cause and remedy.
    pub(crate) message: String,
    /// The single faults, when there are several.
    pub(crate) details: Vec<String>,
}

impl Failure {
    pub(crate) fn new(code: Code, message: impl Into<String>) -> Self {
        Self { code, message: message.into(), details: Vec::new() }
    }

    pub(crate) fn missing(key: &str) -> Self {
        Self::new(Code::NoInput, format!("no such key: {key}"))
    }
}

impl From<Faults> for Failure {
    fn from(faults: Faults) -> Self {
        let details: Vec<_> = faults.0.iter().map(ToString::to_string).collect();
        let message = match details.len() {
            1 => "the configuration has a fault".to_owned(),
            count => format!("the configuration has {count} faults"),
        };
        Self { code: Code::Configuration, message, details }
    }
}

impl From<Error> for Failure {
    fn from(error: Error) -> Self {
        let code = match error.kind {
            ErrorKind::Invalid | ErrorKind::Precondition | ErrorKind::Integrity => Code::BadData,
            ErrorKind::Missing => Code::NoInput,
            ErrorKind::NoSpace | ErrorKind::QuotaExceeded | ErrorKind::Io => Code::Io,
            ErrorKind::Denied => Code::NoPermission,
            ErrorKind::Unavailable | ErrorKind::Throttled => Code::Unavailable,
            ErrorKind::Abandoned => Code::TryAgain,
        };
        Self::new(code, error.to_string())
    }
}

impl From<KeyError> for Failure {
    fn from(error: KeyError) -> Self {
        Self::new(Code::BadData, error.to_string())
    }
}

impl From<OptionError> for Failure {
    fn from(error: OptionError) -> Self {
        Self::new(Code::BadData, error.to_string())
    }
}
