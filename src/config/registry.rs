//! The table of all settings, one row each, in the order in which they are shown.

use super::SettingKind;
use crate::provider::Provider;

/// The parts of a value that may be shown.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Secrecy {
    /// The whole value may be shown.
    Plain,
    /// The value holds URLs, whose logins and queries are hidden; the setting has a `_file` variant.
    Urls,
    /// Nothing may be shown; the setting has a `_file` variant, and no flag but that of this variant.
    Secret,
}

/// The support of a setting in this version.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Availability {
    /// The setting takes effect.
    Now,
    /// The setting is read and checked, and has no effect yet; ignoring it harms nobody.
    Idle,
    /// The setting takes effect, but for these values, which prevent the start.
    LaterFor(&'static [&'static str]),
}

/// One setting.
#[derive(Clone, Copy, Debug)]
pub struct Setting {
    /// The name in files. With dashes it is the name of the flag, in upper case that of the environment variable.
    pub name: &'static str,
    /// Further environment variables, tried in turn after the first.
    pub aliases: &'static [&'static str],
    /// The kind of value.
    pub kind: SettingKind,
    /// The text of the default value; `None` means unset.
    pub default: Option<&'static str>,
    /// The parts of the value that may be shown.
    pub secrecy: Secrecy,
    /// The support in this version.
    pub availability: Availability,
    /// The description, one sentence.
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

    /// Returns the name of the environment variable, without aliases.
    #[must_use]
    pub fn environment(&self) -> String {
        self.name.to_ascii_uppercase()
    }

    /// Returns the flag with its dashes.
    #[must_use]
    pub fn flag(&self) -> String {
        format!("--{}", self.name.replace('_', "-"))
    }

    /// Returns the name of the `_file` variant, which names a file that holds the value.
    ///
    /// Only settings whose [`Secrecy`] is not `Plain` have this variant.
    #[must_use]
    pub fn file_variant(&self) -> Option<String> {
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

/// All settings.
pub static SETTINGS: &[Setting] = &[
    Setting::new(
        "local_storage_path",
        SettingKind::Path,
        "./storage",
        "Folder of the local store, of the overlays, and of the journal.",
    ),
    Setting::new(
        "storage_backend",
        SettingKind::Choice(&["auto", "local", "gcs", "s3"]),
        "auto",
        "Where values are kept; `auto` means the bucket that the settings name, Google's before S3's, or else the local store.",
    ),
    Setting::unset(
        "gcs_bucket_name",
        SettingKind::Bucket(Provider::Gcs),
        "Bucket of Google Cloud Storage; it is created when it is missing and gcs_project_id is set.",
    )
    .aliases(&["GOOGLE_CLOUD_STORAGE_BUCKET"]),
    Setting::unset("gcs_project_id", SettingKind::Name, "Google Cloud project, in which a missing bucket is created.")
        .aliases(&["GOOGLE_CLOUD_PROJECT_ID"]),
    Setting::unset(
        "gcs_credentials_path",
        SettingKind::File,
        "Google's credentials file; unset means the credentials of the machine.",
    )
    .aliases(&["GOOGLE_APPLICATION_CREDENTIALS"]),
    Setting::new("gcs_location", SettingKind::Name, "US", "Location in which a missing bucket is created."),
    Setting::unset(
        "storage_emulator_host",
        SettingKind::Emulator,
        "Emulator of Google Cloud Storage, which is used instead of Google and without credentials.",
    ),
    Setting::unset(
        "s3_bucket_name",
        SettingKind::Bucket(Provider::S3),
        "Bucket of S3 or a compatible store; credentials come from the usual AWS_* variables.",
    ),
    Setting::unset(
        "s3_endpoint_url",
        SettingKind::Url,
        "URL of a store that is compatible with S3; unset means Amazon's S3.",
    ),
    Setting::unset("s3_region", SettingKind::Name, "Region of the S3 bucket; unset means AWS_REGION."),
    Setting::new(
        "enable_local_fallback",
        SettingKind::Bool,
        "true",
        "Keeps writes locally while the bucket cannot be reached, and sends them when it is back.",
    ),
    Setting::new("max_retries", integer(0, 100), "3", "Most attempts at the bucket after the first."),
    Setting::new(
        "timeout_seconds",
        SettingKind::Seconds { max: DAY },
        "30",
        "Longest time of one attempt at the bucket.",
    ),
    // With pieces of 8 KiB, the known default, each piece would cost a change of threads.
    Setting::new(
        "chunk_size",
        integer(1, 1 << 30),
        "8192",
        "Taken for compatibility and ignored: a streamed value is moved in pieces of 256 KiB.",
    ),
    Setting::new(
        "enable_compression",
        SettingKind::Bool,
        "true",
        "Compresses values above the threshold, unless their content type is compressed in itself or they do not get smaller.",
    ),
    Setting::new("compression_threshold_bytes", integer(0, 1 << 40), "1024", "Size above which values are compressed."),
    Setting::new("compression_algorithm", SettingKind::Choice(&["gzip", "zstd"]), "gzip", "Codec of new values."),
    Setting::unset(
        "compression_level",
        integer(1, 22),
        "Level of the codec, at most 9 for gzip; unset means 3 for gzip and 1 for zstd.",
    ),
    Setting::new(
        "enable_encryption",
        SettingKind::Bool,
        "false",
        "Encrypts new values and their metadata with encryption_key; what is encrypted already is read in any case.",
    ),
    Setting::unset(
        "encryption_key",
        SettingKind::EncryptionKeys,
        "Base64 of 32 bytes; several are joined by commas: the first encrypts, all decrypt.",
    )
    .secrecy(Secrecy::Secret),
    Setting::new(
        "enable_cache",
        SettingKind::Bool,
        "true",
        "Keeps values that were read in the memory of the worker; with a bucket, also values that were stored.",
    ),
    Setting::new(
        "cache_ttl_seconds",
        SettingKind::Seconds { max: 365 * DAY },
        "3600",
        "Longest time that a value stays in the cache.",
    ),
    Setting::new(
        "max_cache_size_mb",
        integer(1, 1 << 20),
        "100",
        "Most memory of the cache in MiB; values of more than an eighth of it are not kept.",
    ),
    Setting::unset(
        "cache_revalidate_seconds",
        SettingKind::Pause { max: 365 * DAY },
        "Age after which the bucket is asked whether a cached value is still the same; 0 asks each time, unset means that the TTL alone counts.",
    ),
    Setting::new(
        "sweep_interval_seconds",
        SettingKind::Pause { max: 365 * DAY },
        "3600",
        "Time between two sweeps, in which a worker removes expired values; 0 means none. At S3, a sweep costs each worker a request for each object: let one sweep, give the others 0.",
    ),
    Setting::unset(
        "quotas",
        SettingKind::Quotas,
        "Most stored bytes, and optionally objects, below a prefix, such as `users/=10GiB,1000000; =1TiB`; the empty prefix means all keys.",
    ),
    Setting::new(
        "quota_recount_seconds",
        SettingKind::Seconds { max: 365 * DAY },
        "60",
        "Longest time after which a worker counts again what is stored below its quotas; longer where a count takes more than a twentieth of it.",
    ),
    Setting::unset("exchange_directories", SettingKind::Paths, "Folders below which commands may name files."),
    Setting::unset(
        "exchange_buckets",
        SettingKind::Buckets,
        "Buckets, besides the worker's own, whose objects commands may name; no request is sent to any other bucket.",
    ),
    Setting::new(
        "celery_broker_url",
        SettingKind::BrokerUrls,
        "amqp://guest:guest@localhost:5672//",
        "URL of RabbitMQ; several are joined by `;` and tried in turn; `//` at the end means the vhost `/`.",
    )
    .secrecy(Secrecy::Urls),
    Setting::unset(
        "broker_tls_ca_file",
        SettingKind::File,
        "Certificate authorities to trust for `amqps`, in addition to the system's, PEM.",
    ),
    Setting::unset(
        "broker_tls_certificate_file",
        SettingKind::File,
        "Certificate with which the worker logs in to the broker, PEM.",
    ),
    Setting::unset("broker_tls_key_file", SettingKind::File, "Key of that certificate, PEM."),
    Setting::new(
        "celery_task_default_queue",
        SettingKind::Queue,
        "filestorage",
        "Queue that is consumed when celery_task_queues is unset, and for callbacks and chain steps that name no queue; by default the first of celery_task_queues.",
    ),
    Setting::unset("celery_task_queues", SettingKind::Queues, "Queues to consume; unset means the default queue."),
    Setting::new(
        "celery_task_default_queue_type",
        SettingKind::Choice(&["classic", "quorum"]),
        "classic",
        "Type of the queues that the worker declares.",
    ),
    Setting::unset(
        "celery_task_queue_max_priority",
        integer(1, 255),
        "Highest priority of the queues that the worker declares, only for classic queues.",
    ),
    Setting::new("celery_worker_concurrency", integer(1, 4096), "64", "Most commands in flight at once."),
    Setting::new(
        "celery_worker_prefetch_multiplier",
        integer(0, 4096),
        "8",
        "Messages that are prefetched for each command in flight; 0 means no limit.",
    ),
    Setting::new("celery_accept_content", SettingKind::Content, "json", "Serializers of messages that are read."),
    Setting::new(
        "celery_result_backend",
        SettingKind::ResultUrl,
        "rpc://",
        "Where answers go: `rpc://` to the reply queues of the clients, `redis://`, `rediss://` or `sentinel://` into a Redis, as Celery's own backend writes them.",
    )
    .secrecy(Secrecy::Urls),
    Setting::unset(
        "celery_result_backend_transport_options",
        SettingKind::ResultOptions,
        "Celery's options of a Redis for results: `global_keyprefix`, `result_chord_ordered`, `master_name`, `min_other_sentinels`, and `sentinel_kwargs` with `username` and `password`; in the file also a table.",
    )
    .secrecy(Secrecy::Secret),
    Setting::new(
        "celery_result_expires",
        SettingKind::Pause { max: 3650 * DAY },
        "86400",
        "Seconds that a Redis keeps a result, 0 for ever; reply queues belong to the clients, which set this time themselves.",
    ),
    Setting::new(
        "celery_result_serializer",
        SettingKind::Choice(&["json", "msgpack", "yaml"]),
        "json",
        "Serializer of answers in reply queues, which the clients must accept; answers in a Redis are JSON.",
    ),
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
    Setting::new(
        "celery_task_inherit_parent_priority",
        SettingKind::Bool,
        "false",
        "Callbacks and steps of a chain have the priority of the command before them.",
    ),
    Setting::new("celery_task_track_started", SettingKind::Bool, "false", "Answers STARTED when a command begins."),
    Setting::unset(
        "celery_task_time_limit",
        SettingKind::Seconds { max: 365 * DAY },
        "Longest time that a command may run.",
    ),
    Setting::unset(
        "celery_task_soft_time_limit",
        SettingKind::Seconds { max: 365 * DAY },
        "After this time a command fails with SoftTimeLimitExceeded.",
    ),
    Setting::new("celery_worker_send_task_events", SettingKind::Bool, "false", "Sends Celery's task events."),
    Setting::new(
        "celery_worker_enable_remote_control",
        SettingKind::Bool,
        "true",
        "Answers `celery inspect` and `control`.",
    ),
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
        "Largest answer in bytes; a larger one becomes a ValueError that says how to ask for less.",
    ),
    Setting::new(
        "journal_max_bytes",
        integer(1 << 20, 1 << 40),
        "268435456",
        "Largest size of the journal of one worker in bytes; the oldest acknowledged answers are dropped first.",
    ),
    Setting::unset(
        "max_in_flight_bytes",
        integer(1 << 20, 1 << 40),
        "Most bytes of commands in memory at once; unset means 256 MiB, or a quarter of the memory limit when that is less.",
    ),
    Setting::new(
        "parked_max_bytes",
        integer(1 << 20, 1 << 40),
        "268435456",
        "Most bytes of parked publications, as the worker that makes the queues sets it; above it a command waits for its full or missing queue.",
    ),
    Setting::new(
        "parked_max_age_seconds",
        SettingKind::Seconds { max: 365 * DAY },
        "604800",
        "Longest time that a callback, event or dead copy is parked; then it goes to filestorage.dead.",
    ),
    Setting::new(
        "message_max_retries",
        integer(0, 1000),
        "3",
        "How often a command runs again whose bucket is unreachable while no fallback serves; a header `max_retries` of the message goes before.",
    ),
    Setting::new(
        "max_crashes",
        integer(1, 1000),
        "5",
        "Number of crashes, while a command ran alone, after which it is given up.",
    ),
    Setting::unset(
        "dead_max_messages",
        integer(1, 1 << 40),
        "Most messages in filestorage.dead; workers remove the oldest above it, looking every 5 s. Unset keeps all.",
    ),
    Setting::new("enable_events", SettingKind::Bool, "true", "Publishes a metric event for every finished operation."),
    Setting::new(
        "events_max_batch",
        integer(1, 4096),
        "256",
        "Most metric events in one message; 1 turns batches off.",
    ),
    Setting::new(
        "shutdown_grace_seconds",
        SettingKind::Seconds { max: DAY },
        "25",
        "Longest time that a stop waits for running commands; a stop takes at most 8 s more.",
    ),
    Setting::new("enable_metrics", SettingKind::Bool, "true", "Opens the admin port."),
    Setting::new("metrics_host", SettingKind::Name, "127.0.0.1", "Address of the admin port."),
    Setting::new("metrics_port", integer(0, 65_535), "8002", "Port of the admin port; 0 takes a free one and logs it."),
    Setting::new(
        "log_level",
        SettingKind::Choice(&["DEBUG", "INFO", "WARNING", "ERROR", "CRITICAL"]),
        "INFO",
        "Level from which lines are logged; RUST_LOG, when set, overrides it.",
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
            if let Some(variant) = setting.file_variant() {
                assert!(names.insert(variant), "{} variant", setting.name);
            }
            assert!(setting.doc.ends_with('.'), "{}", setting.name);
            if let Some(default) = setting.default {
                assert!(setting.kind.parse(&Raw::Text(default.to_owned())).is_some(), "{}", setting.name);
            }
        }
    }
}
