//! From the decision that a command runs to its answer, and to what its end owes.

pub(super) mod answer;
pub(super) mod run;
pub(super) mod scheduler;
pub(super) mod settlement;
