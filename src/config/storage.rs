//! The checked settings of the storage engine.

use std::collections::BTreeMap;
use std::path::PathBuf;
use std::time::Duration;

use super::Secret;
use super::kind::bucket;
use super::values::Values;
use crate::encryption_key::EncryptionKey;
use crate::provider::Provider;
use crate::quota_rule::QuotaRule;
use crate::redact;

/// The folder of the local store, below `local_storage_path`.
pub const OBJECTS: &str = "objects";
/// The folder of the overlays, below `local_storage_path`.
pub const OVERLAY: &str = "overlay";
/// The folder of the journals, below `local_storage_path`.
pub const JOURNAL: &str = "journal";
/// The folder of the spool, below `local_storage_path`: files without a name for large values on their way.
pub const SPOOL: &str = "spool";

/// The highest level of gzip.
const BEST_GZIP_LEVEL: u64 = 9;

/// The settings of the storage engine.
#[derive(Clone, Debug)]
pub struct StorageSettings {
    /// `local_storage_path`: the folder that holds all files of the program.
    pub local_storage_path: PathBuf,
    /// The bucket that keeps the values, by `storage_backend` and the bucket settings; `None` for the local store.
    pub bucket: Option<(Provider, String)>,
    /// The settings for all buckets of Google Cloud Storage.
    pub gcs: GcsSettings,
    /// The settings for all buckets of S3 or a compatible store.
    pub s3: S3Settings,
    /// `enable_local_fallback`: writes go to the local overlay while the bucket cannot be reached.
    pub local_fallback: bool,
    /// `max_retries`: the most attempts after the first.
    pub max_retries: u32,
    /// `timeout_seconds`: the longest time of one attempt.
    pub timeout: Duration,
    /// `enable_compression` with its codec; `None` stores new values as they are.
    pub compression: Option<CompressionSettings>,
    /// `max_in_flight_bytes`: the most bytes of a value of unknown size in memory; `None` derives it from the memory limit.
    pub max_in_flight_bytes: Option<u64>,
    /// `enable_cache` with its bounds; `None` keeps nothing in memory.
    pub cache: Option<CacheSettings>,
    /// `encryption_key`: the first encrypts, and what any of them has encrypted can be read.
    pub encryption_keys: Vec<EncryptionKey>,
    /// `enable_encryption`: new values are encrypted. There is a key then.
    pub encryption: bool,
    /// `quotas`: how much may be stored below prefixes.
    pub quotas: Vec<QuotaRule>,
    /// `quota_recount_seconds`: the time between two counts.
    pub quota_recount: Duration,
    /// `sweep_interval_seconds`: the time between two sweeps of a worker; `None` means that it does not sweep.
    pub sweep_interval: Option<Duration>,
    /// `exchange_directories`: absolute paths of the folders below which commands may name files.
    pub exchange_directories: Vec<PathBuf>,
    /// The files that hold or are named by settings: none of them is a value, whatever folder it lies in.
    pub own_files: Vec<PathBuf>,
    /// `exchange_buckets`: the buckets, besides the worker's own, whose objects commands may name.
    pub exchange_buckets: Vec<(Provider, String)>,
}

/// How values are kept in memory.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct CacheSettings {
    /// `max_cache_size_mb` in bytes: the most memory of the cache.
    pub bytes: u64,
    /// `cache_ttl_seconds`: the longest time that a value stays.
    pub ttl: Duration,
    /// `cache_revalidate_seconds`: the age after which the bucket is asked; `None` never asks.
    pub revalidate: Option<Duration>,
}

/// How new values are compressed.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct CompressionSettings {
    /// `compression_algorithm`: `gzip` or `zstd`.
    pub algorithm: String,
    /// `compression_level`; `None` means the default of the algorithm.
    pub level: Option<i32>,
    /// `compression_threshold_bytes`: only values of more bytes are compressed.
    pub threshold: u64,
}

/// The settings for buckets of Google Cloud Storage.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct GcsSettings {
    /// `gcs_bucket_name`, also when another backend keeps the values.
    pub bucket: Option<String>,
    /// `gcs_project_id`: the project in which a missing bucket is created.
    pub project: Option<String>,
    /// `gcs_location`: the location in which a missing bucket is created.
    pub location: String,
    /// `gcs_credentials_path`; `None` means the credentials of the machine.
    pub credentials: Option<PathBuf>,
    /// `storage_emulator_host` as a URL.
    pub emulator: Option<String>,
}

/// The settings for buckets of S3 or a compatible store.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct S3Settings {
    /// `s3_bucket_name`, also when another backend keeps the values.
    pub bucket: Option<String>,
    /// `s3_endpoint_url`, or else `AWS_ENDPOINT_URL_S3` or `AWS_ENDPOINT_URL`, without a slash at the end.
    ///
    /// `None` means Amazon's own.
    pub endpoint: Option<String>,
    /// `s3_region`.
    pub region: Option<String>,
    /// The `AWS_*` variables by name.
    pub aws: BTreeMap<String, Secret>,
    /// The files of those `AWS_*` variables that were given by a variable `…_FILE`.
    pub aws_files: BTreeMap<String, PathBuf>,
}

impl StorageSettings {
    /// Returns the provider and name of the bucket that keeps the values; `None` for the local store.
    #[must_use]
    pub fn bucket(&self) -> Option<(Provider, &str)> {
        self.bucket.as_ref().map(|(provider, name)| (*provider, name.as_str()))
    }

