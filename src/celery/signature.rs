//! A task that a task carries along: callback, errback or chain step.

use crate::json::Json;

/// A signature, read and checked; unknown members travel along.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Signature {
    /// Task name.
    pub task: String,
    /// Positional arguments after the previous result.
    pub args: Vec<Json>,
    /// Named arguments.
    pub kwargs: Vec<(String, Json)>,
    /// `apply_async` options.
    pub options: Vec<(String, Json)>,
    /// What it really is.
    pub kind: Kind,
    /// Takes no previous result.
    pub immutable: bool,
    extra: Vec<(String, Json)>,
}

/// What a signature stands for (`subtask_type`).
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Kind {
    /// One task.
    Task,
    /// Several, one after the other.
    Chain,
    /// Several, side by side.
    Group,
    /// A group and a task that waits for it.
    Chord,
}
