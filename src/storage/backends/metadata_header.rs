//! What is written beside an object in a bucket, so that it can be told exactly what it is.
//!
//! One reserved metadata value, [`HEADER`], holds our attributes as ASCII-escaped JSON and is the truth. The caller's
//! plain strings are mirrored beside it for other tools, as far as they fit, and never read back. An object without a
//! label was written by another tool: its kind follows from its content type, its token is the bucket's own.

use std::collections::BTreeMap;
use std::fmt::Write as _;

use jiff::Timestamp;
use serde_json::value::RawValue;

use crate::storage::object::foreign::{self, Coding};
use crate::storage::object::{Attributes, Checksum, Foreign, Kind, ObjectInfo};

/// Name of the reserved metadata value.
pub(in crate::storage) const HEADER: &str = "filestorage";

/// The version written and read.
const FORMAT: u64 = 1;

/// What a bucket itself says of an object.
#[derive(Clone, Debug)]
pub(in crate::storage) struct RemoteObject {
    /// Real content type.
    pub(in crate::storage) content_type: Option<String>,
    /// Real content encoding.
    pub(in crate::storage) content_encoding: Option<String>,
    /// Bytes kept.
    pub(in crate::storage) stored_size: u64,
    /// CRC32C of the bytes kept, where the bucket knows it.
    pub(in crate::storage) stored_checksum: Option<Checksum>,
    /// The bucket's own generation or entity tag.
    pub(in crate::storage) generation: String,
    /// When the bucket received it.
    pub(in crate::storage) received_at: Timestamp,
    /// Custom metadata.
    pub(in crate::storage) metadata: BTreeMap<String, String>,
    /// Those of [`foreign::HEADERS`] that it has.
    pub(in crate::storage) headers: BTreeMap<String, String>,
}

/// How a bucket keeps the names of custom metadata.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(in crate::storage) enum NameCase {
    /// To the letter.
    Exact,
    /// In lower case, as headers.
    Lower,
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
pub(in crate::storage) fn write(
    attributes: &Attributes,
    most: usize,
    names: NameCase,
) -> Result<BTreeMap<String, String>, String> {
    // The headers stand beside it as what they are.
    let foreign = Foreign { headers: BTreeMap::new(), ..attributes.foreign.clone() };
    let attributes = &Attributes { foreign, ..attributes.clone() };
    let text = serde_json::to_string(&Written { format: FORMAT, attributes })
        .map_err(|error| format!("the attributes cannot be written: {error}"))?;
    let label = escape(&text);
    let mut size = HEADER.len() + label.len();
    if size > most {
        let (rest, given) =
            (size - most, attributes.metadata.as_ref().map_or(0, |metadata| escape(metadata.get()).len()));
        return Err(format!(
            "metadata has {given} bytes of ASCII-escaped JSON, {rest} more than this bucket can keep beside the object; shorten it"
        ));
    }
    let mut all = BTreeMap::from([(HEADER.to_owned(), label)]);
    for (name, value) in texts(attributes) {
        let name = mirrored(&name, names);
        let fits = is_plain_name(&name) && is_plain_value(&value) && size + name.len() + value.len() <= most;
        if fits && !all.contains_key(&name) {
            size += name.len() + value.len();
            all.insert(name, value);
        }
    }
    Ok(all)
}

/// Names the custom metadata of another tool's object that such a bucket shows to nobody but this program.
pub(in crate::storage) fn hidden(attributes: &Attributes, most: usize, names: NameCase) -> Vec<String> {
    if !attributes.foreign.other_tool {
        return Vec::new();
    }
    let shown = write(attributes, most, names).unwrap_or_default();
    let is_shown = |name: &str, value: &str| shown.get(&mirrored(name, names)).is_some_and(|kept| kept == value);
    texts(attributes).into_iter().filter(|(name, value)| !is_shown(name, value)).map(|(name, _)| name).collect()
}

/// Returns those members of the metadata that are strings.
fn texts(attributes: &Attributes) -> Vec<(String, String)> {
    let members = attributes
        .metadata
        .as_ref()
        .map(|metadata| serde_json::from_str::<BTreeMap<String, Box<RawValue>>>(metadata.get()).unwrap_or_default());
    let text = |(name, value): (String, Box<RawValue>)| Some((name, serde_json::from_str(value.get()).ok()?));
    members.unwrap_or_default().into_iter().filter_map(text).collect()
}

fn mirrored(name: &str, names: NameCase) -> String {
    match names {
        NameCase::Exact => name.to_owned(),
        NameCase::Lower => name.to_ascii_lowercase(),
    }
}

