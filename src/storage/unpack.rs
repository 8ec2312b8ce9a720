//! Undoes a `Content-Encoding` of the bytes that a bucket keeps, under a cap.

use std::io::{self, BufReader, Read};

use bytes::Bytes;

use super::open::damaged;
use super::payload::{self, Payload};
use super::{Error, ErrorKind, Key, Operation, Result};

/// Most bytes that are unpacked; they are in memory.
pub(super) const MOST: u64 = 64 << 20;

/// Tells whether a coding can be undone.
pub(super) fn is_known(codec: &str) -> bool {
    matches!(codec, "gzip" | "zstd")
}

/// Unpacks a payload whole, on a thread that may block.
///
/// # Errors
///
/// [`ErrorKind::Integrity`] for bytes that are not what the codec says; [`ErrorKind::Invalid`] for more than `most` bytes,
/// or [`MOST`] where that is less.
pub(super) async fn unpack(key: &Key, codec: &str, payload: &Payload, most: Option<u64>) -> Result<Bytes> {
    let most = most.unwrap_or(MOST).min(MOST);
    let (packed, name) = (payload.clone(), codec.to_owned());
    let unpacked = payload::hop(move || read(&name, &packed, most)).await;
    match unpacked {
        Ok(Some(bytes)) => Ok(bytes.into()),
        Ok(None) => {
            let mend = if most < MOST {
                "read it in parts with `offset` and `length`, or name a `destination`"
            } else {
                "unpack it with another tool"
            };
            let why =
                format!("unpacked (its Content-Encoding is {codec}), the value has more than {most} bytes; {mend}");
            Err(Error::new(ErrorKind::Invalid, Operation::Retrieve, Some(key), why))
        }
        Err(error) => {
            let what = format!(
                "the object's Content-Encoding is {codec:?}, and its bytes are not ({error}); take the header off with \
                 the bucket's own tool if they are plain"
            );
            Err(damaged(key, &what).with_source(error))
        }
    }
}

/// Reads to the end, or gives `None` once there is more than the cap.
fn read(codec: &str, payload: &Payload, most: u64) -> io::Result<Option<Vec<u8>>> {
    let packed = BufReader::with_capacity(Payload::CHUNK, Source { payload, at: 0 });
    let mut out = Vec::new();
    match codec {
        "gzip" => flate2::bufread::MultiGzDecoder::new(packed).take(most + 1).read_to_end(&mut out)?,
        "zstd" => zstd::stream::read::Decoder::with_buffer(packed)?.take(most + 1).read_to_end(&mut out)?,
        other => return Err(io::Error::other(format!("{other} is unknown"))),
    };
    Ok((out.len() as u64 <= most).then_some(out))
}

/// Reads a payload from its beginning.
struct Source<'a> {
    payload: &'a Payload,
    at: u64,
}

impl Read for Source<'_> {
    fn read(&mut self, buffer: &mut [u8]) -> io::Result<usize> {
        let bytes = self.payload.read_at(self.at, buffer.len())?;
        buffer[..bytes.len()].copy_from_slice(&bytes);
        self.at += bytes.len() as u64;
        Ok(bytes.len())
    }
}

#[cfg(test)]
mod tests {
    use std::io::Write as _;

    use super::*;

    fn gzip(plain: &[u8]) -> Bytes {
        let mut out = flate2::write::GzEncoder::new(Vec::new(), flate2::Compression::best());
        out.write_all(plain).unwrap();
        out.finish().unwrap().into()
    }

    #[tokio::test]
    async fn codings_are_undone_under_a_cap() {
        let key = Key::parse("k").unwrap();
        let plain = vec![b'x'; 100_000];
        for (codec, packed) in [("gzip", gzip(&plain)), ("zstd", zstd::encode_all(&*plain, 3).unwrap().into())] {
            let payload = Payload::Memory(packed.clone());
            assert_eq!(unpack(&key, codec, &payload, None).await.unwrap(), plain);
            assert_eq!(unpack(&key, codec, &payload, Some(100_000)).await.unwrap().len(), 100_000);
            let error = unpack(&key, codec, &payload, Some(99_999)).await.unwrap_err();
            assert!(error.kind == ErrorKind::Invalid && error.to_string().contains("99999 bytes"), "{error}");
            let cut = Payload::Memory(packed.slice(..packed.len() - 3));
            assert_eq!(unpack(&key, codec, &cut, None).await.unwrap_err().kind, ErrorKind::Integrity);
            let plain = Payload::Memory(Bytes::from_static(b"plain"));
            let error = unpack(&key, codec, &plain, None).await.unwrap_err();
            assert!(error.to_string().contains("Content-Encoding") && error.to_string().contains(codec), "{error}");
        }
        let two = [gzip(b"a"), gzip(b"b")].concat();
        assert_eq!(unpack(&key, "gzip", &Payload::Memory(two.into()), None).await.unwrap(), "ab");
    }
}
