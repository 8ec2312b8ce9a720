//! Objects: bytes with their attributes, as a backend stores them, and the values they are made from.

mod attributes;
mod checksum;
pub(in crate::storage) mod clock;
mod codec;
mod envelope;
pub(in crate::storage) mod foreign;
mod json_text;
mod key;
mod metadata;
pub(in crate::storage) mod payload;
pub(in crate::storage) mod value;
mod watch;

pub use self::attributes::{Attributes, Kind, LegacyFile, ObjectInfo};
pub use self::checksum::Checksum;
pub use self::codec::Codec;
pub use self::envelope::{Binary, Envelope, EnvelopeVersion, KeyId, SealedText};
pub use self::foreign::Foreign;
pub use self::json_text::JsonText;
pub use self::key::{Key, KeyError};
pub use self::metadata::{ContentType, Metadata, OptionError};
pub use self::payload::Payload;
pub use self::value::{Content, Value};
pub use self::watch::{Watch, watched};

/// The stored bytes of a value, with their attributes.
#[derive(Clone, Debug)]
pub struct Object {
    /// The attributes of the payload.
    pub attributes: Attributes,
    /// The bytes as they are stored, after the codecs of the layers.
    pub payload: Payload,
}
