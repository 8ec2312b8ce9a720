//! What was found: one line a check, and the worst of them.

use serde_json::{Value, json};

use super::super::terminal::Output;
use crate::redact::redact;
use crate::storage::{Error, ErrorKind};
use crate::wiring::{Code, Failure};

/// How a check came out.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Verdict {
    /// As it should be.
    Fine,
    /// Works, and somebody should know.
    Note,
    /// Does not work; the exit code it asks for.
    Fault(Code),
    /// Could not be looked at.
    Skipped,
}

impl Verdict {
    const fn as_str(self) -> &'static str {
        match self {
            Self::Fine => "ok",
            Self::Note => "note",
            Self::Fault(_) => "fault",
            Self::Skipped => "skipped",
        }
    }
}

/// Gathers findings; for people each is written when it is known.
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
        self.say(Verdict::Fine, check, what.as_ref())
    }

    pub(super) fn note(&mut self, check: &str, what: impl AsRef<str>) -> Result<(), Failure> {
        self.say(Verdict::Note, check, what.as_ref())
    }

    /// Notes a fault: cause and mend, and what a program is to make of it.
    pub(super) fn fault(&mut self, check: &str, code: Code, what: impl AsRef<str>) -> Result<(), Failure> {
        self.say(Verdict::Fault(code), check, what.as_ref())
    }

    pub(super) fn skipped(&mut self, check: &str, why: impl AsRef<str>) -> Result<(), Failure> {
        self.say(Verdict::Skipped, check, why.as_ref())
    }

    /// Notes what a place answered when it was asked for something.
    pub(super) fn refused(&mut self, check: &str, error: &Error) -> Result<(), Failure> {
        self.fault(check, code(error), error.message())
    }

    /// Notes what the place of this name answered.
    pub(super) fn refused_by(&mut self, check: &str, place: &str, error: &Error) -> Result<(), Failure> {
        self.fault(check, code(error), format!("{place}: {}", error.message()))
    }

    /// Counts the faults so far.
    pub(super) const fn faults(&self) -> u32 {
        self.faults
    }

    /// Ends with the answer for programs and the exit code: the worst fault's, and what only a person can mend is worse
    /// than what may pass.
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

    fn say(&mut self, verdict: Verdict, check: &str, what: &str) -> Result<(), Failure> {
        if let Verdict::Fault(code) = verdict {
            self.faults += 1;
            if code as u8 > self.worst as u8 {
                self.worst = code;
            }
        }
        let what = &*redact(what);
        if !self.output.is_json() {
            Output::bytes(format!("{:<8}{check:<14}{what}\n", verdict.as_str()).as_bytes())?;
        }
        self.findings.push(json!({"check": check, "status": verdict.as_str(), "text": what}));
        Ok(())
    }
}

const fn code(error: &Error) -> Code {
    match error.kind {
        ErrorKind::Unavailable | ErrorKind::Throttled => Code::Unavailable,
        _ => Code::Configuration,
    }
}
