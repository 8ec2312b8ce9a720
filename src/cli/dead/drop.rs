//! `filestorage dead drop`: removes dead messages for good.

use clap::Args;
use jiff::Timestamp;
use serde::Serialize;

use super::removal::DeadSelection;
use super::show::not_found;
use super::walk::{Walk, interrupted};
use crate::cli::broker;
use crate::cli::terminal::Output;
use crate::config::Settings;
use crate::wiring::{Code, Failure};

/// Removes dead messages for good.
///
/// Can be interrupted at any time: what is not removed goes back to its place. Run it again to go on.
#[derive(Debug, Args)]
pub(super) struct Arguments {
    #[command(flatten)]
    selection: DeadSelection,
}

/// The answer.
#[derive(Debug, Serialize)]
struct Summary {
    dry_run: bool,
    looked_at: u64,
    /// Messages that were removed, or would be.
    dropped: u64,
    /// Tells whether all that waited at the beginning were looked at.
    complete: bool,
}

impl Arguments {
    pub(super) async fn run(mut self, settings: &Settings, output: &Output) -> Result<Code, Failure> {
        let mut wanted = self.selection.wanted()?;
        let DeadSelection { filter, reach, dry_run, .. } = self.selection;
        let accept = &settings.worker.accept_content;
        let session = broker::open(settings, "filestorage dead drop").await?;
        let mut walk = Walk::begin(&session, reach, output, if dry_run { "looking" } else { "dropping" }).await?;
        let (now, mut dropped) = (Timestamp::now(), 0);
        while reach.limit.is_none_or(|limit| dropped < limit)
            && let Some((found, held)) = walk.next().await?
        {
            let is_meant = filter.takes(&found, now, accept) && wanted.takes(&found);
            dropped += u64::from(is_meant);
            if is_meant && !dry_run {
                walk.remove(held);
            } else {
                walk.keep(&found.message, held).await?;
            }
        }
        let (looked_at, complete, is_interrupted) = (walk.looked_at, walk.is_complete(), walk.is_interrupted);
        walk.end(output).await?;
        let did = if dry_run { "would drop" } else { "dropped" };
        let text = format!("{did} {dropped} messages, of {looked_at} that were looked at\n");
        output.answer(&Summary { dry_run, looked_at, dropped, complete }, &text)?;
        if is_interrupted {
            return Err(interrupted());
        }
        match wanted.missing().as_slice() {
            [] => Ok(Code::Success),
            missing => Err(not_found(missing)),
        }
    }
}
