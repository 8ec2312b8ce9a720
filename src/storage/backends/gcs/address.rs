//! The address of a bucket: its name, and the server that has it.

use std::fmt;

use percent_encoding::{AsciiSet, NON_ALPHANUMERIC, utf8_percent_encode};
use reqwest::Url;

use super::Key;

/// Google's own server.
const GOOGLE: &str = "https://storage.googleapis.com";

/// Everything but the unreserved characters, so that an object's name is one segment of a path.
const ENCODED: &AsciiSet = &NON_ALPHANUMERIC.remove(b'-').remove(b'.').remove(b'_').remove(b'~');

/// The checked name of a bucket, and its server.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) struct GcsAddress {
    bucket: String,
    /// Scheme, host and port, without a slash at the end.
    server: String,
    emulator: bool,
    /// The proxy that requests pass through.
    proxy: Option<String>,
}

impl GcsAddress {
    /// Checks the name of a bucket and the URL of its server; without a URL the server is Google's.
    ///
    /// # Errors
    ///
    /// A message that names the fault and the remedy.
    pub(super) fn parse(bucket: &str, server: Option<&str>) -> Result<Self, String> {
        if !is_bucket(bucket) {
            let rule = "3 to 222 lower-case letters, digits, `-`, `_` and `.`, without `gs://`";
            return Err(format!("{bucket:?} is no name of a bucket; correct gcs_bucket_name: {rule}"));
        }
        let server_url = server.map(parse_server).transpose()?;
        Ok(Self {
            bucket: bucket.to_owned(),
            emulator: server_url.is_some(),
            server: server_url.unwrap_or_else(|| GOOGLE.to_owned()),
            proxy: None,
        })
    }

    /// Adds the proxy that requests pass through, which errors name.
    pub(super) fn through(self, proxy: Option<String>) -> Self {
        Self { proxy, ..self }
    }

    pub(super) fn bucket(&self) -> &str {
        &self.bucket
    }

    /// Returns scheme, host and port, without a slash at the end.
    pub(super) fn server(&self) -> &str {
        &self.server
    }

    /// Tells whether the server is not Google's.
    pub(super) const fn is_emulator(&self) -> bool {
        self.emulator
    }

    /// Returns the name of the bucket as Google's crate expects it.
    pub(super) fn resource(&self) -> String {
        format!("projects/_/buckets/{}", self.bucket)
    }

    /// Returns the URL at which buckets are created.
    pub(super) fn buckets(&self) -> String {
        format!("{}/storage/v1/b", self.server)
    }

    /// Returns the URL at which objects are listed.
    pub(super) fn objects(&self) -> String {
        format!("{}/storage/v1/b/{}/o", self.server, self.bucket)
    }

    /// Returns the URL of one object's attributes.
    pub(super) fn object(&self, key: &Key) -> String {
        format!("{}/{}", self.objects(), utf8_percent_encode(key.as_str(), ENCODED))
    }

    /// Returns the URL at which one object is copied to another of the same bucket.
    pub(super) fn rewrite(&self, source: &Key, key: &Key) -> String {
        let name = utf8_percent_encode(key.as_str(), ENCODED);
        format!("{}/rewriteTo/b/{}/o/{name}", self.object(source), self.bucket)
    }

    /// Returns the URL at which objects are written.
    pub(super) fn uploads(&self) -> String {
        format!("{}/upload/storage/v1/b/{}/o", self.server, self.bucket)
    }
}

impl fmt::Display for GcsAddress {
    fn fmt(&self, formatter: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(formatter, "bucket {:?}", self.bucket)?;
        if self.emulator {
            write!(formatter, " at {}", self.server)?;
        }
        match &self.proxy {
            Some(proxy) => write!(formatter, " through the proxy {proxy}"),
            None => Ok(()),
        }
    }
}

