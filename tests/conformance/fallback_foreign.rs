//! Several overlays and another tool at the same keys: somebody wins, and nobody loses in silence.

use std::collections::BTreeMap;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::Duration;

use filestorage::storage::{Backend, DeleteOptions, ErrorKind, Fallback, Key, PutOptions};
use futures_util::future::join_all;
use jiff::Timestamp;
use tokio::sync::Mutex;
use tokio::time::sleep;

use crate::fallback::open;
use crate::support::{Rest, key, object, random, rest, scratch};
use crate::unreliable_bucket::{Ask, Bucket, Change, Fate};

const KEYS: usize = 8;

/// A write that landed in an overlay.
struct Landed {
    overlay: usize,
    key: Key,
    /// Nothing for a delete.
    generation: Option<String>,
    begin: Timestamp,
    end: Timestamp,
}

/// Writes and deletes through one worker.
async fn write(worker: Arc<Fallback>, overlay: usize, mut seed: u64) -> Vec<Landed> {
    let mut landed = Vec::new();
    for _ in 0..120 {
        let it = key(&format!("it/{}", random(&mut seed) as usize % KEYS));
        let begin = Timestamp::now();
        let (landing, generation) = if random(&mut seed).is_multiple_of(4) {
            (rest(worker.delete(&it, &DeleteOptions::default()).await.unwrap()), None)
        } else {
            let mut object = object("ours");
            object.attributes.stored_at = begin;
            object.attributes.operation_id = None;
            let generation = object.attributes.generation.clone();
            (rest(worker.put(&it, &object, &PutOptions::default()).await.unwrap()), Some(generation))
        };
        if landing == Rest::Overlay {
            landed.push(Landed { overlay, key: it, generation, begin, end: Timestamp::now() });
        }
        sleep(Duration::from_micros(random(&mut seed) % 4_000)).await;
    }
    landed
}

/// Another tool's writes, straight into the bucket.
async fn meddle(bucket: Arc<Bucket>, mut seed: u64, stop: Arc<AtomicBool>) {
    while !stop.load(Ordering::Relaxed) {
        let it = key(&format!("it/{}", random(&mut seed) as usize % KEYS));
        bucket.foreign(&it, "theirs", Some(bucket.now())).await;
        sleep(Duration::from_micros(random(&mut seed) % 15_000)).await;
    }
}

async fn change_weather(bucket: Arc<Bucket>, mut seed: u64, stop: Arc<AtomicBool>) {
    while !stop.load(Ordering::Relaxed) {
        match random(&mut seed) % 3 {
            0 => bucket.leave(),
            1 => bucket.weather(|request| match request.ask {
                Ask::Put | Ask::Delete => Fate::ReplyLost,
                _ => Fate::Refused(ErrorKind::Unavailable),
            }),
            _ => {
                let seed = Mutex::new(random(&mut seed));
                bucket.weather(move |_| match seed.try_lock() {
                    Ok(mut seed) => Fate::Slow(Duration::from_micros(random(&mut seed) % 2_000)),
                    Err(_) => Fate::Served,
                });
            }
        }
        sleep(Duration::from_millis(2 + random(&mut seed) % 40)).await;
    }
    bucket.come_back();
}

async fn sync(worker: Arc<Fallback>, stop: Arc<AtomicBool>) -> u64 {
    let mut conflicts = 0;
    loop {
        let last = stop.load(Ordering::Relaxed);
        match worker.sync(&()).await {
            Ok(report) => {
                conflicts += report.conflicts;
                if last && report.remaining == 0 {
                    return conflicts;
                }
            }
            Err(error) => assert_eq!(error.kind, ErrorKind::Unavailable, "{error}"),
        }
        sleep(Duration::from_millis(2)).await;
    }
}

/// What a synchronization replaced was older than what it sent, as far as anybody can know.
fn nothing_newer_was_replaced(history: &[Change]) -> usize {
    let mut now: BTreeMap<&Key, &Change> = BTreeMap::new();
    let mut replaced = 0;
    for change in history {
        let before = now.insert(&change.key, change).and_then(|before| before.attributes.as_ref());
        let (Some(before), Some(after), true) = (before, &change.attributes, change.conditional) else { continue };
        let written_at =
            if before.writer_id == after.writer_id { Some(before.stored_at) } else { before.info.received_at };
        assert!(written_at.unwrap() <= after.stored_at, "{before:?} was replaced by {after:?}");
        replaced += 1;
    }
    replaced
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn of_all_who_write_one_key_nobody_loses_in_silence() {
    let (mut conflicts, mut replaced, mut checked) = (0, 0, 0);
    for seed in 1..=6 {
        let bucket = Bucket::new();
        let folders = [scratch(), scratch()];
        // Two on the first folder, one on the second.
        let workers = [0, 0, 1].map(|overlay| (open(&bucket, folders[overlay].path()), overlay));
        let (stop, calm) = (Arc::new(AtomicBool::new(false)), Arc::new(AtomicBool::new(false)));
        let weather = tokio::spawn(change_weather(Arc::clone(&bucket), seed, Arc::clone(&stop)));
        let meddling = tokio::spawn(meddle(Arc::clone(&bucket), seed + 100, Arc::clone(&stop)));
        let syncing: Vec<_> =
            workers.iter().map(|(worker, _)| tokio::spawn(sync(Arc::clone(worker), Arc::clone(&calm)))).collect();
        let writing = workers.iter().enumerate().map(|(number, (worker, overlay))| {
            tokio::spawn(write(Arc::clone(worker), *overlay, seed * 10 + number as u64))
        });
        let landed: Vec<Landed> = join_all(writing).await.into_iter().flat_map(Result::unwrap).collect();
        stop.store(true, Ordering::Relaxed);
        weather.await.unwrap();
        meddling.await.unwrap();
        calm.store(true, Ordering::Relaxed);
        conflicts += join_all(syncing).await.into_iter().map(Result::unwrap).sum::<u64>();

        let history = bucket.history().await;
        replaced += nothing_newer_was_replaced(&history);
        let aside = [workers[0].0.conflicts().await.unwrap(), workers[2].0.conflicts().await.unwrap()];
        for it in &landed {
            // Only what nobody else of the same overlay can have replaced before it was sent.
            let alone = |other: &Landed| {
                std::ptr::eq(other, it) || other.overlay != it.overlay || other.key != it.key || other.end < it.begin
            };
            let Some(generation) = it.generation.as_ref().filter(|_| landed.iter().all(alone)) else { continue };
            let came = history.iter().filter_map(|change| change.attributes.as_ref());
            let sent = came.filter(|attributes| attributes.generation == *generation).count();
            let kept = aside[it.overlay].iter().any(|aside| aside.path.iter().any(|part| part == generation.as_str()));
            assert!(sent > 0 || kept, "seed {seed}: {} of {generation} is nowhere", it.key);
            checked += 1;
        }
    }
    println!("fallback: {checked} last writes found, {replaced} objects replaced, {conflicts} conflicts");
    assert!(checked > 20 && replaced > 50 && conflicts > 20, "too little trouble");
}
