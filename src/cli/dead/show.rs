//! `filestorage dead show`: everything that is known of some dead messages.

use std::collections::BTreeMap;

use base64::Engine as _;
use clap::Args;
use serde::Serialize;
use serde_json::{Value, json};

use super::filter::WantedIds;
use super::row::{Row, printable, shown};
use super::walk::{FoundMessage, Reach, Walk, interrupted};
use crate::celery::message::{Field, Headers, Message, Properties};
use crate::cli::broker;
use crate::cli::terminal::Output;
use crate::config::Settings;
use crate::redact::redact;
use crate::wiring::{Code, Failure};

/// The most bytes of a body that are shown.
const BODY: usize = 64 << 10;
/// The most members of one header that are shown, and levels of them.
const MEMBERS: usize = 32;
const LEVELS: usize = 4;

/// Shows dead messages: why, when, where from, headers, sizes, and the arguments as the producer described them.
///
/// A task id may stand for several messages: the same id may have been sent often. The fingerprint, which `dead list
/// --long` tells, names one. The body is shown only with --body; secrets that can be told are hidden in it.
#[derive(Debug, Args)]
pub(super) struct Arguments {
    /// Task ids or fingerprints.
    #[arg(value_name = "ID", required = true)]
    ids: Vec<String>,

    /// Shows the first 64 KiB of the body as it was sent.
    #[arg(long)]
    body: bool,

    #[command(flatten)]
    reach: Reach,
}

/// One message with everything that is shown.
#[derive(Debug, Serialize)]
struct Shown {
    #[serde(flatten)]
    row: Row,
    /// The arguments as the producer described them.
    arguments: BTreeMap<&'static str, Option<String>>,
    properties: BTreeMap<&'static str, Value>,
    headers: BTreeMap<String, Value>,
    #[serde(skip_serializing_if = "Option::is_none")]
    body: Option<Body>,
}

/// The beginning of a body.
#[derive(Debug, Serialize)]
struct Body {
    /// `utf-8` or `base64`.
    encoding: &'static str,
    data: String,
    truncated: bool,
}

impl Arguments {
    pub(super) async fn run(self, settings: &Settings, output: &Output) -> Result<Code, Failure> {
        let accept = &settings.worker.accept_content;
        let session = broker::open(settings, "filestorage dead show").await?;
        let mut walk = Walk::begin(&session, self.reach, output, "looking").await?;
        let (mut wanted, mut messages) = (WantedIds::new(self.ids), Vec::new());
        while self.reach.limit.is_none_or(|limit| (messages.len() as u64) < limit)
            && let Some((found, held)) = walk.next().await?
        {
            if wanted.takes(&found) {
                messages.push(Shown::new(&found, accept, self.body));
            }
            walk.keep(&found.message, held).await?;
        }
        let is_interrupted = walk.is_interrupted;
        walk.end(output).await?;
        if is_interrupted {
            return Err(interrupted());
        }
        let text: String = messages.iter().map(Shown::text).collect();
        output.answer(&json!({ "messages": messages }), &text)?;
        match wanted.missing().as_slice() {
            [] => Ok(Code::Success),
            missing => Err(not_found(missing)),
        }
    }
}

/// Returns the failure of names that no message had.
pub(super) fn not_found(missing: &[&str]) -> Failure {
    let names: Vec<String> = missing.iter().map(|name| shown(name)).collect();
    let why = format!("not in the dead queue: {}; `filestorage dead list --long` lists what is", names.join(", "));
    Failure::new(Code::NoInput, why)
}

impl Shown {
    fn new(found: &FoundMessage, accept: &[String], with_body: bool) -> Self {
        let Message { properties, headers, body } = &found.message;
        let argument = |name: &str| headers.text(name).map(shown);
        Self {
            row: Row::new(found, accept),
            arguments: BTreeMap::from([("args", argument("argsrepr")), ("kwargs", argument("kwargsrepr"))]),
            properties: shown_properties(properties),
            headers: headers
                .iter()
                .filter(|(name, _)| !matches!(*name, "argsrepr" | "kwargsrepr"))
                .map(|(name, value)| (shown(name), shown_field(value, 0)))
                .collect(),
            body: with_body.then(|| Body::new(body)),
        }
    }

