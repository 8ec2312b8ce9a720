//! Remote control and the events of Celery, as operators and monitors see them.

use std::time::Duration;

use filestorage::celery::message::{Field, Message, Properties};
use filestorage::telemetry::Component;
use filestorage::worker::{Departure, Stop};
use serde_json::{Value, json};
use tokio::time::Instant;

use crate::reactions::{OTHER, with_two_queues};
use crate::sent::{Sent, after_start, read, write};
use crate::site::{NODE, Site, WORK, is_acknowledged, with_paused_clock};
use crate::work;

/// Sends a request to the worker and returns the answer of its node.
async fn ask(site: &Site, method: &str, arguments: Value) -> Value {
    site.until(20, "the pidbox", |model| model.live().iter().any(|number| !model.clients[number].controls.is_empty()))
        .await;
    let before = replies(site).len();
    request(site, method, &arguments, true);
    for _ in 0..1000 {
        if let Some(reply) = replies(site).get(before) {
            return reply[NODE].clone();
        }
        tokio::time::sleep(Duration::from_millis(5)).await;
    }
    panic!("{method} is not answered")
}

fn request(site: &Site, method: &str, arguments: &Value, is_answered: bool) {
    let mut body = json!({
        "method": method, "arguments": arguments, "destination": null, "pattern": null, "matcher": null
    });
    if is_answered {
        body["ticket"] = "t".into();
        body["reply_to"] = json!({"exchange": "reply.celery.pidbox", "routing_key": "me"});
    }
    send(site, body.to_string());
}

fn send(site: &Site, body: String) {
    let properties = Properties { content_type: Some("application/json".to_owned()), ..Properties::default() };
    let message = Message { properties, body: body.into(), ..Message::default() };
    site.broker.change(|model| {
        for number in model.live() {
            model.clients[&number].controls.iter().for_each(|control| drop(control.send(message.clone())));
        }
    });
}

fn sent(site: &Site, exchange: &str) -> Vec<(Instant, String, Value)> {
    site.broker.look(|model| {
        let sent = model.notices.iter().filter(|(_, publication)| publication.address.exchange == exchange);
        let read = |(at, publication): &(Instant, filestorage::celery::message::Publication)| {
            let body = serde_json::from_slice(&publication.message.body).unwrap();
            (*at, publication.address.routing_key.clone(), body)
        };
        sent.map(read).collect()
    })
}

fn replies(site: &Site) -> Vec<Value> {
    sent(site, "reply.celery.pidbox").into_iter().map(|(.., body)| body).collect()
}

/// Returns the types of the events about a task, in order.
fn events(site: &Site, id: &str) -> Vec<String> {
    let of_task = |event: &Value| event["uuid"] == id;
    let all = sent(site, "celeryev").into_iter().filter_map(|(.., body)| body.as_array().cloned()).flatten();
    all.filter(of_task).map(|event| event["type"].as_str().unwrap().to_owned()).collect()
}

fn with_events() -> Site {
    let mut site = Site::new(1);
    site.options.task_events = true;
    site.start();
    site
}

#[test]
fn requests_are_answered_and_what_is_none_changes_nothing() {
    with_paused_clock(async {
        let site = Site::started();
        assert_eq!(ask(&site, "ping", json!({})).await, json!({"ok": "pong"}));
        assert_eq!(ask(&site, "no_such", json!({})).await, json!({"error": "KeyError('no_such')"}));
        let registered = ask(&site, "registered", json!({})).await;
        assert_eq!(registered, json!(["test.read", "test.write"]));
        assert_eq!(ask(&site, "active_queues", json!({})).await[0]["name"], WORK);
        for body in ["", "[]", "{", r#"{"method": 1}"#, r#"{"method": "ping", "reply_to": 1}"#, "\u{1}"] {
            send(&site, body.to_owned());
        }
        let before = replies(&site).len();
        request(&site, "ping", &json!({}), false);
        send(&site, json!({"method": "shutdown", "destination": ["somebody@else"]}).to_string());
        send(&site, json!({"method": "shutdown", "pattern": "x*", "matcher": "glob"}).to_string());
        tokio::time::sleep(Duration::from_secs(5)).await;
        assert_eq!(replies(&site).len(), before);
        site.send(&write("a", "k").message());
        site.acknowledged("a").await;
        assert_eq!(ask(&site, "stats", json!({})).await["total"], json!({"test.write": 1}));
    });
}

