//! Tests of `cleanup`, `usage` and `list --long`.

use std::net::TcpListener;
use std::process::Stdio;

use serde_json::{Value, json};

use super::{Place, wait_until};

/// A store with values in folders; two have expired.
fn filled() -> Place {
    let place = Place::new();
    for (key, value) in [("a/b/1", "12345"), ("a/b/2", "123"), ("a/c", "1"), ("top", "12")] {
        place.store(key, value.as_bytes());
    }
    for key in ["a/gone", "b/gone"] {
        let answer = place.run_with(&["store", key, "--ttl-seconds", "0.05"], &[], b"1234567");
        assert_eq!(answer.code, 0, "{answer:?}");
    }
    wait_until("the expiry", || place.run(&["exists", "b/gone"]).text() == "false\n");
    place
}

#[test]
fn usage_is_counted_by_folder() {
    let place = filled();
    let answer = place.run(&["usage"]);
    assert_eq!(answer.code, 0, "{answer:?}");
    let rows: Vec<Vec<&str>> = answer.text().lines().map(|line| line.split_whitespace().collect()).collect();
    assert_eq!(rows[0], ["VALUES", "SIZE", "STORED", "PREFIX"]);
    assert_eq!(rows[1], ["1", "2", "B", "2", "B", "(no", "folder)"]);
    assert_eq!(rows[2], ["3", "9", "B", "9", "B", "a/"]);
    assert_eq!(rows[3], ["4", "11", "B", "11", "B", "(total)"]);
    let deep = place.run(&["usage", "--prefix", "a/", "--depth", "2", "--json"]).json();
    assert_eq!((&deep["prefix"], &deep["file_count"], &deep["total_size_bytes"]), (&json!("a/"), &json!(3), &json!(9)));
    let rows: Vec<_> =
        deep["rows"].as_array().unwrap().iter().map(|row| (&row["prefix"], &row["file_count"])).collect();
    assert_eq!(rows, [(&json!("a/"), &json!(1)), (&json!("a/b/"), &json!(2))]);
    let total = place.run(&["usage", "--depth", "0", "--json"]).json();
    assert_eq!((&total["rows"], &total["others"]), (&json!([]), &Value::Null));
    // Nothing was stored yet, and nothing is created.
    let empty = Place::new();
    assert_eq!(empty.run(&["usage", "--json"]).json()["file_count"], 0);
    assert_eq!(empty.names("."), [] as [&str; 0]);
}

#[test]
fn cleanup_removes_what_has_expired() {
    let place = filled();
    let files = place.objects().len();
    let dry = place.run(&["cleanup", "--dry-run"]);
    assert_eq!((dry.code, dry.text()), (0, "a/gone\nb/gone\nwould remove 2 values (14 B)\n"), "{dry:?}");
    assert_eq!(place.objects().len(), files);
    let below = place.run(&["cleanup", "--prefix", "b/", "--json"]).json();
    let wanted = json!({"dry_run": false, "deleted": 1, "bytes": 7, "failed": 0, "complete": true, "keys": ["b/gone"]});
    assert_eq!(below, wanted);
    let all = place.run(&["cleanup"]);
    assert_eq!((all.code, all.text()), (0, "removed 1 values (7 B)\n"), "{all:?}");
    assert_eq!(place.objects().len(), files - 2);
    assert_eq!(place.run(&["list"]).text(), "a/b/1\na/b/2\na/c\ntop\n");
}

#[test]
fn cleanup_by_age_needs_a_prefix() {
    let place = filled();
    for (arguments, code) in [
        (&["--older-than", "7d"][..], 64),
        (&["--older-than", "7", "--prefix", "a/"], 64),
        (&["--older-than", "x", "--prefix", "a/"], 64),
        (&["--keep-expired"], 64),
        (&["--older-than", "7d", "--prefix", ""], 0),
    ] {
        let answer = place.run(&[&["cleanup"], arguments].concat());
        assert_eq!(answer.code, code, "{arguments:?} {answer:?}");
    }
    assert_eq!(place.run(&["list"]).text(), "a/b/1\na/b/2\na/c\ntop\n");
    let old = place.run(&["cleanup", "--older-than", "0s", "--prefix", "a/b/", "--json"]).json();
    assert_eq!((&old["deleted"], &old["bytes"]), (&json!(2), &json!(8)));
    assert_eq!(place.run(&["list"]).text(), "a/c\ntop\n");
}

