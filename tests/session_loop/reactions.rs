//! What the worker does when queues, sessions and the broker itself fail in one of the ways that each can.

use std::time::Duration;

use filestorage::broker::METRICS_QUEUE;
use filestorage::worker::{Departure, Stop};

use crate::model::{Door, Model, Mood};
use crate::sent::{after_start, read, write};
use crate::site::{Site, WORK, is_acknowledged, with_paused_clock};
use crate::work;

/// A second queue of commands.
pub(crate) const OTHER: &str = "other";

/// Makes a site whose worker consumes two queues, of which the second is changed before the worker starts.
pub(crate) fn with_two_queues(change: impl FnOnce(&mut Model)) -> Site {
    let mut site = Site::new(1);
    site.options.queues.push(OTHER.to_owned());
    site.broker.change(|model| {
        model.queue(OTHER);
        change(model);
    });
    site.start();
    site
}

/// Returns how many sessions there were so far.
fn sessions(site: &Site) -> usize {
    site.broker.change(|model| model.clients.len())
}

#[test]
fn an_answer_that_comes_back_is_settled() {
    with_paused_clock(async {
        let site = Site::started();
        site.send(&write("a", "k").replying_to(Some("gone")).message());
        site.acknowledged("a").await;
        assert!(site.trace().contains("Returned gone a "), "{}", site.trace());
        assert_eq!((work::effects().len(), sessions(&site)), (1, 1));
    });
}

#[test]
fn a_callback_that_comes_back_gets_its_queue() {
    with_paused_clock(async {
        let site = Site::started();
        site.send(&write("a", "k").followed("callbacks", "later").message());
        site.acknowledged("a").await;
        assert_eq!(site.messages("later").len(), 1, "{}", site.trace());
        assert_eq!(site.states("a"), ["SUCCESS"]);
    });
}

#[test]
fn a_callback_waits_until_its_queue_has_room() {
    with_paused_clock(async {
        let site = Site::started();
        site.broker.change(|model| model.queue("next").bound = Some(1));
        site.send(&write("a", "k").followed("callbacks", "next").message());
        site.acknowledged("a").await;
        site.send(&write("b", "k").followed("callbacks", "next").message());
        tokio::time::sleep(Duration::from_secs(3)).await;
        assert!(site.states("b").is_empty(), "the callback leaves before the answer\n{}", site.trace());
        site.send(&write("c", "k").message());
        site.acknowledged("c").await;
        site.broker.change(|model| model.queue("next").messages.clear());
        site.acknowledged("b").await;
        assert_eq!((site.states("b"), site.messages("next").len()), (vec!["SUCCESS".to_owned()], 1));
        assert_eq!(sessions(&site), 1);
    });
}

#[test]
fn a_silent_queue_holds_up_nobody_and_costs_no_session() {
    with_paused_clock(async {
        let site = Site::started();
        site.broker.change(|model| model.queue("next").mood = Mood::Silent);
        site.send(&write("a", "k").followed("callbacks", "next").message());
        tokio::time::sleep(Duration::from_secs(2)).await;
        site.send(&write("b", "other").message());
        tokio::time::sleep(Duration::from_secs(1)).await;
        assert!(site.broker.change(|model| is_acknowledged(model, "b")), "{}", site.trace());
        assert!(!site.broker.change(|model| is_acknowledged(model, "a")), "{}", site.trace());
        // Its callback is parked.
        tokio::time::sleep(Duration::from_secs(3)).await;
        assert!(site.broker.change(|model| is_acknowledged(model, "a")), "{}", site.trace());
        site.broker.change(|model| model.queue("next").mood = Mood::Takes);
        site.until(120, "the callback", |model| !model.queues["next"].messages.is_empty()).await;
        assert_eq!((site.states("a"), work::effects().len()), (vec!["SUCCESS".to_owned()], 2));
        assert_eq!(sessions(&site), 1);
    });
}

