//! The journal: which commands were started, which were answered and how, which a dying worker left running.
//!
//! A folder of append-only files shared by all workers on it. Each worker appends lines of JSON to segments of its own
//! (`<writer>.<number>.log`) and reads those of its siblings. A writer lives as long as the lock on `<writer>.lock` is
//! held; what a dead one left running has crashed, which the first worker to notice takes over into its own file. The
//! files are written, not synced: they outlive the process, and a power cut may forget the last moments.

mod ledger;
mod record;
mod segment;

use std::collections::{BTreeMap, BTreeSet, VecDeque};
use std::fs::{self, File, OpenOptions, TryLockError};
use std::io;
use std::path::{Path, PathBuf};
use std::time::{Duration, Instant, SystemTime};

use jiff::Timestamp;

use ledger::{Crash, Ledger, Place};
use record::write;
use segment::{Reader, Segment};

/// A segment's size after which the next begins; the one before it stays, so that the last 8 to 16 MiB can be read.
/// Answers whose acknowledgement got lost are no more than one prefetch.
const SEGMENT_BYTES: u64 = 8 * 1024 * 1024;
/// How long an older segment stays at least: what siblings did while a broker was silent, and when what they were given then
/// comes here as well, is asked for a minute later.
const KEEP_SEGMENT: Duration = Duration::from_secs(120);
/// Lines that could not be written (disk full) are kept and tried again, up to so many bytes.
const MAX_BACKLOG: usize = 4 * 1024 * 1024;
/// How long the files of a dead writer stay readable after they were taken over.
const KEEP_ADOPTED: Duration = Duration::from_secs(3600);

/// What is known about an id.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub(super) struct Recall {
    /// The recorded answer of a finished write or delete: JSON text.
    pub(super) answer: Option<String>,
    /// When the command began that this is the answer to.
    pub(super) began: Option<Timestamp>,
    /// When it was started by a worker that did not finish it.
    pub(super) started_at: Option<Timestamp>,
    /// In how many crashes of a worker it was running.
    pub(super) crashes: u32,
    /// A living sibling runs it.
    pub(super) runs_elsewhere: bool,
}

/// One worker's journal and its view of its siblings'.
#[derive(Debug)]
pub(super) struct Journal {
    folder: PathBuf,
    writer: String,
    node: String,
    number: u64,
    segment: Segment,
    /// Older segments that are still there, the oldest first, and when each ended.
    older: VecDeque<(u64, Instant)>,
    ledger: Ledger,
    siblings: BTreeMap<String, Reader>,
    /// Lines not yet written.
    lines: Vec<u8>,
    segment_bytes: u64,
    keep_segment: Duration,
    /// Held for the life of the process: the sign that this writer lives.
    _lock: File,
}

impl Journal {
    /// Opens a journal in a folder (made when missing) for a worker named `node`, and takes over from dead writers.
    ///
    /// # Errors
    ///
    /// Whatever the file system answers; the path is part of the message.
    pub(super) fn open(folder: &Path, node: &str) -> io::Result<Self> {
        fs::create_dir_all(folder).map_err(|error| at(folder, &error))?;
        let _gate = gate(folder)?;
        let writer = uuid::Uuid::new_v4().simple().to_string();
        let lock_path = folder.join(format!("{writer}.lock"));
        let lock = File::create(&lock_path).map_err(|error| at(&lock_path, &error))?;
        lock.lock().map_err(|error| at(&lock_path, &error))?;
        let mut head = Vec::new();
        write::heading(&mut head, node);
        let mut journal = Self {
            segment: Segment::create(folder, &writer, 0, &head).map_err(|error| at(folder, &error))?,
            folder: folder.to_owned(),
            writer,
            node: node.to_owned(),
            number: 0,
            older: VecDeque::new(),
            ledger: Ledger::default(),
            siblings: BTreeMap::new(),
            lines: Vec::new(),
            segment_bytes: SEGMENT_BYTES,
            keep_segment: KEEP_SEGMENT,
            _lock: lock,
        };
        journal.sweep()?;
        journal.follow()?;
        journal.adopt()?;
        Ok(journal)
    }

    /// Records that a command begins to run.
    pub(super) fn started(&mut self, id: &str) {
        let at = Timestamp::now().as_microsecond();
        write::started(&mut self.lines, id, at);
        self.ledger.started(id, at);
    }

