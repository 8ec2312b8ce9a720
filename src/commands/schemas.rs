//! JSON Schemas (2020-12) of the arguments and results of every task.

use std::collections::BTreeMap;

use schemars::JsonSchema;
use serde_json::{Value, json};

use super::arguments::{Parameter, ParameterKind};
use super::{COMMANDS, CommandTable, Definition};

const DIALECT: &str = "https://json-schema.org/draft/2020-12/schema";

/// Returns every schema by its file name, such as `store.arguments.json` or `store.result.json`.
#[must_use]
pub fn schemas() -> BTreeMap<String, Value> {
    let mut schemas = BTreeMap::new();
    for definition in COMMANDS {
        let name = definition.signature.function;
        schemas.insert(format!("{name}.arguments.json"), arguments(definition));
        let mut result = (definition.result)();
        if let Some(members) = result.as_object_mut() {
            members.insert("$schema".to_owned(), DIALECT.into());
            members.insert("title".to_owned(), format!("result of {}", definition.task).into());
        }
        schemas.insert(format!("{name}.result.json"), result);
    }
    schemas
}

/// Derives the schema of a result from its type.
pub(super) fn of<T: JsonSchema>() -> Value {
    // Results are only written. A member that may be null is always written, so the schema requires it.
    schemars::generate::SchemaSettings::draft2020_12()
        .for_serialize()
        .into_generator()
        .into_root_schema_for::<T>()
        .to_value()
}

/// Returns the schema of any value or null. Bytes have kombu's typed form.
pub(super) fn any_value() -> Value {
    json!({
        "description": "The value with the type that was stored, or null for a missing key. Bytes are {\"__type__\": \"bytes\" | \"base64\", \"__value__\": text}, which a Celery client decodes. A call with a destination returns the receipt instead of the value.",
    })
}

/// Returns the schema of the keyword arguments of a call. Positional arguments bind to the names in `x-positional`, in
/// that order.
fn arguments(definition: &Definition) -> Value {
    let signature = &definition.signature;
    let parameters = || signature.required.iter().chain(signature.optional).chain(signature.keyword_only);
    let properties: serde_json::Map<String, Value> =
        parameters().map(|parameter| (parameter.name.to_owned(), property(parameter, signature.required))).collect();
    let names = |parameters: &[Parameter]| parameters.iter().map(|parameter| parameter.name).collect::<Vec<_>>();
    let positional = [names(signature.required), names(signature.optional)].concat();
    json!({
        "$schema": DIALECT,
        "title": format!("arguments of {}", definition.task),
        "type": "object",
        "properties": properties,
        "required": names(signature.required),
        "additionalProperties": false,
        "x-positional": positional,
    })
}

fn property(parameter: &Parameter, required: &[Parameter]) -> Value {
    let typed = match parameter.kind {
        ParameterKind::Value => json!({}),
        ParameterKind::Key => json!({"type": "string", "minLength": 1, "maxLength": 1024}),
        ParameterKind::Keys => json!({"type": "array", "items": {"type": "string", "minLength": 1, "maxLength": 1024}}),
        ParameterKind::Items => {
            let store = CommandTable::default().find("filestorage.store").map_or(Value::Null, arguments);
            let named = json!({
                "type": "object",
                "properties": store["properties"],
                "required": store["required"],
                "additionalProperties": false,
            });
            json!({"type": "array", "maxItems": 10_000, "items": {"anyOf": [named, {"type": "array", "minItems": 2, "maxItems": 3}]}})
        }
        ParameterKind::Metadata => json!({"type": "object"}),
        ParameterKind::Text => json!({"type": "string"}),
        ParameterKind::Choice(words) => json!({"type": "string", "enum": words}),
        ParameterKind::Count => json!({"type": "integer", "minimum": 0}),
        ParameterKind::Between(least, most) => json!({"type": "integer", "minimum": least, "maximum": most}),
        ParameterKind::Seconds => json!({"type": "number", "exclusiveMinimum": 0}),
        ParameterKind::Age => json!({"type": "number", "minimum": 0}),
        ParameterKind::Instant => json!({"type": "string", "format": "date-time"}),
        ParameterKind::Flag => json!({"type": "boolean"}),
    };
    let optional = !required.iter().any(|other| other.name == parameter.name);
    let mut schema = serde_json::Map::new();
    schema.insert("description".to_owned(), parameter.about.into());
    if let Value::Object(mut members) = typed {
        if let Some(kind) = members.remove("type") {
            let kind = if optional { json!([kind, "null"]) } else { kind };
            schema.insert("type".to_owned(), kind);
        }
        if let Some(Value::Array(words)) = members.get_mut("enum").filter(|_| optional) {
            words.push(Value::Null);
        }
        schema.extend(members);
    }
    Value::Object(schema)
}
