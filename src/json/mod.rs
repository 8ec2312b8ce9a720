//! Reads and writes Python's JSON without changing a value.
//!
//! Celery's producers write what `json.dumps` writes: unbounded integers, floats as Python prints them, `NaN` and the
//! infinities, any nesting. A conversion to `f64` would change some numbers, so each number stays the text that
//! arrived. This room knows neither queue nor storage; every other room may use it.

mod parse;
mod python;
pub mod typed;
mod write;

pub use parse::{Error, ErrorKind, MAX_DEPTH, ParseLimits, check, parse};
pub use python::as_python;
pub use write::{text_len, write_string};

/// One JSON value as Python's `json` module reads it.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Json {
    /// `null`, Python's `None`.
    Null,
    /// `true` or `false`.
    Bool(bool),
    /// A number as its own text: `2`, `-0.0`, `1e400`, an integer of any length, `NaN`, `Infinity` or `-Infinity`.
    Number(Box<str>),
    /// A string.
    Text(String),
    /// An array.
    Array(Vec<Self>),
    /// An object in the order of the document. Of a repeated name the last value is kept, as in Python.
    Object(Vec<(String, Self)>),
}

impl Json {
    /// Returns the string when this value is a string.
    #[must_use]
    pub fn as_text(&self) -> Option<&str> {
        match self {
            Self::Text(text) => Some(text),
            _ => None,
        }
    }

    /// Returns the members when this value is an object.
    #[must_use]
    pub fn as_object(&self) -> Option<&[(String, Self)]> {
        match self {
            Self::Object(members) => Some(members),
            _ => None,
        }
    }

    /// Returns the elements when this value is an array.
    #[must_use]
    pub fn as_array(&self) -> Option<&[Self]> {
        match self {
            Self::Array(elements) => Some(elements),
            _ => None,
        }
    }

    /// Returns the boolean when this value is a boolean.
    #[must_use]
    pub fn as_bool(&self) -> Option<bool> {
        match self {
            Self::Bool(value) => Some(*value),
            _ => None,
        }
    }

    /// Returns the number when this value is an integer that fits into 64 bits; `1.0` is not an integer.
    #[must_use]
    pub fn as_i64(&self) -> Option<i64> {
        match self {
            Self::Number(text) => text.parse().ok(),
            _ => None,
        }
    }

    /// Returns the nearest double when this value is a number; `NaN` and the infinities are numbers.
    #[must_use]
    pub fn as_f64(&self) -> Option<f64> {
        match self {
            Self::Number(text) => match &**text {
                "NaN" => Some(f64::NAN),
                "Infinity" => Some(f64::INFINITY),
                "-Infinity" => Some(f64::NEG_INFINITY),
                text => text.parse().ok(),
            },
            _ => None,
        }
    }

    /// Tells whether Python counts this value as false.
    ///
    /// Celery takes such a value for an empty list or dict, whichever it expects. PHP, for example, writes an empty map
    /// as `[]`.
    #[must_use]
    pub fn is_falsy(&self) -> bool {
        match self {
            Self::Null => true,
            Self::Bool(value) => !value,
            Self::Number(_) => self.as_f64() == Some(0.0),
            Self::Text(text) => text.is_empty(),
            Self::Array(items) => items.is_empty(),
            Self::Object(members) => members.is_empty(),
        }
    }

    /// Tells whether more than so many arrays and objects are inside one another; a scalar is none.
    #[must_use]
    pub fn is_deeper_than(&self, levels: usize) -> bool {
        let inside = |value: &Self| value.is_deeper_than(levels - 1);
        match self {
            Self::Array(_) | Self::Object(_) if levels == 0 => true,
            Self::Array(elements) => elements.iter().any(inside),
            Self::Object(members) => members.iter().any(|(_, value)| inside(value)),
            Self::Null | Self::Bool(_) | Self::Number(_) | Self::Text(_) => false,
        }
    }

    /// Tells whether this value is `null`.
    #[must_use]
    pub const fn is_null(&self) -> bool {
        matches!(self, Self::Null)
    }

    /// Returns the member of this name when this value is an object that has one.
    #[must_use]
    pub fn get(&self, name: &str) -> Option<&Self> {
        self.as_object()?.iter().find(|(key, _)| key == name).map(|(_, value)| value)
    }

    /// Returns the name of the Python type this value decodes to, for error messages: `str`, `int`, `float`, `dict`…
    #[must_use]
    pub fn python_type(&self) -> &'static str {
        match self {
            Self::Null => "NoneType",
            Self::Bool(_) => "bool",
            Self::Number(text) if text.bytes().all(|byte| byte.is_ascii_digit() || byte == b'-') => "int",
            Self::Number(_) => "float",
            Self::Text(_) => "str",
            Self::Array(_) => "list",
            Self::Object(_) => "dict",
        }
    }
}

impl From<&str> for Json {
    fn from(text: &str) -> Self {
        Self::Text(text.to_owned())
    }
}

impl From<String> for Json {
    fn from(text: String) -> Self {
        Self::Text(text)
    }
}

impl From<bool> for Json {
    fn from(value: bool) -> Self {
        Self::Bool(value)
    }
}

impl From<i64> for Json {
    fn from(value: i64) -> Self {
        Self::Number(value.to_string().into_boxed_str())
    }
}
