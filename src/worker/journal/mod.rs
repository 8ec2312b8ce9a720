//! The journal: which commands were started, which were answered and how, which a dying worker left running.
//!
//! A folder of append-only files shared by all workers on it. Each worker appends lines of JSON to segments of its own
//! (`<writer>.<number>.log`, the answers apart in `<writer>.<number>.answers`) and reads those of its siblings. A writer lives as long as the lock on `<writer>.lock` is
//! held; what a dead one left running has crashed. The first worker to notice copies what is still needed into a file of its
//! own and removes the dead one's. The files are written, not synced: they outlive the process, and a power cut may forget
//! the last moments.
//!
//! A command is known by its identity. What was acknowledged in a session that the broker closed answers nothing any more;
//! what was acknowledged in one that ended otherwise may come again, and is answered then, as often as it had been.
//!
//! The files of one worker are bounded: the oldest answers go first, then the lines that tell of them. What runs, what is in hand
//! and what crashed is written again in each new segment, and takes up to an eighth of the bound ([`Journal::is_full`]).

mod admission;
mod adopt;
mod identity;
mod ledger;
mod lookup;
mod outcomes;
mod queue_loss;
mod record;
mod remake;
mod revocations;
mod segment;

use std::collections::{BTreeMap, BTreeSet, HashSet, VecDeque};
use std::fs::{self, File};
use std::io;
use std::path::{Path, PathBuf};
use std::time::Duration;

use tokio::time::Instant;

use crate::worker::WallClock;

use adopt::{claim, gate};
use ledger::{AnswerPlace, Answered, Ledger, Run};
use record::{Counts, Finish, write};
use segment::{Answers, Segment, SegmentReader};

pub(super) use admission::{Admission, History, Question};
#[cfg(test)]
pub(super) use admission::{LONGEST_WAIT, SESSION_WAIT};
pub(super) use identity::{Digest, Identity, was_delayed};
pub(super) use outcomes::JournalOutcomes;
pub(super) use revocations::{Revocations, Revoked};

/// A segment's size after which the next begins; the one before it stays, so that the last 8 to 16 MiB can be read.
/// Answers whose acknowledgement got lost are no more than one prefetch.
const SEGMENT_BYTES: u64 = 8 * 1024 * 1024;
/// How long an older segment stays at least: what siblings did while a broker was silent, and when what they were given then
/// comes here as well, is asked for a minute later.
const KEEP_SEGMENT: Duration = Duration::from_secs(120);
/// What must be kept may fill this part of the bound, and what is owed as much: both stand in two segments for a while, and those
/// must have room for more.
const NEEDED_PART: u64 = 8;
/// A segment has at most this part of the bound.
const SEGMENT_PART: u64 = 8;
/// Lines that could not be written (disk full) are kept and tried again, up to so many bytes.
const MAX_BACKLOG: usize = 4 * 1024 * 1024;
/// How long the files of a dead writer stay readable that the earlier version took over.
const KEEP_ADOPTED: Duration = Duration::from_secs(3600);

/// An older segment of this writer that is still there.
#[derive(Debug)]
struct Older {
    number: u64,
    ended: Instant,
    /// Bytes of its lines.
    lines: u64,
    /// Bytes of its answers; 0 once they are gone.
    answers: u64,
}

/// One worker's journal and its view of its siblings'.
#[derive(Debug)]
pub(super) struct Journal {
    folder: PathBuf,
    writer: String,
    node: String,
    number: u64,
    segment: Segment,
    /// Bytes at its beginning that were carried over from older ones.
    carried: u64,
    /// The oldest first.
    older: VecDeque<Older>,
    ledger: Ledger,
    /// What runs and came from a queue that went away since: it may come again although this session lives.
    returning: HashSet<Digest>,
    siblings: BTreeMap<String, SegmentReader>,
    /// What must not run.
    pub(super) revocations: Revocations,
    /// Dead writers whose crash is counted here and whose files are still theirs.
    counted: BTreeSet<String>,
    /// Something in the journals is of the earlier version.
    earlier: bool,
    /// When a session last ended, or a worker died, as far as is known here: what that left may come again.
    open_since: Instant,
    /// When siblings were last followed for a command that may be theirs.
    followed: Option<Instant>,
    /// Lines not yet written.
    lines: Vec<u8>,
    /// Answers not yet written, which those name.
    answers: Vec<u8>,
    /// Bytes that the files of this writer may have.
    max_bytes: u64,
    segment_bytes: u64,
    keep_segment: Duration,
    /// When the folder had to be made anew because somebody deleted it.
    remade: Option<Instant>,
    clock: WallClock,
    /// Held for the life of the process: the sign that this writer lives.
    _lock: File,
}

