//! Where the value of a setting was given.

use std::fmt;
use std::path::PathBuf;

use crate::redact;

/// Where one value was given.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Source {
    /// Nowhere: the default holds.
    Default,
    /// In this file.
    File(PathBuf),
    /// In this environment variable.
    Environment(String),
    /// By this flag, dashes included.
    Flag(String),
    /// By several settings together.
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
