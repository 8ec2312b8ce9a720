//! Celery's protocol as data: synchronous, no I/O, no queue, no storage.
//!
//! In: [`message`] is the neutral envelope, [`body`] undoes compression, encodings and other serializers than JSON, [`request`] makes a
//! [`request::TaskRequest`] of both protocol versions, [`signature`] reads the tasks that a message carries along. Out:
//! [`reply`] and [`error`] write results as Celery does, [`canvas`] makes the messages that follow a task, [`park`] and
//! [`dead`] copy a message that is delayed or given up, [`DeadCopy`] and [`replay`] read such a copy.

pub mod body;
pub mod canvas;
pub mod chord;
mod compose;
pub mod control;
mod dead_copy;
mod encode;
pub mod error;
pub mod event;
mod fit;
mod follow_up_size;
mod group_options;
pub mod message;
mod msgpack;
mod options;
pub mod read;
pub mod reply;
pub mod repr;
mod republish;
pub mod request;
pub mod retry;
pub mod scan;
mod serializer;
pub mod signature;
mod text_form;
mod time;
mod yaml;

pub use dead_copy::{DeadCopy, NotReplayable, REPLAYS, moved, replay, replays};
pub use repr::{display, write_display};
pub use republish::{Death, UNDELIVERABLE, dead, is_routing, is_trace, park};
pub use serializer::Serializer;
