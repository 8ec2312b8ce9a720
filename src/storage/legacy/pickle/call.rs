//! The calls that are understood. None is carried out: each is read as the value that Python would have made.

use super::fault::PickleError;
use super::item::{Arena, Class, Item, Node};
use super::time;

/// Makes the value of a call with these arguments.
pub(super) fn call(arena: &mut Arena<'_>, class: Class, arguments: Item) -> Result<Item, PickleError> {
    let wrong = || PickleError::new(format!("the pickle calls {class:?} with arguments that Python never writes"));
    // No call has more arguments, and a copy of many would cost time at each call.
    let arguments = arena.members(arguments).filter(|arguments| arguments.len() <= 4).ok_or_else(wrong)?.to_vec();
    let made = match (class, arguments.as_slice()) {
        // What is made of another container shares it, so that many calls do not make many copies.
        (Class::Set, [members]) if arena.members(*members).is_some() => return Ok(*members),
        (Class::Dict, [members]) if arena.is_dict(*members) => return Ok(*members),
        (Class::Bytes | Class::Array, [bytes]) if arena.octets(*bytes).is_some() => return Ok(*bytes),
        (Class::Set, []) => Node::Set(Vec::new()),
        (Class::Dict, []) | (Class::DefaultDict, [] | [Item::None | Item::Class(_)]) => Node::Dict(Vec::new()),
        (Class::Bytes | Class::Array, []) => Node::Bytes(Box::default()),
        (Class::Encode | Class::Bytes | Class::Array, [text, charset]) => {
            let charset = arena.text(*charset).filter(|name| matches!(*name, "latin1" | "latin-1"));
            let text = charset.and_then(|_| arena.text(*text)).ok_or_else(wrong)?;
            let bytes: Option<Box<[u8]>> = text.chars().map(|character| u8::try_from(character).ok()).collect();
            Node::Bytes(bytes.ok_or_else(wrong)?)
        }
        (Class::Span, [Item::Int(days), Item::Int(seconds), Item::Int(micros)]) => {
            let whole = i128::from(*days) * 86_400_000_000 + i128::from(*seconds) * 1_000_000 + i128::from(*micros);
            Node::Span(i64::try_from(whole).map_err(|_| wrong())?)
        }
        (Class::Zone, [span, ..]) => match arena.node_mut(*span) {
            Some(Node::Span(micros)) => Node::Zone(*micros),
            _ => return Err(wrong()),
        },
        (Class::Date, [bytes]) => typed("date", arena.octets(*bytes).and_then(time::date)).ok_or_else(wrong)?,
        (Class::DateTime | Class::Time, [bytes, zone @ ..]) => {
            let offset = match zone {
                [] | [Item::None] => None,
                [Item::Node(place)] => match arena.node(*place) {
                    Some(Node::Zone(micros)) => Some(*micros),
                    _ => return Err(wrong()),
                },
                _ => return Err(wrong()),
            };
            let bytes = arena.octets(*bytes).ok_or_else(wrong)?;
            let made = if class == Class::Time {
                typed("time", time::time(bytes, offset))
            } else {
                typed("datetime", time::datetime(bytes, offset))
            };
            made.ok_or_else(wrong)?
        }
        (Class::Decimal, [text]) => {
            let text = arena.text(*text).filter(|text| is_decimal(text)).ok_or_else(wrong)?;
            Node::Typed("decimal", format!("\"{text}\"").into())
        }
        (Class::Uuid, [])
        | (Class::Reconstructor, [Item::Class(Class::Uuid), Item::Class(Class::Other), Item::None]) => Node::Uuid(None),
        _ => return Err(wrong()),
    };
    arena.add(made)
}

/// Sets the state of an object that a call has made.
pub(super) fn build(arena: &mut Arena<'_>, object: Item, state: Item) -> Result<(), PickleError> {
    let wrong =
        || PickleError::new("the pickle has the opcode BUILD on a value that is no UUID; objects are not executed");
    let Item::Node(state) = state else { return Err(wrong()) };
    let Some(Node::Dict(members)) = arena.node(state) else { return Err(wrong()) };
    // The state of a UUID has two members at most.
    let members = if members.len() <= 4 { members.as_slice() } else { &[] };
    let number = members.iter().rev().find(|(name, _)| arena.is_text(*name, "int")).map(|(_, number)| *number);
    let number = match number {
        Some(Item::Int(number)) => u128::try_from(number).ok(),
        Some(Item::Node(place)) => match arena.node(place) {
            Some(Node::Integer(digits)) => digits.parse().ok(),
            _ => None,
        },
        _ => None,
    };
    match (arena.node_mut(object), number) {
        (Some(Node::Uuid(uuid)), Some(number)) => {
            *uuid = Some(number);
            Ok(())
        }
        _ => Err(wrong()),
    }
}

fn typed(name: &'static str, text: Option<String>) -> Option<Node> {
    text.map(|text| Node::Typed(name, format!("\"{text}\"").into()))
}

/// Tells whether a text is what `str(Decimal)` writes, which needs no escapes in JSON.
fn is_decimal(text: &str) -> bool {
    !text.is_empty()
        && text.len() <= super::limits::DIGITS
        && text.bytes().all(|byte| byte.is_ascii_alphanumeric() || matches!(byte, b'+' | b'-' | b'.'))
}
