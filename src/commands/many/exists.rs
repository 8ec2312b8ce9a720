//! The task `filestorage.exists_many`: tells of each key whether it has an object.

use async_trait::async_trait;

use super::{Items, KEYS, entry, finished, keys};
use crate::commands::{
    Arguments, CallSignature, Command, CommandError, Context, Definition, Engine, Facts, Finished, KeyUse,
};

pub(in crate::commands) static DEFINITION: Definition = Definition {
    task: "filestorage.exists_many",
    operation: Some("exists"),
    signature: CallSignature { function: "exists_many", required: &[KEYS], optional: &[], keyword_only: &[] },
    less: "fewer keys",
    walks: true,
    result: entry::schema_of::<bool>,
    parse,
};

#[derive(Debug)]
struct ExistsMany(Items<()>);

fn parse(mut arguments: Arguments) -> Result<Box<dyn Command>, CommandError> {
    Ok(Box::new(ExistsMany(keys(&mut arguments, KeyUse::read)?)))
}

#[async_trait]
impl Command for ExistsMany {
    fn keys(&self) -> &[KeyUse] {
        &self.0.keys
    }

    async fn run(self: Box<Self>, engine: &Engine, _context: Context) -> Finished {
        let exists = async |_, key, ()| {
            let result = engine.exists(&key).await;
            let facts = Facts::of(Some(&key), engine);
            (result.map(|exists| exists.to_string()).map_err(CommandError::from), facts)
        };
        finished(self.0.run(exists).await)
    }
}
