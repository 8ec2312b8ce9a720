//! The mender of what the broker sends: text and nesting that the library cannot read.

/// A frame's type, channel and size; AMQP 0-9-1, 2.3.5.
const HEAD: usize = 7;

/// What ends a frame.
const FRAME_END: u8 = 0xCE;

const METHOD: u8 = 1;
const HEADER: u8 = 2;
const BODY: u8 = 3;
const HEARTBEAT: u8 = 8;

/// A method or header frame above this is not looked at: no broker sends one.
const LARGEST: usize = 1 << 20;

/// Tables and lists inside each other beyond this are handed on as bytes: the library reads them by recursion.
const DEEPEST: usize = 128;

/// Mends, in what a broker sends, the text that would cost the connection; follows the frames across reads.
///
/// The library refuses a frame whose short strings (names, ids, routing keys) are not UTF-8 and ends the connection. The broker
/// lets a producer send any bytes there, and delivers the same message to the next connection, for ever. Each byte that breaks
/// UTF-8 becomes `?`, and nesting that would exhaust the library's stack becomes a byte array: no length changes. What is
/// malformed beyond that goes on untouched.
#[derive(Debug, Default)]
pub(super) struct Scrubber {
    /// So many bytes more are nobody's business here.
    passing: usize,
    /// Bytes of bodies among what was passed on, since they were last asked for.
    bodies: u64,
}

/// What the bytes at the beginning of a frame ask for.
enum Frame {
    /// Too few to tell.
    Begun,
    /// So long, and to be looked at as a whole.
    Text(usize),
    /// So long, and passed on as it comes.
    Opaque(usize),
}

impl Frame {
    fn of(bytes: &[u8]) -> Self {
        let Some(&[kind, _, _, a, b, c, d]) = bytes.first_chunk::<HEAD>() else {
            // A broker that refuses the protocol sends its own header and nothing else.
            let is_frame = bytes.first().is_none_or(|kind| [METHOD, HEADER, BODY, HEARTBEAT].contains(kind));
            return if is_frame { Self::Begun } else { Self::Opaque(usize::MAX) };
        };
        let whole = HEAD.saturating_add(u32::from_be_bytes([a, b, c, d]) as usize).saturating_add(1);
        match kind {
            METHOD | HEADER if whole <= LARGEST => Self::Text(whole),
            METHOD | HEADER | BODY | HEARTBEAT => Self::Opaque(whole),
            _ => Self::Opaque(usize::MAX),
        }
    }
}

/// Tells how many bytes are missing until the frame that begins with these can be passed on.
pub(super) fn missing(begun: &[u8]) -> usize {
    match Frame::of(begun) {
        Frame::Begun => HEAD - begun.len(),
        Frame::Text(whole) => whole.saturating_sub(begun.len()),
        Frame::Opaque(_) => 0,
    }
}

impl Scrubber {
    /// Counts the bytes of bodies whose frames began since the last time.
    pub(super) const fn take_bodies(&mut self) -> u64 {
        std::mem::replace(&mut self.bodies, 0)
    }

    /// Mends the bytes that follow those passed on before and returns how many of these may be passed on; the rest is the
    /// beginning of a frame, to be shown again with what follows it.
    pub(super) fn scrub(&mut self, bytes: &mut [u8]) -> usize {
        let mut at = 0;
        while at < bytes.len() {
            let rest = &mut bytes[at..];
            if self.passing > 0 {
                let passed = self.passing.min(rest.len());
                self.passing -= passed;
                at += passed;
                continue;
            }
            match Frame::of(rest) {
                Frame::Opaque(whole) => {
                    if rest.first() == Some(&BODY) {
                        self.bodies += whole.saturating_sub(HEAD + 1) as u64;
                    }
                    self.passing = whole;
                }
                Frame::Text(whole) if whole <= rest.len() => {
                    mend(&mut rest[..whole]);
                    at += whole;
                }
                Frame::Begun | Frame::Text(_) => return at,
            }
        }
        at
    }
}

/// Mends one whole method or header frame.
fn mend(frame: &mut [u8]) {
    let [kind, .., FRAME_END] = *frame else { return };
    let end = frame.len() - 1;
    let payload = &mut frame[HEAD..end];
    // Looked at first: what turns out to be malformed is left as it came.
    let mut walk = Walk { payload, at: 0, repairs: false, is_broken: false };
    if walk.frame(kind).is_some() && walk.is_broken {
        tracing::debug!("a frame of the broker held text that is not utf-8, or tables too deep; it was mended");
        Walk { payload, at: 0, repairs: true, is_broken: false }.frame(kind);
    }
}

