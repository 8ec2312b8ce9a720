//! The table of settings: one row each, in the order they are shown.

use super::SettingKind;
use crate::provider::Provider;

/// How much of a value may be shown.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Secrecy {
    /// All of it.
    Plain,
    /// URLs whose logins and queries are hidden; has a `_file` twin.
    Urls,
    /// Nothing; has a `_file` twin and no flag of its own.
    Secret,
}

/// What this version makes of a setting.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Availability {
    /// Acts on it.
    Now,
    /// Reads and checks it; there is nothing yet it could act on, and ignoring it harms nobody.
    Idle,
    /// Knows the name; any value but the default stops the start, for ignoring it would mislead.
    Later,
    /// Acts on it, save for these values, which stop the start.
    LaterFor(&'static [&'static str]),
}

/// One setting.
#[derive(Clone, Copy, Debug)]
pub struct Setting {
    /// Its name in files; with dashes its flag; the first of its names in the environment is the same in upper case.
    pub name: &'static str,
    /// Further names in the environment, tried in turn after its own.
    pub aliases: &'static [&'static str],
    /// What it takes.
    pub kind: SettingKind,
    /// Text of its default; none means unset.
    pub default: Option<&'static str>,
    /// How much of its value may be shown.
    pub secrecy: Secrecy,
    /// What this version makes of it.
    pub availability: Availability,
    /// What it does, one sentence.
    pub doc: &'static str,
}

impl Setting {
    const fn new(name: &'static str, kind: SettingKind, default: &'static str, doc: &'static str) -> Self {
        let (secrecy, availability) = (Secrecy::Plain, Availability::Now);
        Self { name, aliases: &[], kind, default: Some(default), secrecy, availability, doc }
    }

    const fn unset(name: &'static str, kind: SettingKind, doc: &'static str) -> Self {
        Self { default: None, ..Self::new(name, kind, "", doc) }
    }

    const fn aliases(self, aliases: &'static [&'static str]) -> Self {
        Self { aliases, ..self }
    }

    const fn secrecy(self, secrecy: Secrecy) -> Self {
        Self { secrecy, ..self }
    }

    const fn availability(self, availability: Availability) -> Self {
        Self { availability, ..self }
    }

    /// Returns its own name in the environment.
    #[must_use]
    pub fn environment(&self) -> String {
        self.name.to_ascii_uppercase()
    }

    /// Returns its flag, dashes included.
    #[must_use]
    pub fn flag(&self) -> String {
        format!("--{}", self.name.replace('_', "-"))
    }

    /// Returns the name of its twin that names a file holding the value; only secrets have one.
    #[must_use]
    pub fn file_twin(&self) -> Option<String> {
        (self.secrecy != Secrecy::Plain).then(|| format!("{}_file", self.name))
    }
}

/// Finds a setting by its name in files.
#[must_use]
pub fn find(name: &str) -> Option<&'static Setting> {
    SETTINGS.iter().find(|setting| setting.name == name)
}

const fn integer(min: u64, max: u64) -> SettingKind {
    SettingKind::Integer { min, max }
}

const DAY: u32 = 86_400;

