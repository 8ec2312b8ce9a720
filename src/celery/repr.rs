//! Writes values as Python's `repr` does: exactly for messages, in Celery's short form for `argsrepr` and `kwargsrepr`.

use crate::json::{Json, ParseLimits, parse, typed};

/// The longest short repr in characters, without closing brackets.
const MAX_CHARS: isize = 1024;
/// The deepest nesting that a short repr shows.
const MAX_LEVELS: usize = 3;

/// Writes a value exactly as Python's `repr` does.
pub(super) fn python(value: &Json) -> String {
    let mut out = String::new();
    write_python(&mut out, value);
    out
}

/// Appends a text as Python shows it.
pub fn write_display(out: &mut String, text: &str) {
    quote(out, text);
}

/// Returns a text as Python shows it.
pub(super) fn quoted(text: &str) -> String {
    let mut out = String::new();
    quote(&mut out, text);
    out
}

/// Writes a JSON text as Python shows the value; `None` for what is no JSON.
#[must_use]
pub fn display(text: &str) -> Option<String> {
    parse(text.as_bytes(), ParseLimits::default()).ok().map(|value| python(&value))
}

fn write_python(out: &mut String, value: &Json) {
    match value {
        Json::Text(text) => quote(out, text),
        Json::Array(items) => {
            out.push('[');
            for (index, item) in items.iter().enumerate() {
                out.push_str(if index > 0 { ", " } else { "" });
                write_python(out, item);
            }
            out.push(']');
        }
        Json::Object(members) => {
            if let Ok(Some(bytes)) = typed::bytes(value) {
                out.push('b');
                quote_with(out, bytes.into_iter().map(char::from), |c| c >= '\x7f');
                return;
            }
            out.push('{');
            for (index, (name, value)) in members.iter().enumerate() {
                out.push_str(if index > 0 { ", " } else { "" });
                quote(out, name);
                out.push_str(": ");
                write_python(out, value);
            }
            out.push('}');
        }
        scalar => out.push_str(&scalar_repr(scalar)),
    }
}

fn quote(out: &mut String, text: &str) {
    quote_with(out, text.chars(), |c| ('\x7f'..='\u{a0}').contains(&c));
}

/// Writes a string literal as Python does: in double quotes only when it holds single and no double quotes.
///
/// Characters for which `hidden` is true are written as numeric escapes.
fn quote_with(out: &mut String, text: impl Iterator<Item = char> + Clone, hidden: impl Fn(char) -> bool) {
    let has = |mark| text.clone().any(|c| c == mark);
    let mark = if has('\'') && !has('"') { '"' } else { '\'' };
    out.push(mark);
    for character in text {
        match character {
            '\\' => out.push_str("\\\\"),
            '\n' => out.push_str("\\n"),
            '\r' => out.push_str("\\r"),
            '\t' => out.push_str("\\t"),
            c if c == mark => out.extend(['\\', c]),
            c if c < ' ' || hidden(c) => out.push_str(&format!("\\x{:02x}", c as u32)),
            c => out.push(c),
        }
    }
    out.push(mark);
}

fn scalar_repr(value: &Json) -> String {
    match value {
        Json::Null => "None".to_owned(),
        Json::Bool(true) => "True".to_owned(),
        Json::Bool(false) => "False".to_owned(),
        Json::Number(text) => match &**text {
            "NaN" => "nan".to_owned(),
            "Infinity" => "inf".to_owned(),
            "-Infinity" => "-inf".to_owned(),
            _ if value.python_type() == "int" => text.to_string(),
            _ => float_repr(value.as_f64().unwrap_or(f64::NAN)),
        },
        Json::Text(_) | Json::Array(_) | Json::Object(_) => python(value),
    }
}

/// Writes a float as Python does: with the fewest digits, and with an exponent from 1e16 on and below 1e-4.
fn float_repr(number: f64) -> String {
    if !number.is_finite() {
        return if number.is_nan() {
            "nan"
        } else if number > 0.0 {
            "inf"
        } else {
            "-inf"
        }
        .to_owned();
    }
    let scientific = format!("{number:e}");
    let Some((mantissa, exponent)) = scientific.split_once('e') else { return scientific };
    match exponent.parse::<i32>() {
        Ok(power) if number != 0.0 && !(-4..16).contains(&power) => {
            format!("{mantissa}e{}{:02}", if power < 0 { '-' } else { '+' }, power.abs())
        }
        _ => format!("{number:?}"),
    }
}

