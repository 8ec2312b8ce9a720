//! Tests of all ways that could lead out of a directory.

use std::fs;
use std::io::Read as _;
use std::os::unix::ffi::OsStrExt as _;
use std::os::unix::fs::symlink;
use std::path::PathBuf;
use std::sync::atomic::{AtomicBool, Ordering};

use tempfile::TempDir;

use super::*;

/// A folder with `exchange/`, which has some files, and `outside/`, which has a secret.
struct Scratch {
    root: TempDir,
    directory: Directory,
}

impl Scratch {
    fn new() -> Self {
        // In memory where there is such a file system: the races sync a folder thousands of times.
        let root = tempfile::tempdir_in("/dev/shm").or_else(|_| tempfile::tempdir()).unwrap();
        fs::create_dir_all(root.path().join("exchange/in/deep")).unwrap();
        fs::create_dir_all(root.path().join("outside/deep")).unwrap();
        for (name, text) in [("exchange/a", "a"), ("exchange/in/deep/a", "deep"), ("outside/deep/a", "secret")] {
            fs::write(root.path().join(name), text).unwrap();
        }
        fs::write(root.path().join("outside/a"), "secret").unwrap();
        let directory = Directory::open(&root.path().join("exchange")).unwrap();
        Self { root, directory }
    }

    fn path(&self, name: &str) -> PathBuf {
        self.root.path().join(name)
    }

    fn read(&self, below: &str) -> Result<String, FileFault> {
        let mut text = String::new();
        self.directory.read(Path::new(below))?.read_to_string(&mut text)?;
        Ok(text)
    }

    fn write(&self, below: &str) -> Result<(), FileFault> {
        Ok(self.directory.write(Path::new(below))?.commit()?)
    }
}

fn is_missing(fault: &FileFault) -> bool {
    matches!(fault, FileFault::Io(error) if error.kind() == io::ErrorKind::NotFound)
}

#[test]
fn files_are_opened_whatever_their_names() {
    let place = Scratch::new();
    assert_eq!(place.read("a").unwrap(), "a");
    assert_eq!(place.read("in/deep/a").unwrap(), "deep");
    let longest = "x".repeat(255);
    for name in [" ", "a b", "\u{fc}\u{1f980}", "100%", "%2e%2e", "...", "-rf", "line\nfeed", "a\\b", "*", &longest] {
        fs::write(place.path("exchange").join(name), name).unwrap();
        assert_eq!(place.read(name).unwrap(), name);
        place.write(name).unwrap();
        assert_eq!(place.read(name).unwrap(), "");
    }
    let foreign = Path::new(OsStr::from_bytes(b"\xff\xfe"));
    fs::write(place.path("exchange").join(foreign), "").unwrap();
    assert!(place.directory.read(foreign).is_ok());
    assert!(is_missing(&place.read("none").unwrap_err()));
    assert!(is_missing(&place.read("none/a").unwrap_err()));
    assert!(matches!(place.write("none/a"), Err(FileFault::Folder(error)) if error.kind() == io::ErrorKind::NotFound));
    assert!(matches!(place.read("a/b"), Err(FileFault::Io(error)) if error.kind() == io::ErrorKind::NotADirectory));
    assert!(
        matches!(place.write("a/b"), Err(FileFault::Folder(error)) if error.kind() == io::ErrorKind::NotADirectory)
    );
}

#[test]
fn no_link_is_followed_wherever_it_stands() {
    let place = Scratch::new();
    let absolute = place.path("outside");
    for (link, target) in [
        ("absolute", absolute.as_path()),
        ("relative", Path::new("../outside")),
        ("inward", Path::new("in")),
        ("in/link", Path::new("../../outside")),
        ("itself", Path::new("itself")),
        ("nowhere", Path::new("none")),
    ] {
        symlink(target, place.path("exchange").join(link)).unwrap();
        for below in [link.to_owned(), format!("{link}/a"), format!("{link}/deep/a")] {
            assert!(matches!(place.read(&below), Err(FileFault::Link)), "{below}");
        }
        for below in [format!("{link}/a"), format!("{link}/deep/new")] {
            assert!(matches!(place.write(&below), Err(FileFault::Link)), "{below}");
        }
    }
    symlink(place.path("outside/a"), place.path("exchange/file")).unwrap();
    assert!(matches!(place.read("file"), Err(FileFault::Link)));
    place.write("file").unwrap();
    assert_eq!(place.read("file").unwrap(), "");
    assert_eq!(fs::read_to_string(place.path("outside/a")).unwrap(), "secret");
}

