//! The task `filestorage.store`: writes a value under a key.

use async_trait::async_trait;
use jiff::Timestamp;

use super::arguments::{Parameter, ParameterKind};
use super::hints::{Hints, datetime_text};
use super::{
    Arguments, CallSignature, Command, CommandError, Context, Definition, Engine, Facts, Finished, KEY, Key, KeyUse,
    schemas,
};
use crate::instant::{self, NEVER};
use crate::json::{Json, MAX_DEPTH, typed};
use crate::storage::{Condition, ContentType, JsonText, Metadata, Reference, StoreOptions, Value};

pub(super) static DEFINITION: Definition = Definition {
    task: "filestorage.store",
    operation: Some("store"),
    signature: CallSignature {
        function: "store",
        required: &[
            KEY,
            Parameter::new(
                "data",
                ParameterKind::Value,
                "The value to store. `retrieve` returns it with the same type. {\"$ref\": \"file:///…\" | \"gs://…\" | \"s3://…\"} names a file or object whose content is the value.",
            ),
        ],
        optional: &[Parameter::new(
            "metadata",
            ParameterKind::Metadata,
            "JSON object that is stored with the value. The size limit is 4 KiB of ASCII-escaped JSON, and 1 KiB on S3.",
        )],
        keyword_only: &[
            Parameter::new(
                "content_type",
                ParameterKind::Text,
                "MIME type of the value. The default is the `content_type` of the metadata, or depends on the type of the value.",
            ),
            Parameter::new(
                "ttl_seconds",
                ParameterKind::Seconds,
                "The number of seconds after which the object expires.",
            ),
            Parameter::new(
                "expires_at",
                ParameterKind::Instant,
                "When the object expires. The default is the `expires_at` of the metadata if it has an offset and is in the future.",
            ),
            Parameter::new("if_absent", ParameterKind::Flag, "Stores the value only if the key has no object."),
            Parameter::new(
                "if_generation",
                ParameterKind::Text,
                "Stores the value only if the object of the key has this generation.",
            ),
        ],
    },
    less: "shorter metadata",
    walks: false,
    result: schemas::of::<crate::storage::Receipt>,
    parse,
};

/// The longest time to live: a thousand years. A timestamp can hold far more.
const MAX_TTL_SECONDS: f64 = 1000.0 * 365.25 * 86_400.0;

#[derive(Debug)]
struct Store {
    target: KeyUse,
    asked: Asked,
}

/// What a call asks to be stored, beside the key.
#[derive(Debug)]
pub(super) struct Asked {
    data: Data,
    options: StoreOptions,
    /// What the metadata says for arguments that were not given.
    hints: Hints,
}

/// The source of the bytes to store.
#[derive(Debug)]
enum Data {
    Value(Value),
    /// The content of a file or object outside the store.
    Reference(Reference),
}

fn parse(arguments: Arguments) -> Result<Box<dyn Command>, CommandError> {
    let (key, asked) = asked(arguments)?;
    Ok(Box::new(Store { target: KeyUse::write(key), asked }))
}

/// Checks the values of the bound arguments of one call.
pub(super) fn asked(mut arguments: Arguments) -> Result<(Key, Asked), CommandError> {
    let key = super::key(&mut arguments)?;
    let metadata = arguments.take("metadata");
    let hints = Hints::of(&metadata);
    let lifetime = lifetime(&mut arguments)?;
    let hints = if lifetime == Lifetime::NotSaid { hints } else { hints.without_expiry() };
    let options = StoreOptions {
        metadata: self::metadata(metadata, &arguments)?,
        content_type: content_type(&mut arguments)?,
        expires_at: if let Lifetime::Until(at) = lifetime { Some(at) } else { None },
        condition: condition(&mut arguments)?,
        ..StoreOptions::default()
    };
    let data = data(arguments.take("data"))?;
    Ok((key, Asked { data, options, hints }))
}

fn data(data: Json) -> Result<Data, CommandError> {
    // A `$ref` that names no file or object, such as a JSON pointer, is an ordinary value.
    if let Some([(name, Json::Text(text))]) = data.as_object()
        && name == "$ref"
        && Reference::is_meant(text)
    {
        return super::reference("data", text).map(Data::Reference);
    }
    value(data).map(Data::Value)
}

fn value(data: Json) -> Result<Value, CommandError> {
    match data {
        Json::Text(text) => Ok(Value::Text(text)),
        other => match typed::take(other).map_err(|error| CommandError::value_error(format!("data: {error}")))? {
            typed::Typed::Bytes(bytes) => Ok(Value::Bytes(bytes.into())),
            typed::Typed::Json(value) if value.is_deeper_than(MAX_DEPTH) => Err(CommandError::value_error(format!(
                "data: nested deeper than {MAX_DEPTH} levels, the most that a value may have; send a flatter value, or its text"
            ))),
            typed::Typed::Json(value) => Ok(Value::Json(JsonText::of_parsed(value.compact()))),
        },
    }
}