#[test]
fn what_runs_and_what_waits_is_shown_by_its_keys() {
    with_paused_clock(async {
        let site = Site::started();
        site.send(&write("runs", "k").with("ms", 60_000).with("pad", "secret").message());
        site.send(&write("waits", "k").message());
        tokio::time::sleep(Duration::from_secs(1)).await;
        let active = ask(&site, "active", json!({"safe": true})).await;
        assert_eq!((active[0]["id"].as_str(), active[0]["kwargs"].as_str()), (Some("runs"), Some("{'key': 'k'}")));
        assert!(active[0]["time_start"].is_f64() && active[0]["delivery_info"]["routing_key"] == WORK);
        let reserved = ask(&site, "reserved", json!({})).await;
        assert_eq!((reserved[0]["id"].as_str(), &reserved[0]["kwargs"]), (Some("waits"), &json!({"key": "k"})));
        let query = ask(&site, "query_task", json!({"ids": ["runs", "waits", "other"]})).await;
        assert_eq!((&query["runs"][0], &query["waits"][0]), (&json!("active"), &json!("reserved")));
        assert_eq!(query.as_object().unwrap().len(), 2);
        assert!(!format!("{active}{reserved}{query}").contains("secret"));
    });
}

#[test]
fn events_tell_a_command_from_its_arrival_to_its_end() {
    with_paused_clock(async {
        let site = with_events();
        site.send(&write("good", "k").with("pad", "secret").message());
        site.send(&read("bad", "k").with("end", "fails").message());
        site.send(&write("misused", "../k").message());
        site.send(&Sent::new("no.such_task", "unknown", "k").message());
        site.send(&write("late", "k").header("expires", after_start(-1000)).message());
        site.send(&write("later", "k").header("eta", after_start(20_000)).message());
        for id in ["good", "bad", "misused", "unknown", "late"] {
            site.acknowledged(id).await;
        }
        tokio::time::sleep(Duration::from_secs(30)).await;
        assert_eq!(site.states("later"), ["SUCCESS"]);
        assert_eq!(events(&site, "good"), ["task-received", "task-started", "task-succeeded"]);
        assert_eq!(events(&site, "bad"), ["task-received", "task-started", "task-failed"]);
        assert_eq!(events(&site, "misused"), ["task-received", "task-started", "task-failed"]);
        assert_eq!(events(&site, "unknown"), ["task-failed"]);
        assert_eq!(events(&site, "late"), ["task-revoked"]);
        assert_eq!(events(&site, "later"), ["task-received", "task-started", "task-succeeded"]);
        let all = sent(&site, "celeryev");
        assert!(!format!("{all:?}").contains("secret"));
        let mut clocks: Vec<u64> = all
            .iter()
            .flat_map(|(.., body)| body.as_array().cloned().unwrap_or_else(|| vec![body.clone()]))
            .map(|event| event["clock"].as_u64().unwrap())
            .collect();
        let count = clocks.len();
        clocks.sort_unstable();
        clocks.dedup();
        assert_eq!(clocks.len(), count, "no two events have one clock");
    });
}

#[test]
fn events_are_off_until_somebody_wants_them() {
    with_paused_clock(async {
        let site = Site::started();
        site.send(&write("a", "k").message());
        site.acknowledged("a").await;
        assert_eq!(ask(&site, "enable_events", json!({})).await, json!({"ok": "task events enabled"}));
        assert_eq!(ask(&site, "enable_events", json!({})).await, json!({"ok": "task events already enabled"}));
        site.send(&write("b", "k").message());
        site.acknowledged("b").await;
        assert_eq!(ask(&site, "disable_events", json!({})).await, json!({"ok": "task events disabled"}));
        site.send(&write("c", "k").message());
        site.acknowledged("c").await;
        tokio::time::sleep(Duration::from_secs(1)).await;
        assert_eq!([events(&site, "a").len(), events(&site, "b").len(), events(&site, "c").len()], [0, 3, 0]);
    });
}

