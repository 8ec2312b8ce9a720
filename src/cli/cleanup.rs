//! `filestorage cleanup`: removes expired and old values.

use std::pin::pin;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::time::Duration;

use clap::Args;
use indicatif::HumanBytes;
use serde::Serialize;

use super::terminal::{Output, Progress, span, until_interrupted};
use crate::config::Settings;
use crate::storage::{CleanupProgress, CleanupRequest, Error, ErrorKind, Key};
use crate::telemetry::Metrics;
use crate::wiring::{Code, Failure, stack};

/// The longest wait for the removals that are under way when the program is interrupted.
const FINISH_TIMEOUT: Duration = Duration::from_secs(5);

/// Removes values that have expired and, with --older-than, values that are older than an age.
///
/// An expired value is gone for every reader from the moment on at which it expires. A worker removes it from the disk or
/// the bucket at intervals (`sweep_interval_seconds`) when it has been expired for five minutes; this command does so now. --older-than needs --prefix, of which ""
/// means all keys, and touches only values that this program has stored: objects of other tools and files of the Python
/// class FileStorage stay.
///
/// A value that is stored again meanwhile is not removed. At S3, where a state is known by its bytes, one case remains: the
/// same bytes are stored again between the last look at the object and its removal, which are two consecutive requests.
///
/// The command can run beside workers. When it is interrupted, it finishes the removals under way and tells what it did.
///
/// Exit codes: 0 done; 69 the bucket cannot be reached; 75 some values could not be removed, or interrupted; 78 the bucket
/// refuses this identity: 16 removals failed and none succeeded.
#[derive(Debug, Args)]
pub(super) struct Arguments {
    /// Removes only values whose keys begin with this text.
    #[arg(long, value_name = "TEXT")]
    prefix: Option<String>,

    /// Also removes values that were stored so long ago: 30s, 15m, 12h, 7d or 2w.
    #[arg(long, value_name = "AGE", requires = "prefix", value_parser = span)]
    older_than: Option<Duration>,

    /// Leaves values that have expired, unless they are older than the age.
    #[arg(long, requires = "older_than")]
    keep_expired: bool,

    /// Names the values that would be removed, and removes nothing.
    #[arg(long)]
    dry_run: bool,
}

/// The answer: what was removed, or in a dry run would be.
#[derive(Debug, Serialize)]
struct Summary {
    dry_run: bool,
    deleted: u64,
    bytes: u64,
    failed: u64,
    /// Whether all keys were looked at.
    complete: bool,
    /// The first 1,000 removed keys.
    #[serde(skip_serializing_if = "Vec::is_empty")]
    keys: Vec<String>,
}

impl Arguments {
    pub(super) async fn run(self, settings: &Settings, output: &Output) -> Result<Code, Failure> {
        let dry_run = self.dry_run;
        let doing = if dry_run { "looking" } else { "removing" };
        let shown = Shown { progress: Progress::counting(output, doing), output, dry_run, ..Shown::new(output) };
        let request = CleanupRequest {
            prefix: self.prefix,
            expired: !self.keep_expired,
            older_than: self.older_than,
            dry_run,
            ..CleanupRequest::default()
        };
        let mut work = pin!(work(settings, request, &shown));
        let outcome = match until_interrupted(&mut work).await {
            Some(outcome) => outcome.map(|keys| (keys, None)),
            None => {
                shown.stopped.store(true, Ordering::Relaxed);
                let finished = until_interrupted(tokio::time::timeout(FINISH_TIMEOUT, &mut work)).await;
                let keys = finished.and_then(Result::ok).and_then(Result::ok).unwrap_or_default();
                let interrupted = Failure::new(Code::TryAgain, "interrupted; run it again to continue");
                Ok((keys, Some(interrupted)))
            }
        };
        let (keys, stopped) = outcome.unwrap_or_else(|failure| (Vec::new(), Some(failure)));
        let [deleted, bytes, failed] =
            [&shown.removed, &shown.bytes, &shown.failed].map(|number| number.load(Ordering::Relaxed));
        shown.progress.hide();
        let summary = Summary { dry_run, deleted, bytes, failed, complete: stopped.is_none(), keys };
        let did = if dry_run { "would remove" } else { "removed" };
        let mut text = format!("{did} {deleted} values ({})", HumanBytes(bytes));
        if failed > 0 {
            text.push_str(&format!(", {failed} could not be removed"));
        }
        text.push('\n');
        output.answer(&summary, &text)?;
        match stopped {
            Some(failure) => Err(failure),
            None if failed > 0 => Ok(Code::TryAgain),
            None => Ok(Code::Success),
        }
    }
}

/// Carries a cleanup out; returns the first of the removed keys.
async fn work(settings: &Settings, request: CleanupRequest, shown: &Shown<'_>) -> Result<Vec<String>, Failure> {
    let engine = if request.dry_run {
        stack::reader(&settings.storage).await?
    } else {
        Some(stack::engine(&settings.storage, &Metrics::new()).await?)
    };
    let Some(engine) = engine else { return Ok(Vec::new()) };
    let report = engine.cleanup(request, shown).await.map_err(stack::refused)?;
    Ok(report.keys.iter().map(|key| key.as_str().to_owned()).collect())
}

/// Shows the progress of a cleanup, and reports each failure.
struct Shown<'a> {
    progress: Progress,
    output: &'a Output,
    dry_run: bool,
    removed: AtomicU64,
    bytes: AtomicU64,
    failed: AtomicU64,
    stopped: AtomicBool,
}

impl<'a> Shown<'a> {
    fn new(output: &'a Output) -> Self {
        let (removed, bytes, failed, stopped) = Default::default();
        Self { progress: Progress::none(), output, dry_run: false, removed, bytes, failed, stopped }
    }
}

impl CleanupProgress for Shown<'_> {
    fn listed(&self, objects: u64) {
        self.progress.count(objects, self.bytes.load(Ordering::Relaxed), "removed");
    }

    fn removed(&self, key: &Key, bytes: u64) {
        self.removed.fetch_add(1, Ordering::Relaxed);
        self.bytes.fetch_add(bytes, Ordering::Relaxed);
        if self.dry_run && !self.output.is_json() {
            // When the reader has closed the output, the summary cannot be written either.
            self.progress.suspend(|| drop(Output::bytes(format!("{key}\n").as_bytes())));
        }
    }

    fn failed(&self, key: &Key, error: &Error) {
        self.failed.fetch_add(1, Ordering::Relaxed);
        let code = if error.kind == ErrorKind::Denied { Code::NoPermission } else { Code::TryAgain };
        let failure = Failure::new(code, format!("{key}: {}; it stays", error.message()));
        self.progress.suspend(|| self.output.fail(&failure));
    }

    fn is_stopped(&self) -> bool {
        self.stopped.load(Ordering::Relaxed)
    }
}
