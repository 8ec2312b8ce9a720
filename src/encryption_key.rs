//! The text of encryption keys: 32 random bytes each, in base64.

use std::fmt;

use base64::Engine as _;
use base64::alphabet;
use base64::engine::{DecodePaddingMode, GeneralPurpose, GeneralPurposeConfig};
use zeroize::Zeroizing;

/// Bytes of a key.
pub const BYTES: usize = 32;

/// How to make a key, as the end of a sentence.
const REMEDY: &str = "make a key with `openssl rand -base64 32`";

/// Reads base64 with or without `=` at the end.
const CODEC: GeneralPurpose = GeneralPurpose::new(
    &alphabet::STANDARD,
    GeneralPurposeConfig::new().with_decode_padding_mode(DecodePaddingMode::Indifferent),
);

/// The 32 bytes of one key, which are overwritten when they are dropped. `Debug` writes `***`.
#[derive(Clone, PartialEq, Eq)]
pub struct EncryptionKey(Zeroizing<[u8; BYTES]>);

/// The reason why a text holds no encryption keys. The message says which entry is wrong and never repeats it.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
#[error("{0}")]
pub struct EncryptionKeyError(String);

impl EncryptionKey {
    /// Wraps the bytes of a key.
    #[must_use]
    pub const fn new(bytes: Zeroizing<[u8; BYTES]>) -> Self {
        Self(bytes)
    }

    /// Reads keys that are joined by commas or stand one a line; empty entries are skipped.
    ///
    /// Each key is base64 of 32 bytes, of the standard or the URL-safe alphabet, with or without padding.
    ///
    /// # Errors
    ///
    /// [`EncryptionKeyError`] for a text without a key, and for the first entry that is no key.
    pub fn parse_all(text: &str) -> Result<Vec<Self>, EncryptionKeyError> {
        let entries = text.split([',', '\n']).map(str::trim).filter(|entry| !entry.is_empty());
        let keys: Vec<Self> =
            entries.enumerate().map(|(index, entry)| Self::parse(index + 1, entry)).collect::<Result<_, _>>()?;
        if keys.is_empty() {
            return Err(EncryptionKeyError(format!("there is no key; {REMEDY}")));
        }
        Ok(keys)
    }

    /// Returns the bytes.
    #[must_use]
    pub fn expose(&self) -> &[u8; BYTES] {
        &self.0
    }

    fn parse(number: usize, entry: &str) -> Result<Self, EncryptionKeyError> {
        let fault = |why: String| EncryptionKeyError(format!("entry {number} {why}; {REMEDY}"));
        // The two characters in which the alphabets differ mean the same.
        let standard: Zeroizing<String> = Zeroizing::new(
            entry
                .chars()
                .map(|character| match character {
                    '-' => '+',
                    '_' => '/',
                    other => other,
                })
                .collect(),
        );
        // The error of the decoder names a character and its position.
        let bytes = CODEC.decode(standard.as_bytes()).map(Zeroizing::new);
        let bytes = bytes.map_err(|_| fault("is not base64".to_owned()))?;
        let key: [u8; BYTES] = bytes
            .as_slice()
            .try_into()
            .map_err(|_| fault(format!("has {} bytes, and a key has {BYTES}", bytes.len())))?;
        Ok(Self(Zeroizing::new(key)))
    }
}

impl fmt::Debug for EncryptionKey {
    fn fmt(&self, formatter: &mut fmt::Formatter<'_>) -> fmt::Result {
        formatter.write_str("***")
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const KEY: &str = "+/8AAQIDBAUGBwgJCgsMDQ4PEBESExQVFhcYGRobHB0=";

    #[test]
    fn keys_are_base64_of_32_bytes() {
        let [key] = &EncryptionKey::parse_all(KEY).unwrap()[..] else { panic!("one key") };
        assert_eq!(key.expose()[..3], [0xfb, 0xff, 0]);
        for text in
            [&KEY[..43], "-_8AAQIDBAUGBwgJCgsMDQ4PEBESExQVFhcYGRobHB0", &format!(" {KEY}\r\n\n"), &format!("{KEY},")]
        {
            assert_eq!(EncryptionKey::parse_all(text).unwrap(), std::slice::from_ref(key), "{text}");
        }
        for joined in [format!("{KEY}, {KEY}"), format!("{KEY}\n{KEY}\n")] {
            assert_eq!(EncryptionKey::parse_all(&joined).unwrap(), [key.clone(), key.clone()]);
        }
        assert_eq!(format!("{key:?}"), "***");
    }

    #[test]
    fn a_fault_names_the_entry_and_does_not_repeat_it() {
        let short = "c2VjcmV0c2VjcmV0";
        for (text, words) in [
            (String::new(), "there is no key"),
            (" ,\n".to_owned(), "there is no key"),
            (short.to_owned(), "entry 1 has 12 bytes, and a key has 32"),
            (format!("{KEY},{short}"), "entry 2 has 12 bytes"),
            (format!("{KEY},{KEY}\nhunter2!"), "entry 3 is not base64"),
            (format!("{KEY}{KEY}"), "entry 1 is not base64"),
        ] {
            let fault = EncryptionKey::parse_all(&text).unwrap_err().to_string();
            assert!(fault.contains(words) && fault.contains("openssl rand -base64 32"), "{fault}");
            assert!(!fault.contains("c2Vj") && !fault.contains("hunter2") && !fault.contains(&KEY[..8]), "{fault}");
        }
    }
}
