//! The JSON API's description of an object.

use std::collections::BTreeMap;

use jiff::Timestamp;
use serde::de::Error as _;
use serde::{Deserialize, Deserializer};

use super::{Attributes, Checksum, Key};
use crate::storage::backends::metadata_header::{self, HEADER, RemoteObject};

/// The fields of a description that are requested.
pub(super) const FIELDS: &str = "kind,name,bucket,size,crc32c,generation,timeCreated,updated,contentType,contentEncoding,\
                                 cacheControl,contentDisposition,contentLanguage,metadata";

/// The description of an object.
#[derive(Debug, Deserialize)]
#[serde(rename_all = "camelCase")]
pub(super) struct Resource {
    kind: String,
    pub(super) name: String,
    bucket: String,
    #[serde(deserialize_with = "number")]
    pub(super) size: u64,
    /// Missing only for objects that are encrypted with a key of the customer.
    #[serde(default, deserialize_with = "checksum")]
    crc32c: Option<Checksum>,
    #[serde(deserialize_with = "number")]
    generation: i64,
    time_created: Timestamp,
    updated: Option<Timestamp>,
    /// Only in a listing of versions: when another version, or none, took the name.
    time_deleted: Option<Timestamp>,
    content_type: Option<String>,
    content_encoding: Option<String>,
    cache_control: Option<String>,
    content_disposition: Option<String>,
    content_language: Option<String>,
    #[serde(default)]
    metadata: BTreeMap<String, String>,
}

impl Resource {
    /// Tells whether the description is of this object of this bucket.
    pub(super) fn is_of(&self, bucket: &str, key: &Key) -> bool {
        self.kind == OBJECT && self.bucket == bucket && self.name == key.as_str()
    }
}

/// The description of an object that was just written.
#[derive(Debug, Deserialize)]
pub(super) struct Stored {
    kind: String,
    name: String,
    bucket: String,
    #[serde(deserialize_with = "number")]
    generation: i64,
    #[serde(deserialize_with = "number")]
    pub(super) size: u64,
    #[serde(default, deserialize_with = "checksum")]
    pub(super) crc32c: Option<Checksum>,
}

impl Stored {
    /// The fields that are requested: those that prove a write.
    pub(super) const FIELDS: &str = "kind,name,bucket,generation,size,crc32c";

    /// Tells whether the description confirms a write of this object of this bucket.
    pub(super) fn is_of(&self, bucket: &str, key: &Key) -> bool {
        self.kind == OBJECT
            && self.bucket == bucket
            && self.name == key.as_str()
            && self.generation > 0
            && self.crc32c.is_some()
    }
}

/// The kind of an object's description.
const OBJECT: &str = "storage#object";

/// An object that was found.
#[derive(Debug)]
pub(super) struct FoundObject {
    /// The bucket's own generation.
    pub(super) native: i64,
    /// Whether the object is not the present one of its name.
    pub(super) is_earlier: bool,
    /// The generation token of this program, which can be read even where the rest is inconsistent.
    pub(super) token: Option<String>,
    /// The attributes, or the reason why they cannot be read.
    pub(super) attributes: Result<Attributes, String>,
}

impl From<Resource> for FoundObject {
    fn from(resource: Resource) -> Self {
        let (native, is_earlier) = (resource.generation, resource.time_deleted.is_some());
        let token = resource.metadata.get(HEADER).and_then(|header| token(header));
        let headers = [
            ("cache-control", resource.cache_control),
            ("content-disposition", resource.content_disposition),
            ("content-language", resource.content_language),
        ];
        let headers = headers.into_iter().filter_map(|(name, value)| Some((name.to_owned(), value?)));
        let remote = RemoteObject {
            headers: headers.filter(|(_, value)| !value.is_empty()).collect(),
            content_type: resource.content_type,
            content_encoding: resource.content_encoding,
            stored_size: resource.size,
            stored_checksum: resource.crc32c,
            generation: native.to_string(),
            received_at: resource.updated.map_or(resource.time_created, |updated| updated.max(resource.time_created)),
            metadata: resource.metadata,
        };
        let attributes = match remote.stored_checksum {
            Some(checksum) => metadata_header::read(remote, || checksum),
            None => {
                Err("the bucket has no checksum of the object, as for objects under a customer's own key".to_owned())
            }
        };
        Self { native, is_earlier, token, attributes }
    }
}

/// Reads the generation token from a metadata header.
fn token(header: &str) -> Option<String> {
    #[derive(Deserialize)]
    struct Token {
        generation: String,
    }
    serde_json::from_str(header).ok().map(|Token { generation }| generation)
}

/// Reads a number that is written as a string.
fn number<'de, D: Deserializer<'de>, T: std::str::FromStr>(deserializer: D) -> Result<T, D::Error> {
    let text = std::borrow::Cow::<'de, str>::deserialize(deserializer)?;
    text.parse().map_err(|_| D::Error::custom("no number"))
}

/// Reads base64 of four big-endian bytes.
fn checksum<'de, D: Deserializer<'de>>(deserializer: D) -> Result<Option<Checksum>, D::Error> {
    let Some(text) = Option::<String>::deserialize(deserializer)? else { return Ok(None) };
    format!("crc32c:{text}").parse().map(Some).map_err(D::Error::custom)
}

#[cfg(test)]
mod tests {
    use super::super::Kind;
    use super::*;

    #[test]
    fn a_description_is_read() {
        let json = r#"{"kind":"storage#object","name":"a/ü","bucket":"b","size":"5","crc32c":"mnG7TA==","generation":"1795522820660852",
            "timeCreated":"2026-11-24T12:20:20.660839Z","updated":"2026-11-24T12:20:21Z","contentType":"text/csv",
            "metadata":{"Owner":"Jü"},"acl":[{}]}"#;
        let resource: Resource = serde_json::from_str(json).unwrap();
        assert_eq!((resource.name.as_str(), resource.size), ("a/ü", 5));
        let (key, other) = (Key::parse("a/ü").unwrap(), Key::parse("a").unwrap());
        assert!(resource.is_of("b", &key) && !resource.is_of("c", &key) && !resource.is_of("b", &other));
        let found = FoundObject::from(resource);
        let attributes = found.attributes.unwrap();
        assert_eq!((found.native, found.token), (1_795_522_820_660_852, None));
        assert_eq!((attributes.kind, attributes.generation.as_str()), (Kind::Text, "1795522820660852"));
        assert_eq!(attributes.checksum, Checksum::of(b"hello"));
        assert_eq!(attributes.info.received_at, "2026-11-24T12:20:21Z".parse().ok());
        let nameless = json.replace(r#""crc32c":"mnG7TA==","#, "");
        let found = FoundObject::from(serde_json::from_str::<Resource>(&nameless).unwrap());
        assert!(found.attributes.unwrap_err().contains("customer"));
        for damaged in [r#""size":"x""#, r#""size":5"#, r#""size":"-5""#] {
            assert!(serde_json::from_str::<Resource>(&json.replace(r#""size":"5""#, damaged)).is_err(), "{damaged}");
        }
    }

    #[test]
    fn a_token_is_read_from_inconsistent_attributes() {
        let json = r#"{"kind":"storage#object","bucket":"b","name":"a","size":"5","crc32c":"mnG7TA==","generation":"1","timeCreated":"2026-11-24T12:20:20Z",
            "metadata":{"filestorage":"{\"format\":1,\"generation\":\"mine\"}"}}"#;
        let found = FoundObject::from(serde_json::from_str::<Resource>(json).unwrap());
        assert_eq!(found.token.as_deref(), Some("mine"));
        assert!(found.attributes.is_err());
    }
}