    fn text(&self) -> String {
        let row = &self.row;
        let mut text = format!("message {}\n", row.fingerprint);
        let mut line = |name: &str, value: &str| text.push_str(&format!("  {name:<14} {value}\n"));
        let or_none = |value: &Option<String>| value.clone().unwrap_or_else(|| "-".to_owned());
        line("task", &or_none(&row.task));
        line("id", &or_none(&row.id));
        for key in &row.keys {
            line("key", key);
        }
        line("args", &self.arguments["args"].clone().unwrap_or_else(|| "-".to_owned()));
        line("kwargs", &self.arguments["kwargs"].clone().unwrap_or_else(|| "-".to_owned()));
        line("reason", &or_none(&row.reason));
        line("exception", &or_none(&row.exception));
        line("dead at", &or_none(&row.dead_at));
        line("worker", &or_none(&row.worker));
        line("queue", &or_none(&row.queue));
        line("exchange", &format!("'{}'", row.exchange.as_deref().unwrap_or_default()));
        line("routing key", &format!("'{}'", row.routing_key.as_deref().unwrap_or_default()));
        line("redelivered", if row.redelivered { "yes" } else { "no" });
        line("replays", &row.replays.to_string());
        line("place", &row.position.to_string());
        line("body", &format!("{} bytes", row.body_bytes));
        if let Some(cut) = &row.cut {
            line("cut", cut);
        }
        for (name, value) in &self.properties {
            line("property", &format!("{name} = {value}"));
        }
        for (name, value) in &self.headers {
            line("header", &format!("{name} = {value}"));
        }
        if let Some(body) = &self.body {
            let more = if body.truncated { ", the beginning" } else { "" };
            text.push_str(&format!("  body as {}{more}:\n{}\n", body.encoding, printable(&body.data)));
        }
        text
    }
}

impl Body {
    fn new(body: &[u8]) -> Self {
        let truncated = body.len() > BODY;
        let body = &body[..body.len().min(BODY)];
        // A character that is cut in two does not make bytes of a text.
        let text = match std::str::from_utf8(body) {
            Ok(text) => Some(text),
            Err(error) if truncated && error.error_len().is_none() => {
                std::str::from_utf8(&body[..error.valid_up_to()]).ok()
            }
            Err(_) => None,
        };
        match text {
            Some(text) => Self { encoding: "utf-8", data: redact(text).into_owned(), truncated },
            None => {
                let data = base64::engine::general_purpose::STANDARD.encode(body);
                Self { encoding: "base64", data, truncated }
            }
        }
    }
}

fn shown_properties(properties: &Properties) -> BTreeMap<&'static str, Value> {
    let Properties {
        content_type,
        content_encoding,
        delivery_mode,
        priority,
        correlation_id,
        reply_to,
        expiration,
        message_id,
        timestamp,
        kind,
        user_id,
        app_id,
    } = properties;
    let texts = [
        ("content_type", content_type),
        ("content_encoding", content_encoding),
        ("correlation_id", correlation_id),
        ("reply_to", reply_to),
        ("expiration", expiration),
        ("message_id", message_id),
        ("type", kind),
        ("user_id", user_id),
        ("app_id", app_id),
    ];
    let numbers = [
        ("delivery_mode", delivery_mode.map(u64::from)),
        ("priority", priority.map(u64::from)),
        ("timestamp", *timestamp),
    ];
    let texts = texts.into_iter().filter_map(|(name, text)| Some((name, Value::from(shown(text.as_ref()?)))));
    texts.chain(numbers.into_iter().filter_map(|(name, number)| Some((name, number?.into())))).collect()
}

/// Shows the value of a header; of long lists and deep tables, the beginning.
fn shown_field(field: &Field, level: usize) -> Value {
    let is_deep = level >= LEVELS;
    match field {
        Field::Void => Value::Null,
        Field::Bool(value) => (*value).into(),
        Field::Int(value) => (*value).into(),
        Field::Float(value) => (*value).into(),
        Field::Text(text) => shown(text).into(),
        Field::Timestamp(seconds) => (*seconds).into(),
        Field::List(_) | Field::Table(_) if is_deep => "…".into(),
        Field::List(fields) => {
            let more = (fields.len() > MEMBERS).then(|| "…".into());
            fields.iter().take(MEMBERS).map(|field| shown_field(field, level + 1)).chain(more).collect()
        }
        Field::Table(headers) => table(headers, level),
    }
}

fn table(headers: &Headers, level: usize) -> Value {
    let more = (headers.len() > MEMBERS).then(|| ("…".to_owned(), Value::Null));
    let members = headers.iter().take(MEMBERS).map(|(name, field)| (shown(name), shown_field(field, level + 1)));
    Value::Object(members.chain(more).collect())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_body_is_text_or_base64_and_capped() {
        let of = |body: &[u8]| {
            let Body { encoding, data, truncated } = Body::new(body);
            (encoding, data, truncated)
        };
        assert_eq!(of(b"[1]"), ("utf-8", "[1]".to_owned(), false));
        assert_eq!(of(&[0xff, 0xfe]), ("base64", "//4=".to_owned(), false));
        let (encoding, data, truncated) = of(&[b"x", "é".repeat(BODY).as_bytes()].concat());
        assert_eq!((encoding, data.len(), truncated), ("utf-8", BODY - 1, true));
    }

    #[test]
    fn headers_are_capped_in_breadth_and_depth() {
        let mut deep = Field::Int(1);
        for _ in 0..10 {
            deep = Field::List(vec![deep]);
        }
        assert_eq!(shown_field(&deep, 0), json!([[[["…"]]]]));
        let wide = shown_field(&Field::List(vec![Field::Void; 100]), 0);
        assert_eq!(wide.as_array().map(Vec::len), Some(MEMBERS + 1));
    }
}
