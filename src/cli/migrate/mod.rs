//! `filestorage migrate`: copies all values from one place to another.

mod conversion;
mod copier;
mod place;

use std::path::PathBuf;
use std::sync::Arc;

use clap::Args;
use futures_util::StreamExt as _;
use futures_util::stream::FuturesUnordered;
use serde::Serialize;

use self::conversion::{Conversion, Doubtful, is_same_folder};
use self::copier::{Copier, CopyOutcome};
use self::place::Place;
use super::terminal::{Output, Progress, interruption};
use crate::config::{Settings, StorageSettings};
use crate::provider::Provider;
use crate::storage::{Attributes, Backend, Error, ErrorKind, Gcs, Key, Local, Memory, Page, S3};
use crate::telemetry::Metrics;
use crate::wiring::{Bucket, Code, Creation, Failure, codecs, compression, encryption, folders, stack};

/// The number of keys that are listed at a time; a local store is walked once for each page.
const PAGE: usize = 10_000;

/// Copies all values from one place to another: between the local store and a bucket, or between two buckets.
///
/// A place is `local`, `gcs` or `s3`, which mean the places that the settings name, or a URL: gs://BUCKET, s3://BUCKET, or
/// file:///PATH with a folder like that of `local_storage_path`. The credentials are those of the settings.
///
/// Each value is copied completely, with its generation, metadata and times, and compared with the source by its checksum.
/// For this, the copy is read again, except from GCS, which verifies stored bytes itself. Objects of other tools keep their
/// Cache-Control, Content-Disposition, Content-Language and custom metadata. Parts that the target cannot hold are
/// reported, one key a line, and counted.
///
/// Nothing is ever removed, except by --from-legacy without --to. Values that the target already has are skipped: after an interruption, or to fetch newer
/// values, run the command again. Expired values are left out. A different value under the same key is a failure, unless
/// --overwrite is given. Each failure is reported in a line, and the other values are still copied.
///
/// The source may be in use. When a key is stored again at the source after it was copied, the target keeps the old value:
/// the next run reports a different value, and --overwrite fetches the new one. When a key is deleted at the source after
/// it was copied, it stays at the target.
///
/// With --from-legacy, the source is a folder that the Python class FileStorage wrote, its `local_storage_path`. Each file
/// becomes an object of this program, with the value that was stored and the metadata of its sidecar. Without --to, the
/// objects are stored in the same folder, and a file is removed once its object was verified; with --to, the files stay.
/// Pickles are read as data only. What the class did not record, and so cannot be told for sure, is reported, one key a
/// line, and counted.
///
/// Exit codes: 0 all values are at the target; 75 some are not; 66 the source is empty; 69 a place cannot be reached, run
/// the command again later; 78 a place refuses this identity, which is also assumed when a value is refused before any was
/// copied.
#[derive(Debug, Args)]
pub(super) struct Arguments {
    /// Place to copy from.
    #[arg(long, value_name = "PLACE", required_unless_present = "from_legacy", conflicts_with = "from_legacy")]
    from: Option<String>,

    /// Place to copy to; with --from-legacy by default the store in the same folder.
    #[arg(long, value_name = "PLACE", required_unless_present = "from_legacy")]
    to: Option<String>,

    /// Folder that the Python class FileStorage wrote, to be converted.
    #[arg(long, value_name = "DIR")]
    from_legacy: Option<PathBuf>,

    /// With --from-legacy: lets `expires_at` in the metadata of a sidecar expire the object; a time without an offset is UTC.
    #[arg(long)]
    honour_expiry: bool,

    /// With --from-legacy: stores a pickle that cannot be read as data as bytes, which a Python program may unpickle by itself.
    #[arg(long)]
    keep_pickles: bool,

    /// Copies only keys that begin with this text.
    #[arg(long, value_name = "TEXT")]
    prefix: Option<String>,

    /// Shows which values would be copied and which would fail, and writes nothing.
    #[arg(long)]
    dry_run: bool,

    /// Replaces different values under the same keys at the target.
    #[arg(long)]
    overwrite: bool,

    /// Number of values that are copied at once.
    #[arg(long, value_name = "COUNT", default_value_t = 8, value_parser = clap::value_parser!(u16).range(1..=256))]
    parallel: u16,
}

