//! The task `filestorage.delete`: removes an object.

use async_trait::async_trait;

use super::arguments::{Parameter, ParameterKind};
use super::{
    Arguments, CallSignature, Command, CommandError, Context, Definition, Engine, Facts, Finished, KEY, KeyUse, schemas,
};
use crate::storage::DeleteRequest;

pub(super) static DEFINITION: Definition = Definition {
    task: "filestorage.delete",
    operation: Some("delete"),
    signature: CallSignature {
        function: "delete",
        required: &[KEY],
        optional: &[],
        keyword_only: &[Parameter::new(
            "if_generation",
            ParameterKind::Text,
            "Deletes the object only while it has this generation.",
        )],
    },
    less: "nothing",
    walks: false,
    result: schemas::of::<bool>,
    parse,
};

#[derive(Debug)]
struct Delete {
    target: KeyUse,
    generation: Option<String>,
}

fn parse(mut arguments: Arguments) -> Result<Box<dyn Command>, CommandError> {
    let target = KeyUse::write(super::key(&mut arguments)?);
    let generation = arguments.optional_text("if_generation")?;
    Ok(Box::new(Delete { target, generation }))
}

#[async_trait]
impl Command for Delete {
    fn keys(&self) -> &[KeyUse] {
        std::slice::from_ref(&self.target)
    }

    async fn run(self: Box<Self>, engine: &Engine, context: Context) -> Finished {
        let options = DeleteRequest {
            generation: self.generation,
            redelivered: context.redelivered,
            commit_guard: context.commit_guard,
        };
        let result = engine.delete(&self.target.key, options).await;
        let mut facts = Facts::of(Some(&self.target.key), engine);
        facts.note_removal(matches!(result, Ok(true)));
        Finished {
            result: result.map(|_| "true".to_owned()).map_err(CommandError::from),
            facts: vec![facts],
            held: None,
        }
    }
}
