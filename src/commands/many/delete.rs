//! The task `filestorage.delete_many`: removes the objects of many keys.

use async_trait::async_trait;

use super::{Items, KEYS, entry, finished, keys};
use crate::commands::{
    Arguments, CallSignature, Command, CommandError, Context, Definition, Engine, Facts, Finished, KeyUse,
};
use crate::storage::DeleteRequest;

pub(in crate::commands) static DEFINITION: Definition = Definition {
    task: "filestorage.delete_many",
    operation: Some("delete"),
    signature: CallSignature { function: "delete_many", required: &[KEYS], optional: &[], keyword_only: &[] },
    less: "fewer keys",
    walks: true,
    result: entry::schema_of::<bool>,
    parse,
};

#[derive(Debug)]
struct DeleteMany(Items<()>);

fn parse(mut arguments: Arguments) -> Result<Box<dyn Command>, CommandError> {
    Ok(Box::new(DeleteMany(keys(&mut arguments, KeyUse::write)?)))
}

#[async_trait]
impl Command for DeleteMany {
    fn keys(&self) -> &[KeyUse] {
        &self.0.keys
    }

    async fn run(self: Box<Self>, engine: &Engine, context: Context) -> Finished {
        let context = &context;
        let delete = async |_, key, ()| {
            let request = DeleteRequest {
                generation: None,
                redelivered: context.redelivered,
                commit_guard: context.commit_guard.clone(),
            };
            let result = engine.delete(&key, request).await;
            let mut facts = Facts::of(Some(&key), engine);
            facts.note_removal(matches!(result, Ok(true)));
            (result.map(|_| "true".to_owned()).map_err(CommandError::from), facts)
        };
        finished(self.0.run(delete).await)
    }
}
