//! The files of one writer: appended by it, followed by its siblings.

use std::fs::{File, OpenOptions};
use std::io::{self, Read as _};
use std::os::unix::fs::FileExt as _;
use std::path::{Path, PathBuf};

use super::ledger::{Ledger, Place};
use super::record::Record;

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

/// Reads the line at a place and returns the answer in it, and when its command began, if it is the one to `id`.
pub(super) fn answer_at(folder: &Path, writer: &str, place: Place, id: &str) -> io::Result<Option<(String, i64)>> {
    Ok(answer_in(&line_at(folder, writer, place)?, id))
}

/// Returns the answer in a line, and when its command began, if it is the one to `id`: places are found by a hash, which two ids may share.
pub(super) fn answer_in(line: &[u8], id: &str) -> Option<(String, i64)> {
    match Record::read(line) {
        Some(Record::Finished { id: found, began, answer }) if found == id => {
            Some((String::from_utf8_lossy(&line[answer]).into_owned(), began))
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

/// Follows the segments of another writer.
#[derive(Debug)]
pub(super) struct Reader {
    pub(super) writer: String,
    pub(super) ledger: Ledger,
    /// Its writer is dead, and what it left running is written down elsewhere.
    pub(super) adopted: bool,
    segment: u64,
    offset: u64,
}

impl Reader {
    pub(super) fn new(writer: &str) -> Self {
        Self { writer: writer.to_owned(), ledger: Ledger::default(), adopted: false, segment: 0, offset: 0 }
    }

    /// Keeps only the answers of a dead writer that was taken over.
    pub(super) fn retire(&mut self) {
        self.adopted = true;
        self.ledger.retire();
    }

    /// Takes in what was appended since the last time; `segments` are the existing ones, in order. Returns what came to
    /// an end meanwhile: the ids, and whether their acknowledgement was sent.
    pub(super) fn follow(&mut self, folder: &Path, segments: &[u64]) -> io::Result<Vec<(String, bool)>> {
        let mut ends = Vec::new();
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
            self.read_from(&mut file, &mut ends)?;
        }
        if let Some(oldest) = segments.first() {
            self.ledger.forget_before(*oldest);
        }
        Ok(ends)
    }

    fn read_from(&mut self, file: &mut File, ends: &mut Vec<(String, bool)>) -> io::Result<()> {
        use std::io::Seek as _;
        file.seek(io::SeekFrom::Start(self.offset))?;
        let mut tail = Vec::new();
        file.read_to_end(&mut tail)?;
        let whole = tail.iter().rposition(|byte| *byte == b'\n').map_or(0, |at| at + 1);
        for line in tail[..whole].split_inclusive(|byte| *byte == b'\n') {
            let text = &line[..line.len() - 1];
            if let Some(record) = Record::read(text) {
                match &record {
                    Record::Settled { id } => ends.push((id.to_string(), true)),
                    Record::Finished { id, .. } | Record::Ended { id } => ends.push((id.to_string(), false)),
                    Record::Started { .. } | Record::Crashed { .. } => {}
                }
                self.ledger.fold(record, Place { segment: self.segment, offset: self.offset, length: text.len() });
            }
            self.offset += line.len() as u64;
        }
        Ok(())
    }
}