    /// Records the answer of a write or delete; `answer` is JSON text without line breaks.
    pub(super) fn finished(&mut self, id: &str, answer: &str) {
        let line_at = self.lines.len();
        let began = self.ledger.running.get(id).copied().unwrap_or_default();
        write::finished(&mut self.lines, id, began, answer);
        let place = Place {
            segment: self.number,
            offset: self.segment.length + line_at as u64,
            length: self.lines.len() - line_at - 1,
        };
        self.ledger.finished(id, began, place);
    }

    /// Records that a command is over and may run again: a read, or a write that was abandoned.
    pub(super) fn ended(&mut self, id: &str) {
        write::ended(&mut self.lines, id);
        self.ledger.ended(id);
    }

    /// Records that a command's acknowledgement was sent.
    pub(super) fn settled(&mut self, id: &str) {
        write::settled(&mut self.lines, id);
        self.ledger.settled(id);
        // Also where a dead worker's answer was given again: the next message under this id is a new one.
        self.siblings.values_mut().for_each(|reader| reader.ledger.settled(id));
    }

    /// Writes what was recorded since the last time, in one go.
    ///
    /// # Errors
    ///
    /// Whatever the file system answers. The lines are kept and written with the next ones.
    pub(super) fn commit(&mut self) -> io::Result<()> {
        if self.lines.is_empty() {
            return Ok(());
        }
        if let Err(error) = self.segment.append(&self.lines) {
            if self.lines.len() > MAX_BACKLOG {
                // The places of unwritten answers are void with the lines; memory is bounded first.
                self.ledger.forget_at(self.number, self.segment.length);
                self.lines.clear();
            }
            return Err(at(&self.folder, &error));
        }
        self.lines.clear();
        if self.segment.length >= self.segment_bytes {
            self.rotate()?;
        }
        Ok(())
    }

    /// Returns the size of the segment being written, in bytes.
    pub(super) const fn size(&self) -> u64 {
        self.segment.length
    }

    /// Takes in what siblings wrote since the last time.
    ///
    /// # Errors
    ///
    /// Whatever the file system answers.
    pub(super) fn follow(&mut self) -> io::Result<()> {
        let mut writers: BTreeMap<String, Vec<u64>> = BTreeMap::new();
        let mut adopted = BTreeSet::new();
        for entry in fs::read_dir(&self.folder).map_err(|error| at(&self.folder, &error))? {
            let name = entry?.file_name();
            let Some(name) = name.to_str() else { continue };
            if let Some((writer, number)) = segment::parse_name(name) {
                writers.entry(writer.to_owned()).or_default().push(number);
            } else if let Some(writer) = name.strip_suffix(".adopted") {
                adopted.insert(writer.to_owned());
            }
        }
        writers.remove(&self.writer);
        self.siblings.retain(|writer, _| writers.contains_key(writer));
        let mut ends = Vec::new();
        for (writer, mut numbers) in writers {
            numbers.sort_unstable();
            let reader = self.siblings.entry(writer).or_insert_with_key(|writer| Reader::new(writer));
            if reader.adopted {
                continue;
            }
            ends.extend(reader.follow(&self.folder, &numbers)?);
            if adopted.contains(&reader.writer) {
                reader.retire();
            }
        }
        // What one writer saw to its end is over for all of them.
        for (id, settled) in ends {
            let readers = self.siblings.values_mut().map(|reader| &mut reader.ledger);
            for ledger in readers.chain([&mut self.ledger]) {
                if settled { ledger.settled(&id) } else { ledger.over_elsewhere(&id) }
            }
        }
        Ok(())
    }

    /// Begins a session: whatever is still unsettled belongs to an earlier one.
    pub(super) fn begin_session(&mut self) {
        self.ledger.begin_session();
    }

    /// Tells whether a message that the broker calls fresh may still be a second copy: an earlier session or a dead
    /// worker answered its id without sending the acknowledgement, or crashed over it.
    ///
    /// # Errors
    ///
    /// Whatever the file system answers.
    pub(super) fn is_open(&mut self, id: &str) -> io::Result<bool> {
        if !self.seems_open(id) {
            return Ok(false);
        }
        // A sibling may have seen to it since.
        self.follow()?;
        Ok(self.seems_open(id))
    }

    fn seems_open(&self, id: &str) -> bool {
        // What this worker knows is later than what a dead one left behind; what a living one does is its own business.
        self.ledger.is_open(id).unwrap_or_else(|| {
            let dead = self.siblings.values().filter(|reader| reader.adopted);
            dead.into_iter().any(|reader| reader.ledger.is_open(id).unwrap_or_default())
        })
    }

