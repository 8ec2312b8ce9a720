//! The text of a JSON value.

use bytes::Bytes;
use jiter::Jiter;

/// The text of one JSON value, as Python reads JSON: integers of any size, `NaN` and the infinities.
///
/// Whoever has one need not parse the value again.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct JsonText(String);

impl JsonText {
    /// Takes a text that is JSON, nested no deeper than 200; gives any other back.
    ///
    /// # Errors
    ///
    /// The text itself.
    pub fn parse(text: impl Into<String>) -> Result<Self, String> {
        let text = text.into();
        let mut reader = Jiter::new(text.as_bytes()).with_allow_inf_nan();
        let is_json = reader.next_skip().is_ok() && reader.finish().is_ok();
        if is_json { Ok(Self(text)) } else { Err(text) }
    }

    /// Takes the text of a value that was parsed already.
    #[must_use]
    pub fn of_parsed(text: String) -> Self {
        Self(text)
    }

    /// Returns the text.
    #[must_use]
    pub fn as_str(&self) -> &str {
        &self.0
    }
}

impl From<JsonText> for String {
    fn from(json: JsonText) -> Self {
        json.0
    }
}

impl From<JsonText> for Bytes {
    fn from(json: JsonText) -> Self {
        json.0.into()
    }
}
