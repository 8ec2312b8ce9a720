//! Logs, metrics, readiness and the admin port.

mod admin;
mod labels;
mod logs;
mod metrics;
mod pending;
mod process;
mod readiness;

pub use admin::{Admin, BindError, HealthReport};
pub use labels::{
    Backend, Command, CommandOutcome, Delivery, Event, Publish, Session, StorageOperation, StorageOutcome, SyncOutcome,
};
pub use logs::{LogError, LogFormat, init as init_logs};
pub use metrics::{InFlight, Metrics};
pub use readiness::{Component, Condition, Readiness};
