//! The files of one writer: appended by it, followed by its siblings.

use std::fs::{File, OpenOptions};
use std::io;
use std::os::unix::fs::FileExt as _;
use std::path::{Path, PathBuf};

use super::identity::Digest;
use super::ledger::{Ledger, Place};
use super::record::{self, Finish, Record};

/// How much of a file is read at once.
const READ_BYTES: usize = 128 * 1024;

/// Names the segment file of a writer.
pub(super) fn path(folder: &Path, writer: &str, segment: u64) -> PathBuf {
    folder.join(format!("{writer}.{segment}.log"))
}

/// Splits a segment's file name into writer and number.
pub(super) fn parse_name(name: &str) -> Option<(&str, u64)> {
    let (writer, segment) = name.strip_suffix(".log")?.rsplit_once('.')?;
    Some((writer, segment.parse().ok()?))
}

/// Reads the line at a place, without its newline.
pub(super) fn line_at(folder: &Path, writer: &str, place: Place) -> io::Result<Vec<u8>> {
    let file = File::open(path(folder, writer, place.segment))?;
    let mut line = vec![0; place.length];
    file.read_exact_at(&mut line, place.offset)?;
    Ok(line)
}

/// Reads the line at a place and returns the answer in it, if it is one to this command; `None` also when the segment is gone.
pub(super) fn answer_at(folder: &Path, writer: &str, place: Place, digest: Digest) -> io::Result<Option<String>> {
    match line_at(folder, writer, place) {
        Ok(line) => Ok(answer_in(&line, digest)),
        Err(error) if error.kind() == io::ErrorKind::NotFound => Ok(None),
        Err(error) => Err(error),
    }
}

/// Returns the answer in a line, if it is one to this command: a power cut may leave anything.
pub(super) fn answer_in(line: &[u8], digest: Digest) -> Option<String> {
    match Record::read(line) {
        Some(Record::Finished { digest: found, answer, .. }) if found == digest => {
            Some(String::from_utf8_lossy(&line[answer]).into_owned())
        }
        _ => None,
    }
}

/// The segment being appended to. Whole lines or nothing: a failed append is cut off again.
#[derive(Debug)]
pub(super) struct Segment {
    file: File,
    /// Bytes of whole lines.
    pub(super) length: u64,
}

impl Segment {
    /// Makes the segment with its first lines. It appears whole, under its name, or not at all: a sibling that follows
    /// must find at its head what is open.
    pub(super) fn create(folder: &Path, writer: &str, segment: u64, head: &[u8]) -> io::Result<Self> {
        let making = folder.join(format!("{writer}.{segment}.new"));
        let file = OpenOptions::new().write(true).create(true).truncate(true).open(&making)?;
        let mut made = Self { file, length: 0 };
        made.append(head)?;
        std::fs::rename(&making, path(folder, writer, segment))?;
        Ok(made)
    }

    /// Appends whole lines; on an error the file is as it was.
    pub(super) fn append(&mut self, lines: &[u8]) -> io::Result<()> {
        if let Err(error) = self.file.write_all_at(lines, self.length) {
            // Half a line in the middle would swallow the next one.
            self.file.set_len(self.length)?;
            return Err(error);
        }
        self.length += lines.len() as u64;
        Ok(())
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
pub(super) struct Reader {
    pub(super) writer: String,
    pub(super) ledger: Ledger,
    /// Its writer is dead, and what it left running is written down elsewhere.
    pub(super) adopted: bool,
    /// Something in it is of the earlier version.
    pub(super) earlier: bool,
    segment: u64,
    offset: u64,
}

impl Reader {
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
        use std::io::{BufRead as _, Seek as _};
        if file.metadata()?.len() <= self.offset {
            return Ok(());
        }
        file.seek(io::SeekFrom::Start(self.offset))?;
        let mut lines = io::BufReader::with_capacity(READ_BYTES, file);
        let mut line = Vec::new();
        loop {
            line.clear();
            let length = lines.read_until(b'\n', &mut line)?;
            // Half a line is read again once it is whole.
            if line.pop_if(|byte| *byte == b'\n').is_none() {
                return Ok(());
            }
            self.take_in(&line, news);
            self.offset += length as u64;
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
        self.ledger.fold(&record, Place { segment: self.segment, offset: self.offset, length: line.len() });
    }
}
