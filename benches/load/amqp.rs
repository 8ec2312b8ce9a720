//! As much of AMQP 0-9-1 as a load generator needs: blocking, one channel, frames written by hand.

use std::io::{Error, ErrorKind, Read, Result, Write};
use std::net::TcpStream;
use std::time::Duration;

use url::Url;

const METHOD: u8 = 1;
const HEADER: u8 = 2;
const BODY: u8 = 3;
const FRAME_END: u8 = 0xCE;
const BASIC: u16 = 60;
const DELIVER: u16 = 60;
const CHANNEL: u16 = 1;
/// Longest frame, as agreed with the broker, and how much of it is no payload.
const FRAME_MAX: u32 = 131_072;
const FRAME_OVERHEAD: usize = 8;

/// Writes the primitive types of the protocol into a frame payload.
#[derive(Default)]
pub(crate) struct Payload(Vec<u8>);

impl Payload {
    pub(crate) fn method(class: u16, method: u16) -> Self {
        Self::default().short(class).short(method)
    }

    pub(crate) fn octet(mut self, value: u8) -> Self {
        self.0.push(value);
        self
    }

    pub(crate) fn short(mut self, value: u16) -> Self {
        self.0.extend(value.to_be_bytes());
        self
    }

    pub(crate) fn long(mut self, value: u32) -> Self {
        self.0.extend(value.to_be_bytes());
        self
    }

    pub(crate) fn long_long(mut self, value: u64) -> Self {
        self.0.extend(value.to_be_bytes());
        self
    }

    pub(crate) fn short_text(mut self, text: &str) -> Self {
        self.0.push(text.len() as u8);
        self.0.extend(text.as_bytes());
        self
    }

    pub(crate) fn long_text(self, text: &str) -> Self {
        let mut payload = self.long(text.len() as u32);
        payload.0.extend(text.as_bytes());
        payload
    }

    /// A table, given as the payload of its entries.
    pub(crate) fn table(self, entries: &Self) -> Self {
        let mut payload = self.long(entries.0.len() as u32);
        payload.0.extend(&entries.0);
        payload
    }

    fn into_frame(self, kind: u8, channel: u16) -> Vec<u8> {
        let mut frame = Self::default().octet(kind).short(channel).long(self.0.len() as u32).0;
        frame.extend(self.0);
        frame.push(FRAME_END);
        frame
    }
}

/// The frames of one message to the default exchange; `properties` starts with the property flags.
pub(crate) fn publish_frames(queue: &str, properties: Payload, body: &[u8]) -> Vec<u8> {
    let method = Payload::method(BASIC, 40).short(0).short_text("").short_text(queue).octet(0);
    let mut header = Payload::method(BASIC, 0).long_long(body.len() as u64);
    header.0.extend(properties.0);
    let mut frames = method.into_frame(METHOD, CHANNEL);
    frames.extend(header.into_frame(HEADER, CHANNEL));
    for part in body.chunks(FRAME_MAX as usize - FRAME_OVERHEAD) {
        frames.extend(Payload(part.to_vec()).into_frame(BODY, CHANNEL));
    }
    frames
}

/// One connection with one channel.
pub(crate) struct Client {
    socket: TcpStream,
    buffer: Vec<u8>,
    start: usize,
    delivery: Delivery,
}

/// A delivery whose frames are still arriving.
#[derive(Default)]
struct Delivery {
    missing: u64,
    correlation_id: Vec<u8>,
    body: Vec<u8>,
}

struct Frame<'a> {
    kind: u8,
    payload: &'a [u8],
}

