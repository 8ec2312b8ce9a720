//! `filestorage doctor`: checks settings, broker, bucket and disk.

mod backend;
mod credentials;
mod descriptors;
mod disk;
mod fanout;
mod overlay;
mod queue;
mod quotas;
mod report;
mod worker;

use std::time::Duration;

use clap::Args;

use self::report::Report;
use super::terminal::Output;
use crate::config::{Faults, Loaded, Settings, StorageSettings};
use crate::provider::Provider;
use crate::storage::{Backend as _, ErrorKind, Local, Page};
use crate::telemetry::Metrics;
use crate::wiring::{Bucket, Code, Creation, Failure, Results, broker_options, folders, stack};

/// The longest wait for one answer of a bucket.
const TIMEOUT: Duration = Duration::from_secs(10);

/// Checks settings, broker, bucket and disk, and names the cause and the remedy of each fault.
///
/// All checks run, also after one that failed. To try each permission, an object `.filestorage-doctor-…` is stored in the
/// bucket or local store, and removed again. At the broker, a queue is declared that is removed with the connection, and
/// messages are published that no queue receives. A worker with these settings on this machine is asked at its admin port.
/// Nothing else is changed. Quotas are counted, for 30 s at most; one that is used to 90 % is a note. No message is consumed, so only a worker shows whether this user may consume a queue.
///
/// Each line begins with `ok`, `note` (it works, and somebody should know), `fault`, or `skipped`.
///
/// Exit codes: 0 no fault; 69 something cannot be reached; 78 a fault that only a person can correct. When there are both
/// kinds of faults, the code is 78.
#[derive(Debug, Args)]
pub(super) struct Arguments {}

impl Arguments {
    /// Runs all checks; `loaded` holds the settings, with defaults in the place of faulty ones.
    pub(super) async fn run(self, loaded: &Loaded, faults: &Faults, output: &Output) -> Result<Code, Failure> {
        let mut report = Report::new(output);
        check_settings(&mut report, loaded, faults)?;
        let settings = &loaded.settings;
        if concern(faults, &["celery_", "broker_", "worker_name"]) {
            report.skipped("broker", "its settings have faults")?;
        } else {
            broker(&mut report, settings).await?;
        }
        descriptors::check(&mut report, settings.worker.concurrency)?;
        let runs = if concern(faults, &["enable_metrics", "metrics_"]) {
            report.skipped("worker", "its settings have faults")?;
            false
        } else {
            worker::check(&mut report, settings.telemetry.metrics.as_ref()).await?
        };
        if concern(faults, &["gcs_", "s3_", "aws_", "storage_", "local_", "google_", "exchange_", "quota"]) {
            report.skipped("storage", "its settings have faults")?;
        } else {
            storage(&mut report, &settings.storage, runs).await?;
        }
        report.close()
    }
}

fn check_settings(report: &mut Report<'_>, loaded: &Loaded, faults: &Faults) -> Result<(), Failure> {
    for fault in &faults.0 {
        report.fault("settings", Code::Configuration, fault.to_string())?;
    }
    for warning in &loaded.warnings {
        report.note("settings", warning)?;
    }
    if report.faults() == 0 {
        let given = loaded.effective.iter().filter(|row| row.source != crate::config::Source::Default).count();
        report.fine("settings", format!("{given} given, all others are defaults; `filestorage config` shows them"))?;
    }
    Ok(())
}

/// Tells whether a fault concerns settings whose names have one of these beginnings; an unknown name may mean one of them.
fn concern(faults: &Faults, begins: &[&str]) -> bool {
    let concerns = |name: &str| name == "configuration file" || begins.iter().any(|begin| name.starts_with(begin));
    faults.0.iter().any(|fault| concerns(&fault.setting.to_ascii_lowercase()))
}

async fn broker(report: &mut Report<'_>, settings: &Settings) -> Result<(), Failure> {
    match broker_options(&settings.queue, "doctor") {
        Ok(options) => {
            let is_shared = settings.storage.bucket().is_some();
            let results = Results::new(settings, "doctor")?.backend;
            queue::check(report, options, &settings.queue.queues, settings.worker.events, is_shared, &*results).await
        }
        Err(failure) => report.fault("broker", failure.code, failure.message),
    }
}

