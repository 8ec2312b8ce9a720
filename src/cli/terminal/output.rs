//! Writes answers and errors: as text for people, or as JSON for programs.

use std::io::{self, ErrorKind, IsTerminal as _, Write as _};

use serde::Serialize;
use serde_json::json;

use crate::redact::redact;
use crate::wiring::{Code, Failure};

/// The output of a subcommand, as text or as JSON.
#[derive(Debug)]
pub(in crate::cli) struct Output {
    json: bool,
}

impl Output {
    pub(in crate::cli) const fn new(json: bool) -> Self {
        Self { json }
    }

    pub(in crate::cli) const fn is_json(&self) -> bool {
        self.json
    }

    pub(in crate::cli) fn is_terminal() -> bool {
        io::stdout().is_terminal()
    }

    /// Writes one answer: `value` as a line of JSON, or `text`.
    pub(in crate::cli) fn answer<T: Serialize + ?Sized>(&self, value: &T, text: &str) -> Result<(), Failure> {
        if !self.json {
            return Self::bytes(text.as_bytes()).map(drop);
        }
        let mut line = serde_json::to_string(value)
            .map_err(|error| Failure::new(Code::BadData, format!("the answer cannot be written as JSON: {error}")))?;
        line.push('\n');
        Self::bytes(line.as_bytes()).map(drop)
    }

    /// Writes bytes unchanged to standard output; returns false when the reader has closed it, which is no failure.
    pub(in crate::cli) fn bytes(bytes: &[u8]) -> Result<bool, Failure> {
        let mut out = io::stdout().lock();
        match out.write_all(bytes).and_then(|()| out.flush()) {
            Ok(()) => Ok(true),
            Err(error) if error.kind() == ErrorKind::BrokenPipe => Ok(false),
            Err(error) => Err(Failure::new(Code::Io, format!("cannot write to standard output: {error}"))),
        }
    }

    /// Writes a remark besides the answer to standard error.
    pub(in crate::cli) fn remark(&self, text: &str) {
        let line = if self.json { format!("{}\n", json!({ "remark": text })) } else { format!("{text}\n") };
        drop(io::stderr().lock().write_all(line.as_bytes()));
    }

    /// Writes the failure to standard error and returns its exit code.
    pub(in crate::cli) fn fail(&self, failure: &Failure) -> Code {
        let text = if self.json {
            let mut error = json!({"code": failure.code as u8, "message": redact(&failure.message)});
            if !failure.details.is_empty() {
                error["faults"] = failure.details.iter().map(|detail| redact(detail)).collect();
            }
            format!("{}\n", json!({ "error": error }))
        } else {
            let mut text = format!("filestorage: {}\n", failure.message);
            for detail in &failure.details {
                text.push_str(&format!("  {detail}\n"));
            }
            redact(&text).into_owned()
        };
        // When standard error cannot be written, the exit code alone reports the failure.
        drop(io::stderr().lock().write_all(text.as_bytes()));
        failure.code
    }
}
