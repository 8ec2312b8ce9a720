//! The count of commands that are done and keep their slot, because a queue does not take what they owe.

use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};

/// Counts held commands; clones share the count.
#[derive(Clone, Debug, Default)]
pub(in crate::worker) struct HeldCommands(Arc<AtomicUsize>);

/// One held command; dropping it says that the command keeps its slot no more.
#[derive(Debug)]
pub(in crate::worker) struct HeldCommand(Arc<AtomicUsize>);

impl HeldCommands {
    /// Returns the number of held commands.
    pub(in crate::worker) fn count(&self) -> usize {
        self.0.load(Ordering::Relaxed)
    }

    /// Counts one more.
    pub(in crate::worker) fn hold(&self) -> HeldCommand {
        self.0.fetch_add(1, Ordering::Relaxed);
        HeldCommand(Arc::clone(&self.0))
    }
}

impl Drop for HeldCommand {
    fn drop(&mut self) {
        self.0.fetch_sub(1, Ordering::Relaxed);
    }
}
