//! Whether a stored object is what was stored: all its bytes are read and compared.

use crate::json;
use crate::storage::backend::GetOptions;
use crate::storage::engine::{Engine, Receipt, key_text};
use crate::storage::error::{Error, ErrorKind, Operation, Result};
use crate::storage::object::{Checksum, JsonText, Key, Kind, Object};
use crate::storage::reading;

/// JSON values of up to this many bytes are parsed as well, which takes memory.
const PARSED: u64 = 1024 * 1024;

/// Whether the stored bytes of a key are those that were stored.
#[derive(Clone, Debug, PartialEq, Eq, serde::Serialize, schemars::JsonSchema)]
pub struct Verification {
    /// The key of the object.
    #[serde(serialize_with = "key_text")]
    #[schemars(with = "String", length(min = 1, max = 1024))]
    pub key: Key,
    /// Whether all bytes were read, decoded and found to match their checksums.
    pub ok: bool,
    /// The CRC32C of the value as it is recorded, or null where nothing readable records it.
    #[schemars(with = "Option<String>", regex(pattern = "^crc32c:[A-Za-z0-9+/]{6}==$"))]
    pub checksum: Option<Checksum>,
    /// What is wrong and what can be done, or null.
    pub problem: Option<String>,
}

impl Engine {
    /// Reads all bytes of an object, decodes and decrypts them, and compares them with their checksums.
    ///
    /// Large values pass through the spool, so memory is bounded. `None` means that the key has no object. An object that
    /// is damaged, or that cannot be decoded, is an answer and no error.
    ///
    /// # Errors
    ///
    /// The errors of the backend other than [`ErrorKind::Integrity`]: what cannot be reached is not known to be damaged.
    pub async fn verify(&self, key: &Key) -> Result<Option<Verification>> {
        self.0.counters.measure(self.verify_uncounted(key)).await
    }

    async fn verify_uncounted(&self, key: &Key) -> Result<Option<Verification>> {
        let spooled = GetOptions { spooled: true, uncached: true, ..GetOptions::default() };
        let found = match reading::read(&*self.0.backend, key, spooled).await {
            Ok(None) => return Ok(None),
            Ok(Some(object)) => check(key, object).await.map(|object| {
                let receipt = Receipt::of(key, self.0.kind, &object.attributes);
                receipt.checksum
            }),
            Err(error) => Err(error),
        };
        match found {
            Ok(checksum) => Ok(Some(Verification { key: key.clone(), ok: true, checksum, problem: None })),
            Err(error) if error.kind == ErrorKind::Integrity => {
                // What is recorded may be readable where the bytes are not.
                let recorded = match self.live(key).await {
                    Ok(None) => return Ok(None),
                    Ok(Some(attributes)) => Receipt::of(key, self.0.kind, &attributes).checksum,
                    Err(error) if error.kind == ErrorKind::Integrity => None,
                    Err(error) => return Err(error.during(Operation::Retrieve)),
                };
                let problem = Some(error.message().to_owned());
                Ok(Some(Verification { key: key.clone(), ok: false, checksum: recorded, problem }))
            }
            Err(error) => Err(error),
        }
    }
}

/// Checks what checksums do not show: that a text of this program is UTF-8, and that JSON can be parsed.
async fn check(key: &Key, object: Object) -> Result<Object> {
    let Object { attributes, payload } = &object;
    if attributes.foreign.other_tool {
        return Ok(object);
    }
    let unread = |error| Error::unread(Operation::Retrieve, key, error);
    match attributes.kind {
        Kind::Text if !payload.is_utf8().await.map_err(unread)? => {
            Err(reading::damaged(key, "the text is not valid UTF-8"))
        }
        Kind::Json if payload.len() <= PARSED => {
            let bytes = payload.clone().into_memory().await.map_err(unread)?;
            match String::from_utf8(bytes.into()).ok().map(JsonText::parse) {
                Some(Ok(_)) => Ok(object),
                // Such a value came by reference; it cannot be retrieved inside a message, and is what was stored.
                Some(Err(error)) if error.kind == json::ErrorKind::TooDeep => Ok(object),
                _ => Err(reading::damaged(key, "the JSON value is not valid JSON")),
            }
        }
        Kind::Text | Kind::Json | Kind::Bytes => Ok(object),
    }
}