    /// Tells whether a sibling has begun to run this id since then, by what was last followed, and has not given it up:
    /// the broker gave it the delivery that we hold.
    pub(super) fn is_taken(&self, id: &str, since: Timestamp) -> bool {
        let since = since.as_microsecond();
        // Who took a dead one over has its crashes.
        self.ledger.has_crashed(id, since) || self.siblings.values().any(|reader| reader.ledger.has_begun(id, since))
    }

    /// Tells whether this worker has answered this id, in whatever session.
    pub(super) fn is_done(&self, id: &str) -> bool {
        self.ledger.answer(id).is_some()
    }

    /// Looks an id up here and at all siblings.
    ///
    /// # Errors
    ///
    /// Whatever the file system answers.
    pub(super) fn recall(&mut self, id: &str) -> io::Result<Recall> {
        self.follow()?;
        if self.siblings.values().any(|reader| !reader.adopted && reader.ledger.running.contains_key(id)) {
            let _gate = gate(&self.folder)?;
            self.follow()?;
            self.adopt()?;
        }
        let mut answers: Vec<(String, i64)> = self.own_answer(id)?.into_iter().collect();
        let mut recall = Recall::default();
        for ledger in std::iter::once(&self.ledger).chain(self.siblings.values().map(|reader| &reader.ledger)) {
            let crash = ledger.crashes.get(id);
            recall.crashes = recall.crashes.max(crash.map_or(0, |crash| crash.times));
            let runs = [crash.map(|crash| crash.at), ledger.running.get(id).copied()];
            let started_at = runs.into_iter().flatten().min().and_then(|at| Timestamp::from_microsecond(at).ok());
            recall.started_at = [recall.started_at, started_at].into_iter().flatten().min();
        }
        for reader in self.siblings.values() {
            recall.runs_elsewhere |= !reader.adopted && reader.ledger.running.contains_key(id);
            if let Some(place) = reader.ledger.answer(id) {
                answers.extend(segment::answer_at(&self.folder, &reader.writer, place, id)?);
            }
        }
        // An id may be used again; the last message under it is meant. Of equals our own.
        if let Some((answer, began)) = answers.into_iter().rev().max_by_key(|(_, began)| *began) {
            recall.answer = Some(answer);
            recall.began = Timestamp::from_microsecond(began).ok();
        }
        Ok(recall)
    }

    fn own_answer(&self, id: &str) -> io::Result<Option<(String, i64)>> {
        let Some(place) = self.ledger.answer(id) else { return Ok(None) };
        if place.segment == self.number && place.offset >= self.segment.length {
            let begin = usize::try_from(place.offset - self.segment.length).unwrap_or(usize::MAX);
            let line = self.lines.get(begin..).and_then(|rest| rest.get(..place.length));
            return Ok(line.and_then(|line| segment::answer_in(line, id)));
        }
        segment::answer_at(&self.folder, &self.writer, place, id)
    }

    /// Counts what dead writers left running as crashed and marks them as taken over. The gate must be held.
    fn adopt(&mut self) -> io::Result<()> {
        let mut dead = Vec::new();
        for (writer, _) in self.siblings.iter().filter(|(_, reader)| !reader.adopted) {
            if let Some(lock) = lock_if_dead(&self.lock_path(writer))? {
                dead.push((writer.clone(), lock));
            }
        }
        if dead.is_empty() {
            return Ok(());
        }
        let mut crashes: BTreeMap<Box<str>, Crash> = BTreeMap::new();
        for (writer, _) in &dead {
            let Some(reader) = self.siblings.get(writer) else { continue };
            let left = reader.ledger.running.iter().map(|(id, at)| (id, Crash { times: 1, at: *at }));
            for (id, crash) in
                left.chain(reader.ledger.crashes.iter().map(|(id, crash)| (id, Crash { times: 0, ..*crash })))
            {
                let known = crashes.entry(id.clone()).or_insert(Crash { times: 0, at: crash.at });
                *known = Crash { times: known.times + crash.times, at: known.at.min(crash.at) };
            }
        }
        for (id, crash) in &mut crashes {
            // Whoever wrote an earlier count down, it is added to.
            let ledgers = self.siblings.values().map(|reader| &reader.ledger).chain([&self.ledger]);
            let before: Vec<Crash> = ledgers.filter_map(|ledger| ledger.crashes.get(id)).copied().collect();
            crash.times += before.iter().map(|before| before.times).max().unwrap_or(0);
            crash.at = before.iter().map(|before| before.at).fold(crash.at, i64::min);
        }
        for (id, crash) in crashes {
            write::crashed(&mut self.lines, &id, crash.times, crash.at);
            self.ledger.crashes.insert(id, crash);
        }
        for (writer, _) in &dead {
            if let Some(reader) = self.siblings.get_mut(writer) {
                reader.retire();
            }
        }
        if let Err(error) = self.commit() {
            // Only what is written down here may be forgotten there; the next one to notice takes it over.
            tracing::warn!(%error, "journal cannot be written; dead workers stay as they are");
            return Ok(());
        }
        for (writer, _lock) in dead {
            let adopted = self.folder.join(format!("{writer}.adopted"));
            fs::rename(self.lock_path(&writer), &adopted).map_err(|error| at(&adopted, &error))?;
            File::open(&adopted)?.set_modified(SystemTime::now())?;
        }
        Ok(())
    }

