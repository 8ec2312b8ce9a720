//! Task ids and stamps that were revoked: remembered over restarts, and shared by all workers on a folder.
//!
//! One file of lines of JSON, to which every worker appends. It is read anew where it has grown, and written anew, without what is too
//! old, when it has become too long.

use std::collections::{HashMap, VecDeque};
use std::fs::{self, File, OpenOptions};
use std::io::{self, Read as _, Seek as _, SeekFrom, Write as _};
use std::os::unix::fs::MetadataExt as _;
use std::path::{Path, PathBuf};
use std::time::Duration;

use serde::{Deserialize, Serialize};
use tokio::time::Instant;

use super::at;
use crate::celery::message::Field;
use crate::celery::request::{LONGEST_ID, TaskRequest};
use crate::worker::WallClock;

/// Revoked ids and stamps that are remembered at most; the oldest are forgotten first. Celery remembers as many ids.
const MOST: usize = 50_000;
/// How long one is remembered. Celery forgets after three hours, also what was to run a day later.
const KEEP: Duration = Duration::from_secs(30 * 86_400);
/// How long what was revoked is not written again when it is revoked again.
const FRESH: Duration = Duration::from_secs(86_400);
/// How often it is looked whether another worker has written.
const LOOK: Duration = Duration::from_secs(1);
/// Bytes from which on the file is written anew.
const LONG: u64 = 4 << 20;

/// What was revoked.
#[derive(Clone, Debug, PartialEq, Eq, Hash, Serialize, Deserialize)]
#[serde(untagged)]
pub(in super::super) enum Revoked {
    /// A task id.
    Id {
        /// The id.
        revoke: String,
    },
    /// All tasks with this stamp.
    Stamp {
        /// The name of the stamp.
        header: String,
        /// Its value.
        value: String,
    },
}

/// A line of the file.
#[derive(Serialize, Deserialize)]
struct Line {
    #[serde(flatten)]
    what: Revoked,
    /// Unix microseconds.
    at: i64,
}

/// All that is revoked.
#[derive(Debug)]
pub(in super::super) struct Revocations {
    folder: PathBuf,
    clock: WallClock,
    /// In the order in which they were revoked.
    order: VecDeque<(Revoked, i64)>,
    /// By what was revoked, when it last was.
    known: HashMap<Revoked, i64>,
    /// How many of them are stamps.
    stamps: usize,
    /// Of the file: its number, and up to where it was read.
    read: (u64, u64),
    looked: Option<Instant>,
}

impl Revocations {
    /// Reads what is revoked in a folder.
    pub(super) fn open(folder: &Path, clock: WallClock) -> Self {
        let mut revocations = Self {
            folder: folder.to_owned(),
            clock,
            order: VecDeque::new(),
            known: HashMap::new(),
            stamps: 0,
            read: (0, 0),
            looked: None,
        };
        if let Err(error) = revocations.follow().and_then(|()| revocations.shorten()) {
            tracing::error!(%error, "what was revoked cannot be read");
        }
        revocations
    }

    fn path(&self) -> PathBuf {
        self.folder.join("revoked")
    }

    /// Remembers what is revoked, and writes it down. An id that no message may have is left out.
    ///
    /// # Errors
    /// It is not written, so a restart forgets it.
    pub(in super::super) fn revoke(&mut self, all: impl IntoIterator<Item = Revoked>) -> io::Result<()> {
        let now = self.clock.now().as_microsecond();
        // Behind what an interrupted write may have left of a line.
        let mut lines = vec![b'\n'];
        for what in all.into_iter().filter(Revoked::is_possible) {
            if self.knows(&what) {
                continue;
            }
            let line = Line { what, at: now };
            serde_json::to_writer(&mut lines, &line)?;
            lines.push(b'\n');
            self.insert(line.what, now);
        }
        if lines.len() == 1 {
            return Ok(());
        }
        fs::create_dir_all(&self.folder).map_err(|error| at(&self.folder, &error))?;
        let lock = self.lock()?;
        let path = self.path();
        let appended =
            OpenOptions::new().create(true).append(true).open(&path).and_then(|mut file| file.write_all(&lines));
        appended.map_err(|error| at(&path, &error))?;
        drop(lock);
        self.shorten()
    }

    /// Waits for the lock of the file, which nobody holds for longer than it takes to write it.
    fn lock(&self) -> io::Result<File> {
        let path = self.folder.join("revoked.lock");
        let opened = OpenOptions::new().create(true).truncate(false).write(true).open(&path);
        let locked = opened.and_then(|file| file.lock().map(|()| file));
        locked.map_err(|error| at(&path, &error))
    }

