//! From a delivery to the decision what is done with it.

mod fault;
pub(super) mod lines;
pub(super) mod policy;
pub(super) mod reader;
pub(super) mod reading;
pub(super) mod sealed;