/// One piece of a short repr, as Celery's `saferepr` divides it.
enum Token<'j> {
    /// An opening or closing bracket, which is never cut.
    Bracket { text: &'static str, direction: isize },
    /// The text `, ` or `: `.
    Separator(&'static str),
    /// A dictionary key.
    Key(&'j str),
    /// A string.
    Quoted(&'j str),
    /// Bytes.
    Bytes(Vec<u8>),
    /// Any other value, already written.
    Other(String),
}

/// Writes positional arguments as the tuple of Celery's `argsrepr`.
#[must_use]
pub fn args_tuple(args: &[&Json]) -> String {
    let mut tokens = vec![Token::Bracket { text: "(", direction: 1 }];
    list(&mut tokens, args.iter().copied(), args.len(), 1);
    tokens.push(Token::Bracket { text: if args.len() == 1 { ",)" } else { ")" }, direction: -1 });
    render(tokens)
}

/// Writes positional arguments as a list, as Celery does for arguments that come directly from JSON.
#[must_use]
pub fn args_list(args: &[Json]) -> String {
    let mut tokens = vec![Token::Bracket { text: "[", direction: 1 }];
    list(&mut tokens, args.iter(), args.len(), 1);
    tokens.push(Token::Bracket { text: "]", direction: -1 });
    render(tokens)
}

/// Writes named arguments as Celery's `kwargsrepr`.
#[must_use]
pub fn kwargs(kwargs: &[(String, Json)]) -> String {
    let mut tokens = Vec::new();
    dict(&mut tokens, kwargs, 0);
    render(tokens)
}

fn list<'j>(tokens: &mut Vec<Token<'j>>, items: impl Iterator<Item = &'j Json>, count: usize, level: usize) {
    for (index, item) in items.enumerate() {
        // Each token takes at least one character of the limit, so that further tokens are never shown.
        if tokens.len() > MAX_CHARS as usize + MAX_LEVELS {
            return;
        }
        value(tokens, item, level);
        if index + 1 < count {
            tokens.push(Token::Separator(", "));
        }
    }
}

fn dict<'j>(tokens: &mut Vec<Token<'j>>, members: &'j [(String, Json)], level: usize) {
    tokens.push(Token::Bracket { text: "{", direction: 1 });
    for (index, (name, item)) in members.iter().enumerate() {
        if tokens.len() > MAX_CHARS as usize + MAX_LEVELS {
            break;
        }
        tokens.push(Token::Key(name));
        tokens.push(Token::Separator(": "));
        value(tokens, item, level + 1);
        if index + 1 < members.len() {
            tokens.push(Token::Separator(", "));
        }
    }
    tokens.push(Token::Bracket { text: "}", direction: -1 });
}

fn value<'j>(tokens: &mut Vec<Token<'j>>, item: &'j Json, level: usize) {
    match item {
        Json::Text(text) => tokens.push(Token::Quoted(text)),
        Json::Array(_) if level >= MAX_LEVELS => tokens.push(Token::Bracket { text: "[...]", direction: 0 }),
        Json::Array(items) => {
            tokens.push(Token::Bracket { text: "[", direction: 1 });
            list(tokens, items.iter(), items.len(), level + 1);
            tokens.push(Token::Bracket { text: "]", direction: -1 });
        }
        Json::Object(members) => match typed_repr(item) {
            Some(token) => tokens.push(token),
            None if level >= MAX_LEVELS => tokens.push(Token::Bracket { text: "{...}", direction: 0 }),
            None => dict(tokens, members, level),
        },
        scalar => tokens.push(Token::Other(scalar_repr(scalar))),
    }
}

/// Writes a typed value as its Python object; returns `None` for an unknown type, which is shown as a dictionary.
fn typed_repr(item: &Json) -> Option<Token<'static>> {
    if let Ok(Some(bytes)) = typed::bytes(item) {
        return Some(Token::Bytes(bytes));
    }
    let [first, second] = item.as_object()? else { return None };
    if first.0 != "__type__" || second.0 != "__value__" {
        return None;
    }
    let text = match (first.1.as_text()?, &second.1) {
        ("decimal", Json::Text(digits)) => format!("Decimal('{digits}')"),
        ("uuid", uuid) => {
            let uuid = uuid::Uuid::try_parse(uuid.get("hex")?.as_text()?).ok()?;
            format!("UUID('{uuid}')")
        }
        ("datetime", Json::Text(text)) => {
            let (local, zone) = match text.strip_suffix("+00:00").or_else(|| text.strip_suffix('Z')) {
                Some(local) => (local, ", tzinfo=datetime.timezone.utc"),
                None => (text.as_str(), ""),
            };
            let at: jiff::civil::DateTime = local.parse().ok()?;
            let micros = at.subsec_nanosecond() / 1000;
            let mut parts = format!("{}, {}, {}, {}, {}", at.year(), at.month(), at.day(), at.hour(), at.minute());
            if at.second() != 0 || micros != 0 {
                parts.push_str(&format!(", {}", at.second()));
            }
            if micros != 0 {
                parts.push_str(&format!(", {micros}"));
            }
            // An offset would need Python's arithmetic of `timedelta`; such a time is shown as a dictionary.
            if local.len() > 19 && zone.is_empty() && local[10..].contains(['+', '-']) {
                return None;
            }
            format!("datetime.datetime({parts}{zone})")
        }
        _ => return None,
    };
    Some(Token::Other(text))
}

