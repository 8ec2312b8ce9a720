//! The lines of a journal file.

use std::borrow::Cow;

use serde::Deserialize;
use serde_json::value::RawValue;

use super::identity::Digest;

/// One line, read back: exactly one of the naming fields is set. Those in the past tense are of the earlier version, which
/// wrote ids in the place of digests.
#[derive(Deserialize, Default)]
#[serde(default)]
struct Line<'a> {
    #[serde(borrow)]
    start: Option<Cow<'a, str>>,
    #[serde(borrow)]
    started: Option<Cow<'a, str>>,
    at: i64,
    alone: bool,
    runs: Option<u32>,
    #[serde(borrow)]
    finish: Option<Cow<'a, str>>,
    #[serde(borrow)]
    finished: Option<Cow<'a, str>>,
    began: i64,
    again: bool,
    counts: Option<[u32; 4]>,
    stands: Option<(u64, usize)>,
    #[serde(borrow)]
    answer: Option<&'a RawValue>,
    #[serde(borrow)]
    end: Option<Cow<'a, str>>,
    #[serde(borrow)]
    ended: Option<Cow<'a, str>>,
    #[serde(borrow)]
    settle: Option<Cow<'a, str>>,
    #[serde(borrow)]
    settled: Option<Cow<'a, str>>,
    #[serde(borrow)]
    crash: Option<Cow<'a, str>>,
    #[serde(borrow)]
    crashed: Option<Cow<'a, str>>,
    times: u32,
    #[serde(borrow)]
    repeat: Option<Cow<'a, str>>,
    session: Option<i64>,
    doubt: Option<i64>,
    closed: Option<i64>,
}

/// How often a command was answered, by what became of the acknowledgements.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub(super) struct Counts {
    /// Answered in this session and not acknowledged yet.
    pub(super) in_hand: u32,
    /// Answered in an earlier session and never acknowledged.
    pub(super) owed: u32,
    /// Acknowledged in this session.
    pub(super) settled: u32,
    /// Acknowledged in a session that ended without the broker's word that it is closed.
    pub(super) doubtful: u32,
}

impl Counts {
    /// Tells whether a redelivered command may be one of those.
    pub(super) const fn may_return(self) -> bool {
        self.owed > 0 || self.doubtful > 0
    }
}

/// What a line says.
#[derive(Debug, PartialEq, Eq)]
pub(super) enum Record {
    /// A command began to run, at Unix microseconds; `alone`: with nothing beside it until its end. `runs` says how many such
    /// there are, at the head of a segment.
    Started { digest: Digest, at: i64, alone: bool, runs: Option<u32> },
    /// A write or delete is over that began at Unix microseconds. Its answer's line stands in the file of answers at this offset
    /// and has this length; `None`: it stands in this line, as the earlier version wrote it.
    Finished { digest: Digest, began: i64, stands: Option<(u64, usize)>, how: Finish },
    /// It is over and may run again: a read, or a write that was abandoned.
    Ended { digest: Digest },
    /// Its acknowledgement was sent.
    Settled { digest: Digest },
    /// It was running when a worker died: alone so many times by now. The first such run began at Unix microseconds.
    Crashed { digest: Digest, times: u32, at: i64 },
    /// A known answer of this writer is given again.
    Repeated { digest: Digest },
    /// A session begins; the one before it, unless it was closed, leaves doubt.
    Session,
    /// The broker was silent: what was acknowledged in this session until now may not have arrived.
    Doubt,
    /// The broker said that the session is closed.
    Closed,
}

/// How an answer came into a writer's journal.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Finish {
    /// The command ran.
    Ran,
    /// It is another writer's answer, given again.
    Again,
    /// It stands here with all that is known of it.
    Kept(Counts),
}