#[test]
fn a_broker_that_confirms_nothing_at_all_costs_the_session() {
    with_paused_clock(async {
        let site = Site::started();
        for queue in ["replies", METRICS_QUEUE, "filestorage.nobody"] {
            site.broker.change(|model| model.queue(queue).mood = Mood::Silent);
        }
        site.send(&write("a", "k").message());
        tokio::time::sleep(Duration::from_secs(14)).await;
        assert_eq!(sessions(&site), 1);
        tokio::time::sleep(Duration::from_secs(5)).await;
        assert_eq!(sessions(&site), 2, "{}", site.trace());
    });
}

#[test]
fn an_answer_whose_queue_stays_full_is_given_up() {
    with_paused_clock(async {
        let site = Site::started_without_parking();
        site.broker.change(|model| model.queue("full").mood = Mood::Full);
        site.send(&write("a", "k").replying_to(Some("full")).message());
        tokio::time::sleep(Duration::from_secs(45)).await;
        assert!(!site.broker.change(|model| is_acknowledged(model, "a")), "{}", site.trace());
        site.acknowledged("a").await;
        assert_eq!((sessions(&site), site.messages(METRICS_QUEUE).len()), (1, 1));
    });
}

#[test]
fn an_answer_whose_queue_stays_silent_is_given_up() {
    with_paused_clock(async {
        let site = Site::started_without_parking();
        site.broker.change(|model| model.queue("silent").mood = Mood::Silent);
        site.send(&write("a", "k").replying_to(Some("silent")).message());
        tokio::time::sleep(Duration::from_secs(44)).await;
        assert!(!site.broker.change(|model| is_acknowledged(model, "a")), "{}", site.trace());
        site.acknowledged("a").await;
        let tries = site.arrivals("silent").len();
        assert_eq!(
            tries,
            3,
            "three in full
{}",
            site.trace()
        );
        assert_eq!(work::effects().len(), 1);
    });
}

#[test]
fn a_consumed_queue_that_is_down_comes_back_within_the_session() {
    with_paused_clock(async {
        let site = with_two_queues(|model| model.queue(OTHER).mood = Mood::Down);
        site.send(&write("a", "k").message());
        site.acknowledged("a").await;
        site.broker.change(|model| model.put(OTHER, &write("b", "k").message()));
        tokio::time::sleep(Duration::from_secs(60)).await;
        assert!(site.states("b").is_empty());
        site.send(&write("runs", "x").with("ms", 20_000).message());
        site.broker.change(|model| model.queue(OTHER).mood = Mood::Takes);
        site.acknowledged("b").await;
        assert!(site.states("runs").is_empty(), "what runs is not waited for");
        site.acknowledged("runs").await;
        assert_eq!((sessions(&site), work::runs().len()), (1, 3));
    });
}

#[test]
fn a_consumed_queue_that_goes_away_costs_no_session() {
    with_paused_clock(async {
        let site = with_two_queues(|_| {});
        site.send(&write("a", "k").message());
        site.acknowledged("a").await;
        // One ends while its queue is away, one when it is back.
        for (id, ms) in [("short", 2_000), ("long", 12_000)] {
            site.broker.change(|model| model.put(OTHER, &write(id, id).with("ms", ms).message()));
        }
        tokio::time::sleep(Duration::from_secs(1)).await;
        site.broker.change(|model| model.take_down(OTHER));
        site.send(&write("b", "k").message());
        site.acknowledged("b").await;
        assert!(site.readiness.is_ready(), "the other queue is consumed");
        tokio::time::sleep(Duration::from_secs(4)).await;
        site.broker.change(|model| {
            model.queue(OTHER).mood = Mood::Takes;
            model.put(OTHER, &write("c", "c").message());
        });
        for id in ["c", "short", "long"] {
            site.acknowledged(id).await;
        }
        assert_eq!((sessions(&site), work::effects().len()), (1, 5), "{}", site.trace());
    });
}

