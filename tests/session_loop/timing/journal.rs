//! What the journals of two workers say, and for how long.

use std::time::Duration;

use filestorage::celery::message::{Field, Message};
use filestorage::telemetry::Component;
use tokio::time::Instant;

use super::{assert_about, is_ready, times, until};
use crate::sent::{Sent, write};
use crate::site::{START, Site, WORK, with_paused_clock};
use crate::work;

/// The queue of the second worker.
const OTHER: &str = "other";

/// Makes two workers on one journal, each with a queue of its own.
fn siblings() -> (Site, Site) {
    let mut site = Site::new(1);
    site.broker.change(|model| _ = model.queue(OTHER));
    let mut sibling = site.sibling("filestorage@sibling");
    sibling.options.queues = vec![OTHER.to_owned()];
    site.start();
    sibling.start();
    (site, sibling)
}

/// Hands a command to the first worker as one that was handed out before.
fn send_again(site: &Site, sent: &Sent) {
    site.broker.change(|model| {
        model.put(WORK, &sent.message());
        model.queue(WORK).messages.back_mut().unwrap().redelivered = true;
    });
}

fn send_to_other(site: &Site, message: &Message) {
    site.broker.change(|model| model.put(OTHER, message));
}

#[test]
fn what_a_sibling_began_two_seconds_before_a_silence_counts() {
    for (earlier, runs) in [(1_900, 1), (2_100, 2)] {
        with_paused_clock(async {
            let (site, _sibling) = siblings();
            tokio::time::sleep(Duration::from_secs(120)).await;
            let sent = write("a", "k");
            send_to_other(&site, &sent.message());
            let began = Instant::now();
            until(began, earlier).await;
            let number = site.broker.look(|model| model.live_of(&site.options.node)[0]);
            site.broker.change(|model| model.cut(number, true));
            until(began, earlier + 6_000).await;
            site.broker.change(|model| model.cut(number, false));
            site.send(&sent.message());
            tokio::time::sleep(Duration::from_secs(10)).await;
            assert_eq!((work::runs().len(), site.states("a").len()), (runs, 2), "{earlier}\n{}", site.trace());
        });
    }
}

#[test]
fn a_run_elsewhere_is_waited_for_up_to_fifteen_seconds() {
    with_paused_clock(async {
        let (site, _sibling) = siblings();
        tokio::time::sleep(Duration::from_secs(1)).await;
        let sent = write("a", "k").with("ms", 60_000);
        send_to_other(&site, &sent.message());
        tokio::time::sleep(Duration::from_secs(1)).await;
        send_again(&site, &sent);
        let began = Instant::now();
        until(began, 14_900).await;
        assert_eq!(work::runs().len(), 1, "{}", site.trace());
        until(began, 15_300).await;
        assert_eq!(work::runs().len(), 2, "{}", site.trace());
    });
}

#[test]
fn the_end_of_a_run_elsewhere_is_noticed_at_the_next_glance() {
    with_paused_clock(async {
        let (site, _sibling) = siblings();
        tokio::time::sleep(Duration::from_secs(1)).await;
        // A stamp tells that both are one.
        let sent = write("a", "k").with("ms", 3_030).header("timestamp_in_ms", Field::Int(START * 1000 - 5000));
        send_to_other(&site, &sent.message());
        let began = Instant::now();
        until(began, 1_000).await;
        send_again(&site, &sent);
        site.until(20, "both answers", |model| model.queues["replies"].messages.len() == 2).await;
        // It looks at 1.000, 1.250 … 3.250 s.
        let answers = site.broker.look(|model| times(model, "Routed replies a"));
        assert_about(answers[0], 1_000 + 3_030, &site.trace());
        assert_about(answers[1], 1_000 + 3_250, &site.trace());
        assert_eq!(work::runs().len(), 1);
    });
}

#[test]
fn an_answer_elsewhere_is_waited_for_two_seconds() {
    with_paused_clock(async {
        let (site, _sibling) = siblings();
        tokio::time::sleep(Duration::from_secs(1)).await;
        let sent = write("a", "k");
        send_to_other(&site, &sent.message());
        site.acknowledged("a").await;
        send_again(&site, &sent);
        let began = Instant::now();
        until(began, 1_900).await;
        assert_eq!(work::runs().len(), 1, "{}", site.trace());
        until(began, 2_300).await;
        assert_eq!(work::runs().len(), 2, "another one under this id\n{}", site.trace());
    });
}

#[test]
fn a_second_copy_that_is_called_fresh_is_known_for_a_minute() {
    for (later, runs) in [(59_000, 1), (61_000, 2)] {
        with_paused_clock(async {
            let site = Site::started();
            site.broker.change(|model| model.latency = (20, 20));
            site.send(&write("a", "k").message());
            site.until(5, "its answer", |model| !model.queues["replies"].messages.is_empty()).await;
            // Its acknowledgement was not sent. A node that was away hands out its own copy as a fresh one.
            site.broker.change(|model| {
                model.lose(1, "cut");
                model.queue(WORK).messages.clear();
            });
            let lost = Instant::now();
            until(lost, later).await;
            site.send(&write("a", "k").message());
            site.until(20, "another answer", |model| model.queues["replies"].messages.len() == 2).await;
            assert_eq!(work::runs().len(), runs, "{later}\n{}", site.trace());
        });
    }
}

#[test]
fn a_journal_that_was_deleted_is_told_for_two_minutes() {
    with_paused_clock(async {
        let site = Site::started();
        tokio::time::sleep(Duration::from_secs(5)).await;
        std::fs::remove_dir_all(&site.options.journal).unwrap();
        let deleted = Instant::now();
        until(deleted, 119_000).await;
        assert!(!is_ready(&site, Component::Journal));
        until(deleted, 122_500).await;
        assert!(is_ready(&site, Component::Journal));
    });
}
