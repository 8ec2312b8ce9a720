//! What settings are read from: flags, environment, a file.

use std::collections::BTreeMap;
use std::ffi::OsString;
use std::fmt;
use std::path::{Path, PathBuf};

use super::source::Source;
use super::{Faults, SettingFault};

/// File read when no other is named and it is there.
pub const DEFAULT_FILE: &str = "filestorage.toml";

/// One setting given on the command line.
#[derive(Clone, PartialEq, Eq)]
pub struct Flag {
    /// Name of the setting, `celery_task_queues` for example, or of its file twin.
    pub setting: String,
    /// What the user typed, `-Q` for example.
    pub flag: String,
    /// The value's text.
    pub value: String,
}

impl fmt::Debug for Flag {
    fn fmt(&self, formatter: &mut fmt::Formatter<'_>) -> fmt::Result {
        formatter.debug_struct("Flag").field("setting", &self.setting).field("flag", &self.flag).finish_non_exhaustive()
    }
}

/// The text of a configuration file and where it lies.
#[derive(Clone)]
pub struct ConfigFile {
    /// Where it lies, for messages.
    pub path: PathBuf,
    /// Its TOML text.
    pub text: String,
}

impl fmt::Debug for ConfigFile {
    fn fmt(&self, formatter: &mut fmt::Formatter<'_>) -> fmt::Result {
        formatter.debug_struct("ConfigFile").field("path", &self.path).finish_non_exhaustive()
    }
}

/// Everything [`super::load`] looks at; nothing else is asked, so a test can give its own.
#[derive(Clone, Default)]
pub struct Inputs {
    /// Settings given on the command line; of a repeated one the last holds.
    pub flags: Vec<Flag>,
    /// The environment.
    pub environment: BTreeMap<String, OsString>,
    /// The configuration file, when there is one.
    pub file: Option<ConfigFile>,
}

impl Inputs {
    /// Takes the environment of this process and reads the named file, or [`DEFAULT_FILE`] when that is there.
    ///
    /// # Errors
    ///
    /// One fault when the file cannot be read; a missing default file is none.
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

/// Reads a variable; one that is set but empty counts as unset, which is what compose files make of a missing one.
pub(super) fn set<'a>(inputs: &'a Inputs, name: &str) -> Option<&'a OsString> {
    inputs.environment.get(name).filter(|value| !value.is_empty())
}

/// Reads a file of secrets: its lines without blanks around them, and without empty ones.
pub(super) fn read_lines(path: &Path) -> std::io::Result<Vec<String>> {
    let text = std::fs::read_to_string(path)?;
    Ok(text.lines().map(str::trim).filter(|line| !line.is_empty()).map(str::to_owned).collect())
}