/// The answer: counts of what was done.
#[derive(Debug, Serialize)]
struct Summary {
    from: String,
    to: String,
    dry_run: bool,
    copied: u64,
    copied_bytes: u64,
    skipped: u64,
    failed: u64,
    /// The number of copied objects of other tools of which some part cannot be held by the target.
    reduced: u64,
    /// The number of names at the source that are not keys.
    foreign: u64,
    /// What could not be told for sure of converted files.
    #[serde(skip_serializing_if = "Option::is_none")]
    doubtful: Option<Doubtful>,
    /// Tells whether all keys were handled.
    complete: bool,
}

impl Arguments {
    pub(super) async fn run(self, settings: &Settings, output: &Output) -> Result<Code, Failure> {
        let settings = &settings.storage;
        let (from, to) = self.places(settings)?;
        if from == to && self.from_legacy.is_none() {
            return Err(Failure::new(Code::Usage, format!("--from and --to are the same place, {from}")));
        }
        let (conversion, source) = match (&from, &self.from_legacy) {
            (_, Some(folder)) => {
                let in_place = matches!(&to, Place::Local(path) if is_same_folder(path, folder));
                let opened =
                    Conversion::open(settings, folder, in_place, self.honour_expiry, self.keep_pickles).await?;
                (Some(opened.0), opened.1)
            }
            (from, None) => (None, source(settings, from).await?),
        };
        let target = self.target(settings, &to).await?;
        let copier = Copier {
            source,
            // A converted value is stored like any value that a command brings; others keep their bytes.
            target: match conversion {
                Some(_) => {
                    let encryption = encryption(settings)?;
                    let codecs = codecs(settings, target, &encryption).with_compression(compression(settings));
                    Arc::new(codecs.with_encryption(encryption))
                }
                None => target,
            },
            overwrite: self.overwrite,
            dry_run: self.dry_run,
            read_back: !matches!(to, Place::Bucket(Provider::Gcs, _)),
            lost: if conversion.is_some() { |_| Vec::new() } else { lost(&to) },
            conversion: conversion.clone(),
        };
        let doubtful = conversion.as_ref().map(|conversion| {
            let mut counts = Doubtful::default();
            conversion.count_left_out(&mut counts);
            counts
        });
        let summary = Summary {
            from: from.to_string(),
            to: to.to_string(),
            dry_run: self.dry_run,
            copied: 0,
            copied_bytes: 0,
            skipped: 0,
            failed: 0,
            reduced: 0,
            foreign: 0,
            doubtful,
            complete: false,
        };
        let progress = Progress::counting(output, if self.dry_run { "looking" } else { "copying" });
        for line in conversion.iter().flat_map(|conversion| conversion.left_out()) {
            progress.suspend(|| output.remark(&line));
        }
        let mut run = Run { copier, summary, progress, output, refusal: None, stopped: None };
        run.walk(self.prefix.unwrap_or_default(), self.parallel.into()).await;
        if let Some(conversion) = conversion.filter(|_| run.summary.complete && !self.dry_run) {
            conversion.close().await?;
        }
        run.close()
    }

    /// Returns the places to copy from and to.
    fn places(&self, settings: &StorageSettings) -> Result<(Place, Place), Failure> {
        if self.from_legacy.is_none() && (self.honour_expiry || self.keep_pickles) {
            let why = "--honour-expiry and --keep-pickles belong to --from-legacy";
            return Err(Failure::new(Code::Usage, why));
        }
        let parsed = |text: &Option<String>| text.as_deref().map(|text| Place::parse(text, settings)).transpose();
        let (from, to) = (parsed(&self.from)?, parsed(&self.to)?);
        let Some(folder) = &self.from_legacy else {
            let missing = || Failure::new(Code::Usage, "--from and --to name the places");
            return Ok((from.ok_or_else(missing)?, to.ok_or_else(missing)?));
        };
        if to.is_none() && settings.bucket().is_some() && is_same_folder(folder, &settings.local_storage_path) {
            let why = "the settings name a bucket, so nobody would find values that are converted in this folder; \
                       name the target, for example --to gcs, --to s3 or --to local";
            return Err(Failure::new(Code::Usage, why));
        }
        let here = Place::Local(folder.clone());
        Ok((here.clone(), to.unwrap_or(here)))
    }

