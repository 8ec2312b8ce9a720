//! Parses bytes into a [`Json`] tree with jiter's tokenizer.

use jiter::{Jiter, JiterError, JiterErrorType, JsonErrorType, Peek};

use super::Json;

/// The limits of one document; the defaults suit one AMQP message.
#[derive(Clone, Copy, Debug)]
pub struct ParseLimits {
    /// The most arrays and objects inside one another.
    pub depth: usize,
    /// The most values in the document: a value of one or two bytes of text takes about 30 bytes in the tree.
    pub values: usize,
}

impl Default for ParseLimits {
    fn default() -> Self {
        Self { depth: 128, values: 4_000_000 }
    }
}

/// The reason why a document was refused.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum ErrorKind {
    /// The bytes are not JSON, and Python does not read them either.
    Syntax,
    /// A string holds a lone surrogate escape such as `"\ud800"`, which no text encoding can represent.
    LoneSurrogate,
    /// The document is nested deeper than [`ParseLimits::depth`].
    TooDeep,
    /// The document has more values than [`ParseLimits::values`].
    TooMany,
}

/// The refusal of a document: reason and position, never the content.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
#[error("{message} at byte {offset}")]
pub struct Error {
    /// The reason.
    pub kind: ErrorKind,
    /// The position in the document, in bytes.
    pub offset: usize,
    message: String,
}

/// Reads one document as Python's `json.loads` does.
///
/// # Errors
///
/// [`Error`] when the bytes are not JSON, hold a lone surrogate, or go beyond a limit.
pub fn parse(data: &[u8], limits: ParseLimits) -> Result<Json, Error> {
    let jiter = Jiter::new(data).with_allow_inf_nan();
    let mut reader = Reader { jiter, depth_left: limits.depth, values_left: limits.values, limits };
    reader.document().map_err(|error| match std::str::from_utf8(data) {
        // The tokenizer reports invalid UTF-8 and lone surrogates with the same error.
        Err(fault) if error.kind == ErrorKind::LoneSurrogate => {
            Error { kind: ErrorKind::Syntax, offset: fault.valid_up_to(), message: "not UTF-8".to_owned() }
        }
        _ => error,
    })
}

struct Reader<'j> {
    jiter: Jiter<'j>,
    depth_left: usize,
    values_left: usize,
    limits: ParseLimits,
}

impl Reader<'_> {
    fn document(&mut self) -> Result<Json, Error> {
        let peek = self.jiter.peek().map_err(|error| refusal(&error))?;
        let value = self.value(peek)?;
        self.jiter.finish().map_err(|error| refusal(&error))?;
        Ok(value)
    }

    fn value(&mut self, peek: Peek) -> Result<Json, Error> {
        if self.values_left == 0 {
            return Err(self.beyond(ErrorKind::TooMany, format!("more than {} values", self.limits.values)));
        }
        self.values_left -= 1;
        match peek {
            Peek::Null => self.jiter.known_null().map(|()| Json::Null).map_err(|error| refusal(&error)),
            Peek::True | Peek::False => self.jiter.known_bool(peek).map(Json::Bool).map_err(|error| refusal(&error)),
            Peek::String => {
                self.jiter.known_str().map(|text| Json::Text(text.to_owned())).map_err(|error| refusal(&error))
            }
            Peek::Array => self.nested(Self::array),
            Peek::Object => self.nested(Self::object),
            _ => self.number(peek),
        }
    }

    fn beyond(&self, kind: ErrorKind, message: String) -> Error {
        Error { kind, offset: self.jiter.current_index(), message }
    }

    fn nested(&mut self, read: impl FnOnce(&mut Self) -> Result<Json, Error>) -> Result<Json, Error> {
        if self.depth_left == 0 {
            return Err(self.beyond(ErrorKind::TooDeep, format!("nested deeper than {} levels", self.limits.depth)));
        }
        self.depth_left -= 1;
        let value = read(self)?;
        self.depth_left += 1;
        Ok(value)
    }

    fn array(&mut self) -> Result<Json, Error> {
        let mut elements = Vec::new();
        let mut next = self.jiter.known_array().map_err(|error| refusal(&error))?;
        while let Some(peek) = next {
            elements.push(self.value(peek)?);
            next = self.jiter.array_step().map_err(|error| refusal(&error))?;
        }
        Ok(Json::Array(elements))
    }

    fn object(&mut self) -> Result<Json, Error> {
        let mut members: Vec<(String, Json)> = Vec::new();
        let mut names = NameIndex::default();
        let mut name = self.jiter.known_object().map_err(|error| refusal(&error))?.map(str::to_owned);
        while let Some(key) = name {
            let peek = self.jiter.peek().map_err(|error| refusal(&error))?;
            let value = self.value(peek)?;
            match names.find(&members, &key) {
                Some(index) => members[index].1 = value,
                None => {
                    names.add(&key, members.len());
                    members.push((key, value));
                }
            }
            name = self.jiter.next_key().map_err(|error| refusal(&error))?.map(str::to_owned);
        }
        Ok(Json::Object(members))
    }

    fn number(&mut self, peek: Peek) -> Result<Json, Error> {
        let text = self.jiter.known_number_bytes(peek).map_err(|error| refusal(&error))?;
        Ok(Json::Number(String::from_utf8_lossy(text).into_owned().into_boxed_str()))
    }
}

