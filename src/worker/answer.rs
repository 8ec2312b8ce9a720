//! What the journal keeps of a finished write or delete: enough to answer it again.

use serde::{Deserialize, Deserializer, Serialize};
use serde_json::value::RawValue;

use super::event::EventData;
use crate::celery::error::Exception;
use crate::json::{self, Json};

/// How a command ended, for its caller.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) enum Outcome {
    /// With this result, as JSON text.
    Success(String),
    /// With this exception.
    Failure(Exception),
}

/// An outcome and the event that tells of it.
#[derive(Clone, Debug)]
pub(super) struct Answer {
    pub(super) outcome: Outcome,
    pub(super) event: Option<EventData>,
}

#[derive(Serialize, Deserialize)]
struct Kept {
    #[serde(default, deserialize_with = "given", skip_serializing_if = "Option::is_none")]
    result: Option<Box<RawValue>>,
    #[serde(skip_serializing_if = "Option::is_none")]
    exception: Option<KeptException>,
    event: Option<EventData>,
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

impl Answer {
    /// Writes the answer as one line of JSON; `None` for a result that is not plain JSON, which no write returns.
    pub(super) fn write(&self) -> Option<String> {
        let raw = |text: String| RawValue::from_string(text).ok();
        let kept = match &self.outcome {
            Outcome::Success(result) => {
                Kept { result: Some(raw(result.clone())?), exception: None, event: self.event.clone() }
            }
            Outcome::Failure(exception) => Kept {
                result: None,
                exception: Some(KeptException {
                    module: exception.exc_module().to_owned(),
                    name: exception.exc_type().to_owned(),
                    args: raw(Json::Array(exception.args().to_vec()).compact())?,
                }),
                event: self.event.clone(),
            },
        };
        serde_json::to_string(&kept).ok()
    }

    /// Reads an answer back; `None` when it is not one.
    pub(super) fn read(text: &str) -> Option<Self> {
        let kept: Kept = serde_json::from_str(text).ok()?;
        let outcome = match (kept.result, kept.exception) {
            (Some(result), None) => Outcome::Success(result.get().to_owned()),
            (None, Some(kept)) => match json::parse(kept.args.get().as_bytes(), json::ParseLimits::default()).ok()? {
                Json::Array(args) => Outcome::Failure(Exception::custom(kept.module, kept.name, args)),
                _ => return None,
            },
            _ => return None,
        };
        Some(Self { outcome, event: kept.event })
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
            let text = Answer { outcome: outcome.clone(), event: None }.write().unwrap();
            assert!(!text.contains('\n'));
            assert_eq!(Answer::read(&text).unwrap().outcome, outcome);
        }
        for text in ["", "{}", "{\"result\":1,\"exception\":{}}", "[]"] {
            assert!(Answer::read(text).is_none(), "{text}");
        }
    }
}
