//! Finds the argument by which commands are ordered, in the beginning of a body, without reading the whole body.

use crate::json::{self, Json};

/// The longest name or argument that is read, in bytes of the body.
const LONGEST: usize = 8192;

/// The result of the search so far.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Found {
    /// The argument is this text.
    Text(String),
    /// There is no such argument, or it is not a text.
    Nothing,
    /// The argument may follow in the bytes that were not read yet.
    Unread,
}

/// A search in a body of protocol 2, which may come in pieces.
///
/// Wanted is the first positional argument, or else the named argument of this name.
#[derive(Debug)]
pub struct Scan<'n> {
    name: &'n str,
    depth: usize,
    /// The part of the body that is being read: 0 for the positional arguments, 1 for the named ones.
    part: usize,
    /// The role of the string that is being read, if any.
    string: Option<Role>,
    /// Tells whether the next byte is escaped.
    escaped: bool,
    /// The string that is being read, with its quotes; empty when the string does not matter.
    text: Vec<u8>,
    expects: Expects,
    found: Found,
}

/// The role of a string.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Role {
    Name,
    Wanted,
    Other,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Expects {
    Name,
    Wanted,
    Other,
}

impl<'n> Scan<'n> {
    /// Creates a search for the first positional argument, or else the argument `name`.
    #[must_use]
    pub const fn new(name: &'n str) -> Self {
        Self {
            name,
            depth: 0,
            part: 0,
            string: None,
            escaped: false,
            text: Vec::new(),
            expects: Expects::Other,
            found: Found::Unread,
        }
    }

    /// Returns the result so far.
    #[must_use]
    pub const fn found(&self) -> &Found {
        &self.found
    }

    /// Reads the next bytes and returns the result so far; malformed JSON has no such argument.
    pub fn push(&mut self, mut bytes: &[u8]) -> &Found {
        while self.found == Found::Unread {
            if let Some(role) = self.string {
                let Some(rest) = self.within(role, bytes) else { break };
                bytes = rest;
                continue;
            }
            let Some((&byte, rest)) = bytes.split_first() else { break };
            bytes = rest;
            self.step(byte);
        }
        &self.found
    }

    /// Reads on inside a string; returns the bytes behind it, or `None` when the string does not end in these bytes.
    fn within<'b>(&mut self, role: Role, bytes: &'b [u8]) -> Option<&'b [u8]> {
        let mut at = 0;
        while at < bytes.len() {
            if self.escaped {
                self.escaped = false;
                at += 1;
                continue;
            }
            let Some(next) = bytes[at..].iter().position(|byte| matches!(byte, b'"' | b'\\')) else {
                at = bytes.len();
                break;
            };
            at += next + 1;
            if bytes[at - 1] == b'"' {
                self.keep(role, &bytes[..at]);
                self.string = None;
                self.ended(role);
                return Some(&bytes[at..]);
            }
            self.escaped = true;
        }
        self.keep(role, &bytes[..at]);
        None
    }

    fn keep(&mut self, role: Role, bytes: &[u8]) {
        if role == Role::Other {
            return;
        }
        if self.text.len() + bytes.len() > LONGEST {
            self.string = Some(Role::Other);
            self.text.clear();
            if role == Role::Wanted {
                self.found = Found::Nothing;
            }
            return;
        }
        self.text.extend_from_slice(bytes);
    }

    fn ended(&mut self, role: Role) {
        let text = match json::parse(&self.text, json::ParseLimits::default()) {
            Ok(Json::Text(text)) if role != Role::Other => Some(text),
            _ => None,
        };
        self.text.clear();
        match role {
            Role::Wanted => self.found = text.map_or(Found::Nothing, Found::Text),
            Role::Name => {
                self.expects = if text.as_deref() == Some(self.name) { Expects::Wanted } else { Expects::Other };
            }
            Role::Other => {}
        }
    }

    fn step(&mut self, byte: u8) {
        match byte {
            b' ' | b'\t' | b'\r' | b'\n' | b':' => {}
            b'[' | b'{' => self.open(byte),
            b']' | b'}' => {
                self.depth = self.depth.saturating_sub(1);
                if self.depth == 0 || self.depth == 1 && self.part == 1 {
                    self.found = Found::Nothing;
                }
                self.expects = Expects::Other;
            }
            b',' => {
                if self.depth == 1 {
                    self.part += 1;
                }
                self.expects = if self.depth == 2 && self.part == 1 { Expects::Name } else { Expects::Other };
            }
            b'"' if self.depth == 0 => self.found = Found::Nothing,
            b'"' => {
                let role = match self.expects {
                    Expects::Name => Role::Name,
                    Expects::Wanted => Role::Wanted,
                    Expects::Other => Role::Other,
                };
                self.string = Some(role);
                if role != Role::Other {
                    self.text.push(byte);
                }
            }
            // A number, or a word such as `null`.
            _ if self.expects == Expects::Wanted => self.found = Found::Nothing,
            _ if self.depth == 0 => self.found = Found::Nothing,
            _ => {}
        }
        if self.part > 1 {
            self.found = Found::Nothing;
        }
    }

    fn open(&mut self, byte: u8) {
        // The first argument is a list or dict, or the whole body is an object.
        if self.expects == Expects::Wanted || self.depth == 0 && byte == b'{' {
            self.found = Found::Nothing;
        }
        self.depth += 1;
        self.expects = match (self.depth, self.part, byte) {
            (2, 0, b'[') => Expects::Wanted,
            (2, 1, b'{') => Expects::Name,
            _ => Expects::Other,
        };
    }
}

