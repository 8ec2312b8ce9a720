//! One AMQP message as plain data, independent of the library that receives and sends it.

use bytes::Bytes;
use jiff::Timestamp;

use crate::instant;

/// One AMQP message: properties, headers, body.
#[derive(Clone, Debug, Default, PartialEq)]
pub struct Message {
    /// The basic properties that Celery uses.
    pub properties: Properties,
    /// The header table.
    pub headers: Headers,
    /// The body as it was received or is sent.
    pub body: Bytes,
}

impl Message {
    /// Returns the time at which the broker received the message, in Unix milliseconds.
    ///
    /// RabbitMQ writes this stamp only with its interceptor `set_header_timestamp`. A message keeps its stamp at every
    /// redelivery.
    #[must_use]
    pub fn stamp(&self) -> Option<i64> {
        match self.headers.get("timestamp_in_ms")? {
            Field::Int(stamp) => Some(*stamp),
            _ => None,
        }
    }

    /// Returns the header `eta`, which a message of protocol 1 does not have.
    #[must_use]
    pub fn eta(&self) -> Option<Timestamp> {
        instant::read(self.headers.text("eta")?)
    }

    /// Returns the size, in bytes, of the frame that holds properties and headers, as this program writes it.
    ///
    /// AMQP cannot split this frame. A message whose frame is larger than the connection's `frame_max` cannot be sent.
    #[must_use]
    pub fn header_frame(&self) -> usize {
        let headers = if self.headers.is_empty() { 0 } else { self.headers.size() };
        HEADER_FRAME + self.properties.size() + headers
    }
}

/// The size of a content header frame without properties, in bytes.
///
/// The frame itself has type, channel, length and end; the header has class, weight, body size and flags.
const HEADER_FRAME: usize = 8 + 14;

/// The basic properties of AMQP 0-9-1; in a text that is not UTF-8, invalid bytes are replaced.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Properties {
    /// The MIME type of the body; of a compressed body, that of the uncompressed content.
    pub content_type: Option<String>,
    /// The encoding of the body: `utf-8`, `binary`, `base64`…
    pub content_encoding: Option<String>,
    /// 1 for a transient, 2 for a persistent message.
    pub delivery_mode: Option<u8>,
    /// The priority, 0 to 255.
    pub priority: Option<u8>,
    /// The correlation id, which Celery sets to the task id.
    pub correlation_id: Option<String>,
    /// The queue for the result; empty or absent when no result is wanted.
    pub reply_to: Option<String>,
    /// The time to live in milliseconds, as decimal text.
    pub expiration: Option<String>,
    /// The message id of the application.
    pub message_id: Option<String>,
    /// The time of the message in Unix seconds.
    pub timestamp: Option<u64>,
    /// The message type of the application.
    pub kind: Option<String>,
    /// The user, which the broker has checked.
    pub user_id: Option<String>,
    /// The application that created the message.
    pub app_id: Option<String>,
}

impl Properties {
    /// Returns those of a JSON text as Celery sends it, of the lowest priority; a persistent message outlives a restart of the broker.
    #[must_use]
    pub fn json(is_persistent: bool) -> Self {
        Self {
            content_type: Some("application/json".to_owned()),
            content_encoding: Some("utf-8".to_owned()),
            delivery_mode: Some(if is_persistent { 2 } else { 1 }),
            priority: Some(0),
            ..Self::default()
        }
    }

    fn size(&self) -> usize {
        let texts = [
            &self.content_type,
            &self.content_encoding,
            &self.correlation_id,
            &self.reply_to,
            &self.expiration,
            &self.message_id,
            &self.kind,
            &self.user_id,
            &self.app_id,
        ];
        let texts = texts.into_iter().flatten().map(|text| 1 + text.len()).sum::<usize>();
        let bytes = usize::from(self.delivery_mode.is_some()) + usize::from(self.priority.is_some());
        texts + bytes + self.timestamp.map_or(0, |_| 8)
    }
}

/// One value of a header table; integers of all widths are one kind.
#[derive(Clone, Debug, PartialEq)]
pub enum Field {
    /// No value: Python's `None`, which producers also write for a header that is not set.
    Void,
    /// A boolean.
    Bool(bool),
    /// An integer of any width.
    Int(i64),
    /// A float or double.
    Float(f64),
    /// A short or long string; invalid UTF-8 is replaced.
    Text(String),
    /// A time in Unix seconds.
    Timestamp(u64),
    /// A list.
    List(Vec<Self>),
    /// A nested table.
    Table(Headers),
}