#[test]
fn dots_and_absolute_paths_never_reach_the_system() {
    let place = Scratch::new();
    let absolute = place.path("outside/a");
    for below in ["..", "../outside/a", "in/../../outside/a", "in/..", "/", "", absolute.to_str().unwrap()] {
        assert!(matches!(place.read(below), Err(FileFault::NoFile)), "{below}");
        assert!(matches!(place.write(below), Err(FileFault::NoFile)), "{below}");
    }
}

#[test]
fn pipes_sockets_and_folders_neither_block_nor_are_replaced() {
    let place = Scratch::new();
    let folder = fs::File::open(place.path("exchange")).unwrap();
    for (name, kind) in [("pipe", FileType::Fifo), ("socket", FileType::Socket)] {
        rustix::fs::mknodat(&folder, name, kind, Mode::RWXU, 0).unwrap();
    }
    for below in ["pipe", "socket", "in", "in/deep"] {
        assert!(matches!(place.read(below), Err(FileFault::NoFile)), "{below}");
        assert!(matches!(place.write(below), Err(FileFault::NoFile)), "{below}");
    }
    assert!(fs::symlink_metadata(place.path("exchange/pipe")).is_ok());
}

/// Swaps two names, one of them a link out of the directory, while `work` runs.
fn while_swapping(one: &Path, other: &Path, work: impl FnOnce()) {
    let done = AtomicBool::new(false);
    std::thread::scope(|scope| {
        scope.spawn(|| {
            while !done.load(Ordering::Relaxed) {
                let flags = rustix::fs::RenameFlags::EXCHANGE;
                rustix::fs::renameat_with(CWD, one, CWD, other, flags).unwrap();
            }
        });
        // The swapping also stops when an assertion of the work fails. The thread would run for ever otherwise.
        struct Stop<'a>(&'a AtomicBool);
        impl Drop for Stop<'_> {
            fn drop(&mut self) {
                self.0.store(true, Ordering::Relaxed);
            }
        }
        let _stop = Stop(&done);
        work();
    });
}

/// The number of rounds of a race.
const ROUNDS: usize = 20_000;

#[test]
fn a_folder_swapped_for_a_link_exposes_nothing_outside() {
    let place = Scratch::new();
    let (folder, link) = (place.path("exchange/in"), place.path("exchange/link"));
    symlink(place.path("outside"), &link).unwrap();
    let (mut read, mut refused) = (0, 0);
    while_swapping(&folder, &link, || {
        for _ in 0..ROUNDS {
            match place.read("in/deep/a") {
                Ok(text) => {
                    assert_eq!(text, "deep");
                    read += 1;
                }
                // Between the refusal and the examination of its cause, the folder may be back.
                Err(FileFault::Link | FileFault::Io(_)) => refused += 1,
                Err(fault) => panic!("{fault:?}"),
            }
            if let Err(FileFault::NoFile) = place.write("in/deep/new") {
                panic!("no file");
            }
        }
    });
    assert!(read > 0 && refused > 0, "{read} {refused}");
    let outside: Vec<_> = fs::read_dir(place.path("outside/deep")).unwrap().collect();
    assert_eq!(outside.len(), 1, "{outside:?}");
}

#[test]
fn a_file_swapped_for_a_link_exposes_nothing_outside() {
    let place = Scratch::new();
    let (file, link) = (place.path("exchange/a"), place.path("exchange/link"));
    symlink(place.path("outside/a"), &link).unwrap();
    let (mut read, mut refused) = (0, 0);
    while_swapping(&file, &link, || {
        for _ in 0..ROUNDS {
            match place.read("a") {
                Ok(text) => {
                    assert_eq!(text, "a");
                    read += 1;
                }
                Err(FileFault::Link) => refused += 1,
                Err(fault) => panic!("{fault:?}"),
            }
        }
    });
    assert!(read > 0 && refused > 0, "{read} {refused}");
}
