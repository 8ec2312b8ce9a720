//! The text of a JSON value.

use bytes::Bytes;

use crate::json;

/// The text of one JSON value, as Python reads JSON: integers of any size, `NaN` and the infinities.
///
/// Whoever has one need not parse the value again.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct JsonText(String);

impl JsonText {
    /// Takes a text that is JSON, nested no deeper than [`json::MAX_DEPTH`].
    ///
    /// # Errors
    ///
    /// [`json::Error`] for any other text.
    pub fn parse(text: impl Into<String>) -> Result<Self, json::Error> {
        let text = text.into();
        json::check(&text)?;
        Ok(Self(text))
    }

    /// Takes the text of a value that was parsed already, and is nested no deeper.
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
