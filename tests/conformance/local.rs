//! What only the local backend can be asked: damage, leftovers, a full disk, readability.

use std::fs::{self, File, OpenOptions};
use std::io::Write as _;
use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};

use filestorage::storage::{
    Backend, ByteRange, Condition, DeleteOptions, ErrorKind, GetOptions, Key, Local, Page, PutOptions,
};

use crate::support::{Small, bytes, key, noise, object, scratch, text};

async fn stored(local: &Local, name: &str, payload: &str) -> (Key, PathBuf) {
    let key = key(name);
    local.put(&key, &object(payload.to_owned()), &PutOptions::default()).await.unwrap();
    (key, local.root().join(format!("{name}.obj")))
}

async fn assert_damaged(local: &Local, key: &Key, what: &str) {
    let error = local.get(key, GetOptions::default()).await.map(|found| found.is_some()).expect_err(what);
    assert_eq!(error.kind, ErrorKind::Integrity, "{what}: {error}");
    assert!(error.message().contains(".obj") && error.message().contains("filestorage delete"), "{error}");
}

#[tokio::test]
async fn every_flipped_bit_is_noticed() {
    let root = scratch();
    let local = Local::open(root.path()).unwrap();
    let (key, path) = stored(&local, "a/b", "payload\nof two lines").await;
    let sound = fs::read(&path).unwrap();
    for bit in 0..sound.len() * 8 {
        let mut flipped = sound.clone();
        flipped[bit / 8] ^= 1 << (bit % 8);
        fs::write(&path, &flipped).unwrap();
        assert_damaged(&local, &key, &format!("bit {bit}")).await;
    }
    for length in 0..sound.len() {
        fs::write(&path, &sound[..length]).unwrap();
        assert_damaged(&local, &key, &format!("cut to {length}")).await;
        assert_eq!(local.stat(&key).await.unwrap_err().kind, ErrorKind::Integrity, "cut to {length}");
    }
    for trailing in [&b"\0"[..], b"\n", b"x", &sound] {
        fs::write(&path, [&sound, trailing].concat()).unwrap();
        assert_damaged(&local, &key, "trailing bytes").await;
        assert_eq!(local.stat(&key).await.unwrap_err().kind, ErrorKind::Integrity);
    }
    fs::write(&path, &sound).unwrap();
    assert_eq!(&*bytes(local.get(&key, GetOptions::default()).await.unwrap().unwrap()).await, b"payload\nof two lines");
    println!("local: {} bits and {} lengths of one file tried", sound.len() * 8, sound.len());
}

#[tokio::test]
async fn damage_outside_a_part_is_noticed() {
    let root = scratch();
    let local = Local::open(root.path()).unwrap();
    let it = key("a");
    local.put(&it, &object(noise(600_000, 1)), &PutOptions::default()).await.unwrap();
    let path = root.path().join("a.obj");
    let sound = fs::read(&path).unwrap();
    let part = GetOptions {
        range: Some(ByteRange { offset: 100_000, length: Some(4) }),
        limit: Some(4),
        ..GetOptions::default()
    };
    assert_eq!(bytes(local.get(&it, part.clone()).await.unwrap().unwrap()).await, noise(600_000, 1)[100_000..100_004]);
    for position in [sound.len() - 1, sound.len() - 600_000, sound.len() - 500_001] {
        let mut flipped = sound.clone();
        flipped[position] ^= 1;
        fs::write(&path, flipped).unwrap();
        assert_eq!(local.get(&it, part.clone()).await.unwrap_err().kind, ErrorKind::Integrity, "{position}");
    }
    // More than any memory, in a file that takes no room: only one that is never read can be answered.
    let mut giant = object("x");
    giant.attributes.stored_size = 1 << 40;
    local.put(&it, &giant, &PutOptions::default()).await.unwrap();
    let header = fs::metadata(&path).unwrap().len() - 1;
    OpenOptions::new().write(true).open(&path).unwrap().set_len(header + (1 << 40)).unwrap();
    for range in [None, Some(ByteRange { offset: 1 << 30, length: Some(1 << 30) })] {
        let limited = GetOptions { range, limit: Some(15 << 20), spooled: true, ..GetOptions::default() };
        let error = local.get(&it, limited).await.unwrap_err();
        assert_eq!(error.kind, ErrorKind::Invalid, "{error}");
        assert!(error.message().contains("1099511627776") && error.message().contains("15728640"), "{error}");
    }
}

