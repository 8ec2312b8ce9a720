//! `filestorage verify`: reads values and compares them with their checksums.

use std::collections::VecDeque;

use clap::Args;
use futures_util::StreamExt as _;
use futures_util::stream::FuturesUnordered;
use jiff::Timestamp;
use serde::Serialize;

use super::terminal::{Output, Progress, until_interrupted};
use crate::config::Settings;
use crate::storage::{Engine, Entry, Error, ErrorKind, Key, Verification};
use crate::wiring::{Code, Failure, stack};

/// The number of damaged keys that the answer names.
const NAMED: usize = 1_000;

/// Reads values completely and compares them with their checksums.
///
/// Without keys, all values below --prefix are read, in the order of their keys. Each damaged value is reported in a line with
/// what is wrong and what can be done; nothing is changed. A value that cannot be read is not known to be damaged: where a
/// permission is missing or a disk fails, it is reported and the others are read; where the bucket cannot be reached, the run
/// ends there and says how to go on with --start-after.
///
/// Exit codes: 0 all values are sound; 65 some are damaged; 66 a named key is missing; 69 the bucket cannot be reached; 74 some
/// could not be read; 75 interrupted.
#[derive(Debug, Args)]
pub(super) struct Arguments {
    /// Keys to verify; by default all.
    #[arg(value_name = "KEY", conflicts_with_all = ["prefix", "start_after"])]
    keys: Vec<String>,

    /// Verifies only values whose keys begin with this text.
    #[arg(long, value_name = "TEXT")]
    prefix: Option<String>,

    /// Verifies only keys after this one: the last that an interrupted run has named.
    #[arg(long, value_name = "KEY")]
    start_after: Option<String>,

    /// Number of values that are read at once.
    #[arg(long, value_name = "COUNT", default_value_t = 4, value_parser = clap::value_parser!(u16).range(1..=64))]
    parallel: u16,
}

/// The answer.
#[derive(Debug, Default, Serialize)]
struct Summary {
    verified: u64,
    damaged: u64,
    missing: u64,
    /// The number of values that could not be read, so that nobody knows whether they are sound.
    unread: u64,
    /// Bytes of the values, where their number is known without reading them.
    bytes: u64,
    /// Whether all keys were verified.
    complete: bool,
    /// The key up to which all keys were verified.
    last: Option<String>,
    /// The first 1,000 damaged values.
    problems: Vec<Verification>,
}

/// One run over keys.
struct Run<'a> {
    engine: &'a Engine,
    output: &'a Output,
    progress: Progress,
    summary: Summary,
    parallel: usize,
}

impl Arguments {
    pub(super) async fn run(self, settings: &Settings, output: &Output) -> Result<Code, Failure> {
        let engine = match until_interrupted(stack::reader(&settings.storage)).await {
            Some(engine) => engine?.ok_or_else(|| stack::nothing_stored(&settings.storage))?,
            None => return close(output, &Summary::default(), Some(Failure::new(Code::TryAgain, "interrupted"))),
        };
        let keys: Vec<Key> = self.keys.iter().map(|key| Key::parse(key)).collect::<Result<_, _>>()?;
        let progress = Progress::counting(output, "verifying");
        let parallel = self.parallel.into();
        let mut run = Run { engine: &engine, output, progress, summary: Summary::default(), parallel };
        let is_named = !keys.is_empty();
        let stopped = {
            let work = async {
                if is_named {
                    return run.verify(keys.into_iter().map(|key| (key, 0)).collect(), true).await;
                }
                let mut walk = engine.walk(self.prefix.as_deref().unwrap_or_default(), self.start_after);
                while let Some(entries) = walk.next_page().await? {
                    let now = Timestamp::now();
                    let live = entries.into_iter().filter(|entry| !entry.is_expired(now));
                    run.verify(live.map(|Entry { key, size, .. }| (key, size.unwrap_or_default())).collect(), false)
                        .await?;
                }
                Ok(())
            };
            match until_interrupted(work).await {
                Some(outcome) => outcome.map_err(Failure::from).err(),
                None => Some(Failure::new(Code::TryAgain, "interrupted")),
            }
        };
        let Run { progress, mut summary, .. } = run;
        drop(progress);
        summary.complete = stopped.is_none();
        close(output, &summary, stopped)
    }
}

