//! From the bytes on the wire to the text inside: compression, content encoding, content type.
//!
//! The only place with raw decoders; each stops at a cap, so that a small message cannot fill the memory.

use std::borrow::Cow;
use std::io::{BufReader, Read};

use base64::Engine as _;

use super::message::{Field, Message};

/// What one body may cost.
#[derive(Clone, Copy, Debug)]
pub struct Limits {
    /// Largest body in bytes, before and after decompression.
    pub max_body_bytes: usize,
    /// Arrays and objects inside one another.
    pub depth: usize,
}

impl Default for Limits {
    fn default() -> Self {
        Self { max_body_bytes: 64 << 20, depth: 128 }
    }
}

/// Why a body was refused: the thing, the cause and the mend.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum Error {
    /// A content type that is not accepted.
    #[error("{0}")]
    Disallowed(String),
    /// Bytes that are not what the headers say.
    #[error("{0}")]
    Decode(String),
}

/// Undoes compression and content encoding of a JSON body.
///
/// `accept` holds names of serializers as Celery's `accept_content` does; of those only `json` can be read. The bytes
/// that come back are meant to be JSON in UTF-8; whether they are is the parser's to say.
///
/// # Errors
///
/// [`Error::Disallowed`] for any content type but exactly `application/json`, or that one when `json` is not accepted.
/// [`Error::Decode`] for an unknown compression or encoding, for bytes that are not in it, and for what is too large.
pub fn decode<'m, S: AsRef<str>>(message: &'m Message, accept: &[S], limits: Limits) -> Result<Cow<'m, [u8]>, Error> {
    allow(message.properties.content_type.as_deref(), accept)?;
    let limit = limits.max_body_bytes;
    if message.body.len() > limit {
        return Err(too_large(limit));
    }
    let plain = match message.headers.get("compression") {
        None | Some(Field::Void) => Cow::Borrowed(&message.body[..]),
        Some(Field::Text(codec)) if codec.is_empty() => Cow::Borrowed(&message.body[..]),
        Some(Field::Text(codec)) => Cow::Owned(decompress(codec, &message.body, limit)?),
        Some(_) => return Err(Error::Decode("the compression header is not a text; name the codec".to_owned())),
    };
    let text = unencode(message.properties.content_encoding.as_deref().unwrap_or("utf-8"), plain)?;
    if text.len() > limit {
        return Err(too_large(limit));
    }
    if text.starts_with(b"\xef\xbb\xbf") {
        return Err(Error::Decode("the body begins with a byte order mark; send UTF-8 without one".to_owned()));
    }
    Ok(text)
}

fn allow<S: AsRef<str>>(content_type: Option<&str>, accept: &[S]) -> Result<(), Error> {
    let accepts = |name: &str| accept.iter().any(|accepted| accepted.as_ref() == name);
    let name = match content_type {
        Some("application/json") if accepts("json") || accepts("application/json") => return Ok(()),
        Some("application/json") => "json",
        Some("application/x-python-serialize" | "application/x-pickle") => "pickle",
        Some("application/x-yaml" | "text/yaml") => "yaml",
        Some("application/x-msgpack" | "application/msgpack") => "msgpack",
        Some(_) => "unknown",
        None => "missing",
    };
    // The words are kombu's, so that a search for them finds its documentation.
    Err(Error::Disallowed(format!(
        "refusing to deserialize disallowed content of type {name} ({}); send application/json (task_serializer = 'json')",
        content_type.unwrap_or("none")
    )))
}

fn too_large(limit: usize) -> Error {
    Error::Decode(format!("the body is larger than {limit} bytes; send the value by reference"))
}

/// Decompresses by the `compression` header, which names kombu's codec by MIME type or alias.
fn decompress(codec: &str, body: &[u8], limit: usize) -> Result<Vec<u8>, Error> {
    let broken = |error: std::io::Error| {
        Error::Decode(format!("the body is not {codec} as its compression header says ({error}); send it uncompressed"))
    };
    let read = match codec {
        // What kombu calls gzip is a zlib stream; other producers mean what they say.
        "application/x-gzip" | "application/gzip" | "gzip" | "zlib" if body.starts_with(&[0x1f, 0x8b]) => {
            capped(flate2::bufread::MultiGzDecoder::new(body), limit)
        }
        "application/x-gzip" | "application/gzip" | "gzip" | "zlib" => {
            capped(flate2::bufread::ZlibDecoder::new(body), limit)
        }
        "application/x-bz2" | "bzip2" | "bzip" => capped(bzip2::bufread::MultiBzDecoder::new(body), limit),
        "application/x-lzma" | "lzma" | "xz" => {
            // A dictionary beyond the cap could never pay off within it; 128 MiB is what `xz -9` takes and more.
            let stream = liblzma::stream::Stream::new_auto_decoder(128 << 20, 0)
                .map_err(|error| broken(std::io::Error::other(error)))?;
            capped(liblzma::bufread::XzDecoder::new_stream(body, stream), limit)
        }
        "application/x-brotli" | "brotli" => capped(brotli_decompressor::Decompressor::new(body, 4096), limit),
        "application/zstd" | "zstd" | "zstandard" => {
            zstd::stream::read::Decoder::with_buffer(BufReader::new(body)).and_then(|decoder| capped(decoder, limit))
        }
        _ => {
            return Err(Error::Decode(
                "the compression is unknown; use gzip, zlib, bzip2, lzma, brotli or zstd, or none".to_owned(),
            ));
        }
    };
    read.map_err(broken)?.ok_or_else(|| too_large(limit))
}

/// Reads to the end, or gives `None` once there is more than the cap.
fn capped(decoder: impl Read, limit: usize) -> std::io::Result<Option<Vec<u8>>> {
    let mut out = Vec::new();
    decoder.take(limit as u64 + 1).read_to_end(&mut out)?;
    Ok((out.len() <= limit).then_some(out))
}

/// Brings a text into UTF-8 by its content encoding.
fn unencode<'m>(encoding: &str, bytes: Cow<'m, [u8]>) -> Result<Cow<'m, [u8]>, Error> {
    let is = |names: &[&str]| names.iter().any(|name| encoding.eq_ignore_ascii_case(name));
    if is(&["utf-8", "utf8", "utf_8", "binary", ""]) {
        return Ok(bytes);
    }
    if is(&["us-ascii", "ascii"]) {
        return match bytes.iter().position(|byte| !byte.is_ascii()) {
            None => Ok(bytes),
            Some(at) => Err(Error::Decode(format!("the body is not us-ascii at byte {at}; send it as utf-8"))),
        };
    }
    if is(&["latin-1", "latin1", "latin_1", "iso-8859-1", "iso8859-1"]) {
        return Ok(Cow::Owned(bytes.iter().map(|byte| char::from(*byte)).collect::<String>().into_bytes()));
    }
    if is(&["base64"]) {
        return base64::engine::general_purpose::STANDARD.decode(&*bytes).map(Cow::Owned).map_err(|error| {
            Error::Decode(format!("the body is not base64 as its content_encoding says ({error}); send it as utf-8"))
        });
    }
    Err(Error::Decode("the content_encoding is unknown; send the body as utf-8".to_owned()))
}