impl Client {
    /// Connects, logs in and opens the channel; `silence` bounds every read.
    pub(crate) fn connect(url: &str, silence: Duration) -> Result<Self> {
        let url = Url::parse(url).map_err(|error| invalid(format!("broker url: {error}")))?;
        let text = |part: &str| percent_encoding::percent_decode_str(part).decode_utf8_lossy().into_owned();
        let host = url.host_str().unwrap_or("localhost");
        let user = if url.username().is_empty() { "guest" } else { url.username() };
        let vhost = text(url.path().strip_prefix('/').unwrap_or_default());

        let socket = TcpStream::connect((host, url.port().unwrap_or(5672)))?;
        socket.set_nodelay(true)?;
        socket.set_read_timeout(Some(silence))?;
        let mut client = Self { socket, buffer: Vec::new(), start: 0, delivery: Delivery::default() };

        client.send(b"AMQP\x00\x00\x09\x01")?;
        client.expect(10, 10)?;
        let login = format!("\0{}\0{}", text(user), text(url.password().unwrap_or("guest")));
        let start_ok = Payload::method(10, 11).long(0).short_text("PLAIN").long_text(&login).short_text("en_US");
        client.send(&start_ok.into_frame(METHOD, 0))?;
        client.expect(10, 30)?;
        // Heartbeat 0: a blocking client that waits for an answer could not send any.
        let tune_ok = Payload::method(10, 31).short(16).long(FRAME_MAX).short(0);
        let open =
            Payload::method(10, 40).short_text(if vhost.is_empty() { "/" } else { &vhost }).short_text("").octet(0);
        client.send(&[tune_ok.into_frame(METHOD, 0), open.into_frame(METHOD, 0)].concat())?;
        client.expect(10, 41)?;
        client.call(Payload::method(20, 10).short_text(""), 20, 11)?;
        Ok(client)
    }

    /// Declares a durable classic queue; `auto_delete` is how Celery declares a reply queue.
    pub(crate) fn declare(&mut self, queue: &str, auto_delete: bool) -> Result<()> {
        let flags = if auto_delete { 0b1010 } else { 0b0010 };
        let mut arguments = Payload::default();
        if auto_delete {
            arguments = arguments.short_text("x-expires").octet(b'I').long(86_400_000);
        }
        let declare = Payload::method(50, 10).short(0).short_text(queue).octet(flags).table(&arguments);
        self.call(declare, 50, 11)
    }

    /// Removes every message that waits in a queue.
    pub(crate) fn purge(&mut self, queue: &str) -> Result<()> {
        self.call(Payload::method(50, 30).short(0).short_text(queue).octet(0), 50, 31)
    }

    /// Begins to consume without acknowledgements.
    pub(crate) fn consume(&mut self, queue: &str) -> Result<()> {
        let no_ack = 0b0010;
        let consume = Payload::method(BASIC, 20).short(0).short_text(queue).short_text("load").octet(no_ack).long(0);
        self.call(consume, BASIC, 21)
    }

    pub(crate) fn send(&mut self, bytes: &[u8]) -> Result<()> {
        self.socket.write_all(bytes)
    }

    /// Reads once from the socket and hands each complete delivery on as correlation id and body.
    pub(crate) fn receive(&mut self, mut on_delivery: impl FnMut(&[u8], &[u8])) -> Result<()> {
        self.fill()?;
        while let Some((frame, next)) = next_frame(&self.buffer, self.start)? {
            if self.delivery.take(&frame)? {
                on_delivery(&self.delivery.correlation_id, &self.delivery.body);
            }
            self.start = next;
        }
        Ok(())
    }

    fn call(&mut self, request: Payload, class: u16, method: u16) -> Result<()> {
        self.send(&request.into_frame(METHOD, CHANNEL))?;
        self.expect(class, method)
    }

    fn expect(&mut self, class: u16, method: u16) -> Result<()> {
        loop {
            if let Some((frame, next)) = next_frame(&self.buffer, self.start)? {
                let found = (frame.kind == METHOD).then(|| method_of(frame.payload)).transpose()?;
                self.start = next;
                match found {
                    Some(found) if found == (class, method) => return Ok(()),
                    Some(found) => return Err(invalid(format!("waited for {class}.{method}, got {found:?}"))),
                    None => continue,
                }
            }
            self.fill()?;
        }
    }

