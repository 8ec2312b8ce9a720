//! Logs, metrics, readiness, the admin port and the messages to the service manager.

mod admin;
mod labels;
mod logs;
mod metrics;
mod pending;
mod process;
mod readiness;
mod service_manager;

pub use admin::{Admin, BindError, HealthReport, Serving};
pub use labels::{
    BackendLabel, CacheEviction, CacheLookup, Command, CommandOutcome, Delivery, Event, GivenUp, Parked, Publish,
    Session, StorageOperation, StorageOutcome, SyncOutcome,
};
pub use logs::{LogError, LogFormat, init as init_logs, note_end};
pub use metrics::{InFlight, Metrics};
pub use process::{ProcessUsage, process_usage};
pub use readiness::{Component, ComponentState, Readiness};
pub use service_manager::{NotifyError, ServiceManager};