#[test]
fn a_consumed_queue_that_is_deleted_is_made_anew_at_once() {
    with_paused_clock(async {
        let site = Site::started();
        site.send(&write("a", "k").message());
        site.acknowledged("a").await;
        for id in ["b", "c"] {
            site.broker.change(|model| {
                model.take_down(WORK);
                model.queues.remove(WORK);
            });
            let deleted = tokio::time::Instant::now();
            site.until(10, "the queue", |model| model.queues.contains_key(WORK)).await;
            let wait = deleted.elapsed();
            // The first time what others send meanwhile shall not be lost; later no queue is made in a circle.
            assert_eq!(wait < Duration::from_secs(1), id == "b", "{wait:?}");
            site.send(&write(id, "k").message());
            site.acknowledged(id).await;
        }
        assert_eq!((sessions(&site), work::effects().len()), (1, 3), "{}", site.trace());
    });
}

#[test]
fn a_queue_that_gives_no_consumer_is_left_out_and_tried_again() {
    with_paused_clock(async {
        let site = with_two_queues(|model| _ = model.stalled.insert(OTHER.to_owned()));
        site.send(&write("a", "k").message());
        site.acknowledged("a").await;
        assert_eq!(sessions(&site), 2, "the first one was lost with the queue\n{}", site.trace());
        site.broker.change(|model| model.put(OTHER, &write("b", "k").message()));
        site.broker.change(|model| _ = model.stalled.remove(OTHER));
        site.acknowledged("b").await;
        assert_eq!(work::effects().len(), 2);
    });
}

#[test]
fn an_eta_without_the_right_to_wait_in_the_broker_is_a_failure() {
    with_paused_clock(async {
        let site = Site::started();
        site.broker.change(|model| {
            let exchanges = (0..=24).map(|doublings| format!("filestorage.delay.{}", 100_u64 << doublings));
            model.forbidden.extend(exchanges);
        });
        site.send(&read("a", "k").header("eta", after_start(300_000)).message());
        site.acknowledged("a").await;
        assert_eq!(site.states("a"), ["FAILURE"], "{}", site.trace());
        assert!(work::runs().is_empty());
    });
}

#[test]
fn a_broker_that_cannot_be_reached_is_tried_until_it_can() {
    with_paused_clock(async {
        let mut site = Site::new(1);
        site.broker.change(|model| model.door = Door::Unreachable);
        site.send(&write("a", "k").message());
        site.start();
        tokio::time::sleep(Duration::from_secs(3600)).await;
        assert_eq!(sessions(&site), 0);
        site.broker.change(|model| model.door = Door::Open);
        site.acknowledged("a").await;
        assert_eq!((sessions(&site), site.states("a")), (1, vec!["SUCCESS".to_owned()]));
    });
}

#[test]
fn a_short_cut_costs_no_session() {
    with_paused_clock(async {
        let site = Site::started();
        site.send(&write("a", "k").with("ms", 2000).message());
        site.until(5, "the beginning", |model| {
            model.clients.get(&1).is_some_and(|client| !client.unsettled.is_empty())
        })
        .await;
        site.broker.change(|model| model.cut(1, true));
        tokio::time::sleep(Duration::from_secs(1)).await;
        site.broker.change(|model| model.cut(1, false));
        site.acknowledged("a").await;
        assert_eq!((sessions(&site), work::runs().len()), (1, 1));
    });
}

#[test]
fn a_stop_waits_no_longer_than_its_farewell_for_a_close() {
    with_paused_clock(async {
        let mut site = Site::started();
        site.send(&write("a", "k").message());
        site.acknowledged("a").await;
        site.broker.change(|model| model.answers_close = false);
        let asked = tokio::time::Instant::now();
        site.ask(Stop::Warm);
        assert_eq!(site.stopped().await.unwrap(), Departure::Orderly);
        assert!(asked.elapsed() < Duration::from_secs(4), "{:?}", asked.elapsed());
        assert!(site.messages(WORK).is_empty());
    });
}