/// A reader that makes room first is told the length of what is large, which is not read for that, and gets what is small.
#[tokio::test]
async fn large_objects_are_announced() {
    let root = scratch();
    let local = Local::open(root.path()).unwrap();
    let announced = GetOptions { announced: true, spooled: true, ..GetOptions::default() };
    for size in [0, 100_000, 1 << 20, (1 << 20) + 1] {
        local.put(&key("a"), &object(noise(size, 1)), &PutOptions::default()).await.unwrap();
        let found = local.get(&key("a"), announced.clone()).await.unwrap().unwrap();
        assert_eq!((found.payload.len(), found.payload.is_announced()), (size as u64, size > 1 << 20));
        assert_eq!(found.payload.into_memory().await.is_err(), size > 1 << 20, "what was not read has no bytes");
    }
    for (range, length) in [((5, None), (1 << 20) - 4), ((100, Some(200)), 200)] {
        let range = Some(ByteRange { offset: range.0, length: range.1 });
        let found = local.get(&key("a"), GetOptions { range, ..announced.clone() }).await.unwrap().unwrap();
        assert_eq!((found.payload.len(), found.payload.is_announced()), (length, false));
    }
    let error = local.get(&key("a"), GetOptions { limit: Some(1 << 20), ..announced.clone() }).await.unwrap_err();
    assert_eq!(error.kind, ErrorKind::Invalid);
    // Damage shows when the bytes are read, as it always did.
    let path = root.path().join("a.obj");
    let mut damaged = fs::read(&path).unwrap();
    *damaged.last_mut().unwrap() ^= 1;
    fs::write(&path, damaged).unwrap();
    assert!(local.get(&key("a"), announced.clone()).await.unwrap().unwrap().payload.is_announced());
    assert_eq!(local.get(&key("a"), GetOptions::default()).await.unwrap_err().kind, ErrorKind::Integrity);
}

#[tokio::test]
async fn a_damaged_object_can_be_replaced_and_removed_not_compared() {
    let root = scratch();
    let local = Local::open(root.path()).unwrap();
    let (key, path) = stored(&local, "a", "1").await;
    let generation = local.stat(&key).await.unwrap().unwrap().generation;
    fs::write(&path, b"not ours").unwrap();
    for condition in [Condition::Absent, Condition::Generation(generation.clone())] {
        let how = PutOptions { condition, ..PutOptions::default() };
        assert_eq!(local.put(&key, &object("2"), &how).await.unwrap_err().kind, ErrorKind::Integrity);
    }
    let how = DeleteOptions { generation: Some(generation), ..DeleteOptions::default() };
    assert_eq!(local.delete(&key, &how).await.unwrap_err().kind, ErrorKind::Integrity);
    let listed = local.list(&Page::default()).await.unwrap();
    assert_eq!(listed.entries.len(), 1, "what is damaged is still there");
    local.put(&key, &object("2"), &PutOptions::default()).await.unwrap();
    assert_eq!(&*bytes(local.get(&key, GetOptions::default()).await.unwrap().unwrap()).await, b"2");
    fs::write(&path, b"").unwrap();
    assert!(local.delete(&key, &DeleteOptions::default()).await.unwrap().found);
    assert!(local.get(&key, GetOptions::default()).await.unwrap().is_none());
}