fn metadata(value: Json, arguments: &Arguments) -> Result<Option<Metadata>, CommandError> {
    match value {
        Json::Null => Ok(None),
        object @ Json::Object(_) => Metadata::parse(&object.compact())
            .map(Some)
            .map_err(|error| CommandError::value_error(format!("metadata: {error}"))),
        other => Err(arguments.wrong_type("metadata", "dict or None", &other)),
    }
}

fn content_type(arguments: &mut Arguments) -> Result<Option<ContentType>, CommandError> {
    let Some(text) = arguments.optional_text("content_type")? else { return Ok(None) };
    ContentType::parse(&text).map(Some).map_err(|error| CommandError::value_error(format!("content_type: {error}")))
}

fn condition(arguments: &mut Arguments) -> Result<Condition, CommandError> {
    let absent = arguments.flag("if_absent")?;
    match arguments.optional_text("if_generation")? {
        Some(_) if absent => {
            Err(CommandError::value_error("if_absent and if_generation exclude each other; give only one of them"))
        }
        Some(generation) => Ok(Condition::Generation(generation)),
        None if absent => Ok(Condition::Absent),
        None => Ok(Condition::Always),
    }
}

/// How long an object lives, by the arguments.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Lifetime {
    NotSaid,
    Until(Timestamp),
    Forever,
}

fn lifetime(arguments: &mut Arguments) -> Result<Lifetime, CommandError> {
    let seconds = arguments.take("ttl_seconds");
    let instant = arguments.take("expires_at");
    match (seconds, instant) {
        (Json::Null, Json::Null) => Ok(Lifetime::NotSaid),
        (Json::Null, instant) => {
            let at = parse_instant(&instant, arguments)?;
            Ok(if at == NEVER { Lifetime::Forever } else { Lifetime::Until(at) })
        }
        (seconds @ Json::Number(_), Json::Null) => {
            let seconds = seconds.as_f64().filter(|seconds| *seconds > 0.0 && *seconds <= MAX_TTL_SECONDS);
            let seconds = seconds.ok_or_else(|| {
                CommandError::value_error(format!("ttl_seconds must be above 0 and at most {MAX_TTL_SECONDS}"))
            })?;
            let expires_at = Timestamp::now().checked_add(std::time::Duration::from_secs_f64(seconds));
            expires_at.map(Lifetime::Until).map_err(|error| CommandError::value_error(format!("ttl_seconds: {error}")))
        }
        (other, Json::Null) => Err(arguments.wrong_type("ttl_seconds", "int, float or None", &other)),
        _ => Err(CommandError::value_error("ttl_seconds and expires_at exclude each other; give only one of them")),
    }
}

/// Parses ISO 8601 text or kombu's typed datetime. A time without an offset is UTC, as in Celery.
fn parse_instant(value: &Json, arguments: &Arguments) -> Result<Timestamp, CommandError> {
    let Some(text) = datetime_text(value) else {
        if value.get("__type__").and_then(Json::as_text) == Some("date") {
            return Err(CommandError::type_error(
                "store() argument 'expires_at' must be str, datetime or None, not date; send a datetime, which says the time of day, too",
            ));
        }
        return Err(arguments.wrong_type("expires_at", "str, datetime or None", value));
    };
    // Brackets name a time zone. It could contradict the offset, so such a text is refused.
    let plain = if text.contains('[') { "" } else { text };
    instant::read(plain).ok_or_else(|| {
        CommandError::value_error(format!(
            "expires_at {text:?} is not an ISO 8601 time such as 2026-12-31T23:59:59+00:00"
        ))
    })
}

#[async_trait]
impl Command for Store {
    fn keys(&self) -> &[KeyUse] {
        std::slice::from_ref(&self.target)
    }

    fn streams(&self) -> bool {
        matches!(self.asked.data, Data::Reference(_))
    }

    async fn run(self: Box<Self>, engine: &Engine, context: Context) -> Finished {
        let Self { target: KeyUse { key, .. }, asked } = *self;
        let (result, facts) = asked.run(key, engine, context.operation_id.clone(), &context).await;
        Finished { result, facts: vec![facts], held: None }
    }
}

impl Asked {
    /// Stores what is asked; returns the receipt, and what the event tells.
    pub(super) async fn run(
        self,
        key: Key,
        engine: &Engine,
        operation_id: String,
        context: &Context,
    ) -> (Result<String, CommandError>, Facts) {
        let Self { data, mut options, hints } = self;
        // A command that runs again decides as the first time.
        let began = context.redelivered.and_then(|again| again.started_at).unwrap_or_else(Timestamp::now);
        hints.apply(&key, &mut options, began);
        options.operation_id = Some(operation_id);
        options.redelivered = context.redelivered;
        options.commit_guard = context.commit_guard.clone();
        let mut facts = Facts::of(Some(&key), engine);
        let result = match data {
            Data::Value(value) => engine.store(&key, value, options).await,
            Data::Reference(source) => engine.store_from(&key, &source, options).await,
        };
        if let Ok(receipt) = &result {
            facts.note(receipt);
        }
        (result.map_err(CommandError::from).and_then(|receipt| super::json(&receipt)), facts)
    }
}
