//! Tests of subcommands with a bucket that cannot be reached or refuses requests; `tests/e2e` has a bucket that works.

use std::io::{Read as _, Write as _};
use std::net::{TcpListener, TcpStream};
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};

use serde_json::{Value, json};

use super::{Answer, Place, Worker};

/// Settings of a bucket at an address where nothing listens, with short waits.
const AWAY: [(&str, &str); 3] =
    [("GCS_BUCKET_NAME", "bucket-1"), ("STORAGE_EMULATOR_HOST", "127.0.0.1:1"), ("MAX_RETRIES", "0")];
const S3_AWAY: [(&str, &str); 5] = [
    ("S3_BUCKET_NAME", "bucket-1"),
    ("AWS_ENDPOINT_URL", "http://127.0.0.1:1"),
    ("AWS_ACCESS_KEY_ID", "id"),
    ("AWS_SECRET_ACCESS_KEY", "hunter2"),
    ("MAX_RETRIES", "0"),
];

fn run(place: &Place, environment: &[(&str, &str)], arguments: &[&str]) -> Answer {
    place.run_with(arguments, environment, b"value")
}

/// Returns the files of objects below a folder.
fn entries(folder: &Path) -> Vec<PathBuf> {
    let (mut folders, mut files) = (vec![folder.to_owned()], Vec::new());
    while let Some(folder) = folders.pop() {
        for entry in std::fs::read_dir(folder).into_iter().flatten() {
            let path = entry.unwrap().path();
            match path.extension() {
                Some(extension) if extension == "obj" => files.push(path),
                _ if path.is_dir() => folders.push(path),
                _ => {}
            }
        }
    }
    files.sort();
    files
}

#[test]
fn while_the_bucket_is_away_writes_land_here_and_say_so() {
    for environment in [&AWAY[..], &S3_AWAY] {
        let place = Place::new();
        let overlay = place.path().join("storage/overlay");
        let run = |arguments: &[&str]| run(&place, environment, arguments);
        let stored = run(&["store", "k", "--json"]);
        assert_eq!(stored.code, 0, "{stored:?}");
        let receipt = stored.json();
        assert_eq!((&receipt["backend"], &receipt["pending_sync"]), (&json!("local"), &json!(true)));
        let told = run(&["store", "k2"]);
        assert!(told.text().ends_with("; it waits on this machine until the bucket is back\n"), "{told:?}");
        assert_eq!(entries(&overlay).len(), 2);
        assert!(!place.path().join("storage/objects").exists(), "a bucket needs no local store");

        assert_eq!(run(&["retrieve", "k"]).text(), "value");
        assert_eq!(run(&["stat", "k", "--json"]).json()["generation"], receipt["generation"]);
        assert_eq!(run(&["exists", "k"]).text(), "true\n");
        let deleted = run(&["delete", "k", "--json"]);
        assert_eq!(deleted.json(), json!([{"key": "k", "ok": true, "pending_sync": true}]), "{deleted:?}");
        assert_eq!(run(&["delete", "k2"]).text(), "deleted k2; the bucket is told when it is back\n");
        assert_eq!(run(&["exists", "k"]).code, 66);

        // What only the bucket knows is an error, and so is a condition that only it can decide.
        for arguments in [&["retrieve", "other"][..], &["exists", "other"], &["stat", "other"], &["list"]] {
            let answer = run(arguments);
            assert!(
                answer.code == 69 && answer.out.is_empty() && answer.errors.contains("cannot be reached"),
                "{answer:?}"
            );
        }
        assert_eq!(run(&["store", "other", "--if-absent"]).code, 69);
        assert_eq!(entries(&overlay).len(), 2);

        let sync = run(&["sync"]);
        assert_eq!(sync.code, 69, "{sync:?}");
        assert!(sync.errors.ends_with("; 2 entries still wait on this machine\n"), "{sync:?}");
        assert_eq!(entries(&overlay).len(), 2);
        assert!(!format!("{sync:?}").contains("hunter"));
    }
}

