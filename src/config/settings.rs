//! The checked settings: plain typed fields, no text left to read.

use std::collections::BTreeMap;
use std::path::PathBuf;
use std::time::Duration;

use super::values::Values;
use super::{Secret, StorageSettings};

/// Everything the program can be told, checked.
#[derive(Clone, Debug)]
pub struct Settings {
    /// The storage engine's.
    pub storage: StorageSettings,
    /// The broker's and its queues'.
    pub queue: QueueSettings,
    /// The worker's.
    pub worker: WorkerSettings,
    /// Logs' and numbers'.
    pub telemetry: TelemetrySettings,
}

/// What the broker room is told.
#[derive(Clone, Debug)]
pub struct QueueSettings {
    /// `celery_broker_url`: at least one URL, tried in turn; passwords inside.
    pub broker_urls: Vec<Secret>,
    /// `celery_broker_url` was given nowhere: its default holds.
    pub broker_is_default: bool,
    /// `celery_task_default_queue`.
    pub default_queue: String,
    /// The queues to consume: `celery_task_queues`, or the default queue alone; never empty, no name twice.
    pub queues: Vec<String>,
    /// `celery_task_default_queue_type`: type of the queues this program has to declare.
    pub queue_type: QueueType,
    /// `celery_task_queue_max_priority`: `x-max-priority` of the queues this program has to declare.
    pub max_priority: Option<u8>,
    /// `broker_tls_ca_file`: authorities to trust beside the system's.
    pub tls_ca_file: Option<PathBuf>,
    /// `broker_tls_certificate_file` and `broker_tls_key_file`: what this client shows of itself.
    pub tls_identity: Option<TlsIdentity>,
}

/// A client certificate and its key, as PEM files.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct TlsIdentity {
    /// Certificate chain.
    pub certificate_file: PathBuf,
    /// Private key.
    pub key_file: PathBuf,
}

/// Type of a queue.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum QueueType {
    /// One node keeps it.
    Classic,
    /// Replicated.
    Quorum,
}

impl QueueType {
    /// Returns the value of `x-queue-type`.
    #[must_use]
    pub const fn as_str(self) -> &'static str {
        match self {
            Self::Classic => "classic",
            Self::Quorum => "quorum",
        }
    }
}

/// What the worker is told.
#[derive(Clone, Debug)]
pub struct WorkerSettings {
    /// `worker_name`, before `%h`, `%n` and `%d` are filled in.
    pub name: String,
    /// `celery_worker_concurrency`: commands in flight at once.
    pub concurrency: usize,
    /// `celery_worker_prefetch_multiplier`: times the concurrency it is at most 65535; 0 is no limit.
    pub prefetch_multiplier: u16,
    /// `celery_accept_content`: serializers of messages that are read.
    pub accept_content: Vec<String>,
    /// `celery_result_persistent`: replies survive a restart of the broker.
    pub result_persistent: bool,
    /// `celery_result_extended`: replies carry name, arguments, worker, queue.
    pub result_extended: bool,
    /// `celery_task_track_started`: a STARTED reply when a command begins.
    pub track_started: bool,
    /// `celery_task_time_limit`: longest a command may run.
    pub time_limit: Option<Duration>,
    /// `celery_task_soft_time_limit`.
    pub soft_time_limit: Option<Duration>,
    /// `celery_worker_send_task_events`.
    pub send_task_events: bool,
    /// `max_reply_bytes`: a larger answer becomes a `ValueError`.
    pub max_reply_bytes: usize,
    /// `journal_max_bytes`: bytes that the journal of one worker may have.
    pub journal_max_bytes: u64,
    /// `max_in_flight_bytes`: bytes of commands held in memory at once; unset goes by the memory limit.
    pub max_in_flight_bytes: Option<u64>,
    /// `max_crashes`: so many crashes while it ran alone, and a command goes to the dead queue.
    pub max_crashes: u32,
    /// `enable_events`: metric events are published.
    pub events: bool,
    /// `events_max_batch`: metric events in one message; 1 turns batches off.
    pub events_max_batch: usize,
    /// `shutdown_grace_seconds`: how long a warm shutdown waits for what runs.
    pub shutdown_grace: Duration,
}

