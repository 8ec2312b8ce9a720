//! Between the neutral envelope and the library's types.

use bytes::Bytes;
use lapin::{
    BasicProperties,
    types::{AMQPValue, FieldArray, FieldTable, LongString, ShortString},
};

use crate::celery::message::{Field, Headers, Message, Properties};
use crate::queue_name;

/// Takes a delivered message over; what is not UTF-8 is replaced, never refused.
pub(super) fn message_in(properties: &BasicProperties, body: Vec<u8>) -> Message {
    let text = |text: &Option<ShortString>| text.as_ref().map(|text| text.as_str().to_owned());
    Message {
        properties: Properties {
            content_type: text(properties.content_type()),
            content_encoding: text(properties.content_encoding()),
            delivery_mode: *properties.delivery_mode(),
            priority: *properties.priority(),
            correlation_id: text(properties.correlation_id()),
            reply_to: text(properties.reply_to()),
            expiration: text(properties.expiration()),
            message_id: text(properties.message_id()),
            timestamp: *properties.timestamp(),
            kind: text(properties.kind()),
            user_id: text(properties.user_id()),
            app_id: text(properties.app_id()),
        },
        headers: properties.headers().as_ref().map(headers_in).unwrap_or_default(),
        body: Bytes::from(body),
    }
}

fn headers_in(table: &FieldTable) -> Headers {
    table.into_iter().map(|(name, value)| (name.as_str().to_owned(), field_in(value))).collect()
}

fn field_in(value: &AMQPValue) -> Field {
    let lossy = |bytes: &[u8]| Field::Text(String::from_utf8_lossy(bytes).into_owned());
    match value {
        AMQPValue::Void => Field::Void,
        AMQPValue::Boolean(value) => Field::Bool(*value),
        AMQPValue::ShortShortInt(value) => Field::Int((*value).into()),
        AMQPValue::ShortShortUInt(value) => Field::Int((*value).into()),
        AMQPValue::ShortInt(value) => Field::Int((*value).into()),
        AMQPValue::ShortUInt(value) => Field::Int((*value).into()),
        AMQPValue::LongInt(value) => Field::Int((*value).into()),
        AMQPValue::LongUInt(value) => Field::Int((*value).into()),
        AMQPValue::LongLongInt(value) => Field::Int(*value),
        AMQPValue::Float(value) => Field::Float((*value).into()),
        AMQPValue::Double(value) => Field::Float(*value),
        AMQPValue::DecimalValue(value) => Field::Float(f64::from(value.value) / 10_f64.powi(value.scale.into())),
        AMQPValue::ShortString(text) => Field::Text(text.as_str().to_owned()),
        AMQPValue::LongString(text) => lossy(text.as_bytes()),
        AMQPValue::ByteArray(bytes) => lossy(bytes.as_slice()),
        AMQPValue::FieldArray(values) => Field::List(values.as_slice().iter().map(field_in).collect()),
        AMQPValue::Timestamp(seconds) => Field::Timestamp(*seconds),
        AMQPValue::FieldTable(table) => Field::Table(headers_in(table)),
    }
}

/// Makes a short string of AMQP, such as a name.
///
/// # Errors
/// Says which name is too long; sent all the same it would cost the connection.
pub(super) fn short(what: &str, text: &str) -> Result<ShortString, String> {
    let refused = |_| format!("{what} is {} bytes long, {} is the most", text.len(), queue_name::MAX_BYTES);
    ShortString::try_new(text).map_err(refused)
}

/// Puts a message's properties and headers into the library's type.
///
/// # Errors
/// Says what cannot be put on the wire: a name over 255 bytes, or a header frame larger than `frame_max`.
pub(super) fn properties_out(message: &Message, frame_max: u32) -> Result<BasicProperties, String> {
    let Message { properties, headers, .. } = message;
    let size = message.header_frame();
    if frame_max != 0 && size > frame_max as usize {
        return Err(format!("the headers are {size} bytes long, {frame_max} is the most"));
    }
    let mut out = BasicProperties::default();
    macro_rules! set_text {
        ($($name:ident $with:ident),*) => {$(
            if let Some(text) = &properties.$name {
                out = out.$with(short(stringify!($name), text)?);
            }
        )*};
    }
    set_text!(
        content_type with_content_type,
        content_encoding with_content_encoding,
        correlation_id with_correlation_id,
        reply_to with_reply_to,
        expiration with_expiration,
        message_id with_message_id,
        kind with_type,
        user_id with_user_id,
        app_id with_app_id
    );
    if let Some(mode) = properties.delivery_mode {
        out = out.with_delivery_mode(mode);
    }
    if let Some(priority) = properties.priority {
        out = out.with_priority(priority);
    }
    if let Some(timestamp) = properties.timestamp {
        out = out.with_timestamp(timestamp);
    }
    if !headers.is_empty() {
        out = out.with_headers(table_out(headers)?);
    }
    Ok(out)
}

