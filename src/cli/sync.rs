//! `filestorage sync`.

use std::sync::atomic::{AtomicU64, Ordering};

use clap::Args;

use super::bucket::{Bucket, Creation};
use super::open;
use super::outcome::{Code, Failure};
use super::output::Output;
use super::progress::Progress;
use crate::config::Settings;
use crate::storage::{Fallback, SyncProgress, SyncReport};
use crate::telemetry::{Metrics, SyncOutcome};

/// Sends what waits on this machine to the bucket, the oldest first.
///
/// While the bucket is away, writes and deletes wait below `local_storage_path` (`enable_local_fallback`). A worker sends
/// them by itself once the bucket is back; this does it now, for example before a machine is taken away. It can run beside
/// workers, and be interrupted at any time: what the bucket has not confirmed stays.
///
/// A write whose key somebody else has changed in the bucket since is set aside, never dropped; `filestorage doctor` says
/// where. What the bucket refuses is told one a line and stays.
///
/// Exit codes: 0 nothing waits any more; 75 something still does; 69 the bucket cannot be reached; 78 it refuses, or none
/// is named.
#[derive(Debug, Args)]
pub(super) struct Arguments {}

impl Arguments {
    pub(super) async fn run(self, settings: &Settings, output: &Output) -> Result<Code, Failure> {
        let settings = &settings.storage;
        let Some((provider, name)) = open::kept_in(settings) else {
            let why =
                "values are kept on this machine, so nothing waits to be sent; set gcs_bucket_name or s3_bucket_name";
            return Err(Failure::new(Code::Configuration, why));
        };
        let metrics = Metrics::new();
        let bucket = Bucket::open(settings, provider, name, Creation::WhenMissing, &metrics).await;
        let bucket = bucket.map_err(open::refused)?;
        // Also where the fallback is off now: what it took earlier waits all the same.
        let report = match open::pending(settings, provider, name, &bucket)? {
            Some(fallback) if fallback.pending().await?.entries > 0 => {
                open::look(&bucket).await?;
                send(&fallback, output).await?
            }
            _ => SyncReport::default(),
        };
        let SyncReport { sent, deleted, already_there, conflicts, failed, remaining } = report;
        let mut text = format!(
            "sent {sent} writes and {deleted} deletes, {already_there} were there already, {failed} failed, {remaining} remain\n"
        );
        if conflicts > 0 {
            text.push_str(&format!(
                "{conflicts} gave way to what somebody else has put into the bucket since; `filestorage doctor` says where they are\n"
            ));
        }
        output.answer(&report, &text)?;
        Ok(if remaining > 0 { Code::TryAgain } else { Code::Success })
    }
}

async fn send(fallback: &Fallback, output: &Output) -> Result<SyncReport, Failure> {
    let shown = Shown { progress: Progress::counting(output, "sending"), bytes: AtomicU64::new(0) };
    let outcome = fallback.sync(&shown).await;
    drop(shown);
    match outcome {
        Ok(report) => Ok(report),
        Err(error) => {
            let waiting = fallback.pending().await?.entries;
            let mut failure = open::refused(error);
            failure.message.push_str(&format!("; {waiting} writes still wait on this machine"));
            Err(failure)
        }
    }
}

/// Moves the bar.
struct Shown {
    progress: Progress,
    bytes: AtomicU64,
}

impl SyncProgress for Shown {
    fn total(&self, entries: u64, _: u64) {
        self.progress.expect_values(entries);
    }

    fn step(&self, outcome: SyncOutcome, bytes: u64) {
        let bytes = bytes + self.bytes.fetch_add(bytes, Ordering::Relaxed);
        self.progress.count(1, bytes, outcome.as_str());
    }
}