impl Record {
    /// Reads one line without its newline; `None` for the heading and for anything damaged (the file is written, not
    /// synced, so a power cut may leave anything).
    pub(super) fn read(line: &[u8]) -> Option<Self> {
        let text = std::str::from_utf8(line).ok()?;
        let line: Line<'_> = serde_json::from_str(text).ok()?;
        let named = |digest: Option<Cow<'_, str>>, id: Option<Cow<'_, str>>| {
            digest.map_or_else(|| id.map(|id| Digest::earlier(&id)), |digest| Digest::parse(&digest))
        };
        if let Some(digest) = named(line.start, line.started) {
            return Some(Self::Started { digest, at: line.at, alone: line.alone, runs: line.runs });
        }
        if let Some(digest) = named(line.finish, line.finished) {
            if line.stands.is_none() {
                line.answer?;
            }
            let how = match (line.counts, line.again) {
                (Some([in_hand, owed, settled, doubtful]), _) => {
                    Finish::Kept(Counts { in_hand, owed, settled, doubtful })
                }
                (None, true) => Finish::Again,
                (None, false) => Finish::Ran,
            };
            return Some(Self::Finished { digest, began: line.began, stands: line.stands, how });
        }
        if let Some(digest) = named(line.end, line.ended) {
            return Some(Self::Ended { digest });
        }
        if let Some(digest) = named(line.settle, line.settled) {
            return Some(Self::Settled { digest });
        }
        if let Some(digest) = named(line.crash, None) {
            return Some(Self::Crashed { digest, times: line.times, at: line.at });
        }
        if let Some(id) = line.crashed {
            // The earlier version also counted deaths while others ran; those make a suspect and count no further.
            return Some(Self::Crashed { digest: Digest::earlier(&id), times: 0, at: line.at });
        }
        if let Some(digest) = named(line.repeat, None) {
            return Some(Self::Repeated { digest });
        }
        let session = line.session.map(|_| Self::Session);
        session.or(line.doubt.map(|_| Self::Doubt)).or(line.closed.map(|_| Self::Closed))
    }
}

/// Reads a line of the file of answers, or one of the earlier version that holds an answer; `None` when it is to another command or
/// damaged.
pub(super) fn answer_in(line: &[u8], digest: Digest) -> Option<&str> {
    let text = std::str::from_utf8(line).ok()?;
    if let Some((name, answer)) = text.split_once(' ')
        && Digest::parse(name) == Some(digest)
    {
        return Some(answer);
    }
    let line: Line<'_> = serde_json::from_str(text).ok()?;
    (Digest::earlier(&line.finished?) == digest).then(|| line.answer.map(RawValue::get)).flatten()
}

/// What follows in a file, or stands in it, is of the earlier version.
const EARLIER: &[u8] = b"{\"earlier\":true}";

/// Tells whether a line says that the earlier version wrote what follows, or something that was taken over.
pub(super) fn is_earlier(line: &[u8]) -> bool {
    line.starts_with(b"{\"format\":1,") || line == EARLIER
}

/// Writers of the lines; each appends one line with its newline.
pub(super) mod write {
    use std::io::Write as _;

    use serde::Serialize;

    use super::{Counts, Finish};
    use crate::worker::journal::identity::{Digest, Identity};

