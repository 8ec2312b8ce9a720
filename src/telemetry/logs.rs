//! Log output: for people on a terminal, one JSON object a line otherwise; always to standard error.

use std::io::IsTerminal as _;

use tracing_subscriber::EnvFilter;
use tracing_subscriber::util::{SubscriberInitExt as _, TryInitError};

/// How log lines look.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum LogFormat {
    /// For people.
    Text,
    /// One JSON object a line.
    Json,
}

impl LogFormat {
    /// Chooses by what standard error is: text on a terminal, JSON elsewhere.
    #[must_use]
    pub fn detect() -> Self {
        if std::io::stderr().is_terminal() { Self::Text } else { Self::Json }
    }
}

/// Why logging could not be set up.
#[derive(Debug, thiserror::Error)]
pub enum LogError {
    /// The filter is not one of tracing's.
    #[error("log filter {filter:?} is not understood: {source}")]
    Filter {
        /// The filter's text.
        filter: String,
        /// What is wrong with it.
        source: tracing_subscriber::filter::ParseError,
    },
    /// Something in this process logs already.
    #[error("logging is set up already: {0}")]
    Installed(#[from] TryInitError),
}

/// Sends log lines that pass `filter` (tracing's directive syntax, `info,lapin=warn` for example) to standard error.
///
/// # Errors
///
/// [`LogError`] when the filter cannot be read or logging is already set up in this process.
pub fn init(filter: &str, format: LogFormat) -> Result<(), LogError> {
    let filter = EnvFilter::try_new(filter).map_err(|source| LogError::Filter { filter: filter.to_owned(), source })?;
    let lines = tracing_subscriber::fmt().with_env_filter(filter).with_writer(std::io::stderr);
    match format {
        LogFormat::Text => lines.with_ansi(std::io::stderr().is_terminal()).with_target(false).finish().try_init()?,
        LogFormat::Json => lines.json().flatten_event(true).with_span_list(false).finish().try_init()?,
    }
    // A panic is a log line like any other fault; whoever catches it answers its caller.
    std::panic::set_hook(Box::new(|panic| {
        let at = panic.location().map(ToString::to_string);
        tracing::error!(at, text = panic.payload_as_str(), "panic");
    }));
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_wrong_filter_is_named() {
        let error = init("info,=nonsense=", LogFormat::Json).unwrap_err();
        assert!(error.to_string().contains("info,=nonsense="), "{error}");
    }
}
