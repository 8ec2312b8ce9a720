//! The task `filestorage.verify`: reads all bytes of an object and compares them with their checksums.

use async_trait::async_trait;

use super::{
    Arguments, CallSignature, Command, CommandError, Context, Definition, Engine, Facts, Finished, KEY, KeyUse, schemas,
};
use crate::storage::{Error, ErrorKind, Operation, Verification};

pub(super) static DEFINITION: Definition = Definition {
    task: "filestorage.verify",
    operation: Some("verify"),
    signature: CallSignature { function: "verify", required: &[KEY], optional: &[], keyword_only: &[] },
    less: "nothing",
    walks: true,
    result: schemas::of::<Verification>,
    parse,
};

#[derive(Debug)]
struct Verify {
    target: KeyUse,
}

fn parse(mut arguments: Arguments) -> Result<Box<dyn Command>, CommandError> {
    Ok(Box::new(Verify { target: KeyUse::read(super::key(&mut arguments)?) }))
}

#[async_trait]
impl Command for Verify {
    fn keys(&self) -> &[KeyUse] {
        std::slice::from_ref(&self.target)
    }

    async fn run(self: Box<Self>, engine: &Engine, _context: Context) -> Finished {
        let key = &self.target.key;
        let verified = engine.verify(key).await.and_then(|found| {
            let why = "the key has no object";
            found.ok_or_else(|| Error::new(ErrorKind::Missing, Operation::Retrieve, Some(key), why))
        });
        Finished {
            result: verified.map_err(CommandError::from).and_then(|verification| super::json(&verification)),
            facts: vec![Facts::of(Some(key), engine)],
            held: None,
        }
    }
}
