//! Following siblings, and taking over what dead ones left: what is still needed of their files is copied, then they go.

use std::collections::{BTreeMap, BTreeSet};
use std::fs::{self, File, OpenOptions, TryLockError};
use std::io;
use std::path::{Path, PathBuf};

use tokio::time::Instant;

use super::identity::Digest;
use super::ledger::{Answered, Crash, take_one};
use super::record::{Finish, write};
use super::segment::{self, Answers, News, SegmentReader};
use super::{Journal, KEEP_ADOPTED, KEEP_SEGMENT, at, remove};

/// Bytes of copied answers after which they are written.
const COPY_BYTES: usize = 1024 * 1024;

impl Journal {
    /// Takes in what siblings wrote since the last time.
    ///
    /// # Errors
    ///
    /// Whatever the file system answers.
    pub(in crate::worker) fn follow(&mut self) -> io::Result<()> {
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
        let mut news = Vec::new();
        for (writer, mut numbers) in writers {
            numbers.sort_unstable();
            let reader = self.siblings.entry(writer).or_insert_with_key(|writer| SegmentReader::new(writer));
            if reader.adopted {
                continue;
            }
            let mut told = Vec::new();
            reader.follow(&self.folder, &numbers, &mut told)?;
            if adopted.contains(&reader.writer) {
                reader.retire();
            }
            news.extend(told.into_iter().map(|(digest, news)| (reader.writer.clone(), digest, news)));
        }
        for (writer, digest, news) in news {
            let others = self.siblings.iter_mut().filter(|(other, _)| **other != writer);
            let ledgers = others.map(|(_, reader)| &mut reader.ledger).chain([&mut self.ledger]);
            match (digest, news) {
                // What one writer saw to its end is over for all of them.
                (Some(digest), News::Over) => ledgers.for_each(|ledger| ledger.over_elsewhere(digest)),
                (Some(digest), News::Again) => take_one(ledgers, digest),
                _ => self.open_since = Instant::now(),
            }
        }
        Ok(())
    }

    /// Takes over from dead writers: what they left running has crashed, and what may return is answered from here. The gate
    /// must be held.
    pub(super) fn adopt(&mut self) -> io::Result<()> {
        let mut dead = Vec::new();
        for (writer, _) in self.siblings.iter().filter(|(_, reader)| !reader.adopted) {
            if let Some(lock) = lock_if_dead(&self.lock_path(writer))? {
                dead.push((writer.clone(), lock));
            }
        }
        if dead.is_empty() {
            return Ok(());
        }
        self.open_since = Instant::now();
        let crashes = self.crashes_of(dead.iter().map(|(writer, _)| writer.as_str()));
        self.ledger.crashes.extend(&crashes);
        // A takeover that fails, on a full disk say, is tried again, and the crash was one.
        self.counted.extend(dead.iter().map(|(writer, _)| writer.clone()));
        for (writer, _lock) in dead {
            if let Some(reader) = self.siblings.get_mut(&writer) {
                reader.retire();
                self.earlier |= reader.earlier;
            }
            if self.earlier {
                write::earlier(&mut self.lines);
            }
            let copied = self.copy_answers(&writer).and_then(|()| self.commit());
            let begin = self.lines.len();
            for (digest, crash) in &crashes {
                write::crashed(&mut self.lines, *digest, crash.times, crash.at);
            }
            if let Err(error) = copied.and_then(|()| self.commit()) {
                // Whoever takes over in the end counts the crash: it must not be found here by then.
                self.lines.truncate(begin);
                // Only what is written down here may be forgotten there; the next one to notice takes it over.
                tracing::warn!(%error, "journal cannot be written; dead workers stay as they are");
                return Ok(());
            }
            self.remove_files_of(&writer)?;
            // Last: as long as it is there, somebody will finish this.
            remove(&self.lock_path(&writer))?;
            self.counted.remove(&writer);
        }
        Ok(())
    }

