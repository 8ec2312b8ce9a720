//! The envelope: what stands beside an encrypted object so that the holder of a master key can open it.

use std::borrow::Cow;
use std::fmt;

use base64::Engine as _;
use base64::engine::general_purpose::STANDARD;
use jiff::Timestamp;
use serde::de::{Deserialize, Deserializer, Error as _};
use serde::{Serialize, Serializer};

/// What stands beside an encrypted object, as it is stored. Nothing in it is secret.
///
/// The values are written and read by the room of the encoded objects, and described in the book. Attributes have an
/// envelope only while they are sealed: where they are opened, it is taken off.
#[derive(Clone, Debug, PartialEq, Eq, serde::Serialize, serde::Deserialize)]
pub struct Envelope {
    /// The version of the format.
    pub version: EnvelopeVersion,
    /// Which master key wraps the data key.
    pub key_id: KeyId,
    /// The random salt from which the keys of this object are derived.
    pub message_id: Binary<32>,
    /// The wrapped data key: nonce (12 bytes), ciphertext (32), tag (16).
    pub wrapped_key: Binary<60>,
    /// The value by which the data key is recognized.
    pub commitment: Binary<32>,
    /// The attributes that nobody may read without the key: nonce (12 bytes), ciphertext, tag (16).
    pub sealed: SealedText,
    /// When the bucket received the object, before its data key was wrapped again. The object has not changed since,
    /// though the bucket names a later time.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub received_at: Option<Timestamp>,
}

/// The one version of the format that is known. A text with another one is refused when it is read.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct EnvelopeVersion;

impl EnvelopeVersion {
    const KNOWN: u64 = 1;
}

impl Serialize for EnvelopeVersion {
    fn serialize<S: Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
        serializer.serialize_u64(Self::KNOWN)
    }
}

impl<'de> Deserialize<'de> for EnvelopeVersion {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        match u64::deserialize(deserializer)? {
            Self::KNOWN => Ok(Self),
            other => Err(D::Error::custom(format!(
                "the object is encrypted in version {other} of the format, and this program knows only {}; a newer one may read it",
                Self::KNOWN
            ))),
        }
    }
}

/// The name of a master key: 16 hexadecimal digits that follow from the key and do not reveal it.
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct KeyId(pub [u8; 8]);

impl fmt::Display for KeyId {
    fn fmt(&self, formatter: &mut fmt::Formatter<'_>) -> fmt::Result {
        self.0.iter().try_for_each(|byte| write!(formatter, "{byte:02x}"))
    }
}

impl fmt::Debug for KeyId {
    fn fmt(&self, formatter: &mut fmt::Formatter<'_>) -> fmt::Result {
        fmt::Display::fmt(self, formatter)
    }
}

impl Serialize for KeyId {
    fn serialize<S: Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
        serializer.collect_str(self)
    }
}

impl<'de> Deserialize<'de> for KeyId {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        let text = Cow::<'de, str>::deserialize(deserializer)?;
        let digits = text.bytes().all(|byte| matches!(byte, b'0'..=b'9' | b'a'..=b'f'));
        let number = u64::from_str_radix(&text, 16).ok().filter(|_| digits && text.len() == 16);
        let number = number.ok_or_else(|| D::Error::custom("a key id has 16 hexadecimal digits in lower case"))?;
        Ok(Self(number.to_be_bytes()))
    }
}

/// Bytes of a fixed number, which are base64 in text.
#[derive(Clone, Copy, PartialEq, Eq)]
pub struct Binary<const N: usize>(pub [u8; N]);

impl<const N: usize> fmt::Debug for Binary<N> {
    fn fmt(&self, formatter: &mut fmt::Formatter<'_>) -> fmt::Result {
        formatter.write_str(&STANDARD.encode(self.0))
    }
}

impl<const N: usize> Serialize for Binary<N> {
    fn serialize<S: Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
        serializer.serialize_str(&STANDARD.encode(self.0))
    }
}

impl<'de, const N: usize> Deserialize<'de> for Binary<N> {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        let bytes = decode::<D>(deserializer)?;
        let found = bytes.len();
        let bytes = bytes.try_into().map_err(|_| D::Error::custom(format!("{found} bytes stand where {N} belong")))?;
        Ok(Self(bytes))
    }
}

/// Sealed bytes of any number, which are base64 in text.
#[derive(Clone, PartialEq, Eq)]
pub struct SealedText(pub Vec<u8>);

impl fmt::Debug for SealedText {
    fn fmt(&self, formatter: &mut fmt::Formatter<'_>) -> fmt::Result {
        formatter.write_str(&STANDARD.encode(&self.0))
    }
}

impl Serialize for SealedText {
    fn serialize<S: Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
        serializer.serialize_str(&STANDARD.encode(&self.0))
    }
}

impl<'de> Deserialize<'de> for SealedText {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        decode::<D>(deserializer).map(Self)
    }
}

fn decode<'de, D: Deserializer<'de>>(deserializer: D) -> Result<Vec<u8>, D::Error> {
    let text = Cow::<'de, str>::deserialize(deserializer)?;
    STANDARD.decode(text.as_bytes()).map_err(|error| D::Error::custom(format!("the text is not base64: {error}")))
}

#[cfg(test)]
mod tests {
    use super::*;

    fn envelope() -> Envelope {
        Envelope {
            version: EnvelopeVersion,
            key_id: KeyId([0, 1, 2, 3, 4, 5, 6, 0xff]),
            message_id: Binary([1; 32]),
            wrapped_key: Binary([2; 60]),
            commitment: Binary([3; 32]),
            sealed: SealedText(vec![4; 5]),
            received_at: None,
        }
    }

    #[test]
    fn an_envelope_is_read_as_written() {
        let text = serde_json::to_string(&envelope()).unwrap();
        assert!(text.starts_with(r#"{"version":1,"key_id":"00010203040506ff","message_id":"AQEB"#), "{text}");
        assert_eq!(serde_json::from_str::<Envelope>(&text).unwrap(), envelope());
        let rotated = Envelope { received_at: Some(Timestamp::UNIX_EPOCH), ..envelope() };
        let text = serde_json::to_string(&rotated).unwrap();
        assert!(text.ends_with(r#","received_at":"1970-01-01T00:00:00Z"}"#), "{text}");
        assert_eq!(serde_json::from_str::<Envelope>(&text).unwrap(), rotated);
    }

    #[test]
    fn what_is_no_envelope_is_refused() {
        let text = serde_json::to_string(&envelope()).unwrap();
        let fault = |text: &str| serde_json::from_str::<Envelope>(text).unwrap_err().to_string();
        assert!(fault(r#"{"version":2,"something":"else"}"#).contains("version 2 of the format"));
        for (from, to) in [
            ("00010203040506ff", "00010203040506f"),
            ("00010203040506ff", "00010203040506FF"),
            ("00010203040506ff", "+0010203040506ff"),
            ("AQEB", "AQE"),
            ("AQEB", "AQ*B"),
            ("AQEB", ""),
            ("\"version\":1", "\"version\":\"1\""),
        ] {
            assert!(text.contains(from) && !fault(&text.replacen(from, to, 1)).is_empty(), "{from} {to}");
        }
    }
}
