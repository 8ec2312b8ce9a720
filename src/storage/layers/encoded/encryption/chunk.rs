//! Chunks: the pieces in which a payload is encrypted, each bound to its place (the construction STREAM).
//!
//! A payload is cut into chunks of 64 KiB; only the last may be shorter, and it is empty only where the payload is. Each
//! chunk is followed by its tag. The nonce is made of the chunk's number and of a flag on the last chunk, so a chunk
//! opens only in its own place, and a payload only with its own end.

use std::ops::Range;

use aws_lc_rs::aead::{Aad, LessSafeKey, Nonce};
use aws_lc_rs::error::Unspecified;

use super::cipher::{NONCE, TAG};

/// The largest number of bytes of a chunk before it is encrypted.
pub(super) const PLAIN: usize = 64 * 1024;
/// The largest number of bytes of an encrypted chunk with its tag.
pub(super) const SEALED: usize = PLAIN + TAG;

const LABEL: &[u8; 20] = b"filestorage chunk v1";

/// The key of a payload.
pub(super) struct ContentKey(LessSafeKey);

/// The place of a chunk in its payload.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) struct Position {
    /// The number of the chunk, from 0 on.
    pub(super) number: u64,
    /// Whether the payload ends with the chunk.
    pub(super) last: bool,
}

impl Position {
    fn nonce(self) -> Nonce {
        let mut nonce = [0; NONCE];
        nonce[3..11].copy_from_slice(&self.number.to_be_bytes());
        nonce[11] = self.last.into();
        Nonce::assume_unique_for_key(nonce)
    }

    fn associated(self) -> Aad<[u8; LABEL.len() + 9]> {
        let mut associated = [0; LABEL.len() + 9];
        associated[..LABEL.len()].copy_from_slice(LABEL);
        associated[LABEL.len()..LABEL.len() + 8].copy_from_slice(&self.number.to_be_bytes());
        associated[LABEL.len() + 8] = self.last.into();
        Aad::from(associated)
    }
}

impl ContentKey {
    pub(super) const fn new(key: LessSafeKey) -> Self {
        Self(key)
    }

    /// Encrypts one chunk and appends ciphertext and tag.
    pub(super) fn seal(&self, position: Position, plain: &[u8], out: &mut Vec<u8>) -> Result<(), Unspecified> {
        let begin = out.len();
        out.extend_from_slice(plain);
        let tag = self.0.seal_in_place_separate_tag(position.nonce(), position.associated(), &mut out[begin..])?;
        out.extend_from_slice(tag.as_ref());
        Ok(())
    }

    /// Decrypts one chunk with its tag and appends its bytes. Where that fails, what was appended means nothing.
    pub(super) fn open(&self, position: Position, sealed: &[u8], out: &mut Vec<u8>) -> Result<(), Unspecified> {
        let (sealed, tag) = sealed.split_last_chunk::<TAG>().ok_or(Unspecified)?;
        let begin = out.len();
        out.extend_from_slice(sealed);
        self.0.open_in_place_separate_tag(position.nonce(), position.associated(), tag, &mut out[begin..])?;
        Ok(())
    }
}

/// How a payload is cut into chunks.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) struct Layout {
    /// The number of bytes before encryption.
    pub(super) plain: u64,
    /// The number of chunks, at least one.
    chunks: u64,
}

impl Layout {
    /// Returns the chunks of so many bytes.
    pub(super) fn of_plain(plain: u64) -> Self {
        Self { plain, chunks: plain.div_ceil(PLAIN as u64).max(1) }
    }

    /// Returns the chunks of so many encrypted bytes; `None` for a number that no payload has.
    pub(super) fn of_sealed(sealed: u64) -> Option<Self> {
        let chunks = sealed.div_ceil(SEALED as u64);
        let plain = sealed.checked_sub(chunks * TAG as u64)?;
        let layout = Self::of_plain(plain);
        (layout.sealed() == sealed).then_some(layout)
    }

    /// Returns the number of encrypted bytes.
    pub(super) const fn sealed(self) -> u64 {
        self.plain.saturating_add(self.chunks.saturating_mul(TAG as u64))
    }

    /// Returns the places of all chunks.
    pub(super) fn positions(self) -> impl Iterator<Item = Position> {
        (0..self.chunks).map(move |number| self.position(number))
    }

    /// Returns the place of the last chunk.
    pub(super) const fn end(self) -> Position {
        self.position(self.chunks - 1)
    }

    /// Returns the places of the chunks that hold these bytes.
    pub(super) fn positions_of(self, part: Range<u64>) -> impl Iterator<Item = Position> {
        let first = part.start / PLAIN as u64;
        let end = if part.is_empty() { first } else { part.end.div_ceil(PLAIN as u64).min(self.chunks) };
        (first..end).map(move |number| self.position(number))
    }

    const fn position(self, number: u64) -> Position {
        Position { number, last: number + 1 == self.chunks }
    }
}

#[cfg(test)]
mod tests {
    use super::super::cipher::aead;
    use super::*;

    #[test]
    fn sizes_follow_from_each_other() {
        let (plain, sealed) = (PLAIN as u64, SEALED as u64);
        for (bytes, encrypted) in [
            (0, 16),
            (1, 17),
            (plain - 1, sealed - 1),
            (plain, sealed),
            (plain + 1, sealed + 17),
            (2 * plain, 2 * sealed),
            (1 << 40, (1 << 40) + (1 << 24) * 16),
        ] {
            let layout = Layout::of_plain(bytes);
            assert_eq!(layout.sealed(), encrypted, "{bytes}");
            assert_eq!(Layout::of_sealed(encrypted), Some(layout), "{bytes}");
        }
        for no_size in [0, 1, 15, sealed + 1, sealed + 15, sealed + 16, 2 * sealed + 16] {
            assert_eq!(Layout::of_sealed(no_size), None, "{no_size}");
        }
        let all = |part| Layout::of_plain(3 * plain).positions_of(part).map(|place| place.number).collect::<Vec<_>>();
        assert_eq!(all(0..0), [0; 0]);
        assert_eq!(all(plain - 1..plain), [0]);
        assert_eq!(all(plain - 1..plain + 1), [0, 1]);
        assert_eq!(all(plain..3 * plain), [1, 2]);
        assert!(Layout::of_plain(3 * plain).end().last);
    }

    #[test]
    fn a_chunk_opens_in_its_own_place_only() {
        let key = ContentKey::new(aead(&[5; 32]).unwrap());
        let here = Position { number: 1, last: false };
        let mut sealed = Vec::new();
        key.seal(here, b"chunk", &mut sealed).unwrap();
        let mut plain = b"before ".to_vec();
        key.open(here, &sealed, &mut plain).unwrap();
        assert_eq!(plain, b"before chunk");
        for other in
            [Position { number: 0, ..here }, Position { number: 1 << 32, ..here }, Position { last: true, ..here }]
        {
            assert!(key.open(other, &sealed, &mut Vec::new()).is_err(), "{other:?}");
        }
        let other_key = ContentKey::new(aead(&[6; 32]).unwrap());
        assert!(other_key.open(here, &sealed, &mut Vec::new()).is_err());
        assert!(key.open(here, &sealed[..15], &mut Vec::new()).is_err());
    }
}
