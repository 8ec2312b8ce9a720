//! The kinds of backends, the providers of buckets, and the rule for the names of buckets.

/// The kind of backend that keeps the objects of an engine, as receipts name it.
#[derive(Clone, Copy, Debug, PartialEq, Eq, serde::Serialize, schemars::JsonSchema)]
#[serde(rename_all = "lowercase")]
// The schemas keep this name, which programs generated from them use.
#[schemars(rename = "Place")]
pub enum BackendKind {
    /// This machine's file system.
    Local,
    /// Google Cloud Storage.
    Gcs,
    /// Amazon S3 or a compatible store.
    S3,
}

impl BackendKind {
    /// Returns the name that receipts and settings use for the backend.
    #[must_use]
    pub const fn as_str(self) -> &'static str {
        match self {
            Self::Local => "local",
            Self::Gcs => "gcs",
            Self::S3 => "s3",
        }
    }
}

impl From<Provider> for BackendKind {
    fn from(provider: Provider) -> Self {
        match provider {
            Provider::Gcs => Self::Gcs,
            Provider::S3 => Self::S3,
        }
    }
}

/// The provider of a bucket.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum Provider {
    /// Google Cloud Storage.
    Gcs,
    /// Amazon S3 and compatible stores.
    S3,
}

impl Provider {
    /// Describes the rule for bucket names, as the end of a sentence that begins with "must be".
    #[must_use]
    pub const fn rule(self) -> &'static str {
        match self {
            Self::Gcs => {
                "the bare name of a bucket: 3 to 63 characters (with dots 222, each part 63), \
                 lower-case letters, digits, `-`, `_` and `.`, a letter or digit at both ends, no IP address"
            }
            Self::S3 => {
                "the bare name of a bucket: 3 to 63 characters, lower-case letters, digits, `-` and `.`, \
                 a letter or digit at both ends and beside each `.`, no IP address"
            }
        }
    }

    /// Returns the scheme of URLs that name objects of this provider.
    #[must_use]
    pub const fn scheme(self) -> &'static str {
        match self {
            Self::Gcs => "gs",
            Self::S3 => "s3",
        }
    }

    /// Finds the provider whose URLs have this scheme; the case of letters does not matter.
    #[must_use]
    pub fn of_scheme(scheme: &str) -> Option<Self> {
        [Self::Gcs, Self::S3].into_iter().find(|provider| provider.scheme().eq_ignore_ascii_case(scheme))
    }

    /// Tells whether a bucket of this provider can have this name.
    ///
    /// Names with `goog`, which only Google itself may give, are allowed: Google's public buckets can be read.
    #[must_use]
    pub fn allows(self, name: &str) -> bool {
        let edge = |byte: Option<&u8>| byte.is_some_and(|byte| byte.is_ascii_lowercase() || byte.is_ascii_digit());
        let ends = |text: &str| edge(text.as_bytes().first()) && edge(text.as_bytes().last());
        let inside = |byte: u8| match byte {
            b'a'..=b'z' | b'0'..=b'9' | b'-' | b'.' => true,
            b'_' => self == Self::Gcs,
            _ => false,
        };
        let longest = if self == Self::Gcs && name.contains('.') { 222 } else { 63 };
        let parts = match self {
            Self::Gcs => name.split('.').all(|part| (1..=63).contains(&part.len())),
            Self::S3 => name.split('.').all(ends),
        };
        (3..=longest).contains(&name.len())
            && ends(name)
            && name.bytes().all(inside)
            && parts
            && name.parse::<std::net::Ipv4Addr>().is_err()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn names() {
        let (long, dotted) = ("x".repeat(63), format!("{0}.{0}.{0}", "x".repeat(63)));
        for name in ["abc", "my-bucket", "www.example.org", "1st", "1.2.3.4.5", &long] {
            assert!(Provider::Gcs.allows(name) && Provider::S3.allows(name), "{name}");
        }
        let longer = format!("{long}x");
        for name in [
            "",
            "ab",
            "-abc",
            "abc-",
            "Abc",
            "a b",
            "a/b",
            "gs://abc",
            "a..b",
            ".abc",
            "192.168.5.4",
            "bücket",
            &longer,
        ] {
            assert!(!Provider::Gcs.allows(name) && !Provider::S3.allows(name), "{name}");
        }
        for name in ["my_bucket", "a-.b", &dotted] {
            assert!(Provider::Gcs.allows(name) && !Provider::S3.allows(name), "{name}");
        }
    }
}
