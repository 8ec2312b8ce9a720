//! `filestorage.sync`.

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

/// How many entries, writes and deletes that had waited on this machine, the bucket has confirmed.
///
/// Without a fallback none ever waits. Quarantined and refused entries are not among them, see `filestorage doctor`.
#[derive(Debug, serde::Serialize, schemars::JsonSchema)]
struct Sent(u64);

#[derive(Debug)]
struct Sync;

#[allow(clippy::unnecessary_wraps)] // one type for every parser
fn parse(_arguments: Arguments) -> Result<Box<dyn Command>, CommandError> {
    Ok(Box::new(Sync))
}

#[async_trait]
impl Command for Sync {
    fn keys(&self) -> &[KeyUse] {
        &[]
    }

    /// What was sent is sent, and a second run would answer another number.
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
