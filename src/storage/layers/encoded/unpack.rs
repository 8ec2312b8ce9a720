//! Decompresses the bytes of a value, under a cap.

use std::cell::Cell;
use std::io::{self, BufReader, Read};
use std::ops::Range;

use crate::storage::error::{Error, ErrorKind, Operation, Result};
use crate::storage::files::Spool;
use crate::storage::files::spool::spool_fault;
use crate::storage::layers::encoded::coders::coded;
use crate::storage::layers::encoded::sink::CodecSink;
use crate::storage::object::payload::Payload;
use crate::storage::object::{Checksum, Codec, Key};
use crate::storage::reading::damaged;

/// Values of up to this many bytes are decompressed on the caller's thread, which takes about 0.2 ms.
const INLINE: u64 = 64 << 10;
/// Up to this many bytes, a value may be of any ratio to its stored bytes.
const FREE_OF_RATIO: u64 = 16 << 20;
/// The most bytes of a value for each stored byte. No gzip stream has more than 1,032.
const MOST_RATIO: u64 = 1_100;

/// How many bytes of a value may be decompressed, and who says so.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Cap {
    /// The attributes tell the size of the value, since this program wrote the object.
    Declared(u64),
    /// The caller takes no more.
    Requested(u64),
    /// The size of the value is unknown, since another tool wrote the object.
    Foreign(u64),
}

/// The part of a value that is decompressed.
#[derive(Clone, Debug)]
pub(super) struct Wanted {
    /// The bytes of the value. An end beyond the value means up to its end.
    pub(super) part: Range<u64>,
    pub(super) cap: Cap,
    /// Whether the bytes stay in memory; else many go into a file.
    pub(super) in_memory: bool,
}

/// Decompressed bytes.
pub(super) struct Unpacked {
    /// The part that was wanted.
    pub(super) payload: Payload,
    /// Size and checksum of the whole value, where all of it was decompressed.
    pub(super) whole: Option<(u64, Checksum)>,
}

/// The reason why nothing was decompressed.
enum Fault {
    /// The value has more bytes than the cap.
    TooLarge,
    /// The value has more bytes than any honest compression makes of so few.
    Bomb,
    /// The bytes were not made by the codec that is named.
    NotPacked(io::Error),
    /// The local disk, which the bytes pass through, failed.
    Disk(io::Error),
}

/// Decompresses a part of a value. Bytes behind the part are not decompressed.
///
/// # Errors
///
/// [`ErrorKind::Integrity`] for bytes that the codec did not make, and for more bytes than [`Cap::Declared`],
/// [`Cap::Foreign`], or an honest ratio; [`ErrorKind::Invalid`] for more than [`Cap::Requested`]; the errors of the file
/// system.
pub(super) async fn unpack(
    key: &Key,
    codec: Codec,
    payload: &Payload,
    wanted: &Wanted,
    spool: &Spool,
) -> Result<Unpacked> {
    let is_small = matches!(wanted.cap, Cap::Declared(size) if size <= INLINE) && payload.as_memory().is_some();
    let unpacked = if is_small {
        decompress(codec, payload, wanted, spool)
    } else {
        let (payload, wanted, spool) = (payload.clone(), wanted.clone(), spool.clone());
        let is_streamed = !wanted.in_memory || payload.as_memory().is_none();
        let unpacked = coded(is_streamed, move || Ok(decompress(codec, &payload, &wanted, &spool))).await;
        unpacked.unwrap_or_else(|error| Err(Fault::Disk(error)))
    };
    unpacked.map_err(|fault| match (fault, wanted.cap) {
        (Fault::Disk(error), _) => spool_fault(Operation::Retrieve, Some(key), error),
        (Fault::Bomb, _) => {
            let why = format!(
                "decompressed ({codec}), the value has more than {MOST_RATIO} bytes for each stored byte, as only a bomb has"
            );
            damaged(key, &why)
        }
        (Fault::TooLarge, Cap::Declared(size)) => {
            damaged(key, &format!("decompressed ({codec}), the value has more than the {size} bytes of its header"))
        }
        (Fault::TooLarge, Cap::Foreign(most)) => {
            let why = format!(
                "decompressed (its Content-Encoding is {codec}), the value has more than {most} bytes, which is the most that is \
                 taken"
            );
            damaged(key, &why)
        }
        (Fault::TooLarge, Cap::Requested(most)) => {
            let why = format!(
                "decompressed (its Content-Encoding is {codec}), the value has more than {most} bytes; read it in parts with \
                 `offset` and `length`, or name a `destination`"
            );
            Error::new(ErrorKind::Invalid, Operation::Retrieve, Some(key), why)
        }
        (Fault::NotPacked(error), Cap::Declared(_)) => {
            damaged(key, &format!("the stored bytes are not {codec} ({error})")).with_source(error)
        }
        (Fault::NotPacked(error), _) => {
            let what = format!(
                "the object's Content-Encoding is {:?}, and its bytes are not ({error}); take the header off with the bucket's \
                 own tool if they are plain",
                codec.as_str()
            );
            damaged(key, &what).with_source(error)
        }
    })
}

