//! What is written beside an object in a bucket, so that it can be told exactly what it is.
//!
//! One reserved metadata value, [`LABEL`], holds our attributes as ASCII-escaped JSON and is the truth. The caller's
//! plain strings are mirrored beside it for other tools, as far as they fit, and never read back. An object without a
//! label was written by another tool: its kind follows from its content type, its token is the bucket's own.

use std::collections::BTreeMap;
use std::fmt::Write as _;

use jiff::Timestamp;
use serde_json::value::RawValue;

use super::{Attributes, Checksum, Kind, Seen};

/// Name of the reserved metadata value.
pub(super) const LABEL: &str = "filestorage";

/// The version written and read.
const FORMAT: u64 = 1;

/// What a bucket itself says of an object.
#[derive(Clone, Debug)]
pub(super) struct Ticket {
    /// Real content type.
    pub(super) content_type: Option<String>,
    /// Real content encoding.
    pub(super) content_encoding: Option<String>,
    /// Bytes kept.
    pub(super) stored_size: u64,
    /// CRC32C of the bytes kept, where the bucket knows it.
    pub(super) stored_checksum: Option<Checksum>,
    /// The bucket's own generation or entity tag.
    pub(super) generation: String,
    /// When the bucket received it.
    pub(super) received_at: Timestamp,
    /// Custom metadata.
    pub(super) metadata: BTreeMap<String, String>,
}

#[derive(serde::Serialize)]
struct Written<'a> {
    format: u64,
    #[serde(flatten)]
    attributes: &'a Attributes,
}

#[derive(serde::Deserialize)]
struct Version {
    format: u64,
}

/// Returns the custom metadata of an object: the label, and mirrors as far as `most` bytes of names and values allow.
///
/// # Errors
///
/// What to say when not even the label fits.
pub(super) fn write(attributes: &Attributes, most: usize) -> Result<BTreeMap<String, String>, String> {
    let text = serde_json::to_string(&Written { format: FORMAT, attributes })
        .map_err(|error| format!("the attributes cannot be written: {error}"))?;
    let label = escape(&text);
    let mut size = LABEL.len() + label.len();
    if size > most {
        let (rest, given) =
            (size - most, attributes.metadata.as_ref().map_or(0, |metadata| escape(metadata.get()).len()));
        return Err(format!(
            "metadata has {given} bytes of ASCII-escaped JSON, {rest} more than this bucket can keep beside the object; shorten it"
        ));
    }
    let mut all = BTreeMap::from([(LABEL.to_owned(), label)]);
    let members = attributes
        .metadata
        .as_ref()
        .map(|metadata| serde_json::from_str::<BTreeMap<String, Box<RawValue>>>(metadata.get()).unwrap_or_default());
    for (name, value) in members.unwrap_or_default() {
        let Ok(value) = serde_json::from_str::<String>(value.get()) else { continue };
        if !is_plain_name(&name) || !is_plain_value(&value) || size + name.len() + value.len() > most {
            continue;
        }
        size += name.len() + value.len();
        all.insert(name, value);
    }
    Ok(all)
}

/// Reads what a bucket says of an object; `foreign_checksum` is that of an object without label and own checksum.
///
/// # Errors
///
/// What is wrong: a label that cannot be read, or that is not of these bytes.
pub(super) fn read(ticket: Ticket, foreign_checksum: impl FnOnce() -> Checksum) -> Result<Attributes, String> {
    let seen = Seen { pending: false, received_at: Some(ticket.received_at) };
    let Some(label) = ticket.metadata.get(LABEL) else {
        let checksum = ticket.stored_checksum.unwrap_or_else(foreign_checksum);
        let content_type = ticket.content_type.unwrap_or_else(|| "application/octet-stream".to_owned());
        let compression = ticket.content_encoding.filter(|encoding| !encoding.is_empty() && encoding != "identity");
        return Ok(Attributes {
            kind: kind_of(&content_type),
            content_type,
            size: ticket.stored_size,
            checksum,
            stored_size: ticket.stored_size,
            stored_checksum: checksum,
            compression,
            encrypted: false,
            generation: ticket.generation,
            operation_id: None,
            metadata: foreign_metadata(&ticket.metadata),
            stored_at: ticket.received_at,
            expires_at: None,
            origin: None,
            tombstone: false,
            seen,
        });
    };
    let unreadable = |error: serde_json::Error| format!("the metadata value {LABEL:?} cannot be read: {error}");
    let Version { format } = serde_json::from_str(label).map_err(unreadable)?;
    if format != FORMAT {
        return Err(format!("the object has format version {format}, and this program knows only {FORMAT}"));
    }
    let mut attributes: Attributes = serde_json::from_str(label).map_err(unreadable)?;
    if attributes.stored_size != ticket.stored_size
        || ticket.stored_checksum.is_some_and(|checksum| checksum != attributes.stored_checksum)
    {
        return Err(format!(
            "the object's bytes are not those its metadata value {LABEL:?} was written for: another tool has kept the metadata and changed the bytes"
        ));
    }
    if let Some(metadata) = &attributes.metadata {
        attributes.metadata = Some(unescape(metadata)?);
    }
    if let Some(content_type) = ticket.content_type.filter(|content_type| !content_type.is_empty()) {
        attributes.content_type = content_type;
    }
    attributes.seen = seen;
    Ok(attributes)
}