/// Every setting there is.
pub static SETTINGS: &[Setting] = &[
    Setting::new(
        "local_storage_path",
        SettingKind::Path,
        "./storage",
        "Folder of the local store, of what waits for the bucket, and of the journal.",
    ),
    Setting::new(
        "storage_backend",
        SettingKind::Choice(&["auto", "local", "gcs", "s3"]),
        "auto",
        "Where values are kept; `auto` takes the bucket that is named, Google's before S3's, else the local store.",
    ),
    Setting::unset(
        "gcs_bucket_name",
        SettingKind::Bucket(Provider::Gcs),
        "Bucket of Google Cloud Storage; it is created when it is missing and its project known.",
    )
    .aliases(&["GOOGLE_CLOUD_STORAGE_BUCKET"]),
    Setting::unset("gcs_project_id", SettingKind::Name, "Google Cloud project, in which a missing bucket is created.")
        .aliases(&["GOOGLE_CLOUD_PROJECT_ID"]),
    Setting::unset(
        "gcs_credentials_path",
        SettingKind::File,
        "Google's credentials file; unset uses the machine's own.",
    )
    .aliases(&["GOOGLE_APPLICATION_CREDENTIALS"]),
    Setting::new("gcs_location", SettingKind::Name, "US", "Where a missing bucket is created."),
    Setting::unset(
        "storage_emulator_host",
        SettingKind::Emulator,
        "A Google Cloud Storage emulator, which is asked instead of Google and without credentials.",
    ),
    Setting::unset(
        "s3_bucket_name",
        SettingKind::Bucket(Provider::S3),
        "Bucket of S3 or a compatible store; credentials come from the usual AWS_* variables.",
    ),
    Setting::unset("s3_endpoint_url", SettingKind::Url, "A store compatible with S3; unset is Amazon's."),
    Setting::unset("s3_region", SettingKind::Name, "Region of the S3 bucket; unset takes AWS_REGION."),
    Setting::new(
        "enable_local_fallback",
        SettingKind::Bool,
        "true",
        "Keeps writes locally while the bucket is away, and sends them when it is back.",
    ),
    Setting::new("max_retries", integer(0, 100), "3", "Attempts at the bucket after the first."),
    Setting::new(
        "timeout_seconds",
        SettingKind::Seconds { max: DAY },
        "30",
        "Longest one attempt at the bucket may take.",
    ),
    // 8 KiB, the default people know, would be a change of threads each; what streams moves in 256 KiB.
    Setting::new("chunk_size", integer(1, 1 << 30), "8192", "Bytes moved at a time when a value streams.")
        .availability(Availability::Idle),
    Setting::new("enable_compression", SettingKind::Bool, "true", "Compresses values above the threshold.")
        .availability(Availability::Idle),
    Setting::new("compression_threshold_bytes", integer(0, 1 << 40), "1024", "Compression begins above this size.")
        .availability(Availability::Idle),
    Setting::new("enable_encryption", SettingKind::Bool, "false", "Encrypts values and metadata.")
        .availability(Availability::LaterFor(&["true"])),
    Setting::unset(
        "encryption_key",
        SettingKind::Text,
        "Base64 of 32 bytes; several joined by commas: the first encrypts, all decrypt.",
    )
    .secrecy(Secrecy::Secret)
    .availability(Availability::Later),
    Setting::new("enable_cache", SettingKind::Bool, "true", "Keeps values in memory.").availability(Availability::Idle),
    Setting::new(
        "cache_ttl_seconds",
        SettingKind::Seconds { max: 365 * DAY },
        "3600",
        "Longest a value stays in the cache.",
    )
    .availability(Availability::Idle),
    Setting::new("max_cache_size_mb", integer(1, 1 << 20), "100", "Size of the cache in MiB.")
        .availability(Availability::Idle),
    Setting::unset("exchange_directories", SettingKind::Paths, "Folders below which commands may name files."),
    Setting::unset(
        "exchange_buckets",
        SettingKind::Buckets,
        "Buckets beside the worker's own whose objects commands may name; for any other no request is made.",
    ),
    Setting::new(
        "celery_broker_url",
        SettingKind::BrokerUrls,
        "amqp://guest:guest@localhost:5672//",
        "RabbitMQ's URL; several joined by `;` are tried in turn, `//` is the vhost `/`.",
    )
    .secrecy(Secrecy::Urls),
    Setting::unset(
        "broker_tls_ca_file",
        SettingKind::File,
        "Authorities to trust for `amqps` beside the system's, PEM.",
    ),
    Setting::unset(
        "broker_tls_certificate_file",
        SettingKind::File,
        "Certificate this client shows to the broker, PEM.",
    ),
    Setting::unset("broker_tls_key_file", SettingKind::File, "Key of that certificate, PEM."),
    Setting::new(
        "celery_task_default_queue",
        SettingKind::Queue,
        "filestorage",
        "Queue consumed when none is named, and where callbacks and chain steps go that name none; by default the first of celery_task_queues.",
    ),
    Setting::unset("celery_task_queues", SettingKind::Queues, "Queues to consume; unset takes the default queue."),
    Setting::new(
        "celery_task_default_queue_type",
        SettingKind::Choice(&["classic", "quorum"]),
        "classic",
        "Type of queues that have to be declared.",
    ),
    Setting::unset(
        "celery_task_queue_max_priority",
        integer(1, 255),
        "Priorities of queues that have to be declared, classic ones only.",
    ),
    Setting::new("celery_worker_concurrency", integer(1, 4096), "64", "Commands in flight at once."),
    Setting::new(
        "celery_worker_prefetch_multiplier",
        integer(0, 4096),
        "8",
        "Messages fetched ahead for each command in flight; 0 is no limit.",
    ),
    Setting::new("celery_accept_content", SettingKind::Content, "json", "Serializers of messages that are read."),
    Setting::new(
        "celery_result_expires",
        SettingKind::Seconds { max: 3650 * DAY },
        "86400",
        "How long results are kept; reply queues belong to the clients, who say so themselves.",
    )
    .availability(Availability::Idle),
    Setting::new(
        "celery_result_persistent",
        SettingKind::Bool,
        "true",
        "Replies survive a restart of the broker; unlike Celery's default.",
    ),
    Setting::new(
        "celery_result_extended",
        SettingKind::Bool,
        "false",
        "Replies carry name, arguments, worker and queue.",
    ),
    Setting::new("celery_task_track_started", SettingKind::Bool, "false", "Answers STARTED when a command begins."),
    Setting::unset("celery_task_time_limit", SettingKind::Seconds { max: 365 * DAY }, "Longest a command may run."),
    Setting::unset(
        "celery_task_soft_time_limit",
        SettingKind::Seconds { max: 365 * DAY },
        "After this time a command fails with SoftTimeLimitExceeded.",
    ),
    Setting::new("celery_worker_send_task_events", SettingKind::Bool, "false", "Sends Celery's task events.")
        .availability(Availability::Idle),
    Setting::new(
        "celery_worker_enable_remote_control",
        SettingKind::Bool,
        "true",
        "Answers `celery inspect` and `control`.",
    )
    .availability(Availability::Idle),
    Setting::new(
        "worker_name",
        SettingKind::Text,
        "filestorage@%h",
        "Node name; %h is the host name, %n its first part, %d the rest.",
    ),
    Setting::new(
        "max_reply_bytes",
        integer(1024, 512 << 20),
        "15728640",
        "A larger answer becomes a ValueError that says how to ask for less.",
    ),
    Setting::new(
        "journal_max_bytes",
        integer(1 << 20, 1 << 40),
        "268435456",
        "Bytes that the journal of one worker may have; the oldest answers that were acknowledged go first.",
    ),
    Setting::unset(
        "max_in_flight_bytes",
        integer(1 << 20, 1 << 40),
        "Bytes of commands held in memory at once; unset is 256 MiB, or a quarter of the memory limit where that is less.",
    ),
    Setting::new("max_crashes", integer(1, 1000), "5", "Crashes while it ran alone after which a command is given up."),
    Setting::new("enable_events", SettingKind::Bool, "true", "Publishes a metric event for every finished operation."),
    Setting::new("events_max_batch", integer(1, 4096), "256", "Metric events in one message; 1 turns batches off."),
    Setting::new(
        "shutdown_grace_seconds",
        SettingKind::Seconds { max: DAY },
        "25",
        "How long a stop waits for what runs; a stop takes at most 8 s more.",
    ),
    Setting::new("enable_metrics", SettingKind::Bool, "true", "Opens the admin port."),
    Setting::new("metrics_host", SettingKind::Name, "127.0.0.1", "Address of the admin port."),
    Setting::new("metrics_port", integer(0, 65_535), "8002", "Port of the admin port; 0 takes a free one and logs it."),
    Setting::new(
        "log_level",
        SettingKind::Choice(&["DEBUG", "INFO", "WARNING", "ERROR", "CRITICAL"]),
        "INFO",
        "How much is logged; RUST_LOG, when set, has the finer say.",
    ),
    Setting::new("enable_tracing", SettingKind::Bool, "false", "Sends traces.")
        .availability(Availability::LaterFor(&["true"])),
    Setting::unset("tracing_endpoint", SettingKind::Url, "Where traces are sent.").availability(Availability::Idle),
];

#[cfg(test)]
mod tests {
    use super::*;
    use crate::config::kind::Raw;

    #[test]
    fn every_row_is_sound() {
        let mut names = std::collections::HashSet::new();
        for setting in SETTINGS {
            assert!(names.insert(setting.name.to_owned()), "{} twice", setting.name);
            if let Some(twin) = setting.file_twin() {
                assert!(names.insert(twin), "{} twin", setting.name);
            }
            assert!(setting.doc.ends_with('.'), "{}", setting.name);
            if let Some(default) = setting.default {
                assert!(setting.kind.parse(&Raw::Text(default.to_owned())).is_some(), "{}", setting.name);
            }
        }
    }
}