#[test]
fn a_heartbeat_is_sent_every_two_seconds_until_the_end() {
    with_paused_clock(async {
        let mut site = Site::started();
        tokio::time::sleep(Duration::from_millis(9_500)).await;
        let kinds = |site: &Site| -> Vec<String> {
            sent(site, "celeryev").into_iter().map(|(_, routing_key, _)| routing_key).collect()
        };
        assert_eq!(kinds(&site)[..2], ["worker.online", "worker.heartbeat"]);
        let beats: Vec<_> = sent(&site, "celeryev").into_iter().map(|(at, ..)| at).collect();
        assert!((5..=6).contains(&beats.len()), "{}", beats.len());
        site.ask(Stop::Warm);
        assert_eq!(site.stopped().await.unwrap(), Departure::Orderly);
        assert_eq!(kinds(&site).last().map(String::as_str), Some("worker.offline"));
    });
}

#[test]
fn a_revoked_command_never_runs_even_after_a_restart() {
    with_paused_clock(async {
        let mut site = with_events();
        site.send(&write("runs", "k").with("ms", 3_000).message());
        site.send(&write("waits", "k").message());
        site.send(&write("parked", "k").header("eta", after_start(60_000)).message());
        tokio::time::sleep(Duration::from_secs(1)).await;
        let told = ask(&site, "revoke", json!({"task_id": ["runs", "waits", "parked"], "terminate": false})).await;
        let told = told["ok"].as_str().unwrap();
        assert!(told.starts_with("tasks {'runs', 'waits', 'parked'} flagged as revoked"), "{told}");
        assert!(told.contains("runs runs") && told.contains("waits waits") && told.contains("parked is not here"));
        site.acknowledged("waits").await;
        assert_eq!(site.states("waits"), ["REVOKED"]);
        assert_eq!(site.answers("waits")[0]["result"]["exc_message"], json!(["revoked"]));
        assert_eq!(site.states("runs"), ["SUCCESS"], "what runs goes on");
        site.kill().await;
        site.start();
        tokio::time::sleep(Duration::from_secs(70)).await;
        assert_eq!(site.states("parked"), ["REVOKED"]);
        assert_eq!(events(&site, "waits"), ["task-received", "task-revoked"]);
        assert_eq!(work::effects().len(), 1);
        assert_eq!(ask(&site, "revoked", json!({})).await, json!(["runs", "waits", "parked"]));
    });
}

#[test]
fn stamps_and_what_other_workers_tell_revoke_as_well() {
    with_paused_clock(async {
        let site = Site::started();
        let arguments = json!({"headers": {"customer": ["7", "8"]}});
        let told = ask(&site, "revoke_by_stamped_headers", arguments).await;
        assert!(told["ok"].as_str().unwrap().ends_with("flagged as revoked, but not terminated"), "{told}");
        let hello = ask(&site, "hello", json!({"from_node": "other@host", "revoked": ["b"]})).await;
        assert_eq!(hello["revoked"], json!(["b"]));
        assert!(ask(&site, "hello", json!({"from_node": NODE, "revoked": ["c"]})).await.is_null());
        let stamps = |value: &str| {
            let mut stamps = filestorage::celery::message::Headers::default();
            stamps.set("customer", value.into());
            Field::Table(stamps)
        };
        let stamped = |id: &str, value: &str| {
            let names = Field::List(vec!["customer".into()]);
            write(id, "k").header("stamped_headers", names).header("stamps", stamps(value)).message()
        };
        for message in [stamped("a", "8"), write("b", "k").message(), write("c", "k").message(), stamped("d", "9")] {
            site.send(&message);
        }
        for (id, state) in [("a", "REVOKED"), ("b", "REVOKED"), ("c", "SUCCESS"), ("d", "SUCCESS")] {
            site.acknowledged(id).await;
            assert_eq!(site.states(id), [state], "{id}");
        }
    });
}

