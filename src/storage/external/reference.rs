//! URLs that name a file or an object of a bucket.

use std::ffi::OsString;
use std::fmt;
use std::os::unix::ffi::OsStringExt as _;
use std::path::{Path, PathBuf};

use crate::provider::Provider;
use crate::storage::object::Key;

/// A file or an object of a bucket, named by a URL.
///
/// - `file:///absolute/path`, as RFC 8089 says: percent-encoded, no host, no query or fragment.
///   Characters that a URL would have to encode but that have no other meaning here (blanks, letters beyond ASCII) may
///   be written unencoded.
/// - `gs://bucket/object` and `s3://bucket/object`: the object's name follows literally, and nothing is decoded.
#[derive(Clone, PartialEq, Eq)]
pub struct Reference(pub(super) Target);

#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) enum Target {
    /// An absolute path in which every component is a name.
    File(PathBuf),
    Object {
        provider: Provider,
        bucket: String,
        key: Key,
    },
}

/// The reason why a text is no reference. The message names the fault and the rule, never the text, which may be
/// secret.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
#[error("{0}")]
pub struct ReferenceError(String);

/// Longest bucket name of all stores, in bytes.
const MAX_BUCKET_BYTES: usize = 255;

impl Reference {
    /// Tells whether a text is meant as a reference, by its scheme alone.
    #[must_use]
    pub fn is_meant(text: &str) -> bool {
        split(text).is_some()
    }

    /// Reads a reference.
    ///
    /// # Errors
    ///
    /// [`ReferenceError`] with the fault and the rule.
    pub fn parse(text: &str) -> Result<Self, ReferenceError> {
        match split(text) {
            Some((None, remainder)) => file(remainder).map(|path| Self(Target::File(path))),
            Some((Some(provider), remainder)) => object(provider, remainder).map(Self),
            None => fault("a reference begins with file:///, gs:// or s3://"),
        }
    }
}

/// Writes a file as its path and an object as its URL.
impl fmt::Display for Reference {
    fn fmt(&self, formatter: &mut fmt::Formatter<'_>) -> fmt::Result {
        match &self.0 {
            Target::File(path) => write!(formatter, "{}", path.display()),
            Target::Object { provider, bucket, key } => write!(formatter, "{}://{bucket}/{key}", provider.scheme()),
        }
    }
}

impl fmt::Debug for Reference {
    fn fmt(&self, formatter: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(formatter, "{:?}", self.to_string())
    }
}

fn fault<T>(why: impl Into<String>) -> Result<T, ReferenceError> {
    Err(ReferenceError(why.into()))
}

/// Separates the scheme, written in any case, from the text after it. No provider means `file`.
fn split(text: &str) -> Option<(Option<Provider>, &str)> {
    [("file:", None), ("gs:", Some(Provider::Gcs)), ("s3:", Some(Provider::S3))].into_iter().find_map(
        |(begin, scheme)| {
            let head = text.get(..begin.len()).filter(|head| head.eq_ignore_ascii_case(begin))?;
            Some((scheme, &text[head.len()..]))
        },
    )
}

/// Reads the part of a file URL after `file:`.
fn file(remainder: &str) -> Result<PathBuf, ReferenceError> {
    let Some(path) = remainder.strip_prefix("//").filter(|path| path.starts_with('/')) else {
        return fault("a file URL names no host: three slashes follow file:, as in file:///data/in/a.bin");
    };
    if path.contains(['?', '#']) {
        return fault("a file URL has no query and no fragment; write ? as %3F and # as %23");
    }
    let mut decoded = PathBuf::from("/");
    for segment in path.split('/').skip(1) {
        let name = percent_decode(segment)?;
        match name.as_slice() {
            b"" => return fault("the path of a file URL has an empty segment: no trailing or doubled `/`"),
            b"." | b".." => return fault("the path of a file URL has the segment `.` or `..`, encoded or not"),
            name if name.contains(&b'/') => return fault("a name in a file URL holds %2F, which no file name can"),
            name if name.contains(&0) => return fault("a name in a file URL holds %00, which no file name can"),
            _ => decoded.push(OsString::from_vec(name)),
        }
    }
    if decoded == Path::new("/") { fault("a file URL needs an absolute path") } else { Ok(decoded) }
}

