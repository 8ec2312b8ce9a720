//! The answer of a command: its outcome and its events. The journal keeps the answers of writes and deletes (`Kept`).

use serde::{Deserialize, Deserializer, Serialize};
use serde_json::value::RawValue;

use crate::celery::error::Exception;
use crate::json::{self, Json};
use crate::worker::events::{EventData, More};

/// How a command ended, for its caller.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(in crate::worker) enum Outcome {
    /// With this result, as JSON text.
    Success(String),
    /// With this exception.
    Failure(Exception),
}

impl Outcome {
    /// Takes the result of a success out; that of a failure is empty.
    pub(in crate::worker) fn take_result(&mut self) -> String {
        match self {
            Self::Success(result) => std::mem::take(result),
            Self::Failure(_) => String::new(),
        }
    }
}

/// An outcome and the events that tell of it.
#[derive(Clone, Debug)]
pub(in crate::worker) struct Answer {
    pub(in crate::worker) outcome: Outcome,
    /// The first event.
    pub(in crate::worker) event: Option<EventData>,
    /// What the other events of a command of several keys tell instead of the first one's facts.
    pub(in crate::worker) more: Vec<More>,
}

/// How an answer stands in the journal. An earlier worker on the same folder reads it as well, without the events of further keys.
#[derive(Serialize, Deserialize)]
struct Kept {
    /// Which command it was given to, for whoever asks by the id. Named one by one, since a raw value cannot be read beside a flattened one.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    id: Option<String>,
    #[serde(default, skip_serializing_if = "Option::is_none")]
    task: Option<String>,
    #[serde(default, skip_serializing_if = "Option::is_none")]
    at: Option<i64>,
    #[serde(default, deserialize_with = "given", skip_serializing_if = "Option::is_none")]
    result: Option<Box<RawValue>>,
    #[serde(skip_serializing_if = "Option::is_none")]
    exception: Option<KeptException>,
    event: Option<EventData>,
    /// The first fact stands in the event, and so it is written as it was when a command had one key at most.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    more: Vec<More>,
}

/// Which command an answer was given to, and when.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(default)]
pub(in crate::worker) struct KeptCommand {
    /// Task id.
    pub(in crate::worker) id: String,
    /// Its name.
    pub(in crate::worker) task: String,
    /// When it ended, in Unix microseconds.
    pub(in crate::worker) at: i64,
}

#[derive(Serialize, Deserialize)]
struct KeptException {
    module: String,
    name: String,
    args: Box<RawValue>,
}

/// A result of `null` is a result.
fn given<'de, D: Deserializer<'de>>(deserializer: D) -> Result<Option<Box<RawValue>>, D::Error> {
    Box::<RawValue>::deserialize(deserializer).map(Some)
}

impl KeptCommand {
    /// Reads which command an answer was given to; `None` where the earlier version wrote it.
    pub(in crate::worker) fn read(text: &str) -> Option<Self> {
        serde_json::from_str(text).ok().filter(|command: &Self| command.at != 0)
    }
}

impl Answer {
    /// Writes the answer as one line of JSON; `None` for a result that is not plain JSON, which no write returns.
    pub(in crate::worker) fn write(&self, command: Option<KeptCommand>) -> Option<String> {
        let (id, task, at) = match command {
            Some(KeptCommand { id, task, at }) => (Some(id), Some(task), Some(at)),
            None => (None, None, None),
        };
        let raw = |text: String| RawValue::from_string(text).ok();
        let (result, exception) = match &self.outcome {
            Outcome::Success(result) => (Some(raw(result.clone())?), None),
            Outcome::Failure(exception) => {
                let kept = KeptException {
                    module: exception.exc_module().to_owned(),
                    name: exception.exc_type().to_owned(),
                    args: raw(Json::Array(exception.args().to_vec()).compact())?,
                };
                (None, Some(kept))
            }
        };
        let kept = Kept { id, task, at, result, exception, event: self.event.clone(), more: self.more.clone() };
        serde_json::to_string(&kept).ok()
    }

    /// Reads an answer back; `None` when it is not one.
    pub(in crate::worker) fn read(text: &str) -> Option<Self> {
        let kept: Kept = serde_json::from_str(text).ok()?;
        let outcome = match (kept.result, kept.exception) {
            (Some(result), None) => Outcome::Success(result.get().to_owned()),
            (None, Some(kept)) => match json::parse(kept.args.get().as_bytes(), json::ParseLimits::default()).ok()? {
                Json::Array(args) => Outcome::Failure(Exception::custom(kept.module, kept.name, args)),
                _ => return None,
            },
            _ => return None,
        };
        Some(Self { outcome, event: kept.event, more: kept.more })
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn answers_are_read_as_written() {
        for outcome in [
            Outcome::Success(r#"{"key":"é","size":3}"#.to_owned()),
            Outcome::Success("true".to_owned()),
            Outcome::Success("null".to_owned()),
            Outcome::Failure(Exception::os_error(28, "No space left on device", "a\"b")),
            Outcome::Failure(Exception::custom("filestorage.exceptions", "PreconditionFailed", vec!["x".into()])),
        ] {
            let command = KeptCommand { id: "i".to_owned(), task: "t".to_owned(), at: 7 };
            let text = Answer { outcome: outcome.clone(), event: None, more: Vec::new() }
                .write(Some(command.clone()))
                .unwrap();
            assert_eq!(KeptCommand::read(&text), Some(command));
            assert!(!text.contains('\n'));
            assert_eq!(Answer::read(&text).unwrap().outcome, outcome);
        }
        for text in ["", "{}", "{\"result\":1,\"exception\":{}}", "[]"] {
            assert!(Answer::read(text).is_none(), "{text}");
        }
    }
}
