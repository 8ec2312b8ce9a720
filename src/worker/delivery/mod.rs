//! From the end of a command to the broker's confirmation of everything that the command still owes.

pub(super) mod batch;
pub(super) mod destinations;
pub(super) mod envelope;
mod fate;
mod held;
pub(super) mod in_flight;
pub(super) mod outbox;
pub(super) mod owed;
pub(super) mod parked_consumer;
pub(super) mod parking;
pub(super) mod pending_ack;
pub(super) mod refusal;
mod returned;
pub(super) mod role;
mod trial;
pub(super) mod unpark;
pub(super) mod way;
