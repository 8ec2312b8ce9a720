//! The faults of a seed.

use std::time::Duration;

use filestorage::broker::{DEAD_QUEUE, METRICS_QUEUE, Parking};

use super::commands::{FAULTS, NEXT};
use crate::model::{Door, Mood};
use crate::random::Random;
use crate::scripted::Scripted;
use crate::site::{REPLIES, Site, WORK};

/// The shortest and the longest time for which a queue takes nothing, in seconds.
const LONG: (u64, u64) = (20, 2400);
/// How long after the silence of a node its cluster gives the node's deliveries to others at the earliest.
const GIVEN_UP: Duration = Duration::from_secs(6);

/// A queue that takes nothing for long.
#[derive(Debug)]
pub(super) struct Stay {
    queue: String,
    mood: Mood,
    at: Duration,
    lasts: Duration,
}

impl Stay {
    pub(super) fn draw(random: &mut Random) -> Self {
        let (queue, mut mood) = (queue(random), mood(random));
        if queue == REPLIES && mood == Mood::Silent {
            // The third silence in a row gives all answers up, however long that took.
            mood = Mood::Full;
        }
        let at = Duration::from_millis(random.between(0, FAULTS));
        Self { queue, mood, at, lasts: Duration::from_secs(random.between(LONG.0, LONG.1)) }
    }

    /// Waits for the time, brings it about, and heals the queue.
    pub(super) async fn run(self, broker: Scripted) {
        tokio::time::sleep(self.at).await;
        broker.change(|model| {
            model.note(&format!("stays {:?} {}", self.mood, self.queue));
            model.queue(&self.queue).mood = self.mood;
        });
        tokio::time::sleep(self.lasts).await;
        broker.change(|model| {
            model.note(&format!("healed {}", self.queue));
            model.queue(&self.queue).mood = Mood::Takes;
        });
    }
}

fn queue(random: &mut Random) -> String {
    let step = Parking::address(0).routing_key;
    (*random.of(&[REPLIES, NEXT, METRICS_QUEUE, DEAD_QUEUE, &step])).to_owned()
}

fn mood(random: &mut Random) -> Mood {
    random.of(&[Mood::Full, Mood::Full, Mood::Silent, Mood::Down]).clone()
}

/// Draws one fault, brings it about, and heals it after a while.
pub(super) async fn fault(sites: &mut [Site], random: &mut Random) {
    let while_ms = Duration::from_millis(random.between(10, 8000));
    let broker = sites[0].broker.clone();
    let live = broker.change(|model| model.live());
    let one = (!live.is_empty()).then(|| *random.of(&live));
    let cut = |is_cut| broker.change(|model| one.into_iter().for_each(|one| model.cut(one, is_cut)));
    match random.between(0, 10) {
        0 | 1 => broker.change(|model| one.into_iter().for_each(|one| model.lose(one, "connection reset"))),
        2 => {
            broker.change(|model| model.block(Some("low on memory")));
            tokio::time::sleep(while_ms).await;
            broker.change(|model| model.block(None));
        }
        3 | 4 => {
            let (queue, mood) = (queue(random), mood(random));
            // One that stays as it is has its own time.
            let before = broker.change(|model| std::mem::replace(&mut model.queue(&queue).mood, mood));
            tokio::time::sleep(while_ms).await;
            broker.change(|model| model.queue(&queue).mood = before);
        }
        5 => {
            cut(true);
            tokio::time::sleep(while_ms).await;
            cut(false);
        }
        6 => {
            // The broker gives the connection up first, and the worker notices later.
            cut(true);
            // Only clusters give deliveries to others so early, and they stamp what comes in.
            let is_cluster = broker.change(|model| model.stamps_from.is_some());
            tokio::time::sleep(GIVEN_UP).await;
            if is_cluster {
                broker.change(|model| one.into_iter().for_each(|one| model.give_back(one)));
            }
            tokio::time::sleep(GIVEN_UP).await;
            broker.change(|model| one.into_iter().for_each(|one| model.lose(one, "nothing heard for 12 s")));
        }
        7 => {
            broker.change(|model| {
                model.door = Door::Unreachable;
                model.lose_all("the broker went down");
            });
            tokio::time::sleep(while_ms).await;
            broker.change(|model| model.door = Door::Open);
        }
        8 => {
            let index = usize::try_from(random.between(0, sites.len() as u64 - 1)).unwrap();
            sites[index].kill().await;
            tokio::time::sleep(while_ms / 4).await;
            sites[index].start();
        }
        9 => {
            broker.change(|model| model.take_down(WORK));
            tokio::time::sleep(while_ms).await;
            broker.change(|model| model.queue(WORK).mood = Mood::Takes);
        }
        _ => {
            let latency = (random.between(1, 20), random.between(20, 400));
            broker.change(|model| model.latency = latency);
            tokio::time::sleep(while_ms).await;
            broker.change(|model| model.latency = (1, 5));
        }
    }
}
