//! The checked settings as typed values.

use std::collections::BTreeMap;
use std::path::PathBuf;
use std::time::Duration;

use super::values::Values;
use super::{Secret, StorageSettings};

/// All checked settings of the program.
#[derive(Clone, Debug)]
pub struct Settings {
    /// The settings of the storage engine.
    pub storage: StorageSettings,
    /// The settings of the broker and its queues.
    pub queue: QueueSettings,
    /// The settings of the worker.
    pub worker: WorkerSettings,
    /// The settings of logs and metrics.
    pub telemetry: TelemetrySettings,
}

/// The settings of the broker and its queues.
#[derive(Clone, Debug)]
pub struct QueueSettings {
    /// `celery_broker_url`: at least one URL, with its password; several are tried in turn.
    pub broker_urls: Vec<Secret>,
    /// Tells whether `celery_broker_url` has its default value.
    pub broker_is_default: bool,
    /// `celery_task_default_queue`.
    pub default_queue: String,
    /// The queues to consume: `celery_task_queues`, or only the default queue; never empty and without repetition.
    pub queues: Vec<String>,
    /// `celery_task_default_queue_type`: the type of queues that the program declares.
    pub queue_type: QueueType,
    /// `celery_task_queue_max_priority`: the `x-max-priority` of queues that the program declares.
    pub max_priority: Option<u8>,
    /// `broker_tls_ca_file`: certificate authorities to trust, in addition to the system's.
    pub tls_ca_file: Option<PathBuf>,
    /// `broker_tls_certificate_file` and `broker_tls_key_file`: the client certificate.
    pub tls_identity: Option<TlsIdentity>,
}

/// The PEM files of a client certificate and its key.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct TlsIdentity {
    /// The certificate chain.
    pub certificate_file: PathBuf,
    /// The private key.
    pub key_file: PathBuf,
}

/// The type of a queue.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum QueueType {
    /// A classic queue, which one node keeps.
    Classic,
    /// A quorum queue, which is replicated.
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

/// The settings of the worker.
#[derive(Clone, Debug)]
pub struct WorkerSettings {
    /// `worker_name`, before `%h`, `%n` and `%d` are replaced.
    pub name: String,
    /// `celery_worker_concurrency`: the most commands that run at once.
    pub concurrency: usize,
    /// `celery_worker_prefetch_multiplier`; times the concurrency, it is at most 65535. 0 means no limit.
    pub prefetch_multiplier: u16,
    /// `celery_accept_content`: the serializers whose messages are read.
    pub accept_content: Vec<String>,
    /// `celery_result_backend`, with its password.
    pub result_backend: Secret,
    /// `celery_result_backend_transport_options`: a JSON object, with the password of the sentinels.
    pub result_options: Secret,
    /// `celery_result_expires`: how long a store keeps results; zero means for ever.
    pub result_expires: Duration,
    /// `celery_result_serializer`: the name of the serializer of replies.
    pub result_serializer: String,
    /// `celery_result_persistent`: replies survive a restart of the broker.
    pub result_persistent: bool,
    /// `celery_result_extended`: replies carry name, arguments, worker, queue.
    pub result_extended: bool,
    /// `celery_task_inherit_parent_priority`: callbacks and steps have the priority of their command.
    pub inherit_parent_priority: bool,
    /// `celery_task_track_started`: a STARTED reply is sent when a command begins.
    pub track_started: bool,
    /// `celery_task_time_limit`: the longest time that a command may run.
    pub time_limit: Option<Duration>,
    /// `celery_task_soft_time_limit`: the time after which a command fails with `SoftTimeLimitExceeded`.
    pub soft_time_limit: Option<Duration>,
    /// `celery_worker_send_task_events`.
    pub send_task_events: bool,
    /// `celery_worker_enable_remote_control`.
    pub remote_control: bool,
    /// `max_reply_bytes`: a larger answer becomes a `ValueError`.
    pub max_reply_bytes: usize,
    /// `journal_max_bytes`: the largest size of the journal of one worker.
    pub journal_max_bytes: u64,
    /// `parked_max_bytes`: the most bytes of parked publications, in queues that this worker makes.
    pub parked_max_bytes: u64,
    /// `parked_max_age_seconds`: the longest time that a publication is parked.
    pub parked_max_age: Duration,
    /// `max_in_flight_bytes`: the most bytes of commands in memory at once; `None` derives it from the memory limit.
    pub max_in_flight_bytes: Option<u64>,
    /// `message_max_retries`: the most retries of a message whose storage is unreachable.
    pub message_max_retries: u32,
    /// `max_crashes`: the number of crashes while a command ran alone after which it goes to the dead queue.
    pub max_crashes: u32,
    /// `dead_max_messages`: the most copies that the worker leaves in `filestorage.dead`; `None` is no bound.
    pub dead_max_messages: Option<u64>,
    /// `enable_events`: metric events are published.
    pub events: bool,
    /// `events_max_batch`: the most metric events in one message; 1 turns batches off.
    pub events_max_batch: usize,
    /// `shutdown_grace_seconds`: the longest time that a warm shutdown waits for running commands.
    pub shutdown_grace: Duration,
}