/// Returns an upper bound for the number of values in a JSON text.
#[must_use]
pub fn values(text: &[u8]) -> usize {
    // One value for each comma and each opening bracket, also for those inside strings.
    text.iter().filter(|byte| matches!(byte, b',' | b'[' | b'{')).count() + 1
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    fn scan(body: &str) -> Found {
        let whole = Scan::new("key").push(body.as_bytes()).clone();
        let mut scan = Scan::new("key");
        for byte in body.as_bytes() {
            scan.push(&[*byte]);
        }
        assert_eq!(scan.found(), &whole, "{body}");
        whole
    }

    fn text(text: &str) -> Found {
        Found::Text(text.to_owned())
    }

    #[test]
    fn the_first_positional_argument_or_the_named_one_is_found() {
        assert_eq!(scan(r#"[["a/b", "v"], {}, {}]"#), text("a/b"));
        assert_eq!(scan(r#" [ [ "\u00e9\"x" "#), text("é\"x"));
        assert_eq!(scan(r#"[[], {"data": {"key": "no", "x": ["key"]}, "k\u0065y": "yes"}, {}]"#), text("yes"));
        assert_eq!(scan(r#"[[], {"metadata": "key", "key" : "yes""#), text("yes"));
        assert_eq!(scan(r#"[null, {"key": "yes"}]"#), text("yes"));
    }

    #[test]
    fn an_unread_argument_differs_from_a_missing_one() {
        for begun in ["", "[", "[[", "[[\"ab", "[[],{\"data\":\"xxx", "[[],{\"key\":"] {
            assert_eq!(scan(begun), Found::Unread, "{begun}");
        }
        for none in [
            "[[1, \"a\"], {}]",
            "[[[\"a\"]], {}]",
            "{\"args\": [\"a\"]}",
            "[[], {}, {}]",
            "[[], {\"key\": 1",
            "\"a\"",
            "7",
            "[]",
        ] {
            assert_eq!(scan(none), Found::Nothing, "{none}");
        }
        let long = format!("[[\"{}\", 1], {{}}]", "x".repeat(LONGEST));
        assert_eq!(scan(&long), Found::Nothing);
        let behind = format!("[[], {{\"{}\": 1, \"key\": \"k\"}}]", "x".repeat(LONGEST));
        assert_eq!(scan(&behind), text("k"));
    }

    proptest! {
        #[test]
        fn any_key_is_found_as_the_parser_reads_it(key in "\\PC{0,40}", value in "\\PC{0,40}") {
            let (mut name, mut data) = (String::new(), String::new());
            json::write_string(&mut name, &key);
            json::write_string(&mut data, &value);
            prop_assert_eq!(scan(&format!("[[{name}, {data}], {{}}, {{}}]")), text(&key));
            prop_assert_eq!(scan(&format!("[[], {{\"data\": {data}, \"key\": {name}}}, {{}}]")), text(&key));
        }
    }
}
