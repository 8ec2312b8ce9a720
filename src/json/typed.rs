//! kombu's typed JSON: how bytes travel in a format that has none.
//!
//! Three eras are read: since kombu 5.3 `{"__type__": "bytes" | "base64", "__value__": text}`, in its betas
//! `{"bytes": text, "__bytes__": true}` and `{"bytes": text, "__base64__": true}`, before that only plain values.
//! An object is typed only when it has exactly these two members. Dates, decimals, UUIDs and what users register stay
//! the objects they are: they are kept and given back, never interpreted.

use base64::Engine as _;
use base64::engine::general_purpose::STANDARD;

use super::{Json, write_string};

/// A typed value that breaks its own rule.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
#[error("a value typed as {kind} is {cause}; send {mend}")]
pub struct TypedError {
    kind: &'static str,
    cause: String,
    mend: &'static str,
}

/// A value told apart: bytes, or JSON as it came.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Typed {
    /// What was typed as bytes.
    Bytes(Vec<u8>),
    /// Everything else, untouched.
    Json(Json),
}

/// Tells bytes from all other values, without copying what it need not.
///
/// # Errors
///
/// [`TypedError`] when a value is typed as bytes and its content is no string, or no padded base64.
pub fn take(value: Json) -> Result<Typed, TypedError> {
    let Some((encoding, content)) = shape(&value) else {
        return Ok(Typed::Json(value));
    };
    match (encoding, content) {
        (Encoding::Base64, content) => from_base64(content).map(Typed::Bytes),
        (Encoding::Utf8, Json::Text(_)) => {
            let Json::Object(members) = value else { unreachable!("only an object has a shape") };
            let text = members.into_iter().find_map(|(name, value)| match (name.as_str(), value) {
                ("__value__" | "bytes", Json::Text(text)) => Some(text),
                _ => None,
            });
            Ok(Typed::Bytes(text.unwrap_or_default().into_bytes()))
        }
        (Encoding::Utf8, content) => Err(not_text("bytes", content)),
    }
}

/// Reads bytes out of a value; `None` when it is not typed as bytes.
///
/// # Errors
///
/// As [`take`].
pub fn bytes(value: &Json) -> Result<Option<Vec<u8>>, TypedError> {
    match shape(value) {
        None => Ok(None),
        Some((Encoding::Base64, content)) => from_base64(content).map(Some),
        Some((Encoding::Utf8, Json::Text(text))) => Ok(Some(text.as_bytes().to_vec())),
        Some((Encoding::Utf8, content)) => Err(not_text("bytes", content)),
    }
}

/// Appends bytes as kombu writes them: type `bytes` when they are UTF-8, else `base64`.
pub fn write_bytes(out: &mut String, bytes: &[u8]) {
    match std::str::from_utf8(bytes) {
        Ok(text) => {
            out.push_str("{\"__type__\":\"bytes\",\"__value__\":");
            write_string(out, text);
            out.push('}');
        }
        Err(_) => {
            out.push_str("{\"__type__\":\"base64\",\"__value__\":\"");
            STANDARD.encode_string(bytes, out);
            out.push_str("\"}");
        }
    }
}

#[derive(Clone, Copy)]
enum Encoding {
    Utf8,
    Base64,
}

/// Finds the encoding and the content of a value typed as bytes.
fn shape(value: &Json) -> Option<(Encoding, &Json)> {
    let [first, second] = value.as_object()? else { return None };
    let pair = |name: &str, other: &str| match (first.0.as_str(), second.0.as_str()) {
        (a, b) if a == name && b == other => Some((&first.1, &second.1)),
        (a, b) if a == other && b == name => Some((&second.1, &first.1)),
        _ => None,
    };
    if let Some((kind, content)) = pair("__type__", "__value__") {
        return match kind.as_text()? {
            "bytes" => Some((Encoding::Utf8, content)),
            "base64" => Some((Encoding::Base64, content)),
            _ => None,
        };
    }
    let marked = |marker: &str| pair(marker, "bytes").filter(|(mark, _)| mark.as_bool() == Some(true));
    if let Some((_, content)) = marked("__bytes__") {
        return Some((Encoding::Utf8, content));
    }
    marked("__base64__").map(|(_, content)| (Encoding::Base64, content))
}

fn from_base64(content: &Json) -> Result<Vec<u8>, TypedError> {
    let text = content.as_text().ok_or_else(|| not_text("base64", content))?;
    STANDARD.decode(text).map_err(|error| TypedError {
        kind: "base64",
        cause: format!("not padded standard base64 ({error})"),
        mend: "padded standard base64",
    })
}

fn not_text(kind: &'static str, content: &Json) -> TypedError {
    TypedError { kind, cause: format!("a {}, not a str", content.python_type()), mend: "a string" }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::json::{ParseLimits, parse};

    fn read(text: &str) -> Result<Option<Vec<u8>>, TypedError> {
        let value = parse(text.as_bytes(), ParseLimits::default()).unwrap();
        let read = bytes(&value);
        let taken = take(value.clone());
        match &read {
            Ok(None) => assert_eq!(taken, Ok(Typed::Json(value))),
            Ok(Some(bytes)) => assert_eq!(taken, Ok(Typed::Bytes(bytes.clone()))),
            Err(error) => assert_eq!(taken.as_ref(), Err(error)),
        }
        read
    }

    #[test]
    fn every_era_is_read() {
        for text in [
            r#"{"__type__": "bytes", "__value__": "hé"}"#,
            r#"{"__value__": "hé", "__type__": "bytes"}"#,
            r#"{"__type__": "base64", "__value__": "aMOp"}"#,
            r#"{"bytes": "hé", "__bytes__": true}"#,
            r#"{"__base64__": true, "bytes": "aMOp"}"#,
        ] {
            assert_eq!(read(text), Ok(Some("hé".as_bytes().to_vec())), "{text}");
        }
        assert_eq!(read(r#"{"__type__": "bytes", "__value__": ""}"#), Ok(Some(Vec::new())));
    }

    #[test]
    fn everything_else_stays() {
        for text in [
            r#""aMOp""#,
            r#"{"__type__": "bytes"}"#,
            r#"{"__type__": "bytes", "__value__": "x", "more": 1}"#,
            r#"{"__type__": "datetime", "__value__": "2026-01-02T03:04:05"}"#,
            r#"{"__type__": "mine", "__value__": [1]}"#,
            r#"{"__type__": 1, "__value__": "x"}"#,
            r#"{"bytes": "x", "__bytes__": false}"#,
            r#"{"bytes": "x", "n": 1}"#,
        ] {
            assert_eq!(read(text), Ok(None), "{text}");
        }
    }

    #[test]
    fn malformed_bytes_are_refused() {
        for (text, words) in [
            (r#"{"__type__": "base64", "__value__": "aMO"}"#, "not padded standard base64"),
            (r#"{"__type__": "base64", "__value__": "a_-="}"#, "not padded standard base64"),
            (r#"{"__type__": "base64", "__value__": null}"#, "a NoneType, not a str"),
            (r#"{"__type__": "bytes", "__value__": 1}"#, "a int, not a str"),
            (r#"{"bytes": [], "__base64__": true}"#, "a list, not a str"),
        ] {
            let error = read(text).unwrap_err().to_string();
            assert!(error.contains(words), "{text}: {error}");
        }
    }

    proptest::proptest! {
        #[test]
        fn what_is_written_is_read(content: Vec<u8>, text: String) {
            for content in [content, text.into_bytes()] {
                let mut out = String::new();
                write_bytes(&mut out, &content);
                proptest::prop_assert_eq!(read(&out), Ok(Some(content)));
            }
        }
    }
}