#[test]
fn a_long_list_has_sizes_and_times() {
    let place = filled();
    let stored = place.run_with(&["store", "big", "--ttl-seconds", "3600"], &[], "x".repeat(5_000).as_bytes());
    assert_eq!(stored.code, 0);
    let list = place.run(&["list", "--long", "--json"]).json();
    let lines = list.as_array().unwrap();
    let keys: Vec<&str> = lines.iter().map(|line| line["key"].as_str().unwrap()).collect();
    assert_eq!(keys, ["a/b/1", "a/b/2", "a/c", "big", "top"]);
    for line in lines {
        let stat = place.run(&["stat", line["key"].as_str().unwrap(), "--json"]).json();
        for name in ["size", "stored_size", "stored_at", "expires_at", "compression", "encrypted"] {
            assert_eq!(line[name], stat[name], "{name} of {line}");
        }
    }
    let table = place.run(&["list", "--long", "--prefix", "b", "--limit", "1"]);
    let rows: Vec<Vec<&str>> = table.text().lines().map(|line| line.split_whitespace().collect()).collect();
    assert_eq!((rows.len(), rows[1][0], rows[1][4], rows[1][5]), (2, "5000", "gzip", "big"), "{table:?}");
    for (more, wanted) in [
        (&["--start-after", "big"][..], json!(["top"])),
        (&["--limit", "0"], json!([])),
        (&["--prefix", "z"], json!([])),
    ] {
        let list = place.run(&[&["list", "--long", "--json"], more].concat()).json();
        let keys: Value = list.as_array().unwrap().iter().map(|line| line["key"].clone()).collect();
        assert_eq!(keys, wanted, "{more:?}");
    }
}

/// Runs a command of the program; returns its peak memory in KiB.
fn peak(place: &Place, arguments: &[&str]) -> u64 {
    let script = "import resource, subprocess, sys; subprocess.run(sys.argv[1:], check=True, stdout=subprocess.DEVNULL); \
                  print(resource.getrusage(resource.RUSAGE_CHILDREN).ru_maxrss)";
    let mut command = std::process::Command::new("python3");
    command.args(["-c", script, env!("CARGO_BIN_EXE_filestorage")]).args(arguments).current_dir(place.path());
    let output = command.stderr(Stdio::inherit()).output().unwrap();
    assert!(output.status.success(), "{arguments:?}");
    String::from_utf8(output.stdout).unwrap().trim().parse().unwrap()
}

/// Makes copies of one stored value under many keys, since a store of each would sync each.
fn fill(place: &Place, count: usize) {
    place.run_with(&["store", "n/000000", "--ttl-seconds", "86400"], &[], b"x");
    let folder = place.path().join("storage/objects/n");
    let line = std::fs::read_to_string(folder.join("000000.obj")).unwrap();
    let (before, _) = line.split_once(",\"header_checksum\"").unwrap();
    for number in 0..count {
        let header = before.replace("n/000000", &format!("n/{number:06}"));
        let checksum = base64(crc32c::crc32c(header.as_bytes()));
        let file = format!("{header},\"header_checksum\":\"crc32c:{checksum}\"}}\nx");
        std::fs::write(folder.join(format!("{number:06}.obj")), file).unwrap();
    }
}

fn base64(number: u32) -> String {
    use base64::Engine as _;
    base64::engine::general_purpose::STANDARD.encode(number.to_be_bytes())
}

#[test]
fn memory_does_not_grow_with_the_number_of_keys() {
    let commands: [&[&str]; 3] = [&["usage"], &["cleanup", "--dry-run", "--json"], &["list", "--long"]];
    let [few, many] = [10_000, 100_000].map(|count| {
        let place = Place(tempfile::tempdir_in("/dev/shm").or_else(|_| tempfile::tempdir()).unwrap());
        fill(&place, count);
        assert_eq!(place.run(&["usage", "--json"]).json()["file_count"], count);
        commands.map(|arguments| peak(&place, arguments))
    });
    for ((few, many), arguments) in few.into_iter().zip(many).zip(commands) {
        println!("{arguments:?}: {few} KiB at 10,000 keys, {many} KiB at 100,000");
        assert!(many < few + 4 * 1024, "{arguments:?}: {few} KiB at 10,000 keys, {many} KiB at 100,000");
    }
}

#[test]
fn quotas_hold_in_the_shell_and_are_shown() {
    let place = filled();
    let quotas = [("QUOTAS", "a/=17; =1MiB,7")];
    let store = |key: &str, value: &[u8]| place.run_with(&["store", key], &quotas, value);
    let full = store("a/d", b"12");
    assert_eq!(full.code, 74, "{full:?}");
    assert!(full.errors.contains("17 stored bytes, of which 16 are used"), "{full:?}");
    assert_eq!(store("a/d", b"1").code, 0);
    let many = store("b", b"");
    assert!(many.code == 74 && many.errors.contains("7 objects"), "{many:?}");
    let usage = place.run_with(&["usage", "--depth", "0"], &quotas, b"");
    let lines: Vec<&str> = usage.text().lines().skip(2).collect();
    assert_eq!(
        lines,
        ["quota a/: 17 B of 17 B stored (100 %)", "quota (all keys): 26 B of 1.00 MiB stored (0 %), 7 of 7 values"]
    );
    // Deletes, also of what has expired, give room back.
    assert_eq!(place.run_with(&["cleanup"], &quotas, b"").code, 0);
    assert_eq!(store("b", b"12").code, 0);
    let json = place.run_with(&["usage", "--json"], &quotas, b"").json();
    let wanted = json!({"prefix": "a/", "bytes": 10, "max_bytes": 17, "objects": 4, "max_objects": null});
    assert_eq!(json["quotas"][0], wanted);
    let wrong = place.run_with(&["list"], &[("QUOTAS", "a/=much")], b"");
    assert!(wrong.code == 78 && wrong.errors.contains("entry 1 has no size in bytes"), "{wrong:?}");
}

