//! Decodes the body of a message: checks the content type, undoes compression and content encoding, and makes JSON of the other
//! serializers.
//!
//! Besides the layer `encoded` of the storage, this is the only place with raw decoders. Each decoder stops at a limit, so
//! that a small message cannot fill the memory.

use std::borrow::Cow;
use std::io::{BufReader, Read};

use base64::Engine as _;

use super::message::{Field, Message};
use super::scan::{Found, Scan, Sought};
use super::serializer::Serializer;
use super::text_form::Broken;
use super::{msgpack, yaml};
use crate::charset::Charset;
use crate::json::MAX_DEPTH;

/// The most levels of a message around the values that it carries: its own, and those of callbacks, chains and groups.
const AROUND: usize = 128;

/// The limits of one body.
#[derive(Clone, Copy, Debug)]
pub struct Limits {
    /// The largest body in bytes, before and after decompression.
    pub max_body_bytes: usize,
    /// The most arrays and objects inside one another, those of a value and those around it.
    pub depth: usize,
}

impl Default for Limits {
    fn default() -> Self {
        Self { max_body_bytes: 64 << 20, depth: MAX_DEPTH + AROUND }
    }
}

/// The reason why a body was refused; the text names the fault and the remedy.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum Error {
    /// The content type is not accepted.
    #[error("{0}")]
    Disallowed(String),
    /// The bytes do not have the form that the headers name, or are too many.
    #[error("{0}")]
    Decode(String),
}

/// Decodes a body: undoes compression and content encoding, and turns MessagePack and YAML into JSON.
///
/// `accept` holds names or content types of serializers as Celery's `accept_content` does; `json`, `msgpack` and `yaml` can be
/// read. The returned bytes should be JSON in UTF-8, which the JSON parser checks.
///
/// # Errors
///
/// [`Error::Disallowed`] for the content type of any other serializer, and for these when they are not accepted.
/// [`Error::Decode`] for an unknown compression or encoding, for bytes that are not valid in it, and for too large a body.
pub fn decode<'m, S: AsRef<str>>(message: &'m Message, accept: &[S], limits: Limits) -> Result<Cow<'m, [u8]>, Error> {
    allow(message.properties.content_type.as_deref(), accept)?;
    text(message, limits.max_body_bytes)
}

fn text(message: &Message, limit: usize) -> Result<Cow<'_, [u8]>, Error> {
    if message.body.len() > limit {
        return Err(too_large(limit));
    }
    let plain = match message.headers.get("compression") {
        None | Some(Field::Void) => Cow::Borrowed(&message.body[..]),
        Some(Field::Text(codec)) if codec.is_empty() => Cow::Borrowed(&message.body[..]),
        Some(Field::Text(codec)) => Cow::Owned(decompress(codec, &message.body, limit)?),
        Some(_) => return Err(Error::Decode("the compression header is not a text; name the codec".to_owned())),
    };
    let serializer = serializer(message);
    if serializer == Serializer::Msgpack {
        return msgpack::to_json(&plain, limit)
            .map(Cow::Owned)
            .map_err(|broken| unreadable(serializer, &broken, limit));
    }
    let text = unencode(message.properties.content_encoding.as_deref().unwrap_or("utf-8"), plain)?;
    if text.len() > limit {
        return Err(too_large(limit));
    }
    if text.starts_with(b"\xef\xbb\xbf") {
        return Err(Error::Decode("the body begins with a byte order mark; send UTF-8 without one".to_owned()));
    }
    if serializer == Serializer::Yaml {
        let text = std::str::from_utf8(&text).map_err(|_| Broken::Form("it is not UTF-8"));
        let text = text.and_then(|text| yaml::to_json(text, limit));
        return text.map(Cow::Owned).map_err(|broken| unreadable(serializer, &broken, limit));
    }
    Ok(text)
}

/// Returns the serializer of a body; JSON where the content type names no other one that can be read.
fn serializer(message: &Message) -> Serializer {
    message.properties.content_type.as_deref().and_then(Serializer::of_content_type).unwrap_or_default()
}

fn unreadable(serializer: Serializer, broken: &Broken, limit: usize) -> Error {
    if *broken == Broken::TooLong {
        return too_large(limit);
    }
    Error::Decode(format!("the body is not readable {}: {broken}", serializer.name()))
}

