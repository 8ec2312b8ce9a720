//! The layers: backends that wrap another backend, each with one concern.

pub(in crate::storage) mod attempts;
mod breaker;
mod cached;
mod encoded;
mod fallback;
mod legacy_files;
mod legacy_values;
mod listings;
mod metered;
mod quota;
mod refusals;
mod retry;

pub use self::attempts::{CommandCounts, counted};
pub use self::breaker::{Breaker, BreakerState};
pub use self::cached::{Cache, CacheCounts, CacheInvalidation, CacheOptions, Cached};
pub use self::encoded::encryption::{DataKey, Encryption, Keyring, KeyringError};
pub use self::encoded::{Compression, Encoded, EncodedDeferral, Rotation};
pub use self::fallback::{Conflict, Fallback, Owner, Pending, SyncProgress, SyncReport, overlay_folder};
pub use self::legacy_files::{LegacyFiles, LegacyLock, OwnEntries, Survey};
pub use self::legacy_values::LegacyValues;
pub use self::metered::Metered;
pub use self::quota::{Amount, Quota, QuotaFill};
pub use self::refusals::{FaultReceiver, Refusals};
pub use self::retry::{Retry, RetryOptions};
