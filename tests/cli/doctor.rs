//! `filestorage doctor` where no broker answers; with one see `live_broker`.

use serde_json::{Value, json};

use super::{Answer, Place};

/// Nobody listens there.
const NOWHERE: (&str, &str) = ("CELERY_BROKER_URL", "amqp://guest:hunter2@127.0.0.1:1//");

/// Status and text of every line of one check.
fn lines(answer: &Answer, check: &str) -> Vec<(String, String)> {
    let report = answer.json();
    let of = |line: &Value, name: &str| line[name].as_str().unwrap().to_owned();
    let lines = report["checks"].as_array().unwrap().iter().filter(|line| line["check"] == check);
    lines.map(|line| (of(line, "status"), of(line, "text"))).collect()
}

#[track_caller]
fn one(answer: &Answer, check: &str, status: &str, part: &str) {
    let lines = lines(answer, check);
    assert!(lines.len() == 1 && lines[0].0 == status && lines[0].1.contains(part), "{check}: {lines:?}\n{answer:?}");
}

#[test]
fn every_check_runs_though_the_broker_is_away() {
    let place = Place::new();
    let fresh = place.run_with(&["doctor", "--json"], &[NOWHERE], b"");
    assert_eq!((fresh.code, &fresh.json()["ok"], &fresh.json()["faults"]), (69, &json!(false), &json!(1)), "{fresh:?}");
    assert!(!format!("{fresh:?}").contains("hunter"), "{fresh:?}");
    one(&fresh, "settings", "ok", "");
    one(&fresh, "broker", "fault", "Connection refused");
    for skipped in ["queues", "publish", "declare"] {
        one(&fresh, skipped, "skipped", "no broker answers");
    }
    one(&fresh, "disk", "ok", "free at .");
    one(&fresh, "inodes", "ok", "");
    one(&fresh, "folder", "ok", "./storage is not there yet and can be made");
    one(&fresh, "objects", "ok", "nothing is stored yet");
    assert!(!place.path().join("storage").exists(), "looking makes nothing");

    place.store("k", b"value");
    let temporary = place.path().join("storage/objects/#tmp/left");
    std::fs::write(&temporary, b"by a killed writer").unwrap();
    let used = place.run_with(&["doctor", "--json"], &[NOWHERE], b"");
    one(&used, "folder", "ok", "./storage can be written");
    for permission in ["create", "conditions", "get", "list", "replace", "delete"] {
        one(&used, permission, "ok", "");
    }
    one(&used, "leftovers", "note", "1 temporary files of writers that are gone");
    assert!(temporary.exists());
    assert_eq!(place.run(&["list"]).text(), "k\n", "the object it was tried with is gone");

    let text = place.run_with(&["doctor"], &[NOWHERE], b"");
    assert!(
        text.text().contains("fault   broker        cannot open a session on amqp://guest@127.0.0.1:1//"),
        "{text:?}"
    );
    assert!(text.text().ends_with("\n1 fault\n") && text.errors.is_empty(), "{text:?}");
}

#[test]
fn faults_of_settings_are_told_and_what_they_do_not_concern_is_checked() {
    let place = Place::new();
    let environment = [NOWHERE, ("CHUNK_SIZE", "big"), ("CELERY_BROKER_ULR", "x")];
    let answer = place.run_with(&["doctor", "--json"], &environment, b"");
    assert_eq!((answer.code, &answer.json()["faults"]), (78, &json!(2)), "a wrong setting is the worse fault");
    let settings = lines(&answer, "settings");
    assert!(settings[0].0 == "fault" && settings[0].1.contains("chunk_size = \"big\""), "{settings:?}");
    assert!(settings[1].0 == "note" && settings[1].1.contains("did you mean CELERY_BROKER_URL?"), "{settings:?}");
    one(&answer, "broker", "fault", "Connection refused");
    one(&answer, "objects", "ok", "nothing is stored yet");

    std::fs::write(place.path().join("filestorage.toml"), "celery_brokr_url = \"x\"\n").unwrap();
    let unclear = place.run_with(&["doctor", "--json"], &[("STORAGE_BACKEND", "gcs")], b"");
    assert_eq!(unclear.code, 78);
    one(&unclear, "broker", "skipped", "its settings have faults");
    one(&unclear, "storage", "skipped", "its settings have faults");
}

#[test]
fn folders_that_cannot_be_used_are_faults_with_their_mend() {
    let place = Place::new();
    std::fs::write(place.path().join("file"), "").unwrap();
    std::fs::create_dir(place.path().join("there")).unwrap();
    let (file, there) = (place.path().join("file"), place.path().join("there"));
    let directories = format!("{}:{}:/nowhere", file.display(), there.display());
    let environment = [NOWHERE, ("EXCHANGE_DIRECTORIES", &directories), ("LOCAL_STORAGE_PATH", "file")];
    let answer = place.run_with(&["doctor", "--json"], &environment, b"");
    assert_eq!(answer.code, 78, "{answer:?}");
    one(&answer, "folder", "fault", "set local_storage_path");
    let exchange = lines(&answer, "exchange");
    let statuses: Vec<_> = exchange.iter().map(|(status, _)| status.as_str()).collect();
    assert_eq!(statuses, ["fault", "ok", "fault"], "{exchange:?}");
    assert!(exchange[0].1.contains("is no folder") && exchange[2].1.contains("take it out of exchange_directories"));
}
