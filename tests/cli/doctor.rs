//! Tests of `filestorage doctor` without a broker; `live_broker` has tests with one.

use std::io::{Read as _, Write as _};

use serde_json::{Value, json};

use super::{Answer, Place};

/// A broker address at which nothing listens.
const NOWHERE: (&str, &str) = ("CELERY_BROKER_URL", "amqp://guest:hunter2@127.0.0.1:1//");
/// An admin port at which nothing listens, so that no worker of this machine is asked.
const NOBODY: (&str, &str) = ("METRICS_PORT", "1");

/// Returns status and text of all lines of one check.
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
    let fresh = place.run_with(&["doctor", "--json"], &[NOWHERE, NOBODY], b"");
    assert_eq!((fresh.code, &fresh.json()["ok"], &fresh.json()["faults"]), (69, &json!(false), &json!(1)), "{fresh:?}");
    assert!(!format!("{fresh:?}").contains("hunter"), "{fresh:?}");
    one(&fresh, "settings", "ok", "");
    one(&fresh, "broker", "fault", "Connection refused");
    one(&fresh, "worker", "note", "nobody listens at 127.0.0.1:1");
    for skipped in ["queues", "publish", "events", "declare"] {
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
    let used = place.run_with(&["doctor", "--json"], &[NOWHERE, NOBODY], b"");
    one(&used, "folder", "ok", "./storage can be written");
    for permission in ["create", "conditions", "get", "list", "replace", "delete"] {
        one(&used, permission, "ok", "");
    }
    one(&used, "leftovers", "note", "1 temporary files of writers that are gone");
    assert!(temporary.exists());
    assert_eq!(place.run(&["list"]).text(), "k\n", "the object it was tried with is gone");

    let text = place.run_with(&["doctor"], &[NOWHERE, NOBODY], b"");
    assert!(
        text.text().contains("fault   broker        cannot open a session on amqp://guest@127.0.0.1:1//"),
        "{text:?}"
    );
    assert!(text.text().ends_with("\n1 fault\n") && text.errors.is_empty(), "{text:?}");
}

