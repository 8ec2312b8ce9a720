//! `filestorage doctor`.

mod credentials;
mod descriptors;
mod disk;
mod overlay;
mod place;
mod queue;
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
use crate::wiring::{Bucket, Code, Creation, Failure, broker_options, folders, stack};

/// Longest wait for one answer of a bucket.
const PATIENCE: Duration = Duration::from_secs(10);

/// Checks settings, broker, bucket and disk one by one, and says cause and mend of each fault.
///
/// Every check runs, also after one that failed. To try each permission, an object `.filestorage-doctor-…` is stored in
/// the place values are kept in, and removed again; at the broker a queue that goes with the connection, and messages
/// that nobody gets. A worker of these settings that runs here is asked at its admin port. Nothing else is changed, and no message is taken: whether this user may consume a queue is told only
/// by a worker.
///
/// Each line begins with `ok`, `note` (works, and somebody should know), `fault`, or `skipped`.
///
/// Exit codes: 0 no fault; 69 something cannot be reached; 78 something only a person can mend, which is the worse.
#[derive(Debug, Args)]
pub(super) struct Arguments {}

impl Arguments {
    /// `loaded` holds what could be made of the settings, in spite of their faults.
    pub(super) async fn run(self, loaded: &Loaded, faults: &Faults, output: &Output) -> Result<Code, Failure> {
        let mut report = Report::new(output);
        tell_settings(&mut report, loaded, faults)?;
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
        if concern(faults, &["gcs_", "s3_", "aws_", "storage_", "local_", "google_", "exchange_"]) {
            report.skipped("storage", "its settings have faults")?;
        } else {
            storage(&mut report, &settings.storage, runs).await?;
        }
        report.close()
    }
}

fn tell_settings(report: &mut Report<'_>, loaded: &Loaded, faults: &Faults) -> Result<(), Failure> {
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

/// Tells whether a fault may concern settings that begin so; a name nobody knows may be meant for one.
fn concern(faults: &Faults, begins: &[&str]) -> bool {
    let concerns = |name: &str| name == "configuration file" || begins.iter().any(|begin| name.starts_with(begin));
    faults.0.iter().any(|fault| concerns(&fault.setting.to_ascii_lowercase()))
}

async fn broker(report: &mut Report<'_>, settings: &Settings) -> Result<(), Failure> {
    match broker_options(&settings.queue, "doctor") {
        Ok(options) => queue::check(report, options, &settings.queue.queues, settings.worker.events).await,
        Err(failure) => report.fault("broker", failure.code, failure.message),
    }
}

async fn storage(report: &mut Report<'_>, settings: &StorageSettings, runs: bool) -> Result<(), Failure> {
    disk::check(report, &settings.local_storage_path)?;
    disk::exchange(report, &settings.exchange_directories)?;
    match settings.bucket() {
        None => local(report, settings).await?,
        Some((provider, name)) => {
            bucket(report, settings, provider, name, runs).await?;
            unseen(report, settings, &stack::url(provider, name)).await?;
        }
    }
    overlay::check(report, settings).await
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
    // Somebody is waiting.
    let (max_retries, timeout) = (settings.max_retries.min(1), settings.timeout.min(PATIENCE));
    let hasty = StorageSettings { max_retries, timeout, ..settings.clone() };
    let why = match Bucket::open(&hasty, provider, name, Creation::Never, &Metrics::new()).await {
        Err(error) => {
            report.refused("credentials", &error)?;
            "the credentials cannot be used"
        }
        Ok(bucket) => match bucket.backend.probe().await {
            Ok(probe) => {
                report.fine("bucket", format!("{shown} answers"))?;
                place::clock(report, probe.skew)?;
                return place::permissions(report, &*bucket.backend).await;
            }
            Err(error)
                if error.kind == ErrorKind::Invalid
                    // Other requests that are wrong are no bucket that is missing.
                    && error.message().contains(" does not exist; create it with ")
                    && provider == Provider::Gcs
                    && settings.gcs.project.is_some() =>
            {
                if runs {
                    let why = "does not exist, though a worker runs: was it deleted? What was in it is gone, and the \
                               next store creates it anew";
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

/// Values of a local store that a named bucket hides.
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
            let mend = "`filestorage migrate` copies them";
            let what = format!(
                "{} holds values of a local store, which nobody sees while values are kept in {bucket}",
                folder.display()
            );
            report.note("objects", format!("{what}; {mend}"))
        }
        Err(error) => report.refused("objects", &error),
    }
}

async fn local(report: &mut Report<'_>, settings: &StorageSettings) -> Result<(), Failure> {
    match Local::open_existing(folders::objects(&settings.local_storage_path)) {
        Ok(Some(local)) => {
            place::permissions(report, &local).await?;
            leftovers(report, &local)
        }
        Ok(None) => report.fine("objects", "nothing is stored yet"),
        Err(error) => report.refused("objects", &error),
    }
}

/// Files that writers left who were killed.
fn leftovers(report: &mut Report<'_>, local: &Local) -> Result<(), Failure> {
    match local.leftovers() {
        Ok(0) => report.fine("leftovers", "no temporary files of writers that are gone"),
        Ok(count) => {
            let what = format!("{count} temporary files of writers that are gone in {}", local.root().display());
            report.note("leftovers", format!("{what}; the next start removes them"))
        }
        Err(error) => report.refused("leftovers", &error),
    }
}
