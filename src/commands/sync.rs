//! `filestorage.sync`.

use async_trait::async_trait;

use super::{Arguments, Command, CommandError, Context, Definition, Engine, Facts, Finished, Key, Signature, schemas};

pub(super) static DEFINITION: Definition = Definition {
    task: "filestorage.sync",
    operation: Some("sync"),
    signature: Signature { function: "sync", required: &[], optional: &[], keyword_only: &[] },
    less: "nothing",
    result: schemas::of::<u64>,
    parse,
};

#[derive(Debug)]
struct Sync;

#[allow(clippy::unnecessary_wraps)] // one type for every parser
fn parse(_arguments: Arguments) -> Result<Box<dyn Command>, CommandError> {
    Ok(Box::new(Sync))
}

#[async_trait]
impl Command for Sync {
    fn key(&self) -> Option<&Key> {
        None
    }

    /// What was sent is sent, and a second run would answer another number.
    fn writes(&self) -> bool {
        true
    }

    /// Answers how many writes and deletes have reached the bucket; without a fallback none ever waits.
    async fn run(self: Box<Self>, engine: &Engine, _context: Context) -> Finished {
        let result = match engine.fallback() {
            None => Ok(0),
            Some(fallback) => {
                fallback.sync(&()).await.map(|report| report.sent + report.deleted + report.already_there)
            }
        };
        let result = result.map(|sent| sent.to_string()).map_err(CommandError::from);
        Finished { result, facts: Facts::of(None, engine) }
    }
}
