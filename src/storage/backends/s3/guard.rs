//! Conditions in the form of request headers.

use http::{HeaderMap, HeaderValue, header};

/// The condition that the store checks when it writes or removes.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) enum Guard {
    /// The store checks nothing.
    None,
    /// The key has no object.
    Absent,
    /// The object has this entity tag.
    Same(String),
}

impl Guard {
    pub(super) fn headers(&self) -> HeaderMap {
        let (name, value) = match self {
            Self::None => return HeaderMap::new(),
            Self::Absent => (header::IF_NONE_MATCH, Ok(HeaderValue::from_static("*"))),
            Self::Same(etag) => (header::IF_MATCH, HeaderValue::from_str(&format!("\"{etag}\""))),
        };
        // The tag was received in a header, so it is a legal header value.
        value.map(|value| HeaderMap::from_iter([(name, value)])).unwrap_or_default()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_tag_is_sent_unchanged() {
        let headers = Guard::Same("9dd4-1".to_owned()).headers();
        assert_eq!(headers[header::IF_MATCH], "\"9dd4-1\"");
        assert_eq!(Guard::Absent.headers()[header::IF_NONE_MATCH], "*");
        assert!(Guard::None.headers().is_empty());
    }
}
