//! The task `filestorage.get_storage_usage`: counts objects and bytes.

use async_trait::async_trait;

use super::arguments::{Parameter, ParameterKind};
use super::{
    Arguments, CallSignature, Command, CommandError, Context, Definition, Engine, Facts, Finished, KeyUse, schemas,
};

pub(super) static DEFINITION: Definition = Definition {
    task: "filestorage.get_storage_usage",
    operation: Some("get_storage_usage"),
    signature: CallSignature {
        function: "get_storage_usage",
        required: &[],
        optional: &[Parameter::new(
            "prefix",
            ParameterKind::Text,
            "Counts only objects whose keys begin with this text.",
        )],
        keyword_only: &[],
    },
    less: "nothing",
    walks: true,
    result: schemas::of::<crate::storage::Usage>,
    parse,
};

#[derive(Debug)]
struct GetStorageUsage {
    prefix: Option<String>,
}

fn parse(mut arguments: Arguments) -> Result<Box<dyn Command>, CommandError> {
    Ok(Box::new(GetStorageUsage { prefix: arguments.optional_text("prefix")? }))
}

#[async_trait]
impl Command for GetStorageUsage {
    fn keys(&self) -> &[KeyUse] {
        &[]
    }

    async fn run(self: Box<Self>, engine: &Engine, _context: Context) -> Finished {
        let usage = engine.usage(self.prefix.as_deref().unwrap_or_default()).await;
        let result = usage.map_err(CommandError::from).and_then(|usage| super::json(&usage));
        Finished { result, facts: vec![Facts::of(None, engine)], held: None }
    }
}
