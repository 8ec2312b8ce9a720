//! The task `filestorage.stat`: returns the receipt and the metadata of an object.

use async_trait::async_trait;

use super::{
    Arguments, CallSignature, Command, CommandError, Context, Definition, Engine, Facts, Finished, GENERATION, KEY,
    KeyUse, schemas,
};

pub(super) static DEFINITION: Definition = Definition {
    task: "filestorage.stat",
    operation: Some("stat"),
    signature: CallSignature { function: "stat", required: &[KEY], optional: &[], keyword_only: &[GENERATION] },
    less: "nothing",
    walks: false,
    result: schemas::of::<Option<crate::storage::Stat>>,
    parse,
};

#[derive(Debug)]
struct Stat {
    target: KeyUse,
    generation: Option<String>,
}

fn parse(mut arguments: Arguments) -> Result<Box<dyn Command>, CommandError> {
    let target = KeyUse::read(super::key(&mut arguments)?);
    Ok(Box::new(Stat { target, generation: arguments.optional_text("generation")? }))
}

#[async_trait]
impl Command for Stat {
    fn keys(&self) -> &[KeyUse] {
        std::slice::from_ref(&self.target)
    }

    async fn run(self: Box<Self>, engine: &Engine, _context: Context) -> Finished {
        let key = &self.target.key;
        let mut facts = Facts::of(Some(key), engine);
        let result = match &self.generation {
            Some(generation) => engine.stat_generation(key, generation).await,
            None => engine.stat(key).await,
        };
        if let Ok(Some(stat)) = &result {
            facts.size = stat.receipt.size;
            facts.stored_size = Some(stat.receipt.stored_size);
            facts.compression.clone_from(&stat.receipt.compression);
            facts.pending_sync = stat.receipt.pending_sync;
        }
        Finished {
            result: result.map_err(CommandError::from).and_then(|stat| super::json(&stat)),
            facts: vec![facts],
            held: None,
        }
    }
}