fn allow<S: AsRef<str>>(content_type: Option<&str>, accept: &[S]) -> Result<(), Error> {
    let accepts = |name: &str| accept.iter().any(|accepted| accepted.as_ref() == name);
    let known = content_type.and_then(Serializer::of_content_type);
    if known.is_some_and(|known| accepts(known.name()) || accepts(known.content_type())) {
        return Ok(());
    }
    let name = match content_type {
        Some("application/json") => "json",
        Some("application/x-python-serialize" | "application/x-pickle") => "pickle",
        Some("application/x-yaml" | "text/yaml") => "yaml",
        Some("application/x-msgpack" | "application/msgpack") => "msgpack",
        Some(_) => "unknown",
        None => "missing",
    };
    // The error has kombu's words, so that a search for them finds kombu's documentation.
    let accept_it = match known {
        Some(known) => format!(", or let the worker read it (celery_accept_content = 'json,{}')", known.name()),
        None => String::new(),
    };
    Err(Error::Disallowed(format!(
        "refusing to deserialize disallowed content of type {name} ({}); send application/json (task_serializer = 'json'){accept_it}",
        content_type.unwrap_or("none")
    )))
}

fn too_large(limit: usize) -> Error {
    Error::Decode(format!("the body is larger than {limit} bytes; send the value by reference"))
}

/// Decompresses a body with the codec that the `compression` header names.
fn decompress(codec: &str, body: &[u8], limit: usize) -> Result<Vec<u8>, Error> {
    let read = capped(decompressor(codec, body)?, limit);
    read.map_err(|error| broken(codec, &error))?.ok_or_else(|| too_large(limit))
}

fn broken(codec: &str, error: &std::io::Error) -> Error {
    Error::Decode(format!("the body is not {codec} as its compression header says ({error}); send it uncompressed"))
}

/// Creates the decoder for a codec, which is named by kombu's MIME type or an alias.
fn decompressor<'b>(codec: &str, body: &'b [u8]) -> Result<Box<dyn Read + 'b>, Error> {
    Ok(match codec {
        // kombu writes a zlib stream and calls it gzip; other producers write gzip.
        "application/x-gzip" | "application/gzip" | "gzip" | "zlib" if body.starts_with(&[0x1f, 0x8b]) => {
            Box::new(flate2::bufread::MultiGzDecoder::new(body))
        }
        "application/x-gzip" | "application/gzip" | "gzip" | "zlib" => {
            Box::new(flate2::bufread::ZlibDecoder::new(body))
        }
        "application/x-bz2" | "bzip2" | "bzip" => Box::new(bzip2::bufread::MultiBzDecoder::new(body)),
        "application/x-lzma" | "lzma" | "xz" => {
            // 128 MiB of memory for the decoder is more than `xz -9` needs.
            let stream = liblzma::stream::Stream::new_auto_decoder(128 << 20, 0)
                .map_err(|error| broken(codec, &std::io::Error::other(error)))?;
            Box::new(liblzma::bufread::XzDecoder::new_stream(body, stream))
        }
        "application/x-brotli" | "brotli" => Box::new(brotli_decompressor::Decompressor::new(body, 4096)),
        "application/zstd" | "zstd" | "zstandard" => {
            let decoder = zstd::stream::read::Decoder::with_buffer(BufReader::new(body));
            Box::new(decoder.map_err(|error| broken(codec, &error))?)
        }
        _ => {
            return Err(Error::Decode(
                "the compression is unknown; use gzip, zlib, bzip2, lzma, brotli or zstd, or none".to_owned(),
            ));
        }
    })
}

/// The beginning of the text of a body, from [`peek`].
#[derive(Debug)]
pub struct Beginning<'m> {
    /// The first bytes of the text.
    pub text: Cow<'m, [u8]>,
    /// Tells whether the text ends here.
    pub is_whole: bool,
}

/// Tells whether a body is compressed.
#[must_use]
pub fn is_compressed(message: &Message) -> bool {
    matches!(message.headers.get("compression"), Some(Field::Text(codec)) if !codec.is_empty())
}

/// Tells whether the body is JSON by its content type.
#[must_use]
pub fn is_json(message: &Message) -> bool {
    serializer(message) == Serializer::Json
}

