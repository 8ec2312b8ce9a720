//! The task `filestorage.versions`: returns the receipts of an object's versions.

use async_trait::async_trait;

use super::arguments::{Parameter, ParameterKind};
use super::{
    Arguments, CallSignature, Command, CommandError, Context, Definition, Engine, Facts, Finished, KEY, KeyUse, schemas,
};
use crate::storage::KeptVersion;

pub(super) static DEFINITION: Definition = Definition {
    task: "filestorage.versions",
    operation: Some("versions"),
    signature: CallSignature {
        function: "versions",
        required: &[KEY],
        optional: &[Parameter::new("limit", ParameterKind::Count, "The largest number of versions to return.")],
        keyword_only: &[],
    },
    less: "fewer versions with limit",
    walks: true,
    result: schemas::of::<Vec<KeptVersion>>,
    parse,
};

#[derive(Debug)]
struct Versions {
    target: KeyUse,
    limit: Option<usize>,
}

fn parse(mut arguments: Arguments) -> Result<Box<dyn Command>, CommandError> {
    let target = KeyUse::read(super::key(&mut arguments)?);
    let limit = arguments.optional_count("limit")?.map(|limit| usize::try_from(limit).unwrap_or(usize::MAX));
    Ok(Box::new(Versions { target, limit }))
}

#[async_trait]
impl Command for Versions {
    fn keys(&self) -> &[KeyUse] {
        std::slice::from_ref(&self.target)
    }

    async fn run(self: Box<Self>, engine: &Engine, _context: Context) -> Finished {
        let key = &self.target.key;
        let result = engine.versions(key, self.limit).await.map_err(CommandError::from);
        Finished {
            result: result.and_then(|versions| super::json(&versions)),
            facts: vec![Facts::of(Some(key), engine)],
            held: None,
        }
    }
}