    /// Creates the settings from the parsed values; returns `None` when a value is missing, a fault of the registry.
    pub(super) fn from_values(
        values: &Values,
        aws: BTreeMap<String, Secret>,
        aws_files: BTreeMap<String, PathBuf>,
    ) -> Option<Self> {
        let text = |name| values.text(name).map(str::to_owned);
        // The precedence is that of the AWS tools. It is resolved here, because each endpoint has its own overlay.
        let named = ["AWS_ENDPOINT_URL_S3", "AWS_ENDPOINT_URL"].into_iter().find_map(|name| aws.get(name));
        let endpoint = text("s3_endpoint_url").or_else(|| named.map(|url| url.expose().to_owned()));
        let directories = values.list("exchange_directories").unwrap_or_default();
        let buckets = values.list("exchange_buckets").unwrap_or_default().iter().filter_map(|url| bucket(url).ok());
        Some(Self {
            local_storage_path: values.text("local_storage_path")?.into(),
            // A missing bucket setting was reported as a combined fault.
            bucket: own_bucket(values).unwrap_or_default(),
            gcs: GcsSettings {
                bucket: text("gcs_bucket_name"),
                project: text("gcs_project_id"),
                location: text("gcs_location")?,
                credentials: values.text("gcs_credentials_path").map(PathBuf::from),
                emulator: text("storage_emulator_host"),
            },
            s3: S3Settings {
                bucket: text("s3_bucket_name"),
                endpoint: endpoint.map(|url| url.trim_end_matches('/').to_owned()),
                region: text("s3_region"),
                aws,
                aws_files,
            },
            local_fallback: values.bool("enable_local_fallback"),
            max_retries: values.integer("max_retries")?,
            timeout: values.seconds("timeout_seconds")?,
            compression: match values.bool("enable_compression") {
                true => Some(CompressionSettings {
                    algorithm: text("compression_algorithm")?,
                    level: values.integer::<u8>("compression_level").map(i32::from),
                    threshold: values.integer("compression_threshold_bytes")?,
                }),
                false => None,
            },
            max_in_flight_bytes: values.integer("max_in_flight_bytes"),
            cache: match values.bool("enable_cache") {
                true => Some(CacheSettings {
                    bytes: values.integer::<u64>("max_cache_size_mb")? << 20,
                    ttl: values.seconds("cache_ttl_seconds")?,
                    revalidate: values.seconds("cache_revalidate_seconds"),
                }),
                false => None,
            },
            encryption_keys: match values.text("encryption_key") {
                Some(text) => {
                    text.split(',').map(str::trim).for_each(redact::remember);
                    EncryptionKey::parse_all(text).ok()?
                }
                None => Vec::new(),
            },
            encryption: values.bool("enable_encryption"),
            quotas: match values.text("quotas") {
                Some(text) => QuotaRule::parse_all(text).ok()?,
                None => Vec::new(),
            },
            quota_recount: values.seconds("quota_recount_seconds")?,
            sweep_interval: values.seconds("sweep_interval_seconds").filter(|interval| !interval.is_zero()),
            exchange_directories: directories.iter().map(PathBuf::from).collect(),
            // They are known once all settings are.
            own_files: Vec::new(),
            exchange_buckets: buckets.map(|(provider, name)| (provider, name.to_owned())).collect(),
        })
    }
}

/// Finds the bucket that keeps the values, or `None` for the local store; the error is the name of a missing setting.
fn own_bucket(values: &Values) -> Result<Option<(Provider, String)>, &'static str> {
    const GCS: &str = "gcs_bucket_name";
    const S3: &str = "s3_bucket_name";
    let named = |provider, setting| values.text(setting).map(|name| (provider, name.to_owned()));
    match values.text("storage_backend") {
        Some("local") => Ok(None),
        Some("gcs") => named(Provider::Gcs, GCS).ok_or(GCS).map(Some),
        Some("s3") => named(Provider::S3, S3).ok_or(S3).map(Some),
        _ => Ok(named(Provider::Gcs, GCS).or_else(|| named(Provider::S3, S3))),
    }
}

/// Finds the faults of combinations of storage settings, each of which is allowed alone; returns setting and message.
///
/// A refused value counts as given.
pub(super) fn combined_faults(
    values: &Values,
    refused: impl Fn(&str) -> bool,
    aws: &BTreeMap<String, Secret>,
) -> Vec<(&'static str, String)> {
    let mut faults = Vec::new();
    let own = own_bucket(values);
    if let Err(missing) = own
        && !refused(missing)
    {
        let backend = values.text("storage_backend").unwrap_or_default();
        let message =
            format!("must be set as well: storage_backend = {backend} keeps values in this bucket; or unset that");
        faults.push((missing, message));
    }
    if matches!(own, Ok(Some((Provider::S3, _)))) {
        const PAIR: [&str; 2] = ["AWS_ACCESS_KEY_ID", "AWS_SECRET_ACCESS_KEY"];
        for (name, other) in [(PAIR[0], PAIR[1]), (PAIR[1], PAIR[0])] {
            if aws.contains_key(other) && !aws.contains_key(name) {
                faults.push((name, format!("must be set as well: {other} is of no use without it")));
            }
        }
    }
    if values.text("compression_algorithm") == Some("gzip")
        && let Some(level) = values.integer::<u64>("compression_level").filter(|level| *level > BEST_GZIP_LEVEL)
    {
        let message =
            format!("is {level}, and gzip has the levels 1 to {BEST_GZIP_LEVEL}; or set compression_algorithm = zstd");
        faults.push(("compression_level", message));
    }
    if values.bool("enable_encryption") && values.text("encryption_key").is_none() && !refused("encryption_key") {
        let message = "must be set as well: enable_encryption is true; make a key with `openssl rand -base64 32`, \
                       keep a copy of it, and name its file in encryption_key_file";
        faults.push(("encryption_key", message.to_owned()));
    }
    faults
}