/// The settings of logs and metrics.
#[derive(Clone, Debug)]
pub struct TelemetrySettings {
    /// `log_level`.
    pub log_level: LogLevel,
    /// `metrics_host` and `metrics_port`; `None` when `enable_metrics` is false.
    pub metrics: Option<MetricsAddress>,
}

/// The address on which the admin port listens.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct MetricsAddress {
    /// The host, as a name or an address.
    pub host: String,
    /// The port; 0 takes a free one.
    pub port: u16,
}

/// The level from which lines are logged, by Celery's names.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum LogLevel {
    /// All lines.
    Debug,
    /// Normal events that happen now and then.
    Info,
    /// Events that somebody should look at.
    Warning,
    /// Errors.
    Error,
    /// Errors only, as for [`LogLevel::Error`]: the program has no higher level.
    Critical,
}

impl LogLevel {
    /// Returns the filter of this level in tracing's syntax.
    #[must_use]
    pub const fn filter(self) -> &'static str {
        match self {
            // The lines of lapin are left out: its errors are part of this program's, and its debug lines hold payloads.
            Self::Debug => "debug,lapin=off",
            Self::Info => "info,lapin=off",
            Self::Warning => "warn,lapin=off",
            Self::Error | Self::Critical => "error,lapin=off",
        }
    }
}

impl Settings {
    /// Creates the settings from the parsed values; returns `None` when a value is missing, a fault of the registry.
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
                result_backend: Secret::new(values.text("celery_result_backend")?),
                result_options: Secret::new(values.text("celery_result_backend_transport_options").unwrap_or_default()),
                result_expires: values.seconds("celery_result_expires")?,
                result_serializer: values.text("celery_result_serializer")?.to_owned(),
                result_persistent: values.bool("celery_result_persistent"),
                result_extended: values.bool("celery_result_extended"),
                inherit_parent_priority: values.bool("celery_task_inherit_parent_priority"),
                track_started: values.bool("celery_task_track_started"),
                time_limit: values.seconds("celery_task_time_limit"),
                soft_time_limit: values.seconds("celery_task_soft_time_limit"),
                send_task_events: values.bool("celery_worker_send_task_events"),
                remote_control: values.bool("celery_worker_enable_remote_control"),
                max_reply_bytes: values.integer("max_reply_bytes")?,
                journal_max_bytes: values.integer("journal_max_bytes")?,
                parked_max_bytes: values.integer("parked_max_bytes")?,
                parked_max_age: values.seconds("parked_max_age_seconds")?,
                max_in_flight_bytes: values.integer("max_in_flight_bytes"),
                message_max_retries: values.integer("message_max_retries")?,
                max_crashes: values.integer("max_crashes")?,
                dead_max_messages: values.integer("dead_max_messages"),
                events: values.bool("enable_events"),
                events_max_batch: values.integer("events_max_batch")?,
                shutdown_grace: values.seconds("shutdown_grace_seconds")?,
            },
            telemetry: TelemetrySettings { log_level, metrics: values.bool("enable_metrics").then_some(metrics) },
        })
    }
}
