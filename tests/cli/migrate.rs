//! Tests of `filestorage migrate` between folders.

use std::fs::File;
use std::io::Read as _;
use std::path::{Path, PathBuf};

use serde_json::{Value, json};

use super::{Answer, Place, noise};

/// A test folder with a second store besides its own.
struct Pair {
    place: Place,
    there: PathBuf,
}

impl Pair {
    fn new() -> Self {
        let place = Place::new();
        let there = place.path().join("there");
        Self { place, there }
    }

    fn url(&self) -> String {
        format!("file://{}", self.there.display())
    }

    fn migrate(&self, more: &[&str]) -> Answer {
        self.place.run(&[&["migrate", "--from", "local", "--to", &self.url(), "--json"], more].concat())
    }

    fn there(&self, arguments: &[&str]) -> Answer {
        self.place.run(&[arguments, &["--local-storage-path", self.there.to_str().unwrap()]].concat())
    }

    /// Runs the same command on both stores.
    #[track_caller]
    fn agree(&self, arguments: &[&str]) -> Vec<u8> {
        let (here, there) = (self.place.run(arguments), self.there(arguments));
        assert_eq!((here.code, there.code), (0, 0), "{here:?} {there:?}");
        assert_eq!(here.out, there.out, "{arguments:?}");
        here.out
    }
}

#[track_caller]
fn counts(answer: &Answer, copied: u64, skipped: u64, failed: u64) {
    let summary = answer.json();
    let found = ["copied", "skipped", "failed"].map(|name| summary[name].as_u64().unwrap());
    assert_eq!(found, [copied, skipped, failed], "{answer:?}");
}

