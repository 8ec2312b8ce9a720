//! Random interleavings by seed: commands of all kinds, faults of all kinds, and a ledger that judges what came of them.
//!
//! `SESSION_LOOP_SEEDS`, as `301-10000`, says which seeds are tried; `SESSION_LOOP_SEED` tries one and prints its trace.

use std::collections::{BTreeMap, BTreeSet};
use std::ops::RangeInclusive;
use std::time::{Duration, Instant};

use filestorage::broker::METRICS_QUEUE;
use filestorage::celery::message::Message;
use serde_json::Value;

use crate::model::{Door, Model, Mood, commands_of};
use crate::random::Random;
use crate::site::{REPLIES, START, Sent, Site, after_start, is_acknowledged, read, with_paused_clock, write};
use crate::work;

/// Seeds that are tried unless somebody asks for others: half a minute on two cores.
const SEEDS: RangeInclusive<u64> = 1..=300;
/// Seeds of which the trace is compared.
const REPLAYED: u64 = 40;
/// Commands of one seed.
const COMMANDS: u64 = 200;
/// How long faults go on, in milliseconds.
const FAULTS: u64 = 60_000;
/// The queue of callbacks.
const NEXT: &str = "next";

/// What a command must come to.
#[derive(Clone, Debug)]
struct Expected {
    id: String,
    /// The state of its answer; `None` where none is wanted.
    state: Option<&'static str>,
    writes: bool,
    follows: bool,
    /// It waits in delay queues for its eta.
    waits: bool,
}

/// Draws a command and when it is sent.
fn draw(random: &mut Random, number: u64) -> (u64, Message, Expected) {
    let id = format!("c{number}");
    let key = format!("k{}", random.between(0, 7));
    let writes = !random.one_in(3);
    let sent = if writes { write(&id, &key) } else { read(&id, &key) };
    let at = random.between(0, FAULTS);
    let mut expected = Expected { id: id.clone(), state: Some("SUCCESS"), writes, follows: false, waits: false };
    let pause = if random.one_in(5) { random.between(500, 5000) } else { random.between(0, 50) };
    let mut sent = sent.with("ms", pause);
    match random.between(0, 19) {
        0 => {
            sent = sent.with("end", "fails");
            (expected.state, expected.writes) = (Some("FAILURE"), false);
        }
        1 => {
            sent = Sent::new("no.such_task", &id, &key);
            (expected.state, expected.writes) = (Some("FAILURE"), false);
        }
        2 => {
            sent = sent.header("expires", after_start(-1000));
            (expected.state, expected.writes) = (Some("REVOKED"), false);
        }
        3 => {
            sent = sent.header("eta", after_start(i64::try_from(at + random.between(1, 20_000)).unwrap()));
            expected.waits = true;
        }
        4..=7 => {
            sent = sent.followed("callbacks", NEXT);
            expected.follows = true;
        }
        8 => {
            sent = sent.replying_to(None);
            expected.state = None;
        }
        _ => {}
    }
    (at, sent.message(), expected)
}

/// Draws one fault, brings it about, and heals it after a while.
async fn fault(site: &mut Site, random: &mut Random) {
    let while_ms = Duration::from_millis(random.between(10, 8000));
    let live = site.broker.change(|model| model.live());
    let last = live.last().copied();
    match random.between(0, 9) {
        0 | 1 => site.broker.change(|model| last.into_iter().for_each(|one| model.lose(one, "connection reset"))),
        2 => {
            site.broker.change(|model| model.block(Some("low on memory")));
            tokio::time::sleep(while_ms).await;
            site.broker.change(|model| model.block(None));
        }
        3 | 4 => {
            let queue = *random.of(&[REPLIES, NEXT, METRICS_QUEUE]);
            let mood = if random.one_in(2) { Mood::Full } else { Mood::Silent };
            site.broker.change(|model| model.queue(queue).mood = mood);
            tokio::time::sleep(while_ms).await;
            site.broker.change(|model| model.queue(queue).mood = Mood::Takes);
        }
        5 => {
            site.broker.change(|model| last.into_iter().for_each(|one| model.cut(one, true)));
            tokio::time::sleep(while_ms).await;
            site.broker.change(|model| last.into_iter().for_each(|one| model.cut(one, false)));
        }
        6 => {
            // The broker gives the connection up first, and the worker notices later.
            site.broker.change(|model| {
                last.into_iter().for_each(|one| {
                    model.cut(one, true);
                    model.give_back(one);
                });
            });
            tokio::time::sleep(Duration::from_secs(12)).await;
            site.broker.change(|model| last.into_iter().for_each(|one| model.lose(one, "nothing heard for 12 s")));
        }
        7 => {
            site.broker.change(|model| {
                model.door = Door::Unreachable;
                model.live().into_iter().for_each(|one| model.lose(one, "the broker went down"));
            });
            tokio::time::sleep(while_ms).await;
            site.broker.change(|model| model.door = Door::Open);
        }
        8 => {
            site.kill().await;
            tokio::time::sleep(while_ms / 4).await;
            site.start();
        }
        _ => {
            let latency = (random.between(1, 20), random.between(20, 400));
            site.broker.change(|model| model.latency = latency);
            tokio::time::sleep(while_ms).await;
            site.broker.change(|model| model.latency = (1, 5));
        }
    }
}

