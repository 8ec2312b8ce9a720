//! CRC32C of bytes, as text and as a number.

use std::fmt;

/// A CRC32C, written as Google writes it: `crc32c:` and base64 of the four big-endian bytes.
#[derive(Clone, Copy, PartialEq, Eq)]
pub struct Checksum(pub u32);

impl Checksum {
    /// Computes the checksum of bytes.
    #[must_use]
    pub fn of(bytes: &[u8]) -> Self {
        Self(crc32c::crc32c(bytes))
    }

    /// Returns the checksum of the same bytes with more bytes appended.
    #[must_use]
    pub(in crate::storage) fn append(self, bytes: &[u8]) -> Self {
        Self(crc32c::crc32c_append(self.0, bytes))
    }
}

impl fmt::Display for Checksum {
    fn fmt(&self, formatter: &mut fmt::Formatter<'_>) -> fmt::Result {
        use base64::Engine as _;
        let encoded = base64::engine::general_purpose::STANDARD.encode(self.0.to_be_bytes());
        write!(formatter, "crc32c:{encoded}")
    }
}

impl fmt::Debug for Checksum {
    fn fmt(&self, formatter: &mut fmt::Formatter<'_>) -> fmt::Result {
        fmt::Display::fmt(self, formatter)
    }
}

impl std::str::FromStr for Checksum {
    type Err = String;

    fn from_str(text: &str) -> Result<Self, Self::Err> {
        use base64::Engine as _;
        let encoded = text.strip_prefix("crc32c:").ok_or_else(|| format!("checksum {text:?} is not crc32c:…"))?;
        let bytes = base64::engine::general_purpose::STANDARD
            .decode(encoded)
            .map_err(|error| format!("checksum {text:?} is not base64: {error}"))?;
        let bytes: [u8; 4] = bytes.try_into().map_err(|_| format!("checksum {text:?} does not have four bytes"))?;
        Ok(Self(u32::from_be_bytes(bytes)))
    }
}

impl serde::Serialize for Checksum {
    fn serialize<S: serde::Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
        serializer.collect_str(self)
    }
}

impl<'de> serde::Deserialize<'de> for Checksum {
    fn deserialize<D: serde::Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        let text = std::borrow::Cow::<'de, str>::deserialize(deserializer)?;
        text.parse().map_err(serde::de::Error::custom)
    }
}