impl Journal {
    /// Opens a journal in a folder (made when missing) for a worker named `node`, whose files may have `max_bytes`, and takes over
    /// from dead writers.
    ///
    /// # Errors
    ///
    /// Whatever the file system answers; the path is part of the message.
    pub(super) fn open(folder: &Path, node: &str, max_bytes: u64, clock: WallClock) -> io::Result<Self> {
        fs::create_dir_all(folder).map_err(|error| at(folder, &error))?;
        let _gate = gate(folder)?;
        let writer = uuid::Uuid::new_v4().simple().to_string();
        let lock = claim(&folder.join(format!("{writer}.lock")))?;
        let mut head = Vec::new();
        write::heading(&mut head, node);
        let mut journal = Self {
            segment: Segment::create(folder, &writer, 0, &head, &[]).map_err(|error| at(folder, &error))?,
            folder: folder.to_owned(),
            writer,
            node: node.to_owned(),
            number: 0,
            carried: 0,
            older: VecDeque::new(),
            ledger: Ledger::default(),
            returning: HashSet::new(),
            siblings: BTreeMap::new(),
            revocations: Revocations::open(folder, clock),
            counted: BTreeSet::new(),
            earlier: false,
            open_since: Instant::now(),
            followed: None,
            lines: Vec::new(),
            answers: Vec::new(),
            max_bytes,
            segment_bytes: SEGMENT_BYTES.min(max_bytes / SEGMENT_PART),
            keep_segment: KEEP_SEGMENT,
            remade: None,
            clock,
            _lock: lock,
        };
        journal.sweep()?;
        journal.follow()?;
        journal.adopt()?;
        Ok(journal)
    }

    /// Records that a command begins to run. `alone`: nothing else is run or decoded beside it until its end.
    pub(super) fn started(&mut self, identity: &Identity, alone: bool) {
        let at = self.clock.now().as_microsecond();
        write::started(&mut self.lines, identity, at, alone);
        self.ledger.started(identity.digest, at, alone);
        if let Some(earlier) = identity.earlier.filter(|earlier| self.died_earlier(*earlier)) {
            // From now on what becomes of it is known under its own name.
            self.ended(earlier);
        }
    }

    /// Records the answer of a write or delete; `answer` is JSON text without line breaks.
    pub(super) fn finished(&mut self, digest: Digest, answer: &str) {
        let began = self.ledger.running.get(&digest).map(|run| run.at).unwrap_or_default();
        self.write_answer(digest, began, answer, Finish::Ran);
        self.note_return(digest);
    }

    /// Records that a command is over and may run again: a read, or a write that was abandoned.
    pub(super) fn ended(&mut self, digest: Digest) {
        write::ended(&mut self.lines, digest, self.clock.now().as_microsecond());
        self.returning.remove(&digest);
        self.ledger.ended(digest);
        self.siblings.values_mut().for_each(|reader| reader.ledger.over_elsewhere(digest));
    }

    /// Records that a command's acknowledgement was sent.
    pub(super) fn settled(&mut self, digest: Digest) {
        write::settled(&mut self.lines, digest);
        self.ledger.settled(digest);
        self.siblings.values_mut().for_each(|reader| reader.ledger.over_elsewhere(digest));
    }

    /// Records that a command's delivery goes back to its queue though it was answered: it comes again, here or at a sibling.
    ///
    /// # Errors
    ///
    /// Whatever the file system answers when its answer is read again.
    pub(super) fn given_back(&mut self, digest: Digest) -> io::Result<()> {
        let Some(&Answered { began, counts, .. }) = self.ledger.answer(digest) else { return Ok(()) };
        let (Some(in_hand), Some(answer)) = (counts.in_hand.checked_sub(1), self.own_answer(digest)?) else {
            return Ok(());
        };
        self.write_answer(digest, began, &answer, Finish::Kept(Counts { in_hand, owed: counts.owed + 1, ..counts }));
        Ok(())
    }

    fn write_answer(&mut self, digest: Digest, began: i64, answer: &str, how: Finish) {
        let offset = self.segment.answers_length + self.answers.len() as u64;
        let length = write::answer(&mut self.answers, digest, answer);
        write::finished(
            &mut self.lines,
            digest,
            (began, Some(self.clock.now().as_microsecond())),
            (offset, length),
            how,
        );
        let place = AnswerPlace { segment: self.number, offset, length, in_line: false };
        match how {
            Finish::Ran | Finish::Again => self.ledger.finished(digest, began, place),
            Finish::Kept(counts) => self.ledger.keep(digest, began, place, counts),
        }
    }

    /// Records that a session begins, or that one is over without the broker's word: whatever is still unsettled belongs to
    /// an earlier one, and what that settled is in doubt unless it was closed.
    pub(super) fn begin_session(&mut self) {
        write::session(&mut self.lines, self.clock.now().as_microsecond());
        self.ledger.begin_session();
        self.returning.clear();
        self.open_since = Instant::now();
    }

    /// Records that the broker was silent: the acknowledgements sent in this session until now may be lost.
    pub(super) fn doubt(&mut self) {
        write::doubt(&mut self.lines, self.clock.now().as_microsecond());
        self.ledger.doubt();
    }

    /// Records that the broker said that the session is closed: it has all acknowledgements.
    pub(super) fn close_session(&mut self) {
        write::closed(&mut self.lines, self.clock.now().as_microsecond());
        self.ledger.close_session();
    }

