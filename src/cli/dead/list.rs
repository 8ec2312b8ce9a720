//! `filestorage dead list`: what is in the dead queue, grouped or one by one.

use std::collections::BTreeMap;

use clap::Args;
use jiff::Timestamp;
use serde::Serialize;

use super::filter::Filter;
use super::row::{Row, column, seconds, shown};
use super::walk::{Reach, Walk, interrupted};
use crate::cli::broker;
use crate::cli::terminal::Output;
use crate::config::Settings;
use crate::storage::format_timestamp;
use crate::wiring::{Code, Failure};

/// The most groups that are told apart; messages of all others are counted together.
const MOST_GROUPS: usize = 1000;
/// The name of the group of all others.
const OTHERS: &str = "(others)";

/// Counts the dead messages by reason, exception and task, the largest group first.
///
/// With --long, lists them one a line, the oldest first. FINGERPRINT tells messages of one task id apart, and is
/// understood by show, replay and drop. REPLAYS is how often the message was replayed and failed again.
#[derive(Debug, Args)]
pub(super) struct Arguments {
    #[command(flatten)]
    filter: Filter,

    #[command(flatten)]
    reach: Reach,

    /// Lists the messages one by one.
    #[arg(long)]
    long: bool,
}

/// The answer.
#[derive(Debug, Serialize)]
struct Listing {
    /// Messages that waited in the queue.
    waiting: u64,
    /// Messages that were looked at.
    looked_at: u64,
    /// Messages that are meant.
    matched: u64,
    /// Tells whether all that waited were looked at.
    complete: bool,
    groups: Vec<Group>,
    /// The messages themselves, with --long.
    #[serde(skip_serializing_if = "Option::is_none")]
    messages: Option<Vec<Row>>,
}

/// Messages of one reason, exception and task.
#[derive(Debug, Serialize)]
struct Group {
    reason: String,
    exception: String,
    task: String,
    count: u64,
    oldest: Option<String>,
    newest: Option<String>,
    #[serde(skip)]
    times: Times,
}

/// The first and the last death of a group.
type Times = Option<(Timestamp, Timestamp)>;

/// The groups by their names.
#[derive(Debug, Default)]
struct Groups(BTreeMap<[String; 3], (u64, Times)>);

impl Groups {
    fn count(&mut self, names: [Option<&str>; 3], at: Option<Timestamp>) {
        let mut names = names.map(|name| name.map_or_else(|| "-".to_owned(), shown));
        if self.0.len() >= MOST_GROUPS && !self.0.contains_key(&names) {
            names = [OTHERS; 3].map(str::to_owned);
        }
        let (count, times) = self.0.entry(names).or_default();
        *count += 1;
        if let Some(at) = at {
            let (oldest, newest) = times.unwrap_or((at, at));
            *times = Some((oldest.min(at), newest.max(at)));
        }
    }

    /// Returns the groups, the largest first.
    fn sorted(self) -> Vec<Group> {
        let groups = self.0.into_iter().map(|([reason, exception, task], (count, times))| {
            let [oldest, newest] =
                times.map_or([None, None], |(oldest, newest)| [oldest, newest].map(|at| Some(format_timestamp(at))));
            Group { reason, exception, task, count, oldest, newest, times }
        });
        let mut groups: Vec<_> = groups.collect();
        groups.sort_by_key(|group| std::cmp::Reverse(group.count));
        groups
    }
}