    #[derive(Serialize)]
    struct Heading<'a> {
        format: u32,
        worker: &'a str,
        pid: u32,
    }

    /// Appends formatted text; writing to memory cannot fail.
    macro_rules! line {
        ($out:expr, $($format:tt)*) => {
            drop(writeln!($out, $($format)*))
        };
    }

    pub(in super::super) fn heading(out: &mut Vec<u8>, worker: &str) {
        let heading = Heading { format: 2, worker, pid: std::process::id() };
        // A struct of two integers and a string always serializes.
        out.extend(serde_json::to_vec(&heading).unwrap_or_default());
        out.push(b'\n');
    }

    pub(in super::super) fn started(out: &mut Vec<u8>, identity: &Identity, at: i64, alone: bool) {
        drop(write!(out, "{{\"start\":\"{}\",\"at\":{at}", identity.digest));
        if alone {
            out.extend_from_slice(b",\"alone\":true");
        }
        // For people who look for an id; what is known of a command is found by its digest.
        let Identity { id, task, retries, body, stamp, .. } = identity;
        for (name, text) in [(",\"id\":", id), (",\"task\":", task)] {
            out.extend_from_slice(name.as_bytes());
            let mut quoted = String::with_capacity(text.len() + 2);
            crate::json::write_string(&mut quoted, text);
            out.extend_from_slice(quoted.as_bytes());
        }
        if *retries != 0 {
            drop(write!(out, ",\"retries\":{retries}"));
        }
        if let Some(stamp) = stamp {
            drop(write!(out, ",\"stamp\":{stamp}"));
        }
        line!(out, ",\"body\":\"{body}\"}}");
    }

    /// Writes at the head of a segment that a command runs.
    pub(in super::super) fn runs(out: &mut Vec<u8>, digest: Digest, at: i64, alone: bool, runs: u32) {
        line!(out, "{{\"start\":\"{digest}\",\"at\":{at},\"alone\":{alone},\"runs\":{runs}}}");
    }

    /// Writes that an answer was given which stands at an offset in the file of answers, so many bytes long.
    pub(in super::super) fn finished(
        out: &mut Vec<u8>,
        digest: Digest,
        (began, at): (i64, Option<i64>),
        (offset, length): (u64, usize),
        how: Finish,
    ) {
        let how = match how {
            Finish::Ran => String::new(),
            Finish::Again => ",\"again\":true".to_owned(),
            Finish::Kept(Counts { in_hand, owed, settled, doubtful }) => {
                format!(",\"counts\":[{in_hand},{owed},{settled},{doubtful}]")
            }
        };
        // For people, and for `filestorage.outcome`.
        let at = at.map(|at| format!(",\"at\":{at}")).unwrap_or_default();
        line!(out, "{{\"finish\":\"{digest}\",\"began\":{began}{at}{how},\"stands\":[{offset},{length}]}}");
    }

    /// Writes a line of the file of answers and returns its length. `answer` is JSON text without line breaks.
    pub(in super::super) fn answer(out: &mut Vec<u8>, digest: Digest, answer: &str) -> usize {
        let begin = out.len();
        line!(out, "{digest} {answer}");
        out.len() - begin - 1
    }

    pub(in super::super) fn ended(out: &mut Vec<u8>, digest: Digest, at: i64) {
        line!(out, "{{\"end\":\"{digest}\",\"at\":{at}}}");
    }

    pub(in super::super) fn settled(out: &mut Vec<u8>, digest: Digest) {
        line!(out, "{{\"settle\":\"{digest}\"}}");
    }

    pub(in super::super) fn crashed(out: &mut Vec<u8>, digest: Digest, times: u32, at: i64) {
        line!(out, "{{\"crash\":\"{digest}\",\"times\":{times},\"at\":{at}}}");
    }

    pub(in super::super) fn repeated(out: &mut Vec<u8>, digest: Digest) {
        line!(out, "{{\"repeat\":\"{digest}\"}}");
    }

    pub(in super::super) fn session(out: &mut Vec<u8>, at: i64) {
        line!(out, "{{\"session\":{at}}}");
    }

    pub(in super::super) fn doubt(out: &mut Vec<u8>, at: i64) {
        line!(out, "{{\"doubt\":{at}}}");
    }

    /// Says that something of the earlier version was taken over.
    pub(in super::super) fn earlier(out: &mut Vec<u8>) {
        out.extend_from_slice(super::EARLIER);
        out.push(b'\n');
    }

    pub(in super::super) fn closed(out: &mut Vec<u8>, at: i64) {
        line!(out, "{{\"closed\":{at}}}");
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn lines_are_read_as_written() {
        let id = "a\"\\\n\u{1}é";
        let message = crate::celery::message::Message {
            headers: [("id".to_owned(), id.into()), ("task".to_owned(), "t".into())].into_iter().collect(),
            ..Default::default()
        };
        let identity = crate::worker::journal::identity::Identity::of(&message, false);
        let digest = identity.digest;
        let mut out = Vec::new();
        write::heading(&mut out, "w@h");
        write::started(&mut out, &identity, -5, true);
        write::finished(&mut out, digest, (9, Some(10)), (7, 8), Finish::Ran);
        write::ended(&mut out, digest, 11);
        write::settled(&mut out, digest);
        write::crashed(&mut out, digest, 3, 7);
        write::finished(&mut out, digest, (9, Some(10)), (7, 8), Finish::Again);
        let counts = Counts { in_hand: 1, owed: 2, settled: 3, doubtful: 4 };
        write::finished(&mut out, digest, (9, None), (7, 8), Finish::Kept(counts));
        write::runs(&mut out, digest, 1, false, 2);
        write::repeated(&mut out, digest);
        write::session(&mut out, 1);
        write::doubt(&mut out, 2);
        write::closed(&mut out, 2);
        let mut lines = out.split(|byte| *byte == b'\n').map(Record::read);
        assert_eq!(lines.next(), Some(None), "the heading");
        let finished = |how| Record::Finished { digest, began: 9, stands: Some((7, 8)), how };
        let expected = [
            Record::Started { digest, at: -5, alone: true, runs: None },
            finished(Finish::Ran),
            Record::Ended { digest },
            Record::Settled { digest },
            Record::Crashed { digest, times: 3, at: 7 },
            finished(Finish::Again),
            finished(Finish::Kept(counts)),
            Record::Started { digest, at: 1, alone: false, runs: Some(2) },
            Record::Repeated { digest },
            Record::Session,
            Record::Doubt,
            Record::Closed,
        ];
        for record in expected {
            assert_eq!(lines.next(), Some(Some(record)));
        }
        assert_eq!(lines.next(), Some(None), "nothing behind the last newline");
    }

    #[test]
    fn lines_of_the_earlier_version_are_read() {
        let digest = Digest::earlier("a");
        let read = |text: &str| Record::read(text.as_bytes());
        assert_eq!(
            read("{\"started\":\"a\",\"at\":5}"),
            Some(Record::Started { digest, at: 5, alone: false, runs: None })
        );
        assert_eq!(
            read("{\"finished\":\"a\",\"began\":5,\"answer\":{}}"),
            Some(Record::Finished { digest, began: 5, stands: None, how: Finish::Ran })
        );
        assert_eq!(read("{\"ended\":\"a\"}"), Some(Record::Ended { digest }));
        assert_eq!(read("{\"settled\":\"a\"}"), Some(Record::Settled { digest }));
        assert_eq!(read("{\"crashed\":\"a\",\"times\":2,\"at\":5}"), Some(Record::Crashed { digest, times: 0, at: 5 }));
    }

    #[test]
    fn an_answer_is_read_from_its_own_line_alone() {
        let (digest, other) = (Digest::earlier("a"), Digest::earlier("b"));
        let mut out = Vec::new();
        let length = write::answer(&mut out, digest, "{\"x\": [1]}");
        assert_eq!(length, out.len() - 1);
        let earlier = "{\"finished\":\"a\",\"began\":5,\"answer\":{\"x\": [1]}}".as_bytes();
        for line in [&out[..length], earlier] {
            assert_eq!(answer_in(line, digest), Some("{\"x\": [1]}"));
            assert_eq!(answer_in(line, other), None);
            assert_eq!(answer_in(&line[1..], digest), None);
        }
        assert_eq!(answer_in(b"\0\0\0", digest), None);
    }

    #[test]
    fn damaged_lines_say_nothing() {
        for line in [
            &b""[..],
            b"{\"start\":\"a\"",
            b"{\"start\":\"a\"}",
            b"\0\0\0",
            b"{\"finish\":\"ba7816bf8f01cfea414140de5dae2223\"}",
            b"{\"format\":1}",
            b"[]",
            b"\xff",
        ] {
            assert_eq!(Record::read(line), None);
        }
    }
}
