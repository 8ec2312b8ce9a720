//! The serializers of bodies: JSON, MessagePack and YAML, by the names and content types of kombu.

use bytes::Bytes;

use super::message::Message;
use super::{msgpack, yaml};
use crate::json::{self, ParseLimits};

/// A serializer of bodies.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum Serializer {
    /// JSON, which every worker and client reads.
    #[default]
    Json,
    /// MessagePack.
    Msgpack,
    /// YAML 1.1 in its safe schema.
    Yaml,
}

impl Serializer {
    /// Returns the serializer of this name, as kombu knows it.
    #[must_use]
    pub fn of_name(name: &str) -> Option<Self> {
        [Self::Json, Self::Msgpack, Self::Yaml].into_iter().find(|one| one.name() == name)
    }

    /// Returns the serializer that writes this content type.
    #[must_use]
    pub fn of_content_type(content_type: &str) -> Option<Self> {
        [Self::Json, Self::Msgpack, Self::Yaml].into_iter().find(|one| one.content_type() == content_type)
    }

    /// Returns the name.
    #[must_use]
    pub const fn name(self) -> &'static str {
        match self {
            Self::Json => "json",
            Self::Msgpack => "msgpack",
            Self::Yaml => "yaml",
        }
    }

    /// Returns the content type.
    #[must_use]
    pub const fn content_type(self) -> &'static str {
        match self {
            Self::Json => "application/json",
            Self::Msgpack => "application/x-msgpack",
            Self::Yaml => "application/x-yaml",
        }
    }

    const fn content_encoding(self) -> &'static str {
        match self {
            Self::Json | Self::Yaml => "utf-8",
            Self::Msgpack => "binary",
        }
    }

    /// Writes a message whose body is JSON with this serializer instead.
    ///
    /// A body that cannot be expressed, which is one with an integer of more than 64 bits in MessagePack, stays JSON and says so
    /// by its content type.
    #[must_use]
    pub fn encode(self, mut message: Message) -> Message {
        if self == Self::Json {
            return message;
        }
        let limits = ParseLimits { depth: usize::MAX, values: usize::MAX };
        let Ok(value) = json::parse(&message.body, limits) else { return message };
        let body = match self {
            Self::Json => None,
            Self::Msgpack => msgpack::from_json(&value),
            Self::Yaml => Some(yaml::from_json(&value).into_bytes()),
        };
        if let Some(body) = body {
            message.body = Bytes::from(body);
            message.properties.content_type = Some(self.content_type().to_owned());
            message.properties.content_encoding = Some(self.content_encoding().to_owned());
        }
        message
    }
}
