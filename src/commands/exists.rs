//! The task `filestorage.exists`: tells whether a key has an object.

use async_trait::async_trait;

use super::{
    Arguments, CallSignature, Command, CommandError, Context, Definition, Engine, Facts, Finished, KEY, KeyUse, schemas,
};

pub(super) static DEFINITION: Definition = Definition {
    task: "filestorage.exists",
    operation: Some("exists"),
    signature: CallSignature { function: "exists", required: &[KEY], optional: &[], keyword_only: &[] },
    less: "nothing",
    walks: false,
    result: schemas::of::<bool>,
    parse,
};

#[derive(Debug)]
struct Exists {
    target: KeyUse,
}

fn parse(mut arguments: Arguments) -> Result<Box<dyn Command>, CommandError> {
    Ok(Box::new(Exists { target: KeyUse::read(super::key(&mut arguments)?) }))
}

#[async_trait]
impl Command for Exists {
    fn keys(&self) -> &[KeyUse] {
        std::slice::from_ref(&self.target)
    }

    async fn run(self: Box<Self>, engine: &Engine, _context: Context) -> Finished {
        let result = engine.exists(&self.target.key).await;
        let result = result.map(|exists| exists.to_string()).map_err(CommandError::from);
        Finished { result, facts: vec![Facts::of(Some(&self.target.key), engine)], held: None }
    }
}
