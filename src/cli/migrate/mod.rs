//! `filestorage migrate`.

mod mover;
mod place;

use std::sync::Arc;

use clap::Args;
use futures_util::StreamExt as _;
use futures_util::stream::FuturesUnordered;
use serde::Serialize;

use self::mover::{Moved, Mover};
use self::place::Place;
use super::terminal::{Output, Progress, interruption};
use crate::config::{Settings, StorageSettings};
use crate::provider::Provider;
use crate::storage::{Attributes, Backend, Error, ErrorKind, Gcs, Key, Local, Memory, Page, S3};
use crate::telemetry::Metrics;
use crate::wiring::{Bucket, Code, Creation, Failure, folders, stack};

/// Keys listed at a time; a local store is walked once for each page.
const PAGE: usize = 10_000;

/// Copies every value from one place to another: from the local store to a bucket, back, or from bucket to bucket.
///
/// A place is `local`, `gcs` or `s3`, which stand for what the settings name, or a URL: gs://BUCKET, s3://BUCKET,
/// file:///PATH (a folder as `local_storage_path` names one). Credentials are those of the settings.
///
/// Each value is copied whole with its generation, metadata and times, and compared with the source by its checksum;
/// but for GCS, which verifies what it keeps, it is read again for that. What another tool wrote keeps its Cache-Control,
/// Content-Disposition, Content-Language and custom metadata; what of it the target has no place for is told, one key a
/// line, and counted. Nothing is ever removed. A value the target
/// already has is skipped, so after an interruption, or to fetch what was stored meanwhile, run it again. What has expired
/// is left out. Another value under the same key is a failure, unless --overwrite is given. Failures are told one a line,
/// the rest goes on.
///
/// The source may be in use. A key that is stored again there after it was copied keeps the old value at the target: the
/// next run tells it as another value, and --overwrite fetches the new one. A key that is deleted there after it was
/// copied stays at the target.
///
/// Exit codes: 0 all values are at the target; 75 some are not; 66 nothing is at the source; 69 a place cannot be
/// reached, run it again later; 78 a place refuses for good, which a refused value is taken for while none was copied.
#[derive(Debug, Args)]
pub(super) struct Arguments {
    /// Place to copy from.
    #[arg(long, value_name = "PLACE")]
    from: String,

    /// Place to copy to.
    #[arg(long, value_name = "PLACE")]
    to: String,

    /// Only keys that begin with this text.
    #[arg(long, value_name = "TEXT")]
    prefix: Option<String>,

    /// Says what would be copied and what would fail, and writes nothing.
    #[arg(long)]
    dry_run: bool,

    /// Replaces other values under the same keys at the target.
    #[arg(long)]
    overwrite: bool,

    /// Values copied at once.
    #[arg(long, value_name = "COUNT", default_value_t = 8, value_parser = clap::value_parser!(u16).range(1..=256))]
    parallel: u16,
}

/// What was done, for people and programs.
#[derive(Debug, Serialize)]
struct Summary {
    from: String,
    to: String,
    dry_run: bool,
    copied: u64,
    copied_bytes: u64,
    skipped: u64,
    failed: u64,
    /// Of the copied ones, those of which another tool had said something that the target has no place for.
    reduced: u64,
    /// Names at the source that are no keys.
    foreign: u64,
    /// Whether every key was looked at.
    complete: bool,
}

impl Arguments {
    pub(super) async fn run(self, settings: &Settings, output: &Output) -> Result<Code, Failure> {
        let settings = &settings.storage;
        let (from, to) = (Place::parse(&self.from, settings)?, Place::parse(&self.to, settings)?);
        if from == to {
            return Err(Failure::new(Code::Usage, format!("--from and --to are the same place, {from}")));
        }
        let mover = Mover {
            source: source(settings, &from).await?,
            target: self.target(settings, &to).await?,
            overwrite: self.overwrite,
            dry_run: self.dry_run,
            read_back: !matches!(to, Place::Bucket(Provider::Gcs, _)),
            lost: lost(&to),
        };
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
            complete: false,
        };
        let progress = Progress::counting(output, if self.dry_run { "looking" } else { "copying" });
        let mut run = Run { mover, summary, progress, output, refusal: None, stopped: None };
        run.walk(self.prefix.unwrap_or_default(), self.parallel.into()).await;
        run.close()
    }

    /// Opens the place to copy to; a trial makes nothing there.
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