async fn storage(report: &mut Report<'_>, settings: &StorageSettings, runs: bool) -> Result<(), Failure> {
    let before = report.faults();
    disk::check(report, &settings.local_storage_path)?;
    disk::exchange(report, &settings.exchange_directories)?;
    match settings.bucket() {
        None => local(report, settings).await?,
        Some((provider, name)) => {
            bucket(report, settings, provider, name, runs).await?;
            unseen(report, settings, &stack::url(provider, name)).await?;
        }
    }
    overlay::check(report, settings).await?;
    if report.faults() > before && !settings.quotas.is_empty() {
        return report.skipped("quotas", "the storage has faults");
    }
    let (max_retries, timeout) = (settings.max_retries.min(1), settings.timeout.min(TIMEOUT));
    quotas::check(report, &StorageSettings { max_retries, timeout, ..settings.clone() }).await
}

async fn bucket(
    report: &mut Report<'_>,
    settings: &StorageSettings,
    provider: Provider,
    name: &str,
    runs: bool,
) -> Result<(), Failure> {
    match provider {
        Provider::Gcs => credentials::gcs(report, &settings.gcs)?,
        Provider::S3 => credentials::s3(report, &settings.s3)?,
    }
    let shown = stack::url(provider, name);
    // A person waits for the report.
    let (max_retries, timeout) = (settings.max_retries.min(1), settings.timeout.min(TIMEOUT));
    let quick = StorageSettings { max_retries, timeout, ..settings.clone() };
    let why = match Bucket::open(&quick, provider, name, Creation::Never, &Metrics::new()).await {
        Err(error) => {
            report.refused("credentials", &error)?;
            "the credentials cannot be used"
        }
        Ok(bucket) => match bucket.backend.probe().await {
            Ok(probe) => {
                report.fine("bucket", format!("{shown} answers"))?;
                backend::clock(report, probe.skew)?;
                return backend::permissions(report, &*bucket.backend).await;
            }
            Err(error)
                if error.kind == ErrorKind::Invalid
                    // Other invalid requests do not mean that the bucket is missing.
                    && error.message().contains(" does not exist; create it with ")
                    && provider == Provider::Gcs
                    && settings.gcs.project.is_some() =>
            {
                if runs {
                    let why = "does not exist, although a worker runs: was it deleted? Its values are lost, and the \
                               next store creates it again";
                    report.fault("bucket", Code::Configuration, format!("{shown} {why}"))?;
                } else {
                    let what = format!("{shown} does not exist; gcs_project_id is set, so a worker creates it");
                    report.note("bucket", what)?;
                }
                "the bucket cannot be used yet"
            }
            Err(error) => {
                report.refused_by("bucket", &shown, &error)?;
                "the bucket cannot be used"
            }
        },
    };
    for part in ["clock", "create", "conditions", "get", "list", "replace", "delete"] {
        report.skipped(part, why)?;
    }
    Ok(())
}

/// Looks for values of a local store that no command sees, because the settings name a bucket.
async fn unseen(report: &mut Report<'_>, settings: &StorageSettings, bucket: &str) -> Result<(), Failure> {
    let folder = folders::objects(&settings.local_storage_path);
    let looked = async {
        let Some(local) = Local::open_existing(&folder)? else { return Ok(false) };
        let page = Page { limit: Some(1), ..Page::default() };
        Ok(!local.list(&page).await?.entries.is_empty())
    };
    match looked.await {
        Ok(false) => Ok(()),
        Ok(true) => {
            let remedy = "`filestorage migrate` copies them";
            let what = format!(
                "{} holds values of a local store, which no command sees while {bucket} keeps the values",
                folder.display()
            );
            report.note("objects", format!("{what}; {remedy}"))
        }
        Err(error) => report.refused("objects", &error),
    }
}

async fn local(report: &mut Report<'_>, settings: &StorageSettings) -> Result<(), Failure> {
    match Local::open_existing(folders::objects(&settings.local_storage_path)) {
        Ok(Some(local)) => {
            backend::permissions(report, &local).await?;
            abandoned_files(report, &local)
        }
        Ok(None) => report.fine("objects", "nothing is stored yet"),
        Err(error) => report.refused("objects", &error),
    }
}

/// Looks for temporary files of writers that were killed.
fn abandoned_files(report: &mut Report<'_>, local: &Local) -> Result<(), Failure> {
    match local.abandoned_files() {
        Ok(0) => report.fine("leftovers", "no temporary files of writers that are gone"),
        Ok(count) => {
            let what = format!("{count} temporary files of writers that are gone in {}", local.root().display());
            report.note("leftovers", format!("{what}; the next start removes them"))
        }
        Err(error) => report.refused("leftovers", &error),
    }
}
