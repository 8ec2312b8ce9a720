//! The faults of a configuration.

use std::fmt;

use super::Source;

/// One fault of one setting.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct SettingFault {
    /// The name of the setting, or the unknown name.
    pub setting: String,
    /// The value that was given, when it is a number, the path of a file of secrets, or the stars that hide a secret. Any
    /// other value may be a misplaced secret.
    pub value: Option<String>,
    /// The source of the value.
    pub source: Source,
    /// The fault, and the values that are allowed.
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

/// All faults of a configuration, shown one a line.
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
