//! Writes the log to standard error: text on a terminal, else one JSON object a line.

use std::io::{IsTerminal as _, Write};
use std::sync::atomic::{AtomicBool, Ordering};

use tracing_subscriber::EnvFilter;
use tracing_subscriber::util::{SubscriberInitExt as _, TryInitError};

use crate::redact;

/// The words by which the crate async-rs, of lapin, panics in a thread of its own for a task that the runtime has dropped.
const DROPPED_TASK: &str = "Task did not complete: ";

/// The process ends, and its runtime drops the tasks that are left.
static ENDING: AtomicBool = AtomicBool::new(false);

/// The format of log lines.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum LogFormat {
    /// Text for people.
    Text,
    /// One JSON object a line.
    Json,
}

impl LogFormat {
    /// Chooses text when standard error is a terminal, else JSON.
    #[must_use]
    pub fn detect() -> Self {
        if std::io::stderr().is_terminal() { Self::Text } else { Self::Json }
    }
}

/// The reason why logging could not be set up.
#[derive(Debug, thiserror::Error)]
pub enum LogError {
    /// The filter does not follow tracing's syntax; the text does not repeat it, since it may be a misplaced secret.
    #[error("RUST_LOG is not understood; write level names, or targets and levels, for example info,filestorage=debug")]
    Filter,
    /// Logging was set up before in this process.
    #[error("logging is set up already: {0}")]
    Installed(#[from] TryInitError),
}

/// Sends all log lines that pass `filter` to standard error, and logs panics.
///
/// `filter` has tracing's directive syntax, for example `info,lapin=warn`. Secrets in log lines are hidden.
///
/// # Errors
///
/// [`LogError`] when the filter cannot be read or logging is already set up in this process.
pub fn init(filter: &str, format: LogFormat) -> Result<(), LogError> {
    let filter = EnvFilter::try_new(filter).map_err(|_| LogError::Filter)?;
    let lines = tracing_subscriber::fmt().with_env_filter(filter).with_writer(|| Redacted(std::io::stderr()));
    match format {
        LogFormat::Text => lines.with_ansi(std::io::stderr().is_terminal()).with_target(false).finish().try_init()?,
        LogFormat::Json => lines.json().flatten_event(true).with_span_list(false).finish().try_init()?,
    }
    // A panic is logged here; the code that catches the panic answers the caller.
    std::panic::set_hook(Box::new(|panic| {
        let at = panic.location().map(ToString::to_string);
        let text = panic.payload_as_str();
        if ENDING.load(Ordering::Relaxed) && text.is_some_and(|text| text.starts_with(DROPPED_TASK)) {
            return;
        }
        tracing::error!(at, text = text.map(redact::unquoted), "panic");
    }));
    Ok(())
}

/// Notes that the process ends. From now on, a panic that only says that the runtime has dropped a task is not logged.
pub fn note_end() {
    ENDING.store(true, Ordering::Relaxed);
}

/// A writer to standard error that hides secrets; each write is one whole log line.
struct Redacted(std::io::Stderr);

impl Write for Redacted {
    fn write(&mut self, line: &[u8]) -> std::io::Result<usize> {
        match std::str::from_utf8(line) {
            Ok(text) => self.0.write_all(redact::redact(text).as_bytes())?,
            Err(_) => self.0.write_all(redact::redact(&String::from_utf8_lossy(line)).as_bytes())?,
        }
        Ok(line.len())
    }

    fn flush(&mut self) -> std::io::Result<()> {
        self.0.flush()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_wrong_filter_is_refused_and_not_repeated() {
        let error = init("info,=hunter2=", LogFormat::Json).unwrap_err().to_string();
        assert!(error.contains("RUST_LOG") && !error.contains("hunter2"), "{error}");
    }
}