fn is_bucket(name: &str) -> bool {
    let ends = |end: Option<u8>| end.is_some_and(|byte| byte.is_ascii_lowercase() || byte.is_ascii_digit());
    let inner = |byte: u8| byte.is_ascii_lowercase() || byte.is_ascii_digit() || matches!(byte, b'-' | b'_' | b'.');
    (3..=222).contains(&name.len())
        && name.bytes().all(inner)
        && ends(name.bytes().next())
        && ends(name.bytes().last())
        && !name.contains("..")
}

/// Parses the value of `STORAGE_EMULATOR_HOST`, which is a URL, or host and port.
fn parse_server(text: &str) -> Result<String, String> {
    let given = if text.contains("://") { text.to_owned() } else { format!("http://{text}") };
    let fault = |why: &str| {
        // The text is not shown, because it may contain a password.
        Err(format!("the server of the bucket {why}; write STORAGE_EMULATOR_HOST as `http://127.0.0.1:4443`"))
    };
    let Ok(url) = Url::parse(&given) else { return fault("is no URL") };
    let Some(host) = url.host_str() else { return fault("has no host") };
    if !matches!(url.scheme(), "http" | "https") {
        return fault("has a scheme other than http and https");
    }
    if !url.username().is_empty() || url.password().is_some() {
        return fault("has a user or a password in its URL");
    }
    if url.path() != "/" || url.query().is_some() || url.fragment().is_some() {
        return fault("has a path in its URL");
    }
    let port = url.port().map(|port| format!(":{port}")).unwrap_or_default();
    Ok(format!("{}://{host}{port}", url.scheme()))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn bucket_names_are_checked() {
        for name in ["abc", "my-bucket", "a.b_c", "123", &"x".repeat(63)] {
            assert_eq!(GcsAddress::parse(name, None).unwrap().bucket(), name);
        }
        for name in ["", "ab", "Abc", "a/b", "gs://abc", "-abc", "abc.", "a..b", "ab?c", "ä-b", &"x".repeat(223)] {
            assert!(GcsAddress::parse(name, None).unwrap_err().contains("gcs_bucket_name"), "{name:?}");
        }
    }

    #[test]
    fn emulator_addresses_are_checked() {
        for (text, server) in [
            ("http://127.0.0.1:4443", "http://127.0.0.1:4443"),
            ("http://127.0.0.1:4443/", "http://127.0.0.1:4443"),
            ("localhost:4443", "http://localhost:4443"),
            ("gcs", "http://gcs"),
            ("https://gcs.example:443", "https://gcs.example"),
            ("http://[::1]:9", "http://[::1]:9"),
        ] {
            let address = GcsAddress::parse("abc", Some(text)).unwrap();
            assert_eq!((address.server(), address.is_emulator()), (server, true));
        }
        for text in ["", "http://", "ftp://x", "http://x/storage/v1", "http://u:secret@x", "http://x?a=b"] {
            let why = GcsAddress::parse("abc", Some(text)).unwrap_err();
            assert!(why.contains("STORAGE_EMULATOR_HOST") && !why.contains("secret"), "{text:?}: {why}");
        }
        let google = GcsAddress::parse("abc", None).unwrap();
        assert_eq!(google.server(), GOOGLE);
        let through = google.through(Some("http://p:3128 (HTTPS_PROXY)".to_owned()));
        assert_eq!(through.to_string(), "bucket \"abc\" through the proxy http://p:3128 (HTTPS_PROXY)");
    }

    #[test]
    fn a_key_is_one_segment_of_the_path() {
        let address = GcsAddress::parse("abc", None).unwrap();
        let url = address.object(&Key::parse("a/b c?d#e%2F+é...").unwrap());
        assert_eq!(url, format!("{GOOGLE}/storage/v1/b/abc/o/a%2Fb%20c%3Fd%23e%252F%2B%C3%A9..."));
        assert_eq!(Url::parse(&url).unwrap().as_str(), url);
    }
}
