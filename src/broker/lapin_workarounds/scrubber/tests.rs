//! What is mended, and what is left as it came.

use proptest::{collection::vec, prelude::*};

use super::*;

/// The lone surrogate `"\ud800"` as py-amqp encodes it.
pub(in crate::broker) const SURROGATE: &[u8] = b"\xed\xa0\x80";

pub(in crate::broker) fn frame(kind: u8, payload: &[u8]) -> Vec<u8> {
    let length = u32::try_from(payload.len()).unwrap();
    [&[kind, 0, 1][..], &length.to_be_bytes(), payload, &[FRAME_END]].concat()
}

fn short(text: &[u8]) -> Vec<u8> {
    [&[u8::try_from(text.len()).unwrap()][..], text].concat()
}

fn long(kind: u8, content: &[u8]) -> Vec<u8> {
    [&[kind][..], &u32::try_from(content.len()).unwrap().to_be_bytes(), content].concat()
}

fn field(name: &[u8], value: &[u8]) -> Vec<u8> {
    [&short(name)[..], value].concat()
}

fn method(class: u16, number: u16, arguments: &[&[u8]]) -> Vec<u8> {
    frame(METHOD, &[&class.to_be_bytes()[..], &number.to_be_bytes(), &arguments.concat()].concat())
}

fn header(flags: u16, properties: &[&[u8]]) -> Vec<u8> {
    frame(HEADER, &[&[0, 60, 0, 0][..], &9_u64.to_be_bytes(), &flags.to_be_bytes(), &properties.concat()].concat())
}

/// A header frame with nothing but this table's content.
fn headers(content: &[u8]) -> Vec<u8> {
    header(1 << 13, &[&long(0, content)[1..]])
}

/// One of each frame, with this text wherever a producer or a cut text may have put it.
pub(in crate::broker) fn conversation(text: &[u8]) -> Vec<u8> {
    let t = &short(text)[..];
    let nested = [field(text, b"t\x01"), field(b"plain", &long(b'S', b"\xff"))].concat();
    let list = [long(b'F', &nested), b"V".to_vec(), long(b'A', &long(b'F', &nested))].concat();
    let table = [
        field(text, &long(b'S', b"long \xff\xed\xa0\x80")),
        field("é".as_bytes(), b"I\xff\xff\xff\xff"),
        field(b"bytes", &long(b'x', b"\xc3")),
        field(text, &long(b'F', &nested)),
        field(b"list", &long(b'A', &list)),
        b"\x01bb\xff\x01BB\xff\x01ss\xff\xff\x01UU\xff\xff\x01uu\xff\xff\x01ii\xff\xff\xff\xff\x01ff\xff\xff\xff\xff"
            .to_vec(),
        b"\x01dd\xff\xff\xff\xff\xff\xff\xff\xff\x01DD\xff\xff\xff\xff\xff\x01TT\xff\xff\xff\xff\xff\xff\xff\xff"
            .to_vec(),
        b"\x01LL\xff\xff\xff\xff\xff\xff\xff\xff\x01ll\xff\xff\xff\xff\xff\xff\xff\xff\x01VV".to_vec(),
    ]
    .concat();
    let properties = header(
        0xFFFC,
        &[t, t, &long(0, &table)[1..], b"\x02", b"\xff", t, t, t, t, b"\xff\xff\xff\xff\xff\xff\xff\xff", t, t, t, t],
    );
    [
        method(60, 60, &[t, b"\xff\xff\xff\xff\xff\xff\xff\xff\x01", t, t]),
        properties,
        frame(BODY, b"\xff\xed\xa0\x80\xce\x01\x00"),
        frame(HEARTBEAT, b""),
        method(60, 50, &[b"\x01\xff", t, t, t]),
        header(0, &[]),
        method(60, 71, &[b"\xff\xff\xff\xff\xff\xff\xff\xff\x01", t, t, b"\xff\xff\xff\xff"]),
        method(20, 40, &[b"\x01\xff", t, b"\xff\xff\xff\xff"]),
        method(10, 50, &[b"\x01\xff", t, b"\xff\xff\xff\xff"]),
        // Looked at by nobody: queue.declare-ok, whose name is ours.
        method(50, 11, &[b"\x01\xff\xff\xff\xff\xff\xff\xff\xff\xff"]),
        frame(BODY, b""),
    ]
    .concat()
}

/// What a text has to become, by another way than the scrubber's.
pub(in crate::broker) fn mended(text: &[u8]) -> Vec<u8> {
    let chunks = text.utf8_chunks().map(|chunk| chunk.valid().to_owned() + &"?".repeat(chunk.invalid().len()));
    chunks.collect::<String>().into_bytes()
}

/// Scrubs a stream that is there as a whole.
fn scrubbed(bytes: &[u8]) -> Vec<u8> {
    let mut bytes = bytes.to_vec();
    assert_eq!(Scrubber::default().scrub(&mut bytes), bytes.len());
    bytes
}

#[test]
fn text_that_is_not_utf_8_is_mended_and_nothing_else_is() {
    assert_eq!(mended(SURROGATE), b"???");
    for text in [SURROGATE, b"\xff", b"caf\xc3", b"\x80a\xe2\x82b", b"a\xf0\x9f\x98", "é\0".as_bytes(), &[0xff; 255]] {
        assert_eq!(scrubbed(&conversation(text)), conversation(&mended(text)), "{text:x?}");
    }
}

