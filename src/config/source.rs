//! The sources of the values of settings.

use std::fmt;
use std::path::PathBuf;

use crate::redact;

/// The source of one value.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Source {
    /// The value is the default.
    Default,
    /// The value stands in this configuration file.
    File(PathBuf),
    /// The value stands in this environment variable.
    Environment(String),
    /// The value was given with this flag, whose name includes its dashes.
    Flag(String),
    /// The fault lies in several settings together.
    Combination,
}

impl fmt::Display for Source {
    fn fmt(&self, formatter: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Default => formatter.write_str("default"),
            Self::File(path) => write!(formatter, "file {}", redact::path(path)),
            Self::Environment(name) => write!(formatter, "environment {name}"),
            Self::Flag(flag) => write!(formatter, "flag {flag}"),
            Self::Combination => formatter.write_str("together"),
        }
    }
}