#[test]
fn a_terminated_command_has_no_effect_or_its_whole_effect() {
    with_paused_clock(async {
        let site = with_events();
        site.send(&write("early", "a").with("ms", 60_000).message());
        site.send(&write("late", "b").with("after", 5_000).message());
        site.send(&write("behind", "a").message());
        tokio::time::sleep(Duration::from_secs(1)).await;
        let arguments = json!({"task_id": ["early", "late", "unknown"], "signal": "SIGKILL"});
        assert_eq!(ask(&site, "terminate", arguments).await, json!({"ok": "terminate: early"}));
        let unknown = json!({"task_id": "unknown", "terminate": true, "signal": "TERM"});
        assert_eq!(ask(&site, "revoke", unknown).await, json!({"ok": "terminate: tasks unknown"}));
        for id in ["early", "behind", "late"] {
            site.acknowledged(id).await;
        }
        assert_eq!(site.states("early"), ["REVOKED"]);
        assert_eq!(site.answers("early")[0]["result"]["exc_message"], json!(["terminated"]));
        assert_eq!((site.states("late"), site.states("behind")), (vec!["SUCCESS".into()], vec!["SUCCESS".into()]));
        assert_eq!(work::effects().len(), 2);
        assert_eq!(events(&site, "early"), ["task-received", "task-started", "task-revoked"]);
    });
}

#[test]
fn a_rate_limit_holds_and_ends_at_once() {
    with_paused_clock(async {
        let site = Site::started();
        let unknown = json!({"task_name": "no.such_task", "rate_limit": "1/m"});
        assert_eq!(ask(&site, "rate_limit", unknown).await, json!({"error": "unknown task"}));
        let wrong = ask(&site, "rate_limit", json!({"task_name": "test.write", "rate_limit": "1/x"})).await;
        assert!(wrong["error"].as_str().unwrap().starts_with("Invalid rate limit string"), "{wrong}");
        let limit = json!({"task_name": "test.write", "rate_limit": "6/m"});
        assert_eq!(ask(&site, "rate_limit", limit).await, json!({"ok": "new rate limit set successfully"}));
        assert_eq!(ask(&site, "registered", json!({})).await[1], "test.write [rate_limit=6/m]");
        let began = Instant::now();
        for id in ["a", "b", "c"] {
            site.send(&write(id, id).message());
        }
        site.send(&read("free", "x").message());
        site.acknowledged("free").await;
        assert!(began.elapsed() < Duration::from_secs(1), "other tasks go on");
        site.acknowledged("c").await;
        assert_eq!(began.elapsed().as_secs(), 20, "one now, one after ten seconds, one after twenty");
        assert_eq!(
            ask(&site, "stats", json!({})).await["rate_limits"],
            json!({"test.write": {"rate": "6/m", "waited": 2}})
        );
        for id in ["d", "e", "f"] {
            site.send(&write(id, id).message());
        }
        tokio::time::sleep(Duration::from_secs(1)).await;
        let reserved = ask(&site, "reserved", json!({})).await;
        let ids: Vec<_> = reserved.as_array().unwrap().iter().map(|task| task["id"].as_str().unwrap()).collect();
        assert_eq!(ids, ["d", "e", "f"], "what waits for its rate is shown");
        let told = ask(&site, "revoke", json!({"task_id": "e"})).await;
        assert_eq!(told["ok"], "tasks {'e'} flagged as revoked (e waits)");
        let off = json!({"task_name": "test.write", "rate_limit": 0});
        assert_eq!(ask(&site, "rate_limit", off).await, json!({"ok": "rate limit disabled successfully"}));
        let lifted = Instant::now();
        site.acknowledged("f").await;
        assert!(lifted.elapsed() < Duration::from_secs(2), "{:?}", lifted.elapsed());
        assert_eq!(site.states("e"), ["REVOKED"]);
    });
}

