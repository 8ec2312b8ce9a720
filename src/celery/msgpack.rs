//! MessagePack, as Celery's serializer `msgpack` writes and reads it.
//!
//! A body is turned into the JSON text that a producer with the serializer `json` would have sent, so that everything behind
//! this file reads one form only.

use rmp::Marker;

use super::text_form::{Broken, TextForm};
use crate::json::{Json, typed};

/// Turns a MessagePack value into JSON text of at most `limit` bytes.
///
/// Bytes become kombu's typed JSON. Floats of both sizes, integers of 64 bits, and `NaN` keep their value. Too deep a value
/// ends early: the reader of the text refuses it for its depth.
///
/// # Errors
///
/// [`Broken`] for bytes that are no MessagePack, for keys of maps that are no text, and for extension types; for too long a text.
pub(super) fn to_json(bytes: &[u8], limit: usize) -> Result<Vec<u8>, Broken> {
    let mut input = Input(bytes);
    let mut text = TextForm::new(limit);
    loop {
        let marker = Marker::from_u8(input.number::<1>()?[0]);
        if text.wants_key() {
            let length = input.text_length(marker).ok_or(Broken::Key)?;
            let name = input.text(length?)?;
            text.key(name)?;
            continue;
        }
        match marker {
            Marker::Null => text.null()?,
            Marker::True => text.bool(true)?,
            Marker::False => text.bool(false)?,
            Marker::FixPos(value) => text.number(&value.to_string())?,
            Marker::FixNeg(value) => text.number(&value.to_string())?,
            Marker::U8 => text.number(&u8::from_be_bytes(input.number()?).to_string())?,
            Marker::U16 => text.number(&u16::from_be_bytes(input.number()?).to_string())?,
            Marker::U32 => text.number(&u32::from_be_bytes(input.number()?).to_string())?,
            Marker::U64 => text.number(&u64::from_be_bytes(input.number()?).to_string())?,
            Marker::I8 => text.number(&i8::from_be_bytes(input.number()?).to_string())?,
            Marker::I16 => text.number(&i16::from_be_bytes(input.number()?).to_string())?,
            Marker::I32 => text.number(&i32::from_be_bytes(input.number()?).to_string())?,
            Marker::I64 => text.number(&i64::from_be_bytes(input.number()?).to_string())?,
            Marker::F32 => text.float(f32::from_be_bytes(input.number()?).into())?,
            Marker::F64 => text.float(f64::from_be_bytes(input.number()?))?,
            Marker::Bin8 => text.bytes(input.sized(|input| Ok(u8::from_be_bytes(input.number()?).into()))?)?,
            Marker::Bin16 => text.bytes(input.sized(|input| Ok(u16::from_be_bytes(input.number()?).into()))?)?,
            Marker::Bin32 => text.bytes(input.sized(|input| Ok(u32::from_be_bytes(input.number()?)))?)?,
            Marker::FixArray(count) => text.begin_array(count.into())?,
            Marker::Array16 => text.begin_array(u16::from_be_bytes(input.number()?).into())?,
            Marker::Array32 => text.begin_array(u32::from_be_bytes(input.number()?))?,
            Marker::FixMap(count) => text.begin_object(count.into())?,
            Marker::Map16 => text.begin_object(u16::from_be_bytes(input.number()?).into())?,
            Marker::Map32 => text.begin_object(u32::from_be_bytes(input.number()?))?,
            marker => {
                let length = input.text_length(marker).ok_or(Broken::Type("an extension type"))?;
                let string = input.text(length?)?;
                text.string(string)?;
            }
        }
        if text.is_done() {
            break;
        }
    }
    if !input.0.is_empty() && !text.is_too_deep() {
        return Err(Broken::Form("it goes on behind its value"));
    }
    Ok(text.finish())
}

/// The rest of what is read.
struct Input<'m>(&'m [u8]);

impl<'m> Input<'m> {
    fn take(&mut self, count: usize) -> Result<&'m [u8], Broken> {
        let (taken, rest) = self.0.split_at_checked(count).ok_or(Broken::Form("it ends in the middle"))?;
        self.0 = rest;
        Ok(taken)
    }

    fn number<const N: usize>(&mut self) -> Result<[u8; N], Broken> {
        let (taken, rest) = self.0.split_first_chunk().ok_or(Broken::Form("it ends in the middle"))?;
        self.0 = rest;
        Ok(*taken)
    }

    fn sized(&mut self, length: impl FnOnce(&mut Self) -> Result<u32, Broken>) -> Result<&'m [u8], Broken> {
        let length = length(self)?;
        self.take(length as usize)
    }

    /// Reads the length of a string; `None` when the marker begins no string.
    fn text_length(&mut self, marker: Marker) -> Option<Result<u32, Broken>> {
        Some(match marker {
            Marker::FixStr(length) => Ok(length.into()),
            Marker::Str8 => self.number().map(|number| u8::from_be_bytes(number).into()),
            Marker::Str16 => self.number().map(|number| u16::from_be_bytes(number).into()),
            Marker::Str32 => self.number().map(u32::from_be_bytes),
            _ => return None,
        })
    }

    fn text(&mut self, length: u32) -> Result<&'m str, Broken> {
        std::str::from_utf8(self.take(length as usize)?).map_err(|_| Broken::Form("a text in it is not UTF-8"))
    }
}