/// Tells whether the body is JSON whose content encoding is UTF-8 or leaves the bytes as they are, so that the decompressed bytes
/// are the text.
#[must_use]
pub fn is_utf8(message: &Message) -> bool {
    if !is_json(message) {
        return false;
    }
    let encoding = message.properties.content_encoding.as_deref().unwrap_or("utf-8");
    ["utf-8", "utf8", "binary", "us-ascii", "ascii", ""].iter().any(|name| encoding.eq_ignore_ascii_case(name))
}

/// Tells whether the decoder of a body keeps a large window of decompressed bytes in memory until the end.
#[must_use]
pub fn keeps_window(message: &Message) -> bool {
    let codec = match message.headers.get("compression") {
        Some(Field::Text(codec)) => codec.as_str(),
        _ => "",
    };
    ["xz", "lzma", "zstd", "zstandard"].iter().any(|name| codec.ends_with(name))
}

/// Reads the first bytes of the text of a body, at most `limit`.
///
/// Returns `None` for a body that is not in UTF-8 or cannot be decompressed.
#[must_use]
pub fn peek(message: &Message, limit: usize) -> Option<Beginning<'_>> {
    if !is_utf8(message) {
        return None;
    }
    let codec = match message.headers.get("compression") {
        None | Some(Field::Void) => "",
        Some(Field::Text(codec)) => codec,
        Some(_) => return None,
    };
    if codec.is_empty() {
        let text = Cow::Borrowed(&message.body[..message.body.len().min(limit)]);
        return Some(Beginning { is_whole: text.len() == message.body.len(), text });
    }
    let mut text = Vec::new();
    decompressor(codec, &message.body).ok()?.take(limit as u64 + 1).read_to_end(&mut text).ok()?;
    let is_whole = text.len() <= limit;
    text.truncate(limit);
    Some(Beginning { text: Cow::Owned(text), is_whole })
}

/// Searches a body for arguments.
///
/// The body is decompressed in pieces, up to `limit` bytes; a larger body is refused later. A body that is not in UTF-8 is
/// decoded whole.
#[must_use]
pub fn search(message: &Message, sought: &[Sought], limit: usize) -> Found {
    let mut scan = Scan::new(sought);
    if is_utf8(message) {
        let codec = message.headers.text("compression").unwrap_or_default();
        if codec.is_empty() {
            scan.push(&message.body);
        } else if let Ok(decoder) = decompressor(codec, &message.body) {
            let mut decoder = decoder.take(limit as u64);
            let mut piece = vec![0; 1 << 16];
            while *scan.found() == Found::Unread {
                match decoder.read(&mut piece) {
                    Ok(0) | Err(_) => break,
                    Ok(count) => scan.push(&piece[..count]),
                };
            }
        }
    } else if let Ok(text) = text(message, limit) {
        scan.push(&text);
    }
    match scan.found() {
        // It ends in the middle.
        Found::Unread => Found::NOTHING,
        found => found.clone(),
    }
}

/// Reads to the end; returns `None` when there are more than `limit` bytes.
fn capped(decoder: impl Read, limit: usize) -> std::io::Result<Option<Vec<u8>>> {
    let mut out = Vec::new();
    decoder.take(limit as u64 + 1).read_to_end(&mut out)?;
    Ok((out.len() <= limit).then_some(out))
}

/// Converts a text into UTF-8 from its content encoding, which has the name of a Python codec.
///
/// When the encoding is unknown, or the bytes are not valid in it, the bytes are taken as UTF-8, as kombu does.
fn unencode<'m>(encoding: &str, bytes: Cow<'m, [u8]>) -> Result<Cow<'m, [u8]>, Error> {
    if matches!(encoding.trim().to_ascii_lowercase().as_str(), "binary" | "") {
        return Ok(bytes);
    }
    let charset = Charset::of_python(encoding);
    let decoded = match charset {
        Some(Charset::Utf8) => return Ok(bytes),
        Some(charset) => charset.decode(&bytes).map(|text| text.into_owned().into_bytes()),
        None if encoding.eq_ignore_ascii_case("base64") => {
            base64::engine::general_purpose::STANDARD.decode(&*bytes).ok()
        }
        None => None,
    };
    match decoded {
        Some(text) => Ok(Cow::Owned(text)),
        None if std::str::from_utf8(&bytes).is_ok() => Ok(bytes),
        None => {
            let what = if charset.is_some() {
                "what its content_encoding says"
            } else {
                "in a content_encoding that is known"
            };
            let named: String = encoding.chars().take(64).collect();
            Err(Error::Decode(format!("the body is not {what} ({named:?}), nor UTF-8; send it as utf-8")))
        }
    }
}

