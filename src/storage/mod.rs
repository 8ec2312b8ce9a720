//! The engine: values and bytes under keys. Knows no queue and no task.
//!
//! ```text
//! Engine ─ Local | Memory
//! ```
//!
//! The stack is nested in one place, `Engine`'s constructor call in `cli`; every layer implements [`Backend`] whole.

mod backend;
mod error;
mod fence;
mod key;
mod object;
mod value;

pub use backend::{Backend, Condition, Delete, Entry, Listing, Page, Put};
pub use error::{Error, ErrorKind, Operation, Result};
pub use fence::Fence;
pub use key::{Key, KeyError};
pub use object::{Attributes, Checksum, Kind, Object};
pub use value::Value;
