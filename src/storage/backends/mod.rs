//! Backends: the places that store objects.

mod gcs;
pub(in crate::storage) mod http;
pub(in crate::storage) mod local;
mod memory;
pub(in crate::storage) mod metadata_header;
mod s3;

pub use self::gcs::{Gcs, GcsOptions};
pub use self::http::wait_for_cleanup;
pub use self::local::Local;
pub use self::memory::Memory;
pub use self::s3::{S3, S3Options};
