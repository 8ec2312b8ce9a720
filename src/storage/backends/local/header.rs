//! The header: the first line of an object's file.
//!
//! A file is one JSON object, a newline and the payload. In the header, `format` comes first. `header_checksum` comes
//! last: the CRC32C of all bytes of the line before the comma that precedes it. `stored_checksum` is the CRC32C of the
//! payload.

use std::borrow::Cow;

use crate::storage::object::{Attributes, Checksum, Key};

/// The version of the format that is written and read.
const FORMAT: u64 = 1;

/// Longest header line in bytes, with its newline.
pub(super) const MAX_BYTES: usize = 64 * 1024;

const CHECKSUM_MEMBER: &str = r#","header_checksum":""#;

#[derive(serde::Serialize)]
struct Line<'a> {
    format: u64,
    key: &'a str,
    #[serde(flatten)]
    attributes: &'a Attributes,
}

#[derive(serde::Deserialize)]
struct Identity<'a> {
    #[serde(borrow)]
    key: Cow<'a, str>,
}

#[derive(serde::Deserialize)]
struct Version {
    format: u64,
}

/// Writes the line with its newline.
pub(super) fn encode(key: &Key, attributes: &Attributes) -> Result<Vec<u8>, String> {
    let mut line = serde_json::to_vec(&Line { format: FORMAT, key: key.as_str(), attributes })
        .map_err(|error| format!("the attributes cannot be written: {error}"))?;
    line.pop();
    let tail = tail(&line);
    line.extend_from_slice(tail.as_bytes());
    line.push(b'\n');
    if line.len() > MAX_BYTES {
        return Err(format!("the attributes have {} bytes, more than {MAX_BYTES}; shorten them", line.len()));
    }
    Ok(line)
}

/// Reads a line without its newline. The error says why the line is no valid header of the key.
pub(super) fn decode(line: &[u8], key: &Key) -> Result<Attributes, String> {
    let text = std::str::from_utf8(line).map_err(|_| "the header is not UTF-8".to_owned())?;
    let sound = text.rfind(CHECKSUM_MEMBER).is_some_and(|position| text[position..] == tail(&line[..position]));
    if !sound {
        return match serde_json::from_str::<Version>(text) {
            Ok(Version { format }) if format != FORMAT => Err(unknown_format(format)),
            _ => Err("the header does not match its checksum".to_owned()),
        };
    }
    let unreadable = |error: serde_json::Error| format!("the header cannot be read: {error}");
    let Version { format } = serde_json::from_str(text).map_err(unreadable)?;
    if format != FORMAT {
        return Err(unknown_format(format));
    }
    let identity: Identity<'_> = serde_json::from_str(text).map_err(unreadable)?;
    if identity.key != key.as_str() {
        return Err(format!("the header names another key, {:?}", identity.key));
    }
    serde_json::from_str(text).map_err(unreadable)
}

fn unknown_format(format: u64) -> String {
    format!("the header has format version {format}, and this program knows only {FORMAT}; a newer one may read it")
}

fn tail(before: &[u8]) -> String {
    format!("{CHECKSUM_MEMBER}{}\"}}", Checksum::of(before))
}
