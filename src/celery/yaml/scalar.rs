//! What a scalar of YAML 1.1 means, by its tag, or by the rules by which PyYAML resolves plain scalars.

use base64::Engine as _;
use jiff::civil;
use saphyr_parser::Tag;

use crate::celery::text_form::{Broken, float};
use crate::json::{Json, typed};

/// Returns the name of a tag of YAML's own; `None` for the tag `!` and for no tag.
fn name_of(tag: Option<&Tag>) -> Result<Option<&str>, Broken> {
    match tag {
        None => Ok(None),
        Some(tag) if tag.handle == "tag:yaml.org,2002:" => Ok(Some(&tag.suffix)),
        Some(tag) if tag.handle.is_empty() && tag.suffix == "!" => Ok(Some("str")),
        Some(_) => Err(Broken::Type("a tag")),
    }
}

/// Makes sure that a collection has no tag, or the one of its kind.
pub(super) fn is_plain_tag(tag: Option<&Tag>, expected: &str) -> Result<(), Broken> {
    match name_of(tag)? {
        None => Ok(()),
        Some(name) if name == expected => Ok(()),
        Some(_) => Err(Broken::Type("a tagged list or map")),
    }
}

/// Reads a scalar by its tag, or by its text where it has none.
pub(super) fn scalar(text: &str, is_plain: bool, tag: Option<&Tag>) -> Result<Json, Broken> {
    let wrong = || Broken::Form("a value in it is not what its tag says");
    Ok(match name_of(tag)? {
        None if is_plain => resolve(text)?,
        None | Some("str") => Json::Text(text.to_owned()),
        Some("null") => Json::Null,
        Some("bool") => Json::Bool(boolean(&text.to_ascii_lowercase()).ok_or_else(wrong)?),
        Some("int") => Json::Number(integer(text).ok_or_else(wrong)?.into()),
        Some("float") => {
            let number = real(text).or_else(|| integer(text)?.parse().ok());
            Json::Number(float(number.ok_or_else(wrong)?).into())
        }
        Some("binary") => bytes(text).ok_or_else(wrong)?,
        Some("timestamp") => timestamp(text).flatten().ok_or_else(wrong)?,
        Some(_) => return Err(Broken::Type("a tag")),
    })
}

/// Decides what a plain scalar means.
fn resolve(text: &str) -> Result<Json, Broken> {
    if matches!(text, "" | "~" | "null" | "Null" | "NULL") {
        return Ok(Json::Null);
    }
    let is_word = matches!(
        text,
        "yes"
            | "Yes"
            | "YES"
            | "no"
            | "No"
            | "NO"
            | "true"
            | "True"
            | "TRUE"
            | "false"
            | "False"
            | "FALSE"
            | "on"
            | "On"
            | "ON"
            | "off"
            | "Off"
            | "OFF"
    );
    if is_word && let Some(value) = boolean(&text.to_ascii_lowercase()) {
        return Ok(Json::Bool(value));
    }
    if let Some(number) = integer(text) {
        return Ok(Json::Number(number.into()));
    }
    if let Some(number) = real(text) {
        return Ok(Json::Number(float(number).into()));
    }
    match timestamp(text) {
        Some(Some(at)) => Ok(at),
        Some(None) => Err(Broken::Form("a date in it is on no calendar")),
        None => Ok(Json::Text(text.to_owned())),
    }
}

fn boolean(lower: &str) -> Option<bool> {
    match lower {
        "yes" | "true" | "on" => Some(true),
        "no" | "false" | "off" => Some(false),
        _ => None,
    }
}

/// Reads an integer of YAML 1.1, and returns it in decimal; `None` for anything else.
fn integer(text: &str) -> Option<String> {
    let (sign, digits) = sign(text);
    let first = digits.as_bytes().first()?;
    if !first.is_ascii_digit() {
        return None;
    }
    let plain = || digits.replace('_', "");
    let radix = |digits: &str, radix: u32| {
        let digits = digits.replace('_', "");
        let is_signed = digits.starts_with(['+', '-']);
        u128::from_str_radix(&digits, radix).ok().filter(|_| !is_signed).map(|number| number.to_string())
    };
    let number = if let Some(binary) = digits.strip_prefix("0b") {
        radix(binary, 2)?
    } else if let Some(hexadecimal) = digits.strip_prefix("0x") {
        radix(hexadecimal, 16)?
    } else if digits == "0" {
        digits.to_owned()
    } else if let Some(octal) = digits.strip_prefix('0') {
        radix(octal, 8)?
    } else if digits.contains(':') {
        let mut value: u128 = 0;
        for (index, part) in digits.split(':').enumerate() {
            let part = part.replace('_', "");
            if part.is_empty() || part.len() > 20 || !part.bytes().all(|byte| byte.is_ascii_digit()) {
                return None;
            }
            let part: u128 = part.parse().ok()?;
            if index > 0 && part > 59 {
                return None;
            }
            value = value.checked_mul(60)?.checked_add(part)?;
        }
        value.to_string()
    } else {
        Some(plain()).filter(|digits| digits.bytes().all(|byte| byte.is_ascii_digit()))?
    };
    Some(if sign && number != "0" { format!("-{number}") } else { number })
}

/// Splits the sign off; true is a minus.
fn sign(text: &str) -> (bool, &str) {
    match text.strip_prefix('-') {
        Some(rest) => (true, rest),
        None => (false, text.strip_prefix('+').unwrap_or(text)),
    }
}

