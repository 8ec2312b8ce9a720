//! Which backend keeps values, and the names of buckets by the rule of their provider.

/// Where values are kept.
#[derive(Clone, Copy, Debug, PartialEq, Eq, serde::Serialize, schemars::JsonSchema)]
#[serde(rename_all = "lowercase")]
// Programs that were generated from the schemas know it by this name.
#[schemars(rename = "Place")]
pub enum BackendKind {
    /// This machine's file system.
    Local,
    /// Google Cloud Storage.
    Gcs,
    /// Amazon S3 or a store that speaks like it.
    S3,
}

impl BackendKind {
    /// Names the backend as receipts and settings do.
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

/// Who keeps buckets.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum Provider {
    /// Google Cloud Storage.
    Gcs,
    /// Amazon S3 and what is compatible with it.
    S3,
}

impl Provider {
    /// Says how a name must look, to follow "must be".
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

    /// Returns the scheme of URLs that name its objects.
    #[must_use]
    pub const fn scheme(self) -> &'static str {
        match self {
            Self::Gcs => "gs",
            Self::S3 => "s3",
        }
    }

    /// Finds whose buckets a scheme names, written in any case.
    #[must_use]
    pub fn of_scheme(scheme: &str) -> Option<Self> {
        [Self::Gcs, Self::S3].into_iter().find(|provider| provider.scheme().eq_ignore_ascii_case(scheme))
    }

    /// Tells whether a bucket can have this name.
    ///
    /// Names that only Google itself may give (those with `goog`) can be had: its public buckets can be read.
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
