//! The tasks `filestorage.copy` and `filestorage.move`: store the value of one key under another.

use async_trait::async_trait;

use super::arguments::{Parameter, ParameterKind};
use super::{
    Arguments, CallSignature, Command, CommandError, Context, Definition, Engine, Facts, Finished, Key, KeyUse, schemas,
};
use crate::storage::{Condition, CopyOptions, Receipt};

const SOURCE: Parameter = Parameter::new("source", ParameterKind::Key, "The key whose value is stored once more.");
const DESTINATION: Parameter = Parameter::new("destination", ParameterKind::Key, "The key that gets the value.");
const IF_ABSENT: Parameter =
    Parameter::new("if_absent", ParameterKind::Flag, "Stores the value only if the destination has no object.");

pub(super) static COPY: Definition = Definition {
    task: "filestorage.copy",
    operation: Some("copy"),
    signature: CallSignature {
        function: "copy",
        required: &[SOURCE, DESTINATION],
        optional: &[],
        keyword_only: &[IF_ABSENT],
    },
    less: "nothing",
    walks: false,
    result: schemas::of::<Receipt>,
    parse: |arguments| parse(arguments, false),
};

pub(super) static MOVE: Definition = Definition {
    task: "filestorage.move",
    operation: Some("move"),
    signature: CallSignature {
        function: "move",
        required: &[SOURCE, DESTINATION],
        optional: &[],
        keyword_only: &[IF_ABSENT],
    },
    less: "nothing",
    walks: false,
    result: schemas::of::<Receipt>,
    parse: |arguments| parse(arguments, true),
};

/// A copy, or a move.
#[derive(Debug)]
struct Copy {
    /// Source and destination.
    keys: [KeyUse; 2],
    condition: Condition,
    moves: bool,
}

fn parse(mut arguments: Arguments, moves: bool) -> Result<Box<dyn Command>, CommandError> {
    let source = key(&mut arguments, "source")?;
    let destination = key(&mut arguments, "destination")?;
    let condition = if arguments.flag("if_absent")? { Condition::Absent } else { Condition::Always };
    let source = if moves { KeyUse::write(source) } else { KeyUse::read(source) };
    Ok(Box::new(Copy { keys: [source, KeyUse::write(destination)], condition, moves }))
}

fn key(arguments: &mut Arguments, name: &'static str) -> Result<Key, CommandError> {
    Key::parse(&arguments.text(name)?).map_err(|error| CommandError::value_error(format!("{name}: {error}")))
}

#[async_trait]
impl Command for Copy {
    fn keys(&self) -> &[KeyUse] {
        &self.keys
    }

    fn streams(&self) -> bool {
        true
    }

    async fn run(self: Box<Self>, engine: &Engine, context: Context) -> Finished {
        let [KeyUse { key: source, .. }, KeyUse { key: destination, .. }] = &self.keys;
        let options = CopyOptions {
            condition: self.condition,
            operation_id: Some(context.operation_id),
            redelivered: context.redelivered,
            commit_guard: context.commit_guard,
        };
        let result = if self.moves {
            engine.rename(source, destination, options).await
        } else {
            engine.copy(source, destination, options).await
        };
        let is_one = source == destination;
        let mut facts: Vec<Facts> =
            self.keys.iter().skip(usize::from(is_one)).map(|used| Facts::of(Some(&used.key), engine)).collect();
        if let Ok(receipt) = &result {
            facts.iter_mut().for_each(|facts| facts.note(receipt));
        }
        Finished {
            result: result.map_err(CommandError::from).and_then(|receipt| super::json(&receipt)),
            facts,
            held: None,
        }
    }
}