fn decompress(codec: Codec, payload: &Payload, wanted: &Wanted, spool: &Spool) -> Result<Unpacked, Fault> {
    let read = Cell::new(0);
    let packed = BufReader::with_capacity(
        Payload::CHUNK.min(usize::try_from(payload.len()).unwrap_or(usize::MAX).max(1)),
        Source { payload, read: &read },
    );
    let mut plain: Box<dyn Read + '_> = match codec {
        Codec::Gzip => Box::new(flate2::bufread::MultiGzDecoder::new(packed)),
        Codec::Zstd => Box::new(zstd::stream::read::Decoder::with_buffer(packed).map_err(Fault::NotPacked)?),
    };
    let (part, most) = match wanted.cap {
        Cap::Declared(size) => (wanted.part.start..wanted.part.end.min(size), size),
        Cap::Requested(most) | Cap::Foreign(most) => (wanted.part.clone(), most),
    };
    let is_whole = match wanted.cap {
        Cap::Declared(size) => part.end == size,
        Cap::Requested(_) | Cap::Foreign(_) => part.end == u64::MAX,
    };
    let mut sink = if wanted.in_memory {
        let expected = if matches!(wanted.cap, Cap::Declared(_)) { part.end.saturating_sub(part.start) } else { 0 };
        CodecSink::in_memory(usize::try_from(expected).unwrap_or(0))
    } else {
        CodecSink::spooled(spool)
    };
    let (mut total, mut checksum) = (0_u64, Checksum::of(&[]));
    let mut chunk = vec![0; Payload::CHUNK.min(usize::try_from(most).unwrap_or(usize::MAX).max(1))];
    while is_whole || total < part.end {
        let bytes = match plain.read(&mut chunk) {
            Ok(0) => {
                let (payload, _) = sink.finish().map_err(Fault::Disk)?;
                return Ok(Unpacked { payload, whole: Some((total, checksum)) });
            }
            Ok(count) => &chunk[..count],
            Err(error) if error.kind() == io::ErrorKind::Interrupted => continue,
            // This is not the decoder's error: the packed bytes are in a file of the spool.
            Err(error) if error.raw_os_error().is_some() => return Err(Fault::Disk(error)),
            Err(error) => return Err(Fault::NotPacked(error)),
        };
        checksum = checksum.append(bytes);
        let here = total..total + bytes.len() as u64;
        let (begin, end) = (part.start.clamp(here.start, here.end), part.end.clamp(here.start, here.end));
        let kept = &bytes[(begin - here.start) as usize..(end - here.start) as usize];
        io::Write::write_all(&mut sink, kept).map_err(Fault::Disk)?;
        total = here.end;
        if total > most {
            return Err(Fault::TooLarge);
        }
        // The size of an object of this program is known and bounds what is decompressed.
        let is_foreign = !matches!(wanted.cap, Cap::Declared(_));
        if is_foreign && total > FREE_OF_RATIO && total / MOST_RATIO > read.get() {
            return Err(Fault::Bomb);
        }
    }
    let (payload, _) = sink.finish().map_err(Fault::Disk)?;
    Ok(Unpacked { payload, whole: None })
}

/// Reads a payload from its beginning, and counts the bytes.
struct Source<'a> {
    payload: &'a Payload,
    read: &'a Cell<u64>,
}

impl Read for Source<'_> {
    fn read(&mut self, buffer: &mut [u8]) -> io::Result<usize> {
        let bytes = self.payload.read_at(self.read.get(), buffer.len())?;
        buffer[..bytes.len()].copy_from_slice(&bytes);
        self.read.set(self.read.get() + bytes.len() as u64);
        Ok(bytes.len())
    }
}

#[cfg(test)]
mod tests {
    use std::io::Write as _;

    use bytes::Bytes;

    use super::*;

    const ALL: Range<u64> = 0..u64::MAX;

    fn gzip(plain: &[u8]) -> Bytes {
        let mut out = flate2::write::GzEncoder::new(Vec::new(), flate2::Compression::best());
        out.write_all(plain).unwrap();
        out.finish().unwrap().into()
    }

    async fn unpacked(codec: Codec, packed: Bytes) -> Bytes {
        let wanted = Wanted { part: ALL, cap: Cap::Foreign(u64::MAX), in_memory: true };
        let (key, packed, spool) = (Key::parse("k").unwrap(), packed.into(), Spool::new("/dev/null/x"));
        let unpacked = unpack(&key, codec, &packed, &wanted, &spool).await.unwrap();
        unpacked.payload.into_memory().await.unwrap()
    }

    async fn within(codec: Codec, packed: &Bytes, part: Range<u64>, cap: Cap) -> Result<Unpacked> {
        let wanted = Wanted { part, cap, in_memory: true };
        let payload = Payload::Memory(packed.clone());
        unpack(&Key::parse("k").unwrap(), codec, &payload, &wanted, &Spool::new("/dev/null/x")).await
    }

