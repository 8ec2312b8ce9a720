//! Addresses that take nothing: how often they are tried, and how long that is remembered.

use std::time::Duration;

use tokio::time::Instant;

use super::{assert_about, gaps, until};
use crate::model::{Model, Mood};
use crate::sent::{read, write};
use crate::site::{Site, is_acknowledged, with_paused_clock};

/// The queue of callbacks or answers that takes nothing.
const NEXT: &str = "next";

/// Returns when something reached a queue, in milliseconds.
fn arrivals(site: &Site, queue: &str) -> Vec<u64> {
    let began = site.broker.look(|model| model.began);
    site.arrivals(queue).iter().map(|arrival| u64::try_from((arrival.at - began).as_millis()).unwrap()).collect()
}

fn set(site: &Site, mood: Mood) {
    site.broker.change(|model| model.queue(NEXT).mood = mood);
}

#[test]
fn a_full_queue_is_tried_every_five_seconds_in_the_end() {
    with_paused_clock(async {
        let site = Site::started_without_parking();
        set(&site, Mood::Full);
        site.send(&write("a", "k").followed("callbacks", NEXT).message());
        tokio::time::sleep(Duration::from_secs(60)).await;
        let gaps = gaps(&arrivals(&site, NEXT));
        for (gap, expected) in gaps.iter().zip([1_000, 2_000, 4_000, 5_000, 5_000, 5_000]) {
            assert_about(*gap, expected, &site.trace());
        }
        assert!(gaps.len() >= 6, "{gaps:?}");
    });
}

#[test]
fn a_silent_queue_is_tried_every_minute_in_the_end() {
    with_paused_clock(async {
        let site = Site::started();
        set(&site, Mood::Silent);
        for number in 0..600 {
            site.send(&write(&format!("c{number}"), "k").followed("callbacks", NEXT).message());
            tokio::time::sleep(Duration::from_secs(1)).await;
        }
        // A confirm is waited for before the next wait begins.
        let gaps = gaps(&arrivals(&site, NEXT));
        let last = gaps[gaps.len() - 4..].iter();
        assert!(last.into_iter().all(|gap| (65_000..78_000).contains(gap)), "{gaps:?}");
    });
}

#[test]
fn an_answer_to_a_hopeless_address_has_a_glance_only() {
    for (later, patience) in [(299_000, 1_000), (301_000, 48_000)] {
        with_paused_clock(async {
            let site = Site::started_without_parking();
            set(&site, Mood::Silent);
            site.send(&read("a", "k").replying_to(Some(NEXT)).message());
            site.acknowledged("a").await;
            tokio::time::sleep(Duration::from_millis(later)).await;
            site.send(&read("b", "k").replying_to(Some(NEXT)).message());
            let sent = Instant::now();
            site.acknowledged("b").await;
            let took = u64::try_from(sent.elapsed().as_millis()).unwrap();
            assert!((patience..patience + 200).contains(&took), "{later}: {took}\n{}", site.trace());
        });
    }
}

/// Lets an answer be given up, and tells whether two others leave together some time after the address last took nothing: they do unless
/// it is tried by one alone.
async fn leave_together(mood: Mood, confirm: u64, later: u64) -> bool {
    let site = Site::started_without_parking();
    set(&site, mood);
    site.send(&read("a", "k").replying_to(Some(NEXT)).message());
    site.acknowledged("a").await;
    let before = arrivals(&site, NEXT);
    let began = site.broker.look(|model| model.began);
    until(began, before.last().unwrap() + confirm + later).await;
    set(&site, Mood::Takes);
    ["b", "c"].into_iter().for_each(|id| site.send(&read(id, id).replying_to(Some(NEXT)).message()));
    site.until(60, "both answers", |model| arrived(model) >= before.len() + 2).await;
    let after = arrivals(&site, NEXT).split_off(before.len());
    after[0] == after[1]
}

fn arrived(model: &Model) -> usize {
    model.arrivals.iter().filter(|arrival| arrival.queue == NEXT).count()
}

#[test]
fn a_refusal_is_forgotten_after_a_minute() {
    for (later, together) in [(59_900, false), (60_200, true)] {
        assert_eq!(with_paused_clock(leave_together(Mood::Full, 0, later)), together, "{later}");
    }
}

#[test]
fn a_silence_is_forgotten_after_an_hour() {
    for (later, together) in [(3_599_900, false), (3_600_200, true)] {
        assert_eq!(with_paused_clock(leave_together(Mood::Silent, 15_000, later)), together, "{later}");
    }
}

#[test]
fn an_answer_is_tried_for_three_quarters_of_a_minute() {
    with_paused_clock(async {
        let site = Site::started_without_parking();
        set(&site, Mood::Full);
        site.send(&read("a", "k").replying_to(Some(NEXT)).message());
        site.until(5, "a refusal", |model| arrived(model) == 1).await;
        let refused = Instant::now();
        until(refused, 44_900).await;
        assert!(!site.broker.look(|model| is_acknowledged(model, "a")), "{}", site.trace());
        until(refused, 50_100).await;
        assert!(site.broker.look(|model| is_acknowledged(model, "a")), "{}", site.trace());
    });
}

#[test]
fn what_a_slow_batch_has_confirmed_is_settled_after_a_second() {
    with_paused_clock(async {
        let site = Site::started();
        set(&site, Mood::Silent);
        tokio::time::sleep(Duration::from_secs(1)).await;
        let began = Instant::now();
        // They end together, and leave in one batch.
        site.send(&read("a", "k").replying_to(Some(NEXT)).message());
        site.send(&read("b", "other").message());
        site.acknowledged("b").await;
        assert_about(u64::try_from(began.elapsed().as_millis()).unwrap(), 1_000, &site.trace());
        assert!(!site.broker.look(|model| is_acknowledged(model, "a")));
        // And the next one waits for nothing.
        let began = Instant::now();
        site.send(&read("c", "other").message());
        site.acknowledged("c").await;
        assert!(began.elapsed() < Duration::from_millis(200), "{}", site.trace());
    });
}
