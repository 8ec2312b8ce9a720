//! The metadata header: the exact attributes of an object, written into the object's metadata in a bucket.
//!
//! One reserved metadata value, [`HEADER`], holds the attributes as ASCII-escaped JSON and is authoritative. The
//! caller's plain strings are copied beside it for other tools, as far as they fit, and are never read back. An object
//! without this header was written by another tool: its kind follows from its content type, and its token is the
//! bucket's own.

use std::collections::BTreeMap;
use std::fmt::Write as _;

use jiff::Timestamp;
use serde_json::value::RawValue;

use crate::storage::object::foreign::{self, Coding};
use crate::storage::object::{Attributes, Checksum, Envelope, Foreign, Kind, ObjectInfo};

/// Name of the reserved metadata value.
pub(in crate::storage) const HEADER: &str = "filestorage";

/// The version of the format that is written and read.
const FORMAT: u64 = 1;

/// The properties of an object that the bucket itself reports.
#[derive(Clone, Debug)]
pub(in crate::storage) struct RemoteObject {
    /// The content type of the object in the bucket.
    pub(in crate::storage) content_type: Option<String>,
    /// The content encoding of the object in the bucket.
    pub(in crate::storage) content_encoding: Option<String>,
    /// The number of stored bytes.
    pub(in crate::storage) stored_size: u64,
    /// CRC32C of the stored bytes, where the bucket knows it.
    pub(in crate::storage) stored_checksum: Option<Checksum>,
    /// The bucket's own generation or entity tag.
    pub(in crate::storage) generation: String,
    /// When the bucket received the object.
    pub(in crate::storage) received_at: Timestamp,
    /// Custom metadata.
    pub(in crate::storage) metadata: BTreeMap<String, String>,
    /// The headers of the object that [`foreign::HEADERS`] lists.
    pub(in crate::storage) headers: BTreeMap<String, String>,
}

/// How a bucket stores the names of custom metadata.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(in crate::storage) enum NameCase {
    /// The names are stored unchanged.
    Exact,
    /// The names are stored in lower case, as headers are.
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

