//! Parses bytes into a [`Json`] tree with jiter's tokenizer.

use jiter::{Jiter, JiterError, JiterErrorType, JsonErrorType, Peek};

use super::Json;

/// The most arrays and objects inside one another in a value: as an argument, in the store, in an answer.
///
/// Some functions on trees call themselves for each level. So many levels fit into the stack of every thread.
pub const MAX_DEPTH: usize = 512;

/// The limits of one document; the defaults suit one value.
#[derive(Clone, Copy, Debug)]
pub struct ParseLimits {
    /// The most arrays and objects inside one another.
    pub depth: usize,
    /// The most values in the document: a value of one or two bytes of text takes about 30 bytes in the tree.
    pub values: usize,
}

impl Default for ParseLimits {
    fn default() -> Self {
        Self { depth: MAX_DEPTH, values: 4_000_000 }
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
    let mut reader = Reader { jiter, open: Vec::new(), values_left: limits.values, limits };
    reader.document().map_err(|error| match std::str::from_utf8(data) {
        // The tokenizer reports invalid UTF-8 and lone surrogates with the same error.
        Err(fault) if error.kind == ErrorKind::LoneSurrogate => {
            Error { kind: ErrorKind::Syntax, offset: fault.valid_up_to(), message: "not UTF-8".to_owned() }
        }
        _ => error,
    })
}

/// Checks that a text is JSON and nested no deeper than [`MAX_DEPTH`]; builds no tree, and counts no values.
///
/// # Errors
///
/// [`Error`] when the text is not JSON, or too deep.
pub fn check(text: &str) -> Result<(), Error> {
    let new = || Jiter::new(text.as_bytes()).with_allow_inf_nan();
    let mut jiter = new();
    match jiter.next_skip().and_then(|()| jiter.finish()).map_err(Error::from) {
        // The tokenizer's own check is faster, but ends at 200 levels.
        Err(error) if error.kind == ErrorKind::TooDeep => walk(new()),
        checked => checked,
    }
}

/// Goes through a document token by token, and keeps only which arrays and objects are open.
fn walk(mut jiter: Jiter<'_>) -> Result<(), Error> {
    let mut open: Vec<Peek> = Vec::new();
    let mut peek = jiter.peek()?;
    loop {
        let mut next = match peek {
            Peek::Array | Peek::Object if open.len() == MAX_DEPTH => return Err(too_deep(&jiter, MAX_DEPTH)),
            Peek::Array => jiter.known_array()?,
            Peek::Object => match jiter.known_object()? {
                Some(_) => Some(jiter.peek()?),
                None => None,
            },
            scalar => {
                jiter.known_skip(scalar)?;
                None
            }
        };
        if next.is_some() {
            open.push(peek);
        }
        peek = loop {
            if let Some(peek) = next {
                break peek;
            }
            next = match open.last() {
                None => return Ok(jiter.finish()?),
                Some(&Peek::Array) => jiter.array_step()?,
                Some(_) => match jiter.next_key()? {
                    Some(_) => Some(jiter.peek()?),
                    None => None,
                },
            };
            if next.is_none() {
                open.pop();
            }
        };
    }
}

fn too_deep(jiter: &Jiter<'_>, levels: usize) -> Error {
    let message = format!("nested deeper than {levels} levels");
    Error { kind: ErrorKind::TooDeep, offset: jiter.current_index(), message }
}

/// Builds the tree of a document; calls nothing again for what is nested.
struct Reader<'j> {
    jiter: Jiter<'j>,
    /// The arrays and objects that have begun, outermost first.
    open: Vec<Open>,
    values_left: usize,
    limits: ParseLimits,
}

/// An array or object that has begun.
enum Open {
    Array(Vec<Json>),
    Object {
        members: Vec<(String, Json)>,
        names: NameIndex,
        /// The name of the member whose value comes next.
        name: String,
    },
}

impl Reader<'_> {
    fn document(&mut self) -> Result<Json, Error> {
        let mut peek = self.jiter.peek()?;
        loop {
            let Some(mut value) = self.begin(peek)? else {
                peek = self.jiter.peek()?;
                continue;
            };
            // With the value may end what is around it, which is a value in its turn.
            peek = loop {
                let Some(around) = self.open.pop() else {
                    self.jiter.finish()?;
                    return Ok(value);
                };
                match around.with(value, &mut self.jiter)? {
                    Step::Next(around, peek) => {
                        self.open.push(around);
                        break peek;
                    }
                    Step::Ended(ended) => value = ended,
                }
            };
        }
    }

    /// Reads a scalar or an empty array or object; opens any other, and returns `None`.
    fn begin(&mut self, peek: Peek) -> Result<Option<Json>, Error> {
        if self.values_left == 0 {
            let message = format!("more than {} values", self.limits.values);
            return Err(Error { kind: ErrorKind::TooMany, offset: self.jiter.current_index(), message });
        }
        self.values_left -= 1;
        if matches!(peek, Peek::Array | Peek::Object) && self.open.len() == self.limits.depth {
            return Err(too_deep(&self.jiter, self.limits.depth));
        }
        Ok(Some(match peek {
            Peek::Null => {
                self.jiter.known_null()?;
                Json::Null
            }
            Peek::True | Peek::False => Json::Bool(self.jiter.known_bool(peek)?),
            Peek::String => Json::Text(self.jiter.known_str()?.to_owned()),
            Peek::Array => {
                if self.jiter.known_array()?.is_some() {
                    self.open.push(Open::Array(Vec::new()));
                    return Ok(None);
                }
                Json::Array(Vec::new())
            }
            Peek::Object => {
                if let Some(name) = self.jiter.known_object()? {
                    let name = name.to_owned();
                    self.open.push(Open::Object { members: Vec::new(), names: NameIndex::default(), name });
                    return Ok(None);
                }
                Json::Object(Vec::new())
            }
            _ => {
                let text = self.jiter.known_number_bytes(peek)?;
                Json::Number(String::from_utf8_lossy(text).into_owned().into_boxed_str())
            }
        }))
    }
}

