//! Settings: raw text from four sources, checked once, then plain typed values.
//!
//! The only room that reads environment and files for settings. One table, [`SETTINGS`], says what each setting is
//! called, what it takes, what it is by default and what it does; flags, errors, `filestorage config` and the reference
//! of settings come from it. A value that is refused is not repeated, for it may be a secret in the wrong place: what it
//! looks like is said instead.

mod aws;
mod fault;
mod gather;
mod inputs;
mod kind;
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
pub use gather::{Effective, Loaded, load, survey};
pub use inputs::{ConfigFile, DEFAULT_FILE, Flag, Inputs};
pub use kind::SettingKind;
pub use reference::markdown as reference;
pub use registry::{Availability, SETTINGS, Secrecy, Setting, find};
pub use secret::Secret;
pub use settings::{
    LogLevel, MetricsAddress, QueueSettings, QueueType, Settings, TelemetrySettings, TlsIdentity, WorkerSettings,
};
pub use source::Source;
pub use storage::{GcsSettings, JOURNAL, OBJECTS, OVERLAY, S3Settings, SPOOL, StorageSettings};
