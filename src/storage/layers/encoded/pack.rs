//! Compresses the bytes of a value.

use std::io::{self, Write};

use crate::storage::error::{Error, ErrorKind, Operation, Result};
use crate::storage::files::Spool;
use crate::storage::files::spool::spool_fault;
use crate::storage::layers::encoded::INLINE;
use crate::storage::layers::encoded::coders::coded;
use crate::storage::layers::encoded::compression::Compression;
use crate::storage::layers::encoded::sink::CodecSink;
use crate::storage::object::payload::Payload;
use crate::storage::object::{Attributes, Checksum, Codec, Key, Object};

/// After this many bytes of the value, a codec that has not made them smaller is given up.
const TRIAL: u64 = 1 << 20;

/// How an attempt to compress ended.
enum Packed {
    /// The stored bytes and their checksum.
    Smaller(Payload, Checksum),
    /// The codec does not make the value smaller.
    NotSmaller,
    /// The bytes are not those of the attributes.
    Changed,
}

/// Compresses an object; returns `None` where that does not make it smaller.
///
/// A small value is compressed on the caller's thread, a large one on a thread that may block. A value in a file goes
/// into a file.
///
/// # Errors
///
/// [`ErrorKind::Integrity`] for a payload that does not match its attributes; the errors of the file system.
pub(super) async fn pack(key: &Key, rule: Compression, object: &Object, spool: &Spool) -> Result<Option<Object>> {
    let (expected, payload) = ((object.attributes.size, object.attributes.checksum), &object.payload);
    let packed = match payload.as_memory() {
        Some(bytes) if bytes.len() as u64 <= INLINE => compress(rule, payload, expected, spool),
        _ => {
            let (payload, spool) = (payload.clone(), spool.clone());
            let is_streamed = payload.as_memory().is_none();
            coded(is_streamed, move || compress(rule, &payload, expected, &spool)).await
        }
    };
    match packed {
        Ok(Packed::Smaller(payload, stored_checksum)) => {
            let attributes = Attributes {
                compression: Some(rule.codec.as_str().to_owned()),
                stored_size: payload.len(),
                stored_checksum,
                ..object.attributes.clone()
            };
            Ok(Some(Object { attributes, payload }))
        }
        Ok(Packed::NotSmaller) => Ok(None),
        Ok(Packed::Changed) => Err(changed(key)),
        Err(error) if error.kind() == io::ErrorKind::UnexpectedEof => Err(changed(key)),
        Err(error) => Err(spool_fault(Operation::Store, Some(key), error)),
    }
}

fn changed(key: &Key) -> Error {
    let why = "the source changed while it was stored; store it again";
    Error::new(ErrorKind::Integrity, Operation::Store, Some(key), why)
}

fn compress(rule: Compression, payload: &Payload, expected: (u64, Checksum), spool: &Spool) -> io::Result<Packed> {
    let sink = match payload {
        // What is in memory gets no larger by this.
        Payload::Memory(bytes) => CodecSink::in_memory(bytes.len() / 2),
        Payload::File(_) | Payload::Announced(_) => CodecSink::spooled(spool),
    };
    match rule.codec {
        Codec::Gzip => {
            let level = flate2::Compression::new(rule.level.unsigned_abs());
            feed(
                flate2::write::GzEncoder::new(sink, level),
                payload,
                expected,
                |coder| coder.get_ref().len(),
                flate2::write::GzEncoder::finish,
            )
        }
        Codec::Zstd => {
            let mut coder = zstd::stream::write::Encoder::new(sink, rule.level)?;
            // Without the size, each value would take the memory that a large one needs.
            coder.set_pledged_src_size(Some(payload.len()))?;
            feed(coder, payload, expected, |coder| coder.get_ref().len(), zstd::stream::write::Encoder::finish)
        }
    }
}

/// Writes a payload through a coder, piece by piece, and checks the bytes against the attributes.
fn feed<C: Write>(
    mut coder: C,
    payload: &Payload,
    (size, checksum): (u64, Checksum),
    written: impl Fn(&C) -> u64,
    finish: impl FnOnce(C) -> io::Result<CodecSink>,
) -> io::Result<Packed> {
    let (mut read, mut found) = (0, Checksum::of(&[]));
    while read < payload.len() {
        let chunk = payload.read_at(read, Payload::CHUNK)?;
        coder.write_all(&chunk)?;
        read += chunk.len() as u64;
        found = found.append(&chunk);
        if read >= TRIAL && written(&coder) >= read {
            return Ok(Packed::NotSmaller);
        }
    }
    if (read, found) != (size, checksum) {
        return Ok(Packed::Changed);
    }
    let (packed, stored_checksum) = finish(coder)?.finish()?;
    Ok(if packed.len() < size { Packed::Smaller(packed, stored_checksum) } else { Packed::NotSmaller })
}