/// Reads what a bucket says of an object; `foreign_checksum` is that of an object without label and own checksum.
///
/// # Errors
///
/// What is wrong: a label that cannot be read, or that is not of these bytes.
pub(in crate::storage) fn read(
    ticket: RemoteObject,
    foreign_checksum: impl FnOnce() -> Checksum,
) -> Result<Attributes, String> {
    let info = ObjectInfo { received_at: Some(ticket.received_at), ..ObjectInfo::default() };
    let coding = Coding::read(ticket.content_encoding.as_deref().unwrap_or_default());
    let headers = headers(ticket.headers, coding.codec.is_some());
    let Some(label) = ticket.metadata.get(HEADER) else {
        let checksum = ticket.stored_checksum.unwrap_or_else(foreign_checksum);
        let content_type = ticket.content_type.unwrap_or_else(|| "application/octet-stream".to_owned());
        let kind = kind_of(&content_type);
        let charset = foreign::charset_of(&content_type).or(coding.charset).filter(|_| kind != Kind::Bytes);
        return Ok(Attributes {
            kind,
            content_type,
            size: ticket.stored_size,
            checksum,
            stored_size: ticket.stored_size,
            stored_checksum: checksum,
            compression: coding.codec,
            encrypted: false,
            generation: ticket.generation,
            operation_id: None,
            metadata: foreign_metadata(&ticket.metadata),
            stored_at: ticket.received_at,
            expires_at: None,
            writer_id: None,
            tombstone: false,
            foreign: Foreign { other_tool: true, charset, headers },
            info,
        });
    };
    let unreadable = |error: serde_json::Error| format!("the metadata value {HEADER:?} cannot be read: {error}");
    let Version { format } = serde_json::from_str(label).map_err(unreadable)?;
    if format != FORMAT {
        return Err(format!("the object has format version {format}, and this program knows only {FORMAT}"));
    }
    let mut attributes: Attributes = serde_json::from_str(label).map_err(unreadable)?;
    if attributes.stored_size != ticket.stored_size
        || ticket.stored_checksum.is_some_and(|checksum| checksum != attributes.stored_checksum)
    {
        return Err(format!(
            "the object's bytes are not those its metadata value {HEADER:?} was written for: another tool has kept the metadata and changed the bytes"
        ));
    }
    if let Some(metadata) = &attributes.metadata {
        attributes.metadata = Some(unescape(metadata)?);
    }
    if let Some(content_type) = ticket.content_type.filter(|content_type| !content_type.is_empty()) {
        attributes.content_type = content_type;
    }
    attributes.foreign.headers = headers;
    attributes.info = info;
    Ok(attributes)
}

/// Takes out of the headers what this program puts there itself.
fn headers(mut headers: BTreeMap<String, String>, packed: bool) -> BTreeMap<String, String> {
    if let Some(control) = headers.remove("cache-control") {
        let ours = |directive: &&str| packed && directive.eq_ignore_ascii_case("no-transform");
        let kept: Vec<&str> = control.split(',').map(str::trim).filter(|it| !it.is_empty() && !ours(it)).collect();
        // What has none of ours stays to the letter.
        let control = if packed { kept.join(", ") } else { control };
        if !control.is_empty() {
            headers.insert("cache-control".to_owned(), control);
        }
    }
    headers
}