/// Tells the kind of what another tool wrote, by its content type.
fn kind_of(content_type: &str) -> Kind {
    let essence = content_type.split(';').next().unwrap_or_default().trim().to_ascii_lowercase();
    match essence.as_str() {
        "application/json" => Kind::Json,
        text if text.starts_with("text/") => Kind::Text,
        _ => Kind::Bytes,
    }
}

fn foreign_metadata(metadata: &BTreeMap<String, String>) -> Option<Box<RawValue>> {
    if metadata.is_empty() { None } else { serde_json::value::to_raw_value(metadata).ok() }
}

/// RFC 9110 token in lower case, which every store keeps as it is.
fn is_plain_name(name: &str) -> bool {
    name != LABEL
        && !name.is_empty()
        && name.bytes().all(|byte| byte.is_ascii_lowercase() || byte.is_ascii_digit() || matches!(byte, b'-' | b'_'))
}

/// Printable ASCII that no store trims.
fn is_plain_value(value: &str) -> bool {
    !value.is_empty() && value.trim() == value && value.bytes().all(|byte| matches!(byte, b' '..=b'~'))
}

/// Writes everything outside ASCII as `\uXXXX`; in JSON such characters stand in strings only, where both mean the same.
pub(super) fn escape(json: &str) -> String {
    let mut out = String::with_capacity(json.len());
    let mut units = [0; 2];
    for character in json.chars() {
        if character.is_ascii() && character != '\u{7f}' {
            out.push(character);
            continue;
        }
        for unit in character.encode_utf16(&mut units) {
            // A `String` takes everything.
            write!(out, "\\u{unit:04x}").unwrap_or_default();
        }
    }
    out
}

/// Undoes [`escape`]: turns escapes of characters outside ASCII back, and leaves all others to the letter.
fn unescape(json: &RawValue) -> Result<Box<RawValue>, String> {
    let mut out = String::with_capacity(json.get().len());
    let mut rest = json.get();
    while let Some(position) = rest.find('\\') {
        let (before, from) = rest.split_at(position);
        out.push_str(before);
        let (taken, character) = match unit(from) {
            Some(high @ 0xd800..=0xdbff) => (12, from.get(6..).and_then(unit).and_then(|low| paired(high, low))),
            Some(single) => (6, char::from_u32(single.into())),
            None => (2, None),
        };
        match character.filter(|character| u32::from(*character) > 0x7e) {
            Some(character) => {
                out.push(character);
                rest = &from[taken..];
            }
            // Another escape: the backslash and what it stands before.
            None => {
                let end = 2.min(from.len());
                out.push_str(&from[..end]);
                rest = &from[end..];
            }
        }
    }
    out.push_str(rest);
    RawValue::from_string(out).map_err(|error| format!("the metadata value {LABEL:?} cannot be read: {error}"))
}

/// Reads `\uXXXX` at the beginning of a text.
fn unit(text: &str) -> Option<u16> {
    let digits = text.strip_prefix("\\u")?.get(..4)?;
    digits.bytes().all(|digit| digit.is_ascii_hexdigit()).then(|| u16::from_str_radix(digits, 16).ok()).flatten()
}

fn paired(high: u16, low: u16) -> Option<char> {
    char::decode_utf16([high, low]).next()?.ok()
}

#[cfg(test)]
mod tests {
    use super::*;