fn percent_decode(segment: &str) -> Result<Vec<u8>, ReferenceError> {
    let mut parts = segment.split('%');
    let mut out = parts.next().unwrap_or_default().as_bytes().to_vec();
    for part in parts {
        let digits = part.get(..2).filter(|digits| digits.bytes().all(|digit| digit.is_ascii_hexdigit()));
        let Some(byte) = digits.and_then(|digits| u8::from_str_radix(digits, 16).ok()) else {
            return fault("a % in a file URL is not followed by two hexadecimal digits; write % as %25");
        };
        out.push(byte);
        out.extend_from_slice(&part.as_bytes()[2..]);
    }
    Ok(out)
}

/// Reads the part of an object URL after `gs:` or `s3:`.
fn object(provider: Provider, remainder: &str) -> Result<Target, ReferenceError> {
    let name = provider.scheme();
    let Some(remainder) = remainder.strip_prefix("//") else {
        return fault(format!("two slashes follow {name}:, as in {name}://bucket/object"));
    };
    let Some((bucket, object)) = remainder.split_once('/') else {
        return fault(format!("a bucket is named without an object; write {name}://bucket/object"));
    };
    // Whether a bucket can have this name is decided by the list of buckets that commands may name: a name that the provider
    // would refuse is on no list. Here the name only has to be one that a URL can hold.
    let legal = |byte: u8| byte.is_ascii_alphanumeric() || matches!(byte, b'.' | b'_' | b'-');
    let ends = [bucket.bytes().next(), bucket.bytes().next_back()];
    if bucket.len() > MAX_BUCKET_BYTES
        || !bucket.bytes().all(legal)
        || !ends.iter().all(|end| end.is_some_and(|end| end.is_ascii_alphanumeric()))
    {
        return fault(format!("the bucket of a {name}:// reference is no bucket name"));
    }
    let key = Key::parse(object).map_err(|error| ReferenceError(format!("the object's name is no key: {error}")))?;
    Ok(Target::Object { provider, bucket: bucket.to_owned(), key })
}

#[cfg(test)]
mod tests {
    use std::os::unix::ffi::OsStrExt as _;

    use proptest::prelude::*;

    use super::*;

    fn path(text: &str) -> Option<PathBuf> {
        match Reference::parse(text) {
            Ok(Reference(Target::File(path))) => Some(path),
            _ => None,
        }
    }

    #[test]
    fn file_urls_are_decoded() {
        for (text, wanted) in [
            ("file:///a", "/a"),
            ("file:///data/in/a.bin", "/data/in/a.bin"),
            ("FILE:///data/a", "/data/a"),
            ("file:///a%20b/%C3%BC%25", "/a b/\u{fc}%"),
            ("file:///a b/\u{fc}/\u{1f980}+&=~$", "/a b/\u{fc}/\u{1f980}+&=~$"),
            ("file:///%2525", "/%25"),
            ("file:///...", "/..."),
            ("file:///.hidden/a..b", "/.hidden/a..b"),
            ("file:///a%3Fb%23c", "/a?b#c"),
            ("file:///line%0Afeed", "/line\nfeed"),
            ("file:///C:/x", "/C:/x"),
        ] {
            assert_eq!(path(text), Some(PathBuf::from(wanted)), "{text}");
        }
        assert_eq!(path("file:///%ff").unwrap().as_os_str().as_bytes(), b"/\xff");
    }