    /// Tells whether a task is revoked, by its id or one of its stamps.
    pub(in super::super) fn contains(&mut self, request: &TaskRequest) -> bool {
        self.look();
        if self.known.is_empty() {
            return false;
        }
        let since = self.since();
        let is_known = |what: &Revoked| self.known.get(what).is_some_and(|at| *at >= since);
        if is_known(&Revoked::Id { revoke: request.id.clone() }) {
            return true;
        }
        self.stamps > 0
            && request.stamped_headers.iter().any(|header| {
                let values = request.stamps.get(header).map(values).unwrap_or_default();
                values.into_iter().any(|value| is_known(&Revoked::Stamp { header: header.clone(), value }))
            })
    }

    /// Tells whether this was revoked lately enough not to be written again.
    pub(in super::super) fn knows(&self, what: &Revoked) -> bool {
        let recent = self.clock.now().as_microsecond() - i64::try_from(FRESH.as_micros()).unwrap_or(i64::MAX);
        self.known.get(what).is_some_and(|at| *at >= recent)
    }

    /// Returns the revoked ids, the oldest first.
    pub(in super::super) fn ids(&mut self) -> Vec<String> {
        self.look();
        let since = self.since();
        let ids = self.order.iter().filter(|(what, at)| *at >= since && self.known.get(what) == Some(at));
        ids.filter_map(|(what, _)| match what {
            Revoked::Id { revoke } => Some(revoke.clone()),
            Revoked::Stamp { .. } => None,
        })
        .collect()
    }

    fn since(&self) -> i64 {
        self.clock.now().as_microsecond() - i64::try_from(KEEP.as_micros()).unwrap_or(i64::MAX)
    }

    fn insert(&mut self, what: Revoked, at: i64) {
        if self.known.insert(what.clone(), at).is_none() {
            self.stamps += usize::from(matches!(what, Revoked::Stamp { .. }));
        }
        self.order.push_back((what, at));
        // One that was revoked again stands there twice.
        while self.order.len() > MOST
            && let Some((what, at)) = self.order.pop_front()
        {
            if self.known.get(&what) == Some(&at) {
                self.known.remove(&what);
                self.stamps -= usize::from(matches!(what, Revoked::Stamp { .. }));
            }
        }
    }

    /// Takes in what other workers wrote, once a second at most.
    fn look(&mut self) {
        if self.looked.is_some_and(|looked| looked.elapsed() < LOOK) {
            return;
        }
        self.looked = Some(Instant::now());
        if let Err(error) = self.follow() {
            tracing::error!(%error, "what was revoked cannot be read");
        }
    }

    fn follow(&mut self) -> io::Result<()> {
        let path = self.path();
        let mut file = match File::open(&path) {
            Ok(file) => file,
            Err(error) if error.kind() == io::ErrorKind::NotFound => return Ok(()),
            Err(error) => return Err(at(&path, &error)),
        };
        let metadata = file.metadata().map_err(|error| at(&path, &error))?;
        let from = if metadata.ino() == self.read.0 && metadata.len() >= self.read.1 { self.read.1 } else { 0 };
        if metadata.ino() == self.read.0 && metadata.len() == from {
            return Ok(());
        }
        let mut text = Vec::new();
        file.seek(SeekFrom::Start(from))
            .and_then(|_| file.take(metadata.len() - from).read_to_end(&mut text))
            .map_err(|error| at(&path, &error))?;
        // A line that is being written is read the next time.
        let whole = text.iter().rposition(|byte| *byte == b'\n').map_or(0, |end| end + 1);
        for line in text[..whole].split(|byte| *byte == b'\n') {
            if let Ok(Line { what, at }) = serde_json::from_slice(line)
                && what.is_possible()
                && self.known.get(&what).is_none_or(|known| *known < at)
            {
                self.insert(what, at);
            }
        }
        self.read = (metadata.ino(), from + whole as u64);
        Ok(())
    }

    /// Writes the file anew where it is long, without what is too old.
    fn shorten(&mut self) -> io::Result<()> {
        if self.read.1 < LONG {
            return Ok(());
        }
        let _lock = self.lock()?;
        self.follow()?;
        let since = self.since();
        let mut lines = Vec::new();
        for (what, at) in &self.order {
            if *at >= since && self.known.get(what) == Some(at) {
                serde_json::to_writer(&mut lines, &Line { what: what.clone(), at: *at })?;
                lines.push(b'\n');
            }
        }
        let (path, next) = (self.path(), self.folder.join("revoked.new"));
        fs::write(&next, &lines).and_then(|()| fs::rename(&next, &path)).map_err(|error| at(&path, &error))?;
        self.follow()
    }
}

impl Revoked {
    /// Tells whether a message may have it.
    fn is_possible(&self) -> bool {
        match self {
            Self::Id { revoke } => !revoke.is_empty() && revoke.len() <= LONGEST_ID,
            Self::Stamp { header, value } => header.len() <= LONGEST_ID && value.len() <= LONGEST_ID,
        }
    }
}