/// Joins the tokens up to the limit, and then closes the open brackets.
fn render(tokens: Vec<Token<'_>>) -> String {
    let mut out = String::new();
    let mut left = MAX_CHARS;
    let mut tokens = tokens.into_iter();
    while let Some(token) = tokens.next() {
        if left <= 0 {
            if let Token::Bracket { text, direction: -1 } = token {
                out.push_str(text);
                continue;
            }
            out.push_str(", ...");
            // A bracket that opens beyond the limit is not shown, and its closing bracket is not shown either.
            let mut depth = 0;
            for token in std::iter::once(token).chain(tokens.by_ref()) {
                if let Token::Bracket { text, direction } = token {
                    depth += direction;
                    if depth < 0 {
                        depth = 0;
                        out.push_str(text);
                    }
                }
            }
            break;
        }
        let shown = match token {
            Token::Bracket { text, .. } => text.to_owned(),
            Token::Separator(text) => truncate(text, left),
            Token::Key(text) | Token::Quoted(text) => format!("'{}'", truncate(text, left).replace('\'', "\\'")),
            Token::Bytes(bytes) => bytes_repr(&bytes, left),
            Token::Other(text) => truncate(&text, left),
        };
        left -= isize::try_from(shown.chars().count()).unwrap_or(isize::MAX);
        out.push_str(&shown);
    }
    out
}

/// Cuts a text that is longer than the limit at its last space, and marks the cut by `...`.
fn truncate(text: &str, limit: isize) -> String {
    let limit = usize::try_from(limit).unwrap_or(0);
    match text.char_indices().map(|(at, _)| at).chain([text.len()]).nth(limit) {
        Some(end) => {
            let head = &text[..end];
            format!("{}...", head.rsplit_once(' ').map_or(head, |(kept, _)| kept))
        }
        None => text.to_owned(),
    }
}

fn bytes_repr(bytes: &[u8], limit: isize) -> String {
    let limit = usize::try_from(limit).unwrap_or(0);
    let (shown, mark) = if bytes.len() > limit { (&bytes[..limit], "...") } else { (bytes, "") };
    match std::str::from_utf8(shown) {
        Ok(text) => format!("b'{text}{mark}'"),
        Err(_) => {
            let hex: String = shown.iter().map(|byte| format!("{byte:02x}")).collect();
            format!("b'{hex}{mark}'")
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::json::{ParseLimits, parse};

    fn read(text: &str) -> Json {
        parse(text.as_bytes(), ParseLimits::default()).unwrap()
    }

    #[test]
    fn short_reprs_are_those_of_celery() {
        let vectors = read(include_str!("../../tests/fixtures/saferepr-vectors.json"));
        for vector in vectors.get("args").unwrap().as_array().unwrap() {
            let args = read(vector.get("json_args").unwrap().as_text().unwrap());
            let args = args.as_array().unwrap();
            let tuple: Vec<&Json> = args.iter().collect();
            assert_eq!(args_tuple(&tuple), vector.get("as_tuple").unwrap().as_text().unwrap());
            assert_eq!(args_list(args), vector.get("as_list").unwrap().as_text().unwrap());
        }
        for vector in vectors.get("kwargs").unwrap().as_array().unwrap() {
            let named = read(vector.get("json_kwargs").unwrap().as_text().unwrap());
            assert_eq!(kwargs(named.as_object().unwrap()), vector.get("repr").unwrap().as_text().unwrap());
        }
    }

    #[test]
    fn exact_reprs_are_those_of_python() {
        for (json, repr) in [
            (r#""it's""#, r#""it's""#),
            (r#""it's \"x\"""#, r#"'it\'s "x"'"#),
            (r#""a\\\n\u0001é\u0085""#, r"'a\\\n\x01é\x85'"),
            (
                r#"[null, true, 1.0, 1e22, 1e-5, 2, NaN, 1e400, -0.0]"#,
                "[None, True, 1.0, 1e+22, 1e-05, 2, nan, inf, -0.0]",
            ),
            (r#"{"a": {"b": []}}"#, "{'a': {'b': []}}"),
            (r#"{"__type__": "base64", "__value__": "//5hCg=="}"#, r"b'\xff\xfea\n'"),
        ] {
            assert_eq!(python(&read(json)), repr);
        }
    }
}
