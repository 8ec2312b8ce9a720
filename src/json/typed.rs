//! Reads and writes kombu's typed JSON, the form in which bytes travel as JSON.
//!
//! kombu 5.3 and later write `{"__type__": "bytes" | "base64", "__value__": text}`. Its betas wrote
//! `{"bytes": text, "__bytes__": true}` and `{"bytes": text, "__base64__": true}`. Older versions write plain values only.
//! All three are read. An object is typed only when it has exactly these two members. Typed dates, decimals, UUIDs and
//! types that users register are kept as plain objects and are never interpreted.

use std::sync::LazyLock;

use base64::engine::general_purpose::PAD;
use base64::engine::{Engine as _, Simd};

use super::{Json, write_string};

/// Padded standard base64, by the processor's vector instructions where it has them.
static BASE64: LazyLock<Simd> = LazyLock::new(|| Simd::standard(PAD));

/// Bytes that are encoded at once: a multiple of three, and few enough to stay in the processor's first cache.
const PIECE: usize = 6 * 1024;

/// The fault of a value that is typed as bytes and does not hold bytes.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
#[error("a value typed as {kind} is {cause}; send {remedy}")]
pub struct TypedError {
    kind: &'static str,
    cause: String,
    remedy: &'static str,
}

/// A value after its type was looked at: bytes, or JSON as it came.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Typed {
    /// The bytes of a value that is typed as bytes.
    Bytes(Vec<u8>),
    /// Any other value, unchanged.
    Json(Json),
}

/// Decodes a value that is typed as bytes, and returns any other value unchanged and without a copy.
///
/// # Errors
///
/// [`TypedError`] when the value is typed as bytes and its content is not a string, or not padded base64.
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

/// Decodes a value that is typed as bytes; returns `None` for any other value.
///
/// # Errors
///
/// [`TypedError`], as for [`take`].
pub fn bytes(value: &Json) -> Result<Option<Vec<u8>>, TypedError> {
    match shape(value) {
        None => Ok(None),
        Some((Encoding::Base64, content)) => from_base64(content).map(Some),
        Some((Encoding::Utf8, Json::Text(text))) => Ok(Some(text.as_bytes().to_vec())),
        Some((Encoding::Utf8, content)) => Err(not_text("bytes", content)),
    }
}

/// Appends bytes in kombu's typed form: type `bytes` when they are UTF-8, else type `base64`.
pub fn write_bytes(out: &mut String, bytes: &[u8]) {
    match std::str::from_utf8(bytes) {
        Ok(text) => {
            out.push_str("{\"__type__\":\"bytes\",\"__value__\":");
            write_string(out, text);
            out.push('}');
        }
        Err(_) => {
            out.push_str("{\"__type__\":\"base64\",\"__value__\":\"");
            write_base64(out, bytes);
            out.push_str("\"}");
        }
    }
}

/// Appends bytes as padded base64.
fn write_base64(out: &mut String, bytes: &[u8]) {
    let mut piece = [0; PIECE / 3 * 4];
    out.reserve(bytes.len().div_ceil(3) * 4);
    for bytes in bytes.chunks(PIECE) {
        let written = BASE64.encode_slice(bytes, &mut piece);
        let text = written.ok().and_then(|length| std::str::from_utf8(&piece[..length]).ok());
        out.push_str(text.unwrap_or_else(|| unreachable!("base64 of {PIECE} bytes is ASCII and fits into its piece")));
    }
}

#[derive(Clone, Copy)]
enum Encoding {
    Utf8,
    Base64,
}

/// Returns the encoding and the content of a value that is typed as bytes.
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
    BASE64.decode(text).map_err(|error| TypedError {
        kind: "base64",
        cause: format!("not padded standard base64 ({error})"),
        remedy: "padded standard base64",
    })
}

fn not_text(kind: &'static str, content: &Json) -> TypedError {
    TypedError { kind, cause: format!("a {}, not a str", content.python_type()), remedy: "a string" }
}

#[cfg(test)]
mod tests {
    use base64::engine::general_purpose;

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
    fn base64_is_that_of_the_standard() {
        for length in (0..100).chain([PIECE - 1, PIECE, PIECE + 1, 3 * PIECE + 2]) {
            let bytes: Vec<u8> = (0..length).map(|at| (at * 31 / 7) as u8).collect();
            let mut out = String::from("x");
            write_base64(&mut out, &bytes);
            assert_eq!(out[1..], general_purpose::STANDARD.encode(&bytes), "{length}");
            assert_eq!(BASE64.decode(&out[1..]), Ok(bytes));
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
