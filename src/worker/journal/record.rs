//! The lines of a journal file.

use std::borrow::Cow;
use std::ops::Range;

use serde::{Deserialize, Serialize};
use serde_json::value::RawValue;

/// One line, read back: exactly one of the id fields is set.
#[derive(Deserialize, Default)]
#[serde(default)]
struct Line<'a> {
    #[serde(borrow)]
    started: Option<Cow<'a, str>>,
    at: i64,
    #[serde(borrow)]
    finished: Option<Cow<'a, str>>,
    began: i64,
    #[serde(borrow)]
    answer: Option<&'a RawValue>,
    #[serde(borrow)]
    ended: Option<Cow<'a, str>>,
    #[serde(borrow)]
    settled: Option<Cow<'a, str>>,
    #[serde(borrow)]
    crashed: Option<Cow<'a, str>>,
    times: u32,
}

/// What a line says about a command.
#[derive(Debug, PartialEq, Eq)]
pub(super) enum Record<'a> {
    /// It began to run, at Unix microseconds.
    Started { id: Cow<'a, str>, at: i64 },
    /// A write or delete is over that began at Unix microseconds; its answer stands at this range of the line.
    Finished { id: Cow<'a, str>, began: i64, answer: Range<usize> },
    /// It is over and may run again: a read, or a write that was abandoned.
    Ended { id: Cow<'a, str> },
    /// Its acknowledgement was sent.
    Settled { id: Cow<'a, str> },
    /// It was running when a worker died, so many times by now; the first such run began at Unix microseconds.
    Crashed { id: Cow<'a, str>, times: u32, at: i64 },
}

impl<'a> Record<'a> {
    /// Reads one line without its newline; `None` for the heading and for anything damaged (the file is written, not
    /// synced, so a power cut may leave anything).
    pub(super) fn read(line: &'a [u8]) -> Option<Self> {
        let text = std::str::from_utf8(line).ok()?;
        let parsed: Line<'a> = serde_json::from_str(text).ok()?;
        if let Some(id) = parsed.started {
            return Some(Self::Started { id, at: parsed.at });
        }
        if let Some(id) = parsed.finished {
            let answer = parsed.answer?.get();
            let begin = answer.as_ptr() as usize - text.as_ptr() as usize;
            return Some(Self::Finished { id, began: parsed.began, answer: begin..begin + answer.len() });
        }
        if let Some(id) = parsed.ended {
            return Some(Self::Ended { id });
        }
        if let Some(id) = parsed.settled {
            return Some(Self::Settled { id });
        }
        parsed.crashed.map(|id| Self::Crashed { id, times: parsed.times, at: parsed.at })
    }
}

/// Writers of the lines; each appends one line with its newline.
pub(super) mod write {
    use super::{Serialize, string};

    #[derive(Serialize)]
    struct Heading<'a> {
        format: u32,
        worker: &'a str,
        pid: u32,
    }

    pub(in super::super) fn heading(out: &mut Vec<u8>, worker: &str) {
        let heading = Heading { format: 1, worker, pid: std::process::id() };
        // A struct of two integers and a string always serializes.
        out.extend(serde_json::to_vec(&heading).unwrap_or_default());
        out.push(b'\n');
    }

    pub(in super::super) fn started(out: &mut Vec<u8>, id: &str, at: i64) {
        out.extend_from_slice(b"{\"started\":");
        string(out, id);
        out.extend_from_slice(b",\"at\":");
        out.extend_from_slice(at.to_string().as_bytes());
        out.extend_from_slice(b"}\n");
    }

    /// `answer` is JSON text without line breaks.
    pub(in super::super) fn finished(out: &mut Vec<u8>, id: &str, began: i64, answer: &str) {
        out.extend_from_slice(b"{\"finished\":");
        string(out, id);
        out.extend_from_slice(format!(",\"began\":{began},\"answer\":").as_bytes());
        out.extend_from_slice(answer.as_bytes());
        out.extend_from_slice(b"}\n");
    }

    pub(in super::super) fn ended(out: &mut Vec<u8>, id: &str) {
        out.extend_from_slice(b"{\"ended\":");
        string(out, id);
        out.extend_from_slice(b"}\n");
    }

    pub(in super::super) fn settled(out: &mut Vec<u8>, id: &str) {
        out.extend_from_slice(b"{\"settled\":");
        string(out, id);
        out.extend_from_slice(b"}\n");
    }

    pub(in super::super) fn crashed(out: &mut Vec<u8>, id: &str, times: u32, at: i64) {
        out.extend_from_slice(b"{\"crashed\":");
        string(out, id);
        out.extend_from_slice(b",\"times\":");
        out.extend_from_slice(format!("{times},\"at\":{at}}}\n").as_bytes());
    }
}

fn string(out: &mut Vec<u8>, text: &str) {
    let mut quoted = String::with_capacity(text.len() + 2);
    crate::json::write_string(&mut quoted, text);
    out.extend_from_slice(quoted.as_bytes());
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn lines_are_read_as_written() {
        let id = "a\"\\\n\u{1}é";
        let mut out = Vec::new();
        write::heading(&mut out, "w@h");
        write::started(&mut out, id, -5);
        write::finished(&mut out, id, 9, "{\"x\":[1]}");
        write::ended(&mut out, id);
        write::settled(&mut out, id);
        write::crashed(&mut out, id, 3, 7);
        let lines: Vec<&[u8]> = out.split(|byte| *byte == b'\n').collect();
        assert_eq!(lines.len(), 7);
        assert_eq!(Record::read(lines[0]), None);
        assert_eq!(Record::read(lines[1]), Some(Record::Started { id: id.into(), at: -5 }));
        let Some(Record::Finished { answer, began: 9, .. }) = Record::read(lines[2]) else { panic!("not finished") };
        assert_eq!(&lines[2][answer], b"{\"x\":[1]}");
        assert_eq!(Record::read(lines[3]), Some(Record::Ended { id: id.into() }));
        assert_eq!(Record::read(lines[4]), Some(Record::Settled { id: id.into() }));
        assert_eq!(Record::read(lines[5]), Some(Record::Crashed { id: id.into(), times: 3, at: 7 }));
    }

    #[test]
    fn damaged_lines_say_nothing() {
        for line in
            [&b""[..], b"{\"started\":\"a\"", b"\0\0\0", b"{\"finished\":\"a\"}", b"{\"format\":1}", b"[]", b"\xff"]
        {
            assert_eq!(Record::read(line), None);
        }
    }
}