/// Returns the `Cache-Control` of an object: that of another tool, and that nobody in between may unpack what is packed.
pub(in crate::storage) fn cache_control(attributes: &Attributes, packed: bool) -> Option<String> {
    let given = attributes.foreign.headers.get("cache-control");
    match (given, packed) {
        (Some(given), true) => Some(format!("{given}, no-transform")),
        (Some(given), false) => Some(given.clone()),
        (None, true) => Some("no-transform".to_owned()),
        (None, false) => None,
    }
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

/// RFC 9110 token, nearly.
fn is_plain_name(name: &str) -> bool {
    name != HEADER
        && !name.is_empty()
        && name.bytes().all(|byte| byte.is_ascii_alphanumeric() || matches!(byte, b'-' | b'_' | b'.'))
}

/// Printable ASCII that no store trims.
fn is_plain_value(value: &str) -> bool {
    !value.is_empty() && value.trim() == value && value.bytes().all(|byte| matches!(byte, b' '..=b'~'))
}

/// Writes everything outside ASCII as `\uXXXX`; in JSON such characters stand in strings only, where both mean the same.
pub(in crate::storage) fn escape(json: &str) -> String {
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
    RawValue::from_string(out).map_err(|error| format!("the metadata value {HEADER:?} cannot be read: {error}"))
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
            writer_id: Some("here".to_owned()),
            tombstone: false,
            foreign: Foreign::default(),
            info: ObjectInfo::default(),
        }
    }

    fn ticket(metadata: BTreeMap<String, String>) -> RemoteObject {
        RemoteObject {
            content_type: Some("text/x-ours".to_owned()),
            content_encoding: None,
            stored_size: 5,
            stored_checksum: Some(Checksum::of(b"12345")),
            generation: "77".to_owned(),
            received_at: Timestamp::from_second(1_790_000_001).unwrap(),
            metadata,
            headers: BTreeMap::new(),
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
            let written = write(&wanted, 8192, NameCase::Lower).unwrap();
            assert!(written.values().all(|value| value.is_ascii()));
            let found = read(ticket(written), || unreachable!()).unwrap();
            assert_eq!(serde_json::to_string(&found).unwrap(), serde_json::to_string(&wanted).unwrap());
            assert_eq!(found.info.received_at, Timestamp::from_second(1_790_000_001).ok());
        }
    }

    #[test]
    fn plain_strings_are_mirrored_as_far_as_they_fit() {
        let long = "x".repeat(300);
        let metadata = format!(
            r#"{{"a":"plain","B":"upper","ü":"name","b":"ü","c":1e400,"d":" blank","filestorage":"no","long":"{long}"}}"#
        );
        let written = write(&attributes(&metadata), 8192, NameCase::Exact).unwrap();
        assert_eq!(written.keys().collect::<Vec<_>>(), ["B", "a", HEADER, "long"]);
        let lower = write(&attributes(&metadata), 8192, NameCase::Lower).unwrap();
        assert_eq!(lower.keys().collect::<Vec<_>>(), ["a", "b", HEADER, "long"]);
        let label = written[HEADER].len() + HEADER.len();
        let few = write(&attributes(&metadata), label + 10, NameCase::Exact).unwrap();
        assert_eq!(few.keys().collect::<Vec<_>>(), ["B", HEADER]);
        assert!(write(&attributes(&metadata), label - 1, NameCase::Exact).unwrap_err().contains("1 more than"));
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
            let found = read(RemoteObject { content_type, ..ticket(metadata) }, || unreachable!()).unwrap();
            assert_eq!((found.kind, found.generation.as_str()), (kind, "77"));
            assert_eq!(found.metadata.unwrap().get(), r#"{"Owner":"é"}"#);
        }
        let unknown = RemoteObject { stored_checksum: None, ..ticket(BTreeMap::new()) };
        assert_eq!(read(unknown, || Checksum(7)).unwrap().checksum, Checksum(7));
    }

    #[test]
    fn what_another_tool_said_beside_its_bytes_is_carried() {
        let said = |pairs: &[(&str, &str)]| -> BTreeMap<String, String> {
            pairs.iter().map(|(name, value)| ((*name).to_owned(), (*value).to_owned())).collect()
        };
        let headers = said(&[("cache-control", "max-age=5"), ("content-disposition", "attachment")]);
        let metadata = said(&[("Owner", "jo"), ("team", "x"), ("\u{e4}", "y"), ("note", "\u{e9}")]);
        let foreign = RemoteObject {
            content_type: Some("text/plain; charset=utf-16le".to_owned()),
            content_encoding: Some("GZIP, identity".to_owned()),
            headers: headers.clone(),
            ..ticket(metadata)
        };
        let found = read(foreign, || unreachable!()).unwrap();
        assert_eq!(found.compression.as_deref(), Some("gzip"));
        assert_eq!(
            found.foreign,
            Foreign { other_tool: true, charset: Some("utf-16le".to_owned()), headers: headers.clone() }
        );
        assert_eq!(cache_control(&found, true).as_deref(), Some("max-age=5, no-transform"));
        let written = write(&found, 8192, NameCase::Exact).unwrap();
        assert_eq!((written["Owner"].as_str(), written["team"].as_str()), ("jo", "x"));
        assert_eq!(hidden(&found, 8192, NameCase::Exact), ["note", "\u{e4}"]);
        assert_eq!(write(&found, 8192, NameCase::Lower).unwrap()["owner"], "jo");
        assert!(!written[HEADER].contains("max-age"));
        // At its next place it is the same, whatever this program has put beside it.
        let control = said(&[("cache-control", "max-age=5, no-transform"), ("content-disposition", "attachment")]);
        let next = RemoteObject {
            content_type: Some("text/plain; charset=utf-16le".to_owned()),
            content_encoding: Some("gzip".to_owned()),
            headers: control,
            ..ticket(written)
        };
        assert_eq!(read(next, || unreachable!()).unwrap().foreign, found.foreign);
    }

    #[test]
    fn a_label_of_other_bytes_is_damage() {
        let written = write(&attributes("{}"), 8192, NameCase::Exact).unwrap();
        let other = RemoteObject { stored_checksum: Some(Checksum(1)), ..ticket(written.clone()) };
        assert!(read(other, || unreachable!()).unwrap_err().contains("another tool"));
        assert!(read(RemoteObject { stored_size: 6, ..ticket(written.clone()) }, || unreachable!()).is_err());
        let mut newer = written;
        let label = newer[HEADER].replace(r#""format":1"#, r#""format":2"#);
        newer.insert(HEADER.to_owned(), label);
        assert!(read(ticket(newer), || unreachable!()).unwrap_err().contains("version 2"));
    }
}