#[test]
fn what_waits_for_its_rate_keeps_no_delivery_for_long() {
    with_paused_clock(async {
        let site = Site::started();
        let limit = json!({"task_name": "test.write", "rate_limit": "1/h"});
        ask(&site, "rate_limit", limit).await;
        site.send(&write("a", "a").message());
        site.send(&write("b", "b").message());
        site.acknowledged("a").await;
        // The broker ends the channel of a delivery that is not settled for half an hour.
        for _ in 0..120 {
            tokio::time::sleep(Duration::from_secs(60)).await;
            assert_eq!(site.broker.change(|model| model.held_for_too_long()), Vec::<String>::new());
        }
        assert_eq!((site.states("b"), work::effects().len()), (vec!["SUCCESS".to_owned()], 2));
        assert_eq!(site.broker.change(|model| model.clients.len()), 1);
    });
}

#[test]
fn a_time_limit_holds_for_commands_that_bring_none() {
    with_paused_clock(async {
        let site = Site::started();
        let limit = json!({"task_name": "test.write", "hard": 2, "soft": null});
        assert_eq!(ask(&site, "time_limit", limit).await, json!({"ok": "time limits set successfully"}));
        let unknown = json!({"task_name": "x", "hard": 2});
        assert_eq!(ask(&site, "time_limit", unknown).await, json!({"error": "unknown task"}));
        site.send(&write("a", "k").with("ms", 9_000).message());
        site.acknowledged("a").await;
        assert_eq!(site.answers("a")[0]["result"]["exc_type"], "TimeLimitExceeded");
        let limits = json!({"test.write": {"hard": 2.0, "soft": null}});
        assert_eq!(ask(&site, "stats", json!({})).await["time_limits"], limits);
    });
}

#[test]
fn a_queue_is_consumed_and_left_as_it_is_told() {
    with_paused_clock(async {
        let site = with_two_queues(|_| {});
        let left = ask(&site, "cancel_consumer", json!({"queue": OTHER})).await;
        assert_eq!(left, json!({"ok": format!("no longer consuming from {OTHER}")}));
        site.broker.change(|model| model.put(OTHER, &write("a", "k").message()));
        tokio::time::sleep(Duration::from_secs(10)).await;
        assert!(site.states("a").is_empty());
        assert_eq!(ask(&site, "active_queues", json!({})).await.as_array().unwrap().len(), 1);
        let added = ask(&site, "add_consumer", json!({"queue": OTHER})).await;
        assert_eq!(added, json!({"ok": format!("add consumer {OTHER}")}));
        site.acknowledged("a").await;
        // The next session consumes it, too.
        site.broker.change(|model| model.lose_all("the broker went down"));
        site.broker.change(|model| model.put(OTHER, &write("b", "k").message()));
        site.acknowledged("b").await;
        for own in [
            "filestorage.dead",
            "filestorage.delay.100",
            "filestorage.parked",
            "amq.rabbitmq.reply-to",
            "",
            "x.celery.pidbox",
        ] {
            let refused = ask(&site, "add_consumer", json!({"queue": own})).await;
            assert!(refused["error"].as_str().unwrap().contains("no name"), "{own}: {refused}");
        }
        let bound = ask(&site, "add_consumer", json!({"queue": "x", "exchange": "y", "exchange_type": "topic"})).await;
        assert!(bound["error"].as_str().unwrap().contains("binds none"), "{bound}");
    });
}

#[test]
fn a_queue_that_is_added_twice_is_consumed_once() {
    with_paused_clock(async {
        let site = with_two_queues(|model| model.queue(OTHER).mood = crate::model::Mood::Down);
        for method in ["cancel_consumer", "add_consumer", "cancel_consumer", "add_consumer"] {
            ask(&site, method, json!({"queue": OTHER})).await;
        }
        tokio::time::sleep(Duration::from_secs(7)).await;
        site.broker.change(|model| model.queue(OTHER).mood = crate::model::Mood::Takes);
        site.broker.change(|model| model.put(OTHER, &write("a", "k").message()));
        site.acknowledged("a").await;
        tokio::time::sleep(Duration::from_secs(60)).await;
        assert_eq!(site.trace().matches(&format!("consume 1 {OTHER}")).count(), 1, "{}", site.trace());
        site.broker.change(|model| model.put(OTHER, &write("b", "k").message()));
        site.acknowledged("b").await;
    });
}

