//! The files of one writer: appended by it, followed by its siblings.

use std::fs::{File, OpenOptions};
use std::io;
use std::os::unix::fs::FileExt as _;
use std::path::{Path, PathBuf};

use super::identity::Digest;
use super::ledger::{AnswerPlace, Ledger};
use super::record::{self, Finish, Record};

/// How much of a file is read at once.
const READ_BYTES: usize = 128 * 1024;
/// The longest line: the earlier version wrote answers into them.
const LONGEST_LINE: u64 = 64 * 1024 * 1024;

/// Names the segment file of a writer.
pub(super) fn path(folder: &Path, writer: &str, segment: u64) -> PathBuf {
    folder.join(format!("{writer}.{segment}.log"))
}

/// Names the file with the answers of a segment.
pub(super) fn answers_path(folder: &Path, writer: &str, segment: u64) -> PathBuf {
    folder.join(format!("{writer}.{segment}.answers"))
}

/// Splits a segment's file name into writer and number.
pub(super) fn parse_name(name: &str) -> Option<(&str, u64)> {
    let (writer, segment) = name.strip_suffix(".log")?.rsplit_once('.')?;
    Some((writer, segment.parse().ok()?))
}

/// Reads answers of one writer, which is fastest in the order in which they stand.
#[derive(Debug)]
pub(super) struct Answers<'j> {
    folder: &'j Path,
    writer: &'j str,
    open: Option<(u64, bool, File)>,
}

impl<'j> Answers<'j> {
    pub(super) const fn new(folder: &'j Path, writer: &'j str) -> Self {
        Self { folder, writer, open: None }
    }

    /// Reads the answer at a place, if it is one to this command; `None` also when it is not there any more, or damaged: a power
    /// cut may leave anything.
    pub(super) fn read(&mut self, place: AnswerPlace, digest: Digest) -> io::Result<Option<String>> {
        if !matches!(&self.open, Some((segment, in_line, _)) if (*segment, *in_line) == (place.segment, place.in_line))
        {
            let name = if place.in_line { path } else { answers_path };
            self.open = match File::open(name(self.folder, self.writer, place.segment)) {
                Ok(file) => Some((place.segment, place.in_line, file)),
                Err(error) if error.kind() == io::ErrorKind::NotFound => None,
                Err(error) => return Err(error),
            };
        }
        let Some((.., file)) = &self.open else { return Ok(None) };
        let mut line = vec![0; place.length];
        match file.read_exact_at(&mut line, place.offset) {
            Ok(()) => Ok(record::answer_in(&line, digest).map(str::to_owned)),
            Err(error) if error.kind() == io::ErrorKind::UnexpectedEof => Ok(None),
            Err(error) => Err(error),
        }
    }
}

/// Reads one answer, as [`Answers::read`] does.
pub(super) fn answer_at(folder: &Path, writer: &str, place: AnswerPlace, digest: Digest) -> io::Result<Option<String>> {
    Answers::new(folder, writer).read(place, digest)
}

/// The segment being appended to: a file of lines, and one with the answers they name. Whole lines or nothing: a failed append
/// is cut off again.
#[derive(Debug)]
pub(super) struct Segment {
    lines: File,
    answers: File,
    /// Bytes of whole lines.
    pub(super) length: u64,
    /// Bytes of whole answers.
    pub(super) answers_length: u64,
}

impl Segment {
    /// Makes the segment with its first lines and answers. It appears whole, under its name, or not at all: a sibling that
    /// follows must find at its head what is open.
    pub(super) fn create(folder: &Path, writer: &str, segment: u64, lines: &[u8], answers: &[u8]) -> io::Result<Self> {
        let making = folder.join(format!("{writer}.{segment}.new"));
        let make = |path: &Path| OpenOptions::new().write(true).create(true).truncate(true).open(path);
        let (file, answers_file) = (make(&making)?, make(&answers_path(folder, writer, segment))?);
        let mut made = Self { lines: file, answers: answers_file, length: 0, answers_length: 0 };
        made.append(lines, answers)?;
        std::fs::rename(&making, path(folder, writer, segment))?;
        Ok(made)
    }

    /// Puts another file in the place of that of the lines.
    #[cfg(test)]
    pub(super) fn swap_lines(&mut self, other: File) -> File {
        std::mem::replace(&mut self.lines, other)
    }

