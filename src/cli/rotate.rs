//! `filestorage rotate`: brings all encrypted values under the first encryption key.

use std::collections::BTreeMap;

use clap::Args;
use futures_util::stream::{self, StreamExt as _};
use serde::Serialize;

use super::terminal::{Output, Progress, interruption};
use crate::config::Settings;
use crate::storage::{Backend as _, Encoded, Error, ErrorKind, Key, Page, Rotation};
use crate::wiring::{Code, Failure, stack};

/// The number of keys that are listed at a time; a local store is walked once for each page.
const PAGE: usize = 10_000;

/// The most ids of missing keys that are told apart.
const MOST_IDS: usize = 100;

/// Brings all encrypted values under the first encryption key, so that the other keys can be retired.
///
/// Each value is encrypted under a random key of its own, which one key of `encryption_key` wraps. This command wraps it again,
/// with the first key. Encrypted bytes are not read or written anew by this program: a bucket copies the object onto itself,
/// and on the disk a file with a new header and the same bytes replaces the old one. Value, metadata, generation and times stay as
/// they are. Values that are not encrypted are left alone.
///
/// First put the new key behind the old ones in the settings of all workers and shells, and restart them; then before the old
/// ones, and restart them again: so every worker can read what another one writes. Others may store
/// and delete meanwhile; what they write wins. The command can be interrupted at any time, and every value can be read at
/// every moment. Run it again to go on: what is done is passed over quickly, and --start-after leaves it out.
///
/// An old key can be removed from the settings once --dry-run finds nothing to rotate and nothing that waits, on every machine that
/// keeps entries for a bucket. Old versions that a bucket keeps stay under the old key, and so do files in quarantine.
///
/// Exit codes: 0 all encrypted values that were looked at are under the first key, or would be after a run without --dry-run; 65 some are under a key that is not in the settings, or damaged; 75
/// some are not rotated, or entries on this machine wait for the bucket, run it again; 69 the bucket cannot be reached; 78
/// there is no key, or the bucket refuses this identity.
#[derive(Debug, Args)]
pub(super) struct Arguments {
    /// Rotates only keys that begin with this text.
    #[arg(long, value_name = "TEXT")]
    prefix: Option<String>,

    /// Rotates only keys after this one.
    #[arg(long, value_name = "KEY")]
    start_after: Option<String>,

    /// Counts the values that would be rotated, and changes nothing.
    #[arg(long)]
    dry_run: bool,

    /// Number of values that are rotated at once.
    #[arg(long, value_name = "COUNT", default_value_t = 8, value_parser = clap::value_parser!(u16).range(1..=256))]
    parallel: u16,
}

/// The answer: counts of what was found.
#[derive(Debug, Default, Serialize)]
struct Summary {
    dry_run: bool,
    /// The id of the first key.
    key_id: String,
    /// The number of values that were brought under the first key, or would be.
    rotated: u64,
    /// The number of values that were under the first key already.
    current: u64,
    /// The number of values that are not encrypted.
    not_encrypted: u64,
    /// The number of values by the ids of their keys, for keys that are not in the settings.
    unknown_keys: BTreeMap<String, u64>,
    /// The number of values that could not be rotated for another reason.
    failed: u64,
    /// The number of names that are not keys.
    foreign: u64,
    /// The number of entries on this machine that wait for the bucket.
    waiting: u64,
    /// The last key before the first that was not brought under the first key.
    last: Option<String>,
    /// Tells whether all keys were handled.
    complete: bool,
}

impl Arguments {
    pub(super) async fn run(self, settings: &Settings, output: &Output) -> Result<Code, Failure> {
        let keyring = crate::wiring::encryption(&settings.storage)?.keyring().cloned();
        let Some(first) = keyring.and_then(|keyring| keyring.ids().next()) else {
            let why = "encryption_key is not set, so there is no key to rotate to; put the new key first and the old ones behind it";
            return Err(Failure::new(Code::Configuration, why));
        };
        let summary = Summary { dry_run: self.dry_run, key_id: first.to_string(), ..Summary::default() };
        let progress = Progress::counting(output, if self.dry_run { "looking" } else { "rotating" });
        let mut run = Run { summary, progress, output, dry_run: self.dry_run, is_bad: false, stopped: None };
        match stack::sealed(&settings.storage).await? {
            None => run.summary.complete = true,
            Some(stack::EncryptedStore { objects, fallback }) => {
                let page = Page {
                    prefix: self.prefix.unwrap_or_default(),
                    start_after: self.start_after,
                    limit: Some(PAGE),
                    // Each object is looked at anyway.
                    sizes_only: true,
                };
                run.summary.last = page.start_after.clone();
                run.walk(&objects, page, self.parallel.into()).await;
                if let Some(fallback) = fallback {
                    match fallback.pending().await {
                        Ok(pending) => run.summary.waiting = pending.entries,
                        Err(error) => run.stopped = run.stopped.or(Some(error.into())),
                    }
                }
            }
        }
        run.close()
    }
}

