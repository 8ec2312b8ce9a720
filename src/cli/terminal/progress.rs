//! A bar on the terminal of somebody who waits; nothing anywhere else.

use std::io::{self, IsTerminal as _};

use indicatif::{HumanBytes, ProgressBar, ProgressDrawTarget, ProgressStyle};

use super::Output;
use crate::storage::Watch;

/// What is shown while it is not known how much there is.
const SPINNER: &str = "{spinner} {prefix} {bytes} ({bytes_per_sec})";
/// What is shown once it is.
const BAR: &str = "{prefix} [{bar:30}] {bytes}/{total_bytes} ({bytes_per_sec}, {eta})";

/// What is shown of many values while it is not known how many there are.
const COUNTING: &str = "{spinner} {prefix} {human_pos} values, {wide_msg}";
/// What is shown once it is.
const COUNTED: &str = "{prefix} [{bar:30}] {human_pos}/{human_len} values ({eta}), {wide_msg}";

/// Shows how many bytes, or how many values, have passed; gone when dropped.
#[derive(Debug)]
pub(in crate::cli) struct Progress(ProgressBar);

impl Progress {
    /// Shows what is being done on standard error, if that is a terminal and nobody asked for JSON.
    pub(in crate::cli) fn new(output: &Output, doing: &'static str) -> Self {
        Self::styled(output, doing, SPINNER)
    }

    /// Shows likewise what is done with many values.
    pub(in crate::cli) fn counting(output: &Output, doing: &'static str) -> Self {
        Self::styled(output, doing, COUNTING)
    }

    fn styled(output: &Output, doing: &'static str, template: &str) -> Self {
        if output.is_json() || !io::stderr().is_terminal() {
            return Self::none();
        }
        let bar = ProgressBar::with_draw_target(None, ProgressDrawTarget::stderr()).with_prefix(doing);
        bar.set_style(style(template));
        Self(bar)
    }

    /// Shows nothing.
    pub(in crate::cli) fn none() -> Self {
        Self(ProgressBar::hidden())
    }

    /// Tells whether anybody sees it.
    pub(in crate::cli) fn is_visible(&self) -> bool {
        !self.0.is_hidden()
    }

    /// Says how many bytes there will be, and begins anew.
    pub(in crate::cli) fn expect(&self, bytes: u64) {
        self.0.set_style(style(BAR));
        self.0.reset();
        self.0.set_length(bytes);
    }

    /// Says how many values there will be.
    pub(in crate::cli) fn expect_values(&self, values: u64) {
        self.0.set_style(style(COUNTED));
        self.0.set_length(values);
    }

    /// Says that so many values more are done, how many bytes that makes in all, and which was the last.
    pub(in crate::cli) fn count(&self, values: u64, bytes: u64, last: &str) {
        if self.is_visible() {
            self.0.set_message(format!("{} {last}", HumanBytes(bytes)));
        }
        self.0.inc(values);
    }

    /// Writes something else to the terminal meanwhile.
    pub(in crate::cli) fn aside<T>(&self, write: impl FnOnce() -> T) -> T {
        self.0.suspend(write)
    }

    /// Returns what moves it.
    pub(in crate::cli) fn watch(&self) -> Watch {
        let bar = self.0.clone();
        Watch::new(move |bytes| bar.set_position(bytes))
    }
}

impl Drop for Progress {
    fn drop(&mut self) {
        self.0.finish_and_clear();
    }
}

/// A template that cannot be read shows the library's own, which tells as much.
fn style(template: &str) -> ProgressStyle {
    ProgressStyle::with_template(template).unwrap_or_else(|_| ProgressStyle::default_bar())
}
