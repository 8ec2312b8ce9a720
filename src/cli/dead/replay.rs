//! `filestorage dead replay`: publishes dead messages again, where they came from.

use clap::Args;
use jiff::Timestamp;
use serde::Serialize;

use super::removal::DeadSelection;
use super::row::shown;
use super::show::not_found;
use super::walk::{FoundMessage, HeldCopy, PublicationBatch, Walk, Word, interrupted};
use crate::broker::{Confirmation, PublishError};
use crate::celery::{NotReplayable, replay};
use crate::cli::broker;
use crate::cli::terminal::Output;
use crate::config::Settings;
use crate::wiring::{Code, Failure};

/// The most failures that are told one by one.
const MOST_TOLD: usize = 100;

/// Publishes dead messages again, to the queue or exchange where they came from.
///
/// A message is removed from the dead queue once the broker has confirmed it in its own queue. What is refused, or what no
/// queue takes, stays there, and the reason is told. The header x-filestorage-replays counts the replays of a message, and so how often
/// it failed again. It gets a fresh chance: earlier crashes and answers of the same command do not count.
///
/// Body, headers and properties are those that were sent, without user_id and expiration. A message of which not all
/// headers fitted into the dead queue is replayed only with --force.
///
/// Can be interrupted at any time: what is not replayed goes back to its place. A message that was under way when the
/// connection broke may arrive twice. Run it again to go on.
///
/// Exit codes: 0 all messages that were meant are replayed; 65 some need --force, or do not say where they came from; 66 an ID is not there; 75 some were not
/// taken, or the command was interrupted, run it again; 69 the broker cannot be reached.
#[derive(Debug, Args)]
pub(super) struct Arguments {
    #[command(flatten)]
    selection: DeadSelection,

    /// Replays messages of which some headers are missing, too.
    #[arg(long)]
    force: bool,
}

/// The answer.
#[derive(Debug, Default, Serialize)]
struct Summary {
    dry_run: bool,
    looked_at: u64,
    /// Messages that were meant.
    matched: u64,
    /// Messages that are in their own queue again, or would be.
    replayed: u64,
    /// Messages that were not taken, and stay in the dead queue.
    failed: u64,
    /// Messages that cannot be replayed as they are, and stay in the dead queue.
    not_replayable: u64,
    /// Tells whether all that waited at the beginning were looked at.
    complete: bool,
    /// The first 100 messages that stay.
    failures: Vec<Failed>,
}

/// A message that stays in the dead queue.
#[derive(Debug, Serialize)]
struct Failed {
    fingerprint: String,
    id: Option<String>,
    why: String,
}

/// A message that is under way.
struct Underway {
    name: (String, Option<String>),
    held: HeldCopy,
}

/// One run.
struct Run<'s, 'o> {
    walk: Walk<'s>,
    output: &'o Output,
    summary: Summary,
    batch: PublicationBatch<Underway>,
    /// Why nothing more can be replayed.
    stopped: Option<Failure>,
}

impl Arguments {
    pub(super) async fn run(mut self, settings: &Settings, output: &Output) -> Result<Code, Failure> {
        let mut wanted = self.selection.wanted()?;
        let DeadSelection { filter, reach, dry_run, .. } = self.selection;
        let accept = &settings.worker.accept_content;
        let session = broker::open(settings, "filestorage dead replay").await?;
        let walk = Walk::begin(&session, reach, output, if dry_run { "looking" } else { "replaying" }).await?;
        let summary = Summary { dry_run, ..Summary::default() };
        let mut run = Run { walk, output, summary, batch: PublicationBatch::new(), stopped: None };
        let now = Timestamp::now();
        while run.stopped.is_none() && reach.limit.is_none_or(|limit| run.summary.matched < limit) {
            let (found, held) = match run.walk.next().await {
                Ok(Some(next)) => next,
                Ok(None) => break,
                Err(failure) => {
                    run.stopped = Some(failure);
                    break;
                }
            };
            let done = if filter.takes(&found, now, accept) && wanted.takes(&found) {
                run.take(found, held, self.force).await
            } else {
                run.walk.keep(&found.message, held).await
            };
            // What was replayed by then is told all the same.
            run.stopped = run.stopped.or(done.err());
        }
        let missing = wanted.missing();
        run.finish(&missing).await
    }
}

