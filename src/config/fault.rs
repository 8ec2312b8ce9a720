//! What is wrong with the configuration: every fault, not only the first.

use std::fmt;

use super::Source;

/// One thing wrong with one setting.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct SettingFault {
    /// The setting, or the unknown name.
    pub setting: String,
    /// The value that was given, where it is a number or a secret's stars; anything else may be a secret in the wrong place.
    pub value: Option<String>,
    /// Where it was given.
    pub source: Source,
    /// What is wrong, and what is allowed.
    pub message: String,
}

impl fmt::Display for SettingFault {
    fn fmt(&self, formatter: &mut fmt::Formatter<'_>) -> fmt::Result {
        formatter.write_str(&self.setting)?;
        if let Some(value) = &self.value {
            write!(formatter, " = {value:?}")?;
        }
        write!(formatter, " ({}): {}", self.source, self.message)
    }
}

/// Everything wrong with the configuration, one line each.
#[derive(Debug, PartialEq, Eq)]
pub struct Faults(pub Vec<SettingFault>);

impl fmt::Display for Faults {
    fn fmt(&self, formatter: &mut fmt::Formatter<'_>) -> fmt::Result {
        let count = self.0.len();
        write!(formatter, "{count} configuration {}", if count == 1 { "fault" } else { "faults" })?;
        for fault in &self.0 {
            write!(formatter, "\n  {fault}")?;
        }
        Ok(())
    }
}

impl std::error::Error for Faults {}
