//! What the suites share.

use std::collections::BTreeSet;
use std::future::Future;
use std::path::{Path, PathBuf};
use std::process::Command;
use std::sync::atomic::{AtomicU64, AtomicUsize, Ordering};

use bytes::Bytes;
use filestorage::storage::{Attributes, Checksum, Foreign, Key, Kind, Object, ObjectInfo, Removal};
use jiff::Timestamp;
use tempfile::TempDir;

/// Counts the cases of one stack.
pub(crate) struct Tally {
    stack: &'static str,
    cases: AtomicUsize,
}

impl Tally {
    pub(crate) fn new(stack: &'static str) -> Self {
        Self { stack, cases: AtomicUsize::new(0) }
    }

    /// Counts one case that held.
    pub(crate) fn case(&self) {
        self.cases.fetch_add(1, Ordering::Relaxed);
    }

    /// Asserts and counts.
    #[track_caller]
    #[expect(clippy::needless_pass_by_value, reason = "callers write two values, as for `assert_eq!`")]
    pub(crate) fn equal<T: PartialEq + std::fmt::Debug>(&self, found: T, wanted: T) {
        assert_eq!(found, wanted, "{}", self.stack);
        self.case();
    }

    /// Prints the closing line.
    pub(crate) fn close(self) {
        let cases = self.cases.into_inner();
        assert!(cases > 0);
        println!("conformance: {}: {cases} cases passed", self.stack);
    }
}

/// A folder on memory where there is such a file system, since the suites sync thousands of files.
pub(crate) fn scratch() -> TempDir {
    tempfile::tempdir_in("/dev/shm").or_else(|_| tempfile::tempdir()).unwrap()
}

pub(crate) fn key(text: &str) -> Key {
    Key::parse(text).unwrap()
}

/// An object with a generation of its own.
pub(crate) fn object(payload: impl Into<Bytes>) -> Object {
    static NEXT: AtomicU64 = AtomicU64::new(1);
    let payload = payload.into();
    let checksum = Checksum::of(&payload);
    let metadata = serde_json::value::RawValue::from_string(r#"{"n":1e400,"ü":["é\u000a\\",1.0]}"#.to_owned()).unwrap();
    Object {
        attributes: Attributes {
            kind: Kind::Bytes,
            content_type: "application/octet-stream".to_owned(),
            size: payload.len() as u64,
            checksum,
            stored_size: payload.len() as u64,
            stored_checksum: checksum,
            compression: None,
            encrypted: false,
            generation: format!("g{}", NEXT.fetch_add(1, Ordering::Relaxed)),
            operation_id: Some("id \"1\"\n".to_owned()),
            copied_from: None,
            metadata: Some(metadata),
            stored_at: Timestamp::from_microsecond(1_790_000_000_123_456).unwrap(),
            expires_at: None,
            writer_id: None,
            tombstone: false,
            foreign: Foreign::default(),
            encryption: None,
            info: ObjectInfo::default(),
        },
        payload: payload.into(),
    }
}

/// Where a write or delete came to rest.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Rest {
    Bucket,
    Overlay,
}

/// Tells from an answer where what was written, or deleted, rests.
pub(crate) fn rest(of: impl Into<Rest>) -> Rest {
    of.into()
}

impl From<bool> for Rest {
    fn from(pending: bool) -> Self {
        if pending { Self::Overlay } else { Self::Bucket }
    }
}

impl From<&Attributes> for Rest {
    fn from(stored: &Attributes) -> Self {
        stored.info.pending.into()
    }
}

impl From<Attributes> for Rest {
    fn from(stored: Attributes) -> Self {
        (&stored).into()
    }
}

impl From<Removal> for Rest {
    fn from(removal: Removal) -> Self {
        removal.pending.into()
    }
}

/// Runs the work of one command and returns its outcome and the number of attempts at a backend.
pub(crate) async fn counted<T>(work: impl Future<Output = T>) -> (T, u32) {
    let (outcome, counts) = filestorage::storage::counted(work).await;
    (outcome, counts.attempts)
}

/// Reads an object's bytes, wherever they are.
pub(crate) async fn bytes(object: Object) -> Bytes {
    object.payload.into_memory().await.unwrap()
}

