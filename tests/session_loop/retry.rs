//! Commands whose storage is unreachable: they run again later, and nothing newer is undone.

use std::time::Duration;

use filestorage::celery::message::Field;
use serde_json::{Value, json};

use crate::sent::{after_start, read, write};
use crate::site::{Site, with_paused_clock};
use crate::work;

/// Makes a site whose values are in a bucket.
fn remote() -> Site {
    let mut site = Site::new(1);
    site.options.is_shared = true;
    site.options.task_events = true;
    site.start();
    site
}

/// Waits until a command has its last answer, and returns the states of all.
async fn states(site: &Site, id: &str) -> Vec<String> {
    for _ in 0..10_000 {
        let states = site.states(id);
        if states.last().is_some_and(|state| state != "RETRY") {
            return states;
        }
        tokio::time::sleep(Duration::from_millis(200)).await;
    }
    panic!("{id} has no answer\n{}", site.trace());
}

#[test]
fn a_command_whose_storage_is_away_runs_again() {
    with_paused_clock(async {
        let site = remote();
        site.broker.change(|model| _ = model.queue("next"));
        site.send(&write("a", "k").with("end", "away 2").followed("callbacks", "next").message());
        assert_eq!(states(&site, "a").await, ["RETRY", "RETRY", "SUCCESS"]);
        assert_eq!(site.answers("a")[0]["result"]["exc_type"], "StorageUnavailable");
        assert_eq!((work::runs().len(), work::effects().len(), site.messages("next").len()), (3, 1, 1));
        // Each attempt writes as the first one.
        let waits: Vec<_> =
            site.trace().lines().filter(|line| line.contains("delay work")).map(str::to_owned).collect();
        assert!(!waits.is_empty(), "{}", site.trace());
    });
}

#[test]
fn retries_end_with_the_failure_and_its_errbacks() {
    with_paused_clock(async {
        let site = remote();
        site.broker.change(|model| _ = model.queue("next"));
        site.send(&read("a", "k").with("end", "away 9").followed("errbacks", "next").message());
        assert_eq!(states(&site, "a").await, ["RETRY", "RETRY", "RETRY", "FAILURE"]);
        assert_eq!(site.answers("a")[3]["result"]["exc_type"], "StorageUnavailable");
        assert_eq!(site.messages("next").len(), 1);
        site.send(&read("none", "k").with("end", "away 9").header("max_retries", Field::Int(0)).message());
        assert_eq!(states(&site, "none").await, ["FAILURE"]);
        site.send(&read("one", "k").with("end", "away 9").header("max_retries", Field::Int(1)).message());
        assert_eq!(states(&site, "one").await, ["RETRY", "FAILURE"]);
    });
}

#[test]
fn a_retry_that_expires_meanwhile_is_revoked() {
    with_paused_clock(async {
        let site = remote();
        site.send(&write("a", "k").with("end", "away 1").header("expires", after_start(3_000)).message());
        assert_eq!(states(&site, "a").await, ["RETRY", "REVOKED"]);
        assert!(work::effects().is_empty());
    });
}

#[test]
fn a_command_that_may_not_wait_in_the_broker_fails_as_before() {
    with_paused_clock(async {
        let site = remote();
        site.broker.change(|model| {
            model.queue("next");
            let exchanges = (0..=24).map(|doublings| format!("filestorage.delay.{}", 100_u64 << doublings));
            model.forbidden.extend(exchanges);
        });
        site.send(&write("a", "k").with("end", "away 1").followed("errbacks", "next").message());
        assert_eq!(states(&site, "a").await, ["FAILURE"]);
        assert_eq!(site.answers("a")[0]["result"]["exc_type"], "StorageUnavailable");
        site.acknowledged("a").await;
        assert_eq!(site.messages("next").len(), 1);
    });
}

#[test]
fn a_retry_outlives_the_worker() {
    with_paused_clock(async {
        let mut site = remote();
        site.send(&write("a", "k").with("end", "away 1").message());
        site.acknowledged("a").await;
        site.kill().await;
        site.start();
        assert_eq!(states(&site, "a").await, ["RETRY", "SUCCESS"]);
        assert_eq!(work::effects().len(), 1);
    });
}

#[test]
fn large_messages_and_those_of_protocol_1_run_again() {
    with_paused_clock(async {
        let site = remote();
        let pad = "x".repeat(200_000);
        site.send(&write("large", "k").with("end", "away 1").with("pad", pad).message());
        assert_eq!(states(&site, "large").await, ["RETRY", "SUCCESS"]);
        let mut old = write("old", "k").with("end", "away 2").message();
        let body: Value = serde_json::from_slice(&old.body).unwrap();
        old.headers.retain(|_| false);
        let fields =
            json!({"task": "test.write", "id": "old", "args": body[0], "kwargs": body[1], "retries": 0, "eta": null});
        old.body = fields.to_string().into();
        site.send(&old);
        assert_eq!(states(&site, "old").await, ["RETRY", "RETRY", "SUCCESS"]);
        assert_eq!(work::effects().len(), 2);
    });
}

#[test]
fn without_a_bucket_nothing_is_tried_again() {
    with_paused_clock(async {
        let site = Site::started();
        site.send(&write("a", "k").with("end", "away 1").message());
        assert_eq!(states(&site, "a").await, ["FAILURE"]);
    });
}