pub(super) fn table_out(headers: &Headers) -> Result<FieldTable, String> {
    let mut table = FieldTable::default();
    for (name, value) in headers.iter() {
        table.insert(short("a header's name", name)?, field_out(value)?);
    }
    Ok(table)
}

fn field_out(field: &Field) -> Result<AMQPValue, String> {
    Ok(match field {
        Field::Void => AMQPValue::Void,
        Field::Bool(value) => AMQPValue::Boolean(*value),
        Field::Int(value) => match i32::try_from(*value) {
            Ok(value) => AMQPValue::LongInt(value),
            Err(_) => AMQPValue::LongLongInt(*value),
        },
        Field::Float(value) => AMQPValue::Double(*value),
        Field::Text(text) => AMQPValue::LongString(LongString::from(text.as_bytes())),
        Field::Timestamp(seconds) => AMQPValue::Timestamp(*seconds),
        Field::List(fields) => {
            AMQPValue::FieldArray(FieldArray::from(fields.iter().map(field_out).collect::<Result<Vec<_>, _>>()?))
        }
        Field::Table(headers) => AMQPValue::FieldTable(table_out(headers)?),
    })
}

#[cfg(test)]
mod tests {
    use lapin::protocol::basic::gen_properties;

    use super::*;

    fn message() -> Message {
        let text = |text: &str| Some(text.to_owned());
        let mut headers = Headers::default();
        headers.set("task", "filestorage.store".into());
        headers.set("eta", Field::Void);
        headers.set("retries", Field::Int(3));
        headers.set("large", Field::Int(1 << 40));
        headers.set("ratio", Field::Float(0.5));
        headers.set("when", Field::Timestamp(1_700_000_000));
        headers.set("timelimit", Field::List(vec![Field::Void, Field::Bool(true), "é".into()]));
        headers.set("stamps", Field::Table(Headers::from_iter([("a".to_owned(), Field::Int(-1))])));
        Message {
            properties: Properties {
                content_type: text("application/json"),
                content_encoding: text("utf-8"),
                delivery_mode: Some(2),
                priority: Some(9),
                correlation_id: text("id"),
                reply_to: text("back"),
                expiration: text("1000"),
                message_id: text("m"),
                timestamp: Some(1_700_000_000),
                kind: text("k"),
                user_id: text("u"),
                app_id: text("a"),
            },
            headers,
            body: Bytes::from_static(b"[]"),
        }
    }

    #[test]
    fn what_goes_out_comes_back_in() {
        let sent = message();
        let received = message_in(&properties_out(&sent, 131_072).unwrap(), sent.body.to_vec());
        assert_eq!(received.properties, sent.properties);
        assert_eq!(received.headers.len(), sent.headers.len());
        for (name, field) in sent.headers.iter() {
            assert_eq!(received.headers.get(name), Some(field), "{name}");
        }
    }

    #[test]
    fn text_that_is_not_utf_8_is_replaced() {
        let mut table = FieldTable::default();
        table.insert("bad".into(), AMQPValue::LongString(LongString::from(b"a\xffb".as_slice())));
        let message = message_in(&BasicProperties::default().with_headers(table), Vec::new());
        assert_eq!(message.headers.text("bad"), Some("a\u{fffd}b"));
    }

    #[test]
    fn what_would_cost_the_connection_is_refused() {
        let mut long = message();
        long.properties.correlation_id = Some("x".repeat(256));
        assert!(properties_out(&long, 131_072).unwrap_err().contains("correlation_id"));
        let mut name = message();
        name.headers.set("n".repeat(256), Field::Void);
        assert!(properties_out(&name, 131_072).unwrap_err().contains("name"));
        let mut large = message();
        large.headers.set("x", Field::Text("x".repeat(131_072)));
        assert!(properties_out(&large, 131_072).unwrap_err().contains("headers"));
        properties_out(&large, 262_144).unwrap();
    }

    #[test]
    fn the_size_of_the_header_frame_is_the_one_on_the_wire() {
        for message in [message(), Message::default(), Message { headers: message().headers, ..Message::default() }] {
            let properties = properties_out(&message, 0).unwrap();
            let wire = gen_properties(&properties)(Vec::new().into()).unwrap().into_inner().0;
            // Frame type, channel, length and end; class, weight and size of the body.
            assert_eq!(message.header_frame(), 8 + 12 + wire.len());
        }
    }
}
