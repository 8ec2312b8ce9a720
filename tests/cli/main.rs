//! Tests of the built program: answers, exit codes, error texts.
#![allow(clippy::unwrap_used)]

mod bucket;
mod canary;
mod doctor;
mod housekeeping;
mod legacy;
mod migrate;
mod rotate;

use std::io::{BufRead as _, BufReader, Read as _, Write as _};
use std::net::TcpListener;
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Stdio};
use std::time::{Duration, Instant};

use serde_json::{Value, json};

/// The result of one run: exit code, standard output, standard error.
#[derive(Debug)]
struct Answer {
    code: i32,
    out: Vec<u8>,
    errors: String,
}

impl Answer {
    fn text(&self) -> &str {
        std::str::from_utf8(&self.out).unwrap()
    }

    fn json(&self) -> Value {
        serde_json::from_slice(&self.out).unwrap_or_else(|error| panic!("{error} in {self:?}"))
    }
}

/// An empty folder in which the program runs, without settings from outside.
struct Place(tempfile::TempDir);

impl Place {
    fn new() -> Self {
        Self(tempfile::tempdir().unwrap())
    }

    fn path(&self) -> &Path {
        self.0.path()
    }

    fn command(&self, arguments: &[&str], environment: &[(&str, &str)]) -> Command {
        let mut command = Command::new(env!("CARGO_BIN_EXE_filestorage"));
        command.args(arguments).current_dir(self.path()).env_clear().envs(environment.iter().copied());
        command.stdin(Stdio::piped()).stdout(Stdio::piped()).stderr(Stdio::piped());
        command
    }

    fn run_with(&self, arguments: &[&str], environment: &[(&str, &str)], input: &[u8]) -> Answer {
        let mut child = self.command(arguments, environment).spawn().unwrap();
        let mut stdin = child.stdin.take().unwrap();
        match stdin.write_all(input) {
            // A command that needs no input has closed its end, which is its right.
            Err(error) if error.kind() == std::io::ErrorKind::BrokenPipe => {}
            written => written.unwrap(),
        }
        drop(stdin);
        let output = child.wait_with_output().unwrap();
        Answer {
            code: output.status.code().unwrap(),
            out: output.stdout,
            errors: String::from_utf8(output.stderr).unwrap(),
        }
    }

    fn run(&self, arguments: &[&str]) -> Answer {
        self.run_with(arguments, &[], b"")
    }

    fn store(&self, key: &str, value: &[u8]) {
        let answer = self.run_with(&["store", key], &[], value);
        assert_eq!(answer.code, 0, "{answer:?}");
    }

    /// Names in a folder, sorted.
    fn names(&self, folder: &str) -> Vec<String> {
        let entries = std::fs::read_dir(self.path().join(folder)).unwrap();
        let mut names: Vec<_> = entries.map(|entry| entry.unwrap().file_name().into_string().unwrap()).collect();
        names.sort();
        names
    }

    /// Every file of the local store that holds an object.
    fn objects(&self) -> Vec<PathBuf> {
        let (mut folders, mut files) = (vec![self.path().join("storage/objects")], Vec::new());
        while let Some(folder) = folders.pop() {
            for entry in std::fs::read_dir(folder).unwrap() {
                let path = entry.unwrap().path();
                if path.is_dir() {
                    folders.push(path);
                } else if std::fs::read(&path).unwrap().starts_with(b"{") {
                    files.push(path);
                }
            }
        }
        files
    }
}

/// Waits until a condition holds, and fails after a deadline.
fn wait_until(what: &str, mut holds: impl FnMut() -> bool) {
    let deadline = Instant::now() + Duration::from_secs(60);
    while !holds() {
        assert!(Instant::now() < deadline, "{what}: not within a minute");
        std::thread::sleep(Duration::from_millis(10));
    }
}

