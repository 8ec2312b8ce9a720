//! Shows progress on a terminal, and nothing elsewhere.

use std::io::{self, IsTerminal as _};

use indicatif::{HumanBytes, ProgressBar, ProgressDrawTarget, ProgressStyle};

use super::Output;
use crate::storage::Watch;

/// The template for an unknown number of bytes.
const SPINNER: &str = "{spinner} {prefix} {bytes} ({bytes_per_sec})";
/// The template for a known number of bytes.
const BAR: &str = "{prefix} [{bar:30}] {bytes}/{total_bytes} ({bytes_per_sec}, {eta})";

/// The template for an unknown number of values.
const COUNTING: &str = "{spinner} {prefix} {human_pos} values, {wide_msg}";
/// The template for a known number of values.
const COUNTED: &str = "{prefix} [{bar:30}] {human_pos}/{human_len} values ({eta}), {wide_msg}";

/// A display of the bytes or values done so far, which disappears when it is dropped.
#[derive(Debug)]
pub(in crate::cli) struct Progress(ProgressBar);

impl Progress {
    /// Creates a display of bytes on standard error, visible when that is a terminal and the output is not JSON.
    ///
    /// `doing` names the activity.
    pub(in crate::cli) fn new(output: &Output, doing: &'static str) -> Self {
        Self::styled(output, doing, SPINNER)
    }

    /// Creates a display of values, visible as for [`Progress::new`].
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

    /// Creates a display that is never visible.
    pub(in crate::cli) fn none() -> Self {
        Self(ProgressBar::hidden())
    }

    /// Tells whether the display is visible.
    pub(in crate::cli) fn is_visible(&self) -> bool {
        !self.0.is_hidden()
    }

    /// Sets the expected number of bytes, and begins again at 0.
    pub(in crate::cli) fn expect(&self, bytes: u64) {
        self.0.set_style(style(BAR));
        self.0.reset();
        self.0.set_length(bytes);
    }

    /// Sets the expected number of values.
    pub(in crate::cli) fn expect_values(&self, values: u64) {
        self.0.set_style(style(COUNTED));
        self.0.set_length(values);
    }

    /// Adds `values` to the number done, and shows the total of bytes and the name of the last value.
    pub(in crate::cli) fn count(&self, values: u64, bytes: u64, last: &str) {
        if self.is_visible() {
            self.0.set_message(format!("{} {last}", HumanBytes(bytes)));
        }
        self.0.inc(values);
    }

    /// Removes the display.
    pub(in crate::cli) fn hide(&self) {
        self.0.finish_and_clear();
    }

    /// Adds one value, by its name, to the number done.
    pub(in crate::cli) fn step(&self, name: &str) {
        if self.is_visible() {
            self.0.set_message(name.to_owned());
        }
        self.0.inc(1);
    }

    /// Hides the display while `write` writes to the terminal.
    pub(in crate::cli) fn suspend<T>(&self, write: impl FnOnce() -> T) -> T {
        self.0.suspend(write)
    }

    /// Returns a watch that moves the display when bytes are processed.
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

/// Creates a style from a template; an invalid template gives the default style of the library.
fn style(template: &str) -> ProgressStyle {
    ProgressStyle::with_template(template).unwrap_or_else(|_| ProgressStyle::default_bar())
}