/// Writes a JSON value as MessagePack; kombu's typed bytes become bytes.
///
/// Returns `None` for an integer of more than 64 bits, which MessagePack does not have.
pub(super) fn from_json(value: &Json) -> Option<Vec<u8>> {
    let mut out = Vec::new();
    write(&mut out, value)?;
    Some(out)
}

fn write(out: &mut Vec<u8>, value: &Json) -> Option<()> {
    use rmp::encode;
    match value {
        Json::Null => encode::write_nil(out).ok(),
        Json::Bool(value) => encode::write_bool(out, *value).ok(),
        Json::Number(text) => write_number(out, value, text),
        Json::Text(text) => encode::write_str(out, text).ok(),
        Json::Array(items) => {
            encode::write_array_len(out, items.len().try_into().ok()?).ok()?;
            items.iter().try_for_each(|item| write(out, item))
        }
        Json::Object(members) => {
            if let Ok(Some(bytes)) = typed::bytes(value) {
                return encode::write_bin(out, &bytes).ok();
            }
            encode::write_map_len(out, members.len().try_into().ok()?).ok()?;
            members.iter().try_for_each(|(name, value)| {
                encode::write_str(out, name).ok()?;
                write(out, value)
            })
        }
    }
}

fn write_number(out: &mut Vec<u8>, value: &Json, text: &str) -> Option<()> {
    use rmp::encode;
    if let Ok(number) = text.parse::<u64>() {
        return encode::write_uint(out, number).ok().map(drop);
    }
    if let Ok(number) = text.parse::<i64>() {
        return encode::write_sint(out, number).ok().map(drop);
    }
    let is_integer = text.bytes().all(|byte| byte.is_ascii_digit() || byte == b'-');
    if is_integer { None } else { encode::write_f64(out, value.as_f64()?).ok() }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::json::{ParseLimits, parse};

    fn json(text: &str) -> Json {
        parse(text.as_bytes(), ParseLimits::default()).unwrap()
    }

    fn text(bytes: &[u8]) -> Result<String, Broken> {
        to_json(bytes, 1 << 16).map(|text| String::from_utf8(text).unwrap())
    }

    #[test]
    fn values_pass_both_ways() {
        for value in [
            "null",
            "true",
            "[]",
            "{}",
            "0",
            "-1",
            "127",
            "128",
            "-33",
            "18446744073709551615",
            "-9223372036854775808",
            "1.5",
            "-0.0",
            "1e300",
            "NaN",
            "Infinity",
            "-Infinity",
            r#""é\n""#,
            r#"[1,[2,{"a":[{}]}],"x"]"#,
            r#"{"__type__":"bytes","__value__":"hello"}"#,
            r#"{"__type__":"base64","__value__":"//4="}"#,
        ] {
            let written = from_json(&json(value)).unwrap();
            assert_eq!(text(&written).unwrap(), value);
        }
        assert_eq!(from_json(&json("18446744073709551616")), None);
        assert_eq!(text(&[0xca, 0x3f, 0xc0, 0, 0]).unwrap(), "1.5", "a float of 32 bits");
        let long = format!("[{}]", vec!["1"; 70_000].join(","));
        assert_eq!(to_json(&from_json(&json(&long)).unwrap(), 1 << 20).unwrap(), long.as_bytes());
    }

    #[test]
    fn what_is_broken_or_means_nothing_here_is_refused() {
        for (bytes, words) in [
            (&[][..], "ends"),
            (&[0x92, 1], "ends"),
            (&[0xd9, 5, b'a'], "ends"),
            (&[1, 1], "goes on"),
            (&[0xa1, 0xff], "UTF-8"),
            (&[0x81, 1, 2], "key"),
            (&[0xd6, 0xff, 0, 0, 0, 0], "extension"),
            (&[0xc1], "extension"),
            // Announced and not there: nothing is reserved for it.
            (&[0xdd, 0xff, 0xff, 0xff, 0xff], "ends"),
        ] {
            let error = text(bytes).unwrap_err().to_string();
            assert!(error.contains(words), "{bytes:?}: {error}");
        }
    }

    #[test]
    fn length_and_depth_are_bounded() {
        let mut wide = vec![0xdd, 0, 1, 0, 0];
        wide.extend([0xc0; 1 << 16]);
        assert_eq!(text(&wide).unwrap_err(), Broken::TooLong);
        let deep = to_json(&vec![0x91; 8 << 20], 64 << 20).unwrap();
        assert!(deep.len() < 2000);
        let error = parse(&deep, ParseLimits::default()).unwrap_err();
        assert_eq!(error.kind, crate::json::ErrorKind::TooDeep);
    }
}
