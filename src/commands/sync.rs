//! The task `filestorage.sync`: sends pending writes and deletes to the bucket.

use async_trait::async_trait;

use super::{
    Arguments, CallSignature, Command, CommandError, Context, Definition, Engine, Facts, Finished, KeyUse, schemas,
};

pub(super) static DEFINITION: Definition = Definition {
    task: "filestorage.sync",
    operation: Some("sync"),
    signature: CallSignature { function: "sync", required: &[], optional: &[], keyword_only: &[] },
    less: "nothing",
    walks: true,
    result: schemas::of::<Sent>,
    parse,
};

/// The number of pending writes and deletes on this machine that the bucket has now confirmed.
///
/// The number is 0 without a fallback. Quarantined and refused entries do not count; `filestorage doctor` lists them.
#[derive(Debug, serde::Serialize, schemars::JsonSchema)]
struct Sent(u64);

#[derive(Debug)]
struct Sync;

#[allow(clippy::unnecessary_wraps)] // All parsers have one type.
fn parse(_arguments: Arguments) -> Result<Box<dyn Command>, CommandError> {
    Ok(Box::new(Sync))
}

#[async_trait]
impl Command for Sync {
    fn keys(&self) -> &[KeyUse] {
        &[]
    }

    /// Returns `true`, because a second run would return another number.
    fn writes(&self) -> bool {
        true
    }

    async fn run(self: Box<Self>, engine: &Engine, _context: Context) -> Finished {
        let result = match engine.fallback() {
            None => Ok(Sent(0)),
            Some(fallback) => {
                fallback.sync(&()).await.map(|report| Sent(report.sent + report.deleted + report.already_there))
            }
        };
        let result = result.map_err(CommandError::from).and_then(|sent| super::json(&sent));
        Finished { result, facts: vec![Facts::of(None, engine)], held: None }
    }
}
