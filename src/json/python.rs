//! Rewrites JSON texts byte for byte as Python's `json.dumps` writes them.

use std::fmt::Write as _;

/// Rewrites a JSON text in ASCII with `", "` and `": "`, as `json.dumps` does by default; values stay the same.
///
/// The text is not checked. Blanks between values are dropped.
#[must_use]
pub fn as_python(text: &str) -> String {
    let mut out = String::with_capacity(text.len() + text.len() / 8 + 16);
    let mut rest = text;
    while let Some(found) = rest.find(['"', ',', ':', ' ', '\n', '\r', '\t']) {
        out.push_str(&rest[..found]);
        let is_string = rest.as_bytes()[found] == b'"';
        match rest.as_bytes()[found] {
            b'"' => out.push('"'),
            b',' => out.push_str(", "),
            b':' => out.push_str(": "),
            _ => {}
        }
        rest = &rest[found + 1..];
        if is_string {
            rest = string(&mut out, rest);
        }
    }
    out.push_str(rest);
    out
}

/// Writes the inside of a string and its end, and returns what is behind.
fn string<'t>(out: &mut String, mut rest: &'t str) -> &'t str {
    let is_special = |byte: &u8| matches!(byte, b'"' | b'\\' | 0x7f..);
    while let Some(found) = rest.as_bytes().iter().position(is_special) {
        out.push_str(&rest[..found]);
        rest = &rest[found..];
        let Some(character) = rest.chars().next() else { break };
        match character {
            '"' => {
                out.push('"');
                return &rest[1..];
            }
            '\\' => {
                // Python has short escapes for these two as well.
                let (escape, length) = match rest.get(..6) {
                    Some("\\u0008") => ("\\b", 6),
                    Some("\\u000c" | "\\u000C") => ("\\f", 6),
                    _ => {
                        let second = rest[1..].chars().next().map_or(0, char::len_utf8);
                        (&rest[..1 + second], 1 + second)
                    }
                };
                out.push_str(escape);
                rest = &rest[length..];
            }
            other => {
                for unit in other.encode_utf16(&mut [0; 2]) {
                    write!(out, "\\u{unit:04x}").unwrap_or_else(|error| unreachable!("writing to a String: {error}"));
                }
                rest = &rest[other.len_utf8()..];
            }
        }
    }
    out.push_str(rest);
    ""
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::json::{Json, ParseLimits, parse};

    #[test]
    fn texts_are_what_json_dumps_writes() {
        for (text, python) in [
            ("null", "null"),
            (r#"{"a":[1,-2.5e3,NaN],"b":{}}"#, r#"{"a": [1, -2.5e3, NaN], "b": {}}"#),
            (r#"{ "a" : [ ] }"#, r#"{"a": []}"#),
            (r#"["a,b:c {}","\"","\\",""]"#, r#"["a,b:c {}", "\"", "\\", ""]"#),
            ("[\"é😀\u{7f}\",\"\\u0008\\u000c\\u0001\\n\"]", r#"["\u00e9\ud83d\ude00\u007f", "\b\f\u0001\n"]"#),
            (r#""\\u0008""#, r#""\\u0008""#),
        ] {
            assert_eq!(as_python(text), python);
        }
    }

    proptest::proptest! {
        #[test]
        fn values_stay_the_same(text in "\\PC*", name in ".*", int: i64) {
            let tree = Json::Object(vec![(name, Json::Array(vec![Json::Text(text), int.into(), Json::Null]))]);
            let python = as_python(&tree.compact());
            proptest::prop_assert!(python.is_ascii());
            proptest::prop_assert_eq!(parse(python.as_bytes(), ParseLimits::default()).unwrap(), tree);
        }

        #[test]
        fn no_text_is_too_broken(text in ".*") {
            proptest::prop_assert!(as_python(&text).len() >= text.split_whitespace().count());
        }
    }
}