    fn fill(&mut self) -> Result<()> {
        self.buffer.drain(..self.start);
        self.start = 0;
        let old = self.buffer.len();
        self.buffer.resize(old + 65_536, 0);
        let read = self.socket.read(&mut self.buffer[old..]);
        self.buffer.truncate(old + *read.as_ref().unwrap_or(&0));
        match read? {
            0 => Err(ErrorKind::UnexpectedEof.into()),
            _ => Ok(()),
        }
    }
}

impl Delivery {
    /// Takes the next frame in; true when it completes the delivery.
    fn take(&mut self, frame: &Frame<'_>) -> Result<bool> {
        match frame.kind {
            METHOD if method_of(frame.payload)? == (BASIC, DELIVER) => Ok(false),
            METHOD => Err(invalid(format!("unexpected method {:?}", method_of(frame.payload)?))),
            HEADER => {
                self.missing = u64::from_be_bytes(bytes(frame.payload, 4)?);
                self.body.clear();
                correlation_id(frame.payload, &mut self.correlation_id)?;
                Ok(self.missing == 0)
            }
            BODY => {
                self.body.extend(frame.payload);
                self.missing = self.missing.saturating_sub(frame.payload.len() as u64);
                Ok(self.missing == 0)
            }
            _ => Ok(false),
        }
    }
}

fn next_frame(buffer: &[u8], start: usize) -> Result<Option<(Frame<'_>, usize)>> {
    let rest = &buffer[start..];
    if rest.len() < 7 {
        return Ok(None);
    }
    let size = u32::from_be_bytes(bytes(rest, 3)?) as usize;
    match rest.get(7 + size) {
        None => Ok(None),
        Some(&FRAME_END) => Ok(Some((Frame { kind: rest[0], payload: &rest[7..7 + size] }, start + 8 + size))),
        Some(_) => Err(invalid("frame without its end".to_owned())),
    }
}

/// Class and method; a close of the broker is an error with the broker's own words.
fn method_of(payload: &[u8]) -> Result<(u16, u16)> {
    let method = (u16::from_be_bytes(bytes(payload, 0)?), u16::from_be_bytes(bytes(payload, 2)?));
    if matches!(method, (10, 50) | (20, 40)) {
        let code = u16::from_be_bytes(bytes(payload, 4)?);
        let text = payload.get(7..7 + usize::from(payload[6])).unwrap_or_default();
        return Err(invalid(format!("closed by the broker: {code} {}", String::from_utf8_lossy(text))));
    }
    Ok(method)
}

/// Skips the properties before the correlation id: content type, content encoding, headers, delivery mode, priority.
fn correlation_id(header: &[u8], into: &mut Vec<u8>) -> Result<()> {
    let flags = u16::from_be_bytes(bytes(header, 12)?);
    let mut at = 14;
    for bit in [15, 14] {
        if flags & (1 << bit) != 0 {
            at += 1 + usize::from(bytes::<1>(header, at)?[0]);
        }
    }
    if flags & (1 << 13) != 0 {
        at += 4 + u32::from_be_bytes(bytes(header, at)?) as usize;
    }
    at += (flags & (1 << 12) != 0) as usize + (flags & (1 << 11) != 0) as usize;
    into.clear();
    if flags & (1 << 10) != 0 {
        let length = usize::from(bytes::<1>(header, at)?[0]);
        into.extend(header.get(at + 1..at + 1 + length).unwrap_or_default());
    }
    Ok(())
}

fn bytes<const N: usize>(from: &[u8], at: usize) -> Result<[u8; N]> {
    let slice = from.get(at..at + N).ok_or_else(|| invalid("short frame".to_owned()))?;
    slice.try_into().map_err(|_| invalid("short frame".to_owned()))
}

fn invalid(text: String) -> Error {
    Error::new(ErrorKind::InvalidData, text)
}
