//! The task `filestorage.get_stats`: returns the counters of a worker.

use async_trait::async_trait;

use super::{
    Arguments, CallSignature, Command, CommandError, Context, Definition, Engine, Facts, Finished, KeyUse, schemas,
};

pub(super) static DEFINITION: Definition = Definition {
    task: "filestorage.get_stats",
    operation: None,
    signature: CallSignature { function: "get_stats", required: &[], optional: &[], keyword_only: &[] },
    less: "nothing",
    walks: false,
    result: schemas::of::<crate::storage::Stats>,
    parse,
};

#[derive(Debug)]
struct GetStats;

#[allow(clippy::unnecessary_wraps)] // All parsers have one type.
fn parse(_arguments: Arguments) -> Result<Box<dyn Command>, CommandError> {
    Ok(Box::new(GetStats))
}

#[async_trait]
impl Command for GetStats {
    fn keys(&self) -> &[KeyUse] {
        &[]
    }

    async fn run(self: Box<Self>, engine: &Engine, _context: Context) -> Finished {
        Finished { result: super::json(&engine.stats()), facts: vec![Facts::of(None, engine)], held: None }
    }
}
