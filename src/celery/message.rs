//! The neutral envelope: one AMQP message without the library that carried it.

use bytes::Bytes;

/// One AMQP message: properties, headers, body.
#[derive(Clone, Debug, Default, PartialEq)]
pub struct Message {
    /// The basic properties that Celery uses.
    pub properties: Properties,
    /// The header table.
    pub headers: Headers,
    /// The body as it was on the wire.
    pub body: Bytes,
}

impl Message {
    /// Tells when the broker took the message in, in Unix milliseconds, where it stamps what comes in (RabbitMQ's interceptor
    /// `set_header_timestamp`). A message keeps its stamp, however often it is handed out.
    #[must_use]
    pub fn stamp(&self) -> Option<i64> {
        match self.headers.get("timestamp_in_ms")? {
            Field::Int(stamp) => Some(*stamp),
            _ => None,
        }
    }

    /// Returns the size in bytes of the one frame that properties and headers travel in, as this program writes it. AMQP cannot
    /// split it: what is larger than the connection's `frame_max` cannot be sent.
    #[must_use]
    pub fn header_frame(&self) -> usize {
        let headers = if self.headers.is_empty() { 0 } else { self.headers.size() };
        HEADER_FRAME + self.properties.size() + headers
    }
}

/// A content header frame without properties: type, channel, length and end of the frame; class, weight, body size, flags.
const HEADER_FRAME: usize = 8 + 14;

/// The basic properties of AMQP 0-9-1; text that was not UTF-8 is decoded lossily.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Properties {
    /// MIME type of the body (of the inner format, when the body is compressed).
    pub content_type: Option<String>,
    /// `utf-8`, `binary`, `base64`…
    pub content_encoding: Option<String>,
    /// 1 transient, 2 persistent.
    pub delivery_mode: Option<u8>,
    /// 0 to 255.
    pub priority: Option<u8>,
    /// Celery: the task id.
    pub correlation_id: Option<String>,
    /// Name of the queue that wants the result; empty or absent: nobody.
    pub reply_to: Option<String>,
    /// Milliseconds, as decimal text.
    pub expiration: Option<String>,
    /// Application's message id.
    pub message_id: Option<String>,
    /// Unix seconds.
    pub timestamp: Option<u64>,
    /// Application's message type.
    pub kind: Option<String>,
    /// User the broker checked.
    pub user_id: Option<String>,
    /// Creating application.
    pub app_id: Option<String>,
}

impl Properties {
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

/// One value of a header table, integer widths folded into one.
#[derive(Clone, Debug, PartialEq)]
pub enum Field {
    /// Python's `None`; also what a producer writes for "not set".
    Void,
    /// A boolean.
    Bool(bool),
    /// Any integer width.
    Int(i64),
    /// A float or double.
    Float(f64),
    /// A short or long string; lossily UTF-8.
    Text(String),
    /// Unix seconds.
    Timestamp(u64),
    /// A list.
    List(Vec<Self>),
    /// A nested table.
    Table(Headers),
}

impl Field {
    /// Returns the size in bytes of the value as this program writes it, its type included.
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

/// A header table in wire order; names are unique.
#[derive(Clone, Debug, Default, PartialEq)]
pub struct Headers(Vec<(String, Field)>);

impl Headers {
    /// Looks a header up; a void counts as present.
    #[must_use]
    pub fn get(&self, name: &str) -> Option<&Field> {
        self.0.iter().find(|(key, _)| key == name).map(|(_, value)| value)
    }

    /// Looks a text header up; void, absent or another type is `None`.
    #[must_use]
    pub fn text(&self, name: &str) -> Option<&str> {
        match self.get(name)? {
            Field::Text(text) => Some(text),
            _ => None,
        }
    }

    /// Sets a header, replacing an earlier one of that name.
    pub fn set(&mut self, name: impl Into<String>, value: Field) {
        let name = name.into();
        match self.0.iter_mut().find(|(key, _)| *key == name) {
            Some(slot) => slot.1 = value,
            None => self.0.push((name, value)),
        }
    }

    /// Removes a header and returns it.
    pub fn remove(&mut self, name: &str) -> Option<Field> {
        let place = self.0.iter().position(|(key, _)| key == name)?;
        Some(self.0.remove(place).1)
    }

    /// Keeps only those headers that `keep` says yes to.
    pub fn retain(&mut self, mut keep: impl FnMut(&str) -> bool) {
        self.0.retain(|(name, _)| keep(name));
    }

    /// Returns the size in bytes of the whole table as this program writes it.
    #[must_use]
    pub fn size(&self) -> usize {
        self.iter().fold(4, |size, (name, field)| size + 1 + name.len() + field.size())
    }

    /// Walks the headers in order.
    pub fn iter(&self) -> impl Iterator<Item = (&str, &Field)> {
        self.0.iter().map(|(name, value)| (name.as_str(), value))
    }

    /// Tells how many headers there are.
    #[must_use]
    pub const fn len(&self) -> usize {
        self.0.len()
    }

    /// Tells whether there is none.
    #[must_use]
    pub const fn is_empty(&self) -> bool {
        self.0.is_empty()
    }
}

impl FromIterator<(String, Field)> for Headers {
    /// Collects without looking for repeated names: a decoded AMQP table has none.
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

/// Where a message goes: an exchange (empty: the default one) and a routing key.
#[derive(Clone, Debug, PartialEq, Eq, Hash)]
pub struct Address {
    /// Exchange name; empty is the default exchange, which routes by queue name.
    pub exchange: String,
    /// Routing key.
    pub routing_key: String,
}

impl Address {
    /// Addresses a queue through the default exchange.
    pub fn queue(name: impl Into<String>) -> Self {
        Self { exchange: String::new(), routing_key: name.into() }
    }
}

/// A message on its way out.
#[derive(Clone, Debug, PartialEq)]
pub struct Publication {
    /// Where to.
    pub address: Address,
    /// What.
    pub message: Message,
}

/// How a message came in.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Origin {
    /// Queue it was consumed from.
    pub queue: String,
    /// Exchange it was published to.
    pub exchange: String,
    /// Routing key it was published with.
    pub routing_key: String,
    /// The broker delivered it before, to somebody.
    pub redelivered: bool,
}