/// Returns the custom metadata of an object: the header, and copies of strings within `most` bytes of names and values.
///
/// # Errors
///
/// A message for the case that not even the header fits.
pub(in crate::storage) fn write(
    attributes: &Attributes,
    most: usize,
    names: NameCase,
) -> Result<BTreeMap<String, String>, String> {
    // The bucket stores these headers as real headers.
    let foreign = Foreign { headers: BTreeMap::new(), ..attributes.foreign.clone() };
    let attributes = &Attributes { foreign, ..attributes.clone() };
    let text = serde_json::to_string(&Written { format: FORMAT, attributes })
        .map_err(|error| format!("the attributes cannot be written: {error}"))?;
    let header = escape(&text);
    let mut size = HEADER.len() + header.len();
    if size > most {
        let excess = size - most;
        if let Some(Envelope { sealed, .. }) = &attributes.encryption {
            // Three bytes are four characters of base64.
            let (given, surplus) = (sealed.0.len(), (excess * 3).div_ceil(4));
            return Err(format!(
                "the encrypted metadata has {given} bytes, {surplus} more than this bucket can keep beside the object in base64; shorten the metadata"
            ));
        }
        let given = attributes.metadata.as_ref().map_or(0, |metadata| escape(metadata.get()).len());
        return Err(format!(
            "metadata has {given} bytes of ASCII-escaped JSON, {excess} more than this bucket can keep beside the object; shorten it"
        ));
    }
    let mut all = BTreeMap::from([(HEADER.to_owned(), header)]);
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

/// Names the custom metadata of another tool's object that other tools will not see in such a bucket.
pub(in crate::storage) fn hidden(attributes: &Attributes, most: usize, names: NameCase) -> Vec<String> {
    if !attributes.foreign.other_tool {
        return Vec::new();
    }
    let shown = write(attributes, most, names).unwrap_or_default();
    let is_shown = |name: &str, value: &str| shown.get(&mirrored(name, names)).is_some_and(|kept| kept == value);
    texts(attributes).into_iter().filter(|(name, value)| !is_shown(name, value)).map(|(name, _)| name).collect()
}

/// Returns the members of the metadata that are strings.
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

/// Reads the attributes of an object from the bucket's report.
///
/// `foreign_checksum` computes the checksum of an object without header for which the bucket knows none.
///
/// # Errors
///
/// A message about a header that cannot be read or does not match the bytes.
pub(in crate::storage) fn read(
    remote: RemoteObject,
    foreign_checksum: impl FnOnce() -> Checksum,
) -> Result<Attributes, String> {
    let info = ObjectInfo { received_at: Some(remote.received_at), ..ObjectInfo::default() };
    let coding = Coding::read(remote.content_encoding.as_deref().unwrap_or_default());
    let headers = headers(remote.headers, coding.codec.is_some());
    let Some(header) = remote.metadata.get(HEADER) else {
        let checksum = remote.stored_checksum.unwrap_or_else(foreign_checksum);
        let content_type = remote.content_type.unwrap_or_else(|| "application/octet-stream".to_owned());
        let kind = kind_of(&content_type);
        let charset = foreign::charset_of(&content_type).or(coding.charset).filter(|_| kind != Kind::Bytes);
        return Ok(Attributes {
            kind,
            content_type,
            size: remote.stored_size,
            checksum,
            stored_size: remote.stored_size,
            stored_checksum: checksum,
            compression: coding.codec,
            encrypted: false,
            generation: remote.generation,
            operation_id: None,
            copied_from: None,
            metadata: foreign_metadata(&remote.metadata),
            stored_at: remote.received_at,
            expires_at: None,
            writer_id: None,
            tombstone: false,
            foreign: Foreign { other_tool: true, charset, headers },
            encryption: None,
            info,
        });
    };
    let unreadable = |error: serde_json::Error| format!("the metadata value {HEADER:?} cannot be read: {error}");
    let Version { format } = serde_json::from_str(header).map_err(unreadable)?;
    if format != FORMAT {
        return Err(format!("the object has format version {format}, and this program knows only {FORMAT}"));
    }
    let mut attributes: Attributes = serde_json::from_str(header).map_err(unreadable)?;
    if attributes.stored_size != remote.stored_size
        || remote.stored_checksum.is_some_and(|checksum| checksum != attributes.stored_checksum)
    {
        return Err(format!(
            "the object's bytes do not match its metadata value {HEADER:?}: another tool has kept the metadata and changed the bytes"
        ));
    }
    if let Some(metadata) = &attributes.metadata {
        attributes.metadata = Some(unescape(metadata)?);
    }
    // Sealed attributes are bound to the content type with which they were written.
    let is_sealed = attributes.is_sealed();
    if let Some(content_type) = remote.content_type.filter(|content_type| !content_type.is_empty() && !is_sealed) {
        attributes.content_type = content_type;
    }
    attributes.foreign.headers = headers;
    attributes.info = info;
    Ok(attributes)
}

/// Removes the directives that this program writes itself.
fn headers(mut headers: BTreeMap<String, String>, packed: bool) -> BTreeMap<String, String> {
    if let Some(control) = headers.remove("cache-control") {
        let ours = |directive: &&str| packed && directive.eq_ignore_ascii_case("no-transform");
        let kept: Vec<&str> =
            control.split(',').map(str::trim).filter(|directive| !directive.is_empty() && !ours(directive)).collect();
        // Headers of an object that is not packed stay unchanged.
        let control = if packed { kept.join(", ") } else { control };
        if !control.is_empty() {
            headers.insert("cache-control".to_owned(), control);
        }
    }
    headers
}

/// Returns the `Cache-Control` of an object: that of another tool, and a directive against unpacking for packed bytes.
pub(in crate::storage) fn cache_control(attributes: &Attributes, packed: bool) -> Option<String> {
    let given = attributes.foreign.headers.get("cache-control");
    match (given, packed) {
        (Some(given), true) => Some(format!("{given}, no-transform")),
        (Some(given), false) => Some(given.clone()),
        (None, true) => Some("no-transform".to_owned()),
        (None, false) => None,
    }
}

/// Returns the kind of an object that another tool wrote, by its content type.
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

/// Tells whether a name is nearly an RFC 9110 token, which every bucket accepts.
fn is_plain_name(name: &str) -> bool {
    name != HEADER
        && !name.is_empty()
        && name.bytes().all(|byte| byte.is_ascii_alphanumeric() || matches!(byte, b'-' | b'_' | b'.'))
}

/// Tells whether a value is printable ASCII that no bucket trims.
fn is_plain_value(value: &str) -> bool {
    !value.is_empty() && value.trim() == value && value.bytes().all(|byte| matches!(byte, b' '..=b'~'))
}

/// Writes everything outside ASCII as `\uXXXX`. In JSON such characters occur in strings only, where both forms are
/// equal.
pub(in crate::storage) fn escape(json: &str) -> String {
    let mut out = String::with_capacity(json.len());
    let mut units = [0; 2];
    for character in json.chars() {
        if character.is_ascii() && character != '\u{7f}' {
            out.push(character);
            continue;
        }
        for unit in character.encode_utf16(&mut units) {
            // Writing to a `String` cannot fail.
            write!(out, "\\u{unit:04x}").unwrap_or_default();
        }
    }
    out
}

/// Undoes [`escape`]: decodes escapes of characters outside ASCII, and leaves all other escapes unchanged.
fn unescape(json: &RawValue) -> Result<Box<RawValue>, String> {
    let mut out = String::with_capacity(json.get().len());
    let mut remaining = json.get();
    while let Some(position) = remaining.find('\\') {
        let (before, from) = remaining.split_at(position);
        out.push_str(before);
        let (taken, character) = match unit(from) {
            Some(high @ 0xd800..=0xdbff) => (12, from.get(6..).and_then(unit).and_then(|low| paired(high, low))),
            Some(single) => (6, char::from_u32(single.into())),
            None => (2, None),
        };
        match character.filter(|character| u32::from(*character) > 0x7e) {
            Some(character) => {
                out.push(character);
                remaining = &from[taken..];
            }
            // Another escape: the backslash and the character after it.
            None => {
                let end = 2.min(from.len());
                out.push_str(&from[..end]);
                remaining = &from[end..];
            }
        }
    }
    out.push_str(remaining);
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
    use crate::storage::object::{Binary, EnvelopeVersion, KeyId, SealedText};

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
            copied_from: Some("token of the source".to_owned()),
            metadata: Some(RawValue::from_string(metadata.to_owned()).unwrap()),
            stored_at: Timestamp::from_microsecond(1_790_000_000_123_456).unwrap(),
            expires_at: None,
            writer_id: Some("here".to_owned()),
            tombstone: false,
            foreign: Foreign::default(),
            encryption: None,
            info: ObjectInfo::default(),
        }
    }

    fn remote(metadata: BTreeMap<String, String>) -> RemoteObject {
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
    fn attributes_are_read_back_as_written() {
        for metadata in [
            r"{}",
            r#"{"n":1e400,"big":1180591620717411303424,"f":1.0}"#,
            r#"{"ü":["é\"\\u00e9\n\\","日本","🦀\ud800","\\"],"":null}"#,
        ] {
            let wanted = attributes(metadata);
            let written = write(&wanted, 8192, NameCase::Lower).unwrap();
            assert!(written.values().all(|value| value.is_ascii()));
            let found = read(remote(written), || unreachable!()).unwrap();
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
        let header = written[HEADER].len() + HEADER.len();
        let few = write(&attributes(&metadata), header + 10, NameCase::Exact).unwrap();
        assert_eq!(few.keys().collect::<Vec<_>>(), ["B", HEADER]);
        assert!(write(&attributes(&metadata), header - 1, NameCase::Exact).unwrap_err().contains("1 more than"));
    }

    #[test]
    fn the_kind_of_foreign_objects_follows_their_content_type() {
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
            let found = read(RemoteObject { content_type, ..remote(metadata) }, || unreachable!()).unwrap();
            assert_eq!((found.kind, found.generation.as_str()), (kind, "77"));
            assert_eq!(found.metadata.unwrap().get(), r#"{"Owner":"é"}"#);
        }
        let unknown = RemoteObject { stored_checksum: None, ..remote(BTreeMap::new()) };
        assert_eq!(read(unknown, || Checksum(7)).unwrap().checksum, Checksum(7));
    }

    #[test]
    fn foreign_headers_and_metadata_are_kept() {
        let map = |pairs: &[(&str, &str)]| -> BTreeMap<String, String> {
            pairs.iter().map(|(name, value)| ((*name).to_owned(), (*value).to_owned())).collect()
        };
        let headers = map(&[("cache-control", "max-age=5"), ("content-disposition", "attachment")]);
        let metadata = map(&[("Owner", "jo"), ("team", "x"), ("\u{e4}", "y"), ("note", "\u{e9}")]);
        let foreign = RemoteObject {
            content_type: Some("text/plain; charset=utf-16le".to_owned()),
            content_encoding: Some("GZIP, identity".to_owned()),
            headers: headers.clone(),
            ..remote(metadata)
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
        // The same properties are read in the next bucket, whatever this program has added.
        let control = map(&[("cache-control", "max-age=5, no-transform"), ("content-disposition", "attachment")]);
        let next = RemoteObject {
            content_type: Some("text/plain; charset=utf-16le".to_owned()),
            content_encoding: Some("gzip".to_owned()),
            headers: control,
            ..remote(written)
        };
        assert_eq!(read(next, || unreachable!()).unwrap().foreign, found.foreign);
    }

    #[test]
    fn sealed_attributes_are_not_mirrored_and_have_a_limit() {
        let sealed = Attributes {
            metadata: None,
            encrypted: true,
            encryption: Some(Envelope {
                version: EnvelopeVersion,
                key_id: KeyId([1; 8]),
                message_id: Binary([2; 32]),
                wrapped_key: Binary([3; 60]),
                commitment: Binary([4; 32]),
                sealed: SealedText(vec![5; 600]),
                received_at: None,
            }),
            ..attributes("{}")
        };
        let written = write(&sealed, 8192, NameCase::Exact).unwrap();
        assert_eq!(written.keys().collect::<Vec<_>>(), [HEADER]);
        let found = read(remote(written.clone()), || unreachable!()).unwrap();
        assert_eq!(found.encryption, sealed.encryption);
        let header = written[HEADER].len() + HEADER.len();
        let why = write(&sealed, header - 8, NameCase::Exact).unwrap_err();
        assert!(why.contains("encrypted metadata has 600 bytes, 6 more than"), "{why}");
        let newer = written[HEADER].replace(r#""version":1"#, r#""version":2"#);
        let why = read(remote(BTreeMap::from([(HEADER.to_owned(), newer)])), || unreachable!()).unwrap_err();
        assert!(why.contains("version 2 of the format"), "{why}");
    }

    #[test]
    fn a_header_of_other_bytes_is_damage() {
        let written = write(&attributes("{}"), 8192, NameCase::Exact).unwrap();
        let other = RemoteObject { stored_checksum: Some(Checksum(1)), ..remote(written.clone()) };
        assert!(read(other, || unreachable!()).unwrap_err().contains("another tool"));
        assert!(read(RemoteObject { stored_size: 6, ..remote(written.clone()) }, || unreachable!()).is_err());
        let mut newer = written;
        let header = newer[HEADER].replace(r#""format":1"#, r#""format":2"#);
        newer.insert(HEADER.to_owned(), header);
        assert!(read(remote(newer), || unreachable!()).unwrap_err().contains("version 2"));
    }
}
