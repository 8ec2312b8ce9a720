//! Writes JSON values as YAML.

use std::fmt::Write as _;

use base64::Engine as _;

use super::scalar::timestamp;
use crate::json::{Json, typed};

/// The longest key that PyYAML reads without a mark before it is 1024 characters; longer ones have that mark.
const SIMPLE_KEY: usize = 128;

/// Writes a JSON value as YAML that PyYAML reads as the same value: typed bytes as bytes, typed dates as dates.
pub(in crate::celery) fn from_json(value: &Json) -> String {
    let mut out = String::new();
    write(&mut out, value);
    out.push('\n');
    out
}

fn write(out: &mut String, value: &Json) {
    match value {
        Json::Null => out.push_str("null"),
        Json::Bool(value) => out.push_str(if *value { "true" } else { "false" }),
        Json::Number(text) => number(out, text),
        Json::Text(text) => quote(out, text),
        Json::Array(items) => {
            out.push('[');
            for (index, item) in items.iter().enumerate() {
                out.push_str(if index > 0 { ", " } else { "" });
                write(out, item);
            }
            out.push(']');
        }
        Json::Object(members) => {
            if let Ok(Some(bytes)) = typed::bytes(value) {
                out.push_str("!!binary \"");
                base64::engine::general_purpose::STANDARD.encode_string(&bytes, out);
                out.push('"');
                return;
            }
            if let Some(iso) = date(members) {
                out.push_str(iso);
                return;
            }
            out.push('{');
            for (index, (name, value)) in members.iter().enumerate() {
                out.push_str(if index > 0 { ", " } else { "" });
                if name.len() > SIMPLE_KEY {
                    out.push_str("? ");
                }
                quote(out, name);
                out.push_str(if name.len() > SIMPLE_KEY { " : " } else { ": " });
                write(out, value);
            }
            out.push('}');
        }
    }
}

/// Returns the text of a typed date, if it is one that is read as the same date.
fn date(members: &[(String, Json)]) -> Option<&str> {
    let [(first, kind), (second, iso)] = members else { return None };
    let (kind, iso) = (kind.as_text()?, iso.as_text()?);
    if first != "__type__" || second != "__value__" || !matches!(kind, "date" | "datetime") {
        return None;
    }
    let read = timestamp(iso)??;
    (read.get("__type__")?.as_text()? == kind && read.get("__value__")?.as_text()? == iso).then_some(iso)
}

/// Writes a number: YAML 1.1 wants a point in every float, and a sign in every exponent.
fn number(out: &mut String, text: &str) {
    match text {
        "NaN" => return out.push_str(".nan"),
        "Infinity" => return out.push_str(".inf"),
        "-Infinity" => return out.push_str("-.inf"),
        _ => {}
    }
    let (mantissa, exponent) = match text.find(['e', 'E']) {
        Some(at) => (&text[..at], Some(&text[at + 1..])),
        None => (text, None),
    };
    out.push_str(mantissa);
    if let Some(exponent) = exponent {
        if !mantissa.contains('.') {
            out.push_str(".0");
        }
        out.push('e');
        if !exponent.starts_with(['+', '-']) {
            out.push('+');
        }
        out.push_str(exponent);
    }
}

/// Writes a text in double quotes; what YAML calls not printable is escaped.
fn quote(out: &mut String, text: &str) {
    out.push('"');
    for character in text.chars() {
        match character {
            '"' => out.push_str("\\\""),
            '\\' => out.push_str("\\\\"),
            '\n' => out.push_str("\\n"),
            '\r' => out.push_str("\\r"),
            '\t' => out.push_str("\\t"),
            ' '..='~'
            | '\u{a0}'..='\u{2027}'
            | '\u{202a}'..='\u{d7ff}'
            | '\u{e000}'..='\u{fefe}'
            | '\u{ff00}'..='\u{fffd}' => {
                out.push(character);
            }
            // A string takes every write.
            '\0'..='\u{ff}' => drop(write!(out, "\\x{:02x}", u32::from(character))),
            '\u{100}'..='\u{ffff}' => drop(write!(out, "\\u{:04x}", u32::from(character))),
            _ => drop(write!(out, "\\U{:08x}", u32::from(character))),
        }
    }
    out.push('"');
}