#[test]
fn more_and_fewer_commands_run_as_it_is_told() {
    with_paused_clock(async {
        let site = Site::started();
        assert_eq!(ask(&site, "pool_shrink", json!({"n": 7})).await, json!({"ok": "pool will shrink"}));
        let refused = ask(&site, "pool_shrink", json!({"n": 1})).await;
        assert!(refused["error"].as_str().unwrap().contains("from 1 to"), "{refused}");
        let began = Instant::now();
        for id in ["a", "b"] {
            site.send(&write(id, id).with("ms", 5_000).message());
        }
        site.acknowledged("b").await;
        assert_eq!(began.elapsed().as_secs(), 10);
        assert_eq!(ask(&site, "pool_grow", json!({"n": 3})).await, json!({"ok": "pool will grow"}));
        assert_eq!(ask(&site, "stats", json!({})).await["pool"]["max-concurrency"], 4);
        for (method, error) in [("autoscale", "Autoscale not enabled"), ("pool_restart", "Pool restarts not enabled")] {
            let refused = ask(&site, method, json!({})).await;
            assert_eq!(refused, json!({"error": format!("ValueError('{error}')")}));
        }
    });
}

#[test]
fn a_shutdown_is_orderly_and_answered_to_nobody() {
    with_paused_clock(async {
        let mut site = Site::started();
        site.send(&write("a", "k").with("ms", 3_000).message());
        tokio::time::sleep(Duration::from_secs(1)).await;
        request(&site, "shutdown", &json!({}), true);
        assert_eq!(site.stopped().await.unwrap(), Departure::Orderly);
        assert!(site.broker.change(|model| is_acknowledged(model, "a")));
        assert!(replies(&site).is_empty());
    });
}

#[test]
fn without_the_right_to_a_pidbox_commands_go_on() {
    with_paused_clock(async {
        let mut site = Site::new(1);
        site.broker.change(|model| {
            model.forbidden.extend([format!("{NODE}.celery.pidbox"), "celeryev".to_owned()]);
        });
        site.start();
        site.send(&write("a", "k").message());
        site.acknowledged("a").await;
        tokio::time::sleep(Duration::from_secs(600)).await;
        assert!(site.readiness.is_ready());
        let state = format!("{:?}", site.readiness.conditions().get(&Component::RemoteControl));
        assert!(state.contains("remote control is off"), "{state}");
        let tries = site.trace().matches("subscribe 1").count();
        assert!((10..=12).contains(&tries), "once a minute: {tries}");
    });
}

#[test]
fn a_last_word_that_nobody_takes_is_given_up() {
    with_paused_clock(async {
        let mut site = Site::started();
        site.send(&write("a", "k").message());
        site.acknowledged("a").await;
        site.broker.change(|model| model.takes_notices = false);
        let asked = Instant::now();
        site.ask(Stop::Warm);
        assert_eq!(site.stopped().await.unwrap(), Departure::Orderly);
        let waited = asked.elapsed();
        assert!((Duration::from_secs(1)..Duration::from_millis(2_200)).contains(&waited), "{waited:?}");
    });
}

#[test]
fn a_node_name_that_is_taken_is_asked_for_again() {
    with_paused_clock(async {
        let mut site = Site::new(1);
        site.broker.change(|model| model.locked = true);
        site.start();
        tokio::time::sleep(Duration::from_millis(14_000)).await;
        assert_eq!(site.trace().matches("subscribe 1").count(), 3, "every five seconds\n{}", site.trace());
        site.broker.change(|model| model.locked = false);
        assert_eq!(ask(&site, "ping", json!({})).await, json!({"ok": "pong"}));
    });
}
