//! Finds the arguments by which commands are ordered, in the beginning of a body, without reading the whole body.

use crate::json::{self, Json};

/// The longest name or argument that is read, in bytes of the body.
const LONGEST: usize = 8192;
/// Most bytes of all texts that are kept: a thousand of the longest keys, and then some.
const MOST: usize = 4 << 20;
/// Bytes that a text takes in memory beside its own.
const BESIDE: usize = 32;

/// An argument that is searched for.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Sought {
    /// The index among the positional arguments, from 0; `None` for an argument that is given by name only.
    pub position: Option<usize>,
    /// The name of the argument.
    pub name: &'static str,
    /// Tells whether the argument is a list of texts instead of one text.
    pub is_list: bool,
}

/// The result of the search so far.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Found {
    /// All texts of the arguments, in the order of the body. An argument that is missing, or that is no text, has none.
    Texts(Vec<String>),
    /// More texts may follow in the bytes that were not read yet.
    Unread,
    /// The texts are larger than this search keeps.
    TooMany,
}

impl Found {
    /// The body has none of the arguments.
    pub const NOTHING: Self = Self::Texts(Vec::new());
}

/// A search in a body of protocol 2, which may come in pieces, for arguments by their position or else by their name.
///
/// Of an argument that is given twice the first one counts; such a call is refused later.
#[derive(Debug)]
pub struct Scan {
    /// What was not found yet.
    sought: Vec<Sought>,
    /// What was found.
    texts: Vec<String>,
    /// Bytes of it.
    kept: usize,
    depth: usize,
    /// The part of the body that is being read: 0 for the positional arguments, 1 for the named ones.
    part: usize,
    /// The index of the positional argument that is being read.
    position: usize,
    /// The role of the string that is being read, if any.
    string: Option<Role>,
    /// Tells whether the next byte is escaped.
    escaped: bool,
    /// The string that is being read, with its quotes; empty when the string does not matter.
    text: Vec<u8>,
    expects: Expects,
    /// Inside a list that was sought.
    in_list: bool,
    found: Found,
}

/// The role of a string.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Role {
    Name,
    /// The text that was sought, or a member of the list.
    Wanted,
    Other,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Expects {
    Name,
    /// The sought argument with this index.
    Argument(usize),
    /// The next member of the sought list.
    Member,
    Other,
}

impl Scan {
    /// Creates a search for these arguments.
    #[must_use]
    pub fn new(sought: &[Sought]) -> Self {
        Self {
            sought: sought.to_vec(),
            texts: Vec::new(),
            kept: 0,
            depth: 0,
            part: 0,
            position: 0,
            string: None,
            escaped: false,
            text: Vec::new(),
            expects: Expects::Other,
            in_list: false,
            found: if sought.is_empty() { Found::NOTHING } else { Found::Unread },
        }
    }

    /// Returns the result so far.
    #[must_use]
    pub const fn found(&self) -> &Found {
        &self.found
    }

