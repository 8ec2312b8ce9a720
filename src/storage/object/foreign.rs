//! The properties of an object of another tool that no value of this program has.

use std::borrow::Cow;
use std::collections::BTreeMap;

use bytes::Bytes;

use crate::charset::Charset;

/// The properties that another tool gave its object. They are copied wherever the object is copied.
#[derive(Clone, Debug, Default, PartialEq, Eq, serde::Serialize, serde::Deserialize)]
pub struct Foreign {
    /// Whether another tool wrote the object. Its custom metadata is then meant for others, too.
    #[serde(default, skip_serializing_if = "is_false")]
    pub other_tool: bool,
    /// The charset of the text as the headers name it; none for UTF-8.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub charset: Option<String>,
    /// The headers that are copied with the object, by their names in lower case.
    #[serde(default, skip_serializing_if = "BTreeMap::is_empty")]
    pub headers: BTreeMap<String, String>,
}

/// The headers that are copied: those that both clouds keep, and those that only one of them keeps.
pub(in crate::storage) const HEADERS: [&str; 5] =
    ["cache-control", "content-disposition", "content-language", "expires", "x-amz-website-redirect-location"];

#[expect(clippy::trivially_copy_pass_by_ref, reason = "serde asks so")]
const fn is_false(flag: &bool) -> bool {
    !*flag
}

impl Foreign {
    /// Tells whether no property is set.
    #[must_use]
    pub fn is_empty(&self) -> bool {
        !self.other_tool && self.charset.is_none() && self.headers.is_empty()
    }

    /// Converts the text of the object to UTF-8.
    ///
    /// # Errors
    ///
    /// A message that names the charset, which is unknown or not that of the bytes, and the remedy.
    pub(in crate::storage) fn decode(&self, bytes: &Bytes) -> Result<Bytes, String> {
        let remedy = "read the bytes with `offset=0`, or correct the object's content type with the bucket's own tool";
        let name = self.charset.as_deref().unwrap_or("utf-8");
        // A header may be long, and a message should not be.
        let shown: String = name.chars().take(64).collect();
        let Some(charset) = Charset::of_web(name) else {
            return Err(format!(
                "the object's text is in the charset {shown:?}, which this program does not know; {remedy}"
            ));
        };
        match charset.decode(bytes) {
            Some(Cow::Borrowed(text)) => Ok(bytes.slice_ref(text.as_bytes())),
            Some(Cow::Owned(text)) => Ok(text.into()),
            None => {
                Err(format!("the object's text is not in the charset {shown:?} that its content type names; {remedy}"))
            }
        }
    }
}

/// Reads the charset from a content type; none where the content type names UTF-8 or no charset.
pub(in crate::storage) fn charset_of(content_type: &str) -> Option<String> {
    let named = content_type.split(';').skip(1).find_map(|parameter| {
        let (name, value) = parameter.split_once('=')?;
        name.trim().eq_ignore_ascii_case("charset").then(|| value.trim().trim_matches(['"', '\'']).trim())
    });
    named.filter(|name| !name.is_empty() && Charset::of_web(name) != Some(Charset::Utf8)).map(str::to_owned)
}

/// Replaces the charset of a content type by UTF-8, where the content type names one.
pub(in crate::storage) fn in_utf8(content_type: &str) -> String {
    let parameters = content_type.split(';').map(|parameter| match parameter.split_once('=') {
        Some((name, _)) if name.trim().eq_ignore_ascii_case("charset") => " charset=utf-8",
        _ => parameter,
    });
    parameters.collect::<Vec<_>>().join(";")
}

/// The meaning of a `Content-Encoding`, without the names that stand for no change of the bytes.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub(in crate::storage) struct Coding {
    /// The codec in lower case: `gzip`, `zstd`, or any other name.
    pub(in crate::storage) codec: Option<String>,
    /// A charset, which some tools write into this header.
    pub(in crate::storage) charset: Option<String>,
}

impl Coding {
    /// Reads the header: names in any case, joined by commas.
    pub(in crate::storage) fn read(header: &str) -> Self {
        let mut coding = Self::default();
        let mut codecs = Vec::new();
        for name in header.split(',').map(|name| name.trim().to_ascii_lowercase()) {
            match name.as_str() {
                // These names tell how an upload was framed or sent, or that nothing was encoded.
                "" | "identity" | "none" | "null" | "binary" | "aws-chunked" | "8bit" | "7bit" | "plain" | "raw" => {}
                "x-gzip" => codecs.push("gzip".to_owned()),
                _ => match Charset::of_web(&name) {
                    Some(Charset::Utf8 | Charset::Ascii) => {}
                    Some(_) => coding.charset = Some(name),
                    None => codecs.push(name),
                },
            }
        }
        coding.codec = (!codecs.is_empty()).then(|| codecs.join(","));
        coding
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_charset_is_read_out_of_a_content_type() {
        for (content_type, charset) in [
            ("text/plain", None),
            ("text/plain; charset=utf-8", None),
            ("text/plain;CHARSET=\"UTF8\"", None),
            ("text/plain; charset=", None),
            ("text/csv; header=present; charset=UTF-16LE", Some("UTF-16LE")),
            ("text/plain; charset='windows-1252'", Some("windows-1252")),
            ("text/plain; charset=klingon", Some("klingon")),
        ] {
            assert_eq!(charset_of(content_type).as_deref(), charset, "{content_type}");
        }
        assert_eq!(in_utf8("text/csv; a=b; charset=utf-16le; c"), "text/csv; a=b; charset=utf-8; c");
    }

    #[test]
    fn a_text_is_decoded_or_its_charset_named() {
        let foreign = |charset: &str| Foreign { charset: Some(charset.to_owned()), ..Foreign::default() };
        let decoded = |charset, bytes: &'static [u8]| foreign(charset).decode(&Bytes::from_static(bytes));
        assert_eq!(decoded("utf-16le", b"h\0\xe9\0").unwrap(), "hé");
        assert_eq!(decoded("windows-1252", b"\x80").unwrap(), "€");
        assert_eq!(Foreign::default().decode(&Bytes::from_static("é".as_bytes())).unwrap(), "é");
        for (charset, bytes) in
            [("klingon", &b"a"[..]), ("utf-16le", b"a"), ("us-ascii", b"\xe9"), ("shift_jis", b"\x82")]
        {
            let why = foreign(charset).decode(&Bytes::copy_from_slice(bytes)).unwrap_err();
            assert!(why.contains(charset) && why.contains("`offset=0`"), "{why}");
        }
    }

    #[test]
    fn content_encodings_without_effect_are_ignored() {
        for (header, codec, charset) in [
            ("", None, None),
            ("identity", None, None),
            ("UTF-8", None, None),
            ("utf8", None, None),
            ("None", None, None),
            ("BINARY", None, None),
            ("aws-chunked", None, None),
            ("aws-chunked, GZIP", Some("gzip"), None),
            ("gzip, identity", Some("gzip"), None),
            ("x-gzip", Some("gzip"), None),
            ("Zstd", Some("zstd"), None),
            ("br", Some("br"), None),
            ("gzip,gzip", Some("gzip,gzip"), None),
            ("deflate, br", Some("deflate,br"), None),
            ("latin-1", None, Some("latin-1")),
            ("gzip, utf-16le", Some("gzip"), Some("utf-16le")),
        ] {
            let found = Coding::read(header);
            assert_eq!((found.codec.as_deref(), found.charset.as_deref()), (codec, charset), "{header}");
        }
    }
}