#[tokio::test]
async fn files_of_other_keys_and_kinds_are_no_objects() {
    let root = scratch();
    let local = Local::open(root.path()).unwrap();
    let (_, path) = stored(&local, "a/one", "1").await;
    fs::copy(&path, local.root().join("a/two.obj")).unwrap();
    assert_damaged(&local, &key("a/two"), "a copy").await;
    std::os::unix::fs::symlink(&path, local.root().join("a/one2.obj")).unwrap();
    assert_damaged(&local, &key("a/one2"), "a link").await;
    fs::create_dir(local.root().join("a/folder.obj")).unwrap();
    assert_damaged(&local, &key("a/folder"), "a folder").await;
    assert!(Command::new("mkfifo").arg(local.root().join("a/pipe.obj")).status().unwrap().success());
    assert_damaged(&local, &key("a/pipe"), "a pipe").await;
    let sparse = File::create(local.root().join("a/sparse.obj")).unwrap();
    sparse.set_len(1 << 40).unwrap();
    assert_damaged(&local, &key("a/sparse"), "a terabyte of nothing").await;
    let line = fs::read_to_string(&path).unwrap().replacen("{\"format\":1,", "{\"format\":2,", 1);
    fs::write(&path, line).unwrap();
    let error = local.get(&key("a/one"), GetOptions::default()).await.unwrap_err();
    assert_eq!(error.kind, ErrorKind::Integrity);
    assert!(error.message().contains("format version 2"), "{error}");
}

#[tokio::test]
async fn foreign_names_are_skipped_and_counted() {
    let root = scratch();
    let local = Local::open(root.path()).unwrap();
    stored(&local, "a/one", "1").await;
    let long = "x".repeat(201);
    let foreign =
        ["README", "a/two.txt", "a/%61.obj", "a/b c.obj", "a/.obj", "a/%FF.obj", "a/..obj", &format!("{long}.obj")];
    for name in foreign {
        fs::write(local.root().join(name), b"x").unwrap();
    }
    fs::create_dir(local.root().join("%zz")).unwrap();
    fs::create_dir(local.root().join("empty")).unwrap();
    let listed = local.list(&Page::default()).await.unwrap();
    assert_eq!(listed.entries.iter().map(|entry| entry.key.as_str()).collect::<Vec<_>>(), ["a/one"]);
    assert_eq!(listed.foreign, foreign.len() as u64 + 1);
}

#[tokio::test]
async fn folders_that_belong_to_no_key_are_not_entered() {
    let root = scratch();
    let local = Local::open(root.path()).unwrap();
    stored(&local, "a/one", "1").await;
    let long = "x".repeat(197);
    for name in ["%", "x%", &format!("{long}%")] {
        fs::create_dir_all(local.root().join("a").join(name).join(name)).unwrap();
        fs::write(local.root().join("a").join(name).join("b.obj"), b"x").unwrap();
    }
    // Deeper than a path may be long: each stretch is put below the next.
    let stretch = "%/".repeat(700);
    let (top, aside) = (local.root().join("%"), root.path().join("#tmp/aside"));
    for _ in 0..3 {
        let below = top.exists();
        if below {
            fs::rename(&top, &aside).unwrap();
        }
        fs::create_dir_all(local.root().join(&stretch)).unwrap();
        if below {
            fs::rename(&aside, local.root().join(&stretch).join("%")).unwrap();
        }
    }
    let listed = local.list(&Page::default()).await;
    // Taken apart again first, since what is so deep cannot be removed at once.
    for _ in 0..2 {
        fs::rename(local.root().join(&stretch).join("%"), &aside).unwrap();
        fs::remove_dir_all(&top).unwrap();
        fs::rename(&aside, &top).unwrap();
    }
    let listed = listed.unwrap();
    assert_eq!(listed.entries.iter().map(|entry| entry.key.as_str()).collect::<Vec<_>>(), ["a/one"]);
    assert_eq!(listed.foreign, 4);
}

