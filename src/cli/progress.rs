//! A bar on the terminal of somebody who waits; nothing anywhere else.

use std::io::{self, IsTerminal as _};

use indicatif::{ProgressBar, ProgressDrawTarget, ProgressStyle};

use super::output::Output;
use crate::storage::Watch;

/// What is shown while it is not known how much there is.
const SPINNER: &str = "{spinner} {prefix} {bytes} ({bytes_per_sec})";
/// What is shown once it is.
const BAR: &str = "{prefix} [{bar:30}] {bytes}/{total_bytes} ({bytes_per_sec}, {eta})";

/// Shows how many bytes have passed; gone when dropped.
#[derive(Debug)]
pub(super) struct Progress(ProgressBar);

impl Progress {
    /// Shows what is being done on standard error, if that is a terminal and nobody asked for JSON.
    pub(super) fn new(output: &Output, doing: &'static str) -> Self {
        if output.is_json() || !io::stderr().is_terminal() {
            return Self::none();
        }
        let bar = ProgressBar::with_draw_target(None, ProgressDrawTarget::stderr()).with_prefix(doing);
        bar.set_style(style(SPINNER));
        Self(bar)
    }

    /// Shows nothing.
    pub(super) fn none() -> Self {
        Self(ProgressBar::hidden())
    }

    /// Tells whether anybody sees it.
    pub(super) fn is_visible(&self) -> bool {
        !self.0.is_hidden()
    }

    /// Says how many bytes there will be, and begins anew.
    pub(super) fn expect(&self, bytes: u64) {
        self.0.set_style(style(BAR));
        self.0.reset();
        self.0.set_length(bytes);
    }

    /// Returns what moves it.
    pub(super) fn watch(&self) -> Watch {
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