#[cfg(test)]
mod tests {
    use std::io::Write as _;

    use bytes::Bytes;

    use super::*;
    use crate::celery::message::Properties;

    const JSON: &[&str] = &["json"];

    #[test]
    fn an_argument_is_found_in_every_encoding() {
        use base64::Engine as _;
        let plain = r#"[["the/key", "v"], {}, {}]"#;
        let key = [Sought { position: Some(0), name: "key", is_list: false }];
        let utf16: Vec<u8> = plain.encode_utf16().flat_map(u16::to_le_bytes).collect();
        let base64 = base64::engine::general_purpose::STANDARD.encode(plain);
        for (encoding, body) in [("utf-8", plain.as_bytes()), ("utf-16-le", &utf16), ("base64", base64.as_bytes())] {
            let found = search(&message(None, Some(encoding), body.to_vec()), &key, 1 << 16);
            assert_eq!(found, Found::Texts(vec!["the/key".to_owned()]), "{encoding}");
        }
        assert_eq!(search(&message(None, Some("utf-16-le"), utf16), &key, 8), Found::NOTHING);
    }

    fn message(compression: Option<&str>, encoding: Option<&str>, body: impl Into<Bytes>) -> Message {
        let mut message = Message {
            properties: Properties {
                content_type: Some("application/json".to_owned()),
                content_encoding: encoding.map(str::to_owned),
                ..Properties::default()
            },
            body: body.into(),
            ..Message::default()
        };
        if let Some(codec) = compression {
            message.headers.set("compression", codec.into());
        }
        message
    }

    fn small() -> Limits {
        Limits { max_body_bytes: 1 << 16, depth: 128 }
    }

    fn compressed(plain: &[u8]) -> Vec<(&'static str, Vec<u8>)> {
        let mut zlib = flate2::write::ZlibEncoder::new(Vec::new(), flate2::Compression::best());
        zlib.write_all(plain).unwrap();
        let mut gzip = flate2::write::GzEncoder::new(Vec::new(), flate2::Compression::best());
        gzip.write_all(plain).unwrap();
        let mut bzip2 = bzip2::write::BzEncoder::new(Vec::new(), bzip2::Compression::best());
        bzip2.write_all(plain).unwrap();
        let mut xz = liblzma::write::XzEncoder::new(Vec::new(), 9);
        xz.write_all(plain).unwrap();
        vec![
            ("application/x-gzip", zlib.finish().unwrap()),
            ("application/x-gzip", gzip.finish().unwrap()),
            ("application/x-bz2", bzip2.finish().unwrap()),
            ("application/x-lzma", xz.finish().unwrap()),
            ("application/zstd", zstd::encode_all(plain, 3).unwrap()),
        ]
    }

    #[test]
    fn every_codec_is_undone_and_capped() {
        for (codec, body) in compressed(b"[[], {}, {}]") {
            let whole = message(Some(codec), None, body.clone());
            assert_eq!(&*decode(&whole, JSON, small()).unwrap(), b"[[], {}, {}]", "{codec}");
            let cut = message(Some(codec), None, body[..body.len() - 5].to_vec());
            let error = decode(&cut, JSON, small()).unwrap_err();
            assert!(error.to_string().contains("send it uncompressed"), "{codec}: {error}");
            let garbage = message(Some(codec), None, &b"\x00garbage"[..]);
            assert!(matches!(decode(&garbage, JSON, small()), Err(Error::Decode(_))), "{codec}");
        }
        for (codec, bomb) in compressed(&vec![b' '; 8 << 20]) {
            assert!(bomb.len() < 1 << 16, "{codec}");
            let error = decode(&message(Some(codec), None, bomb), JSON, small()).unwrap_err();
            assert!(error.to_string().contains("larger than 65536 bytes"), "{codec}: {error}");
        }
        // 8 MiB of spaces.
        let brotli = [203, 255, 255, 63, 248, 37, 64, 226, 177, 64, 32, 247, 254, 111].as_slice();
        let error = decode(&message(Some("application/x-brotli"), None, brotli), JSON, small()).unwrap_err();
        assert!(error.to_string().contains("larger than 65536 bytes"), "{error}");
        let error = decode(&message(Some("application/x-lz4"), None, "x"), JSON, small()).unwrap_err();
        assert!(error.to_string().contains("unknown"), "{error}");
        assert!(decode(&message(None, None, vec![b' '; 1 << 17]), JSON, small()).is_err());
    }

