//! Decodes a `Content-Encoding` of the bytes in a bucket, under a cap.

use std::io::{self, BufReader, Read};

use tokio::sync::Semaphore;

use crate::storage::error::{Error, ErrorKind, Operation, Result};
use crate::storage::files::Spool;
use crate::storage::files::spool::spool_fault;
use crate::storage::object::payload::{self, Payload};
use crate::storage::object::{Checksum, Key};
use crate::storage::reading::damaged;

/// The largest number of bytes that are unpacked.
pub(in crate::storage) const MOST: u64 = 64 << 20;

/// The decoders that may run at once. Each may hold unpacked bytes, to which the format refers back.
static DECODERS: Semaphore = Semaphore::const_new(2);

/// The reason why nothing was unpacked.
enum UnpackFault {
    /// The bytes were not made by the codec that is named.
    Packed(io::Error),
    /// The local disk, which the bytes pass through, failed.
    Disk(io::Error),
}

/// Unpacks a whole payload on a thread that may block, and returns the bytes with their checksum.
///
/// Many bytes go into a file of the spool.
///
/// # Errors
///
/// [`ErrorKind::Integrity`] for bytes that the codec did not make; [`ErrorKind::Invalid`] for more than `most` bytes,
/// or [`MOST`] where that is less; the errors of the file system.
pub(in crate::storage) async fn unpack(
    key: &Key,
    codec: &str,
    payload: &Payload,
    most: Option<u64>,
    spool: &Spool,
) -> Result<(Payload, Checksum)> {
    let most = most.unwrap_or(MOST).min(MOST);
    let (packed, name, spool) = (payload.clone(), codec.to_owned(), spool.clone());
    // The semaphore is never closed.
    let permit = DECODERS.acquire().await;
    let unpacked = payload::run_blocking(move || Ok(read(&name, &packed, most, &spool))).await;
    drop(permit);
    match unpacked.unwrap_or_else(|error| Err(UnpackFault::Disk(error))) {
        Ok(Some(unpacked)) => Ok(unpacked),
        Ok(None) => {
            let remedy = if most < MOST {
                "read it in parts with `offset` and `length`, or name a `destination`"
            } else {
                "unpack it with another tool"
            };
            let why =
                format!("unpacked (its Content-Encoding is {codec}), the value has more than {most} bytes; {remedy}");
            Err(Error::new(ErrorKind::Invalid, Operation::Retrieve, Some(key), why))
        }
        Err(UnpackFault::Packed(error)) => {
            let what = format!(
                "the object's Content-Encoding is {codec:?}, and its bytes are not ({error}); take the header off with \
                 the bucket's own tool if they are plain"
            );
            Err(damaged(key, &what).with_source(error))
        }
        Err(UnpackFault::Disk(error)) => Err(spool_fault(Operation::Retrieve, Some(key), error)),
    }
}

/// Decodes to the end; returns `None` once there are more bytes than the cap.
fn read(codec: &str, payload: &Payload, most: u64, spool: &Spool) -> Result<Option<(Payload, Checksum)>, UnpackFault> {
    let packed = BufReader::with_capacity(Payload::CHUNK, Source { payload, at: 0 });
    let mut plain: Box<dyn Read> = match codec {
        "gzip" => Box::new(flate2::bufread::MultiGzDecoder::new(packed)),
        "zstd" => Box::new(zstd::stream::read::Decoder::with_buffer(packed).map_err(UnpackFault::Packed)?),
        other => return Err(UnpackFault::Packed(io::Error::other(format!("{other} is unknown")))),
    };
    let mut kept = spool.writer();
    let mut chunk = vec![0; Payload::CHUNK];
    loop {
        match plain.read(&mut chunk) {
            Ok(0) => return kept.finish_blocking().map(Some).map_err(UnpackFault::Disk),
            Ok(count) => kept.push_blocking(&chunk[..count]).map_err(UnpackFault::Disk)?,
            Err(error) if error.kind() == io::ErrorKind::Interrupted => {}
            // This is not the decoder's error: the packed bytes are in a file of the spool.
            Err(error) if error.raw_os_error().is_some() => return Err(UnpackFault::Disk(error)),
            Err(error) => return Err(UnpackFault::Packed(error)),
        }
        if kept.len() > most {
            return Ok(None);
        }
    }
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

    use bytes::Bytes;

    use super::*;

    fn gzip(plain: &[u8]) -> Bytes {
        let mut out = flate2::write::GzEncoder::new(Vec::new(), flate2::Compression::best());
        out.write_all(plain).unwrap();
        out.finish().unwrap().into()
    }

    #[tokio::test]
    async fn codings_are_decoded_under_a_cap() {
        let (key, folder) = (Key::parse("k").unwrap(), tempfile::tempdir().unwrap());
        let spool = Spool::new(folder.path());
        let unpack = async |codec: &str, payload: &Payload, most| {
            let (payload, checksum) = super::unpack(&key, codec, payload, most, &spool).await?;
            let bytes = payload.into_memory().await.unwrap();
            assert_eq!(checksum, Checksum::of(&bytes));
            Ok::<_, Error>(bytes)
        };
        let plain = vec![b'x'; 100_000];
        for (codec, packed) in [("gzip", gzip(&plain)), ("zstd", zstd::encode_all(&*plain, 3).unwrap().into())] {
            let payload = Payload::Memory(packed.clone());
            assert_eq!(unpack(codec, &payload, None).await.unwrap(), plain);
            assert_eq!(unpack(codec, &payload, Some(100_000)).await.unwrap().len(), 100_000);
            let error = unpack(codec, &payload, Some(99_999)).await.unwrap_err();
            assert!(error.kind == ErrorKind::Invalid && error.to_string().contains("99999 bytes"), "{error}");
            let cut = Payload::Memory(packed.slice(..packed.len() - 3));
            assert_eq!(unpack(codec, &cut, None).await.unwrap_err().kind, ErrorKind::Integrity);
            let plain = Payload::Memory(Bytes::from_static(b"plain"));
            let error = unpack(codec, &plain, None).await.unwrap_err();
            assert!(error.to_string().contains("Content-Encoding") && error.to_string().contains(codec), "{error}");
        }
        let two = [gzip(b"a"), gzip(b"b")].concat();
        assert_eq!(unpack("gzip", &Payload::Memory(two.into()), None).await.unwrap(), "ab");
    }

    #[tokio::test]
    async fn large_values_are_unpacked_into_a_file() {
        let (key, folder) = (Key::parse("k").unwrap(), tempfile::tempdir().unwrap());
        let plain = vec![b'x'; 5 << 20];
        let packed = Payload::Memory(gzip(&plain));
        let (payload, _) = unpack(&key, "gzip", &packed, None, &Spool::new(folder.path())).await.unwrap();
        assert!(matches!(payload, Payload::File(_)), "whether or not the packed bytes are in a file");
        assert_eq!(payload.into_memory().await.unwrap(), plain);
        let error = unpack(&key, "gzip", &packed, None, &Spool::new("/dev/null/x")).await.unwrap_err();
        assert_eq!(error.kind, ErrorKind::Io, "the object is as it was: {error}");
    }
}