#[test]
fn what_is_fine_is_unchanged() {
    for text in ["", "plain", "é\n", "日本語 😀", "\u{d7ff}\u{e000}\u{10ffff}"] {
        assert_eq!(scrubbed(&conversation(text.as_bytes())), conversation(text.as_bytes()), "{text}");
    }
}

#[test]
fn what_is_malformed_goes_on_untouched_and_the_next_frame_is_mended() {
    let name = field(SURROGATE, b"V");
    let mut unended = headers(&name);
    *unended.last_mut().unwrap() = 0;
    let mut large = headers(&name);
    large[3..HEAD].copy_from_slice(&u32::try_from(LARGEST).unwrap().to_be_bytes());
    large.resize(HEAD + LARGEST, b'x');
    large.push(FRAME_END);
    for malformed in [
        unended,
        large,
        headers(&[&name[..], b"\x01a?"].concat()),
        headers(&[&name[..], b"\x01aS\x00\x00\x00\x09x"].concat()),
        headers(&[&name[..], b"\x01aF\xff\xff\xff\xff"].concat()),
        headers(&[&name[..], b"\x01aA\x00\x00\x00\x01IVVVV"].concat()),
        headers(&[&name[..], b"\x09a"].concat()),
        header(1 << 10, &[&short(SURROGATE), b"more"]),
        header((1 << 10) | (1 << 9), &[&short(SURROGATE)]),
        header(0xFFFC, &[]),
        method(60, 60, &[&short(SURROGATE)]),
        frame(HEADER, b"\x00"),
        frame(METHOD, b""),
        // Another class has other properties.
        frame(HEADER, &[&[0, 90, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 4, 0][..], &short(SURROGATE)].concat()),
    ] {
        let (sent, wanted) = (method(20, 40, &[b"\0\0", &short(b"\xff")]), method(20, 40, &[b"\0\0", &short(b"?")]));
        assert_eq!(scrubbed(&[&malformed[..], &sent].concat()), [&malformed[..], &wanted].concat(), "{malformed:x?}");
    }
}

#[test]
fn a_broker_that_refuses_the_protocol_is_understood() {
    let mut scrubber = Scrubber::default();
    let mut bytes = *b"AMQP\0\0\x09\x01\xff";
    assert_eq!(scrubber.scrub(&mut bytes[..1]), 1);
    assert_eq!(scrubber.scrub(&mut bytes[1..]), 8);
    assert_eq!(&bytes, b"AMQP\0\0\x09\x01\xff");
}

#[test]
fn nesting_that_would_exhaust_the_stack_becomes_bytes() {
    for (kind, prefix) in [(b'A', &b""[..]), (b'F', b"\x01a")] {
        let mut value = b"V".to_vec();
        for _ in 0..4_000 {
            value = long(kind, &[prefix, &value].concat());
        }
        let sent = headers(&field(b"deep", &value));
        let got = scrubbed(&sent);
        let changed: Vec<_> = (0..sent.len()).filter(|&at| sent[at] != got[at]).collect();
        // class, weight, size, flags; the table's length and the field's name; then levels of one length each
        let first = HEAD + 14 + 4 + 5;
        assert_eq!(changed, [first + DEEPEST * (5 + prefix.len())]);
        assert_eq!((sent[changed[0]], got[changed[0]]), (kind, b'x'));
        assert_eq!(scrubbed(&got), got);
    }
}

proptest! {
    #[test]
    fn any_text_is_mended(text in vec(any::<u8>(), 0..=255)) {
        prop_assert_eq!(scrubbed(&conversation(&text)), conversation(&mended(&text)));
    }

    #[test]
    fn nothing_that_follows_changes_a_length_or_panics(
        noise in vec(any::<u8>(), 0..300),
        cuts in vec(0_usize..2_000, 0..8),
    ) {
        let valid = conversation(b"valid");
        let mut bytes = [&valid[..], &noise].concat();
        let mut scrubber = Scrubber::default();
        let (mut at, length) = (0, bytes.len());
        let mut ends: Vec<usize> = cuts.into_iter().map(|cut| cut.min(length)).collect();
        ends.sort_unstable();
        for end in ends.into_iter().chain([length]).filter(|end| *end > at).collect::<Vec<_>>() {
            if end > at {
                at += scrubber.scrub(&mut bytes[at..end]);
                prop_assert!(at <= end);
            }
        }
        prop_assert!(at >= valid.len());
        prop_assert_eq!(&bytes[..valid.len()], &valid[..]);
    }

    #[test]
    fn damage_never_changes_a_length_or_panics(at in any::<prop::sample::Index>(), byte in any::<u8>()) {
        let mut bytes = conversation(SURROGATE);
        let at = at.index(bytes.len());
        bytes[at] = byte;
        let passed = Scrubber::default().scrub(&mut bytes);
        prop_assert!(passed <= bytes.len());
        prop_assert!(passed == bytes.len() || missing(&bytes[passed..]) > 0);
    }

    #[test]
    fn any_payload_is_walked(
        (kind, start) in prop::sample::select(vec![(METHOD, [0, 60, 0, 60]), (METHOD, [0, 60, 0, 50]), (HEADER, [0, 60, 0, 0])]),
        noise in vec(any::<u8>(), 0..400),
    ) {
        let sent = frame(kind, &[&start[..], &noise].concat());
        prop_assert_eq!(scrubbed(&sent).len(), sent.len());
    }
}
