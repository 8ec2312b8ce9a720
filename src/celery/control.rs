//! Remote control (pidbox): requests of `celery inspect` and `celery control`, and what is answered.

mod arguments;
mod pattern;

use bytes::Bytes;

use super::body::{self, Limits};
use super::message::{Address, Field, Headers, Message, Properties, Publication};
use crate::json::{Json, ParseLimits, parse, write_string};

pub use arguments::{Arguments, RateLimit};

/// The fanout exchange of requests, unless the application names another.
pub const CONTROL_EXCHANGE: &str = "celery.pidbox";
/// The direct exchange of answers, unless the application names another.
pub const REPLY_EXCHANGE: &str = "reply.celery.pidbox";
/// The longest body of a request in bytes. Thousands of task ids fit.
const LONGEST: usize = 1 << 20;

/// One request to one or all workers.
#[derive(Clone, Debug, PartialEq)]
pub struct ControlRequest {
    /// The name of the command.
    pub method: String,
    /// What the command is given.
    pub arguments: Arguments,
    /// Who asks and waits for the answer.
    pub reply_to: Option<ControlReplyTo>,
    /// The Lamport clock of the sender.
    pub clock: u64,
}

/// The address of the answer to a request.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct ControlReplyTo {
    /// Exchange and routing key.
    pub address: Address,
    /// Names the request for the client.
    pub ticket: String,
}

/// What the answer says.
#[derive(Clone, Debug, PartialEq)]
pub enum ControlReply {
    /// A value as JSON text.
    Value(String),
    /// `{"ok": text}`.
    Ok(String),
    /// `{"error": text}`.
    Error(String),
}

/// Reads a request; `None` where it is for other nodes.
///
/// # Errors
/// What is wrong with the message, which is no request then.
pub fn read(message: &Message, node: &str) -> Result<Option<ControlRequest>, String> {
    let limits = Limits { max_body_bytes: LONGEST, ..Limits::default() };
    let text = body::decode(message, &["json"], limits).map_err(|error| error.to_string())?;
    let request = parse(&text, ParseLimits::default()).map_err(|error| format!("its body is no JSON: {error}"))?;
    let Json::Object(members) = &request else { return Err("its body is no object".to_owned()) };
    let member = |name: &str| members.iter().find(|(known, _)| known == name).map(|(_, value)| value);
    let method = member("method").and_then(Json::as_text).ok_or("it names no method")?.to_owned();
    if !is_for(node, member("destination"), member("pattern"), member("matcher"))? {
        return Ok(None);
    }
    let arguments = match member("arguments") {
        None | Some(Json::Null) => Vec::new(),
        Some(Json::Object(arguments)) => arguments.clone(),
        Some(_) => return Err("its arguments are no object".to_owned()),
    };
    let reply_to = match member("reply_to") {
        None | Some(Json::Null) => None,
        Some(address) => {
            let part = |name| address.get(name).and_then(Json::as_text).map(str::to_owned);
            let (Some(exchange), Some(routing_key)) = (part("exchange"), part("routing_key")) else {
                return Err("its reply_to names no exchange and routing key".to_owned());
            };
            let ticket = member("ticket").and_then(Json::as_text).unwrap_or_default().to_owned();
            Some(ControlReplyTo { address: Address { exchange, routing_key }, ticket })
        }
    };
    let clock = match message.headers.get("clock") {
        Some(Field::Int(clock)) => u64::try_from(*clock).unwrap_or_default(),
        _ => 0,
    };
    Ok(Some(ControlRequest { method, arguments: Arguments(arguments), reply_to, clock }))
}

/// Tells whether a node is meant.
fn is_for(
    node: &str,
    destination: Option<&Json>,
    pattern: Option<&Json>,
    matcher: Option<&Json>,
) -> Result<bool, String> {
    let named = |value: &Json| value.as_text() == Some(node);
    match destination {
        Some(Json::Array(nodes)) if !nodes.is_empty() => return Ok(nodes.iter().any(named)),
        Some(text @ Json::Text(name)) if !name.is_empty() => return Ok(named(text)),
        None | Some(Json::Null | Json::Array(_) | Json::Text(_)) => {}
        Some(_) => return Err("its destination is no list of nodes".to_owned()),
    }
    match (pattern.and_then(Json::as_text), matcher.and_then(Json::as_text)) {
        (Some(pattern), Some(matcher)) if !pattern.is_empty() && !matcher.is_empty() => {
            pattern::matches(node, pattern, matcher)
        }
        _ => Ok(true),
    }
}

impl ControlReply {
    /// Returns Python's text of an exception as the error.
    #[must_use]
    pub fn exception(name: &str, text: &str) -> Self {
        Self::Error(format!("{name}({})", super::repr::quoted(text)))
    }

    /// Writes the answer of a node.
    #[must_use]
    pub fn publication(&self, node: &str, to: &ControlReplyTo, clock: u64) -> Publication {
        let mut body = String::from("{");
        write_string(&mut body, node);
        body.push(':');
        match self {
            Self::Value(value) => body.push_str(value),
            Self::Ok(text) => word(&mut body, "ok", text),
            Self::Error(text) => word(&mut body, "error", text),
        }
        body.push('}');
        let properties = Properties::json(false);
        let mut headers = Headers::default();
        headers.set("ticket", Field::Text(to.ticket.clone()));
        headers.set("clock", Field::Int(i64::try_from(clock).unwrap_or(i64::MAX)));
        Publication { address: to.address.clone(), message: Message { properties, headers, body: Bytes::from(body) } }
    }
}

fn word(body: &mut String, name: &str, text: &str) {
    body.push_str("{\"");
    body.push_str(name);
    body.push_str("\":");
    write_string(body, text);
    body.push('}');
}
