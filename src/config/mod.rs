//! Reads the settings from flags, environment, file and defaults, checks them once, and returns typed values.
//!
//! No other room reads environment or files for settings. The table [`SETTINGS`] holds the name of each setting, the
//! values it takes, its default and its description. The flags, the errors, `filestorage config` and the reference of
//! settings are made from this table. An error does not repeat a refused value, which may be a misplaced secret; it names
//! the form of the value instead.

mod aws;
mod fault;
mod inputs;
mod kind;
mod load;
mod misplaced;
mod overlap;
pub(crate) mod proxy;
mod reference;
mod registry;
mod secret;
mod settings;
mod source;
mod storage;
mod values;

pub use fault::{Faults, SettingFault};
pub use inputs::{ConfigFile, DEFAULT_FILE, Flag, Inputs};
pub use kind::SettingKind;
pub use load::{Effective, Loaded, load, survey};
pub use reference::markdown as reference;
pub use registry::{Availability, SETTINGS, Secrecy, Setting, find};
pub use secret::Secret;
pub use settings::{
    LogLevel, MetricsAddress, QueueSettings, QueueType, Settings, TelemetrySettings, TlsIdentity, WorkerSettings,
};
pub use source::Source;
pub use storage::{
    CacheSettings, CompressionSettings, GcsSettings, JOURNAL, OBJECTS, OVERLAY, S3Settings, SPOOL, StorageSettings,
};
