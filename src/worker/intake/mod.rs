//! From a delivery to the decision what is done with it.

pub(super) mod policy;
pub(super) mod reader;
pub(super) mod sealed;
