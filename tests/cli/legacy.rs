//! Tests of `filestorage migrate --from-legacy`, and of old files that are read without it.

use std::fs;
use std::path::Path;

use serde_json::{Value, json};

use super::{Answer, Place};

/// Copies the files that the Python class wrote.
fn copy(from: &Path, to: &Path) {
    fs::create_dir_all(to).unwrap();
    for entry in fs::read_dir(from).unwrap() {
        let entry = entry.unwrap();
        let target = to.join(entry.file_name());
        if entry.file_type().unwrap().is_dir() {
            copy(&entry.path(), &target);
        } else {
            fs::copy(entry.path(), target).unwrap();
        }
    }
}

fn fixtures() -> &'static Path {
    Path::new(concat!(env!("CARGO_MANIFEST_DIR"), "/tests/fixtures/legacy"))
}

/// The keys that the class wrote, with what it was given.
fn told() -> serde_json::Map<String, Value> {
    serde_json::from_slice(&fs::read(fixtures().join("storage.json")).unwrap()).unwrap()
}

/// A folder with old files in its storage.
fn old() -> Place {
    let place = Place::new();
    copy(&fixtures().join("storage"), &place.path().join("storage"));
    place
}

/// The files below a folder, but not those of this program.
fn files(folder: &Path) -> Vec<String> {
    let (mut open, mut found) = (vec![folder.to_owned()], Vec::new());
    while let Some(path) = open.pop() {
        for entry in fs::read_dir(path).unwrap() {
            let entry = entry.unwrap();
            if !entry.file_type().unwrap().is_dir() {
                found.push(entry.path().strip_prefix(folder).unwrap().to_str().unwrap().to_owned());
            } else if !["objects", "spool"].iter().any(|own| folder.join(own) == entry.path()) {
                open.push(entry.path());
            }
        }
    }
    found.sort_unstable();
    found
}

/// What `stat` and `retrieve` answer for each key, the generation included.
fn all(place: &Place, more: &[&str]) -> Vec<(String, Vec<u8>, Value)> {
    let answer = |arguments: &[&str]| place.run(&[arguments, more].concat());
    let listed = answer(&["list"]);
    let one = |key: &str| {
        let stat = answer(&["stat", key, "--json"]);
        assert_eq!(stat.code, 0, "{stat:?}");
        let mut told = stat.json();
        // A file is compressed, and an object of this version is not.
        for kept in ["stored_size", "compression"] {
            told.as_object_mut().unwrap().remove(kept);
        }
        (key.to_owned(), answer(&["retrieve", key]).out, told)
    };
    listed.text().lines().map(one).collect()
}

#[track_caller]
fn counts(answer: &Answer, copied: u64, skipped: u64, failed: u64) -> Value {
    let summary = answer.json();
    let found = ["copied", "skipped", "failed"].map(|name| summary[name].as_u64().unwrap());
    assert_eq!(found, [copied, skipped, failed], "{answer:?}");
    summary["doubtful"].clone()
}

#[test]
fn old_files_are_read_and_reading_changes_nothing() {
    let place = old();
    let before = files(&place.path().join("storage"));
    let listed = place.run(&["list"]);
    let told = told();
    let mut keys: Vec<&str> = told.keys().map(String::as_str).collect();
    keys.sort_unstable();
    assert_eq!(listed.text().lines().collect::<Vec<_>>(), keys);
    assert_eq!(place.run(&["retrieve", "text.txt"]).text(), "hello žluť");
    assert_eq!(place.run(&["retrieve", "tuple"]).text(), "[1,[2,[]]]");
    let stat = place.run(&["stat", "with metadata.txt", "--json"]).json();
    assert_eq!((&stat["kind"], &stat["expires_at"]), (&json!("text"), &json!(null)));
    assert_eq!(stat["metadata"]["expires_at"], "2020-01-01T00:00:00");
    let model = place.run(&["retrieve", "model"]);
    assert!(model.code == 65 && model.errors.contains("__main__.Model"), "{model:?}");
    assert_eq!(place.run(&["exists", "model"]).code, 0);
    assert_eq!(place.run(&["exists", "no such key"]).code, 66);
    assert_eq!(files(&place.path().join("storage")), before);
    assert!(!place.path().join("storage/objects").exists(), "nothing was made");

    assert_eq!(place.run(&["delete", "dict"]).code, 0);
    place.store("list", b"new");
    assert_eq!(place.run(&["retrieve", "list"]).text(), "new");
    let after = files(&place.path().join("storage"));
    assert_eq!(before.len() - after.len(), 2);
}

