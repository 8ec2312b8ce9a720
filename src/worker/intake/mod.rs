//! From a delivery to the decision what is done with it.

pub(super) mod admission;
pub(super) mod policy;
pub(super) mod reader;
pub(super) mod reading;
pub(super) mod sealed;