    /// Reads the next bytes and returns the result so far; malformed JSON has no more such arguments.
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
                let role = self.keep(role, &bytes[..at]);
                self.string = None;
                self.ended(role);
                return Some(&bytes[at..]);
            }
            self.escaped = true;
        }
        self.keep(role, &bytes[..at]);
        None
    }

    /// Keeps a piece of a string, and returns what the string is after all: what is too long is nothing that is looked for.
    fn keep(&mut self, role: Role, bytes: &[u8]) -> Role {
        if role == Role::Other {
            return role;
        }
        if self.text.len() + bytes.len() > LONGEST {
            self.string = Some(Role::Other);
            self.text.clear();
            if role == Role::Wanted {
                self.passed();
            }
            return Role::Other;
        }
        self.text.extend_from_slice(bytes);
        role
    }

    fn ended(&mut self, role: Role) {
        let text = match json::parse(&self.text, json::ParseLimits::default()) {
            Ok(Json::Text(text)) if role != Role::Other => Some(text),
            _ => None,
        };
        self.text.clear();
        match role {
            Role::Wanted => {
                if let Some(text) = text {
                    self.kept += text.len() + BESIDE;
                    self.texts.push(text);
                }
                self.passed();
            }
            Role::Name => {
                let named = self.sought.iter().position(|sought| Some(sought.name) == text.as_deref());
                self.expects = named.map_or(Expects::Other, Expects::Argument);
            }
            Role::Other => {}
        }
    }

    /// Goes on behind what was expected, whether it was that or not.
    fn passed(&mut self) {
        if let Expects::Argument(index) = std::mem::replace(&mut self.expects, Expects::Other) {
            self.sought.remove(index);
        }
        if self.kept > MOST {
            self.found = Found::TooMany;
        } else if self.sought.is_empty() && !self.in_list {
            self.end();
        }
    }

    fn end(&mut self) {
        self.found = Found::Texts(std::mem::take(&mut self.texts));
    }

    fn step(&mut self, byte: u8) {
        match byte {
            b' ' | b'\t' | b'\r' | b'\n' | b':' => {}
            b'[' | b'{' => self.open(byte),
            b']' | b'}' => self.close(),
            b',' => self.next(),
            b'"' if self.depth == 0 => self.end(),
            b'"' => {
                let role = match self.expects {
                    Expects::Name => Role::Name,
                    Expects::Argument(index) if !self.sought[index].is_list => Role::Wanted,
                    Expects::Member => Role::Wanted,
                    Expects::Argument(_) | Expects::Other => Role::Other,
                };
                self.string = Some(role);
                if role == Role::Other {
                    self.passed();
                } else {
                    self.text.push(byte);
                }
            }
            _ if self.depth == 0 => self.end(),
            // A number, or a word such as `null`.
            _ => self.passed(),
        }
    }

    fn open(&mut self, byte: u8) {
        if self.depth == 0 && byte == b'{' {
            self.end();
            return;
        }
        self.depth += 1;
        if let Expects::Argument(index) = self.expects
            && byte == b'['
            && self.sought[index].is_list
        {
            self.in_list = true;
            self.passed();
            self.expects = Expects::Member;
            return;
        }
        self.passed();
        self.expects = match (self.depth, self.part, byte) {
            (2, 0, b'[') => self.argument(),
            (2, 1, b'{') => Expects::Name,
            _ => Expects::Other,
        };
    }

    fn close(&mut self) {
        self.depth = self.depth.saturating_sub(1);
        self.expects = Expects::Other;
        if self.depth == 2 && self.in_list {
            self.in_list = false;
            self.passed();
        } else if self.depth == 0 || self.depth == 1 && self.part == 1 {
            self.end();
        }
    }

    fn next(&mut self) {
        self.expects = match (self.depth, self.part) {
            (1, _) => {
                self.part += 1;
                Expects::Other
            }
            (2, 0) => {
                self.position += 1;
                self.argument()
            }
            (2, 1) => Expects::Name,
            (3, _) if self.in_list => Expects::Member,
            _ => Expects::Other,
        };
        if self.part > 1 {
            self.end();
        }
    }

    /// Tells whether the positional argument that comes now is sought.
    fn argument(&self) -> Expects {
        let here = self.sought.iter().position(|sought| sought.position == Some(self.position));
        here.map_or(Expects::Other, Expects::Argument)
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

    const KEY: Sought = Sought { position: Some(0), name: "key", is_list: false };

    fn scan(body: &str) -> Found {
        scan_for(&[KEY], body)
    }

    fn scan_for(sought: &[Sought], body: &str) -> Found {
        let whole = Scan::new(sought).push(body.as_bytes()).clone();
        let mut scan = Scan::new(sought);
        for byte in body.as_bytes() {
            scan.push(&[*byte]);
        }
        assert_eq!(scan.found(), &whole, "{body}");
        whole
    }

    fn text(text: &str) -> Found {
        texts(&[text])
    }

    fn texts(texts: &[&str]) -> Found {
        Found::Texts(texts.iter().map(|text| (*text).to_owned()).collect())
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
            assert_eq!(scan(none), Found::NOTHING, "{none}");
        }
        let long = format!("[[\"{}\", 1], {{}}]", "x".repeat(LONGEST));
        assert_eq!(scan(&long), Found::NOTHING);
        let behind = format!("[[], {{\"{}\": 1, \"key\": \"k\"}}]", "x".repeat(LONGEST));
        assert_eq!(scan(&behind), text("k"));
    }

    #[test]
    fn several_arguments_are_found_wherever_they_stand() {
        let three =
            [0, 1, 2].map(|place| Sought { position: Some(place), name: ["a", "b", "c"][place], is_list: false });
        assert_eq!(scan_for(&three, r#"[["x", "y", "z", "w"], {}, {}]"#), texts(&["x", "y", "z"]));
        assert_eq!(scan_for(&three, r#"[["x"], {"c": "z", "n": {"b": "no"}, "b": "y""#), texts(&["x", "z", "y"]));
        assert_eq!(scan_for(&three, r#"[["x", 1, ["no", "no"]], {}]"#), texts(&["x"]), "the others are no texts");
        assert_eq!(scan_for(&three, r#"[["x"], {"b": "y"}, {"c": "no"}]"#), texts(&["x", "y"]), "one is missing");
        assert_eq!(scan_for(&three, r#"[["x", "y"], {"d": ""#), Found::Unread, "one may come yet");
        assert_eq!(scan_for(&three, r#"[["x", "y"], {"a": "no", "c": "z"}]"#), texts(&["x", "y", "z"]));
        assert_eq!(scan_for(&[], "["), Found::NOTHING);
    }

    #[test]
    fn lists_are_found_to_their_end() {
        let keys = [Sought { position: Some(1), name: "keys", is_list: true }, KEY];
        assert_eq!(scan_for(&keys, r#"[["k", ["x", "y"], "v"], {}]"#), texts(&["k", "x", "y"]));
        assert_eq!(
            scan_for(&keys, r#"[["k"], {"keys": ["x", 1, {"a": ["no"]}, [["no"]], null, "y"]"#),
            texts(&["k", "x", "y"])
        );
        assert_eq!(scan_for(&keys, r#"[["k", []], {}]"#), texts(&["k"]));
        assert_eq!(scan_for(&keys, r#"[["k", "no"], {}]"#), texts(&["k"]), "a text is no list of texts");
        assert_eq!(scan_for(&keys, r#"[[["no"], {"keys": ["no"]}], {}]"#), Found::NOTHING);
        for begun in [r#"[["k", ["x""#, r#"[["k", ["x", "y""#, r#"[["k", ["x", "y",   "#] {
            assert_eq!(scan_for(&keys, begun), Found::Unread, "{begun}");
        }
        let long = format!(r#"[["k", ["{}", "y"]], {{}}]"#, "x".repeat(LONGEST));
        assert_eq!(scan_for(&keys, &long), texts(&["k", "y"]));
    }

    #[test]
    fn more_than_is_kept_is_said() {
        let keys = [Sought { position: Some(0), name: "keys", is_list: true }];
        let most = MOST / (BESIDE + 1);
        let list = |count: usize| format!("[[[{}]]]", vec!["\"a\""; count].join(","));
        let found = |count| Scan::new(&keys).push(list(count).as_bytes()).clone();
        assert!(matches!(found(most), Found::Texts(texts) if texts.len() == most));
        assert_eq!(found(most + 1), Found::TooMany);
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