#[test]
fn verify_finds_what_is_damaged_and_only_that() {
    let place = filled();
    let sound = place.run(&["verify"]);
    assert_eq!((sound.code, sound.text()), (0, "4 values are sound, 0 are damaged\n"), "{sound:?}");
    let path = place.path().join("storage/objects/a/b/2.obj");
    let mut bytes = std::fs::read(&path).unwrap();
    *bytes.last_mut().unwrap() ^= 1;
    std::fs::write(&path, bytes).unwrap();
    let damaged = place.run(&["verify", "--json"]);
    assert_eq!(damaged.code, 65, "{damaged:?}");
    let summary = damaged.json();
    let counts = ["verified", "damaged", "complete", "last"].map(|name| summary[name].clone());
    assert_eq!(counts, [json!(3), json!(1), json!(true), json!("top")]);
    assert_eq!((&summary["problems"][0]["key"], &summary["problems"][0]["ok"]), (&json!("a/b/2"), &json!(false)));
    assert!(damaged.errors.contains("a/b/2: "), "{damaged:?}");
    for (arguments, code) in [
        (&["--prefix", "a/c"][..], 0),
        (&["--start-after", "a/b/2"], 0),
        (&["a/b/1", "top"], 0),
        (&["a/b/1", "a/b/2"], 65),
        (&["top", "none"], 66),
        (&["top", "--prefix", "a"], 64),
    ] {
        let answer = place.run(&[&["verify"], arguments].concat());
        assert_eq!(answer.code, code, "{arguments:?} {answer:?}");
    }
}

#[test]
fn what_cannot_be_reached_is_not_damaged() {
    let place = Place::new();
    let away = [
        ("S3_BUCKET_NAME", "b-1"),
        ("S3_ENDPOINT_URL", "http://127.0.0.1:1"),
        ("MAX_RETRIES", "0"),
        ("AWS_ACCESS_KEY_ID", "a"),
        ("AWS_SECRET_ACCESS_KEY", "b"),
        ("S3_REGION", "r"),
    ];
    for arguments in [&["verify"][..], &["verify", "k"], &["usage"], &["cleanup"], &["list", "--long"]] {
        let answer = place.run_with(arguments, &away, b"");
        assert_eq!(answer.code, 69, "{arguments:?} {answer:?}");
    }
}

#[test]
fn an_interrupted_walk_ends_with_a_summary() {
    for (arguments, summary) in [
        (&["usage", "--json"][..], json!({"file_count": 0, "complete": false})),
        (&["verify", "--json"], json!({"verified": 0, "complete": false})),
        (&["cleanup", "--json"], json!({"deleted": 0, "complete": false})),
    ] {
        let place = Place::new();
        // A bucket that takes the connection and never answers.
        let bucket = TcpListener::bind("127.0.0.1:0").unwrap();
        let url = format!("http://{}", bucket.local_addr().unwrap());
        let environment = [
            ("S3_BUCKET_NAME", "b-1"),
            ("S3_ENDPOINT_URL", &*url),
            ("AWS_ACCESS_KEY_ID", "a"),
            ("AWS_SECRET_ACCESS_KEY", "b"),
            ("S3_REGION", "r"),
        ];
        let child = place.command(arguments, &environment).spawn().unwrap();
        let _held = bucket.accept().unwrap();
        let pid = rustix::process::Pid::from_child(&child);
        rustix::process::kill_process(pid, rustix::process::Signal::INT).unwrap();
        let output = child.wait_with_output().unwrap();
        assert_eq!(output.status.code(), Some(75), "{arguments:?} {output:?}");
        let answer: Value = serde_json::from_slice(&output.stdout).unwrap();
        for (name, wanted) in summary.as_object().unwrap() {
            assert_eq!(&answer[name], wanted, "{arguments:?} {answer}");
        }
        let errors = String::from_utf8(output.stderr).unwrap();
        assert!(errors.contains("interrupted"), "{arguments:?} {errors}");
    }
}
