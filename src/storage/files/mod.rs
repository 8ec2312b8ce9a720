//! Writes bytes to files on a disk, whole or not at all.

mod atomic_file;
pub(in crate::storage) mod descriptors;
pub(in crate::storage) mod folder;
mod identity;
mod nameless;
pub(in crate::storage) mod shortage;
pub(in crate::storage) mod spool;
mod staging_folder;
mod stamp;

pub use self::atomic_file::AtomicFile;
pub(in crate::storage) use self::atomic_file::mode_of;
pub(in crate::storage) use self::descriptors::FILE_OPERATIONS;
pub use self::descriptors::{descriptor_limit, descriptors_wanted, raise_descriptor_limit};
pub use self::identity::{FileIdentities, FileIdentity};
pub use self::spool::{Spool, SpoolWriter};
pub(in crate::storage) use self::staging_folder::StagingFolder;
pub(in crate::storage) use self::stamp::Stamp;
