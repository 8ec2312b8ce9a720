//! From the end of a command to the broker's confirmation of everything that the command still owes.

pub(super) mod deferred;
pub(super) mod destinations;
pub(super) mod in_flight;
pub(super) mod outbox;
pub(super) mod refusal;