    /// Opens the place to copy to; a dry run creates nothing there.
    async fn target(&self, settings: &StorageSettings, place: &Place) -> Result<Arc<dyn Backend>, Failure> {
        match place {
            Place::Local(path) if self.dry_run => Ok(match Local::open_existing(folders::objects(path))? {
                Some(local) => Arc::new(local),
                None => Arc::new(Memory::new()),
            }),
            Place::Local(path) => Ok(Arc::new(Local::open(folders::objects(path))?)),
            Place::Bucket(provider, name) => {
                let creation = if self.dry_run { Creation::Never } else { Creation::WhenMissing };
                bucket(settings, place, *provider, name, creation).await
            }
        }
    }
}

/// Returns the function that names the parts of a foreign object that the target cannot hold.
fn lost(to: &Place) -> fn(&Attributes) -> Vec<String> {
    match to {
        Place::Local(_) => |_| Vec::new(),
        Place::Bucket(Provider::Gcs, _) => Gcs::lost,
        Place::Bucket(Provider::S3, _) => S3::lost,
    }
}

async fn source(settings: &StorageSettings, place: &Place) -> Result<Arc<dyn Backend>, Failure> {
    match place {
        Place::Local(path) => match Local::open_existing(folders::objects(path))? {
            Some(local) => Ok(Arc::new(local)),
            None => Err(Failure::new(
                Code::NoInput,
                format!("nothing is stored under {}", folders::objects(path).display()),
            )),
        },
        Place::Bucket(provider, name) => bucket(settings, place, *provider, name, Creation::Never).await,
    }
}

/// Opens a bucket and checks that it answers and that no entries on this machine are pending for it.
///
/// Pending entries would be missing in a copy from the bucket, and would conflict with a copy to it.
async fn bucket(
    settings: &StorageSettings,
    place: &Place,
    provider: Provider,
    name: &str,
    creation: Creation,
) -> Result<Arc<dyn Backend>, Failure> {
    let bucket = Bucket::open(settings, provider, name, creation, &Metrics::new()).await.map_err(stack::refused)?;
    if let Some(fallback) = stack::pending(settings, provider, name, &bucket)? {
        let waiting = fallback.pending().await?.entries;
        if waiting > 0 {
            let remedy = "run `filestorage sync` first, with this bucket in the settings";
            let why = format!("{waiting} entries on this machine wait to be sent to {place}; {remedy}");
            return Err(Failure::new(Code::TryAgain, why));
        }
    }
    match stack::look(&bucket, false).await? {
        None => Ok(bucket.backend),
        Some(stack::Away { words, .. }) => {
            Err(Failure::new(Code::Unavailable, format!("{place} cannot be reached: {words}")))
        }
    }
}

/// One run over all keys of the source.
struct Run<'a> {
    copier: Copier,
    summary: Summary,
    progress: Progress,
    output: &'a Output,
    /// The failure of a refused value before any value was copied; a copy that succeeds afterwards clears it.
    refusal: Option<Failure>,
    /// The reason why the run ended early.
    stopped: Option<Failure>,
}