/// Finds repeated names of one object: by a linear search in short objects, by a map in long ones, where the search would
/// take quadratic time.
#[derive(Default)]
struct NameIndex {
    indices: std::collections::HashMap<String, usize>,
}

impl NameIndex {
    const LINEAR: usize = 32;

    fn find(&mut self, members: &[(String, Json)], key: &str) -> Option<usize> {
        if members.len() < Self::LINEAR {
            return members.iter().position(|(name, _)| name == key);
        }
        if self.indices.is_empty() {
            self.indices = members.iter().enumerate().map(|(index, (name, _))| (name.clone(), index)).collect();
        }
        self.indices.get(key).copied()
    }

    fn add(&mut self, key: &str, index: usize) {
        if !self.indices.is_empty() {
            self.indices.insert(key.to_owned(), index);
        }
    }
}

fn refusal(error: &JiterError) -> Error {
    let kind = match &error.error_type {
        JiterErrorType::JsonError(
            JsonErrorType::LoneLeadingSurrogateInHexEscape
            | JsonErrorType::UnexpectedEndOfHexEscape
            | JsonErrorType::InvalidUnicodeCodePoint,
        ) => ErrorKind::LoneSurrogate,
        JiterErrorType::JsonError(JsonErrorType::RecursionLimitExceeded) => ErrorKind::TooDeep,
        _ => ErrorKind::Syntax,
    };
    let message = match kind {
        ErrorKind::LoneSurrogate => "a lone surrogate, which no text encoding can hold,".to_owned(),
        _ => error.error_type.to_string(),
    };
    Error { kind, offset: error.index, message }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn read(text: &str) -> Result<Json, Error> {
        parse(text.as_bytes(), ParseLimits::default())
    }

    #[test]
    fn numbers_keep_their_text() {
        for text in ["1180591620717411303424", "-0.0", "1e400", "1.0", "0.1", "NaN", "Infinity", "-Infinity", "1E+5"] {
            assert_eq!(read(text).unwrap(), Json::Number(text.into()), "{text}");
            assert_eq!(read(text).unwrap().compact(), text);
        }
        for text in ["01", "-", "1.", ".5", "nan", "+1", "1e", "0x10", "--1"] {
            assert!(read(text).is_err(), "{text}");
        }
    }

    #[test]
    fn lone_surrogates_are_told_from_syntax() {
        for text in [r#""\ud800""#, r#""\udc00""#, r#""\ud800x""#, r#"{"a": "\ud83d\u0041"}"#, r#""\ud800\n""#] {
            assert_eq!(read(text).unwrap_err().kind, ErrorKind::LoneSurrogate, "{text}");
        }
        assert_eq!(read(r#""\ud83d\ude00""#).unwrap(), Json::from("😀"));
        for text in ["", "{", "[1,]", "{\"a\":1,}", "\"\n\"", "\u{feff}1", "1 2", r#""\uZZZZ""#, r#""\u12""#] {
            assert_eq!(read(text).unwrap_err().kind, ErrorKind::Syntax, "{text:?}");
        }
        for bytes in [&b"{\"\x89\": 1}"[..], b"\"a\xff\"", b"\"\xed\xa0\x80\""] {
            assert_eq!(parse(bytes, ParseLimits::default()).unwrap_err().kind, ErrorKind::Syntax, "{bytes:?}");
        }
    }

    #[test]
    fn the_last_of_repeated_names_stays() {
        assert_eq!(read(r#"{"a": 1, "b": 2, "a": 3}"#).unwrap().compact(), r#"{"a":3,"b":2}"#);
        let many: String = (0..100).map(|n| format!("\"k{}\": {n},", n % 40)).collect();
        let tree = read(&format!("{{{}\"z\": 0}}", many)).unwrap();
        assert_eq!(tree.as_object().unwrap().len(), 41);
        assert_eq!(tree.get("k5").unwrap().as_i64(), Some(85));
    }

    #[test]
    fn depth_is_limited() {
        let nested = |levels: usize| format!("{}{}", "[".repeat(levels), "]".repeat(levels));
        assert!(read(&nested(128)).is_ok());
        assert_eq!(read(&nested(129)).unwrap_err().kind, ErrorKind::TooDeep);
        assert_eq!(read(&"[".repeat(1_000_000)).unwrap_err().kind, ErrorKind::TooDeep);
    }

    #[test]
    fn values_are_counted() {
        let limits = ParseLimits { values: 4, ..ParseLimits::default() };
        assert!(parse(b"[1, {\"a\": 2}]", limits).is_ok());
        assert_eq!(parse(b"[1, {\"a\": 2}, 3]", limits).unwrap_err().kind, ErrorKind::TooMany);
    }
}