    fn attributes(metadata: &str) -> Attributes {
        let checksum = Checksum::of(b"12345");
        Attributes {
            kind: Kind::Text,
            content_type: "text/x-ours".to_owned(),
            size: 5,
            checksum,
            stored_size: 5,
            stored_checksum: checksum,
            compression: None,
            encrypted: false,
            generation: "token".to_owned(),
            operation_id: Some("id \"é\"\n".to_owned()),
            metadata: Some(RawValue::from_string(metadata.to_owned()).unwrap()),
            stored_at: Timestamp::from_microsecond(1_790_000_000_123_456).unwrap(),
            expires_at: None,
            origin: Some("here".to_owned()),
            tombstone: false,
            seen: Seen::default(),
        }
    }

    fn ticket(metadata: BTreeMap<String, String>) -> Ticket {
        Ticket {
            content_type: Some("text/x-ours".to_owned()),
            content_encoding: None,
            stored_size: 5,
            stored_checksum: Some(Checksum::of(b"12345")),
            generation: "77".to_owned(),
            received_at: Timestamp::from_second(1_790_000_001).unwrap(),
            metadata,
        }
    }

    #[test]
    fn what_is_written_is_read_back_to_the_letter() {
        for metadata in [
            r"{}",
            r#"{"n":1e400,"big":1180591620717411303424,"f":1.0}"#,
            r#"{"ü":["é\"\\u00e9\n\\","日本","🦀\ud800","\\"],"":null}"#,
        ] {
            let wanted = attributes(metadata);
            let written = write(&wanted, 8192).unwrap();
            assert!(written.values().all(|value| value.is_ascii()));
            let found = read(ticket(written), || unreachable!()).unwrap();
            assert_eq!(serde_json::to_string(&found).unwrap(), serde_json::to_string(&wanted).unwrap());
            assert_eq!(found.seen.received_at, Timestamp::from_second(1_790_000_001).ok());
        }
    }

    #[test]
    fn plain_strings_are_mirrored_as_far_as_they_fit() {
        let long = "x".repeat(300);
        let metadata = format!(
            r#"{{"a":"plain","B":"upper","ü":"name","b":"ü","c":1e400,"d":" blank","filestorage":"no","long":"{long}"}}"#
        );
        let written = write(&attributes(&metadata), 8192).unwrap();
        assert_eq!(written.keys().collect::<Vec<_>>(), ["a", LABEL, "long"]);
        let label = written[LABEL].len() + LABEL.len();
        assert_eq!(write(&attributes(&metadata), label + 10).unwrap().keys().collect::<Vec<_>>(), ["a", LABEL]);
        assert!(write(&attributes(&metadata), label - 1).unwrap_err().contains("1 more than"));
    }

    #[test]
    fn what_another_tool_wrote_is_told_by_its_content_type() {
        for (content_type, kind) in [
            (Some("text/csv; charset=utf-8"), Kind::Text),
            (Some("application/json"), Kind::Json),
            (Some("application/json; charset=utf-8"), Kind::Json),
            (Some("image/png"), Kind::Bytes),
            (Some(""), Kind::Bytes),
            (None, Kind::Bytes),
        ] {
            let metadata = BTreeMap::from([("Owner".to_owned(), "é".to_owned())]);
            let content_type = content_type.map(str::to_owned);
            let found = read(Ticket { content_type, ..ticket(metadata) }, || unreachable!()).unwrap();
            assert_eq!((found.kind, found.generation.as_str()), (kind, "77"));
            assert_eq!(found.metadata.unwrap().get(), r#"{"Owner":"é"}"#);
        }
        let unknown = Ticket { stored_checksum: None, ..ticket(BTreeMap::new()) };
        assert_eq!(read(unknown, || Checksum(7)).unwrap().checksum, Checksum(7));
    }

    #[test]
    fn a_label_of_other_bytes_is_damage() {
        let written = write(&attributes("{}"), 8192).unwrap();
        let other = Ticket { stored_checksum: Some(Checksum(1)), ..ticket(written.clone()) };
        assert!(read(other, || unreachable!()).unwrap_err().contains("another tool"));
        assert!(read(Ticket { stored_size: 6, ..ticket(written.clone()) }, || unreachable!()).is_err());
        let mut newer = written;
        let label = newer[LABEL].replace(r#""format":1"#, r#""format":2"#);
        newer.insert(LABEL.to_owned(), label);
        assert!(read(ticket(newer), || unreachable!()).unwrap_err().contains("version 2"));
    }
}
