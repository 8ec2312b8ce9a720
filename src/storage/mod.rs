//! Stores values under keys. This room knows no queue and no task.
//!
//! ```text
//! Engine ─ Cached ─ Encoded ─ Fallback ─┬─ Metered ─ Retry ─ Gcs | S3
//!                                       └─ Metered ─ Local                the overlay
//! Engine ─ Cached ─ Encoded ─ Metered ─ Local | Memory
//! ```
//!
//! [`Engine`] turns values into objects and keeps the promises about redelivered commands. A [`Backend`] keeps whole
//! objects. The stack is nested in one place outside this room, and every layer implements the whole of [`Backend`].

mod backend;
mod backends;
mod commit_guard;
mod engine;
mod error;
mod external;
mod files;
mod invalidation;
mod join;
mod layers;
mod legacy;
mod object;
mod reading;
#[cfg(test)]
pub(crate) mod tests;

pub use backend::{
    Backend, ByteRange, Condition, CopySource, Deferral, DeleteOptions, Entry, GetOptions, Grant, Listing, Method,
    Page, Probe, PutOptions, Removal, Version, VersionId, Versions, VersionsRequest,
};
pub use backends::{Gcs, GcsOptions, Local, Memory, S3, S3Options, wait_for_cleanup};
pub use commit_guard::CommitGuard;
pub use engine::{
    Budget, COPIES, CleanupProgress, CleanupReport, CleanupRequest, CopyOptions, DeleteRequest, Engine, EntryWalk,
    Health, HealthStatus, Held, KeptVersion, ListRequest, Opened, Receipt, Redelivered, RetrieveOptions, Retrieved,
    Stat, StateOptions, Stats, StatsMetrics, StoreOptions, Usage, UsageTable, Verification, format_timestamp,
    page_size,
};
pub use error::{Error, ErrorKind, Operation, Result};
pub use external::{Buckets, ExternalReferences, NoBuckets, Permission, Reference, ReferenceError};
pub use files::{
    AtomicFile, FileIdentities, FileIdentity, Spool, SpoolWriter, descriptor_limit, descriptors_wanted,
    raise_descriptor_limit,
};
pub use invalidation::{Invalidation, NoSiblings};
pub use layers::{
    Amount, Breaker, BreakerState, Cache, CacheCounts, CacheInvalidation, CacheOptions, Cached, CommandCounts,
    Compression, Conflict, DataKey, Encoded, EncodedDeferral, Encryption, Fallback, FaultReceiver, Keyring,
    KeyringError, LegacyFiles, LegacyLock, LegacyValues, Metered, OwnEntries, Owner, Pending, Quota, QuotaFill,
    Refusals, Retry, RetryOptions, Rotation, Survey, SyncProgress, SyncReport, counted, overlay_folder,
};
pub use object::{
    Attributes, Binary, Checksum, Codec, Content, ContentType, Envelope, EnvelopeVersion, Foreign, JsonText, Key,
    KeyError, KeyId, Kind, LegacyFile, Metadata, Object, ObjectInfo, OptionError, Payload, SealedText, Value, Watch,
    watched,
};