#[test]
fn without_the_fallback_nothing_lands_here() {
    let place = Place::new();
    let off = [&AWAY[..], &[("ENABLE_LOCAL_FALLBACK", "false")]].concat();
    let refused = run(&place, &off, &["store", "k"]);
    assert_eq!(refused.code, 69, "{refused:?}");
    assert_eq!(run(&place, &off, &["delete", "k"]).code, 69);
    assert!(entries(place.path()).is_empty());
    // What had landed before it was turned off still waits.
    assert_eq!(run(&place, &AWAY, &["store", "k"]).code, 0);
    assert_eq!(run(&place, &off, &["sync"]).code, 69);
    let doctor = run(&place, &off, &["doctor"]);
    assert!(doctor.text().contains("enable_local_fallback is off"), "{doctor:?}");
}

#[test]
fn reading_makes_nothing_and_a_local_store_has_nothing_to_send() {
    let place = Place::new();
    for arguments in [&["list"][..], &["retrieve", "k"], &["exists", "k"], &["stat", "k"]] {
        assert_eq!(run(&place, &AWAY, arguments).code, 69);
    }
    let sync = run(&place, &AWAY, &["sync", "--json"]);
    assert_eq!((sync.code, &sync.json()["remaining"]), (0, &json!(0)), "{sync:?}");
    assert_eq!(std::fs::read_dir(place.path()).unwrap().count(), 0);
    let local = place.run(&["sync"]);
    assert!(local.code == 78 && local.errors.contains("gcs_bucket_name"), "{local:?}");
}

#[test]
fn migrate_refuses_a_bucket_that_is_away_or_has_writes_waiting() {
    let place = Place::new();
    place.store("k", b"local");
    for (from, to) in [("local", "gcs"), ("gcs", "local"), ("local", "gs://bucket-2"), ("s3://bucket-2", "local")] {
        let environment = [&AWAY[..], &S3_AWAY[1..4]].concat();
        let answer = run(&place, &environment, &["migrate", "--from", from, "--to", to]);
        assert_eq!(answer.code, 69, "{answer:?}");
        assert!(answer.errors.contains("cannot be reached") && answer.errors.lines().count() == 1, "{answer:?}");
    }
    assert_eq!(run(&place, &AWAY, &["store", "waiting"]).code, 0);
    for (from, to) in [("local", "gcs"), ("gcs", "local")] {
        let answer = run(&place, &AWAY, &["migrate", "--from", from, "--to", to]);
        assert_eq!(answer.code, 75, "{answer:?}");
        assert!(answer.errors.contains("1 entries on this machine wait to be sent to gs://bucket-1"), "{answer:?}");
        assert!(answer.errors.contains("filestorage sync"), "{answer:?}");
    }
}

