//! Writes a [`Json`] tree as text: compact UTF-8, or ASCII.

use std::fmt::Write as _;

use super::Json;

impl Json {
    /// Writes the value in UTF-8 without spaces.
    ///
    /// Values are stored in this form; sizes and checksums are those of this form.
    #[must_use]
    pub fn compact(&self) -> String {
        let mut out = String::new();
        self.write(&mut out, Escape::Needed);
        out
    }

    /// Writes the value without spaces in ASCII, as `json.dumps(…, separators=(",", ":"))` does.
    #[must_use]
    pub fn ascii(&self) -> String {
        let mut out = String::new();
        self.write(&mut out, Escape::Ascii);
        out
    }

    /// Returns the length of the compact form in bytes, without writing that form.
    #[must_use]
    pub fn compact_len(&self) -> usize {
        match self {
            Self::Null | Self::Bool(true) => 4,
            Self::Bool(false) => 5,
            Self::Number(text) => text.len(),
            Self::Text(text) => text_len(text),
            Self::Array(elements) => 1 + elements.len().max(1) + elements.iter().map(Self::compact_len).sum::<usize>(),
            Self::Object(members) => {
                let inside = members.iter().map(|(name, value)| text_len(name) + 1 + value.compact_len());
                1 + members.len().max(1) + inside.sum::<usize>()
            }
        }
    }

    /// Appends the compact form of the value to `out`.
    pub fn write_compact(&self, out: &mut String) {
        self.write(out, Escape::Needed);
    }

    fn write(&self, out: &mut String, escape: Escape) {
        match self {
            Self::Null => out.push_str("null"),
            Self::Bool(true) => out.push_str("true"),
            Self::Bool(false) => out.push_str("false"),
            Self::Number(text) => out.push_str(text),
            Self::Text(text) => write_text(out, text, escape),
            Self::Array(elements) => {
                out.push('[');
                for (index, element) in elements.iter().enumerate() {
                    if index > 0 {
                        out.push(',');
                    }
                    element.write(out, escape);
                }
                out.push(']');
            }
            Self::Object(members) => {
                out.push('{');
                for (index, (name, value)) in members.iter().enumerate() {
                    if index > 0 {
                        out.push(',');
                    }
                    write_text(out, name, escape);
                    out.push(':');
                    value.write(out, escape);
                }
                out.push('}');
            }
        }
    }
}

/// The set of characters that are written as escapes.
#[derive(Clone, Copy)]
enum Escape {
    /// Quotes, backslashes and control characters.
    Needed,
    /// Quotes, backslashes, control characters and everything outside ASCII, which is written as UTF-16 units.
    Ascii,
}

/// The bytes that are looked at together: as many as the compiler makes vector instructions of.
const BLOCK: usize = 64;

impl Escape {
    /// Finds the first byte that is written as an escape.
    fn find(self, bytes: &[u8]) -> Option<usize> {
        match self {
            Self::Needed => find(bytes, |byte| matches!(byte, b'"' | b'\\' | 0..=0x1f)),
            Self::Ascii => find(bytes, |byte| matches!(byte, b'"' | b'\\' | 0..=0x1f | 0x80..)),
        }
    }
}

/// Finds the first byte of a kind. Blocks without such a byte are passed over as a whole: no byte of a block decides whether
/// the next one is looked at.
#[inline]
fn find(bytes: &[u8], is_wanted: impl Fn(u8) -> bool) -> Option<usize> {
    let mut passed = 0;
    let (blocks, _) = bytes.as_chunks::<BLOCK>();
    for block in blocks {
        if block.iter().fold(false, |found, &byte| found | is_wanted(byte)) {
            break;
        }
        passed += BLOCK;
    }
    bytes[passed..].iter().position(|&byte| is_wanted(byte)).map(|ahead| passed + ahead)
}

/// Appends a text as a JSON string, with only those escapes that JSON requires.
pub fn write_string(out: &mut String, text: &str) {
    write_text(out, text, Escape::Needed);
}