/// One run over all keys.
struct Run<'a> {
    summary: Summary,
    progress: Progress,
    output: &'a Output,
    dry_run: bool,
    /// Whether a value was found that another run will not rotate either.
    is_bad: bool,
    /// The reason why the run ended early.
    stopped: Option<Failure>,
}

impl Run<'_> {
    /// Rotates all keys, page by page, `parallel` values at once.
    async fn walk(&mut self, objects: &Encoded, mut page: Page, parallel: usize) {
        let (mut interrupted, dry_run) = (std::pin::pin!(interruption()), self.dry_run);
        let mut listed = 0;
        loop {
            let listing = tokio::select! {
                listing = objects.list(&page) => listing,
                () = &mut interrupted => return self.interrupt(),
            };
            let listing = match listing {
                Ok(listing) => listing,
                Err(error) => return self.stopped = Some(stack::refused(error)),
            };
            self.summary.foreign += listing.foreign;
            listed += listing.entries.len() as u64;
            self.progress.expect_values(listed);
            let next_page = match listing.horizon() {
                Ok(next_page) => next_page,
                Err(error) => return self.stopped = Some(error.into()),
            };
            let keys = stream::iter(listing.entries).map(|entry| async move {
                let rotated = objects.rotate(&entry.key, dry_run).await;
                (entry.key, rotated)
            });
            // In the order of the keys, so that the last one says how far the run has come.
            let mut rotated = std::pin::pin!(keys.buffered(parallel));
            loop {
                let next = tokio::select! {
                    next = rotated.next() => next,
                    () = &mut interrupted => return self.interrupt(),
                };
                let Some((key, outcome)) = next else { break };
                self.note(&key, outcome);
                if self.stopped.is_some() {
                    return;
                }
                self.progress.step(key.as_str());
                // A run that goes on after a key does not come back to those before it.
                if self.summary.failed == 0 && self.summary.unknown_keys.is_empty() {
                    self.summary.last = Some(key.as_str().to_owned());
                }
            }
            if next_page.is_none() {
                return self.summary.complete = true;
            }
            page.start_after = next_page;
        }
    }

    fn note(&mut self, key: &Key, outcome: Result<Rotation, Error>) {
        let summary = &mut self.summary;
        match outcome {
            Ok(Rotation::Rotated) => summary.rotated += 1,
            Ok(Rotation::Current) => summary.current += 1,
            Ok(Rotation::NotEncrypted) => summary.not_encrypted += 1,
            Ok(Rotation::Gone) => {}
            Ok(Rotation::UnknownKey(id)) => {
                self.is_bad = true;
                let (id, has_room) = (id.to_string(), summary.unknown_keys.len() < MOST_IDS);
                let name = if has_room || summary.unknown_keys.contains_key(&id) { id.as_str() } else { "others" };
                *summary.unknown_keys.entry(name.to_owned()).or_default() += 1;
                let why =
                    format!("{key}: encrypted with the key {id}, which is not in encryption_key; it stays as it is");
                self.report(&Failure::new(Code::BadData, why));
            }
            Err(error) if matches!(error.kind, ErrorKind::Unavailable | ErrorKind::Throttled) => {
                self.stopped = Some(error.into());
            }
            Err(error) if error.kind == ErrorKind::Denied && summary.rotated + summary.current == 0 => {
                self.stopped = Some(stack::refused(error));
            }
            Err(error) => {
                summary.failed += 1;
                self.is_bad |= matches!(error.kind, ErrorKind::Integrity | ErrorKind::Invalid);
                self.report(&error.into());
            }
        }
    }

    fn report(&self, failure: &Failure) {
        self.progress.suspend(|| self.output.fail(failure));
    }

    fn interrupt(&mut self) {
        let why = "interrupted before the end; every value can be read, run it again";
        self.stopped = Some(Failure::new(Code::TryAgain, why));
    }

    fn close(self) -> Result<Code, Failure> {
        let Self { summary, progress, output, is_bad, stopped, .. } = self;
        drop(progress);
        let did = if summary.dry_run { "would rotate" } else { "rotated" };
        let mut text = format!(
            "{did} {} values to the key {}, {} were under it already, {} are not encrypted, {} failed\n",
            summary.rotated, summary.key_id, summary.current, summary.not_encrypted, summary.failed
        );
        for (id, values) in &summary.unknown_keys {
            text.push_str(&format!(
                "{values} values are encrypted with the key {id}, which is not in encryption_key\n"
            ));
        }
        if summary.foreign > 0 {
            text.push_str(&format!("{} names in the store are not keys and were left out\n", summary.foreign));
        }
        if summary.waiting > 0 {
            text.push_str(&format!(
                "{} entries on this machine wait for the bucket and hide what it has there; send them with `filestorage sync` and run it again\n",
                summary.waiting
            ));
        }
        if let Some(last) = summary.last.as_ref().filter(|_| !summary.complete) {
            text.push_str(&format!("all keys up to this one are done: {last}\n"));
        }
        output.answer(&summary, &text)?;
        match stopped {
            Some(failure) => Err(failure),
            None if is_bad => Ok(Code::BadData),
            None if summary.failed > 0 || summary.waiting > 0 => Ok(Code::TryAgain),
            None => Ok(Code::Success),
        }
    }
}
