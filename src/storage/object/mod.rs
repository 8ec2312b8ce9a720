//! An object: bytes plus attributes, as a backend keeps it, and the value it was made from.

mod attributes;
mod checksum;
pub(in crate::storage) mod clock;
pub(in crate::storage) mod foreign;
mod json_text;
mod key;
mod metadata;
pub(in crate::storage) mod payload;
pub(in crate::storage) mod value;
mod watch;

pub use self::attributes::{Attributes, Kind, ObjectInfo};
pub use self::checksum::Checksum;
pub use self::foreign::Foreign;
pub use self::json_text::JsonText;
pub use self::key::{Key, KeyError};
pub use self::metadata::{ContentType, Metadata, OptionError};
pub use self::payload::Payload;
pub use self::value::{Content, Value};
pub use self::watch::{Watch, watched};

/// Bytes and what is known about them.
#[derive(Clone, Debug)]
pub struct Object {
    /// What is known about the payload.
    pub attributes: Attributes,
    /// The bytes as they are kept (after codecs, where a layer applied one).
    pub payload: Payload,
}
