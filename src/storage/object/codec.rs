//! The compression codecs, by the names that attributes and `Content-Encoding` have.

use std::fmt;

/// A codec that compresses values.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Codec {
    /// The gzip format, RFC 1952.
    Gzip,
    /// The Zstandard format, RFC 8878.
    Zstd,
}

impl Codec {
    /// Returns the codec of a name as attributes and `Content-Encoding` have it; `None` for an unknown one.
    #[must_use]
    pub fn named(name: &str) -> Option<Self> {
        match name {
            "gzip" => Some(Self::Gzip),
            "zstd" => Some(Self::Zstd),
            _ => None,
        }
    }

    /// Returns the name of the codec as attributes and `Content-Encoding` have it.
    #[must_use]
    pub const fn as_str(self) -> &'static str {
        match self {
            Self::Gzip => "gzip",
            Self::Zstd => "zstd",
        }
    }

    /// Returns the level of the best compression.
    #[must_use]
    pub const fn best_level(self) -> i32 {
        match self {
            Self::Gzip => 9,
            Self::Zstd => 22,
        }
    }

    /// Returns the level that is used where none is set: the last one before the time grows faster than the bytes shrink
    /// (`benches/codecs`).
    #[must_use]
    pub const fn default_level(self) -> i32 {
        match self {
            Self::Gzip => 3,
            Self::Zstd => 1,
        }
    }
}

impl fmt::Display for Codec {
    fn fmt(&self, formatter: &mut fmt::Formatter<'_>) -> fmt::Result {
        formatter.write_str(self.as_str())
    }
}
