//! Queues that are away, and delays.

use std::time::Duration;

use filestorage::broker::{DEAD_QUEUE, METRICS_QUEUE};
use filestorage::telemetry::Component;
use tokio::time::Instant;

use super::{assert_about, gaps, is_ready, times, until};
use crate::model::Mood;
use crate::reactions::{OTHER, with_two_queues};
use crate::sent::{Sent, after_start, read};
use crate::site::{Site, with_paused_clock};

#[test]
fn a_consumed_queue_that_is_back_is_noticed() {
    with_paused_clock(async {
        let site = with_two_queues(|model| model.queue(OTHER).mood = Mood::Down);
        site.until(5, "the session", |model| model.trace.contains("consume 1 work")).await;
        let began = Instant::now();
        site.broker.change(|model| model.queue(OTHER).mood = Mood::Takes);
        until(began, 4_950).await;
        assert!(!site.trace().contains("consume 1 other"));
        until(began, 5_050).await;
        assert!(site.trace().contains("consume 1 other"), "{}", site.trace());
    });
}

#[test]
fn a_queue_without_a_consumer_is_tried_every_minute() {
    with_paused_clock(async {
        let site = with_two_queues(|model| _ = model.stalled.insert(OTHER.to_owned()));
        tokio::time::sleep(Duration::from_secs(600)).await;
        let gaps = gaps(&site.broker.look(|model| times(model, "try other")));
        for (found, expected) in gaps.iter().zip([10_000, 20_000, 40_000, 60_000, 60_000, 60_000]) {
            assert_about(*found, expected, &site.trace());
        }
        assert!(gaps.len() >= 6, "{gaps:?}");
    });
}

#[test]
fn an_own_queue_that_is_back_is_noticed_after_five_seconds() {
    with_paused_clock(async {
        let mut site = Site::new(1);
        site.broker.change(|model| model.queue(DEAD_QUEUE).mood = Mood::Down);
        site.start();
        site.until(5, "the session", |model| model.trace.contains("consume 1 work")).await;
        let began = Instant::now();
        site.broker.change(|model| model.queue(DEAD_QUEUE).mood = Mood::Takes);
        until(began, 4_950).await;
        assert!(!is_ready(&site, Component::DeadQueue));
        until(began, 5_050).await;
        assert!(is_ready(&site, Component::DeadQueue), "{}", site.trace());
    });
}

#[test]
fn dead_copies_above_their_bound_go_every_five_seconds() {
    with_paused_clock(async {
        let mut site = Site::new(1);
        site.options.dead_max_messages = Some(2);
        site.start();
        for number in 0..5 {
            site.send(&Sent::new("no.such_task", &format!("c{number}"), "k").message());
        }
        tokio::time::sleep(Duration::from_secs(31)).await;
        assert_eq!(site.messages(DEAD_QUEUE).len(), 2);
        let gaps = gaps(&site.broker.look(|model| times(model, "trim")));
        assert!(gaps.len() >= 5, "{gaps:?}");
        gaps.iter().for_each(|gap| assert_about(*gap, 5_000, &site.trace()));
    });
}

#[test]
fn events_that_nobody_hears_are_asked_for_once_a_second() {
    with_paused_clock(async {
        let site = Site::started();
        tokio::time::sleep(Duration::from_secs(1)).await;
        site.broker.change(|model| drop(model.queues.remove(METRICS_QUEUE)));
        for number in 0..100 {
            site.send(&read(&format!("c{number}"), &format!("k{number}")).message());
            tokio::time::sleep(Duration::from_millis(100)).await;
        }
        let looks = site.broker.look(|model| times(model, &format!("look {METRICS_QUEUE}")));
        let gaps = gaps(&looks);
        assert!(gaps.len() >= 8 && gaps.iter().all(|gap| (1_000..1_250).contains(gap)), "{gaps:?}\n{}", site.trace());
    });
}

#[test]
fn a_delay_queue_that_is_down_is_asked_for_once_a_second() {
    with_paused_clock(async {
        let site = Site::started();
        site.broker.change(|model| model.delays_are_down = true);
        site.send(&read("a", "k").header("eta", after_start(300_000)).message());
        tokio::time::sleep(Duration::from_secs(10)).await;
        let gaps = gaps(&site.broker.look(|model| times(model, "delay work")));
        assert!(gaps.len() >= 8, "{gaps:?}\n{}", site.trace());
        gaps.iter().for_each(|gap| assert_about(*gap, 1_000, &site.trace()));
        site.broker.change(|model| model.delays_are_down = false);
        site.acknowledged("a").await;
    });
}