/// An object that is past its time.
pub(crate) fn expired(payload: &'static str) -> Object {
    let mut object = object(payload);
    object.attributes.expires_at = Some(Timestamp::from_second(1_000_000_000).unwrap());
    object
}

/// Attributes as text, to compare all of them but the origin, which a stack may add to what passes through it.
pub(crate) fn text(attributes: &Attributes) -> String {
    serde_json::to_string(&Attributes { writer_id: None, ..attributes.clone() }).unwrap()
}

/// All that is kept of attributes, as text.
pub(crate) fn all(attributes: &Attributes) -> String {
    serde_json::to_string(attributes).unwrap()
}

/// Bytes without pattern, the same each time.
pub(crate) fn noise(length: usize, seed: u64) -> Vec<u8> {
    let mut state = seed;
    std::iter::repeat_with(|| random(&mut state) as u8).take(length).collect()
}

/// Draws the next number from a seed.
pub(crate) fn random(state: &mut u64) -> u64 {
    *state = state.wrapping_mul(6_364_136_223_846_793_005).wrapping_add(1_442_695_040_888_963_407);
    *state >> 33
}

/// Keys that were trouble somewhere once, and samples of all of Unicode.
pub(crate) fn keys() -> BTreeSet<Key> {
    let mut keys: BTreeSet<Key> = [
        "a",
        "a/b",
        "a/b/c",
        "a!",
        "a0",
        "a.obj",
        "a.obj/b",
        "a.obj.obj",
        "A",
        "b",
        "#tmp/x",
        "#locks/00",
        ".hidden",
        "...",
        ".../x",
        "~",
        "a b",
        "a\\b",
        "C:",
        "a?b#c",
        "100%",
        "%2E%2E/x",
        "%",
        "a+b",
        "q=\"1\"&r='2'",
        "*|<>:",
        "é",
        "e\u{301}",
        "日本/語",
        "🦀/🦀",
        "CON",
        "nul.txt",
        "-rf",
        "$HOME",
        "`x`",
        "\u{202e}abc",
        "\u{feff}",
        "\u{10ffff}",
    ]
    .into_iter()
    .map(key)
    .collect();
    for filler in ["x", "é", "語", "🦀", "%", "x/", "é/"] {
        let longest = filler.repeat(1024 / filler.len());
        keys.insert(key(longest.trim_end_matches('/')));
    }
    // Around the length at which a segment is cut, and keys that sort between its pieces.
    for length in [66, 67, 197, 198, 199, 200, 201, 202, 400, 401] {
        for tail in ["", " ", "/", "x", "é", ".", "..", ".obj", "./y", "../y", ".obj/y", " z", "éz/y"] {
            keys.insert(key(format!("{}{tail}", "x".repeat(length)).trim_end_matches('/')));
        }
    }
    let mut state = 7;
    while keys.len() < 700 {
        let length = 1 + random(&mut state) as usize % 40;
        let characters = std::iter::repeat_with(|| match random(&mut state) % 4 {
            0 => '/',
            1 => char::from_u32(0x20 + random(&mut state) as u32 % 0x5f).unwrap(),
            _ => char::from_u32(random(&mut state) as u32 % 0x11_0000).unwrap_or('a'),
        });
        keys.extend(Key::parse(&characters.take(length).collect::<String>()));
    }
    keys
}

/// A file system of 512 KiB that is unmounted when dropped.
pub(crate) struct Small(PathBuf);

impl Small {
    pub(crate) fn mount(on: &Path) -> Result<Self, String> {
        let run = Command::new("mount").args(["-t", "tmpfs", "-o", "size=512k", "tmpfs"]).arg(on).output();
        match run {
            Ok(output) if output.status.success() => Ok(Self(on.to_owned())),
            Ok(output) => Err(String::from_utf8_lossy(&output.stderr).trim().to_owned()),
            Err(error) => Err(error.to_string()),
        }
    }
}

impl Drop for Small {
    fn drop(&mut self) {
        assert!(Command::new("umount").arg("-l").arg(&self.0).status().unwrap().success());
    }
}