/// Returns the length of a text as [`write_string`] would write it, in bytes.
pub fn text_len(text: &str) -> usize {
    let (blocks, rest) = text.as_bytes().as_chunks::<BLOCK>();
    2 + text.len() + blocks.iter().map(|block| escapes_len(block)).sum::<usize>() + escapes_len(rest)
}

/// Returns how many bytes the escapes of up to [`BLOCK`] bytes add: one for a short escape, five for a `\u` one.
///
/// Bytes are counted in bytes, without branches, so that the compiler makes vector instructions of it.
fn escapes_len(bytes: &[u8]) -> usize {
    let (mut controls, mut short) = (0_u8, 0_u8);
    for &byte in bytes {
        controls += u8::from(byte < 0x20);
        short += u8::from(matches!(byte, b'"' | b'\\' | b'\n' | b'\r' | b'\t'));
    }
    // A short escape of a control character is counted in both.
    let both = bytes.iter().fold(0_u8, |count, byte| count + u8::from(matches!(byte, b'\n' | b'\r' | b'\t')));
    usize::from(short) + 5 * usize::from(controls - both)
}

fn write_text(out: &mut String, text: &str, escape: Escape) {
    out.push('"');
    let mut plain = 0;
    // The search goes by bytes, because that is fast on large texts. A byte that is found is the first of its character.
    while let Some(ahead) = escape.find(&text.as_bytes()[plain..]) {
        let (before, from) = text[plain..].split_at(ahead);
        out.push_str(before);
        let Some(character) = from.chars().next() else { break };
        plain += ahead + character.len_utf8();
        match character {
            '"' => out.push_str("\\\""),
            '\\' => out.push_str("\\\\"),
            '\n' => out.push_str("\\n"),
            '\r' => out.push_str("\\r"),
            '\t' => out.push_str("\\t"),
            other => {
                for unit in other.encode_utf16(&mut [0; 2]) {
                    write!(out, "\\u{unit:04x}").unwrap_or_else(|error| unreachable!("writing to a String: {error}"));
                }
            }
        }
    }
    out.push_str(&text[plain..]);
    out.push('"');
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::json::{ParseLimits, parse};

    #[test]
    fn escapes_are_python_s() {
        let text = Json::from("a\"\\\n\u{1}é😀/\u{7f}");
        assert_eq!(text.compact_len(), text.compact().len());
        assert_eq!(text.compact(), "\"a\\\"\\\\\\n\\u0001é😀/\u{7f}\"");
        assert_eq!(text.ascii(), r#""a\"\\\n\u0001\u00e9\ud83d\ude00/"#.to_owned() + "\u{7f}\"");
    }

    #[test]
    fn an_escape_is_found_wherever_it_stands() {
        for at in 0..3 * BLOCK {
            for (character, escaped) in [("\"", "\\\""), ("\\", "\\\\"), ("\u{1f}", "\\u001f"), ("\u{7f}", "\u{7f}")] {
                let (before, after) = ("é".repeat(at / 2) + &"x".repeat(at % 2), "y".repeat(2 * BLOCK - at / 2));
                let text = Json::from(format!("{before}{character}{after}"));
                assert_eq!(text.compact(), format!("\"{before}{escaped}{after}\""), "{at}");
                assert_eq!(text.ascii().replace("\\u00e9", "é"), format!("\"{before}{escaped}{after}\""), "{at}");
            }
        }
    }

    proptest::proptest! {
        #[test]
        fn what_is_written_is_read(text in "\\PC*", number in proptest::num::f64::NORMAL, int: i64) {
            let tree = Json::Object(vec![
                (text.clone(), Json::Array(vec![Json::Text(text), Json::Number(number.to_string().into()), int.into()])),
            ]);
            proptest::prop_assert_eq!(tree.compact_len(), tree.compact().len());
            proptest::prop_assert_eq!(&parse(tree.compact().as_bytes(), ParseLimits::default()).unwrap(), &tree);
            proptest::prop_assert_eq!(&parse(tree.ascii().as_bytes(), ParseLimits::default()).unwrap(), &tree);
        }
    }
}
