//! What the storage engine is told, and what of it does not go together.

use std::collections::BTreeMap;
use std::path::PathBuf;
use std::time::Duration;

use super::Secret;
use super::kind::bucket;
use super::values::Values;
use crate::provider::Provider;

/// Folder of the local store below `local_storage_path`.
pub const OBJECTS: &str = "objects";
/// Folder of what waits for buckets.
pub const OVERLAY: &str = "overlay";
/// Folder of the worker's journal.
pub const JOURNAL: &str = "journal";
/// Folder of nameless files: what is on its way and too much for memory.
pub const SPOOL: &str = "spool";

/// What the storage engine is told.
#[derive(Clone, Debug)]
pub struct StorageSettings {
    /// `local_storage_path`: the folder everything lies in.
    pub local_storage_path: PathBuf,
    /// `storage_backend` and the buckets that are named: where values are kept.
    pub bucket: Option<(Provider, String)>,
    /// How Google Cloud Storage is used, by whatever needs one of its buckets.
    pub gcs: GcsSettings,
    /// How S3 or a compatible store is used, by whatever needs one of its buckets.
    pub s3: S3Settings,
    /// `enable_local_fallback`: writes land locally while the bucket is away.
    pub local_fallback: bool,
    /// `max_retries`: attempts after the first.
    pub max_retries: u32,
    /// `timeout_seconds`: longest one attempt may take.
    pub timeout: Duration,
    /// `exchange_directories`: folders below which commands may name files; absolute.
    pub exchange_directories: Vec<PathBuf>,
    /// `exchange_buckets`: buckets beside the worker's own whose objects commands may name.
    pub exchange_buckets: Vec<(Provider, String)>,
}

/// How Google Cloud Storage is used.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct GcsSettings {
    /// `gcs_bucket_name`, whether or not values are kept there.
    pub bucket: Option<String>,
    /// `gcs_project_id`: where a missing bucket is created.
    pub project: Option<String>,
    /// `gcs_location`: of a bucket that is created.
    pub location: String,
    /// `gcs_credentials_path`; without it the machine's own.
    pub credentials: Option<PathBuf>,
    /// `storage_emulator_host` as a URL.
    pub emulator: Option<String>,
}

/// How S3 or a compatible store is used.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct S3Settings {
    /// `s3_bucket_name`, whether or not values are kept there.
    pub bucket: Option<String>,
    /// `s3_endpoint_url` or else `AWS_ENDPOINT_URL_S3` or `AWS_ENDPOINT_URL`, without a slash at its end; without any
    /// of them Amazon's own.
    pub endpoint: Option<String>,
    /// `s3_region`.
    pub region: Option<String>,
    /// The `AWS_*` variables by name, as they were given.
    pub aws: BTreeMap<String, Secret>,
    /// The files of those among them that a `…_FILE` twin names.
    pub aws_files: BTreeMap<String, PathBuf>,
}

impl StorageSettings {
    /// Returns provider and name of the bucket that values are kept in, if they are.
    #[must_use]
    pub fn bucket(&self) -> Option<(Provider, &str)> {
        self.bucket.as_ref().map(|(provider, name)| (*provider, name.as_str()))
    }

    /// Takes the parsed values apart; `None` names no fault of the user but a gap in the registry.
    pub(super) fn from_values(
        values: &Values,
        aws: BTreeMap<String, Secret>,
        aws_files: BTreeMap<String, PathBuf>,
    ) -> Option<Self> {
        let text = |name| values.text(name).map(str::to_owned);
        // As the AWS tools do. Which store it is decides about the overlay, so it is settled here.
        let named = ["AWS_ENDPOINT_URL_S3", "AWS_ENDPOINT_URL"].into_iter().find_map(|name| aws.get(name));
        let endpoint = text("s3_endpoint_url").or_else(|| named.map(|url| url.expose().to_owned()));
        let directories = values.list("exchange_directories").unwrap_or_default();
        let buckets = values.list("exchange_buckets").unwrap_or_default().iter().filter_map(|url| bucket(url).ok());
        Some(Self {
            local_storage_path: values.text("local_storage_path")?.into(),
            // One whose bucket is missing has its fault already.
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
            exchange_directories: directories.iter().map(PathBuf::from).collect(),
            exchange_buckets: buckets.map(|(provider, name)| (provider, name.to_owned())).collect(),
        })
    }
}

/// Finds the bucket that values are kept in, if they are; an error names the bucket setting that is missing.
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

/// Says what is wrong with values that are right one by one. A value that was refused counts as given.
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
    faults
}