#[test]
fn a_folder_is_converted_in_place() {
    let place = old();
    let before = all(&place, &[]);
    let total = told().len() as u64;
    let run = |more: &[&str]| place.run(&[&["migrate", "--from-legacy", "storage", "--json"], more].concat());

    let trial = run(&["--dry-run"]);
    assert_eq!(trial.code, 75, "{trial:?}");
    let doubtful = counts(&trial, total - 1, 0, 1);
    assert!(!place.path().join("storage/objects").exists());

    let first = run(&[]);
    assert_eq!(first.code, 75, "{first:?}");
    assert_eq!(counts(&first, total - 1, 0, 1), doubtful, "a trial says what the run says");
    let wanted = json!({
        "text_or_bytes": 10, "json_text": 2, "assumed_gzip": 4, "shared_sidecar": 2, "unreadable_sidecar": 0,
        "types_changed": 3, "kept_pickle": 0, "left_out": 0
    });
    assert_eq!(doubtful, wanted, "{}", first.errors);
    for line in [
        "json-as-text: taken for a text",
        "packed/dict-without: taken for compressed",
        "set: tuples and sets are arrays",
    ] {
        assert!(first.errors.contains(line), "{line} in {}", first.errors);
    }
    assert!(first.errors.contains("__main__.Model"), "{}", first.errors);
    assert_eq!(files(&place.path().join("storage")), ["model", "model.metadata"], "what failed stays as it was");
    assert_eq!(all(&place, &[]), before, "generations, times and metadata included");

    let last = run(&["--keep-pickles"]);
    assert_eq!((last.code, counts(&last, 1, 0, 0)["kept_pickle"].clone()), (0, json!(1)), "{last:?}");
    assert_eq!(files(&place.path().join("storage")), [""; 0]);
    let storage = fs::read_dir(place.path().join("storage")).unwrap();
    let left: Vec<_> = storage.map(|entry| entry.unwrap().file_name().into_string().unwrap()).collect();
    assert!(left.iter().all(|name| ["objects", "spool"].contains(&name.as_str())), "{left:?}");
    assert!(place.run(&["retrieve", "model"]).out.starts_with(b"\x80\x04"));
    let nothing = run(&[]);
    assert_eq!(nothing.code, 0);
    counts(&nothing, 0, 0, 0);
}

#[test]
fn a_folder_is_converted_into_another_place_and_stays() {
    let place = old();
    let (there, before) = (place.path().join("there"), files(&place.path().join("storage")));
    let url = format!("file://{}", there.display());
    let run = |more: &[&str]| {
        place.run(&[&["migrate", "--from-legacy", "storage", "--to", &url, "--keep-pickles", "--json"], more].concat())
    };
    let total = told().len() as u64;
    counts(&run(&["--prefix", "packed/"]), 6, 0, 0);
    let rest = run(&[]);
    assert_eq!(rest.code, 0, "{rest:?}");
    counts(&rest, total - 6, 6, 0);
    assert_eq!(files(&place.path().join("storage")), before);
    let elsewhere = all(&place, &["--local-storage-path", there.to_str().unwrap()]);
    let mut here = all(&place, &[]);
    for (key, bytes, stat) in &mut here {
        if key == "model" {
            *bytes = fs::read(place.path().join("storage/model")).unwrap();
            stat["size"] = json!(bytes.len());
        }
    }
    assert_eq!(elsewhere, here);
}

#[test]
fn a_date_in_a_sidecar_expires_only_what_is_asked_for() {
    let place = old();
    let converted = place.run(&["migrate", "--from-legacy", "storage", "--honour-expiry", "--json"]);
    assert_eq!(converted.code, 75, "{converted:?}");
    for expired in ["with metadata.txt", "packed/text-with-metadata.txt"] {
        assert_eq!(place.run(&["exists", expired]).code, 66, "{expired}");
        assert!(!place.path().join("storage").join(expired).exists());
    }
    assert_eq!(place.run(&["exists", "text.txt"]).code, 0);

    let place = old();
    place.run(&["migrate", "--from-legacy", "storage"]);
    let stat = place.run(&["stat", "with metadata.txt", "--json"]).json();
    assert_eq!((&stat["expires_at"], &stat["metadata"]["expires_at"]), (&json!(null), &json!("2020-01-01T00:00:00")));
}

#[test]
fn an_old_file_behind_a_new_value_is_told_and_stays() {
    let place = Place::new();
    place.store("k", b"new");
    fs::write(place.path().join("storage/k"), "written by Python afterwards").unwrap();
    let refused = place.run(&["migrate", "--from-legacy", "storage"]);
    assert!(refused.code == 75 && refused.errors.contains("another value there, of 3 bytes"), "{refused:?}");
    assert_eq!(place.run(&["retrieve", "k"]).text(), "new");
    let replaced = place.run(&["migrate", "--from-legacy", "storage", "--overwrite"]);
    assert_eq!(replaced.code, 0, "{replaced:?}");
    assert_eq!(place.run(&["retrieve", "k"]).text(), "written by Python afterwards");
    assert!(!place.path().join("storage/k").exists());
}

#[test]
fn what_cannot_be_converted_so_is_told_before_anything_is_done() {
    let place = old();
    for (arguments, code, why) in [
        (&["--from-legacy", "nowhere"][..], 66, "there is no folder nowhere"),
        (&["--from-legacy", "storage", "--from", "local"], 64, "--from"),
        (&["--from-legacy", "storage", "--to", "gcs"], 64, "gcs_bucket_name"),
        (&["--from", "local", "--to", "gcs", "--honour-expiry"], 64, "--from-legacy"),
        (&["--from-legacy", "storage", "--s3-bucket-name", "bucket"], 64, "--to s3"),
    ] {
        let answer = place.run(&[&["migrate"], arguments].concat());
        assert_eq!(answer.code, code, "{answer:?}");
        assert!(answer.errors.contains(why), "{answer:?}");
    }
    assert!(!place.path().join("storage/objects").exists());
}