/// Runs one seed to its end and returns the trace and what is wrong with it.
fn simulate(seed: u64) -> (String, Vec<String>) {
    with_paused_clock(async {
        let mut random = Random::new(seed);
        let mut site = Site::new(seed);
        site.options.events = !random.one_in(4);
        site.options.track_started = random.one_in(4);
        site.broker.change(|model| {
            model.latency = (1, 5);
            model.batch = usize::try_from(random.between(1, 64)).unwrap();
            model.queue(NEXT);
            // docs/guarantees.md tells what the stamp is for.
            model.stamps_from = seed.is_multiple_of(2).then_some(START * 1000);
        });
        site.start();
        let mut commands: Vec<_> = (0..COMMANDS).map(|number| draw(&mut random, number)).collect();
        commands.sort_by_key(|(at, ..)| *at);
        let expected: Vec<Expected> = commands.iter().map(|(.., expected)| expected.clone()).collect();
        let broker = site.broker.clone();
        let producer = tokio::spawn(async move {
            let began = tokio::time::Instant::now();
            for (at, message, _) in commands {
                tokio::time::sleep_until(began + Duration::from_millis(at)).await;
                broker.change(|model| model.put(crate::site::WORK, &message));
            }
        });
        let end = tokio::time::Instant::now() + Duration::from_millis(FAULTS);
        while tokio::time::Instant::now() < end {
            tokio::time::sleep(Duration::from_millis(random.between(100, 6000))).await;
            fault(&mut site, &mut random).await;
        }
        producer.await.unwrap();
        // Everything is healed; what is owed arrives within minutes.
        let is_done = |model: &Model| expected.iter().all(|command| is_over(model, command));
        for _ in 0..3600 {
            if site.broker.change(|model| is_done(model)) {
                break;
            }
            tokio::time::sleep(Duration::from_secs(1)).await;
        }
        tokio::time::sleep(Duration::from_secs(5)).await;
        let faults = judge(&site, &expected);
        (site.trace(), faults)
    })
}

/// Tells whether nothing of a command is left in the broker: neither in its queue nor with a worker.
fn is_over(model: &Model, command: &Expected) -> bool {
    let is_own = |message: &Message| message.properties.correlation_id.as_deref() == Some(command.id.as_str());
    let waits = model.queues[crate::site::WORK].messages.iter().any(|stored| is_own(&stored.message));
    let held = model.clients.values().flat_map(|client| client.unsettled.values());
    let is_held = held.into_iter().any(|(_, stored)| is_own(&stored.message));
    is_acknowledged(model, &command.id) && !waits && !is_held && !model.delayed.contains(&command.id)
}

