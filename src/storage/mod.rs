//! The engine: values and bytes under keys. Knows no queue and no task.
//!
//! ```text
//! Engine ─ Fallback ─┬─ Metered ─ Retry ─ Gcs | S3
//!                    └─ Metered ─ Local                the overlay
//! Engine ─ Metered ─ Local | Memory
//! ```
//!
//! [`Engine`] turns values into objects and keeps the promises about commands that come again; a [`Backend`] keeps whole
//! objects. The stack is nested in one place, `Engine`'s constructor call in `cli`; every layer implements [`Backend`] whole.

mod attempts;
mod backend;
mod breaker;
mod budget;
mod clock;
mod descriptors;
mod draft;
mod engine;
mod error;
mod exchange;
mod fallback;
mod fence;
mod foreign;
mod gcs;
mod key;
mod label;
mod leftovers;
mod local;
mod memory;
mod metadata;
mod metered;
mod object;
mod open;
mod options;
mod outside;
mod pages;
mod payload;
mod receipt;
mod redelivery;
mod refusals;
mod retry;
mod s3;
mod shortage;
mod spool;
mod stamp;
mod stats;
mod unpack;
mod value;
mod watch;

pub use attempts::counted;
pub use backend::{
    Backend, Condition, Delete, Entry, Grant, Landing, Listing, Method, Page, Probe, Put, Removal, Want,
};
pub use breaker::{Breaker, BreakerState};
pub use budget::{Budget, Held};
pub use descriptors::{descriptor_limit, descriptors_wanted, raise_descriptor_limit};
pub use draft::Draft;
pub use engine::{Engine, Opened, Retrieved};
pub use error::{Error, ErrorKind, Operation, Result};
pub use exchange::{Buckets, Exchange, NoBuckets, Permission, Reference, ReferenceError, Scheme};
pub use fallback::{Conflict, Fallback, Owner, Pending, SyncProgress, SyncReport, overlay_folder};
pub use fence::Fence;
pub use foreign::Foreign;
pub use gcs::{Gcs, GcsOptions};
pub use key::{Key, KeyError};
pub use leftovers::settled;
pub use local::Local;
pub use memory::Memory;
pub use metadata::{ContentType, Metadata, OptionError};
pub use metered::Metered;
pub use object::{Attributes, Checksum, Kind, Object, Seen};
pub use options::{ByteRange, DeleteOptions, ListRequest, Redelivered, RetrieveOptions, StoreOptions};
pub use payload::Payload;
pub use receipt::{Place, Receipt, Stat, format_timestamp};
pub use refusals::{Doubts, Refusals};
pub use retry::{Retry, RetryOptions};
pub use s3::{S3, S3Options};
pub use spool::{Intake, Spool};
pub use stats::{Stats, StatsMetrics};
pub use value::{Content, Value};
pub use watch::{Watch, watched};
