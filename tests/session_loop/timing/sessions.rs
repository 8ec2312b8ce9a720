//! Sessions: their beginning, their silences, and their end.

use std::time::Duration;

use filestorage::broker::Backoff;
use filestorage::telemetry::Component;
use filestorage::worker::Stop;
use tokio::time::Instant;

use super::{assert_about, is_ready, times, until};
use crate::model::Door;
use crate::sent::write;
use crate::site::{NODE, REPLIES, Site, WORK, with_paused_clock};
use crate::work;

#[test]
fn a_fault_that_lasts_is_believed_after_a_second_look() {
    with_paused_clock(async {
        let mut site = Site::new(1);
        site.broker.change(|model| model.door = Door::Refuses);
        let began = Instant::now();
        site.start();
        site.stopped().await.unwrap_err();
        assert_about(u64::try_from(began.elapsed().as_millis()).unwrap(), 5000, &site.trace());
    });
}

#[test]
fn a_session_of_ten_seconds_was_a_good_one() {
    for (lives, is_good) in [(9_900, false), (10_100, true)] {
        with_paused_clock(async {
            let site = Site::started();
            let mut backoff = Backoff::new(NODE);
            for session in 1..=5 {
                site.until(10, "a session", |model| model.clients.len() == session).await;
                // As long as it takes to begin its work.
                tokio::time::sleep(Duration::from_millis(100)).await;
                site.broker.change(|model| model.lose(session as u64, "reset"));
                backoff.next_wait();
            }
            site.until(10, "the last session", |model| model.trace.contains("consume 6 work")).await;
            tokio::time::sleep(Duration::from_millis(lives)).await;
            site.broker.change(|model| model.lose(6, "reset"));
            if is_good {
                backoff.reset();
            }
            let expected = u64::try_from(backoff.next_wait().as_millis()).unwrap();
            site.until(10, "another session", |model| model.clients.len() == 7).await;
            let (lost, open) = site.broker.look(|model| (times(model, "lost 6"), times(model, "open 7")));
            assert_about(open[0] - lost[0], expected, &site.trace());
        });
    }
}

#[test]
fn nothing_begins_after_a_silence_of_five_and_a_half_seconds() {
    for (runs_for, begins) in [(5_400, true), (5_600, false)] {
        with_paused_clock(async {
            let site = Site::started();
            site.send(&write("first", "k").with("ms", 1000 + runs_for).message());
            site.send(&write("second", "k").message());
            site.until(5, "the beginning", |_| work::runs().len() == 1).await;
            let began = Instant::now();
            until(began, 1000).await;
            site.broker.change(|model| model.cut(1, true));
            until(began, 1000 + runs_for + 300).await;
            assert_eq!(work::runs().len(), if begins { 2 } else { 1 }, "{}", site.trace());
        });
    }
}

#[test]
fn what_ends_in_a_silence_of_a_second_is_written_at_once() {
    for (runs_for, is_written) in [(500, false), (1_500, true)] {
        with_paused_clock(async {
            let site = Site::started();
            // Its answer is on its way when the silence begins, and nothing else is written until that has landed.
            site.send(&write("answered", "a").with("ms", 500).message());
            site.send(&write("ends", "b").with("ms", 500 + runs_for).message());
            site.until(5, "the beginning", |_| work::runs().len() == 2).await;
            let began = Instant::now();
            until(began, 400).await;
            site.broker.change(|model| model.cut(1, true));
            until(began, 600).await;
            let before = journal_bytes(&site);
            until(began, 500 + runs_for + 200).await;
            assert_eq!((work::effects().len(), journal_bytes(&site) > before), (2, is_written), "{runs_for}");
        });
    }
}

/// Returns how much of the journal is written.
fn journal_bytes(site: &Site) -> u64 {
    std::fs::read_dir(&site.options.journal).unwrap().map(|entry| entry.unwrap().metadata().unwrap().len()).sum()
}

#[test]
fn writes_that_took_effect_are_waited_for_at_the_end() {
    with_paused_clock(async {
        let site = Site::started();
        site.send(&write("a", "k").with("after", 60_000).message());
        site.until(5, "the effect", |_| work::effects().len() == 1).await;
        let lost = Instant::now();
        site.broker.change(|model| model.lose(1, "reset"));
        until(lost, 4_900).await;
        assert_eq!(site.broker.look(|model| model.clients.len()), 1, "it waits");
        until(lost, 5_300).await;
        assert_eq!(site.broker.look(|model| model.clients.len()), 2, "{}", site.trace());
    });
}

#[test]
fn a_close_that_is_not_answered_ends_after_the_farewell() {
    with_paused_clock(async {
        let mut site = Site::started();
        site.send(&write("a", "k").message());
        site.acknowledged("a").await;
        site.broker.change(|model| model.answers_close = false);
        let asked = Instant::now();
        site.ask(Stop::Warm);
        site.stopped().await.unwrap();
        assert_about(u64::try_from(asked.elapsed().as_millis()).unwrap(), 3000, &site.trace());
        assert!(site.messages(WORK).is_empty() && site.messages(REPLIES).len() == 1);
    });
}

#[test]
fn an_idle_loop_notices_a_deleted_journal_within_a_second() {
    with_paused_clock(async {
        let site = Site::started();
        site.send(&write("a", "k").message());
        site.acknowledged("a").await;
        // The loop has just gone round.
        let turned = site.broker.look(|model| times(model, "ack 1 a")[0]);
        let turned = site.broker.look(|model| model.began) + Duration::from_millis(turned);
        std::fs::remove_dir_all(&site.options.journal).unwrap();
        until(turned, 980).await;
        assert!(is_ready(&site, Component::Journal));
        until(turned, 1_030).await;
        assert!(!is_ready(&site, Component::Journal));
    });
}
