//! The task `filestorage.get_health_status`: tells whether the storage can be used.

use async_trait::async_trait;

use super::{
    Arguments, CallSignature, Command, CommandError, Context, Definition, Engine, Facts, Finished, KeyUse, schemas,
};

pub(super) static DEFINITION: Definition = Definition {
    task: "filestorage.get_health_status",
    operation: None,
    signature: CallSignature { function: "get_health_status", required: &[], optional: &[], keyword_only: &[] },
    less: "nothing",
    walks: false,
    result: schemas::of::<crate::storage::Health>,
    parse,
};

#[derive(Debug)]
struct GetHealthStatus;

#[allow(clippy::unnecessary_wraps)] // All parsers have one type.
fn parse(_arguments: Arguments) -> Result<Box<dyn Command>, CommandError> {
    Ok(Box::new(GetHealthStatus))
}

#[async_trait]
impl Command for GetHealthStatus {
    fn keys(&self) -> &[KeyUse] {
        &[]
    }

    async fn run(self: Box<Self>, engine: &Engine, _context: Context) -> Finished {
        Finished { result: super::json(&engine.health().await), facts: vec![Facts::of(None, engine)], held: None }
    }
}