#[tokio::test]
async fn leftovers_are_swept_unless_their_writer_lives() {
    let root = scratch();
    let temporary = root.path().join("#tmp");
    let left = |name: &str| fs::write(temporary.join(name), b"{\"format\":1").unwrap();
    let local = Local::open(root.path()).unwrap();
    left("dead");
    left("alive");
    let alive = File::open(temporary.join("alive")).unwrap();
    alive.lock().unwrap();
    assert_eq!(local.list(&Page::default()).await.unwrap().entries.len(), 0);
    let again = Local::open(root.path()).unwrap();
    assert_eq!(names(&temporary), ["alive"]);
    alive.unlock().unwrap();
    assert_eq!(again.sweep().await.unwrap(), 1);
    assert_eq!(again.sweep().await.unwrap(), 0);
    // A finished or refused write leaves nothing.
    stored(&local, "a", "1").await;
    let how = PutOptions { condition: Condition::Absent, ..PutOptions::default() };
    local.put(&key("a"), &object("2"), &how).await.unwrap_err();
    local.probe().await.unwrap();
    assert_eq!(names(&temporary), [""; 0]);
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn sweeping_and_removing_folders_never_fails_a_write() {
    let root = scratch();
    let local = Local::open(root.path()).unwrap();
    let writer = tokio::spawn({
        let local = local.clone();
        async move {
            for number in 0..400 {
                let key = key(&format!("deep/er/{}/x", number % 5));
                local.put(&key, &object("x"), &PutOptions::default()).await.unwrap();
                local.delete(&key, &DeleteOptions::default()).await.unwrap();
            }
        }
    });
    while !writer.is_finished() {
        local.sweep().await.unwrap();
        // Fails while something is in it, which is the point: only empty folders go.
        for folder in ["deep/er/0", "deep/er/1", "deep/er/2", "deep/er/3", "deep/er/4", "deep/er", "deep", "#tmp"] {
            drop(fs::remove_dir(local.root().join(folder)));
        }
    }
    writer.await.unwrap();
    fs::remove_dir_all(local.root()).unwrap();
    // Whether the key is there cannot be told: its file system may only not be mounted.
    let gone = key("deep/er/0/x");
    for error in [
        local.get(&gone, GetOptions::default()).await.unwrap_err(),
        local.stat(&gone).await.unwrap_err(),
        local.list(&Page::default()).await.unwrap_err(),
    ] {
        assert!(error.kind == ErrorKind::Io && error.to_string().contains("is gone"), "{error}");
    }
    stored(&local, "deep", "back").await;
}

#[tokio::test]
async fn a_header_can_be_read_without_this_program() {
    let root = scratch();
    let local = Local::open(root.path()).unwrap();
    let wanted = object("payload");
    local.put(&key("a b"), &wanted, &PutOptions::default()).await.unwrap();
    let path = local.root().join("a%20b.obj");
    let mut head = Command::new("head").arg("-1").arg(&path).stdout(Stdio::piped()).spawn().unwrap();
    let tool = Command::new("python3").args(["-m", "json.tool"]).stdin(head.stdout.take().unwrap()).output().unwrap();
    assert!(head.wait().unwrap().success() && tool.status.success());
    assert!(String::from_utf8(tool.stdout).unwrap().contains("\"key\": \"a b\""));
    let file = fs::read_to_string(&path).unwrap();
    let (line, payload) = file.split_once('\n').unwrap();
    assert_eq!(payload, "payload");
    assert!(line.starts_with("{\"format\":1,\"key\":\"a b\",\"kind\":\"bytes\","), "{line}");
    assert!(line.contains(r#""metadata":{"n":1e400,"ü":["é\u000a\\",1.0]}"#), "{line}");
    let last = line.rfind(",\"header_checksum\":\"crc32c:").unwrap();
    let checksum = filestorage::storage::Checksum::of(&line.as_bytes()[..last]);
    assert!(line.ends_with(&format!("\"header_checksum\":\"{checksum}\"}}")));
    assert_eq!(text(&local.stat(&key("a b")).await.unwrap().unwrap()), text(&wanted.attributes));
}

#[tokio::test]
async fn long_headers_are_read_and_endless_ones_refused() {
    let root = scratch();
    let local = Local::open(root.path()).unwrap();
    for (length, fits) in [(5_000, true), (60_000, true), (66_000, false)] {
        let mut wanted = object(noise(100_000, 1));
        wanted.attributes.operation_id = Some("x".repeat(length));
        match local.put(&key("a"), &wanted, &PutOptions::default()).await {
            Ok(_) => assert!(fits),
            Err(error) => assert!(!fits && error.kind == ErrorKind::Invalid, "{error}"),
        }
        if fits {
            let found = local.get(&key("a"), GetOptions::default()).await.unwrap().unwrap();
            assert_eq!(
                (text(&found.attributes), bytes(found).await),
                (text(&wanted.attributes), bytes(wanted.clone()).await)
            );
            assert_eq!(local.stat(&key("a")).await.unwrap().unwrap().operation_id.unwrap().len(), length);
        }
    }
}

#[tokio::test]
async fn what_the_file_system_refuses_is_no_miss() {
    let root = scratch();
    let local = Local::open(root.path()).unwrap();
    fs::write(local.root().join("plain"), b"x").unwrap();
    let error = local.put(&key("plain/a"), &object("1"), &PutOptions::default()).await.unwrap_err();
    assert_eq!(error.kind, ErrorKind::Io, "{error}");
    assert!(error.message().contains("plain/a.obj"), "{error}");
    assert!(local.get(&key("plain/a"), GetOptions::default()).await.unwrap().is_none());
    let long = root.path().join("x".repeat(200)).join("x".repeat(200)).join("x".repeat(250)).join("x".repeat(250));
    assert_eq!(Local::open(long).unwrap_err().kind, ErrorKind::Invalid);
    assert!(names(&local.root().join("#tmp")).is_empty());
}

#[tokio::test]
async fn a_full_disk_leaves_nothing_half_written() {
    let folder = scratch();
    let _small = match Small::mount(folder.path()) {
        Ok(small) => small,
        Err(why) => {
            println!("skipped: a small file system cannot be mounted here ({why})");
            return;
        }
    };
    let local = Local::open(folder.path().join("objects")).unwrap();
    local.put(&key("a"), &object(noise(200_000, 1)), &PutOptions::default()).await.unwrap();
    for name in ["a", "b"] {
        let error = local.put(&key(name), &object(noise(600_000, 2)), &PutOptions::default()).await.unwrap_err();
        assert_eq!(error.kind, ErrorKind::NoSpace, "{error}");
        assert!(names(&local.root().join("#tmp")).is_empty());
    }
    assert!(bytes(local.get(&key("a"), GetOptions::default()).await.unwrap().unwrap()).await == noise(200_000, 1));
    assert!(local.get(&key("b"), GetOptions::default()).await.unwrap().is_none());
    let mut filler = OpenOptions::new().create(true).append(true).open(folder.path().join("filler")).unwrap();
    while filler.write_all(&[0; 4096]).is_ok() {}
    assert_eq!(local.put(&key("c"), &object("1"), &PutOptions::default()).await.unwrap_err().kind, ErrorKind::NoSpace);
    assert!(local.delete(&key("a"), &DeleteOptions::default()).await.unwrap().found, "room can be made on a full disk");
    local.put(&key("c"), &object("1"), &PutOptions::default()).await.unwrap();
}

fn names(folder: &Path) -> Vec<String> {
    let entries = fs::read_dir(folder).unwrap().map(|entry| entry.unwrap().file_name().into_string().unwrap());
    entries.collect()
}
