//! What operators see of the worker over the broker, and what they ask of it: Celery's events and remote control.

mod inspect;
pub(super) mod limits;
mod monitor;
mod pidbox;
mod shown;

pub(super) use inspect::{QueueInfo, TaskInfo, WorkerStats};
pub(super) use limits::TaskLimits;
pub(super) use monitor::{Arrival, Monitor, UnrunTask};
pub(super) use pidbox::Pidbox;
pub use shown::ShownSettings;
pub(super) use shown::broker_info;
