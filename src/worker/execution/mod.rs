//! From the decision that a command runs to its answer.

pub(super) mod answer;
pub(super) mod run;
pub(super) mod scheduler;