    #[test]
    fn ambiguous_references_are_refused() {
        for text in [
            "file:",
            "file:a",
            "file:/data/a",
            "file:./a",
            "file:\\\\host\\a",
            "file://localhost/data/a",
            "file://host/a",
            "file://127.0.0.1/a",
            "file://user@localhost/a",
            "file://localhost:80/a",
            "file://",
            "file:///",
            "file:/",
            "file://localhost",
            "file:///a/",
            "file:///a//b",
            "file:////a",
            "file:///.",
            "file:///..",
            "file:///a/../b",
            "file:///a/%2e%2e/b",
            "file:///a/.%2E/b",
            "file:///a/%2e/b",
            "file:///a%2Fb",
            "file:///a%2fb",
            "file:///a%00",
            "file:///a%",
            "file:///a%2",
            "file:///a%zz",
            "file:///a%+1",
            "file:///a%\u{fc}",
            "file:///a?b",
            "file:///a#b",
            "gs://bucket",
            "gs://bucket/",
            "gs:///a",
            "gs://bu cket/a",
            "gs://bkt@host/a",
            "gs://bkt:1/a",
            "gs://.b/a",
            "gs://bkt./a",
            "gs://bkt%2fc/a",
            "gs://bkt//a",
            "gs://bkt/../a",
            "gs:",
            "gs:/b/a",
            "gs:bkt/a",
            "s3:/x",
            "S3:x",
            "s3://bkt/a/",
            "s3://bkt/a\n",
        ] {
            assert!(Reference::is_meant(text), "{text}");
            let error = Reference::parse(text).unwrap_err().to_string();
            assert!(!error.is_empty() && !error.contains("file:///a"), "{text}: {error}");
        }
        for text in [
            "",
            "/a",
            "a",
            "file",
            "files:///a",
            " file:///a",
            "gcs://b/a",
            "s3",
            "https://h/a?X-Goog-Signature=secret",
            "#/x",
        ] {
            assert!(!Reference::is_meant(text), "{text}");
            assert!(!Reference::parse(text).unwrap_err().to_string().contains("secret"), "{text}");
        }
    }

    #[test]
    fn object_names_are_taken_literally() {
        for (text, bucket, object) in [
            ("gs://bucket/a/b", "bucket", "a/b"),
            ("GS://my.bucket-1_x/a%20b", "my.bucket-1_x", "a%20b"),
            ("s3://bucket/a?b#c+d e", "bucket", "a?b#c+d e"),
            ("s3://bkt/\u{1f980}", "bkt", "\u{1f980}"),
        ] {
            let Reference(Target::Object { provider, bucket: found, key }) = Reference::parse(text).unwrap() else {
                unreachable!()
            };
            assert_eq!((found.as_str(), key.as_str()), (bucket, object), "{text}");
            assert_eq!(provider == Provider::Gcs, text.to_ascii_lowercase().starts_with("gs"));
        }
        assert_eq!(Reference::parse("GS://bkt/a").unwrap().to_string(), "gs://bkt/a");
        assert_eq!(format!("{:?}", Reference::parse("file:///a%20b").unwrap()), "\"/a b\"");
    }

    proptest! {
        #[test]
        fn a_path_never_holds_dots_and_is_never_relative(text in "(file:/{1,3})((%2[eEfF]|%00|\\.|/|a|%25|\\?|localhost){0,12})") {
            if let Some(path) = path(&text) {
                prop_assert!(path.is_absolute());
                let mut components = path.components();
                components.next();
                prop_assert!(components.all(|it| matches!(it, std::path::Component::Normal(_))), "{:?}", path);
            }
        }

        #[test]
        fn anything_is_parsed_or_refused(text in "\\PC{0,40}", scheme in "(file:|file://|gs://|s3://|)") {
            drop(Reference::parse(&format!("{scheme}{text}")));
        }

        #[test]
        fn every_path_has_a_url(names in proptest::collection::vec("[^/\0]{1,20}", 1..5)) {
            let names: Vec<_> = names.into_iter().filter(|name| name != "." && name != "..").collect();
            prop_assume!(!names.is_empty());
            let encode = |name: &String| name.bytes().map(|byte| format!("%{byte:02X}")).collect::<String>();
            let url = format!("file:///{}", names.iter().map(encode).collect::<Vec<_>>().join("/"));
            prop_assert_eq!(path(&url), Some(PathBuf::from(format!("/{}", names.join("/")))));
        }
    }
}
