//! What producers in other languages may put where AMQP has a name: any bytes.

use std::io::{Read, Write};

use super::*;

/// The lone surrogate `"\\ud800"` as py-amqp encodes it.
const SURROGATE: &[u8] = b"\xed\xa0\x80";

fn frame(kind: u8, channel: u8, parts: &[&[u8]]) -> Vec<u8> {
    let payload = parts.concat();
    let length = u32::try_from(payload.len()).unwrap();
    [&[kind, 0, channel][..], &length.to_be_bytes(), &payload, b"\xce"].concat()
}

fn short(text: &[u8]) -> Vec<u8> {
    [&[u8::try_from(text.len()).unwrap()][..], text].concat()
}

fn long(content: &[u8]) -> Vec<u8> {
    [&u32::try_from(content.len()).unwrap().to_be_bytes()[..], content].concat()
}

/// Binds the queue to `amq.direct` by this name and publishes, through it, one message that bears the name everywhere.
fn publish_named(node: &Node, vhost: &str, queue: &str, name: &[u8]) {
    let named = short(name);
    let inner = long(&[&named[..], b"t\x01"].concat());
    let list = long(&[b"F", &inner[..]].concat());
    let table = long(&[&named[..], b"A", &list, b"\x04text", b"S", &long(name)].concat());
    let login = long(b"\0guest\0guest");
    let (vhost, queue, exchange) = (short(vhost.as_bytes()), short(queue.as_bytes()), short(b"amq.direct"));
    let conversation = [
        b"AMQP\0\0\x09\x01".to_vec(),
        // connection.start-ok, tune-ok, open; channel.open
        frame(1, 0, &[b"\0\x0a\0\x0b", &long(b""), &short(b"PLAIN"), &login, &short(b"en_US")]),
        frame(1, 0, &[b"\0\x0a\0\x1f", b"\0\x0a", b"\0\x02\0\0", b"\0\0"]),
        frame(1, 0, &[b"\0\x0a\0\x28", &vhost, b"\0\0"]),
        frame(1, 1, &[b"\0\x14\0\x0a", b"\0"]),
        // queue.bind without an answer, basic.publish with headers, correlation id, reply to, message id, type and app id
        frame(1, 1, &[b"\0\x32\0\x14", b"\0\0", &queue, &exchange, &named, b"\x01", &long(b"")]),
        frame(1, 1, &[b"\0\x3c\0\x28", b"\0\0", &exchange, &named, b"\0"]),
        frame(
            2,
            1,
            &[b"\0\x3c\0\0", &2_u64.to_be_bytes(), b"\x26\xa8", &table, &named, &named, &named, &named, &named],
        ),
        frame(3, 1, &[b"\xff\xfe"]),
        // connection.close
        frame(1, 0, &[b"\0\x0a\0\x32", b"\0\xc8", &short(b"OK"), b"\0\0\0\0"]),
    ];
    let mut socket = std::net::TcpStream::connect(node.place()).unwrap();
    socket.set_read_timeout(Some(PATIENCE)).unwrap();
    socket.write_all(&conversation.concat()).unwrap();
    // The broker agrees to the close once everything was done.
    let (mut answers, mut buffer) = (Vec::new(), [0; 4_096]);
    while !answers.ends_with(&frame(1, 0, &[b"\0\x0a\0\x33"])) {
        let count = socket.read(&mut buffer).unwrap();
        assert!(count > 0, "{}", answers.escape_ascii());
        answers.extend_from_slice(&buffer[..count]);
    }
}

async fn names_are_mended(node: &'static Node, vhost: String, options: &BrokerOptions) {
    let session = Session::open(options).await.unwrap();
    let (mut deliveries, settler) = consume(&session, "q", 10).await;
    tokio::task::spawn_blocking(move || publish_named(node, &vhost, "q", SURROGATE)).await.unwrap();
    publish(&session, numbered("q", 1)).await;
    let taken = take(&mut deliveries, 2).await;
    let (message, origin) = (&taken[0].message, &taken[0].origin);
    let Properties { correlation_id, reply_to, message_id, kind, app_id, .. } = &message.properties;
    for name in [correlation_id, reply_to, message_id, kind, app_id] {
        assert_eq!(name.as_deref(), Some("???"));
    }
    assert_eq!(origin.routing_key, "???");
    assert_eq!(message.headers.text("text"), Some("\u{fffd}\u{fffd}\u{fffd}"));
    let inner = Headers::from_iter([("???".to_owned(), Field::Bool(true))]);
    assert_eq!(message.headers.get("???"), Some(&Field::List(vec![Field::Table(inner)])));
    assert_eq!(&message.body[..], b"\xff\xfe");
    assert_eq!(bodies(&taken[1..]), ["0"]);
    settler.settle(taken.into_iter().map(|delivery| delivery.ack_token).collect()).unwrap();
    settler.close().await.unwrap();
    until_ready(&session, "q", 0).await;
    assert_eq!(session.state(), State::Open);
}

#[test]
fn names_that_are_not_utf_8_are_mended() {
    live(async |node, vhost| {
        let options = options(&node.url_for("guest:guest", &vhost));
        names_are_mended(node, vhost, &options).await;
    });
}

#[test]
fn names_that_are_not_utf_8_are_mended_in_an_encrypted_session() {
    live(async |node, vhost| {
        let Some((options, _)) = encrypted(node, &vhost) else { return };
        names_are_mended(node, vhost, &options).await;
    });
}