impl Run<'_> {
    /// Copies all keys, page by page, `parallel` values at once.
    async fn walk(&mut self, prefix: String, parallel: usize) {
        let copier = self.copier.clone();
        let mut interrupted = std::pin::pin!(interruption());
        let mut page = Page { prefix, limit: Some(PAGE), ..Page::default() };
        let (mut running, mut listed) = (FuturesUnordered::new(), 0);
        loop {
            let listing = tokio::select! {
                listing = copier.source.list(&page) => listing,
                _ = &mut interrupted => return self.interrupt(),
            };
            let (next, listing) = match listing.and_then(|listing| Ok((listing.horizon()?, listing))) {
                Ok(found) => found,
                Err(error) => return self.stopped = Some(stack::refused(error)),
            };
            self.summary.foreign += listing.foreign;
            listed += listing.entries.len() as u64;
            self.progress.expect_values(listed);
            page.start_after = next;
            let mut keys = listing.entries.into_iter().map(|entry| entry.key);
            loop {
                while running.len() < parallel
                    && self.stopped.is_none()
                    && self.refusal.is_none()
                    && let Some(key) = keys.next()
                {
                    running.push(one(&copier, key));
                }
                // Copies that have begun are finished, also when a place cannot be reached any more.
                let copied = tokio::select! {
                    copied = running.next() => copied,
                    _ = &mut interrupted => return self.interrupt(),
                };
                let Some((key, copied)) = copied else { break };
                self.note(&key, copied);
            }
            self.stopped = self.stopped.take().or(self.refusal.take());
            if self.stopped.is_some() {
                return;
            }
            if page.start_after.is_none() {
                return self.summary.complete = true;
            }
        }
    }

    fn note(&mut self, key: &Key, copied: Result<CopyOutcome, Error>) {
        match copied {
            Ok(CopyOutcome::Copied { bytes, lost, legacy }) => {
                self.summary.copied += 1;
                self.summary.copied_bytes += bytes;
                self.refusal = None;
                if !lost.is_empty() {
                    self.summary.reduced += 1;
                    self.progress.suspend(|| self.output.remark(&reduced(key, &lost, &self.summary.to)));
                }
                if let (Some(conversion), Some(counts)) = (&self.copier.conversion, &mut self.summary.doubtful)
                    && let Some(line) = conversion.doubts(key, legacy, counts)
                {
                    self.progress.suspend(|| self.output.remark(&line));
                }
            }
            Ok(CopyOutcome::AlreadyThere) => self.summary.skipped += 1,
            Ok(CopyOutcome::Missing) => {}
            Err(error) => {
                self.summary.failed += 1;
                let ends = matches!(error.kind, ErrorKind::Unavailable | ErrorKind::Throttled | ErrorKind::NoSpace);
                let refused = error.kind == ErrorKind::Denied && self.summary.copied == 0;
                let failure = Failure::from(error);
                self.progress.suspend(|| self.output.fail(&failure));
                if ends && self.stopped.is_none() {
                    let why =
                        "stopped, since all other values would fail for the same reason; run it again to continue";
                    self.stopped = Some(Failure::new(failure.code, why));
                }
                if refused {
                    let why = "stopped, since a place refuses this identity; give it the right, and run it again";
                    self.refusal = Some(Failure::new(Code::Configuration, why));
                }
            }
        }
        self.progress.count(1, self.summary.copied_bytes, key.as_str());
    }

    /// Ends the run; unfinished copies are dropped, and are either complete at the target or missing.
    fn interrupt(&mut self) {
        self.stopped = Some(Failure::new(Code::TryAgain, "interrupted; run it again to continue"));
    }

    fn close(self) -> Result<Code, Failure> {
        let Self { summary, progress, output, stopped, .. } = self;
        drop(progress);
        let did = if summary.dry_run { "would copy" } else { "copied" };
        let mut text = format!(
            "{did} {} values ({} bytes) from {} to {}, {} were there already, {} failed\n",
            summary.copied, summary.copied_bytes, summary.from, summary.to, summary.skipped, summary.failed
        );
        if summary.reduced > 0 {
            text.push_str(&format!(
                "{} of them without some parts that {} cannot hold, as reported above\n",
                summary.reduced, summary.to
            ));
        }
        text.push_str(&summary.doubtful.as_ref().map(Doubtful::text).unwrap_or_default());
        if summary.foreign > 0 {
            text.push_str(&format!("{} names at the source are not keys and were left out\n", summary.foreign));
        }
        output.answer(&summary, &text)?;
        match stopped {
            Some(failure) => Err(failure),
            None if summary.failed > 0 => Ok(Code::TryAgain),
            None => Ok(Code::Success),
        }
    }
}

/// Describes the parts of a foreign object that were not copied.
fn reduced(key: &Key, lost: &[String], to: &str) -> String {
    format!("{key}: {} was not copied, since {to} cannot hold it in a form that other tools read", lost.join(", "))
}

async fn one(copier: &Copier, key: Key) -> (Key, Result<CopyOutcome, Error>) {
    let copied = copier.copy(&key).await;
    (key, copied)
}
