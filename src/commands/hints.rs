//! What metadata says of the object beside which it is kept.

use std::sync::Once;

use jiff::Timestamp;

use super::Key;
use crate::instant::{self, NEVER};
use crate::json::Json;
use crate::storage::{ContentType, StoreOptions};

/// The members `content_type` and `expires_at` of metadata, which stand for the arguments of a store that has none.
///
/// Both stay metadata as well. What says nothing usable is metadata only.
#[derive(Clone, Debug, Default)]
pub struct Hints {
    content_type: Hint<ContentType>,
    expires_at: Hint<Timestamp>,
}

/// What the metadata says about one option of a store, such as the content type.
#[derive(Clone, Debug, Default)]
enum Hint<T> {
    /// The metadata has no member of the option's name.
    #[default]
    None,
    /// The member has this value.
    Said(T),
    /// The member has a value that the option cannot take.
    Unusable,
}

impl<T> From<Option<T>> for Hint<T> {
    fn from(said: Option<T>) -> Self {
        said.map_or(Self::Unusable, Self::Said)
    }
}

impl Hints {
    /// Reads the metadata of a store.
    ///
    /// A content type is a MIME type. An expiry is ISO 8601, or kombu's typed datetime, with an offset: without one nobody
    /// knows which time is meant.
    #[must_use]
    pub fn of(metadata: &Json) -> Self {
        let said = |name: &str| metadata.get(name).filter(|value| !value.is_null());
        Self {
            content_type: said("content_type")
                .map_or(Hint::None, |value| value.as_text().and_then(|text| ContentType::parse(text).ok()).into()),
            expires_at: said("expires_at").map_or(Hint::None, |value| {
                let text = datetime_text(value).filter(|text| !text.contains('['));
                text.and_then(instant::read_with_offset).into()
            }),
        }
    }

    /// Leaves the expiry to the arguments, which name one.
    pub(super) fn without_expiry(self) -> Self {
        Self { expires_at: Hint::None, ..self }
    }

    /// Sets the options of a store that began at `now` where they are not set. Only an expiry in the future counts.
    ///
    /// What is not usable is logged, once for each of the two members in the life of the process.
    pub fn apply(self, key: &Key, options: &mut StoreOptions, now: Timestamp) {
        static CONTENT_TYPE: Once = Once::new();
        static EXPIRES_AT: Once = Once::new();
        match self.content_type {
            Hint::None => {}
            _ if options.content_type.is_some() => {}
            Hint::Said(content_type) => options.content_type = Some(content_type),
            Hint::Unusable => CONTENT_TYPE.call_once(|| {
                tracing::warn!(%key, "`content_type` in metadata is no MIME type; it is kept as metadata only");
            }),
        }
        match self.expires_at {
            Hint::None => {}
            _ if options.expires_at.is_some() => {}
            Hint::Said(at) if at == NEVER => {}
            Hint::Said(at) if at > now => options.expires_at = Some(at),
            Hint::Said(_) | Hint::Unusable => EXPIRES_AT.call_once(|| {
                tracing::warn!(
                    %key,
                    "`expires_at` in metadata is no time in the future with an offset; it is kept as metadata only, \
                     and the value does not expire"
                );
            }),
        }
    }
}

/// Returns the text of a time: a text, or kombu's typed datetime.
pub(super) fn datetime_text(value: &Json) -> Option<&str> {
    match (value.as_text(), value.get("__type__"), value.get("__value__")) {
        (Some(text), ..) => Some(text),
        (None, Some(Json::Text(kind)), Some(Json::Text(text))) if kind == "datetime" => Some(text),
        _ => None,
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::json::{ParseLimits, parse};

    fn applied(metadata: &str, now: &str) -> (Option<String>, Option<String>) {
        let mut options = StoreOptions::default();
        let hints = Hints::of(&parse(metadata.as_bytes(), ParseLimits::default()).unwrap());
        hints.apply(&Key::parse("k").unwrap(), &mut options, now.parse().unwrap());
        let text = options.content_type.map(|content_type| content_type.as_str().to_owned());
        (text, options.expires_at.map(|at| at.to_string()))
    }

    #[test]
    fn only_what_is_usable_is_said() {
        let now = "2030-01-01T00:00:00Z";
        let at = Some("2030-01-02T01:04:05Z".to_owned());
        assert_eq!(applied(r#"{"content_type":"text/csv"}"#, now), (Some("text/csv".to_owned()), None));
        assert_eq!(applied(r#"{"expires_at":"2030-01-02T03:04:05+02:00"}"#, now), (None, at.clone()));
        let typed = r#"{"expires_at":{"__type__":"datetime","__value__":"2030-01-02T03:04:05+02:00"}}"#;
        assert_eq!(applied(typed, now), (None, at));
        assert_eq!(applied(typed, "2030-01-02T01:04:05Z"), (None, None), "not in the future");
        for metadata in [
            "{}",
            r#"{"content_type":null,"expires_at":null}"#,
            r#"{"content_type":"csv","expires_at":"2031-01-02T03:04:05"}"#,
            r#"{"content_type":1,"expires_at":1900000000}"#,
            r#"{"content_type":["text/csv"],"expires_at":"2031-01-02"}"#,
            r#"{"expires_at":"2031-01-02T03:04:05Z[Europe/Berlin]"}"#,
            r#"{"expires_at":{"__type__":"date","__value__":"2031-01-02"}}"#,
            r#"{"expires_at":"9999-12-31T23:59:59.999999+00:00"}"#,
            r#"{"a":{"content_type":"text/csv","expires_at":"2031-01-02T03:04:05Z"}}"#,
        ] {
            assert_eq!(applied(metadata, now), (None, None), "{metadata}");
        }
    }

    #[test]
    fn arguments_come_first() {
        let text = r#"{"content_type":"text/csv","expires_at":"2030-01-02T00:00:00Z"}"#;
        let hints = Hints::of(&parse(text.as_bytes(), ParseLimits::default()).unwrap());
        let key = Key::parse("k").unwrap();
        let (now, given): (Timestamp, Timestamp) =
            ("2030-01-01T00:00:00Z".parse().unwrap(), "2030-06-01T00:00:00Z".parse().unwrap());
        let content_type = ContentType::parse("image/png").ok();
        let mut options =
            StoreOptions { content_type: content_type.clone(), expires_at: Some(given), ..StoreOptions::default() };
        hints.clone().apply(&key, &mut options, now);
        assert_eq!((options.content_type, options.expires_at), (content_type, Some(given)));
        // The argument said "never".
        let mut options = StoreOptions::default();
        hints.without_expiry().apply(&key, &mut options, now);
        assert_eq!((options.content_type.is_some(), options.expires_at), (true, None));
    }
}