/// What logs and numbers are told.
#[derive(Clone, Debug)]
pub struct TelemetrySettings {
    /// `log_level`.
    pub log_level: LogLevel,
    /// `metrics_host` and `metrics_port`; none when `enable_metrics` is false.
    pub metrics: Option<MetricsAddress>,
}

/// Where the admin port listens.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct MetricsAddress {
    /// Name or address.
    pub host: String,
    /// Port; 0 takes a free one.
    pub port: u16,
}

/// How much is logged; Celery's names.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum LogLevel {
    /// Everything.
    Debug,
    /// What happens now and then.
    Info,
    /// What somebody should look at.
    Warning,
    /// What went wrong.
    Error,
    /// The same as errors: nothing is logged above them.
    Critical,
}

impl LogLevel {
    /// Returns tracing's filter for this level.
    #[must_use]
    pub const fn filter(self) -> &'static str {
        match self {
            // What the client library says is in our own errors, and at its higher levels it logs payloads.
            Self::Debug => "debug,lapin=off",
            Self::Info => "info,lapin=off",
            Self::Warning => "warn,lapin=off",
            Self::Error | Self::Critical => "error,lapin=off",
        }
    }
}

impl Settings {
    /// Takes the parsed values apart; `None` names no fault of the user but a gap in the registry.
    pub(super) fn from_values(
        values: &Values,
        aws: BTreeMap<String, Secret>,
        aws_files: BTreeMap<String, PathBuf>,
    ) -> Option<Self> {
        let default_queue = values.text("celery_task_default_queue")?.to_owned();
        let queues = values.list("celery_task_queues").map_or_else(|| vec![default_queue.clone()], <[_]>::to_vec);
        let queue_type = match values.text("celery_task_default_queue_type")? {
            "quorum" => QueueType::Quorum,
            _ => QueueType::Classic,
        };
        let log_level = match values.text("log_level")? {
            "DEBUG" => LogLevel::Debug,
            "WARNING" => LogLevel::Warning,
            "ERROR" => LogLevel::Error,
            "CRITICAL" => LogLevel::Critical,
            _ => LogLevel::Info,
        };
        let metrics =
            MetricsAddress { host: values.text("metrics_host")?.to_owned(), port: values.integer("metrics_port")? };
        Some(Self {
            storage: StorageSettings::from_values(values, aws, aws_files)?,
            queue: QueueSettings {
                broker_is_default: false,
                broker_urls: values.list("celery_broker_url")?.iter().map(Secret::new).collect(),
                default_queue,
                queues,
                queue_type,
                max_priority: values.integer("celery_task_queue_max_priority"),
                tls_ca_file: values.text("broker_tls_ca_file").map(PathBuf::from),
                tls_identity: values.text("broker_tls_certificate_file").zip(values.text("broker_tls_key_file")).map(
                    |(certificate, key)| TlsIdentity { certificate_file: certificate.into(), key_file: key.into() },
                ),
            },
            worker: WorkerSettings {
                name: values.text("worker_name")?.to_owned(),
                concurrency: values.integer("celery_worker_concurrency")?,
                prefetch_multiplier: values.integer("celery_worker_prefetch_multiplier")?,
                accept_content: values.list("celery_accept_content")?.to_vec(),
                result_persistent: values.bool("celery_result_persistent"),
                result_extended: values.bool("celery_result_extended"),
                track_started: values.bool("celery_task_track_started"),
                time_limit: values.seconds("celery_task_time_limit"),
                soft_time_limit: values.seconds("celery_task_soft_time_limit"),
                send_task_events: values.bool("celery_worker_send_task_events"),
                max_reply_bytes: values.integer("max_reply_bytes")?,
                journal_max_bytes: values.integer("journal_max_bytes")?,
                max_in_flight_bytes: values.integer("max_in_flight_bytes"),
                max_crashes: values.integer("max_crashes")?,
                events: values.bool("enable_events"),
                events_max_batch: values.integer("events_max_batch")?,
                shutdown_grace: values.seconds("shutdown_grace_seconds")?,
            },
            telemetry: TelemetrySettings { log_level, metrics: values.bool("enable_metrics").then_some(metrics) },
        })
    }
}
