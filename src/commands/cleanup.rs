//! The task `filestorage.cleanup`: removes objects that have expired, or that are old.

use std::time::Duration;

use async_trait::async_trait;

use super::arguments::{Parameter, ParameterKind};
use super::{
    Arguments, CallSignature, Command, CommandError, Context, Definition, Engine, Facts, Finished, Key, KeyUse, schemas,
};
use crate::json::Json;
use crate::storage::{CleanupReport, CleanupRequest};

pub(super) static DEFINITION: Definition = Definition {
    task: "filestorage.cleanup",
    operation: Some("cleanup"),
    signature: CallSignature {
        function: "cleanup",
        required: &[],
        optional: &[
            Parameter::new(
                "prefix",
                ParameterKind::Text,
                "Removes only objects whose keys begin with this text. The default is all expired objects.",
            ),
            Parameter::new(
                "older_than_seconds",
                ParameterKind::Age,
                "Also removes objects that this program stored so many seconds ago or earlier. Needs `prefix`, of which `\"\"` means all.",
            ),
            Parameter::new(
                "expired",
                ParameterKind::Flag,
                "Whether objects that have expired are removed; true by default.",
            ),
            Parameter::new("dry_run", ParameterKind::Flag, "Removes nothing and returns what would be removed."),
        ],
        keyword_only: &[],
    },
    less: "a longer prefix",
    walks: true,
    result: schemas::of::<Removed>,
    parse,
};

/// What was removed, or in a dry run would be.
#[derive(Debug, serde::Serialize, schemars::JsonSchema)]
struct Removed {
    /// The number of objects.
    deleted: u64,
    /// Their stored bytes, after compression and encryption.
    bytes: u64,
    /// The first 1,000 of their keys.
    #[schemars(with = "Vec<String>", length(max = 1000))]
    keys: Vec<String>,
}

#[derive(Debug)]
struct Cleanup {
    request: CleanupRequest,
}

/// The largest age: a thousand years.
const MAX_AGE_SECONDS: f64 = 1000.0 * 365.25 * 86_400.0;

fn parse(mut arguments: Arguments) -> Result<Box<dyn Command>, CommandError> {
    let prefix = arguments.optional_text("prefix")?;
    let older_than = age(&mut arguments)?;
    let expired = match arguments.take("expired") {
        Json::Null => true,
        Json::Bool(expired) => expired,
        other => return Err(arguments.wrong_type("expired", "bool", &other)),
    };
    let dry_run = arguments.flag("dry_run")?;
    if older_than.is_some() && prefix.is_none() {
        let why = "older_than_seconds needs a prefix; give prefix=\"\" if all objects of this age are to be removed";
        return Err(CommandError::value_error(why));
    }
    let request = CleanupRequest { prefix, expired, older_than, dry_run, ..CleanupRequest::default() };
    Ok(Box::new(Cleanup { request }))
}

fn age(arguments: &mut Arguments) -> Result<Option<Duration>, CommandError> {
    match arguments.take("older_than_seconds") {
        Json::Null => Ok(None),
        seconds @ Json::Number(_) => {
            let seconds = seconds.as_f64().filter(|seconds| (0.0..=MAX_AGE_SECONDS).contains(seconds));
            let why = || format!("older_than_seconds must be at least 0 and at most {MAX_AGE_SECONDS}");
            seconds
                .map(|seconds| Some(Duration::from_secs_f64(seconds)))
                .ok_or_else(|| CommandError::value_error(why()))
        }
        other => Err(arguments.wrong_type("older_than_seconds", "int, float or None", &other)),
    }
}

#[async_trait]
impl Command for Cleanup {
    fn keys(&self) -> &[KeyUse] {
        &[]
    }

    /// Returns `true` unless nothing is removed, because a second run would return another number.
    fn writes(&self) -> bool {
        !self.request.dry_run
    }

    async fn run(self: Box<Self>, engine: &Engine, context: Context) -> Finished {
        let request = CleanupRequest { commit_guard: context.commit_guard, ..self.request };
        let outcome = match engine.cleanup(request, &()).await {
            Ok(CleanupReport { first_failure: Some(error), deleted, failed, .. }) => {
                tracing::warn!(failed, deleted, %error, "objects could not be removed; the error is that of the first");
                Err(error.noting(&format!("{failed} objects could not be removed, {deleted} others were")))
            }
            outcome => outcome,
        };
        let result = outcome.map_err(CommandError::from).and_then(|report| {
            let keys = report.keys.iter().map(|key| Key::as_str(key).to_owned()).collect();
            super::json(&Removed { deleted: report.deleted, bytes: report.bytes, keys })
        });
        Finished { result, facts: vec![Facts::of(None, engine)], held: None }
    }
}
