//! The sidecar: the caller's metadata and a mark of compression, as JSON.

use std::fmt;

use serde::de::{MapAccess, Visitor};
use serde_json::value::RawValue;

use crate::storage::object::Metadata;

/// The member that the class adds to the caller's metadata.
const COMPRESSED: &str = "compressed";

/// What a sidecar says about its file.
#[derive(Clone, Debug, Default)]
pub(in crate::storage) struct Sidecar {
    /// Whether the file is compressed; none where the sidecar does not say so.
    pub(in crate::storage) compressed: Option<bool>,
    /// The caller's metadata: a JSON object.
    pub(in crate::storage) metadata: Option<Box<RawValue>>,
}

/// The members of an object, in their order.
struct Members(Vec<(String, Box<RawValue>)>);

impl<'de> serde::Deserialize<'de> for Members {
    fn deserialize<D: serde::Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        struct InOrder;

        impl<'de> Visitor<'de> for InOrder {
            type Value = Members;

            fn expecting(&self, formatter: &mut fmt::Formatter<'_>) -> fmt::Result {
                formatter.write_str("a JSON object")
            }

            fn visit_map<A: MapAccess<'de>>(self, mut map: A) -> Result<Members, A::Error> {
                let mut members = Vec::new();
                while let Some(member) = map.next_entry()? {
                    members.push(member);
                }
                Ok(Members(members))
            }
        }

        deserializer.deserialize_map(InOrder)
    }
}

impl Sidecar {
    /// The largest sidecar in bytes that is read.
    pub(in crate::storage) const MOST: u64 = 1 << 20;

    /// Reads a sidecar; `None` for a file that is none.
    pub(in crate::storage) fn parse(bytes: &[u8]) -> Option<Self> {
        let Members(members) = serde_json::from_slice(bytes).ok()?;
        let (mut sidecar, mut text) = (Self::default(), String::from("{"));
        for (name, value) in members {
            if name == COMPRESSED {
                sidecar.compressed = serde_json::from_str(value.get()).ok();
                continue;
            }
            let separator = if text.len() > 1 { "," } else { "" };
            text.push_str(&format!("{separator}{}:{}", serde_json::to_string(&name).ok()?, value.get()));
        }
        text.push('}');
        sidecar.metadata = if text == "{}" { None } else { Some(Metadata::compact(&text)?) };
        Some(sidecar)
    }
}

#[cfg(test)]
mod tests {
    use super::super::content_type;
    use super::*;

    #[test]
    fn a_sidecar_is_the_metadata_and_a_mark() {
        let text = br#"{"z": [1, 2.50], "content_type": "text/csv", "\u00e9": {"n": null}, "compressed": true}"#;
        let read = Sidecar::parse(text).unwrap();
        assert_eq!(read.compressed, Some(true));
        let metadata = read.metadata.unwrap();
        assert_eq!(metadata.get(), r#"{"z":[1,2.50],"content_type":"text/csv","é":{"n":null}}"#);
        assert_eq!(content_type(&metadata).as_deref(), Some("text/csv"));
        let bare = Sidecar::parse(br#"{"compressed": false}"#).unwrap();
        assert!(bare.metadata.is_none() && bare.compressed == Some(false));
        let odd = Sidecar::parse(br#"{"content_type": "no type", "compressed": 1}"#).unwrap();
        assert_eq!((content_type(&odd.metadata.unwrap()), odd.compressed), (None, None));
        for none in [&b""[..], b"[]", b"{", b"\x80\x04N.", br#"{"a": NaN, "compressed": true}"#] {
            assert!(Sidecar::parse(none).is_none(), "{none:?}");
        }
    }
}
