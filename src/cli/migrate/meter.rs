//! How far a run has come, for whoever watches on a terminal.

use std::time::Duration;

use indicatif::{HumanBytes, HumanCount, ProgressBar, ProgressStyle};

/// A line on standard error that tells how far a run has come; nothing where that is no terminal.
#[derive(Debug)]
pub(super) struct Meter(ProgressBar);

impl Meter {
    pub(super) fn new() -> Self {
        let bar = ProgressBar::no_length();
        // The template is a constant; should it be wrong, the bar looks plain.
        if let Ok(style) = ProgressStyle::with_template("{spinner} {elapsed_precise}  {msg}") {
            bar.set_style(style);
        }
        if !bar.is_hidden() {
            bar.enable_steady_tick(Duration::from_millis(200));
        }
        Self(bar)
    }

    /// Says how many values of how many bytes are done, and which was the last.
    pub(super) fn say(&self, values: u64, bytes: u64, last: &str) {
        if !self.0.is_hidden() {
            self.0.set_message(format!("{} values, {}  {last}", HumanCount(values), HumanBytes(bytes)));
        }
    }

    /// Writes something else to the terminal meanwhile.
    pub(super) fn aside<T>(&self, write: impl FnOnce() -> T) -> T {
        self.0.suspend(write)
    }

    /// Takes the line away.
    pub(super) fn finish(self) {
        self.0.finish_and_clear();
    }
}