/// Says everything that is wrong with the end of a seed.
fn judge(site: &Site, expected: &[Expected]) -> Vec<String> {
    let mut faults = Vec::new();
    let (effects, runs) = (work::effects(), work::runs());
    let mut effects_of: BTreeMap<u64, usize> = BTreeMap::new();
    effects.iter().for_each(|effect| *effects_of.entry(effect.number).or_default() += 1);
    let by_id = |queue: &str| {
        let mut by_id: BTreeMap<String, Vec<Message>> = BTreeMap::new();
        for message in site.messages(queue) {
            for id in commands_of(&message) {
                by_id.entry(id).or_default().push(message.clone());
            }
        }
        by_id
    };
    let (replies, next) = (by_id(REPLIES), by_id(NEXT));
    let events = if site.options.events { by_id(METRICS_QUEUE) } else { BTreeMap::new() };
    site.broker.change(|model| {
        for command in expected {
            let id = &command.id;
            let is_doubtful = model.doubtful.contains(id);
            if !is_over(model, command) {
                faults.push(format!("{id} is not over"));
                continue;
            }
            let answers: Vec<Value> = replies.get(id).into_iter().flatten().map(answer).collect();
            let ends: BTreeSet<(String, String)> = answers.iter().filter_map(end).collect();
            let count = answers.iter().filter_map(end).count();
            match command.state {
                Some(state) if ends.len() != 1 => {
                    faults.push(format!("{id} has answers {ends:?} instead of one {state}"))
                }
                Some(state) => {
                    if ends.iter().any(|(found, _)| found != state) {
                        faults.push(format!("{id} is {ends:?} instead of {state}"));
                    }
                    if count != 1 && !is_doubtful {
                        faults.push(format!("{id} was answered {count} times without a reason"));
                    }
                }
                None if count > 0 => faults.push(format!("{id} was answered though nobody asked")),
                None => {}
            }
            let number = write(id, "k").number();
            if command.state == Some("REVOKED") && runs.contains(&number) {
                faults.push(format!("{id} ran though it had expired"));
            }
            let effects = effects_of.get(&number).copied().unwrap_or_default();
            // Without a stamp, nothing tells that two messages are copies of one that waited for its eta.
            let has_copies = command.waits && is_doubtful && model.stamps_from.is_none();
            if effects != usize::from(command.writes) && !(command.writes && has_copies && effects > 1) {
                faults.push(format!("{id} took effect {effects} times"));
            }
            let follows = next.get(id).map_or(0, Vec::len);
            if command.follows && (follows == 0 || follows > 1 && !is_doubtful) || !command.follows && follows > 0 {
                faults.push(format!("{id} has {follows} callbacks"));
            }
            let is_event = site.options.events && matches!(command.state, None | Some("SUCCESS"));
            let told = events.get(id).map_or(0, Vec::len);
            if is_event && (told == 0 || told > 1 && !is_doubtful) {
                faults.push(format!("{id} has {told} events"));
            }
        }
        faults.extend(early_acknowledgements(model, expected));
    });
    faults
}

/// Finds commands that were acknowledged before what they owe was confirmed.
fn early_acknowledgements(model: &Model, expected: &[Expected]) -> Vec<String> {
    let mut first: BTreeMap<(&str, String), usize> = BTreeMap::new();
    for (number, (queue, message)) in model.confirmed.iter().enumerate() {
        for id in commands_of(message) {
            let started = queue == REPLIES && end(&answer(message)).is_none();
            if !started {
                first.entry((queue, id)).or_insert(number);
            }
        }
    }
    let mut faults = Vec::new();
    for (id, confirmed) in &model.acknowledged {
        let Some(command) = expected.iter().find(|command| command.id == *id) else { continue };
        let parked = first.keys().any(|(queue, of)| of == id && queue.starts_with("filestorage.delay."));
        let owes = [(command.state.is_some(), REPLIES), (command.follows, NEXT)];
        for (_, queue) in owes.into_iter().filter(|(owes, _)| *owes && !parked) {
            if first.get(&(queue, id.clone())).is_none_or(|number| number >= confirmed) {
                faults.push(format!("{id} was acknowledged before {queue} was confirmed"));
            }
        }
    }
    faults
}

fn answer(message: &Message) -> Value {
    serde_json::from_slice(&message.body).unwrap_or_default()
}

/// Returns state and result of a final answer.
fn end(answer: &Value) -> Option<(String, String)> {
    let state = answer["status"].as_str().filter(|state| *state != "STARTED")?;
    Some((state.to_owned(), answer["result"].to_string()))
}

/// Returns the seeds that are tried.
fn seeds() -> RangeInclusive<u64> {
    let Ok(text) = std::env::var("SESSION_LOOP_SEEDS") else { return SEEDS };
    let (first, last) = text.split_once('-').expect("SESSION_LOOP_SEEDS is the first and the last seed, as 301-10000");
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
            move || seeds.map(|seed| (seed, simulate(seed).1)).collect::<Vec<_>>()
        };
        let threads = [scope.spawn(half(0)), scope.spawn(half(1))];
        threads.map(|thread| thread.join().unwrap())
    });
    let count = halves.iter().map(Vec::len).sum::<usize>() as u64;
    let wrong: Vec<_> = halves.into_iter().flatten().filter(|(_, faults)| !faults.is_empty()).collect();
    let seconds = began.elapsed().as_secs_f32();
    println!("session loop: {} commands in {count} seeds, {seconds:.0} s", count * COMMANDS);
    assert!(wrong.is_empty(), "{} seeds are wrong, the first ones: {:#?}", wrong.len(), &wrong[..wrong.len().min(3)]);
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
