//! `filestorage.exists`.

use async_trait::async_trait;

use super::{
    Arguments, Command, CommandError, Context, Definition, Engine, Facts, Finished, KEY, Key, Signature, schemas,
};

pub(super) static DEFINITION: Definition = Definition {
    task: "filestorage.exists",
    operation: Some("exists"),
    signature: Signature { function: "exists", required: &[KEY], optional: &[], keyword_only: &[] },
    less: "nothing",
    walks: false,
    result: schemas::of::<bool>,
    parse,
};

#[derive(Debug)]
struct Exists {
    key: Key,
}

fn parse(mut arguments: Arguments) -> Result<Box<dyn Command>, CommandError> {
    Ok(Box::new(Exists { key: super::key(&mut arguments)? }))
}

#[async_trait]
impl Command for Exists {
    fn key(&self) -> Option<&Key> {
        Some(&self.key)
    }

    fn writes(&self) -> bool {
        false
    }

    async fn run(self: Box<Self>, engine: &Engine, _context: Context) -> Finished {
        let result = engine.exists(&self.key).await;
        let result = result.map(|exists| exists.to_string()).map_err(CommandError::from);
        Finished { result, facts: Facts::of(Some(&self.key), engine), held: None }
    }
}
