//! Random interleavings by seed: commands of all kinds, faults of all kinds, and a ledger that judges what came of them.
//!
//! `SESSION_LOOP_SEEDS`, as `301-10000`, says which seeds are tried; `SESSION_LOOP_SEED` tries one and prints its trace.

mod commands;
mod faults;
mod ledger;

use std::ops::RangeInclusive;
use std::time::{Duration, Instant};

use filestorage::broker::DEAD_QUEUE;

use crate::model::Model;
use crate::random::Random;
use crate::site::{START, Site, WORK, with_paused_clock};
use commands::{Expected, FAULTS, NEXT, draw};
use faults::{Stay, fault};
use ledger::{is_done, judge};

/// Seeds that are tried unless somebody asks for others: half a minute on two cores.
const SEEDS: RangeInclusive<u64> = 1..=150;
/// Seeds of which the trace is compared.
const REPLAYED: u64 = 30;
/// Commands of one seed.
const COMMANDS: u64 = 200;
/// The name of the second worker.
const SIBLING: &str = "filestorage@sibling";
/// Bytes that are parked where that is little.
const FEW_BYTES: u64 = 4096;

/// Draws the workers of a seed.
fn sites(seed: u64, random: &mut Random) -> Vec<Site> {
    let mut site = Site::new(seed);
    site.options.events = !random.one_in(4);
    site.options.track_started = random.one_in(4);
    site.broker.change(|model| {
        model.latency = (1, 5);
        model.batch = usize::try_from(random.between(1, 64)).unwrap();
        model.queue(NEXT);
        model.queue(DEAD_QUEUE);
        // docs/guarantees.md tells what the stamp is for.
        model.stamps_from = seed.is_multiple_of(2).then_some(START * 1000);
        if random.one_in(6) {
            model.forbid_parking();
        }
    });
    if random.one_in(6) {
        site.options.parked_max_bytes = FEW_BYTES;
    }
    let sibling = (!random.one_in(3)).then(|| site.sibling(SIBLING));
    Vec::from_iter(std::iter::once(site).chain(sibling))
}

/// Runs one seed to its end and returns the trace and what is wrong with it.
fn simulate(seed: u64) -> (String, Vec<String>) {
    with_paused_clock(async {
        let mut random = Random::new(seed);
        let mut sites = sites(seed, &mut random);
        let broker = sites[0].broker.clone();
        sites.iter_mut().for_each(Site::start);
        let is_large = random.one_in(2);
        let mut commands: Vec<_> = (0..COMMANDS).map(|number| draw(&mut random, number, is_large)).collect();
        commands.sort_by_key(|(at, ..)| *at);
        let expected: Vec<Expected> = commands.iter().map(|(.., expected)| expected.clone()).collect();
        let stay = random.one_in(3).then(|| Stay::draw(&mut random));
        let stay = stay.map(|stay| tokio::spawn(stay.run(broker.clone())));
        let producer = {
            let broker = broker.clone();
            tokio::spawn(async move {
                let began = tokio::time::Instant::now();
                for (at, message, _) in commands {
                    tokio::time::sleep_until(began + Duration::from_millis(at)).await;
                    broker.change(|model| model.put(WORK, &message));
                }
            })
        };
        let end = tokio::time::Instant::now() + Duration::from_millis(FAULTS);
        while tokio::time::Instant::now() < end {
            tokio::time::sleep(Duration::from_millis(random.between(100, 6000))).await;
            fault(&mut sites, &mut random).await;
        }
        producer.await.unwrap();
        if let Some(stay) = stay {
            stay.await.unwrap();
        }
        // Everything is healed; what is owed arrives within minutes.
        for _ in 0..3600 {
            if broker.change(|model: &mut Model| is_done(model, &expected)) {
                break;
            }
            tokio::time::sleep(Duration::from_secs(1)).await;
        }
        tokio::time::sleep(Duration::from_secs(5)).await;
        let faults = judge(&sites[0], &expected);
        (sites[0].trace(), faults)
    })
}

/// Returns what is wrong with a seed, a panic included.
fn judged(seed: u64) -> Vec<String> {
    let ended = std::panic::catch_unwind(|| simulate(seed).1);
    ended.unwrap_or_else(|_| vec!["it panics, see above".to_owned()])
}

/// Returns the seeds that are tried.
fn seeds() -> RangeInclusive<u64> {
    let Ok(text) = std::env::var("SESSION_LOOP_SEEDS") else { return SEEDS };
    let (first, last) = text.split_once('-').expect("SESSION_LOOP_SEEDS is the first and the last seed, as 151-10000");
    first.parse().unwrap()..=last.parse().unwrap()
}

#[test]
fn nothing_is_lost_or_done_twice_whatever_happens() {
    if let Ok(seed) = std::env::var("SESSION_LOOP_SEED") {
        let (trace, faults) = simulate(seed.parse().unwrap());
        println!("{trace}");
        assert!(faults.is_empty(), "seed {seed}: {faults:#?}");
        return;
    }
    let (seeds, began) = (seeds(), Instant::now());
    let halves = std::thread::scope(|scope| {
        let half = |skipped: usize| {
            let seeds = seeds.clone().skip(skipped).step_by(2);
            move || seeds.map(|seed| (seed, judged(seed))).collect::<Vec<_>>()
        };
        let threads = [scope.spawn(half(0)), scope.spawn(half(1))];
        threads.map(|thread| thread.join().unwrap())
    });
    let count = halves.iter().map(Vec::len).sum::<usize>() as u64;
    let wrong: Vec<_> = halves.into_iter().flatten().filter(|(_, faults)| !faults.is_empty()).collect();
    let seconds = began.elapsed().as_secs_f32();
    println!("session loop: {} commands in {count} seeds, {seconds:.0} s", count * COMMANDS);
    for (seed, faults) in &wrong {
        println!("seed {seed}: {}", faults.join("; "));
    }
    let numbers: Vec<u64> = wrong.iter().map(|(seed, _)| *seed).collect();
    assert!(wrong.is_empty(), "these seeds are wrong: {numbers:?}, the first one: {:#?}", wrong[0].1);
}

#[test]
fn a_seed_gives_the_same_trace_again() {
    for seed in 1..=REPLAYED {
        let (first, second) = (simulate(seed).0, simulate(seed).0);
        let differs = first.lines().zip(second.lines()).find(|(first, second)| first != second);
        assert_eq!(differs, None, "seed {seed}");
        assert_eq!(first.len(), second.len(), "seed {seed}");
        assert!(first.lines().count() > 400, "seed {seed} says little");
    }
}

#[test]
fn another_seed_gives_another_trace() {
    assert_ne!(simulate(1).0, simulate(2).0);
}