impl Run<'_, '_> {
    async fn take(&mut self, found: FoundMessage, held: HeldCopy, force: bool) -> Result<(), Failure> {
        self.summary.matched += 1;
        let name = (found.copy.fingerprint.clone(), found.copy.id.clone());
        match replay(&found.message, force) {
            Ok(publication) => {
                if let Some(cut) = &found.copy.cut {
                    let said = if self.summary.dry_run { "would be replayed" } else { "is replayed" };
                    let remark = format!("{}: {said} without these headers: {}", name.0, shown(cut));
                    self.walk.suspend(|| self.output.remark(&remark));
                }
                if self.summary.dry_run {
                    self.summary.replayed += 1;
                    return self.walk.keep(&found.message, held).await;
                }
                self.batch.push(publication, Underway { name, held });
                if self.batch.is_full() {
                    self.send().await;
                }
                Ok(())
            }
            Err(why) => {
                self.summary.not_replayable += 1;
                let why = match why {
                    NotReplayable::Cut(cut) => NotReplayable::Cut(shown(&cut)).to_string(),
                    NotReplayable::Foreign => why.to_string(),
                };
                self.tell(name, Code::BadData, why);
                self.walk.keep(&found.message, held).await
            }
        }
    }

    /// Sends the batch; a copy is removed once the broker has its message.
    async fn send(&mut self) {
        let batch = std::mem::replace(&mut self.batch, PublicationBatch::new());
        if batch.is_empty() {
            return;
        }
        for (Underway { name, held }, word) in self.walk.publish(batch).await {
            match word {
                Some(Ok(Confirmation::Routed)) => {
                    self.walk.remove(held);
                    self.summary.replayed += 1;
                }
                word => {
                    self.summary.failed += 1;
                    let (why, is_lost) = refusal(word);
                    if is_lost && self.stopped.is_none() {
                        self.stopped = Some(Failure::new(Code::Unavailable, why.clone()));
                    }
                    self.tell(name, Code::TryAgain, why);
                }
            }
        }
    }

    fn tell(&mut self, (fingerprint, id): (String, Option<String>), code: Code, why: String) {
        if self.summary.failures.len() >= MOST_TOLD {
            return;
        }
        let id = id.as_deref().map(shown);
        let named = id.as_deref().map_or_else(String::new, |id| format!(" (task {id})"));
        let failure = Failure::new(code, format!("{fingerprint}{named} stays in the dead queue: {why}"));
        self.walk.suspend(|| self.output.fail(&failure));
        self.summary.failures.push(Failed { fingerprint, id, why });
    }

    async fn finish(mut self, missing: &[&str]) -> Result<Code, Failure> {
        if self.stopped.is_none() && !self.walk.is_interrupted {
            self.send().await;
        }
        let Self { walk, output, mut summary, stopped, .. } = self;
        (summary.looked_at, summary.complete) = (walk.looked_at, walk.is_complete() && stopped.is_none());
        let is_interrupted = walk.is_interrupted;
        let ended = walk.end(output).await;
        let did = if summary.dry_run { "would replay" } else { "replayed" };
        let Summary { replayed, failed, not_replayable, looked_at, .. } = &summary;
        let text = format!(
            "{did} {replayed} messages, {failed} were not taken, {not_replayable} cannot be replayed as they are; {looked_at} were looked at\n"
        );
        output.answer(&summary, &text)?;
        match stopped {
            Some(failure) => return Err(failure),
            None => ended?,
        }
        if is_interrupted {
            return Err(interrupted());
        }
        if !missing.is_empty() {
            return Err(not_found(missing));
        }
        Ok(match summary {
            Summary { failed: 1.., .. } => Code::TryAgain,
            Summary { not_replayable: 1.., .. } => Code::BadData,
            _ => Code::Success,
        })
    }
}

/// Says why a message was not taken, and whether nothing else can be sent.
fn refusal(word: Option<Word>) -> (String, bool) {
    match word {
        Some(Ok(_)) => ("no queue takes it; make the queue, or bind it to the exchange".to_owned(), false),
        Some(Err(PublishError::Nacked(_))) => ("its queue takes nothing now; is it full?".to_owned(), false),
        Some(Err(PublishError::Refused { code, text })) => (format!("refused: {code} {}", shown(&text)), false),
        Some(Err(PublishError::Unconfirmed(_))) => {
            ("not confirmed in time; it may have arrived, and a second replay would send it twice".to_owned(), false)
        }
        Some(Err(PublishError::Lost(why))) => {
            (format!("{}; it may have arrived, and a second replay would send it twice", shown(&why)), true)
        }
        None => ("interrupted; it may have arrived, and a second replay would send it twice".to_owned(), true),
    }
}