impl Field {
    /// Returns the size of the value in bytes as this program writes it, including its type.
    #[must_use]
    pub fn size(&self) -> usize {
        1 + match self {
            Self::Void => 0,
            Self::Bool(_) => 1,
            Self::Int(value) if i32::try_from(*value).is_ok() => 4,
            Self::Int(_) | Self::Float(_) | Self::Timestamp(_) => 8,
            Self::Text(text) => 4 + text.len(),
            Self::List(fields) => fields.iter().fold(4, |size, field| size + field.size()),
            Self::Table(headers) => headers.size(),
        }
    }
}

/// A header table in the order of the message; names are unique.
#[derive(Clone, Debug, Default, PartialEq)]
pub struct Headers(Vec<(String, Field)>);

impl Headers {
    /// Returns a header by name; a void header counts as present.
    #[must_use]
    pub fn get(&self, name: &str) -> Option<&Field> {
        self.0.iter().find(|(key, _)| key == name).map(|(_, value)| value)
    }

    /// Returns a text header by name, or `None` when the header is absent, void or of another type.
    #[must_use]
    pub fn text(&self, name: &str) -> Option<&str> {
        match self.get(name)? {
            Field::Text(text) => Some(text),
            _ => None,
        }
    }

    /// Sets a header, and replaces an earlier one of the same name.
    pub fn set(&mut self, name: impl Into<String>, value: Field) {
        let name = name.into();
        match self.0.iter_mut().find(|(key, _)| *key == name) {
            Some(slot) => slot.1 = value,
            None => self.0.push((name, value)),
        }
    }

    /// Removes a header and returns it.
    pub fn remove(&mut self, name: &str) -> Option<Field> {
        let index = self.0.iter().position(|(key, _)| key == name)?;
        Some(self.0.remove(index).1)
    }

    /// Keeps only those headers for which `keep` returns true.
    pub fn retain(&mut self, mut keep: impl FnMut(&str) -> bool) {
        self.0.retain(|(name, _)| keep(name));
    }

    /// Returns the size of the whole table in bytes as this program writes it.
    #[must_use]
    pub fn size(&self) -> usize {
        self.iter().fold(4, |size, (name, field)| size + 1 + name.len() + field.size())
    }

    /// Iterates over the headers in order.
    pub fn iter(&self) -> impl Iterator<Item = (&str, &Field)> {
        self.0.iter().map(|(name, value)| (name.as_str(), value))
    }

    /// Returns the number of headers.
    #[must_use]
    pub const fn len(&self) -> usize {
        self.0.len()
    }

    /// Tells whether there are no headers.
    #[must_use]
    pub const fn is_empty(&self) -> bool {
        self.0.is_empty()
    }
}

impl FromIterator<(String, Field)> for Headers {
    /// Collects headers without a check for repeated names, which a decoded AMQP table does not have.
    fn from_iter<I: IntoIterator<Item = (String, Field)>>(fields: I) -> Self {
        Self(fields.into_iter().collect())
    }
}

impl From<&str> for Field {
    fn from(text: &str) -> Self {
        Self::Text(text.to_owned())
    }
}

impl From<String> for Field {
    fn from(text: String) -> Self {
        Self::Text(text)
    }
}

/// The address of a publication: an exchange and a routing key.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct Address {
    /// The name of the exchange; an empty name is the default exchange, which routes by queue name.
    pub exchange: String,
    /// The routing key.
    pub routing_key: String,
}

impl Address {
    /// Creates the address of a queue, through the default exchange.
    pub fn queue(name: impl Into<String>) -> Self {
        Self { exchange: String::new(), routing_key: name.into() }
    }
}

/// A message to publish, with its address.
#[derive(Clone, Debug, PartialEq)]
pub struct Publication {
    /// The address.
    pub address: Address,
    /// The message.
    pub message: Message,
}

/// The way on which a message was delivered.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Origin {
    /// The queue from which the message was consumed.
    pub queue: String,
    /// The exchange to which the message was published.
    pub exchange: String,
    /// The routing key of the publication.
    pub routing_key: String,
    /// Tells whether the broker has delivered the message before, to any consumer.
    pub redelivered: bool,
}
