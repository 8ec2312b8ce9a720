//! Writes JSON text piece by piece, with bounds on its length and depth: what other serializers carry is turned into it.

use crate::json::{MAX_DEPTH, typed, write_string};

/// The deepest text that is written: deeper than any message may be, so that the reader of the text refuses it for its depth.
const DEEPEST: usize = 2 * MAX_DEPTH;

/// The reason why a body cannot be turned into JSON text; the words complete "the body is not readable: ".
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub(super) enum Broken {
    /// The bytes do not have the form of the serializer.
    #[error("{0}")]
    Form(&'static str),
    /// The parser's own words about the form.
    #[error("{0}")]
    Words(String),
    /// A key of a map is no text.
    #[error("a key of a map in it is no text; send text as keys")]
    Key,
    /// A type that has no JSON form.
    #[error("{0} in it has no meaning to this worker; send text, numbers, bytes, lists and maps")]
    Type(&'static str),
    /// The text would be longer than its limit.
    #[error("it is too large once it is unpacked; send the value by reference")]
    TooLong,
}

/// A value that is open: how many values are missing in it.
#[derive(Clone, Copy, Debug)]
struct Open {
    is_object: bool,
    /// Values that are missing; of an object, members.
    missing: u64,
    is_first: bool,
    /// Of an object: the next is a key.
    wants_key: bool,
}

/// JSON text that is being written.
#[derive(Debug)]
pub(super) struct TextForm {
    text: String,
    limit: usize,
    open: Vec<Open>,
    is_begun: bool,
    is_too_deep: bool,
}

impl TextForm {
    pub(super) const fn new(limit: usize) -> Self {
        Self { text: String::new(), limit, open: Vec::new(), is_begun: false, is_too_deep: false }
    }

    /// Tells whether the next piece is the key of a member.
    pub(super) fn wants_key(&self) -> bool {
        self.open.last().is_some_and(|open| open.wants_key)
    }

    /// Tells whether the value is whole, or goes too deep to be wanted whole.
    pub(super) fn is_done(&self) -> bool {
        self.is_begun && self.open.is_empty() || self.is_too_deep
    }

    pub(super) const fn is_too_deep(&self) -> bool {
        self.is_too_deep
    }

    pub(super) fn finish(self) -> Vec<u8> {
        self.text.into_bytes()
    }

    pub(super) fn key(&mut self, name: &str) -> Result<(), Broken> {
        if let Some(open) = self.open.last_mut() {
            open.wants_key = false;
            if !std::mem::take(&mut open.is_first) {
                self.text.push(',');
            }
        }
        write_string(&mut self.text, name);
        self.text.push(':');
        self.check()
    }

    pub(super) fn null(&mut self) -> Result<(), Broken> {
        self.scalar(|text| text.push_str("null"))
    }

    pub(super) fn bool(&mut self, value: bool) -> Result<(), Broken> {
        self.scalar(|text| text.push_str(if value { "true" } else { "false" }))
    }

    /// Writes a number by its JSON text.
    pub(super) fn number(&mut self, number: &str) -> Result<(), Broken> {
        self.scalar(|text| text.push_str(number))
    }

    pub(super) fn float(&mut self, value: f64) -> Result<(), Broken> {
        self.number(&float(value))
    }

    pub(super) fn string(&mut self, value: &str) -> Result<(), Broken> {
        self.scalar(|text| write_string(text, value))
    }

    /// Writes bytes in kombu's typed form.
    pub(super) fn bytes(&mut self, value: &[u8]) -> Result<(), Broken> {
        self.scalar(|text| typed::write_bytes(text, value))
    }

    pub(super) fn begin_array(&mut self, count: u32) -> Result<(), Broken> {
        self.begin(false, count)
    }

    pub(super) fn begin_object(&mut self, count: u32) -> Result<(), Broken> {
        self.begin(true, count)
    }

    fn begin(&mut self, is_object: bool, count: u32) -> Result<(), Broken> {
        self.before();
        self.text.push(if is_object { '{' } else { '[' });
        self.open.push(Open { is_object, missing: count.into(), is_first: true, wants_key: is_object && count > 0 });
        self.is_too_deep |= self.open.len() > DEEPEST;
        self.after();
        self.check()
    }

    fn scalar(&mut self, write: impl FnOnce(&mut String)) -> Result<(), Broken> {
        self.before();
        write(&mut self.text);
        if let Some(open) = self.open.last_mut() {
            open.missing -= 1;
        }
        self.after();
        self.check()
    }

    fn before(&mut self) {
        self.is_begun = true;
        if let Some(open) = self.open.last_mut()
            && !open.is_object
            && !std::mem::take(&mut open.is_first)
        {
            self.text.push(',');
        }
    }

    /// Closes what is whole.
    fn after(&mut self) {
        while let Some(open) = self.open.last_mut() {
            if open.missing > 0 {
                open.wants_key = open.is_object;
                break;
            }
            self.text.push(if open.is_object { '}' } else { ']' });
            self.open.pop();
            if let Some(outer) = self.open.last_mut() {
                outer.missing -= 1;
            }
        }
    }

    fn check(&self) -> Result<(), Broken> {
        if self.text.len() > self.limit { Err(Broken::TooLong) } else { Ok(()) }
    }
}

/// Returns the JSON text of a double, as Python reads it.
pub(super) fn float(value: f64) -> String {
    if value.is_nan() {
        "NaN".to_owned()
    } else if value.is_infinite() {
        if value > 0.0 { "Infinity" } else { "-Infinity" }.to_owned()
    } else {
        format!("{value:?}")
    }
}
