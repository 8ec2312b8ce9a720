//! What became of a command, by its id: the lines of all journals in the folder are searched.

use std::collections::{BTreeMap, HashMap};
use std::fs::{self, File};
use std::io::{self, BufRead as _, BufReader};
use std::path::{Path, PathBuf};

use async_trait::async_trait;
use jiff::Timestamp;
use serde_json::{Value, json};

use super::identity::Digest;
use super::ledger::AnswerPlace;
use super::record::{Finish, Record};
use super::{at, segment};
use crate::commands::{CommandOutcomeReport, OutcomeState, Outcomes};
use crate::worker::execution::answer::{Answer, Outcome};

/// Searches the journals of a folder.
#[derive(Debug)]
pub(in crate::worker) struct JournalOutcomes {
    folder: PathBuf,
}

/// A run of a command under the id that is searched for.
#[derive(Debug)]
struct FoundRun {
    began: i64,
    task: String,
    ended_at: Option<i64>,
    is_over: bool,
    /// The writer of the answer, and where it stands.
    answer: Option<(String, AnswerPlace)>,
}

impl JournalOutcomes {
    pub(in crate::worker) fn new(folder: &Path) -> Self {
        Self { folder: folder.to_owned() }
    }
}

#[async_trait]
impl Outcomes for JournalOutcomes {
    async fn outcome(&self, task_id: &str) -> Result<CommandOutcomeReport, String> {
        let (folder, task_id) = (self.folder.clone(), task_id.to_owned());
        let searched = tokio::task::spawn_blocking(move || search(&folder, &task_id)).await;
        searched.map_err(|error| error.to_string())?.map_err(|error| format!("the journal cannot be read: {error}"))
    }
}

fn search(folder: &Path, task_id: &str) -> io::Result<CommandOutcomeReport> {
    let mut id = String::new();
    crate::json::write_string(&mut id, task_id);
    let needle = format!(",\"id\":{id},");
    let mut writers: BTreeMap<String, Vec<u64>> = BTreeMap::new();
    for entry in fs::read_dir(folder).map_err(|error| at(folder, &error))? {
        let name = entry?.file_name();
        if let Some((writer, number)) = name.to_str().and_then(segment::parse_name) {
            writers.entry(writer.to_owned()).or_default().push(number);
        }
    }
    let mut runs: HashMap<Digest, FoundRun> = HashMap::new();
    for (writer, mut numbers) in writers {
        numbers.sort_unstable();
        for number in numbers {
            let path = segment::path(folder, &writer, number);
            let file = match File::open(&path) {
                Ok(file) => file,
                // It was dropped meanwhile.
                Err(error) if error.kind() == io::ErrorKind::NotFound => continue,
                Err(error) => return Err(at(&path, &error)),
            };
            let mut lines = BufReader::with_capacity(128 * 1024, file);
            let mut line = String::new();
            while lines.read_line(&mut line).map_err(|error| at(&path, &error))? > 0 {
                take_in(&mut runs, line.trim_end(), &needle, &writer, number);
                line.clear();
            }
        }
    }
    let Some((digest, run)) = runs.into_iter().max_by_key(|(_, run)| run.began) else {
        return Ok(CommandOutcomeReport { state: OutcomeState::Unknown, task: None, finished_at: None, answer: None });
    };
    let text = match &run.answer {
        Some((writer, place)) => segment::answer_at(folder, writer, *place, digest)?,
        None => None,
    };
    let finished_at = run.ended_at.and_then(|at| Timestamp::from_microsecond(at).ok());
    Ok(CommandOutcomeReport {
        state: if run.is_over { OutcomeState::Done } else { OutcomeState::Running },
        task: Some(run.task),
        finished_at: finished_at.map(|at| format!("{at:.6}")),
        answer: text.as_deref().and_then(Answer::read).and_then(|answer| shown(&answer.outcome)),
    })
}