#[test]
fn doctor_checks_what_faulty_settings_do_not_concern() {
    let place = Place::new();
    let environment = [NOWHERE, NOBODY, ("CHUNK_SIZE", "big"), ("CELERY_BROKER_ULR", "x")];
    let answer = place.run_with(&["doctor", "--json"], &environment, b"");
    assert_eq!((answer.code, &answer.json()["faults"]), (78, &json!(2)), "a wrong setting is the worse fault");
    let settings = lines(&answer, "settings");
    assert!(settings[0].0 == "fault" && settings[0].1.contains("chunk_size ("), "{settings:?}");
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
fn folders_that_cannot_be_used_are_faults_with_their_remedy() {
    let place = Place::new();
    for file in ["file", "storage"] {
        std::fs::write(place.path().join(file), "").unwrap();
    }
    std::fs::create_dir(place.path().join("there")).unwrap();
    let (file, there) = (place.path().join("file"), place.path().join("there"));
    let directories = format!("{}:{}:/nowhere", file.display(), there.display());
    let environment = [NOWHERE, NOBODY, ("EXCHANGE_DIRECTORIES", &directories), ("LOCAL_STORAGE_PATH", "storage")];
    let answer = place.run_with(&["doctor", "--json"], &environment, b"");
    assert_eq!(answer.code, 78, "{answer:?}");
    one(&answer, "folder", "fault", "set local_storage_path");
    let exchange = lines(&answer, "exchange");
    let statuses: Vec<_> = exchange.iter().map(|(status, _)| status.as_str()).collect();
    assert_eq!(statuses, ["fault", "ok", "fault"], "{exchange:?}");
    assert!(exchange[0].1.contains("is no folder") && exchange[2].1.contains("take it out of exchange_directories"));
}

/// Answers all requests to an admin port with these answers.
fn stand_in(answers: &'static [(&str, &str, &str)]) -> u16 {
    let listener = std::net::TcpListener::bind("127.0.0.1:0").unwrap();
    let port = listener.local_addr().unwrap().port();
    std::thread::spawn(move || {
        for stream in listener.incoming() {
            let mut stream = stream.unwrap();
            let mut request = [0; 1024];
            let length = stream.read(&mut request).unwrap();
            let asked = String::from_utf8_lossy(&request[..length]).into_owned();
            let (_, status, body) =
                answers.iter().find(|(path, ..)| asked.starts_with(&format!("GET {path} "))).unwrap();
            write!(stream, "HTTP/1.1 {status}\r\ncontent-length: {}\r\n\r\n{body}", body.len()).unwrap();
        }
    });
    port
}

#[test]
fn what_a_running_worker_says_is_wrong_is_a_fault() {
    let place = Place::new();
    let ask = |port: u16| place.run_with(&["doctor", "--json"], &[NOWHERE, ("METRICS_PORT", &port.to_string())], b"");
    let well = ask(stand_in(&[
        ("/readyz", "200 OK", r#"{"ready":true,"components":{"broker":{"ready":true}}}"#),
        ("/health", "200 OK", r#"{"status":"healthy","pending_sync":0}"#),
    ]));
    one(&well, "worker", "ok", "is ready and healthy");
    let away = ask(stand_in(&[
        (
            "/readyz",
            "503 Service Unavailable",
            r#"{"ready":false,"components":{"storage":{"ready":false,"reason":"the bucket is gone"},"journal":{"ready":true,"reason":"deleted"},"broker":{"ready":true}}}"#,
        ),
        ("/health", "200 OK", r#"{"status":"unhealthy","pending_sync":7}"#),
    ]));
    let said = lines(&away, "worker");
    let statuses: Vec<_> = said.iter().map(|(status, _)| status.as_str()).collect();
    assert_eq!((away.code, statuses), (69, vec!["fault", "fault", "note"]), "{said:?}");
    assert!(said[0].1.contains("is not ready, and says of its storage: the bucket is gone"), "{said:?}");
    assert!(said[1].1.contains("runs, but says of its journal: deleted"), "{said:?}");
    assert!(said[2].1.contains("7 values wait"), "{said:?}");
    let sick = ask(stand_in(&[
        ("/readyz", "200 OK", r#"{"ready":true,"components":{}}"#),
        ("/health", "200 OK", r#"{"status":"degraded","pending_sync":null}"#),
    ]));
    one(&sick, "worker", "fault", "says of itself that it is degraded");
    let other = ask(stand_in(&[("/readyz", "404 Not Found", "<html>")]));
    one(&other, "worker", "fault", "is no worker; another program has the port; set metrics_port");
}

#[test]
fn doctor_shows_how_far_quotas_are_used() {
    let place = Place::new();
    place.store("a/1", b"123456789");
    place.store("b/1", b"1");
    let doctor = |quotas: &str| place.run_with(&["doctor", "--json"], &[NOWHERE, NOBODY, ("QUOTAS", quotas)], b"");
    let answer = doctor("a/=10; b/=1MiB,1; =1MiB");
    let lines = lines(&answer, "quotas");
    let wanted = [
        ("note", "a/: 9 B of 10 B stored (90 %): nearly full; remove values, or raise the quota"),
        ("note", "b/: 1 B of 1.00 MiB stored (0 %), 1 of 1 values: full"),
        ("ok", "(all keys): 10 B of 1.00 MiB stored (0 %)"),
    ];
    assert_eq!(lines.len(), wanted.len(), "{lines:?}");
    for ((status, text), (wanted, part)) in lines.iter().zip(wanted) {
        assert!(status == wanted && text.starts_with(part), "{status} {text}");
    }
    // One rule needs its own keys alone. A quota that is nearly full is no fault.
    one(&doctor("a/=100"), "quotas", "ok", "a/: 9 B of 100 B stored (9 %)");
    assert_eq!(doctor("a/=10").json()["faults"], answer.json()["faults"]);
}
