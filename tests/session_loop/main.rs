//! The session loop of a worker against a broker in memory, with a clock that stands still whenever something runs.
//!
//! [`scripted`] implements the traits by which a worker knows a broker, over the queues of [`model`]. [`work`] holds commands that only
//! these tests know.
#![allow(clippy::unwrap_used)]

mod constants;
mod model;
mod parking;
mod random;
mod reactions;
mod remote;
mod retry;
mod scripted;
mod sent;
mod sequential;
mod settlement;
mod simulation;
mod site;
mod timing;
mod work;