/// Returns what names the parts of a foreign object that have no place there.
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

/// Opens a bucket that is the right one and for which nothing waits on this machine: a copy from it would lack that, one
/// to it would meet it later.
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
            let mend = "run `filestorage sync` first, with this bucket in the settings";
            let why = format!("{waiting} entries on this machine wait to be sent to {place}; {mend}");
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

/// One run over all keys.
struct Run<'a> {
    mover: Mover,
    summary: Summary,
    progress: Progress,
    output: &'a Output,
    /// The place has refused before anything was copied: perhaps all of it, which what is under way tells.
    refusal: Option<Failure>,
    /// Why the run ended early.
    stopped: Option<Failure>,
}

impl Run<'_> {
    /// Copies page by page, so many values at once.
    async fn walk(&mut self, prefix: String, parallel: usize) {
        let mover = self.mover.clone();
        let mut interrupted = std::pin::pin!(interruption());
        let mut page = Page { prefix, start_after: None, limit: Some(PAGE) };
        let (mut under_way, mut listed) = (FuturesUnordered::new(), 0);
        loop {
            let listing = tokio::select! {
                listing = mover.source.list(&page) => listing,
                _ = &mut interrupted => return self.interrupt(),
            };
            let listing = match listing {
                Ok(listing) => listing,
                Err(error) => return self.stopped = Some(stack::refused(error)),
            };
            self.summary.foreign += listing.foreign;
            listed += listing.entries.len() as u64;
            self.progress.expect_values(listed);
            page.start_after = listing.entries.last().map(|entry| entry.key.as_str().to_owned());
            let mut keys = listing.entries.into_iter().map(|entry| entry.key);
            loop {
                while under_way.len() < parallel
                    && self.stopped.is_none()
                    && self.refusal.is_none()
                    && let Some(key) = keys.next()
                {
                    under_way.push(one(&mover, key));
                }
                // What is under way when a place goes away comes to its end like everything else.
                let moved = tokio::select! {
                    moved = under_way.next() => moved,
                    _ = &mut interrupted => return self.interrupt(),
                };
                let Some((key, moved)) = moved else { break };
                self.note(&key, moved);
            }
            self.stopped = self.stopped.take().or(self.refusal.take());
            if self.stopped.is_some() {
                return;
            }
            if !listing.more || page.start_after.is_none() {
                return self.summary.complete = true;
            }
        }
    }

    fn note(&mut self, key: &Key, moved: Result<Moved, Error>) {
        match moved {
            Ok(Moved::Copied { bytes, lost }) => {
                self.summary.copied += 1;
                self.summary.copied_bytes += bytes;
                self.refusal = None;
                if !lost.is_empty() {
                    self.summary.reduced += 1;
                    self.progress.aside(|| self.output.remark(&reduced(key, &lost, &self.summary.to)));
                }
            }
            Ok(Moved::There) => self.summary.skipped += 1,
            Ok(Moved::Gone) => {}
            Err(error) => {
                self.summary.failed += 1;
                let ends = matches!(error.kind, ErrorKind::Unavailable | ErrorKind::Throttled | ErrorKind::NoSpace);
                let refused = error.kind == ErrorKind::Denied && self.summary.copied == 0;
                let failure = Failure::from(error);
                self.progress.aside(|| self.output.fail(&failure));
                if ends && self.stopped.is_none() {
                    let why = "stopped, since every other value would fail as this one did; run it again to continue";
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

    /// What is under way is dropped: it is whole at the target, or not there.
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
                "{} of them without something that {} has no place for, named above\n",
                summary.reduced, summary.to
            ));
        }
        if summary.foreign > 0 {
            text.push_str(&format!("{} names at the source are no keys and were left out\n", summary.foreign));
        }
        output.answer(&summary, &text)?;
        match stopped {
            Some(failure) => Err(failure),
            None if summary.failed > 0 => Ok(Code::TryAgain),
            None => Ok(Code::Success),
        }
    }
}

/// Says what of a foreign object stays behind.
fn reduced(key: &Key, lost: &[String], to: &str) -> String {
    format!("{key}: {} stays behind, {to} has no place for it that other tools read", lost.join(", "))
}

async fn one(mover: &Mover, key: Key) -> (Key, Result<Moved, Error>) {
    let moved = mover.copy(&key).await;
    (key, moved)
}
