//! Celery's protocol as data: synchronous, no I/O, no queue, no storage.
//!
//! In: [`message`] is the neutral envelope, [`body`] undoes compression and encodings, [`request`] makes a
//! [`request::TaskRequest`] of both protocol versions, [`signature`] reads the tasks a task carries along. Out:
//! [`reply`] and [`error`] write results as Celery does, [`canvas`] says what to publish next, [`park`] and [`dead`]
//! make the copies that wait or stay.

pub mod body;
pub mod canvas;
mod compose;
mod copies;
mod encode;
pub mod error;
mod fit;
pub mod message;
mod options;
pub mod read;
pub mod reply;
pub mod repr;
pub mod request;
pub mod scan;
pub mod signature;
mod time;
mod weight;

pub use copies::{Death, dead, park};
