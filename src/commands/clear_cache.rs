//! The task `filestorage.clear_cache`: empties the caches of all workers.

use async_trait::async_trait;

use super::{
    Arguments, CallSignature, Command, CommandError, Context, Definition, Engine, Facts, Finished, KeyUse, schemas,
};

pub(super) static DEFINITION: Definition = Definition {
    task: "filestorage.clear_cache",
    operation: None,
    signature: CallSignature { function: "clear_cache", required: &[], optional: &[], keyword_only: &[] },
    less: "nothing",
    walks: false,
    result: schemas::of::<Dropped>,
    parse,
};

/// The number of entries that the worker which ran the task dropped from its own cache.
///
/// All other workers drop theirs as well, which are not counted. The number is 0 without a cache.
#[derive(Debug, serde::Serialize, schemars::JsonSchema)]
struct Dropped(u64);

#[derive(Debug)]
struct ClearCache;

#[allow(clippy::unnecessary_wraps)] // All parsers have one type.
fn parse(_arguments: Arguments) -> Result<Box<dyn Command>, CommandError> {
    Ok(Box::new(ClearCache))
}

#[async_trait]
impl Command for ClearCache {
    fn keys(&self) -> &[KeyUse] {
        &[]
    }

    /// Returns `true`, because a second run would return another number.
    fn writes(&self) -> bool {
        true
    }

    async fn run(self: Box<Self>, engine: &Engine, _context: Context) -> Finished {
        let dropped = engine.clear_cache().await;
        Finished { result: super::json(&Dropped(dropped)), facts: vec![Facts::of(None, engine)], held: None }
    }
}