#[test]
fn doctor_tells_what_waits_for_which_bucket() {
    let place = Place::new();
    let of = |environment: &[(&str, &str)]| {
        let answer = run(&place, environment, &["doctor", "--json", "--celery-broker-url", "amqp://127.0.0.1:1"]);
        let report = answer.json();
        let lines = report["checks"].as_array().unwrap().clone();
        move |check: &str| -> Vec<String> {
            let lines = lines.iter().filter(|line| line["check"] == check);
            lines
                .map(|line| format!("{} {}", line["status"].as_str().unwrap(), line["text"].as_str().unwrap()))
                .collect()
        }
    };
    let fresh = of(&AWAY);
    assert_eq!(fresh("overlay"), ["ok nothing has ever waited for this bucket"]);
    assert!(
        fresh("bucket")[0].starts_with("fault ") && fresh("bucket")[0].contains("bucket-1"),
        "{:?}",
        fresh("bucket")
    );
    for skipped in ["clock", "create", "conditions", "get", "list", "replace", "delete"] {
        assert_eq!(fresh(skipped), ["skipped the bucket cannot be used"], "{skipped}");
    }
    assert_eq!(fresh("credentials"), ["ok none: the emulator at http://127.0.0.1:1 asks for none"]);

    assert_eq!(run(&place, &AWAY, &["store", "k"]).code, 0);
    let waiting = of(&AWAY)("overlay");
    assert!(waiting.len() == 1 && waiting[0].starts_with("note 1 entries (5 B) wait in "), "{waiting:?}");
    assert!(waiting[0].contains("`filestorage sync`"), "{waiting:?}");

    // With other settings it is nobody's, and said to be.
    let other = [AWAY[1], AWAY[2], ("GCS_BUCKET_NAME", "bucket-2")];
    let lying = of(&other)("overlay");
    assert_eq!(lying[0], "ok nothing has ever waited for this bucket");
    assert!(
        lying[1].contains("is the overlay of gs://bucket-1 at http://127.0.0.1:1: 1 entries wait there"),
        "{lying:?}"
    );
    let overlays = place.path().join("storage/overlay");
    let own: Vec<_> = std::fs::read_dir(&overlays).unwrap().map(|entry| entry.unwrap().path()).collect();
    let owner: Value = serde_json::from_slice(&std::fs::read(own[0].join("#bucket")).unwrap()).unwrap();
    assert_eq!(owner, json!({"backend": "gcs", "endpoint": "http://127.0.0.1:1", "bucket": "bucket-1"}));
    let local = [&AWAY[..], &[("STORAGE_BACKEND", "local")]].concat();
    let lying = of(&local)("overlay");
    assert!(
        lying.len() == 1
            && lying[0].contains("is the overlay of gs://bucket-1 at http://127.0.0.1:1: 1 entries wait there"),
        "{lying:?}"
    );

    // A folder that cannot be read is said to be one.
    std::fs::rename(&overlays, place.path().join("kept")).unwrap();
    std::fs::write(&overlays, "").unwrap();
    assert!(of(&local)("overlay")[0].starts_with("fault what waits for other buckets"));
    std::fs::remove_file(&overlays).unwrap();
    std::fs::rename(place.path().join("kept"), &overlays).unwrap();

    // Values of a local store that a bucket hides.
    assert!(of(&AWAY)("objects").is_empty());
    place.store("mine", b"1");
    assert!(of(&AWAY)("objects")[0].contains("`filestorage migrate`"));
}

/// Answers every request with this status and body until the test ends.
fn answering(status: &'static str, body: &'static str) -> String {
    answering_by(move |_| (status, body))
}

/// Answers each request with the status and body that its first line asks for.
fn answering_by(answer: impl Fn(&str) -> (&'static str, &'static str) + Clone + Send + 'static) -> String {
    let listener = TcpListener::bind("127.0.0.1:0").unwrap();
    let address = listener.local_addr().unwrap().to_string();
    let answer = move |mut stream: TcpStream| {
        let mut request = [0; 4096];
        while let Ok(read @ 1..) = stream.read(&mut request) {
            let first = String::from_utf8_lossy(&request[..read]);
            let (status, body) = answer(first.lines().next().unwrap_or_default());
            let length = body.len();
            let head =
                format!("HTTP/1.1 {status}\r\ncontent-type: application/json\r\ncontent-length: {length}\r\n\r\n");
            if stream.write_all(head.as_bytes()).and_then(|()| stream.write_all(body.as_bytes())).is_err() {
                return;
            }
        }
    };
    std::thread::spawn(move || {
        for stream in listener.incoming() {
            let answer = answer.clone();
            std::thread::spawn(move || answer(stream.unwrap()));
        }
    });
    address
}