/// A place in a payload; each step returns `None` where the payload is malformed or holds nothing of interest.
struct Walk<'a> {
    payload: &'a mut [u8],
    at: usize,
    repairs: bool,
    is_broken: bool,
}

impl Walk<'_> {
    fn frame(&mut self, kind: u8) -> Option<()> {
        let class = self.short()?;
        if kind == HEADER {
            return if class == 60 { self.properties() } else { None };
        }
        match (class, self.short()?) {
            // connection.close and channel.close: a broker cuts their text at 255 bytes, not at a character.
            (10, 50) | (20, 40) => {
                self.skip(2)?;
                self.short_string()
            }
            // basic.return: reply code, reply text, exchange, routing key
            (60, 50) => {
                self.skip(2)?;
                self.short_string()?;
                self.short_string()?;
                self.short_string()
            }
            // basic.deliver: consumer tag, delivery tag, redelivered, exchange, routing key
            (60, 60) => {
                self.short_string()?;
                self.skip(9)?;
                self.short_string()?;
                self.short_string()
            }
            // basic.get-ok: delivery tag, redelivered, exchange, routing key, count
            (60, 71) => {
                self.skip(9)?;
                self.short_string()?;
                self.short_string()
            }
            _ => None,
        }
    }

    /// Weight, body size, flags and the properties of class basic from the highest flag down.
    fn properties(&mut self) -> Option<()> {
        self.skip(2 + 8)?;
        let flags = self.short()?;
        for bit in (2..16_u8).rev().filter(|bit| flags & (1 << bit) != 0) {
            match bit {
                13 => self.table(0)?,     // headers
                12 | 11 => self.skip(1)?, // delivery mode, priority
                6 => self.skip(8)?,       // timestamp
                _ => self.short_string()?,
            }
        }
        (self.at == self.payload.len()).then_some(())
    }

    fn table(&mut self, depth: usize) -> Option<()> {
        let end = self.end()?;
        while self.at < end {
            self.short_string()?;
            self.value(depth)?;
        }
        (self.at == end).then_some(())
    }

    fn list(&mut self, depth: usize) -> Option<()> {
        let end = self.end()?;
        while self.at < end {
            self.value(depth)?;
        }
        (self.at == end).then_some(())
    }

    fn value(&mut self, depth: usize) -> Option<()> {
        let kind = self.payload.get_mut(self.at)?;
        self.at += 1;
        match *kind {
            b'F' | b'A' if depth == DEEPEST => {
                self.is_broken = true;
                if self.repairs {
                    *kind = b'x';
                }
                self.at = self.end()?;
                Some(())
            }
            b'F' => self.table(depth + 1),
            b'A' => self.list(depth + 1),
            b'S' | b'x' => {
                self.at = self.end()?;
                Some(())
            }
            b'V' => Some(()),
            b't' | b'b' | b'B' => self.skip(1),
            b's' | b'U' | b'u' => self.skip(2),
            b'I' | b'i' | b'f' => self.skip(4),
            b'D' => self.skip(5),
            b'L' | b'l' | b'd' | b'T' => self.skip(8),
            _ => None,
        }
    }

    fn short_string(&mut self) -> Option<()> {
        let length = usize::from(*self.payload.get(self.at)?);
        let start = self.at + 1;
        let text = self.payload.get_mut(start..start + length)?;
        if std::str::from_utf8(text).is_err() {
            self.is_broken = true;
            if self.repairs {
                make_text(text);
            }
        }
        self.at = start + length;
        Some(())
    }

    /// Reads a length of four bytes and returns where what has this length ends.
    fn end(&mut self) -> Option<usize> {
        let length = u32::from_be_bytes(*self.payload.get(self.at..)?.first_chunk()?);
        self.at += 4;
        let end = self.at.checked_add(length as usize)?;
        (end <= self.payload.len()).then_some(end)
    }

    fn short(&mut self) -> Option<u16> {
        let number = u16::from_be_bytes(*self.payload.get(self.at..)?.first_chunk()?);
        self.at += 2;
        Some(number)
    }

    fn skip(&mut self, count: usize) -> Option<()> {
        self.at += count;
        (self.at <= self.payload.len()).then_some(())
    }
}

/// Replaces each byte that breaks UTF-8.
fn make_text(mut bytes: &mut [u8]) {
    while let Err(fault) = std::str::from_utf8(bytes) {
        let (start, length) = (fault.valid_up_to(), fault.error_len());
        let end = length.map_or(bytes.len(), |length| start + length);
        bytes[start..end].fill(b'?');
        bytes = &mut bytes[end..];
    }
}

#[cfg(test)]
pub(super) mod tests;
