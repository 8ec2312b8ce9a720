//! The report of `doctor`: one line for each check, and the exit code.

use serde_json::{Value, json};

use super::super::terminal::Output;
use crate::redact::redact;
use crate::storage::{Error, ErrorKind};
use crate::wiring::{Code, Failure};

/// The result of a check.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum CheckStatus {
    /// Everything is right.
    Fine,
    /// It works, and somebody should know something.
    Note,
    /// There is a fault, which asks for this exit code.
    Fault(Code),
    /// The check could not run.
    Skipped,
}

impl CheckStatus {
    const fn as_str(self) -> &'static str {
        match self {
            Self::Fine => "ok",
            Self::Note => "note",
            Self::Fault(_) => "fault",
            Self::Skipped => "skipped",
        }
    }
}

/// The findings so far; as text, each finding is written at once.
#[derive(Debug)]
pub(super) struct Report<'a> {
    output: &'a Output,
    findings: Vec<Value>,
    worst: Code,
    faults: u32,
}

impl<'a> Report<'a> {
    pub(super) const fn new(output: &'a Output) -> Self {
        Self { output, findings: Vec::new(), worst: Code::Success, faults: 0 }
    }

    pub(super) fn fine(&mut self, check: &str, what: impl AsRef<str>) -> Result<(), Failure> {
        self.add(CheckStatus::Fine, check, what.as_ref())
    }

    pub(super) fn note(&mut self, check: &str, what: impl AsRef<str>) -> Result<(), Failure> {
        self.add(CheckStatus::Note, check, what.as_ref())
    }

    /// Adds a fault: `what` names cause and remedy, `code` is the exit code.
    pub(super) fn fault(&mut self, check: &str, code: Code, what: impl AsRef<str>) -> Result<(), Failure> {
        self.add(CheckStatus::Fault(code), check, what.as_ref())
    }

    pub(super) fn skipped(&mut self, check: &str, why: impl AsRef<str>) -> Result<(), Failure> {
        self.add(CheckStatus::Skipped, check, why.as_ref())
    }

    /// Adds an error of a backend as a fault.
    pub(super) fn refused(&mut self, check: &str, error: &Error) -> Result<(), Failure> {
        self.fault(check, code(error), error.message())
    }

    /// Adds an error of the backend with this name as a fault.
    pub(super) fn refused_by(&mut self, check: &str, backend: &str, error: &Error) -> Result<(), Failure> {
        self.fault(check, code(error), format!("{backend}: {}", error.message()))
    }

    /// Returns the number of faults so far.
    pub(super) const fn faults(&self) -> u32 {
        self.faults
    }

    /// Writes the answer, and returns the exit code of the worst fault.
    ///
    /// A fault that only a person can repair is worse than one that may end by itself.
    pub(super) fn close(self) -> Result<Code, Failure> {
        let answer = json!({"ok": self.faults == 0, "faults": self.faults, "checks": self.findings});
        let text = match self.faults {
            0 => "all is well\n".to_owned(),
            1 => "1 fault\n".to_owned(),
            faults => format!("{faults} faults\n"),
        };
        self.output.answer(&answer, &text)?;
        Ok(self.worst)
    }

    fn add(&mut self, status: CheckStatus, check: &str, what: &str) -> Result<(), Failure> {
        if let CheckStatus::Fault(code) = status {
            self.faults += 1;
            if code as u8 > self.worst as u8 {
                self.worst = code;
            }
        }
        let what = &*redact(what);
        if !self.output.is_json() {
            Output::bytes(format!("{:<8}{check:<14}{what}\n", status.as_str()).as_bytes())?;
        }
        self.findings.push(json!({"check": check, "status": status.as_str(), "text": what}));
        Ok(())
    }
}

const fn code(error: &Error) -> Code {
    match error.kind {
        ErrorKind::Unavailable | ErrorKind::Throttled => Code::Unavailable,
        _ => Code::Configuration,
    }
}