#[test]
fn a_value_goes_in_and_comes_out() {
    let place = Place::new();
    let bytes = b"\x00\xffbytes\n";
    let stored = place.run_with(&["store", "a/b", "--metadata", r#"{"x": 1.50}"#, "--json"], &[], bytes);
    assert_eq!(stored.code, 0, "{stored:?}");
    let receipt = stored.json();
    assert_eq!((&receipt["key"], &receipt["size"], &receipt["kind"]), (&json!("a/b"), &json!(8), &json!("bytes")));
    assert_eq!(place.run(&["retrieve", "a/b"]).out, bytes);
    assert_eq!(place.run(&["retrieve", "a/b", "--offset", "2", "--length", "3"]).out, b"byt");

    let file = place.path().join("out.bin");
    assert_eq!(place.run(&["retrieve", "a/b", "-o", "out.bin"]).code, 0);
    assert_eq!(std::fs::read(&file).unwrap(), bytes);
    let again = place.run(&["store", "copy", "out.bin", "--content-type", "image/png", "--json"]).json();
    assert_eq!((&again["checksum"], &again["content_type"]), (&receipt["checksum"], &json!("image/png")));

    let stat = place.run(&["stat", "a/b", "--json"]).json();
    assert_eq!((&stat["generation"], &stat["metadata"]), (&receipt["generation"], &json!({"x": 1.5})));
    assert!(place.run(&["stat", "a/b", "--json"]).text().contains("1.50"), "metadata is kept to the letter");
    assert!(place.run(&["stat", "a/b"]).text().contains("content_type  application/octet-stream\n"));

    assert_eq!(place.run(&["list"]).text(), "a/b\ncopy\n");
    assert_eq!(place.run(&["list", "--json", "--prefix", "a"]).json(), json!(["a/b"]));
    assert_eq!(place.run(&["list", "--limit", "1", "--start-after", "a/b"]).text(), "copy\n");
    assert_eq!(place.run(&["exists", "a/b"]).text(), "true\n");

    let deleted = place.run(&["delete", "a/b", "copy", "never", "--json"]);
    let entry = |key: &str| json!({"key": key, "ok": true, "pending_sync": false});
    assert_eq!((deleted.code, deleted.json()), (0, json!([entry("a/b"), entry("copy"), entry("never")])));
    let gone = place.run(&["exists", "a/b", "--json"]);
    assert_eq!((gone.code, gone.json()), (66, json!(false)));
    assert_eq!(place.run(&["list", "--json"]).json(), json!([]));
}

/// Returns pseudo-random bytes, the same at each call.
fn noise(length: usize) -> Vec<u8> {
    let mut state = 7_u64;
    let next = || {
        state = state.wrapping_mul(6_364_136_223_846_793_005).wrapping_add(1_442_695_040_888_963_407);
        (state >> 33) as u8
    };
    std::iter::repeat_with(next).take(length).collect()
}

/// Runs the program with files as its streams; returns its peak memory in bytes.
fn memory_of(place: &Place, arguments: &[&str], input: &str, out: &str) -> usize {
    let program = "import resource, subprocess, sys; \
                   subprocess.run(sys.argv[3:], check=True, stdin=open(sys.argv[1]), stdout=open(sys.argv[2], 'w')); \
                   print(resource.getrusage(resource.RUSAGE_CHILDREN).ru_maxrss)";
    let run = Command::new("python3")
        .args(["-c", program, input, out, env!("CARGO_BIN_EXE_filestorage")])
        .args(arguments)
        .current_dir(place.path())
        .output()
        .unwrap();
    let told = String::from_utf8(run.stdout).unwrap();
    1024 * told.trim().parse::<usize>().unwrap_or_else(|_| panic!("{}", String::from_utf8_lossy(&run.stderr)))
}

#[test]
fn a_part_of_a_big_value_takes_little_memory() {
    let place = Place::new();
    let size = 64 << 20;
    place.store("big", &vec![b'x'; size]);
    let arguments = ["retrieve", "big", "--offset", "33554432", "--length", "4", "-o", "part"];
    let memory = memory_of(&place, &arguments, "/dev/null", "/dev/null");
    assert_eq!(std::fs::read(place.path().join("part")).unwrap(), b"xxxx");
    assert!(memory < size / 2, "{memory}");
}

#[test]
fn big_values_stream_through_pipes_and_files_in_little_memory() {
    let place = Place::new();
    // The program itself takes half of what the bound allows in a debug build.
    let bytes = noise(64 << 20);
    let read = |name: &str| std::fs::read(place.path().join(name)).unwrap();
    std::fs::write(place.path().join("in"), &bytes).unwrap();
    let most = bytes.len() * 3 / 4;
    for (store, retrieve) in [
        (&["store", "k"][..], &["retrieve", "k"][..]),
        (&["store", "k", "-"], &["retrieve", "k", "-o", "-"]),
        (&["store", "k", "in"], &["retrieve", "k", "-o", "out"]),
    ] {
        let memory = memory_of(&place, store, "in", "receipt");
        assert!(memory < most, "{store:?}: {memory}");
        let memory = memory_of(&place, retrieve, "/dev/null", "printed");
        assert!(memory < most, "{retrieve:?}: {memory}");
        let out = if retrieve.contains(&"out") { "out" } else { "printed" };
        assert!(read(out) == bytes, "{retrieve:?}");
        assert_eq!(place.run(&["delete", "k"]).code, 0);
    }
    // Through real pipes as well, and in parts.
    place.store("k", &bytes);
    assert!(place.run(&["retrieve", "k"]).out == bytes);
    let part = place.run(&["retrieve", "k", "--offset", "5", "--length", "3000000"]);
    assert!(part.out == bytes[5..3_000_005]);
    assert_eq!(place.names("storage/spool"), [""; 0]);
    assert_eq!(place.names("."), ["in", "out", "printed", "receipt", "storage"]);
}

#[test]
fn what_is_interrupted_leaves_nothing() {
    let place = Place::new();
    let bytes = noise(40 << 20);
    let mut child = place.command(&["store", "half"], &[]).spawn().unwrap();
    // The program has read most of its input, which does not end before the program: `wait` alone would close it.
    let mut input = child.stdin.take().unwrap();
    input.write_all(&bytes).unwrap();
    let pid = rustix::process::Pid::from_child(&child);
    rustix::process::kill_process(pid, rustix::process::Signal::TERM).unwrap();
    assert!(!child.wait().unwrap().success());
    drop(input);
    assert_eq!(place.names("storage"), ["spool"]);
    assert_eq!(place.names("storage/spool"), [""; 0]);

    place.store("k", &bytes);
    std::fs::write(place.path().join("old"), "old").unwrap();
    for name in ["new", "old"] {
        // The kernel ends the program when it has written 10 MiB.
        let limited = "ulimit -f 10240; exec \"$@\"";
        let run = Command::new("bash")
            .args(["-c", limited, "bash", env!("CARGO_BIN_EXE_filestorage"), "retrieve", "k", "-o", name])
            .current_dir(place.path())
            .output()
            .unwrap();
        let signal = std::os::unix::process::ExitStatusExt::signal(&run.status);
        assert_eq!(signal, Some(rustix::process::Signal::XFSZ.as_raw()), "{run:?}");
        assert_eq!(place.names("."), ["old", "storage"]);
    }
    assert_eq!(std::fs::read_to_string(place.path().join("old")).unwrap(), "old");
}

#[test]
fn a_file_is_replaced_and_what_is_no_file_is_written_into() {
    let place = Place::new();
    let path = |name: &str| place.path().join(name);
    place.store("k", b"value");
    assert_eq!(place.run(&["retrieve", "k", "-o", "/dev/null"]).code, 0);
    use std::os::unix::fs::FileTypeExt as _;
    assert!(std::fs::metadata("/dev/null").unwrap().file_type().is_char_device());
    for path in ["/dev/stdout", "/dev/fd/1", "/proc/self/fd/1"] {
        assert_eq!(place.run(&["retrieve", "k", "-o", path]).text(), "value", "{path}");
    }

    std::fs::create_dir(path("folder")).unwrap();
    std::fs::write(path("folder/target"), "a much longer old text").unwrap();
    std::os::unix::fs::symlink("folder/target", path("link")).unwrap();
    assert_eq!(place.run(&["retrieve", "k", "-o", "link"]).code, 0);
    assert_eq!(std::fs::read_to_string(path("folder/target")).unwrap(), "value");
    assert!(std::fs::symlink_metadata(path("link")).unwrap().is_symlink());
    for wrong in ["folder", "none/out"] {
        let answer = place.run(&["retrieve", "k", "-o", wrong]);
        assert!(answer.code == 74 && answer.errors.contains(wrong), "{answer:?}");
    }
    assert_eq!(place.names("folder"), ["target"]);
    assert_eq!(place.run(&["store", "k", "folder"]).code, 66);
    assert_eq!(place.run(&["store", "k", "/dev/stdin"]).code, 0, "a pipe by its name");
    assert_eq!(place.run(&["retrieve", "k"]).text(), "");
}

/// Tells whether this system has pseudo-terminals; a bare chroot has no `/dev/pts`.
fn has_terminals() -> bool {
    let opened = Command::new("python3").args(["-c", "import pty; pty.openpty()"]).output().unwrap();
    let errors = String::from_utf8_lossy(&opened.stderr);
    assert!(opened.status.success() || errors.contains("out of pty devices"), "{errors}");
    opened.status.success()
}

/// Runs the program with a terminal as its standard error; returns the text on the terminal.
fn shown(place: &Place, arguments: &[&str], out: &str) -> String {
    let program = "import os, pty, subprocess, sys\n\
                   terminal, end = pty.openpty()\n\
                   child = subprocess.Popen(sys.argv[2:], stdin=subprocess.DEVNULL, stdout=open(sys.argv[1], 'w'), stderr=end)\n\
                   os.close(end)\n\
                   shown = b''\n\
                   while True:\n\
                   \x20   try: shown += os.read(terminal, 65536)\n\
                   \x20   except OSError: break\n\
                   assert child.wait() == 0\n\
                   sys.stdout.buffer.write(shown)";
    let run = Command::new("python3")
        .args(["-c", program, out, env!("CARGO_BIN_EXE_filestorage")])
        .args(arguments)
        .current_dir(place.path())
        .env("TERM", "xterm")
        .output()
        .unwrap();
    assert!(run.status.success(), "{}", String::from_utf8_lossy(&run.stderr));
    String::from_utf8(run.stdout).unwrap()
}

#[test]
fn progress_is_shown_on_a_terminal_only() {
    if !has_terminals() {
        println!("skipped: who_waits_at_a_terminal - no terminal can be opened; is /dev/pts mounted?");
        return;
    }
    let place = Place::new();
    std::fs::write(place.path().join("in"), noise(40 << 20)).unwrap();
    let stored = shown(&place, &["store", "k", "in"], "receipt");
    assert!(stored.contains("storing [") && stored.contains("/40.00 MiB"), "{stored:?}");
    for arguments in [&["retrieve", "k"][..], &["retrieve", "k", "-o", "out"]] {
        let retrieved = shown(&place, arguments, "printed");
        assert!(retrieved.contains("retrieving [") && retrieved.contains("/40.00 MiB"), "{retrieved:?}");
    }
    assert!(std::fs::read(place.path().join("out")).unwrap().len() == 40 << 20);
    for arguments in [&["store", "k", "in", "--json"][..], &["retrieve", "k", "-o", "out", "--json"]] {
        assert_eq!(shown(&place, arguments, "printed"), "", "{arguments:?}");
    }
    // Where errors go into a pipe.
    assert_eq!(place.run(&["store", "k", "in"]).errors, "");
    assert_eq!(place.run(&["retrieve", "k"]).errors, "");
}

#[test]
fn kinds_are_told_and_never_guessed() {
    let place = Place::new();
    place.store("raw", b"123");
    assert_eq!(place.run(&["retrieve", "raw", "--json"]).json()["encoding"], "base64");
    for (kind, input, value) in [
        ("text", "\u{e9}", json!("\u{e9}")),
        ("json", " {\"b\": [1, 2.50]} ", json!({"b": [1, 2.5]})),
        ("json", "\"text\"", json!("text")),
    ] {
        assert_eq!(place.run_with(&["store", "k", "-", "--kind", kind], &[], input.as_bytes()).code, 0);
        let answer = place.run(&["retrieve", "k", "--json"]).json();
        assert_eq!((&answer["value"], &answer["encoding"]), (&value, &Value::Null), "{input}");
    }
    assert_eq!(place.run_with(&["store", "k", "--kind", "json"], &[], b"[NaN]").code, 0);
    let answer = place.run(&["retrieve", "k", "--json"]).json();
    assert_eq!((&answer["value"], &answer["encoding"]), (&json!("[NaN]"), &json!("text")));
    for (kind, input) in [("text", &b"\xff"[..]), ("json", b"{"), ("json", b"")] {
        let answer = place.run_with(&["store", "bad", "--kind", kind], &[], input);
        assert_eq!(answer.code, 65, "{answer:?}");
        assert!(answer.errors.starts_with("filestorage: the value is not "), "{answer:?}");
    }
    assert_eq!(place.run(&["exists", "bad"]).code, 66);
}

#[test]
fn conditions_and_lifetimes_hold() {
    let place = Place::new();
    place.store("k", b"1");
    let refused = place.run_with(&["store", "k", "--if-absent"], &[], b"2");
    assert_eq!(refused.code, 65, "{refused:?}");
    let generation = place.run(&["stat", "k", "--json"]).json()["generation"].as_str().unwrap().to_owned();
    assert_eq!(place.run_with(&["store", "k", "--if-generation", &generation], &[], b"3").code, 0);
    assert_eq!(place.run_with(&["store", "k", "--if-generation", &generation], &[], b"4").code, 65);
    assert_eq!(place.run(&["delete", "k", "--if-generation", &generation]).code, 65);
    assert_eq!(place.run(&["retrieve", "k"]).text(), "3");
    let lasting = place.run_with(&["store", "k", "--ttl-seconds", "3600", "--json"], &[], b"5").json();
    assert!(lasting["expires_at"].as_str().is_some(), "{lasting}");
    for seconds in ["0", "nan", "1e30", "inf"] {
        assert_eq!(place.run_with(&["store", "k", "--ttl-seconds", seconds], &[], b"6").code, 65, "{seconds}");
    }
}

#[test]
fn what_is_missing_wrong_or_damaged_has_its_own_code() {
    let place = Place::new();
    place.store("other", b"1");
    for arguments in [&["retrieve", "none"], &["stat", "none"]] {
        let answer = place.run(arguments);
        assert_eq!((answer.code, answer.errors.as_str()), (66, "filestorage: no such key: none\n"));
    }
    let missing = place.run(&["retrieve", "none", "--json"]);
    let error: Value = serde_json::from_str(&missing.errors).unwrap();
    assert_eq!(error, json!({"error": {"code": 66, "message": "no such key: none"}}));
    assert_eq!(place.run(&["store", "k", "no-such-file"]).code, 66);

    for key in ["../up", "/abs", "a//b", ""] {
        let answer = place.run(&["retrieve", key]);
        assert_eq!(answer.code, 65, "{answer:?}");
        assert_eq!(answer.errors.lines().count(), 1, "{answer:?}");
    }
    assert_eq!(place.run(&["store", "k", "--metadata", "[1]"]).code, 65);
    assert_eq!(place.run(&["store", "k", "--content-type", "nonsense"]).code, 65);
    let mixed = place.run(&["delete", "fine", "../up"]);
    assert_eq!((mixed.code, mixed.text()), (65, "deleted fine\n"));

    assert_eq!(place.run(&["delete", "other"]).code, 0);
    place.store("k", b"precious");
    let files = place.objects();
    assert_eq!(files.len(), 1, "{files:?}");
    let mut bytes = std::fs::read(&files[0]).unwrap();
    *bytes.last_mut().unwrap() ^= 1;
    std::fs::write(&files[0], bytes).unwrap();
    let damaged = place.run(&["retrieve", "k"]);
    assert_eq!((damaged.code, damaged.out.len()), (65, 0), "{damaged:?}");
    assert!(damaged.errors.starts_with("filestorage: retrieve \"k\": "), "{damaged:?}");
}

#[test]
fn reading_makes_and_changes_nothing() {
    let names = |folder: &Path| -> Vec<String> {
        let entries = std::fs::read_dir(folder).unwrap();
        entries.map(|entry| entry.unwrap().file_name().into_string().unwrap()).collect()
    };
    let place = Place::new();
    let listed = place.run(&["list"]);
    assert_eq!((listed.code, listed.text(), listed.errors.as_str()), (0, "", ""));
    assert_eq!(place.run(&["list", "--json"]).json(), json!([]));
    for (command, out) in [("retrieve", ""), ("stat", ""), ("exists", "false\n")] {
        let answer = place.run(&[command, "k"]);
        assert_eq!((answer.code, answer.text()), (66, out), "{answer:?}");
        assert!(answer.errors.starts_with("filestorage: nothing is stored under ./storage/objects;"), "{answer:?}");
    }
    assert_eq!(names(place.path()), [""; 0]);

    place.store("k", b"value");
    let root = place.path().join("storage/objects");
    for own in ["#tmp", "#locks"] {
        std::fs::remove_dir_all(root.join(own)).unwrap();
    }
    let mode = |mode| std::fs::set_permissions(&root, std::os::unix::fs::PermissionsExt::from_mode(mode)).unwrap();
    mode(0o555);
    for (arguments, out) in [(&["retrieve", "k"][..], "value"), (&["exists", "k"], "true\n"), (&["list"], "k\n")] {
        assert_eq!(place.run(arguments).text(), out);
    }
    assert_eq!(place.run(&["stat", "k", "--json"]).json()["size"], 5);
    mode(0o755);
    assert_eq!(names(&root), ["k.obj"]);
}

#[test]
fn a_folder_that_is_none_is_an_input_output_error() {
    let place = Place::new();
    std::fs::write(place.path().join("file"), "").unwrap();
    let answer = place.run(&["list", "--local-storage-path", "file/below"]);
    assert_eq!(answer.code, 74, "{answer:?}");
}

#[test]
fn usage_errors_are_64_and_help_is_none() {
    let place = Place::new();
    let unknown = place.run(&["stroe"]);
    assert_eq!(unknown.code, 64);
    assert!(unknown.errors.contains("store"), "{unknown:?}");
    for arguments in [&[][..], &["store"], &["delete"], &["list", "--limit", "x"], &["store", "k", "--kind", "blob"]] {
        assert_eq!(place.run(arguments).code, 64, "{arguments:?}");
    }
    for arguments in [&["--help"][..], &["worker", "--help"], &["--version"], &["help", "store"]] {
        let answer = place.run(arguments);
        assert!(answer.code == 0 && !answer.out.is_empty(), "{answer:?}");
    }
    assert!(place.run(&["worker", "--help"]).text().contains("--celery-broker-url"));
    assert!(!place.run(&["worker", "--help"]).text().contains("--encryption-key <"));
}

#[test]
fn every_fault_of_the_configuration_is_told_at_once() {
    let place = Place::new();
    std::fs::write(place.path().join("filestorage.toml"), "metrics_prot = 1\n").unwrap();
    let environment = [
        ("CELERY_BROKER_URL", "redis://user:hunter2@host"),
        ("ENCRYPTION_KEY", "hunter3"),
        ("CELERY_WORKER_CONCURRENCY", "many"),
    ];
    for command in ["config", "list", "worker"] {
        let answer = place.run_with(&[command, "--metrics-port", "70000"], &environment, b"");
        assert_eq!(answer.code, 78, "{answer:?}");
        assert_eq!(answer.errors.lines().count(), 6, "{answer:?}");
        for part in [
            "filestorage: the configuration has 5 faults",
            "metrics_prot (file filestorage.toml): no setting has this name; did you mean metrics_port?",
            "celery_broker_url (environment CELERY_BROKER_URL): must be amqp",
            "encryption_key = \"***\"",
            "celery_worker_concurrency (environment CELERY_WORKER_CONCURRENCY): must be a whole number",
            "metrics_port = \"70000\" (flag --metrics-port): must be a whole number from 0 to 65535",
        ] {
            assert!(answer.errors.contains(part), "{part} in {answer:?}");
        }
        assert!(!answer.errors.contains("hunter"), "{answer:?}");
    }
    let as_json = place.run(&["config", "--json"]);
    let error: Value = serde_json::from_str(&as_json.errors).unwrap();
    assert_eq!(error["error"]["faults"].as_array().unwrap().len(), 1, "{error}");
    let missing = place.run(&["config", "--config", "nowhere.toml"]);
    assert!(missing.code == 78 && missing.errors.contains("nowhere.toml"), "{missing:?}");
}

#[test]
fn config_shows_values_sources_and_no_secret() {
    let place = Place::new();
    std::fs::write(place.path().join("own.toml"), "max_crashes = 7\nmetrics_port = 1\n").unwrap();
    std::fs::write(place.path().join("url"), "amqp://user:hunter2@host//\n").unwrap();
    let environment = [("CELERY_BROKER_URL_FILE", "url"), ("METRICS_PORT", "2")];
    let flags = ["config", "--config", "own.toml", "--log-level", "debug"];
    let text = place.run_with(&flags, &environment, b"");
    assert_eq!(text.code, 0, "{text:?}");
    assert!(!format!("{text:?}").contains("hunter"), "{text:?}");
    let rows = place.run_with(&[&flags[..], &["--json"]].concat(), &environment, b"").json();
    let row = |name: &str| rows.as_array().unwrap().iter().find(|row| row["setting"] == name).unwrap().clone();
    for (name, value, source) in [
        ("max_crashes", "7", "file own.toml"),
        ("metrics_port", "2", "environment METRICS_PORT"),
        ("log_level", "debug", "flag --log-level"),
        ("celery_broker_url", "amqp://user:***@host//", "environment CELERY_BROKER_URL_FILE"),
        ("chunk_size", "8192", "default"),
    ] {
        assert_eq!(row(name), json!({"setting": name, "value": value, "source": source}));
    }
    assert_eq!(row("gcs_bucket_name")["value"], Value::Null);
    assert_eq!(place.run(&["config", "--markdown"]).text(), filestorage::config::reference());
}

#[test]
fn a_reader_that_goes_away_is_no_fault() {
    let place = Place::new();
    place.store("big", &vec![b'x'; 1 << 20]);
    let mut child = place.command(&["retrieve", "big"], &[]).spawn().unwrap();
    let mut out = child.stdout.take().unwrap();
    let mut first = [0; 1];
    out.read_exact(&mut first).unwrap();
    drop(out);
    let output = child.wait_with_output().unwrap();
    assert_eq!((output.status.code(), String::from_utf8(output.stderr).unwrap().as_str()), (Some(0), ""));
}

/// A worker without a reachable broker, which is ended when the value is dropped.
struct Worker {
    child: Child,
    port: u16,
}

impl Worker {
    fn start(place: &Place) -> Self {
        Self::start_with(place, &[])
    }

    fn start_with(place: &Place, settings: &[(&str, &str)]) -> Self {
        let own = [("CELERY_BROKER_URL", "amqp://guest:hunter2@127.0.0.1:1//"), ("METRICS_PORT", "0")];
        let environment = [&own[..], settings].concat();
        let mut child = place.command(&["worker", "-n", "w@%n"], &environment).spawn().unwrap();
        let mut lines = BufReader::new(child.stderr.take().unwrap()).lines();
        let port = lines.by_ref().find_map(|line| {
            let line: Value = serde_json::from_str(&line.unwrap()).unwrap();
            u16::try_from(line["port"].as_u64()?).ok()
        });
        // The log must go somewhere, or a full pipe would stop the worker.
        std::thread::spawn(move || lines.for_each(drop));
        Self { child, port: port.unwrap() }
    }
}

impl Drop for Worker {
    fn drop(&mut self) {
        drop(self.child.kill());
        drop(self.child.wait());
    }
}

#[test]
fn healthcheck_tells_whether_the_worker_is_ready_and_why_not() {
    let place = Place::new();
    let mut worker = Worker::start(&place);
    let port = worker.port.to_string();
    let unready = place.run(&["healthcheck", "--metrics-port", &port]);
    assert_eq!(unready.code, 69, "{unready:?}");
    assert!(unready.errors.contains("not ready") && unready.errors.contains("broker"), "{unready:?}");
    assert!(!unready.errors.contains("hunter"), "{unready:?}");

    let taken = place.run(&["worker", "--metrics-port", &port]);
    assert_eq!(taken.code, 78, "{taken:?}");
    assert!(taken.errors.contains(&format!("127.0.0.1:{port}")) && taken.errors.contains("metrics_port"), "{taken:?}");

    let pid = rustix::process::Pid::from_child(&worker.child);
    rustix::process::kill_process(pid, rustix::process::Signal::TERM).unwrap();
    assert_eq!(worker.child.wait().unwrap().code(), Some(0));

    assert_eq!(place.run(&["healthcheck", "--metrics-port", &port]).code, 69);
    assert_eq!(place.run(&["healthcheck", "--metrics-port", "0"]).code, 78);
    assert_eq!(place.run(&["healthcheck", "--enable-metrics", "false"]).code, 78);
}

#[test]
fn healthcheck_is_content_with_a_ready_worker() {
    let listener = TcpListener::bind("127.0.0.1:0").unwrap();
    let port = listener.local_addr().unwrap().port().to_string();
    let server = std::thread::spawn(move || {
        let (mut stream, _) = listener.accept().unwrap();
        let mut request = String::new();
        BufReader::new(stream.try_clone().unwrap()).read_line(&mut request).unwrap();
        stream.write_all(b"HTTP/1.1 200 OK\r\ncontent-length: 3\r\n\r\nok\n").unwrap();
        request
    });
    let answer = Place::new().run(&["healthcheck", "--metrics-port", &port]);
    assert_eq!((answer.code, answer.text()), (0, "ready\n"), "{answer:?}");
    assert_eq!(server.join().unwrap(), "GET /readyz HTTP/1.1\r\n");
}

#[test]
fn a_wrong_node_name_or_log_filter_stops_the_start() {
    let place = Place::new();
    let name = place.run(&["worker", "-n", "w@%i"]);
    assert!(name.code == 78 && name.errors.contains("%i"), "{name:?}");
    let filter = place.run_with(&["list"], &[("RUST_LOG", "info,=x=")], b"");
    assert!(filter.code == 78 && filter.errors.contains("RUST_LOG") && !filter.errors.contains("=x="), "{filter:?}");
}
