//! Builds the parts of the program from the settings: storage stack, buckets, broker options, health report.

mod broker;
mod bucket;
mod bucket_monitor;
mod caching;
mod codecs;
mod failure;
pub(crate) mod folders;
mod health;
mod memory_limit;
mod node_name;
mod results;
mod secrets;
pub(crate) mod stack;

pub(crate) use self::broker::{broker_options, queue_type};
pub(crate) use self::bucket::{Bucket, Creation};
pub(crate) use self::bucket_monitor::BucketMonitor;
pub(crate) use self::codecs::{codecs, compression, encryption};
pub(crate) use self::failure::{Code, Failure};
pub(crate) use self::health::health_report;
pub(crate) use self::memory_limit::in_flight_bytes;
pub(crate) use self::node_name::expand;
pub(crate) use self::results::Results;
pub(crate) use self::secrets::Secrets;
