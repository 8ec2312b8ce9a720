//! The task `filestorage.list_keys`: lists keys in byte order.

use async_trait::async_trait;

use super::arguments::{Parameter, ParameterKind};
use super::{
    Arguments, CallSignature, Command, CommandError, Context, Definition, Engine, Facts, Finished, Key, KeyUse, schemas,
};
use crate::storage::ListRequest;

pub(super) static DEFINITION: Definition = Definition {
    task: "filestorage.list_keys",
    operation: Some("list_keys"),
    signature: CallSignature {
        function: "list_keys",
        required: &[],
        optional: &[
            Parameter::new("prefix", ParameterKind::Text, "Returns only keys that begin with this text."),
            Parameter::new("limit", ParameterKind::Count, "The largest number of keys to return."),
            Parameter::new(
                "start_after",
                ParameterKind::Text,
                "Returns only keys that come after this text in byte order.",
            ),
        ],
        keyword_only: &[],
    },
    less: "fewer keys with limit, and the next ones with start_after",
    walks: true,
    result: schemas::of::<Vec<String>>,
    parse,
};

#[derive(Debug)]
struct ListKeys {
    request: ListRequest,
}

fn parse(mut arguments: Arguments) -> Result<Box<dyn Command>, CommandError> {
    let limit = arguments.optional_count("limit")?;
    let limit = limit.map(|limit| usize::try_from(limit).unwrap_or(usize::MAX));
    let prefix = arguments.optional_text("prefix")?;
    let start_after = arguments.optional_text("start_after")?;
    Ok(Box::new(ListKeys { request: ListRequest { prefix, start_after, limit } }))
}

#[async_trait]
impl Command for ListKeys {
    fn keys(&self) -> &[KeyUse] {
        &[]
    }

    async fn run(self: Box<Self>, engine: &Engine, _context: Context) -> Finished {
        let result = engine.list(self.request).await.map_err(CommandError::from).and_then(|keys| {
            let keys: Vec<&str> = keys.iter().map(Key::as_str).collect();
            super::json(&keys)
        });
        Finished { result, facts: vec![Facts::of(None, engine)], held: None }
    }
}
