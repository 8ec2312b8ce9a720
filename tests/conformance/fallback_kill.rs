//! A worker that is killed by the system again and again, on a bucket that outlives it.

use filestorage::provider::BackendKind;
use filestorage::storage::{Backend, DeleteRequest, Engine, ErrorKind, Local, StoreOptions, Value};
use std::collections::{BTreeMap, BTreeSet};
use std::io::{BufRead as _, BufReader, Write as _};
use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};
use std::sync::Arc;
use std::time::Duration;
use tokio::runtime::Builder;
use tokio::time::sleep;

use crate::fallback::{open, read};
use crate::support::{key, random, scratch};
use crate::unreliable_bucket::{Ask, Bucket, Fate};

/// Names the folder in the environment of the worker that is to be killed.
const VICTIM: &str = "FILESTORAGE_TEST_VICTIM";

/// Names its life, so that each writes values of its own.
const LIFE: &str = "FILESTORAGE_TEST_LIFE";

const LIVES: usize = 15;

/// A bucket on disk, away while there is a file that says so; answers get lost now and then.
fn bucket(folder: &Path) -> Arc<Bucket> {
    let bucket = Bucket::before(Arc::new(Local::open(folder.join("bucket")).unwrap()));
    let away = folder.join("away");
    let seed = std::sync::Mutex::new(u64::from(std::process::id()));
    bucket.weather(move |request| match (away.exists(), request.ask) {
        (true, _) => Fate::Refused(ErrorKind::Unavailable),
        (false, Ask::Put | Ask::Delete) if random(&mut seed.lock().unwrap()).is_multiple_of(5) => Fate::ReplyLost,
        _ => Fate::Served,
    });
    bucket
}

/// Stores and deletes until it is killed; says what it begins and what was confirmed.
async fn live(folder: PathBuf, life: String) {
    let fallback = open(&bucket(&folder), &folder.join("overlay"));
    let engine = Engine::new(Arc::clone(&fallback) as Arc<dyn Backend>, BackendKind::Gcs);
    let say = |line: String| {
        let mut out = std::io::stdout().lock();
        writeln!(out, "\nvictim {line}").unwrap();
        out.flush().unwrap();
    };
    let syncing = async {
        loop {
            drop(fallback.sync(&()).await);
            sleep(Duration::from_millis(1)).await;
        }
    };
    let client = |number: u64| {
        let (engine, life) = (engine.clone(), life.clone());
        async move {
            let mut seed = number + life.parse::<u64>().unwrap() * 1_000;
            for command in 0_u64.. {
                let name = format!("{number}/{}", random(&mut seed) % 3);
                let value =
                    if random(&mut seed).is_multiple_of(4) { "-".to_owned() } else { format!("{life}.{command}") };
                say(format!("begins {name} {value}"));
                if value == "-" {
                    engine.delete(&key(&name), DeleteRequest::default()).await.unwrap();
                } else {
                    engine.store(&key(&name), Value::Text(value.clone()), StoreOptions::default()).await.unwrap();
                }
                say(format!("confirms {name} {value}"));
                sleep(Duration::from_micros(random(&mut seed) % 2_000)).await;
            }
        }
    };
    tokio::join!(syncing, client(0), client(1), client(2), client(3));
}

#[test]
fn a_worker_that_is_killed_again_and_again_loses_nothing() {
    let runtime = Builder::new_multi_thread().worker_threads(2).enable_all().build().unwrap();
    if let Some(folder) = std::env::var_os(VICTIM) {
        return runtime.block_on(live(folder.into(), std::env::var(LIFE).unwrap()));
    }
    let folder = scratch();
    let away = folder.path().join("away");
    let mut states: BTreeMap<String, BTreeSet<String>> = BTreeMap::new();
    let (mut seed, mut confirmed) = (17, 0);
    for life in 0..LIVES {
        let mut victim = Command::new(std::env::current_exe().unwrap())
            .args(["--exact", "fallback_kill::a_worker_that_is_killed_again_and_again_loses_nothing", "--nocapture"])
            .env(VICTIM, folder.path())
            .env(LIFE, life.to_string())
            .stdout(Stdio::piped())
            .spawn()
            .unwrap();
        let lines = BufReader::new(victim.stdout.take().unwrap()).lines();
        let lifetime = 40 + random(&mut seed) % 400;
        let mut said = 0;
        let mut killed = false;
        // What was said before the end is heard to the end.
        for line in lines {
            let line = line.unwrap();
            let Some(line) = line.strip_prefix("victim ") else { continue };
            let (verb, rest) = line.split_once(' ').unwrap();
            let Some((name, value)) = rest.split_once(' ') else { continue };
            let possible = states.entry(name.to_owned()).or_insert_with(|| BTreeSet::from(["-".to_owned()]));
            if verb == "confirms" {
                possible.clear();
                confirmed += 1;
            }
            possible.insert(value.to_owned());
            said += 1;
            if said % 60 == 0 {
                match away.exists() {
                    true => std::fs::remove_file(&away).unwrap(),
                    false => std::fs::write(&away, "").unwrap(),
                }
            }
            if said >= lifetime && !killed {
                victim.kill().unwrap();
                killed = true;
            }
        }
        assert!(killed && victim.wait().unwrap().code().is_none(), "life {life} ended by itself");
    }
    if away.exists() {
        std::fs::remove_file(&away).unwrap();
    }
    let place = Bucket::before(Arc::new(Local::open(folder.path().join("bucket")).unwrap()));
    let fallback = open(&place, &folder.path().join("overlay"));
    runtime.block_on(async {
        let waited = fallback.pending().await.unwrap().entries;
        fallback.sync(&()).await.unwrap();
        assert_eq!(fallback.pending().await.unwrap().entries, 0);
        assert_eq!(fallback.conflicts().await.unwrap(), []);
        for (name, possible) in &states {
            let there = read(&*place.inner, &key(name)).await.unwrap_or_else(|| "-".to_owned());
            assert!(possible.contains(&there), "{name}: {there} is in the bucket, not {possible:?}");
        }
        println!("fallback: {confirmed} confirmed in {LIVES} lives, {waited} waited at the end");
    });
    assert!(confirmed > 1_000 && states.len() == 12);
}
