//! `filestorage sync`: sends pending entries to the bucket.

use std::sync::atomic::{AtomicU64, Ordering};

use clap::Args;
use indicatif::HumanBytes;
use serde::Serialize;

use super::terminal::Output;
use super::terminal::Progress;
use crate::config::{Settings, StorageSettings};
use crate::provider::Provider;
use crate::storage::{Error, ErrorKind, Fallback, Key, SyncProgress, SyncReport, format_timestamp};
use crate::telemetry::{Metrics, SyncOutcome};
use crate::wiring::{Bucket, Code, Creation, Failure, folders, stack};

/// Sends the pending entries on this machine to the bucket, the oldest first.
///
/// While the bucket cannot be reached, writes and deletes wait below `local_storage_path` (`enable_local_fallback`). A
/// worker sends them by itself when the bucket is back. This command sends them now, for example before a machine is taken
/// out of service. It can run beside workers. It can be interrupted at any time: entries that the bucket has not confirmed
/// stay.
///
/// When somebody else has meanwhile changed the key of a pending write in the bucket, the write is quarantined and never
/// dropped; `filestorage doctor` shows the file. Entries that the bucket refuses stay, and each is reported in a line.
///
/// Exit codes: 0 no entry waits any more; 75 some entries still wait; 69 the bucket cannot be reached; 78 the bucket
/// refuses all entries, or the settings name no bucket.
#[derive(Debug, Args)]
pub(super) struct Arguments {
    /// Shows the pending and the quarantined entries, and sends nothing.
    #[arg(long)]
    dry_run: bool,
}

/// The answer of a dry run.
#[derive(Debug, Default, Serialize)]
struct Waiting {
    /// The number of pending writes and deletes.
    entries: u64,
    bytes: u64,
    /// The time of the oldest write or delete.
    oldest: Option<String>,
    conflicts: Vec<QuarantinedWrite>,
}

/// A quarantined write: somebody else had changed its key in the bucket.
#[derive(Debug, Serialize)]
struct QuarantinedWrite {
    key: String,
    path: String,
}

impl Arguments {
    pub(super) async fn run(self, settings: &Settings, output: &Output) -> Result<Code, Failure> {
        let settings = &settings.storage;
        let Some((provider, name)) = settings.bucket() else {
            let why =
                "values are kept on this machine, so nothing waits to be sent; set gcs_bucket_name or s3_bucket_name";
            return Err(Failure::new(Code::Configuration, why));
        };
        if self.dry_run {
            return look(settings, provider, name, output).await;
        }
        let metrics = Metrics::new();
        let bucket = Bucket::open(settings, provider, name, Creation::WhenMissing, &metrics).await;
        let bucket = bucket.map_err(stack::refused)?;
        // Entries of an earlier fallback are sent, too, when the fallback is off now.
        let (report, denied) = match stack::pending(settings, provider, name, &bucket)? {
            Some(fallback) if fallback.pending().await?.entries > 0 => {
                stack::look(&bucket, false).await?;
                send(&fallback, output).await?
            }
            _ => (SyncReport::default(), 0),
        };
        let SyncReport { sent, deleted, already_there, conflicts, failed, remaining } = report;
        let mut text = format!(
            "sent {sent} writes and {deleted} deletes, {already_there} were there already, {failed} failed, {remaining} remain\n"
        );
        if conflicts > 0 {
            text.push_str(&format!(
                "{conflicts} were quarantined, because somebody else had changed their keys in the bucket; `filestorage doctor` names the files\n"
            ));
        }
        output.answer(&report, &text)?;
        if denied > 0 && denied == failed && sent + deleted + already_there + conflicts == 0 {
            let why = "the bucket refuses every entry; give this identity the right to store there, and run it again";
            return Err(Failure::new(Code::Configuration, why));
        }
        Ok(if remaining > 0 { Code::TryAgain } else { Code::Success })
    }
}

/// Shows the pending and quarantined entries, without a request to the bucket.
async fn look(settings: &StorageSettings, provider: Provider, name: &str, output: &Output) -> Result<Code, Failure> {
    let waiting = match stack::inspect(&folders::overlay(settings, provider, name))? {
        None => Waiting::default(),
        Some(overlay) => {
            let pending = overlay.pending().await?;
            let quarantined = overlay.conflicts().await?.into_iter();
            let conflicts = quarantined
                .map(|one| QuarantinedWrite { key: one.key.as_str().to_owned(), path: one.path.display().to_string() })
                .collect();
            let oldest = pending.oldest.map(format_timestamp);
            Waiting { entries: pending.entries, bytes: pending.bytes, oldest, conflicts }
        }
    };
    let mut text = format!("{} entries ({}) wait", waiting.entries, HumanBytes(waiting.bytes));
    if let Some(oldest) = &waiting.oldest {
        text.push_str(&format!(", the oldest since {oldest}"));
    }
    text.push('\n');
    for QuarantinedWrite { key, path } in &waiting.conflicts {
        text.push_str(&format!("{key}: quarantined in {path}\n"));
    }
    output.answer(&waiting, &text)?;
    Ok(if waiting.entries > 0 { Code::TryAgain } else { Code::Success })
}

/// Sends the pending entries; returns the report, and the number of entries that this identity may not send.
async fn send(fallback: &Fallback, output: &Output) -> Result<(SyncReport, u64), Failure> {
    let progress = Progress::counting(output, "sending");
    let shown = ShownProgress { progress, output, bytes: AtomicU64::new(0), denied: AtomicU64::new(0) };
    let outcome = fallback.sync(&shown).await;
    let denied = shown.denied.load(Ordering::Relaxed);
    drop(shown);
    match outcome {
        Ok(report) => Ok((report, denied)),
        Err(error) => {
            let waiting = fallback.pending().await?.entries;
            let mut failure = stack::refused(error);
            failure.message.push_str(&format!("; {waiting} entries still wait on this machine"));
            Err(failure)
        }
    }
}

/// Shows the progress of a sync, and reports each failure.
struct ShownProgress<'a> {
    progress: Progress,
    output: &'a Output,
    bytes: AtomicU64,
    /// The number of entries that this identity may not send.
    denied: AtomicU64,
}

impl SyncProgress for ShownProgress<'_> {
    fn total(&self, entries: u64, _: u64) {
        self.progress.expect_values(entries);
    }

    fn step(&self, outcome: SyncOutcome, bytes: u64) {
        let bytes = bytes + self.bytes.fetch_add(bytes, Ordering::Relaxed);
        self.progress.count(1, bytes, outcome.as_str());
    }

    fn failed(&self, key: &Key, error: Error) {
        if error.kind == ErrorKind::Denied {
            self.denied.fetch_add(1, Ordering::Relaxed);
        }
        let mut failure = Failure::from(error);
        failure.message = format!("{key}: {}; it stays on this machine", failure.message);
        self.progress.suspend(|| self.output.fail(&failure));
    }
}