    /// Counts what dead writers left running as crashed, in addition to what they had counted themselves.
    fn crashes_of<'w>(&self, dead: impl Iterator<Item = &'w str>) -> BTreeMap<Digest, Crash> {
        let mut crashes: BTreeMap<Digest, Crash> = BTreeMap::new();
        for reader in dead.filter_map(|writer| self.siblings.get(writer)) {
            let running = &reader.ledger.running;
            let is_sole = running.values().map(|run| run.runs).sum::<u32>() == 1;
            let is_counted = self.counted.contains(&reader.writer);
            let left = running.iter().map(|(digest, run)| {
                // Any of several may be the one to blame: each is a suspect, and none is counted.
                let times = u32::from((run.alone || is_sole) && !is_counted);
                (*digest, Crash { times, at: run.at })
            });
            let known = reader.ledger.crashes.iter().map(|(digest, crash)| (*digest, Crash { times: 0, ..*crash }));
            for (digest, crash) in left.chain(known) {
                let sum = crashes.entry(digest).or_insert(Crash { times: 0, at: crash.at });
                *sum = Crash { times: sum.times + crash.times, at: sum.at.min(crash.at) };
            }
        }
        for (digest, crash) in &mut crashes {
            // Whoever wrote an earlier count down, it is added to.
            let ledgers = self.siblings.values().map(|reader| &reader.ledger).chain([&self.ledger]);
            let before: Vec<Crash> = ledgers.filter_map(|ledger| ledger.crashes.get(digest)).copied().collect();
            crash.times += before.iter().map(|before| before.times).max().unwrap_or(0);
            crash.at = before.iter().map(|before| before.at).fold(crash.at, i64::min);
        }
        crashes
    }

    /// Copies the answers of a dead writer whose commands may return, and those of the last moments: a sibling may ask what was
    /// done while it heard nothing. The writer is read anew if it fails.
    fn copy_answers(&mut self, writer: &str) -> io::Result<()> {
        let Some(reader) = self.siblings.remove(writer) else { return Ok(()) };
        let recent = self.clock.now().as_microsecond() - i64::try_from(KEEP_SEGMENT.as_micros()).unwrap_or(i64::MAX);
        let is_needed = |answered: &Answered| answered.counts.may_return() || answered.began >= recent;
        let mut needed = reader.ledger.into_answers(is_needed);
        // As they stand in the files.
        needed.sort_unstable_by_key(|(_, answered)| (answered.place.segment, answered.place.offset));
        let folder = self.folder.clone();
        let mut source = Answers::new(&folder, writer);
        for (digest, answered) in needed {
            let known = self.ledger.answer(digest).map_or(i64::MIN, |known| known.began);
            let answer =
                if known > answered.began { self.own_answer(digest)? } else { source.read(answered.place, digest)? };
            let Some(answer) = answer else { continue };
            let counts = self.ledger.joined(digest, &answered);
            self.write_answer(digest, known.max(answered.began), &answer, Finish::Kept(counts));
            if self.answers.len() >= COPY_BYTES {
                self.commit()?;
            }
        }
        Ok(())
    }

    fn remove_files_of(&self, writer: &str) -> io::Result<()> {
        for file in fs::read_dir(&self.folder)? {
            let file = file?;
            let name = file.file_name();
            let Some((owner, kind)) = name.to_str().and_then(|name| name.split_once('.')) else { continue };
            if owner == writer && !["lock", "adopted"].contains(&kind) {
                remove(&file.path())?;
            }
        }
        Ok(())
    }

    pub(super) fn lock_path(&self, writer: &str) -> PathBuf {
        self.folder.join(format!("{writer}.lock"))
    }

    /// Deletes the files of writers that the earlier version took over long enough ago.
    pub(super) fn sweep(&self) -> io::Result<()> {
        for entry in fs::read_dir(&self.folder)? {
            let entry = entry?;
            let name = entry.file_name();
            let Some(writer) = name.to_str().and_then(|name| name.strip_suffix(".adopted")) else { continue };
            let age = entry.metadata()?.modified()?.elapsed().unwrap_or_default();
            if age < KEEP_ADOPTED {
                continue;
            }
            self.remove_files_of(writer)?;
            remove(&entry.path())?;
        }
        Ok(())
    }
}

/// Serializes the makers and adopters of a folder.
pub(super) fn gate(folder: &Path) -> io::Result<File> {
    let path = folder.join(".gate");
    let file =
        OpenOptions::new().write(true).create(true).truncate(false).open(&path).map_err(|error| at(&path, &error))?;
    file.lock().map_err(|error| at(&path, &error))?;
    Ok(file)
}

/// Makes a writer's lock file and takes the lock.
pub(super) fn claim(path: &Path) -> io::Result<File> {
    let lock = File::create(path).map_err(|error| at(path, &error))?;
    lock.lock().map_err(|error| at(path, &error))?;
    Ok(lock)
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