impl Run<'_> {
    /// Verifies keys, in their order as far as the summary tells.
    async fn verify(&mut self, keys: Vec<(Key, u64)>, is_named: bool) -> Result<(), Error> {
        let engine = self.engine;
        let mut left = keys.into_iter();
        // The keys that are under way, in their order, and whether each is done.
        let mut order: VecDeque<(Key, bool)> = VecDeque::new();
        let mut running = FuturesUnordered::new();
        loop {
            while running.len() < self.parallel
                && let Some((key, size)) = left.next()
            {
                order.push_back((key.clone(), false));
                running.push(async move { (engine.verify(&key).await, key, size) });
            }
            let Some((outcome, key, size)) = running.next().await else { return Ok(()) };
            match outcome {
                Ok(found) => self.note(found, &key, size, is_named),
                Err(error) if matches!(error.kind, ErrorKind::Io | ErrorKind::Denied) => self.note_unread(&key, error),
                Err(error) => return Err(error),
            }
            if let Some(done) = order.iter_mut().find(|(other, _)| *other == key) {
                done.1 = true;
            }
            while order.front().is_some_and(|(_, done)| *done) {
                self.summary.last = order.pop_front().map(|(key, _)| key.as_str().to_owned());
            }
        }
    }

    fn note_unread(&mut self, key: &Key, error: Error) {
        self.summary.unread += 1;
        self.progress.suspend(|| self.output.fail(&error.into()));
        self.progress.count(1, self.summary.bytes, key.as_str());
    }

    fn note(&mut self, found: Option<Verification>, key: &Key, size: u64, is_named: bool) {
        let summary = &mut self.summary;
        match found {
            None if is_named => {
                summary.missing += 1;
                self.progress.suspend(|| self.output.fail(&Failure::missing(key.as_str())));
            }
            // Somebody has removed the value since it was listed.
            None => {}
            Some(Verification { ok: true, .. }) => {
                summary.verified += 1;
                summary.bytes += size;
            }
            Some(damaged) => {
                summary.damaged += 1;
                let problem = damaged.problem.as_deref().unwrap_or("damaged");
                let failure = Failure::new(Code::BadData, format!("{key}: {problem}"));
                self.progress.suspend(|| self.output.fail(&failure));
                if summary.problems.len() < NAMED {
                    summary.problems.push(damaged);
                }
            }
        }
        self.progress.count(1, summary.bytes, key.as_str());
    }
}

/// Writes the answer, and returns the exit code.
fn close(output: &Output, summary: &Summary, stopped: Option<Failure>) -> Result<Code, Failure> {
    let Summary { verified, damaged, missing, unread, .. } = *summary;
    let mut text = format!("{verified} values are sound, {damaged} are damaged");
    if missing > 0 {
        text.push_str(&format!(", {missing} are missing"));
    }
    if unread > 0 {
        text.push_str(&format!(", {unread} could not be read"));
    }
    text.push('\n');
    output.answer(summary, &text)?;
    match (stopped, &summary.last) {
        (Some(mut failure), Some(last)) => {
            failure.message.push_str(&format!("; go on with --start-after {last:?}"));
            Err(failure)
        }
        (Some(failure), None) => Err(failure),
        (None, _) if damaged > 0 => Ok(Code::BadData),
        (None, _) if unread > 0 => Ok(Code::Io),
        (None, _) if missing > 0 => Ok(Code::NoInput),
        (None, _) => Ok(Code::Success),
    }
}