/// Takes in one line. A line that tells of another command says nothing, and most do: they are not parsed.
fn take_in(runs: &mut HashMap<Digest, FoundRun>, line: &str, needle: &str, writer: &str, number: u64) {
    let is_start = line.starts_with("{\"start\":") && line.contains(needle);
    if !is_start && runs.is_empty() {
        return;
    }
    match Record::read(line.as_bytes()) {
        Some(Record::Started { digest, at, .. }) if is_start => {
            let task = serde_json::from_str::<Value>(line).ok();
            let task = task.as_ref().and_then(|line| line["task"].as_str()).unwrap_or_default().to_owned();
            let run = FoundRun { began: at, task, ended_at: None, is_over: false, answer: None };
            if runs.get(&digest).is_none_or(|known| known.began <= at) {
                runs.insert(digest, run);
            }
        }
        Some(Record::Finished { digest, began, stands: Some((offset, length)), how }) => {
            if let Some(run) = runs.get_mut(&digest)
                && began >= run.began
            {
                run.is_over = true;
                run.answer = Some((writer.to_owned(), AnswerPlace { segment: number, offset, length, in_line: false }));
                if how == Finish::Ran {
                    run.ended_at = time_of(line);
                }
            }
        }
        Some(Record::Ended { digest }) => {
            if let Some(run) = runs.get_mut(&digest)
                && !run.is_over
            {
                (run.is_over, run.ended_at) = (true, time_of(line));
            }
        }
        _ => {}
    }
}

/// Returns the time that a line tells; the earlier version told none.
fn time_of(line: &str) -> Option<i64> {
    serde_json::from_str::<Value>(line).ok()?["at"].as_i64()
}

/// Writes an outcome as Celery keeps results.
fn shown(outcome: &Outcome) -> Option<Value> {
    let (status, text) = match outcome {
        Outcome::Success(result) => ("SUCCESS", result.clone()),
        Outcome::Failure(exception) => {
            let mut text = String::new();
            exception.write_json(&mut text);
            ("FAILURE", text)
        }
    };
    let result: Value = serde_json::from_str(&text).ok()?;
    Some(json!({"status": status, "result": result}))
}

#[cfg(test)]
mod tests {
    use super::super::Identity;
    use super::super::Journal;
    use super::*;
    use crate::celery::error::Exception;
    use crate::celery::message::{Headers, Message};
    use crate::worker::WallClock;

    fn identity(id: &str, body: &str) -> Identity {
        let mut headers = Headers::default();
        headers.set("id", id.into());
        headers.set("task", "filestorage.store".into());
        Identity::of(&Message { headers, body: body.to_owned().into(), ..Message::default() }, false)
    }

    fn answer(outcome: Outcome) -> String {
        Answer { outcome, event: None, more: Vec::new() }.write().unwrap()
    }

    #[test]
    fn the_newest_command_under_an_id_is_found_in_any_journal() {
        let folder = tempfile::tempdir().unwrap();
        let open = || Journal::open(folder.path(), "w@h", 1 << 20, WallClock::default()).unwrap();
        let (mut own, mut sibling) = (open(), open());
        let unknown = search(folder.path(), "a").unwrap();
        assert_eq!((unknown.state, unknown.task), (OutcomeState::Unknown, None));
        let (first, second, read) = (identity("a", "1"), identity("a", "2"), identity("r\"", "3"));
        own.started(&first, false);
        own.finished(first.digest, &answer(Outcome::Success("{\"key\":\"k\"}".to_owned())));
        own.started(&read, false);
        own.ended(read.digest);
        own.commit().unwrap();
        let found = search(folder.path(), "a").unwrap();
        assert_eq!(found.state, OutcomeState::Done);
        assert_eq!(found.answer, Some(json!({"status": "SUCCESS", "result": {"key": "k"}})));
        assert_eq!(found.task.as_deref(), Some("filestorage.store"));
        assert!(found.finished_at.is_some_and(|at| at.ends_with('Z')));
        let found = search(folder.path(), "r\"").unwrap();
        assert_eq!((found.state, found.answer), (OutcomeState::Done, None));
        assert!(found.finished_at.is_some());
        // Microseconds tell which is newer.
        std::thread::sleep(std::time::Duration::from_millis(2));
        sibling.started(&second, false);
        sibling.commit().unwrap();
        assert_eq!(search(folder.path(), "a").unwrap().state, OutcomeState::Running);
        sibling.finished(second.digest, &answer(Outcome::Failure(Exception::value_error("no"))));
        sibling.settled(second.digest);
        sibling.commit().unwrap();
        let found = search(folder.path(), "a").unwrap();
        assert_eq!(found.answer.unwrap()["result"]["exc_type"], "ValueError");
        assert_eq!(search(folder.path(), "").unwrap().state, OutcomeState::Unknown);
        assert_eq!(search(folder.path(), "r").unwrap().state, OutcomeState::Unknown);
    }
}