    /// Writes what was recorded since the last time, in one go.
    ///
    /// # Errors
    ///
    /// Whatever the file system answers. The lines are kept and written with the next ones.
    pub(super) fn commit(&mut self) -> io::Result<()> {
        let there = self.remake();
        if self.lines.is_empty() {
            return there;
        }
        let appended = there
            .and_then(|()| self.segment.append(&self.lines, &self.answers).map_err(|error| at(&self.folder, &error)));
        if let Err(error) = appended {
            if self.lines.len() + self.answers.len() > MAX_BACKLOG {
                // The places of unwritten answers are void with the lines; memory is bounded first.
                self.ledger.forget_at(self.number, self.segment.answers_length);
                self.lines.clear();
                self.answers.clear();
            }
            return Err(error);
        }
        self.lines.clear();
        self.answers.clear();
        if self.segment.size() >= self.carried + self.segment_bytes {
            self.rotate()?;
        }
        Ok(())
    }

    /// Returns the size of all files of this writer, in bytes.
    pub(super) fn size(&self) -> u64 {
        self.segment.size() + self.older.iter().map(|older| older.lines + older.answers).sum::<u64>()
    }

    /// Tells whether what must be kept has the room that there is for it: nothing more may begin until some of it is settled.
    pub(super) fn is_full(&self) -> bool {
        self.ledger.needed() >= self.max_bytes / NEEDED_PART
    }

    /// Begins the next segment with everything that is still open, and drops what there is no room or no need for.
    fn rotate(&mut self) -> io::Result<()> {
        let next = self.number + 1;
        let given_up = self.ledger.give_up(self.max_bytes / NEEDED_PART);
        if given_up > 0 {
            tracing::warn!(
                given_up,
                "the journal is full of answers that earlier sessions left unacknowledged; the oldest are forgotten"
            );
        }
        let mut head = Vec::new();
        write::heading(&mut head, &self.node);
        if self.earlier {
            write::earlier(&mut head);
        }
        for (digest, Run { at, alone, runs }) in &self.ledger.running {
            write::runs(&mut head, *digest, *at, *alone, *runs);
        }
        for (digest, crash) in &self.ledger.crashes {
            write::crashed(&mut head, *digest, crash.times, crash.at);
        }
        // Where bytes are short, the segment that ends now is the next to lose its answers.
        let is_tight = self.size() + 3 * self.segment_bytes > self.max_bytes;
        let (mut carried, mut answers) = (Vec::new(), Vec::new());
        let mut source = Answers::new(&self.folder, &self.writer);
        for (digest, answered) in self.ledger.open_answers() {
            if answered.place.segment == self.number && !is_tight {
                continue;
            }
            let Some(answer) = source.read(answered.place, digest)? else { continue };
            let offset = answers.len() as u64;
            let length = write::answer(&mut answers, digest, &answer);
            write::finished(&mut head, digest, (answered.began, None), (offset, length), Finish::Kept(answered.counts));
            carried.push((digest, AnswerPlace { segment: next, offset, length, in_line: false }));
        }
        let made = Segment::create(&self.folder, &self.writer, next, &head, &answers);
        let ended = std::mem::replace(&mut self.segment, made.map_err(|error| at(&self.folder, &error))?);
        let (lines, answers) = (ended.length, ended.answers_length);
        self.older.push_back(Older { number: self.number, ended: Instant::now(), lines, answers });
        self.number = next;
        self.carried = self.segment.size();
        for (digest, place) in carried {
            self.ledger.moved(digest, place);
        }
        self.drop_old()?;
        self.sweep()
    }

    /// Drops segments before the last that are old enough. At the bound the oldest answers go first, then the oldest segments.
    fn drop_old(&mut self) -> io::Result<()> {
        while self.older.len() > 1 && self.older.front().is_some_and(|old| old.ended.elapsed() >= self.keep_segment) {
            self.drop_oldest()?;
        }
        // The segment that begins now must have room, too.
        while self.size() + self.segment_bytes > self.max_bytes {
            if let Some(old) = self.older.iter_mut().find(|old| old.answers > 0) {
                remove(&segment::answers_path(&self.folder, &self.writer, old.number))?;
                old.answers = 0;
            } else if self.older.is_empty() {
                break;
            } else {
                self.drop_oldest()?;
            }
        }
        Ok(())
    }

    fn drop_oldest(&mut self) -> io::Result<()> {
        let Some(old) = self.older.front() else { return Ok(()) };
        remove(&segment::answers_path(&self.folder, &self.writer, old.number))?;
        remove(&segment::path(&self.folder, &self.writer, old.number))?;
        self.older.pop_front();
        self.ledger.forget_before(self.older.front().map_or(self.number, |kept| kept.number));
        Ok(())
    }
}

fn remove(path: &Path) -> io::Result<()> {
    match fs::remove_file(path) {
        Err(error) if error.kind() != io::ErrorKind::NotFound => Err(at(path, &error)),
        _ => Ok(()),
    }
}

fn at(path: &Path, error: &io::Error) -> io::Error {
    io::Error::new(error.kind(), format!("{}: {error}", path.display()))
}

#[cfg(test)]
mod tests;