    #[tokio::test]
    async fn values_are_decompressed_under_a_cap() {
        let plain: Vec<u8> = (0..100_000_u32).map(|number| (number / 7) as u8).collect();
        let packings = [(Codec::Gzip, gzip(&plain)), (Codec::Zstd, zstd::encode_all(&*plain, 3).unwrap().into())];
        for (codec, packed) in packings {
            for cap in [Cap::Declared(100_000), Cap::Requested(100_000), Cap::Foreign(100_000)] {
                let found = within(codec, &packed, ALL, cap).await.unwrap();
                assert_eq!(found.whole, Some((100_000, Checksum::of(&plain))));
                assert_eq!(found.payload.into_memory().await.unwrap(), plain);
            }
            for (cap, kind) in [
                (Cap::Declared(99_999), ErrorKind::Integrity),
                (Cap::Requested(99_999), ErrorKind::Invalid),
                (Cap::Foreign(99_999), ErrorKind::Integrity),
            ] {
                let error = within(codec, &packed, ALL, cap).await.err().unwrap();
                assert!(error.kind == kind && error.to_string().contains("99999 bytes"), "{error}");
            }
            for bytes in [packed.slice(..packed.len() - 3), Bytes::from_static(b"plain")] {
                let error = within(codec, &bytes, ALL, Cap::Foreign(1 << 20)).await.err().unwrap();
                assert_eq!(error.kind, ErrorKind::Integrity);
                assert!(error.to_string().contains("Content-Encoding") && error.to_string().contains(codec.as_str()));
                let error = within(codec, &bytes, ALL, Cap::Declared(100_000)).await.err().unwrap();
                assert!(error.kind == ErrorKind::Integrity && !error.to_string().contains("Content-Encoding"));
            }
        }
        let two = [gzip(b"a"), gzip(b"b")].concat();
        assert_eq!(unpacked(Codec::Gzip, two.into()).await, "ab");
    }

    #[tokio::test]
    async fn a_part_is_decompressed_no_further_than_its_end() {
        let plain: Vec<u8> = (0..3_000_000_u32).map(|number| (number / 7) as u8).collect();
        let mut packed = Vec::from(gzip(&plain));
        let whole = packed.len();
        // The damage lies behind the parts.
        packed.truncate(whole - 100);
        let packed = Bytes::from(packed);
        for (begin, end) in [(0, 0), (0, 1), (5, 400_000), (1_999_999, 2_000_001)] {
            for cap in [Cap::Declared(3_000_000), Cap::Foreign(1 << 30)] {
                let found = within(Codec::Gzip, &packed, begin..end, cap).await.unwrap();
                assert!(found.whole.is_none());
                let part = found.payload.into_memory().await.unwrap();
                assert_eq!(part, &plain[begin as usize..end as usize], "{begin}..{end}");
            }
        }
        let beyond = within(Codec::Gzip, &gzip(&plain), 4_000_000..5_000_000, Cap::Foreign(1 << 30)).await.unwrap();
        assert!(beyond.payload.is_empty() && beyond.whole == Some((3_000_000, Checksum::of(&plain))));
    }

    #[tokio::test]
    async fn a_bomb_is_found_by_its_ratio() {
        // Zstandard packs a run of one byte without bound, and gzip up to 1,032 times.
        let zeros = vec![0; 17 << 20];
        let bomb = Bytes::from(zstd::encode_all(&*zeros, 19).unwrap());
        for cap in [Cap::Foreign(1 << 30), Cap::Requested(1 << 30)] {
            let error = within(Codec::Zstd, &bomb, ALL, cap).await.err().unwrap();
            assert!(error.kind == ErrorKind::Integrity && error.to_string().contains("bomb"), "{error}");
        }
        assert_eq!(unpacked(Codec::Gzip, gzip(&zeros)).await, zeros);
        let found = within(Codec::Zstd, &bomb, ALL, Cap::Declared(17 << 20)).await.unwrap();
        assert_eq!(found.payload.len(), 17 << 20, "a value of this program may be of any ratio");
        let few = Bytes::from(zstd::encode_all(&zeros[..16 << 20], 19).unwrap());
        assert_eq!(unpacked(Codec::Zstd, few).await.len(), 16 << 20);
    }

    #[tokio::test]
    async fn large_values_are_decompressed_into_a_file() {
        let (key, folder) = (Key::parse("k").unwrap(), tempfile::tempdir().unwrap());
        let plain = vec![b'x'; 5 << 20];
        let packed = Payload::Memory(gzip(&plain));
        let wanted = Wanted { part: ALL, cap: Cap::Declared(5 << 20), in_memory: false };
        let found = unpack(&key, Codec::Gzip, &packed, &wanted, &Spool::new(folder.path())).await.unwrap();
        assert!(matches!(found.payload, Payload::File(_)), "whether or not the packed bytes are in a file");
        assert_eq!(found.payload.into_memory().await.unwrap(), plain);
        let error = unpack(&key, Codec::Gzip, &packed, &wanted, &Spool::new("/dev/null/x")).await.err().unwrap();
        assert_eq!(error.kind, ErrorKind::Io, "the object is as it was: {error}");
    }
}