/// Reads a float of YAML 1.1; one without a point, such as `1e3`, is a text there.
fn real(text: &str) -> Option<f64> {
    if matches!(text, ".nan" | ".NaN" | ".NAN") {
        return Some(f64::NAN);
    }
    let (is_negative, rest) = sign(text);
    if matches!(rest, ".inf" | ".Inf" | ".INF") {
        return Some(if is_negative { f64::NEG_INFINITY } else { f64::INFINITY });
    }
    let (whole, fraction) = rest.split_once('.')?;
    let digits = |text: &str| text.bytes().all(|byte| byte.is_ascii_digit() || byte == b'_');
    let (fraction, exponent) = match fraction.find(['e', 'E']) {
        Some(at) => (&fraction[..at], &fraction[at + 1..]),
        None => (fraction, ""),
    };
    let begins_well = whole.starts_with(|c: char| c.is_ascii_digit());
    let is_bare = whole.is_empty() && text == rest && fraction.starts_with(|c: char| c.is_ascii_digit());
    if !digits(fraction) || !(begins_well || is_bare) {
        return None;
    }
    if !exponent.is_empty() || rest.contains(['e', 'E']) {
        let power = exponent.strip_prefix(['+', '-'])?;
        if power.is_empty() || !power.bytes().all(|byte| byte.is_ascii_digit()) {
            return None;
        }
    }
    if whole.contains(':') {
        // Sexagesimal: hours, minutes, seconds.
        let mut value = 0.0;
        for (index, part) in whole.split(':').enumerate() {
            let number: f64 =
                Some(part.replace('_', "")).filter(|part| digits(part) && !part.is_empty())?.parse().ok()?;
            if index > 0 && (number > 59.0 || part.len() > 2) {
                return None;
            }
            value = value * 60.0 + number;
        }
        value += format!("0.{}", fraction.replace('_', "")).parse::<f64>().unwrap_or_default();
        return exponent.is_empty().then_some(if is_negative { -value } else { value });
    }
    if !digits(whole) {
        return None;
    }
    text.replace('_', "").parse().ok()
}

/// Reads a date or a time as PyYAML does, in kombu's typed form; `None` for another text, and `Some(None)` for a day that is on no
/// calendar.
pub(super) fn timestamp(text: &str) -> Option<Option<Json>> {
    let mut rest = text;
    let number = |rest: &mut &str, least: usize, most: usize| -> Option<i64> {
        let end = rest.bytes().take(most).take_while(u8::is_ascii_digit).count();
        let (digits, behind) = rest.split_at_checked(end).filter(|_| end >= least)?;
        *rest = behind;
        digits.parse().ok()
    };
    let skip = |rest: &mut &str, mark: char| rest.strip_prefix(mark).map(|behind| *rest = behind);
    let year = number(&mut rest, 4, 4)?;
    skip(&mut rest, '-')?;
    let month = number(&mut rest, 1, 2)?;
    skip(&mut rest, '-')?;
    let day = number(&mut rest, 1, 2)?;
    let date = (|| civil::Date::new(year.try_into().ok()?, month.try_into().ok()?, day.try_into().ok()?).ok())();
    if rest.is_empty() {
        if text.len() != 10 {
            return None;
        }
        return Some(date.map(|_| dated("date", text.to_owned())));
    }
    let behind = rest.trim_start_matches([' ', '\t']);
    rest = if behind.len() < rest.len() { behind } else { rest.strip_prefix(['T', 't'])? };
    let hour = number(&mut rest, 1, 2)?;
    skip(&mut rest, ':')?;
    let minute = number(&mut rest, 2, 2)?;
    skip(&mut rest, ':')?;
    let second = number(&mut rest, 2, 2)?;
    let mut micros = String::new();
    if let Some(behind) = rest.strip_prefix('.') {
        let end = behind.bytes().take_while(u8::is_ascii_digit).count();
        micros = format!("{:0<6}", &behind[..end.min(6)]);
        rest = &behind[end..];
    }
    let zone = rest.trim_start_matches([' ', '\t']);
    let offset = match zone {
        "" if zone.len() == rest.len() => String::new(),
        "Z" => "+00:00".to_owned(),
        _ => {
            let mut zone_rest = zone.strip_prefix(['+', '-'])?;
            let hours = number(&mut zone_rest, 1, 2)?;
            let minutes = if zone_rest.is_empty() {
                0
            } else {
                skip(&mut zone_rest, ':')?;
                number(&mut zone_rest, 2, 2)?
            };
            if !zone_rest.is_empty() {
                return None;
            }
            let is_zero = hours == 0 && minutes == 0;
            format!("{}{hours:02}:{minutes:02}", if is_zero { "+" } else { &zone[..1] })
        }
    };
    if date.is_none() || hour > 23 || minute > 59 || second > 59 {
        return Some(None);
    }
    let mut iso = format!("{year:04}-{month:02}-{day:02}T{hour:02}:{minute:02}:{second:02}");
    if micros.bytes().any(|digit| digit != b'0') {
        iso.push('.');
        iso.push_str(&micros);
    }
    iso.push_str(&offset);
    Some(Some(dated("datetime", iso)))
}

fn dated(kind: &str, iso: String) -> Json {
    Json::Object(vec![("__type__".to_owned(), kind.into()), ("__value__".to_owned(), iso.into())])
}

fn bytes(text: &str) -> Option<Json> {
    let text: String = text.chars().filter(|character| !character.is_ascii_whitespace()).collect();
    let bytes = base64::engine::general_purpose::STANDARD.decode(text).ok()?;
    let mut out = String::new();
    typed::write_bytes(&mut out, &bytes);
    crate::json::parse(out.as_bytes(), crate::json::ParseLimits::default()).ok()
}
