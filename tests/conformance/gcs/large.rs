//! Large values pass through, from a file and into one, in little memory.

use std::fs::File;
use std::io::Write as _;
use std::process::Command;
use std::sync::Arc;

use filestorage::storage::{Backend, Checksum, Gcs, GcsOptions, GetOptions, Object, Payload, PutOptions, Spool};

use super::site::Site;
use crate::support::{bytes, key, noise, object};

/// Most KiB that a process may grow by; the value has several times as many.
pub(crate) const MOST_GROWTH: u64 = 20 * 1024;

/// Set in the process that is measured: the server to use.
const SERVER: &str = "FILESTORAGE_TEST_LARGE_SERVER";

/// The most memory this process has had, in KiB.
pub(crate) fn peak() -> u64 {
    let status = std::fs::read_to_string("/proc/self/status").unwrap();
    let line = status.lines().find(|line| line.starts_with("VmHWM:")).unwrap();
    line.split_whitespace().nth(1).unwrap().parse().unwrap()
}

/// An object of so many MiB whose bytes are in a file.
pub(crate) fn large(mebibytes: u64) -> Object {
    let mut file: File = tempfile::tempfile_in(env!("CARGO_TARGET_TMPDIR")).unwrap();
    let mut checksum = Checksum::of(&[]);
    for number in 0..mebibytes {
        let piece = noise(1 << 20, number);
        checksum = Checksum(crc32c::crc32c_append(checksum.0, &piece));
        file.write_all(&piece).unwrap();
    }
    let Object { mut attributes, .. } = object("");
    (attributes.size, attributes.stored_size) = (mebibytes << 20, mebibytes << 20);
    (attributes.checksum, attributes.stored_checksum) = (checksum, checksum);
    Object { attributes, payload: Payload::file(Arc::new(file), 0, mebibytes << 20) }
}

#[tokio::test]
async fn large_values_pass_through_in_little_memory() {
    let Ok(server) = std::env::var(SERVER) else {
        // In a process of its own, where no other test takes memory.
        let site = Site::lenient();
        let this = std::env::current_exe().unwrap();
        let test = ["--exact", "gcs::large::large_values_pass_through_in_little_memory", "--nocapture"];
        assert!(Command::new(this).args(test).env(SERVER, &site.url).status().unwrap().success());
        return;
    };
    let mebibytes = 64;
    let options = GcsOptions {
        bucket: format!("t-{}", uuid::Uuid::new_v4().simple()),
        project: Some("tests".to_owned()),
        location: "EU".to_owned(),
        credentials: None,
        endpoint: Some(server),
        proxy: None,
        timeout: std::time::Duration::from_secs(30),
        spool: Spool::new(env!("CARGO_TARGET_TMPDIR")),
    };
    let gcs = Gcs::open(options.clone()).await.unwrap();
    let it = key("large");
    let spooled = GetOptions { spooled: true, ..GetOptions::default() };
    gcs.put(&it, &object(noise(100_000, 1)), &PutOptions::default()).await.unwrap();
    bytes(gcs.get(&it, spooled.clone()).await.unwrap().unwrap()).await;
    let wanted = large(mebibytes);
    let before = peak();
    for from in [u64::MAX, 1] {
        let gcs = Gcs::open(options.clone()).await.unwrap().with_resumable_from(from);
        gcs.put(&it, &wanted, &PutOptions::default()).await.unwrap();
        let found = gcs.get(&it, spooled.clone()).await.unwrap().unwrap();
        assert!(found.payload.as_memory().is_none());
        assert_eq!(found.payload.checksum().await.unwrap(), wanted.attributes.checksum);
        println!("{mebibytes} MiB both ways, sessions from {from} bytes: {} KiB more memory at most", peak() - before);
    }
    assert!(peak() - before < MOST_GROWTH, "{} KiB", peak() - before);
}
