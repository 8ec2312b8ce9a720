//! The task `filestorage.store_many`: writes many values.

use async_trait::async_trait;

use super::{Item, Items, entry, finished, list};
use crate::commands::arguments::{Parameter, ParameterKind};
use crate::commands::{
    Arguments, CallSignature, Command, CommandError, Context, Definition, Engine, Facts, Finished, KeyUse, Keys, store,
};
use crate::json::Json;
use crate::storage::Receipt;

pub(in crate::commands) static DEFINITION: Definition = Definition {
    task: "filestorage.store_many",
    operation: Some("store"),
    signature: CallSignature {
        function: "store_many",
        required: &[Parameter::new(
            "items",
            ParameterKind::Items,
            "The values to store, at most 10,000: of each a dict of the arguments of `store`, or a list of its positional ones. Of items with the same key the last one wins.",
        )],
        optional: &[],
        keyword_only: &[],
    },
    less: "fewer items",
    walks: true,
    result: entry::schema_of::<Receipt>,
    parse,
};

/// No entry of an item that was stored is shorter, beside its key.
const LEAST_ENTRY: usize = 300;

#[derive(Debug)]
struct StoreMany(Items<store::Asked>);

fn parse(mut arguments: Arguments) -> Result<Box<dyn Command>, CommandError> {
    let items = list(&mut arguments, "items")?;
    let items = items.into_iter().enumerate().map(|(place, given)| item(place, given)).collect();
    Ok(Box::new(StoreMany(Items::new(items, KeyUse::write))))
}

fn item(place: usize, given: Json) -> Item<store::Asked> {
    let name = match &given {
        Json::Array(args) => args.first().and_then(Json::as_text),
        other => other.get("key").and_then(Json::as_text),
    };
    let name = name.map(str::to_owned);
    let signature = &store::DEFINITION.signature;
    let bound = match given {
        Json::Object(kwargs) => signature.bind(Vec::new(), kwargs),
        Json::Array(args) => signature.bind(args, Vec::new()),
        other => Err(CommandError::type_error(format!(
            "store_many() argument 'items[{place}]' must be dict or list, not {}",
            other.python_type()
        ))),
    };
    Item { name, work: bound.and_then(store::asked) }
}

impl StoreMany {
    /// Refuses, before anything is written, what could not be answered.
    fn check_answer(&self, most: Option<usize>) -> Result<(), CommandError> {
        let least: usize = self.0.keys.iter().map(|used| LEAST_ENTRY + 2 * used.key.as_str().len()).sum();
        match most {
            Some(most) if least > most => Err(CommandError::value_error(format!(
                "the answer would have at least {least} bytes and a reply may have {most} (max_reply_bytes); nothing was \
                 stored; send fewer items in one command"
            ))),
            _ => Ok(()),
        }
    }
}

#[async_trait]
impl Command for StoreMany {
    fn keys(&self) -> &[KeyUse] {
        &self.0.keys
    }

    async fn run(self: Box<Self>, engine: &Engine, context: Context) -> Finished {
        if let Err(error) = self.check_answer(context.max_reply_bytes) {
            return Finished { result: Err(error), facts: Facts::of_each(&Keys::of(&self.0.keys), engine), held: None };
        }
        let context = &context;
        let store = async |place, key, asked: store::Asked| {
            // Each item recognizes its own write when the command comes again.
            let operation_id = format!("{}.{place}", context.operation_id);
            asked.run(key, engine, operation_id, context).await
        };
        finished(self.0.run(store).await)
    }
}