#[test]
fn a_permanent_bucket_fault_ends_every_start() {
    let forbidden = answering("403 Forbidden", r#"{"error":{"code":403,"message":"no access"}}"#);
    let missing =
        answering("404 Not Found", r#"{"error":{"code":404,"message":"The specified bucket does not exist."}}"#);
    let broker = ("CELERY_BROKER_URL", "amqp://127.0.0.1:1//");
    for (server, remedy) in [(&forbidden, "gcloud storage"), (&missing, "gcloud storage buckets create")] {
        let place = Place::new();
        let environment = [AWAY[0], ("STORAGE_EMULATOR_HOST", server), broker, ("METRICS_PORT", "0")];
        for arguments in [
            &["worker"][..],
            &["store", "k"],
            &["list"],
            &["delete", "k"],
            &["migrate", "--from", "gcs", "--to", "local"],
        ] {
            let answer = run(&place, &environment, arguments);
            assert_eq!(answer.code, 78, "{arguments:?} {answer:?}");
            assert!(answer.errors.contains("bucket-1") && answer.errors.contains(remedy), "{answer:?}");
        }
        assert!(entries(place.path()).is_empty(), "a refusal is no outage");
        let doctor = run(&place, &environment, &["doctor"]);
        assert_eq!(doctor.code, 78, "{doctor:?}");
        assert!(
            doctor.text().lines().any(|line| line.starts_with("fault   bucket") && line.contains(remedy)),
            "{doctor:?}"
        );
    }
}

const LISTED: (&str, &str) = ("200 OK", r#"{"kind":"storage#objects"}"#);
const FORBIDDEN: (&str, &str) = ("403 Forbidden", r#"{"error":{"code":403,"message":"no access"}}"#);
const AWAY_FOR_NOW: (&str, &str) = ("503 Service Unavailable", r#"{"error":{"code":503,"message":"later"}}"#);

#[test]
fn sync_and_migrate_end_at_a_bucket_that_only_lists() {
    let back = Arc::new(AtomicBool::new(false));
    let server = answering_by({
        let back = Arc::clone(&back);
        move |line| match () {
            () if !back.load(Ordering::SeqCst) => AWAY_FOR_NOW,
            () if line.starts_with("GET") && line.contains("/o?") => LISTED,
            () => FORBIDDEN,
        }
    });
    let place = Place::new();
    let environment = [AWAY[0], ("STORAGE_EMULATOR_HOST", &*server), AWAY[2]];
    for key in ["one", "two"] {
        assert_eq!(run(&place, &environment, &["store", key]).code, 0);
    }
    let trial = run(&place, &environment, &["sync", "--dry-run", "--json"]);
    let waiting = trial.json();
    assert_eq!((trial.code, &waiting["entries"], &waiting["bytes"]), (75, &json!(2), &json!(10)), "{trial:?}");
    assert!(waiting["oldest"].is_string() && waiting["conflicts"] == json!([]), "{trial:?}");
    let text = run(&place, &environment, &["sync", "--dry-run"]);
    assert!(text.code == 75 && text.text().starts_with("2 entries (10 B) wait, the oldest since 2"), "{text:?}");

    back.store(true, Ordering::SeqCst);
    let sync = run(&place, &environment, &["sync", "--json"]);
    let report = sync.json();
    assert_eq!((sync.code, &report["failed"], &report["remaining"]), (78, &json!(2), &json!(2)), "{sync:?}");
    let lines: Vec<&str> = sync.errors.lines().collect();
    for key in ["one", "two"] {
        assert_eq!(lines.iter().filter(|line| line.contains(key)).count(), 1, "{sync:?}");
    }
    assert!(lines.len() == 3 && lines[2].contains("the bucket refuses every entry"), "{sync:?}");

    for number in 0..20 {
        place.store(&format!("k/{number}"), b"1");
    }
    let environment = [("STORAGE_EMULATOR_HOST", &*server), AWAY[2]];
    let arguments = ["migrate", "--from", "local", "--to", "gs://bucket-2", "--parallel", "2", "--json"];
    let migrate = run(&place, &environment, &arguments);
    assert_eq!(migrate.code, 78, "{migrate:?}");
    let summary = migrate.json();
    assert_eq!((&summary["failed"], &summary["complete"]), (&json!(2), &json!(false)), "{migrate:?}");
    assert!(migrate.errors.contains("a place refuses this identity"), "{migrate:?}");
}

#[test]
fn credentials_that_cannot_be_used_end_every_start() {
    let place = Place::new();
    std::fs::write(place.path().join("key.json"), r#"{"type": "service_account", "private_key": "hunter2"}"#).unwrap();
    for file in ["nowhere.json", "key.json"] {
        let environment = [("GCS_BUCKET_NAME", "bucket-1"), ("GCS_CREDENTIALS_PATH", file), ("METRICS_PORT", "0")];
        for arguments in [&["worker"][..], &["store", "k"], &["exists", "k"], &["sync"]] {
            let answer = run(&place, &environment, arguments);
            assert_eq!(answer.code, 78, "{arguments:?} {answer:?}");
            assert!(answer.errors.contains(file) && answer.errors.contains("gcs_credentials_path"), "{answer:?}");
            assert!(!answer.errors.contains("hunter"), "{answer:?}");
        }
        let doctor = run(&place, &environment, &["doctor"]);
        assert!(doctor.code == 78 && doctor.text().contains("fault   credentials"), "{doctor:?}");
        assert!(!doctor.text().contains("hunter"), "{doctor:?}");
    }
}

#[test]
fn doctor_notes_a_missing_bucket_that_will_be_created() {
    let missing = r#"{"error":{"code":404,"message":"The specified bucket does not exist."}}"#;
    let wrong = r#"{"error":{"code":400,"message":"no such thing"}}"#;
    for (status, body, found) in [("404 Not Found", missing, "note"), ("400 Bad Request", wrong, "fault")] {
        let server = answering(status, body);
        let environment = [AWAY[0], ("STORAGE_EMULATOR_HOST", &*server), ("GCS_PROJECT_ID", "project-1")];
        let doctor = run(&Place::new(), &environment, &["doctor"]);
        let begin = format!("{found:<8}bucket ");
        assert!(doctor.text().lines().any(|line| line.starts_with(&begin)), "{found}: {doctor:?}");
    }
}

/// Sends a request to the admin port.
fn get(port: u16, path: &str) -> Value {
    let mut stream = TcpStream::connect(("127.0.0.1", port)).unwrap();
    write!(stream, "GET {path} HTTP/1.1\r\nhost: localhost\r\nconnection: close\r\n\r\n").unwrap();
    let mut answer = String::new();
    stream.read_to_string(&mut answer).unwrap();
    serde_json::from_str(answer.split_once("\r\n\r\n").unwrap().1).unwrap()
}

#[test]
fn a_worker_starts_without_the_bucket_and_says_how_it_stands() {
    for (fallback, ready) in [("true", true), ("false", false)] {
        let place = Place::new();
        let settings = [&AWAY[..], &[("ENABLE_LOCAL_FALLBACK", fallback)]].concat();
        let worker = Worker::start_with(&place, &settings);
        let mut storage = Value::Null;
        super::wait_until("the bucket has been looked at", || {
            storage = get(worker.port, "/readyz")["components"]["storage"].clone();
            storage["reason"] != "starting"
        });
        assert_eq!(storage["ready"], json!(ready), "{storage}");
        assert!(storage["reason"].as_str().unwrap().contains("the bucket is away"), "{storage}");
        let health = get(worker.port, "/health");
        let wanted = json!({
            "status": if ready { "degraded" } else { "unhealthy" }, "gcs_available": false,
            "local_fallback_enabled": ready, "pending_sync": 0
        });
        for (name, value) in wanted.as_object().unwrap() {
            assert_eq!(&health[name], value, "{name} in {health}");
        }
        // Nobody asks for anything, and still the bucket is known to be away.
        super::wait_until("the breaker opens", || get(worker.port, "/health")["breaker"] != "closed");
    }
    let place = Place::new();
    let worker = Worker::start_with(&place, &[]);
    let health = get(worker.port, "/health");
    assert_eq!(
        (&health["breaker"], &health["pending_sync"], &health["status"]),
        (&Value::Null, &json!(0), &json!("degraded"))
    );
}