    #[test]
    fn every_content_encoding_is_undone() {
        for (encoding, body, text) in [
            (None, "é".as_bytes(), "é"),
            (Some("UTF-8"), "é".as_bytes(), "é"),
            (Some("utf8"), "é".as_bytes(), "é"),
            (Some("binary"), "é".as_bytes(), "é"),
            (Some("us-ascii"), b"e", "e"),
            (Some("latin-1"), b"\xe9", "é"),
            (Some("ISO-8859-1"), b"\xe9", "é"),
            (Some("base64"), b"w6k=", "é"),
            (Some("utf-16"), b"\xff\xfe\xe9\0", "é"),
            (Some("UTF-16"), b"\xfe\xff\0\xe9", "é"),
            (Some("utf_16_be"), b"\0\xe9", "é"),
            (Some("utf-32"), b"\xff\xfe\0\0\xe9\0\0\0", "é"),
            (Some("utf-8-sig"), b"\xef\xbb\xbf\xc3\xa9", "é"),
            (Some("cp1252"), b"\x80", "€"),
            (Some("iso-8859-15"), b"\xa4", "€"),
            (Some("shift_jis"), b"\x82\xa0", "あ"),
            // Taken as UTF-8, as kombu does: bytes that are not valid in their encoding, or in an unknown encoding.
            (Some("us-ascii"), "é".as_bytes(), "é"),
            (Some("utf-16"), b"x", "x"),
            (Some("gzip"), "é".as_bytes(), "é"),
            (Some("base64"), "é".as_bytes(), "é"),
        ] {
            assert_eq!(&*decode(&message(None, encoding, body), JSON, small()).unwrap(), text.as_bytes());
        }
        for (encoding, body) in [
            (Some("us-ascii"), &b"\xe9"[..]),
            (Some("utf-16"), b"\xe9"),
            (Some("klingon"), b"\xe9"),
            (None, b"\xef\xbb\xbf1"),
        ] {
            assert!(matches!(decode(&message(None, encoding, body), JSON, small()), Err(Error::Decode(_))));
        }
    }

    #[test]
    fn other_serializers_are_read_as_json_within_the_same_limit() {
        let of = |content_type: &str, body: Bytes, compression: Option<&str>| {
            let mut message = message(compression, Some("binary"), body);
            message.properties.content_type = Some(content_type.to_owned());
            decode(&message, &["msgpack", "application/x-yaml"], small()).map(|text| text.into_owned())
        };
        assert_eq!(of("application/x-msgpack", Bytes::from_static(b"\x92\x01\xc0"), None).unwrap(), b"[1,null]");
        assert_eq!(of("application/x-yaml", Bytes::from_static(b"- 1\n- ~\n"), None).unwrap(), b"[1,null]");
        for (codec, body) in compressed(b"\x92\x01\xc0") {
            assert_eq!(of("application/x-msgpack", body.into(), Some(codec)).unwrap(), b"[1,null]", "{codec}");
        }
        // Each byte becomes five.
        let mut wide = vec![0xdd, 0, 0, 0x40, 0];
        wide.extend([0xc0; 1 << 14]);
        let error = of("application/x-msgpack", wide.into(), None).unwrap_err();
        assert!(error.to_string().contains("larger than 65536 bytes"), "{error}");
        for (content_type, body) in [("application/x-msgpack", &b"\xc1"[..]), ("application/x-yaml", b"\xff")] {
            assert!(matches!(of(content_type, body.into(), None), Err(Error::Decode(_))), "{content_type}");
        }
        assert!(matches!(of("application/json", "1".into(), None), Err(Error::Disallowed(_))));
        assert!(matches!(of("text/yaml", "1".into(), None), Err(Error::Disallowed(_))));
    }

    #[test]
    fn only_accepted_json_is_read() {
        for content_type in [None, Some("application/json; charset=utf-8"), Some("application/x-python-serialize")] {
            let mut other = message(None, None, "1");
            other.properties.content_type = content_type.map(str::to_owned);
            assert!(matches!(decode(&other, &["json", "pickle"], small()), Err(Error::Disallowed(_))));
        }
        assert!(matches!(decode(&message(None, None, "1"), &["msgpack"], small()), Err(Error::Disallowed(_))));
    }
}