    fn lock_path(&self, writer: &str) -> PathBuf {
        self.folder.join(format!("{writer}.lock"))
    }

    /// Deletes the files of writers that were taken over long enough ago.
    fn sweep(&self) -> io::Result<()> {
        for entry in fs::read_dir(&self.folder)? {
            let entry = entry?;
            let name = entry.file_name();
            let Some(writer) = name.to_str().and_then(|name| name.strip_suffix(".adopted")) else { continue };
            let age = entry.metadata()?.modified()?.elapsed().unwrap_or_default();
            if age < KEEP_ADOPTED {
                continue;
            }
            for file in fs::read_dir(&self.folder)? {
                let file = file?;
                let name = file.file_name();
                if name.to_str().and_then(segment::parse_name).is_some_and(|(owner, _)| owner == writer) {
                    remove(&file.path())?;
                }
            }
            remove(&entry.path())?;
        }
        Ok(())
    }

    /// Begins the next segment with everything that is still open, and drops those before the last that are old enough.
    fn rotate(&mut self) -> io::Result<()> {
        let next = self.number + 1;
        let mut head = Vec::new();
        write::heading(&mut head, &self.node);
        for (id, started_at) in &self.ledger.running {
            write::started(&mut head, id, *started_at);
        }
        for (id, crash) in &self.ledger.crashes {
            write::crashed(&mut head, id, crash.times, crash.at);
        }
        let mut carried = Vec::new();
        for place in self.ledger.open_answers().filter(|place| place.segment < self.number) {
            let line = segment::line_at(&self.folder, &self.writer, place)?;
            carried.push((Place { segment: next, offset: head.len() as u64, length: line.len() }, line.clone()));
            head.extend(line);
            head.push(b'\n');
        }
        self.segment =
            Segment::create(&self.folder, &self.writer, next, &head).map_err(|error| at(&self.folder, &error))?;
        self.older.push_back((self.number, Instant::now()));
        self.number = next;
        for (place, line) in carried {
            if let Some(record) = record::Record::read(&line) {
                self.ledger.fold(record, place);
            }
        }
        while let [(old, ended), (kept, _), ..] = *self.older.make_contiguous()
            && ended.elapsed() >= self.keep_segment
        {
            remove(&segment::path(&self.folder, &self.writer, old))?;
            self.older.pop_front();
            self.ledger.forget_before(kept);
        }
        self.sweep()
    }
}

/// Serializes the makers and adopters of a folder.
fn gate(folder: &Path) -> io::Result<File> {
    let path = folder.join(".gate");
    let file =
        OpenOptions::new().write(true).create(true).truncate(false).open(&path).map_err(|error| at(&path, &error))?;
    file.lock().map_err(|error| at(&path, &error))?;
    Ok(file)
}

/// Takes the lock of a writer unless it lives or was taken over before.
fn lock_if_dead(path: &Path) -> io::Result<Option<File>> {
    // Writable, though nothing is written: NFS refuses an exclusive lock on a file that is open for reading only.
    let file = match OpenOptions::new().write(true).open(path) {
        Ok(file) => file,
        Err(error) if error.kind() == io::ErrorKind::NotFound => return Ok(None),
        Err(error) => return Err(at(path, &error)),
    };
    match file.try_lock() {
        Ok(()) => Ok(Some(file)),
        Err(TryLockError::WouldBlock) => Ok(None),
        Err(TryLockError::Error(error)) => Err(at(path, &error)),
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