#[test]
fn every_value_arrives_whole_with_all_that_is_known_of_it() {
    let pair = Pair::new();
    // What is compressed is copied as it is, so the number of bytes is that of the stored bytes.
    let big = noise(3 << 20);
    let place = &pair.place;
    let store = |key: &str, more: &[&str], value: &[u8]| {
        assert_eq!(place.run_with(&[&["store", key], more].concat(), &[], value).code, 0);
    };
    store("a/b", &["--metadata", r#"{"x": 1.50, "ü": "é"}"#, "--content-type", "image/png"], b"\x00\xff");
    store("a/b/c", &["--kind", "text", "--ttl-seconds", "3600"], "é".as_bytes());
    store("big", &[], &big);
    store("empty", &["--kind", "json"], b"null");

    let first = pair.migrate(&[]);
    assert_eq!((first.code, first.errors.as_str()), (0, ""), "{first:?}");
    let sizes = 2 + 2 + big.len() + 4;
    let summary = json!({
        "from": "./storage", "to": pair.there, "dry_run": false, "copied": 4, "copied_bytes": sizes, "skipped": 0,
        "failed": 0, "reduced": 0, "foreign": 0, "complete": true
    });
    assert_eq!(first.json(), summary);
    let keys = pair.agree(&["list"]);
    for key in String::from_utf8(keys).unwrap().lines() {
        pair.agree(&["stat", key, "--json"]);
        pair.agree(&["retrieve", key]);
    }
    let again = pair.migrate(&[]);
    assert_eq!(again.code, 0);
    counts(&again, 0, 4, 0);

    store("later", &[], b"new");
    let text = place.run(&["migrate", "--from", "local", "--to", &pair.url()]);
    let said = format!(
        "copied 1 values (3 bytes) from ./storage to {}, 4 were there already, 0 failed\n",
        pair.there.display()
    );
    assert_eq!((text.code, text.text()), (0, said.as_str()), "{text:?}");
    // And back: what was never here is fetched, what is here is left alone.
    assert_eq!(place.run(&["delete", "big"]).code, 0);
    let back = place.run(&["migrate", "--from", &pair.url(), "--to", "local", "--json"]);
    counts(&back, 1, 4, 0);
    pair.agree(&["stat", "big", "--json"]);
}

#[test]
fn a_trial_says_all_and_writes_nothing() {
    let pair = Pair::new();
    pair.place.store("one", b"1");
    pair.place.store("two", b"22");
    let trial = pair.migrate(&["--dry-run"]);
    assert_eq!(trial.code, 0);
    counts(&trial, 2, 0, 0);
    assert_eq!((&trial.json()["dry_run"], &trial.json()["copied_bytes"]), (&json!(true), &json!(3)));
    assert!(!pair.there.exists());
    let text = pair.place.run(&["migrate", "--from", "local", "--to", &pair.url(), "--dry-run"]);
    assert!(text.text().starts_with("would copy 2 values (3 bytes) from "), "{text:?}");

    std::fs::write(pair.place.path().join("other"), "other").unwrap();
    assert_eq!(pair.there(&["store", "two", "other"]).code, 0);
    let trial = pair.migrate(&["--dry-run"]);
    assert_eq!(trial.code, 75);
    counts(&trial, 1, 0, 1);
    assert_eq!(pair.there(&["list"]).text(), "two\n");
}

#[test]
fn another_value_in_the_way_is_a_failure_and_the_rest_goes_on() {
    let pair = Pair::new();
    for key in ["a", "b", "c"] {
        pair.place.store(key, key.as_bytes());
    }
    std::fs::write(pair.place.path().join("other"), "other").unwrap();
    assert_eq!(pair.there(&["store", "b", "other"]).code, 0);
    let refused = pair.place.run(&["migrate", "--from", "local", "--to", &pair.url()]);
    assert_eq!(refused.code, 75, "{refused:?}");
    assert_eq!(refused.errors.lines().count(), 1, "{refused:?}");
    assert!(refused.errors.starts_with("filestorage: store \"b\": local "), "{refused:?}");
    assert!(refused.errors.contains("another value there, of 5 bytes") && refused.errors.contains("--overwrite"));
    assert!(refused.text().ends_with("0 were there already, 1 failed\n"), "{refused:?}");
    assert_eq!(pair.there(&["retrieve", "b"]).text(), "other");
    assert_eq!(pair.there(&["retrieve", "c"]).text(), "c");

    let replaced = pair.migrate(&["--overwrite"]);
    assert_eq!(replaced.code, 0, "{replaced:?}");
    counts(&replaced, 1, 2, 0);
    pair.agree(&["stat", "b", "--json"]);
}

#[test]
fn what_is_damaged_is_told_and_what_has_expired_left_out() {
    let pair = Pair::new();
    pair.place.store("a", b"precious");
    let [file] = &pair.place.objects()[..] else { panic!("one object") };
    let mut bytes = std::fs::read(file).unwrap();
    *bytes.last_mut().unwrap() ^= 1;
    std::fs::write(file, bytes).unwrap();
    pair.place.store("b", b"sound");
    assert_eq!(pair.place.run_with(&["store", "x", "--ttl-seconds", "0.000001"], &[], b"short").code, 0);
    let damaged = pair.migrate(&[]);
    assert_eq!(damaged.code, 75, "{damaged:?}");
    counts(&damaged, 1, 0, 1);
    let line: Value = serde_json::from_str(&damaged.errors).unwrap();
    assert!(line["error"]["message"].as_str().unwrap().starts_with("retrieve \"a\": "), "{line}");
    assert_eq!(pair.there(&["list"]).text(), "b\n");

    // A damaged value at the target is repaired by one that is sound, when that is asked for.
    pair.place.store("a", b"sound again");
    assert_eq!(pair.migrate(&[]).code, 0);
    let file = pair.there.join("objects/a.obj");
    std::fs::write(&file, &std::fs::read(&file).unwrap()[1..]).unwrap();
    assert_eq!(pair.migrate(&[]).code, 75);
    let repaired = pair.migrate(&["--overwrite"]);
    counts(&repaired, 1, 1, 0);
    pair.agree(&["retrieve", "a"]);
}

#[test]
fn only_the_prefix_is_copied_in_pages_and_in_parallel() {
    let pair = Pair::new();
    for number in 0..12 {
        pair.place.store(&format!("p/{number}"), b"1");
    }
    pair.place.store("q", b"1");
    for (parallel, copied, skipped) in [("1", 12, 0), ("256", 0, 12)] {
        counts(&pair.migrate(&["--prefix", "p/", "--parallel", parallel]), copied, skipped, 0);
    }
    assert_eq!(pair.there(&["exists", "q"]).code, 66);
    for parallel in ["0", "257", "x"] {
        assert_eq!(pair.migrate(&["--parallel", parallel]).code, 64);
    }
}

#[test]
fn a_place_that_is_none_is_told_before_anything_is_done() {
    let pair = Pair::new();
    pair.place.store("k", b"1");
    for (to, why) in [
        ("local", "the same place"),
        ("gcs", "gcs_bucket_name"),
        ("s3", "s3_bucket_name"),
        ("ftp://host", "gs://BUCKET"),
        ("gs://Upper", "must be the bare name of a bucket"),
        ("gs://bucket/folder", "--prefix"),
        ("file://relative", "file:///absolute/path"),
    ] {
        let answer = pair.place.run(&["migrate", "--from", "local", "--to", to]);
        assert_eq!(answer.code, 64, "{answer:?}");
        assert!(answer.errors.contains(why) && answer.errors.lines().count() == 1, "{answer:?}");
    }
    let nothing = pair.place.run(&["migrate", "--from", &pair.url(), "--to", "local"]);
    assert!(nothing.code == 66 && nothing.errors.contains("nothing is stored under"), "{nothing:?}");
    assert!(!pair.there.exists());
}

/// Holds the locks of all keys of a store, as another writer would.
fn hold_all(root: &Path) -> Vec<File> {
    std::fs::create_dir_all(root.join("#locks")).unwrap();
    let open = |shard| File::create(root.join(format!("#locks/{shard:02x}"))).unwrap();
    let files: Vec<File> = (0..256).map(open).collect();
    files.iter().for_each(|file| file.lock().unwrap());
    files
}

#[test]
fn an_interrupted_run_leaves_whole_values_and_is_continued() {
    let pair = Pair::new();
    for number in 0..6 {
        pair.place.store(&format!("k{number}"), b"whole");
    }
    let objects = pair.there.join("objects");
    let held = hold_all(&objects);
    let arguments = ["migrate", "--from", "local", "--to", &pair.url(), "--parallel", "2", "--json"];
    let mut child = pair.place.command(&arguments, &[]).spawn().unwrap();
    // Two values are written and wait to become visible.
    let written = || std::fs::read_dir(objects.join("#tmp")).is_ok_and(|entries| entries.count() == 2);
    super::wait_until("two values are under way", written);
    let pid = rustix::process::Pid::from_child(&child);
    rustix::process::kill_process(pid, rustix::process::Signal::TERM).unwrap();
    let mut out = String::new();
    let mut stdout = child.stdout.take().unwrap();
    // The summary comes at once, the end when what was on its way has become whole.
    let mut first = [0; 1];
    stdout.read_exact(&mut first).unwrap();
    drop(held);
    stdout.read_to_string(&mut out).unwrap();
    let output = child.wait_with_output().unwrap();
    assert_eq!(output.status.code(), Some(75), "{output:?}");
    let errors = String::from_utf8(output.stderr).unwrap();
    assert!(errors.contains("interrupted; run it again to continue"), "{errors}");
    let summary: Value = serde_json::from_str(&format!("{}{out}", char::from(first[0]))).unwrap();
    assert_eq!((&summary["complete"], &summary["copied"]), (&json!(false), &json!(0)));

    let arrived = pair.there(&["list"]);
    let arrived = arrived.text().lines().count() as u64;
    let continued = pair.migrate(&[]);
    assert_eq!(continued.code, 0, "{continued:?}");
    counts(&continued, 6 - arrived, arrived, 0);
    for number in 0..6 {
        pair.agree(&["retrieve", &format!("k{number}")]);
    }
}
