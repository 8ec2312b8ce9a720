//! What became of a command, by its id: the lines of all journals in the folder are searched.

use std::collections::{BTreeMap, HashMap};
use std::fs::{self, File};
use std::io::{self, BufRead as _, BufReader};
use std::path::{Path, PathBuf};

use async_trait::async_trait;
use jiff::Timestamp;
use serde_json::{Value, json};

use super::identity::Digest;
use super::record::Record;
use super::{at, segment};
use crate::commands::{CommandOutcomeReport, OutcomeState, Outcomes};
use crate::worker::execution::answer::{Answer, KeptCommand, Outcome};

/// Searches the journals of a folder.
#[derive(Debug)]
pub(in crate::worker) struct JournalOutcomes {
    folder: PathBuf,
}

/// The newest that is known of the commands under an id.
#[derive(Debug, Default)]
struct Newest {
    /// Runs by their entries: when it began, the task, whether it is over, and when it ended.
    runs: HashMap<Digest, FoundRun>,
    /// The newest answer: when it was given, and its text.
    answer: Option<(KeptCommand, String)>,
}

#[derive(Debug)]
struct FoundRun {
    began: i64,
    task: String,
    is_over: bool,
    ended_at: Option<i64>,
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
    let needle = format!("\"id\":{id},");
    let mut writers: BTreeMap<String, Vec<u64>> = BTreeMap::new();
    for entry in fs::read_dir(folder).map_err(|error| at(folder, &error))? {
        let name = entry?.file_name();
        if let Some((writer, number)) = name.to_str().and_then(segment::parse_name) {
            writers.entry(writer.to_owned()).or_default().push(number);
        }
    }
    let mut newest = Newest::default();
    for (writer, mut numbers) in writers {
        numbers.sort_unstable();
        for number in numbers {
            each_line(&segment::path(folder, &writer, number), |line| newest.take_line(line, &needle))?;
            each_line(&segment::answers_path(folder, &writer, number), |line| {
                newest.take_answer(line, &needle, task_id)
            })?;
        }
    }
    Ok(newest.report())
}

/// Goes through the lines of a file; one that is gone meanwhile has none.
fn each_line(path: &Path, mut take: impl FnMut(&str)) -> io::Result<()> {
    let file = match File::open(path) {
        Ok(file) => file,
        Err(error) if error.kind() == io::ErrorKind::NotFound => return Ok(()),
        Err(error) => return Err(at(path, &error)),
    };
    let mut lines = BufReader::with_capacity(128 * 1024, file);
    let mut line = Vec::new();
    while lines.read_until(b'\n', &mut line).map_err(|error| at(path, &error))? > 0 {
        // What a power cut left says nothing.
        if let Ok(text) = std::str::from_utf8(&line) {
            take(text.trim_end());
        }
        line.clear();
    }
    Ok(())
}

impl Newest {
    /// Takes in one line. A line that tells of another command says nothing, and most do: they are not parsed.
    fn take_line(&mut self, line: &str, needle: &str) {
        let is_start = line.starts_with("{\"start\":") && line.contains(needle);
        if !is_start && self.runs.is_empty() {
            return;
        }
        match Record::read(line.as_bytes()) {
            Some(Record::Started { digest, at, .. }) if is_start => {
                let task = serde_json::from_str::<Value>(line).ok();
                let task = task.as_ref().and_then(|line| line["task"].as_str()).unwrap_or_default().to_owned();
                if self.runs.get(&digest).is_none_or(|known| known.began <= at) {
                    self.runs.insert(digest, FoundRun { began: at, task, is_over: false, ended_at: None });
                }
            }
            Some(Record::Finished { digest, .. } | Record::Ended { digest }) => {
                if let Some(run) = self.runs.get_mut(&digest)
                    && !run.is_over
                {
                    (run.is_over, run.ended_at) = (true, time_of(line));
                }
            }
            _ => {}
        }
    }

    /// Takes in one line of a file of answers: a digest, and the answer.
    fn take_answer(&mut self, line: &str, needle: &str, task_id: &str) {
        if !line.contains(needle) {
            return;
        }
        if let Some((_, text)) = line.split_once(' ')
            && let Some(command) = KeptCommand::read(text).filter(|command| command.id == task_id)
            && self.answer.as_ref().is_none_or(|(known, _)| known.at <= command.at)
        {
            self.answer = Some((command, text.to_owned()));
        }
    }

    fn report(self) -> CommandOutcomeReport {
        let run = self.runs.into_values().max_by_key(|run| run.began);
        let instant = |at: i64| Timestamp::from_microsecond(at).ok().map(|at| format!("{at:.6}"));
        match (run, self.answer) {
            // Nothing ran since.
            (run, Some((command, text))) if run.as_ref().is_none_or(|run| run.began <= command.at) => {
                CommandOutcomeReport {
                    state: OutcomeState::Done,
                    task: Some(command.task),
                    finished_at: instant(command.at),
                    answer: Answer::read(&text).and_then(|answer| shown(&answer.outcome)),
                }
            }
            (Some(run), _) => CommandOutcomeReport {
                state: if run.is_over { OutcomeState::Done } else { OutcomeState::Running },
                task: Some(run.task),
                finished_at: run.ended_at.and_then(instant),
                answer: None,
            },
            (None, _) => {
                CommandOutcomeReport { state: OutcomeState::Unknown, task: None, finished_at: None, answer: None }
            }
        }
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

    fn answer(id: &str, outcome: Outcome) -> String {
        let at = WallClock::default().now().as_microsecond();
        let command = KeptCommand { id: id.to_owned(), task: "filestorage.store".to_owned(), at };
        Answer { outcome, event: None, more: Vec::new() }.write(Some(command)).unwrap()
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
        std::thread::sleep(std::time::Duration::from_millis(2));
        own.finished(first.digest, &answer("a", Outcome::Success("{\"key\":\"k\"}".to_owned())));
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
        std::thread::sleep(std::time::Duration::from_millis(2));
        sibling.finished(second.digest, &answer("a", Outcome::Failure(Exception::value_error("no"))));
        sibling.settled(second.digest);
        sibling.commit().unwrap();
        let found = search(folder.path(), "a").unwrap();
        assert_eq!(found.answer.unwrap()["result"]["exc_type"], "ValueError");
        // Whoever takes over from a dead worker keeps its answers.
        drop(sibling);
        drop(own);
        let _next = open();
        let found = search(folder.path(), "a").unwrap();
        assert_eq!(found.answer.unwrap()["result"]["exc_type"], "ValueError");
        assert_eq!(search(folder.path(), "").unwrap().state, OutcomeState::Unknown);
        assert_eq!(search(folder.path(), "r").unwrap().state, OutcomeState::Unknown);
    }
}