/// What comes after a value inside an array or object.
enum Step {
    /// The next value, inside the same.
    Next(Open, Peek),
    /// Nothing; this is the whole array or object.
    Ended(Json),
}

impl Open {
    /// Adds a value and reads on.
    fn with(self, value: Json, jiter: &mut Jiter<'_>) -> Result<Step, Error> {
        match self {
            Self::Array(mut elements) => {
                elements.push(value);
                Ok(match jiter.array_step()? {
                    Some(peek) => Step::Next(Self::Array(elements), peek),
                    None => Step::Ended(Json::Array(elements)),
                })
            }
            Self::Object { mut members, mut names, name } => {
                match names.find(&members, &name) {
                    Some(index) => members[index].1 = value,
                    None => {
                        names.add(&name, members.len());
                        members.push((name, value));
                    }
                }
                let Some(name) = jiter.next_key()?.map(str::to_owned) else {
                    return Ok(Step::Ended(Json::Object(members)));
                };
                let peek = jiter.peek()?;
                Ok(Step::Next(Self::Object { members, names, name }, peek))
            }
        }
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

impl From<JiterError> for Error {
    fn from(error: JiterError) -> Self {
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
        Self { kind, offset: error.index, message }
    }
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
        for (levels, begin, end) in
            [(1, "[", "]"), (1, "{\"a\":", "}"), (2, "[{\"a\":1,\"b\":", "},2]"), (1, "[\"]\\\"[{\", ", "]")]
        {
            let nested = |depth: usize| {
                let (times, rest) = (depth / levels, depth % levels);
                format!("{}{}0{}{}", begin.repeat(times), "[".repeat(rest), "]".repeat(rest), end.repeat(times))
            };
            for depth in [3, 199, 200, 201, MAX_DEPTH - 1, MAX_DEPTH] {
                let text = nested(depth);
                assert_eq!(read(&text).map(|tree| tree.compact()), Ok(text.replace(' ', "")), "{begin} {depth}");
                assert_eq!(check(&text), Ok(()), "{begin} {depth}");
                let tree = read(&text).unwrap();
                assert!(!tree.is_deeper_than(depth) && tree.is_deeper_than(depth - 1), "{begin} {depth}");
            }
            for text in [nested(MAX_DEPTH + 1), nested(100_000), begin.repeat(1_000_000)] {
                assert_eq!(read(&text).unwrap_err().kind, ErrorKind::TooDeep);
                let error = check(&text).unwrap_err();
                assert!(error.kind == ErrorKind::TooDeep && error.offset < 16 * MAX_DEPTH, "{error}");
            }
        }
        for text in
            ["[".repeat(300), format!("{}1", "[".repeat(300)), format!("{}{}]", "[".repeat(300), "]".repeat(300))]
        {
            assert_eq!(
                (read(&text).unwrap_err().kind, check(&text).unwrap_err().kind),
                (ErrorKind::Syntax, ErrorKind::Syntax)
            );
        }
    }

    #[test]
    fn the_deepest_value_fits_into_a_small_stack() {
        let work = || {
            for (begin, end) in [("[", "]"), ("{\"a\":", "}")] {
                let text = format!("{}0{}", begin.repeat(MAX_DEPTH), end.repeat(MAX_DEPTH));
                let tree = read(&text).unwrap();
                assert_eq!(
                    (tree.compact(), tree.ascii(), tree.compact_len()),
                    (text.clone(), text.clone(), text.len())
                );
                assert!(tree.clone() == tree);
            }
        };
        // A quarter of what threads have.
        std::thread::Builder::new().stack_size(512 << 10).spawn(work).unwrap().join().unwrap();
    }

    #[test]
    fn values_are_counted() {
        let limits = ParseLimits { values: 4, ..ParseLimits::default() };
        assert!(parse(b"[1, {\"a\": 2}]", limits).is_ok());
        assert_eq!(parse(b"[1, {\"a\": 2}, 3]", limits).unwrap_err().kind, ErrorKind::TooMany);
    }
}