#[cfg(test)]
mod tests {
    use bytes::Bytes;

    use super::*;
    use crate::storage::layers::encoded::unpack::{Cap, Wanted, unpack};
    use crate::storage::object::Kind;

    fn object(payload: Payload, bytes: &[u8]) -> Object {
        let attributes = Attributes::new(Kind::Bytes, "text/plain".to_owned(), bytes.len() as u64, Checksum::of(bytes));
        Object { attributes, payload }
    }

    fn in_file(bytes: &[u8]) -> Payload {
        let mut file = tempfile::tempfile().unwrap();
        file.write_all(bytes).unwrap();
        Payload::file(std::sync::Arc::new(file), 0, bytes.len() as u64)
    }

    fn noise(length: usize) -> Vec<u8> {
        let mut state = 1_u64;
        let step = |_| {
            state = state.wrapping_mul(6_364_136_223_846_793_005).wrapping_add(1);
            (state >> 56) as u8
        };
        (0..length).map(step).collect()
    }

    #[tokio::test]
    async fn values_get_smaller_or_stay_raw() {
        let (key, folder) = (Key::parse("k").unwrap(), tempfile::tempdir().unwrap());
        let spool = Spool::new(folder.path());
        for codec in [Codec::Gzip, Codec::Zstd] {
            let rule = Compression { codec, level: codec.default_level(), threshold: 0 };
            for length in [1, 100, 2_000, 100_000, 5 << 20] {
                let text: Vec<u8> = b"the quick brown fox ".iter().copied().cycle().take(length).collect();
                for payload in [Payload::Memory(Bytes::from(text.clone())), in_file(&text)] {
                    let packed = pack(&key, rule, &object(payload.clone(), &text), &spool).await.unwrap();
                    let Some(packed) = packed else {
                        assert!(length <= 100, "{codec} leaves {length} bytes raw");
                        continue;
                    };
                    let attributes = &packed.attributes;
                    assert!(attributes.stored_size < attributes.size && attributes.size == length as u64);
                    assert_eq!(attributes.stored_size, packed.payload.len());
                    let bytes = packed.payload.clone().into_memory().await.unwrap();
                    assert_eq!(attributes.stored_checksum, Checksum::of(&bytes));
                    assert_eq!(attributes.compression.as_deref(), Some(codec.as_str()));
                    let wanted = Wanted { part: 0..u64::MAX, cap: Cap::Declared(length as u64), in_memory: true };
                    let plain = unpack(&key, codec, &bytes.into(), &wanted, &spool).await.unwrap().payload;
                    assert_eq!(plain.into_memory().await.unwrap(), text);
                }
                let noise = noise(length);
                let raw = object(in_file(&noise), &noise);
                assert!(pack(&key, rule, &raw, &spool).await.unwrap().is_none(), "{codec} of {length} bytes of noise");
            }
        }
    }

    #[tokio::test]
    async fn a_source_that_changed_is_not_stored() {
        let (key, folder) = (Key::parse("k").unwrap(), tempfile::tempdir().unwrap());
        let rule = Compression { codec: Codec::Gzip, level: 1, threshold: 0 };
        let text = vec![b'x'; 100_000];
        let mut other = text.clone();
        other[99_999] = b'y';
        for payload in [in_file(&other), in_file(&text[1..]), Payload::Memory(other.clone().into())] {
            let error = pack(&key, rule, &object(payload, &text), &Spool::new(folder.path())).await.unwrap_err();
            assert!(error.kind == ErrorKind::Integrity && error.to_string().contains("changed"), "{error}");
        }
    }

    #[tokio::test]
    async fn a_full_spool_is_an_error_of_the_disk() {
        let key = Key::parse("k").unwrap();
        let rule = Compression { codec: Codec::Zstd, level: 1, threshold: 0 };
        let mut text = noise(3 << 20);
        text.iter_mut().for_each(|byte| *byte &= 0x7f);
        let error = pack(&key, rule, &object(in_file(&text), &text), &Spool::new("/dev/null/x")).await.unwrap_err();
        assert_eq!(error.kind, ErrorKind::Io, "{error}");
    }
}
