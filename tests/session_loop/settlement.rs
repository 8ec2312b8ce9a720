//! The settlement table: what each end of a delivery owes before it is acknowledged.

use std::time::Duration;

use filestorage::broker::{DEAD_QUEUE, METRICS_QUEUE};
use filestorage::celery::message::Message;
use filestorage::worker::{Departure, Stop};

use crate::model::Mood;
use crate::sent::{Sent, after_start, read, write};
use crate::site::{REPLIES, START, Site, is_acknowledged, with_paused_clock};
use crate::work;

/// Returns the place of the first arrival at a queue.
fn arrival(site: &Site, queue: &str) -> usize {
    site.broker.change(|model| model.arrivals.iter().position(|arrival| arrival.queue == queue)).unwrap()
}

#[test]
fn a_success_is_answered_after_its_callbacks() {
    with_paused_clock(async {
        let site = Site::started();
        site.broker.change(|model| _ = model.queue("next"));
        site.send(&write("a", "k").followed("callbacks", "next").message());
        site.acknowledged("a").await;
        assert_eq!(site.states("a"), ["SUCCESS"]);
        assert_eq!((site.messages("next").len(), site.messages(METRICS_QUEUE).len()), (1, 1));
        assert!(arrival(&site, "next") < arrival(&site, "replies"));
        assert_eq!(work::effects().len(), 1);
    });
}

#[test]
fn a_failure_is_answered_and_its_errbacks_follow() {
    with_paused_clock(async {
        let site = Site::started();
        site.broker.change(|model| _ = model.queue("next"));
        let limit = |id: &str| read(id, "k").with("ms", 5000).header("timelimit", limits());
        for (id, sent) in [
            ("arguments", Sent::new("test.write", "arguments", "k").with("extra", 1)),
            ("key", write("key", "../k")),
            ("fails", write("fails", "k").with("end", "fails")),
            ("panics", write("panics", "k").with("end", "panics")),
            ("limit", limit("limit")),
        ] {
            site.send(&sent.followed("errbacks", "next").message());
            site.acknowledged(id).await;
            assert_eq!(site.states(id), ["FAILURE"], "{id}");
        }
        assert_eq!(site.messages("next").len(), 5);
        assert!(site.messages(DEAD_QUEUE).is_empty());
        assert!(work::effects().is_empty());
    });
}

/// Celery's header of limits: a hard one of a second.
fn limits() -> filestorage::celery::message::Field {
    use filestorage::celery::message::Field;
    Field::List(vec![Field::Int(1), Field::Void])
}

#[test]
fn what_has_expired_is_revoked_and_not_run() {
    with_paused_clock(async {
        let site = Site::started();
        tokio::time::sleep(Duration::from_secs(60)).await;
        site.send(&write("a", "k").header("expires", after_start(59_000)).message());
        site.acknowledged("a").await;
        assert_eq!(site.states("a"), ["REVOKED"]);
        assert!(work::runs().is_empty());
    });
}

#[test]
fn what_expires_behind_another_command_is_revoked() {
    with_paused_clock(async {
        let site = Site::started();
        site.send(&write("first", "k").with("ms", 10_000).message());
        site.send(&write("second", "k").header("expires", after_start(5000)).message());
        site.acknowledged("second").await;
        assert_eq!(site.states("second"), ["REVOKED"]);
        assert_eq!(work::effects().len(), 1);
    });
}

#[test]
fn an_eta_is_waited_for_in_the_broker() {
    with_paused_clock(async {
        let site = Site::started();
        site.send(&write("a", "k").header("eta", after_start(300_000)).message());
        site.acknowledged("a").await;
        tokio::time::sleep(Duration::from_secs(250)).await;
        assert!(site.states("a").is_empty() && work::runs().is_empty());
        assert!(site.broker.change(|model| model.clients.values().all(|client| client.unsettled.is_empty())));
        site.until(60, "its answer", |model| !model.queues["replies"].messages.is_empty()).await;
        let at = site.broker.change(|model| model.began.elapsed());
        assert!(at >= Duration::from_secs(300) && at < Duration::from_secs(302), "{at:?}");
        assert_eq!(site.states("a"), ["SUCCESS"]);
    });
}

#[test]
fn two_copies_of_a_command_with_an_eta_run_once() {
    // With and without the broker's stamp.
    for stamps_from in [Some(START * 1000), None] {
        with_paused_clock(async {
            let site = Site::started();
            site.broker.change(|model| (model.stamps_from, model.latency) = (stamps_from, (20, 20)));
            site.send(&write("a", "k").header("eta", after_start(300_000)).message());
            site.until(5, "the first copy", |model| !model.delayed.is_empty()).await;
            // Its confirm is on the way.
            site.broker.change(|model| model.live().into_iter().for_each(|number| model.lose(number, "cut")));
            site.until(10, "the second copy", |model| model.delayed.len() == 2).await;
            site.until(600, "two answers", |model| model.queues[REPLIES].messages.len() == 2).await;
            tokio::time::sleep(Duration::from_secs(5)).await;
            assert_eq!(site.states("a"), ["SUCCESS", "SUCCESS"]);
            assert_eq!(work::effects().len(), 1, "{}", site.trace());
        });
    }
}

