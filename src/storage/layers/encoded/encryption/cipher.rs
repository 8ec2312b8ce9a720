//! The primitives of version 1: AES-256-GCM and HKDF-SHA512, by AWS-LC.

use aws_lc_rs::aead::{AES_256_GCM, Aad, LessSafeKey, NONCE_LEN, Nonce, UnboundKey};
use aws_lc_rs::error::Unspecified;
use aws_lc_rs::hkdf::{HKDF_SHA512, KeyType, Salt};
use aws_lc_rs::rand;
use zeroize::Zeroizing;

/// Bytes of a key.
pub(super) const KEY: usize = 32;
/// Bytes of a nonce.
pub(super) const NONCE: usize = NONCE_LEN;
/// Bytes of a tag.
pub(super) const TAG: usize = 16;

/// Bytes of a secret key, which are overwritten when they are dropped.
pub(super) type SecretBytes = Zeroizing<[u8; KEY]>;

struct Length;

impl KeyType for Length {
    fn len(&self) -> usize {
        KEY
    }
}

/// Derives 32 bytes from a secret by HKDF-SHA512. The parts of `info` are joined.
pub(super) fn derive(secret: &[u8; KEY], salt: &[u8], info: &[&[u8]]) -> Result<SecretBytes, Unspecified> {
    let mut derived = Zeroizing::new([0; KEY]);
    Salt::new(HKDF_SHA512, salt).extract(secret).expand(info, Length)?.fill(&mut *derived)?;
    Ok(derived)
}

/// Returns random bytes of the system.
pub(super) fn random<const N: usize>() -> Result<[u8; N], Unspecified> {
    let mut bytes = [0; N];
    rand::fill(&mut bytes)?;
    Ok(bytes)
}

/// Makes the AES-256-GCM key of these bytes.
pub(super) fn aead(key: &[u8; KEY]) -> Result<LessSafeKey, Unspecified> {
    Ok(LessSafeKey::new(UnboundKey::new(&AES_256_GCM, key)?))
}

/// Encrypts a short text under a random nonce: nonce, ciphertext, tag.
pub(super) fn seal(key: &[u8; KEY], associated: &[u8], plain: &[u8]) -> Result<Vec<u8>, Unspecified> {
    let nonce: [u8; NONCE] = random()?;
    let mut sealed = Vec::with_capacity(NONCE + plain.len() + TAG);
    sealed.extend_from_slice(&nonce);
    sealed.extend_from_slice(plain);
    let nonce = Nonce::assume_unique_for_key(nonce);
    let tag = aead(key)?.seal_in_place_separate_tag(nonce, Aad::from(associated), &mut sealed[NONCE..])?;
    sealed.extend_from_slice(tag.as_ref());
    Ok(sealed)
}

/// Decrypts what [`seal`] has encrypted.
pub(super) fn open(key: &[u8; KEY], associated: &[u8], sealed: &[u8]) -> Result<Zeroizing<Vec<u8>>, Unspecified> {
    let (nonce, rest) = sealed.split_at_checked(NONCE).ok_or(Unspecified)?;
    let mut plain = Zeroizing::new(rest.to_vec());
    let nonce = Nonce::try_assume_unique_for_key(nonce)?;
    let length = aead(key)?.open_in_place(nonce, Aad::from(associated), &mut plain)?.len();
    plain.truncate(length);
    Ok(plain)
}

/// Joins texts so that no two lists give the same bytes: before each stands its length in four big-endian bytes.
pub(super) fn joined(texts: &[&str]) -> Vec<u8> {
    let mut all = Vec::with_capacity(texts.iter().map(|text| 4 + text.len()).sum());
    for text in texts {
        // No text here is anywhere near 4 GiB; were it, its length could not match.
        all.extend_from_slice(&u32::try_from(text.len()).unwrap_or(u32::MAX).to_be_bytes());
        all.extend_from_slice(text.as_bytes());
    }
    all
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn sealed_texts_open_only_unchanged() {
        let key = [7; KEY];
        let sealed = seal(&key, b"with", b"plain").unwrap();
        assert_eq!(sealed.len(), NONCE + 5 + TAG);
        assert_eq!(open(&key, b"with", &sealed).unwrap().as_slice(), b"plain");
        assert_ne!(seal(&key, b"with", b"plain").unwrap(), sealed, "every nonce is new");
        assert!(open(&key, b"other", &sealed).is_err() && open(&[8; KEY], b"with", &sealed).is_err());
        for at in 0..sealed.len() {
            let mut changed = sealed.clone();
            changed[at] ^= 1;
            assert!(open(&key, b"with", &changed).is_err(), "{at}");
            assert!(open(&key, b"with", &sealed[..at]).is_err(), "{at}");
        }
    }

    #[test]
    fn joined_texts_are_told_apart() {
        assert_eq!(joined(&["ab", ""]), b"\0\0\0\x02ab\0\0\0\0");
        assert_ne!(joined(&["ab", "c"]), joined(&["a", "bc"]));
    }

    #[test]
    fn keys_are_derived_as_rfc_5869_says() {
        // Computed by Python's `cryptography`: HKDF(SHA512(), 32, b"\2" * 32, b"info").derive(b"\1" * 32).
        let derived = derive(&[1; KEY], &[2; 32], &[b"in", b"fo"]).unwrap();
        let text: String = derived.iter().map(|byte| format!("{byte:02x}")).collect();
        assert_eq!(text, "81e39d636ac1f10adcc1220e270ab88cc24d4f5e3d9e9ca8427195fe63c7bf7d");
        let derived = derive(&[1; KEY], &[], &[b"info"]).unwrap();
        let text: String = derived.iter().map(|byte| format!("{byte:02x}")).collect();
        assert_eq!(text, "503c6137278c30946e33b3b44192041dddea1e966193fa4aa2b6f654f60e9c4b");
    }
}