/// Returns the values of a stamp as texts.
fn values(field: &Field) -> Vec<String> {
    match field {
        Field::Text(text) => vec![text.clone()],
        Field::Int(number) => vec![number.to_string()],
        Field::Bool(true) => vec!["True".to_owned()],
        Field::Bool(false) => vec!["False".to_owned()],
        Field::List(fields) => fields.iter().flat_map(values).collect(),
        _ => Vec::new(),
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::celery::message::{Headers, Message};

    fn request(id: &str, stamp: Option<(&str, Field)>) -> TaskRequest {
        let mut headers = Headers::default();
        headers.set("id", id.into());
        headers.set("task", "t".into());
        if let Some((name, value)) = stamp {
            headers.set("stamped_headers", Field::List(vec![name.into()]));
            let mut stamps = Headers::default();
            stamps.set(name, value);
            headers.set("stamps", Field::Table(stamps));
        }
        let properties = crate::celery::message::Properties {
            content_type: Some("application/json".to_owned()),
            ..Default::default()
        };
        let message = Message { headers, properties, body: "[[], {}, {}]".into() };
        crate::celery::read::read(&message, &crate::celery::request::ReadOptions::default()).unwrap()
    }

    fn id(id: &str) -> Revoked {
        Revoked::Id { revoke: id.to_owned() }
    }

    fn stamp(header: &str, value: &str) -> Revoked {
        Revoked::Stamp { header: header.to_owned(), value: value.to_owned() }
    }

    #[tokio::test(start_paused = true)]
    async fn what_is_revoked_is_known_after_a_restart_and_to_siblings() {
        let folder = tempfile::tempdir().unwrap();
        let open = || Revocations::open(folder.path(), WallClock::default());
        let (mut own, mut sibling) = (open(), open());
        assert!(!own.contains(&request("a", None)) && !sibling.contains(&request("a", None)));
        own.revoke([id("a"), stamp("customer", "7")]).unwrap();
        assert!(!sibling.contains(&request("a", None)), "it looks once a second");
        tokio::time::advance(LOOK).await;
        for revocations in [&mut own, &mut sibling, &mut open()] {
            assert!(revocations.contains(&request("a", None)));
            assert!(!revocations.contains(&request("b", None)));
            assert!(revocations.contains(&request("b", Some(("customer", Field::List(vec!["x".into(), "7".into()]))))));
            assert!(revocations.contains(&request("b", Some(("customer", Field::Int(7))))));
            assert!(!revocations.contains(&request("b", Some(("customer", "8".into())))));
            assert_eq!(revocations.ids(), ["a"]);
        }
    }

    #[test]
    fn the_oldest_are_forgotten_and_old_ones_do_not_count() {
        let folder = tempfile::tempdir().unwrap();
        let mut revocations = Revocations::open(folder.path(), WallClock::default());
        revocations.revoke((0..MOST + 10).map(|number| id(&number.to_string()))).unwrap();
        assert_eq!(revocations.ids().len(), MOST);
        assert!(!revocations.contains(&request("9", None)) && revocations.contains(&request("10", None)));
        let old = revocations.since() - 1;
        revocations.insert(id("old"), old);
        assert!(!revocations.contains(&request("old", None)));
        let whole = fs::read_to_string(folder.path().join("revoked")).unwrap();
        assert_eq!(whole.lines().nth(1), Some(format!(r#"{{"revoke":"0","at":{}}}"#, revocations.order[0].1).as_str()));
    }

    #[test]
    fn what_is_revoked_again_is_written_once_a_day() {
        let folder = tempfile::tempdir().unwrap();
        let mut revocations = Revocations::open(folder.path(), WallClock::default());
        for _ in 0..100 {
            revocations.revoke([id("a"), id("b")]).unwrap();
        }
        let lines = || {
            fs::read_to_string(folder.path().join("revoked")).unwrap().lines().filter(|line| !line.is_empty()).count()
        };
        assert_eq!(lines(), 2);
        let old = revocations.clock.now().as_microsecond() - i64::try_from(FRESH.as_micros()).unwrap() - 1;
        revocations.insert(id("a"), old);
        revocations.revoke([id("a"), id("b")]).unwrap();
        assert_eq!(lines(), 3);
    }

    #[test]
    fn a_long_file_is_written_anew_and_damaged_lines_say_nothing() {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("revoked");
        let now = WallClock::default().now().as_microsecond();
        let mut text = format!("{{\"revoke\":\"kept\",\"at\":{now}}}\n{{\"revoke\":\"\nnot json\n").into_bytes();
        while (text.len() as u64) < LONG {
            text.extend_from_slice(b"{\"revoke\":\"old\",\"at\":1}\n");
        }
        text.extend_from_slice(b"{\"revoke\":\"half");
        fs::write(&path, text).unwrap();
        let mut revocations = Revocations::open(folder.path(), WallClock::default());
        assert_eq!(revocations.ids(), ["kept"]);
        assert_eq!(fs::read_to_string(&path).unwrap().lines().count(), 1);
        assert!(revocations.revoke([id(&"x".repeat(LONGEST_ID + 1)), id("")]).is_ok());
        assert_eq!(revocations.ids(), ["kept"]);
    }
}