#[test]
fn what_cannot_be_run_is_answered_and_kept() {
    with_paused_clock(async {
        let site = Site::started();
        let unreadable = Message { body: "no body".into(), ..read("unreadable", "k").message() };
        site.send(&Sent::new("no.such_task", "unknown", "k").message());
        site.send(&unreadable);
        for (number, id) in ["unknown", "unreadable"].into_iter().enumerate() {
            site.acknowledged(id).await;
            assert_eq!(site.states(id), ["FAILURE"], "{id}");
            assert!(site.messages(DEAD_QUEUE).len() > number);
        }
    });
}

#[test]
fn a_write_answered_before_is_answered_again() {
    with_paused_clock(async {
        let site = Site::started();
        site.broker.change(|model| model.latency = (20, 20));
        site.send(&write("a", "k").message());
        site.until(5, "its answer", |model| !model.queues["replies"].messages.is_empty()).await;
        // The confirm is on its way, and so is no acknowledgement yet.
        site.broker.change(|model| model.live().into_iter().for_each(|number| model.lose(number, "cut")));
        site.acknowledged("a").await;
        let answers = site.answers("a");
        assert_eq!(answers.len(), 2, "{}", site.trace());
        assert_eq!(answers[0]["result"], answers[1]["result"]);
        assert_eq!((work::effects().len(), work::runs().len()), (1, 1));
    });
}

#[test]
fn an_answer_that_is_refused_for_its_size_becomes_a_failure() {
    with_paused_clock(async {
        let site = Site::started();
        let words = "PRECONDITION_FAILED - message size 9 is larger than configured max size 8";
        site.broker.change(|model| model.queue("small").mood = Mood::Refuses(406, words.to_owned()));
        site.send(&write("a", "k").replying_to(Some("small")).message());
        site.acknowledged("a").await;
        assert_eq!(site.arrivals("small").len(), 2, "the answer, and the failure in its place\n{}", site.trace());
    });
}

#[test]
fn follow_ups_that_are_refused_become_a_failure() {
    with_paused_clock(async {
        let site = Site::started();
        site.broker.change(|model| model.queue("next").mood = Mood::Refuses(403, "ACCESS_REFUSED".to_owned()));
        site.send(&write("a", "k").followed("callbacks", "next").message());
        site.acknowledged("a").await;
        assert_eq!(site.states("a"), ["FAILURE"]);
    });
}

#[test]
fn a_lost_channel_leaves_its_deliveries_to_the_broker() {
    with_paused_clock(async {
        let site = Site::started();
        site.broker.change(|model| model.latency = (20, 20));
        site.send(&read("a", "k").message());
        site.until(5, "the delivery", |model| model.clients.get(&1).is_some_and(|client| !client.unsettled.is_empty()))
            .await;
        tokio::time::sleep(Duration::from_millis(10)).await;
        site.broker.change(|model| model.lose(1, "the channel died"));
        site.acknowledged("a").await;
        assert!(site.broker.change(|model| model.clients.len() == 2 && model.doubtful.contains("a")));
        assert_eq!(site.states("a").last().unwrap(), "SUCCESS");
    });
}

#[test]
fn a_warm_stop_finishes_what_runs_and_gives_back_the_rest() {
    with_paused_clock(async {
        let mut site = Site::started();
        site.send(&write("runs", "k").with("ms", 10_000).message());
        site.send(&write("waits", "k").message());
        site.until(5, "the beginning", |model| model.clients.get(&1).is_some_and(|client| client.unsettled.len() == 2))
            .await;
        tokio::time::sleep(Duration::from_secs(1)).await;
        site.ask(Stop::Warm);
        assert_eq!(site.stopped().await.unwrap(), Departure::Orderly);
        assert_eq!(site.states("runs"), ["SUCCESS"]);
        assert!(site.states("waits").is_empty());
        assert_eq!(site.messages("work").len(), 1);
    });
}

#[test]
fn a_cold_stop_gives_back_everything() {
    with_paused_clock(async {
        let mut site = Site::started();
        site.send(&write("runs", "k").with("ms", 10_000).message());
        site.until(5, "the beginning", |model| {
            model.clients.get(&1).is_some_and(|client| !client.unsettled.is_empty())
        })
        .await;
        tokio::time::sleep(Duration::from_secs(1)).await;
        site.ask(Stop::Cold);
        assert_eq!(site.stopped().await.unwrap(), Departure::LeftWork);
        assert_eq!(site.messages("work").len(), 1);
        assert!(work::effects().is_empty(), "its commit point was not passed");
    });
}

#[test]
fn a_blocked_broker_is_waited_for() {
    with_paused_clock(async {
        let site = Site::started();
        site.broker.change(|model| model.latency = (5, 5));
        site.until(5, "the session", |model| model.clients.values().any(|client| !client.consumed.is_empty())).await;
        site.broker.change(|model| model.block(Some("low on memory")));
        tokio::time::sleep(Duration::from_secs(1)).await;
        site.send(&write("a", "k").message());
        tokio::time::sleep(Duration::from_secs(3600)).await;
        assert!(work::runs().is_empty(), "no answer could leave");
        assert!(!site.broker.change(|model| is_acknowledged(model, "a")));
        site.broker.change(|model| model.block(None));
        site.acknowledged("a").await;
        assert!(site.broker.change(|model| model.clients.len() == 1), "no session was lost");
        assert_eq!(site.states("a"), ["SUCCESS"]);
    });
}