impl Arguments {
    pub(super) async fn run(self, settings: &Settings, output: &Output) -> Result<Code, Failure> {
        let accept = &settings.worker.accept_content;
        let session = broker::open(settings, "filestorage dead list").await?;
        let mut walk = Walk::begin(&session, self.reach, output, "looking").await?;
        let now = Timestamp::now();
        let (mut groups, mut rows, mut matched) = (Groups::default(), Vec::new(), 0);
        while self.reach.limit.is_none_or(|limit| matched < limit)
            && let Some((found, held)) = walk.next().await?
        {
            if self.filter.takes(&found, now, accept) {
                matched += 1;
                let copy = &found.copy;
                groups.count([copy.reason.as_deref(), copy.exception_type(), copy.task.as_deref()], copy.at);
                if self.long {
                    rows.push(Row::new(&found, accept));
                }
            }
            walk.keep(&found.message, held).await?;
        }
        let is_cut = self.reach.limit == Some(matched);
        let (waiting, looked_at, is_interrupted) = (walk.waiting, walk.looked_at, walk.is_interrupted);
        let complete = walk.is_complete() && (!is_cut || looked_at >= waiting);
        walk.end(output).await?;
        if is_interrupted {
            return Err(interrupted());
        }
        let messages = self.long.then_some(rows);
        let listing = Listing { waiting, looked_at, matched, complete, groups: groups.sorted(), messages };
        output.answer(&listing, &text(&listing))?;
        Ok(Code::Success)
    }
}

fn text(listing: &Listing) -> String {
    let mut text = match &listing.messages {
        Some(rows) => long(rows),
        None => grouped(&listing.groups),
    };
    if listing.matched == 0 {
        text.clear();
    }
    let Listing { matched, looked_at, waiting, .. } = listing;
    text.push_str(&format!("{matched} messages match, of {looked_at} that were looked at; {waiting} wait\n"));
    text
}

fn grouped(groups: &[Group]) -> String {
    let row = |[count, reason, exception, oldest, newest, task]: [&str; 6]| {
        format!("{count:>8} {reason:<20} {exception:<24} {oldest:<20} {newest:<20} {task}\n")
    };
    let mut text = row(["COUNT", "REASON", "EXCEPTION", "OLDEST", "NEWEST", "TASK"]);
    for group in groups {
        let (oldest, newest) = (group.times.map(|times| times.0), group.times.map(|times| times.1));
        text.push_str(&row([
            &group.count.to_string(),
            &column(Some(&group.reason), 20),
            &column(Some(&group.exception), 24),
            &seconds(oldest),
            &seconds(newest),
            &group.task,
        ]));
    }
    text
}

fn long(rows: &[Row]) -> String {
    let row = |[fingerprint, dead_at, replays, bytes, reason, id, task, keys]: [&str; 8]| {
        format!("{fingerprint:<12} {dead_at:<20} {replays:>7} {bytes:>10} {reason:<18} {id:<36} {task:<24} {keys}\n")
    };
    let mut text = row(["FINGERPRINT", "DEAD AT", "REPLAYS", "BYTES", "REASON", "ID", "TASK", "KEYS"]);
    for found in rows {
        let dead_at = found.dead_at.as_deref().and_then(|at| at.parse().ok());
        text.push_str(&row([
            &found.fingerprint,
            &seconds(dead_at),
            &found.replays.to_string(),
            &found.body_bytes.to_string(),
            &column(found.reason.as_deref(), 18),
            found.id.as_deref().unwrap_or("-"),
            found.task.as_deref().unwrap_or("-"),
            &column(Some(&found.keys.join(" ")).filter(|keys| !keys.is_empty()).map(String::as_str), 80),
        ]));
    }
    text
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn groups_are_bounded_and_the_largest_is_first() {
        let mut groups = Groups::default();
        for index in 0..MOST_GROUPS + 10 {
            let task = format!("task-{index}");
            groups.count([Some("not-registered"), Some("NotRegistered"), Some(&task)], Some(Timestamp::UNIX_EPOCH));
        }
        groups.count([None, None, None], None);
        let sorted = groups.sorted();
        assert_eq!(sorted.len(), MOST_GROUPS + 1);
        assert_eq!((sorted[0].task.as_str(), sorted[0].count), (OTHERS, 11));
        assert_eq!(sorted.iter().map(|group| group.count).sum::<u64>(), MOST_GROUPS as u64 + 11);
    }
}