    /// Appends whole answers, and the lines that name them; on an error the files are as they were.
    pub(super) fn append(&mut self, lines: &[u8], answers: &[u8]) -> io::Result<()> {
        let appended = self
            .answers
            .write_all_at(answers, self.answers_length)
            .and_then(|()| self.lines.write_all_at(lines, self.length));
        if let Err(error) = appended {
            // Half a line in the middle would swallow the next one.
            self.lines.set_len(self.length)?;
            self.answers.set_len(self.answers_length)?;
            return Err(error);
        }
        self.length += lines.len() as u64;
        self.answers_length += answers.len() as u64;
        Ok(())
    }

    /// Returns the bytes of both files.
    pub(super) const fn size(&self) -> u64 {
        self.length + self.answers_length
    }
}

/// What a writer says that concerns all of them.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum News {
    /// The command is over.
    Over,
    /// It came again and was answered with what another writer had answered.
    Again,
    /// A session begins: what the one before left may come again.
    Session,
}

/// Follows the segments of another writer.
#[derive(Debug)]
pub(super) struct SegmentReader {
    pub(super) writer: String,
    pub(super) ledger: Ledger,
    /// Its writer is dead, and what it left running is written down elsewhere.
    pub(super) adopted: bool,
    /// Something in it is of the earlier version.
    pub(super) earlier: bool,
    segment: u64,
    offset: u64,
}

impl SegmentReader {
    pub(super) fn new(writer: &str) -> Self {
        Self {
            writer: writer.to_owned(),
            ledger: Ledger::default(),
            adopted: false,
            earlier: false,
            segment: 0,
            offset: 0,
        }
    }

    /// Keeps only the answers of a dead writer that was taken over.
    pub(super) fn retire(&mut self) {
        self.adopted = true;
        self.ledger.retire();
    }

    /// Takes in what was appended since the last time, line by line; `segments` are the existing ones, in order. Adds what
    /// concerns all writers to `news`.
    pub(super) fn follow(
        &mut self,
        folder: &Path,
        segments: &[u64],
        news: &mut Vec<(Option<Digest>, News)>,
    ) -> io::Result<()> {
        let current = self.segment;
        for &segment in segments.iter().filter(|&&segment| segment >= current) {
            if segment > self.segment {
                // Each segment begins with what was open, so one that is gone is not missed.
                self.segment = segment;
                self.offset = 0;
                self.ledger = Ledger::with_answers_of(std::mem::take(&mut self.ledger));
            }
            let mut file = match File::open(path(folder, &self.writer, segment)) {
                Ok(file) => file,
                Err(error) if error.kind() == io::ErrorKind::NotFound => continue,
                Err(error) => return Err(error),
            };
            self.read_from(&mut file, news)?;
        }
        if let Some(oldest) = segments.first() {
            self.ledger.forget_before(*oldest);
        }
        Ok(())
    }

    fn read_from(&mut self, file: &mut File, news: &mut Vec<(Option<Digest>, News)>) -> io::Result<()> {
        use std::io::{BufRead as _, Read as _, Seek as _};
        if file.metadata()?.len() <= self.offset {
            return Ok(());
        }
        file.seek(io::SeekFrom::Start(self.offset))?;
        let mut lines = io::BufReader::with_capacity(READ_BYTES, file);
        let mut line = Vec::new();
        // The bytes of a line that is too long to be one of ours: they are passed over.
        let mut passed = 0;
        loop {
            line.clear();
            let length = lines.by_ref().take(LONGEST_LINE).read_until(b'\n', &mut line)? as u64;
            let whole = line.pop_if(|byte| *byte == b'\n').is_some();
            if !whole && length < LONGEST_LINE {
                // Half a line is read again once it is whole.
                return Ok(());
            }
            if whole && passed == 0 {
                self.take_in(&line, news);
            }
            passed += length;
            if whole {
                self.offset += passed;
                passed = 0;
            }
        }
    }

    fn take_in(&mut self, line: &[u8], news: &mut Vec<(Option<Digest>, News)>) {
        let Some(record) = Record::read(line) else {
            self.earlier |= record::is_earlier(line);
            return;
        };
        match &record {
            Record::Settled { digest } | Record::Ended { digest } => news.push((Some(*digest), News::Over)),
            Record::Finished { digest, how: Finish::Ran, .. } => news.push((Some(*digest), News::Over)),
            Record::Finished { digest, how: Finish::Again, .. } => news.push((Some(*digest), News::Again)),
            Record::Session => news.push((None, News::Session)),
            _ => {}
        }
        self.ledger.fold(
            &record,
            AnswerPlace { segment: self.segment, offset: self.offset, length: line.len(), in_line: true },
        );
    }
}
