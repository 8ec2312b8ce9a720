//! The inputs of the configuration: flags, environment, one file.

use std::collections::BTreeMap;
use std::ffi::{OsStr, OsString};
use std::fmt;
use std::path::{Path, PathBuf};

use super::source::Source;
use super::{Faults, SettingFault};

/// The configuration file that is read when no other is named; it may be missing.
pub const DEFAULT_FILE: &str = "filestorage.toml";

/// One setting given on the command line.
#[derive(Clone, PartialEq, Eq)]
pub struct Flag {
    /// The name of the setting, for example `celery_task_queues`, or of its variant with `_file`.
    pub setting: String,
    /// The flag that the user typed, for example `-Q`.
    pub flag: String,
    /// The text of the value.
    pub value: String,
}

impl fmt::Debug for Flag {
    fn fmt(&self, formatter: &mut fmt::Formatter<'_>) -> fmt::Result {
        formatter.debug_struct("Flag").field("setting", &self.setting).field("flag", &self.flag).finish_non_exhaustive()
    }
}

/// The text and the path of a configuration file.
#[derive(Clone)]
pub struct ConfigFile {
    /// The path, for messages.
    pub path: PathBuf,
    /// The TOML text.
    pub text: String,
}

impl fmt::Debug for ConfigFile {
    fn fmt(&self, formatter: &mut fmt::Formatter<'_>) -> fmt::Result {
        formatter.debug_struct("ConfigFile").field("path", &self.path).finish_non_exhaustive()
    }
}

/// All inputs of [`super::load`], which reads no other source but files that the inputs name.
#[derive(Clone, Default)]
pub struct Inputs {
    /// The settings of the command line; the last of several values of one setting counts.
    pub flags: Vec<Flag>,
    /// The environment variables.
    pub environment: BTreeMap<String, OsString>,
    /// The configuration file, when there is one.
    pub file: Option<ConfigFile>,
}

impl Inputs {
    /// Returns the value of an environment variable, also of an empty one.
    #[must_use]
    pub fn variable(&self, name: &str) -> Option<&OsStr> {
        self.environment.get(name).map(OsString::as_os_str)
    }

    /// Reads the environment of this process and the named file, or [`DEFAULT_FILE`] when no file is named.
    ///
    /// # Errors
    ///
    /// One fault, when the file cannot be read. A missing default file is no fault.
    pub fn of_process(flags: Vec<Flag>, file: Option<&Path>) -> Result<Self, Faults> {
        let environment =
            std::env::vars_os().filter_map(|(name, value)| Some((name.into_string().ok()?, value))).collect();
        let path = file.unwrap_or(Path::new(DEFAULT_FILE));
        let file = match std::fs::read_to_string(path) {
            Ok(text) => Some(ConfigFile { path: path.to_owned(), text }),
            Err(error) if file.is_none() && error.kind() == std::io::ErrorKind::NotFound => None,
            Err(error) => {
                return Err(Faults(vec![SettingFault {
                    setting: "configuration file".to_owned(),
                    value: None,
                    source: Source::File(path.to_owned()),
                    message: format!("cannot be read: {error}"),
                }]));
            }
        };
        Ok(Self { flags, environment, file })
    }
}

impl fmt::Debug for Inputs {
    fn fmt(&self, formatter: &mut fmt::Formatter<'_>) -> fmt::Result {
        formatter
            .debug_struct("Inputs")
            .field("flags", &self.flags)
            .field("environment", &self.environment.keys())
            .field("file", &self.file)
            .finish()
    }
}

/// Returns the value of an environment variable, or `None` when the variable is unset or empty.
///
/// Compose files pass on an unset variable as an empty one.
pub(super) fn set<'a>(inputs: &'a Inputs, name: &str) -> Option<&'a OsString> {
    inputs.environment.get(name).filter(|value| !value.is_empty())
}

/// Reads the lines of a file of secrets, without the blanks around them and without empty lines.
pub(super) fn read_lines(path: &Path) -> std::io::Result<Vec<String>> {
    let text = std::fs::read_to_string(path)?;
    Ok(text.lines().map(str::trim).filter(|line| !line.is_empty()).map(str::to_owned).collect())
}
