//! `filestorage usage`: counts values and bytes by the folders of keys.

use clap::Args;
use indicatif::HumanBytes;
use jiff::Timestamp;
use serde::Serialize;

use super::filled_quota::FilledQuota;
use super::terminal::{Output, Progress, until_interrupted};
use crate::config::Settings;
use crate::storage::{Usage, UsageTable};
use crate::wiring::{Code, Failure, stack};

/// Counts values and their bytes, in total and by the folders of their keys.
///
/// SIZE is the number of bytes of the values, STORED that of the bytes kept after compression and encryption. Where the
/// size of a value is not known without reading it (objects that another tool encoded, files of the Python class
/// FileStorage), its stored bytes count as its size. Values that have expired do not count, also while they have not been
/// removed yet. Writes that wait for the bucket count. A table has at most 1,000 rows; what is left shares one more row. Where
/// `quotas` are set and no prefix is given, a line tells how far each is used.
///
/// Exit codes: 0 all was counted; 69 the bucket cannot be reached; 75 interrupted, and what was counted until then is shown.
#[derive(Debug, Args)]
pub(super) struct Arguments {
    /// Counts only values whose keys begin with this text.
    #[arg(long, value_name = "TEXT", default_value = "")]
    prefix: String,

    /// Number of folders of a key that make a row; 0 shows the total alone.
    #[arg(long, value_name = "COUNT", default_value_t = 1, value_parser = clap::value_parser!(u16).range(0..=512))]
    depth: u16,
}

/// The answer.
#[derive(Debug, Serialize)]
struct Answer<'a> {
    prefix: &'a str,
    #[serde(flatten)]
    total: Usage,
    rows: Vec<Row<'a>>,
    /// What has no row of its own any more.
    others: Option<Usage>,
    /// The quotas of the settings, when all keys are counted.
    #[serde(skip_serializing_if = "Vec::is_empty")]
    quotas: Vec<FilledQuota>,
    /// Whether all keys were counted.
    complete: bool,
}

/// One row: the values below a folder.
#[derive(Debug, Serialize)]
struct Row<'a> {
    prefix: &'a str,
    #[serde(flatten)]
    usage: Usage,
}

impl Arguments {
    pub(super) async fn run(self, settings: &Settings, output: &Output) -> Result<Code, Failure> {
        let rules = settings.storage.quotas.iter().filter(|_| self.prefix.is_empty());
        let mut quotas: Vec<FilledQuota> = rules.map(FilledQuota::of).collect();
        let mut table = UsageTable::new(self.depth.into());
        let count = async {
            let Some(engine) = stack::reader(&settings.storage).await? else { return Ok(()) };
            let progress = Progress::counting(output, "counting");
            let mut walk = engine.walk(&self.prefix, None);
            while let Some(entries) = walk.next_page().await? {
                let now = Timestamp::now();
                for entry in &entries {
                    table.add(entry, now);
                    quotas.iter_mut().for_each(|quota| quota.add(entry));
                }
                let last = entries.last().map_or("", |entry| entry.key.as_str());
                progress.count(entries.len() as u64, table.total.stored_size_bytes, last);
            }
            Ok::<_, Failure>(())
        };
        let complete = until_interrupted(count).await.transpose()?.is_some();
        let rows = table.rows.iter().map(|(prefix, usage)| Row { prefix, usage: *usage }).collect();
        let others = (table.others.file_count > 0).then_some(table.others);
        let answer = Answer { prefix: &self.prefix, total: table.total, rows, others, quotas, complete };
        output.answer(&answer, &text(&answer))?;
        if complete {
            return Ok(Code::Success);
        }
        Err(Failure::new(Code::TryAgain, "interrupted; only a part of the values was counted, run it again"))
    }
}

fn text(answer: &Answer<'_>) -> String {
    let mut text = format!("{:>12} {:>12} {:>12}  PREFIX\n", "VALUES", "SIZE", "STORED");
    let mut add = |usage: &Usage, prefix: &str| {
        let (size, stored) = (HumanBytes(usage.total_size_bytes), HumanBytes(usage.stored_size_bytes));
        text.push_str(&format!(
            "{:>12} {:>12} {:>12}  {prefix}\n",
            usage.file_count,
            size.to_string(),
            stored.to_string()
        ));
    };
    for Row { prefix, usage } in &answer.rows {
        add(usage, if prefix.is_empty() { "(no folder)" } else { prefix });
    }
    if let Some(others) = &answer.others {
        add(others, "(others)");
    }
    add(&answer.total, if answer.prefix.is_empty() { "(total)" } else { "(total of the prefix)" });
    answer.quotas.iter().for_each(|quota| text.push_str(&format!("quota {quota}\n")));
    text
}
