//! The engine: values and bytes under keys. Knows no queue and no task.
//!
//! ```text
//! Engine ─ Metered ─ Local | Memory
//! ```
//!
//! [`Engine`] turns values into objects and keeps the promises about commands that come again; a [`Backend`] keeps whole
//! objects. The stack is nested in one place, `Engine`'s constructor call in `cli`; every layer implements [`Backend`] whole.

mod backend;
mod clock;
mod engine;
mod error;
mod fence;
mod key;
mod local;
mod memory;
mod metadata;
mod metered;
mod object;
mod options;
mod receipt;
mod redelivery;
mod stats;
mod value;

pub use backend::{Backend, Condition, Delete, Entry, Listing, Page, Put, Want};
pub use engine::{Engine, Retrieved};
pub use error::{Error, ErrorKind, Operation, Result};
pub use fence::Fence;
pub use key::{Key, KeyError};
pub use local::Local;
pub use memory::Memory;
pub use metadata::{ContentType, Metadata, OptionError};
pub use metered::Metered;
pub use object::{Attributes, Checksum, Kind, Object};
pub use options::{ByteRange, DeleteOptions, ListRequest, Redelivered, StoreOptions};
pub use receipt::{Place, Receipt, Stat, format_timestamp};
pub use stats::{Stats, StatsMetrics};
pub use value::Value;
