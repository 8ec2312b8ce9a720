//! Tests with messages recorded from a real Celery: tasks are read, results and follow-ups are written identically.

#![allow(clippy::unwrap_used)]

mod follow_ups;
mod remote;
mod results;
mod tasks;

use std::collections::BTreeSet;
use std::path::PathBuf;

use base64::Engine as _;
use filestorage::celery::message::{Address, Field, Message, Properties, Publication};
use filestorage::celery::read::read;
use filestorage::celery::request::{ReadOptions, TaskRequest};
use filestorage::json::{Json, ParseLimits, parse};

/// The recorded messages that this program does not read or write yet, by name or `prefix_*`, with the reason.
const NOT_YET: [(&str, &str); 11] = [
    ("event_task_cancelled_batched", "nothing that runs is cancelled: what loses its session comes again"),
    ("event_task_sent", "an event of producers"),
    ("event_worker_elect", "this worker takes no part in elections"),
    ("event_worker_elect_ack", "this worker takes no part in elections"),
    ("event_worker_heartbeat_requested", "a heartbeat that was asked for has all fields of the others"),
    ("worker_retry_delayed", "a Python worker's own retry; ours is the message as it came, with other headers"),
    ("worker_retry_republish", "a Python worker's own retry; ours is the message as it came, with other headers"),
    ("worker_retry_republish_chain", "a Python worker's own retry; ours is the message as it came, with other headers"),
    (
        "worker_retry_republish_options",
        "a Python worker's own retry; ours is the message as it came, with other headers",
    ),
    ("result_custom_state", "a state of a Python task's own"),
    ("result_failure_pickle", "pickles are not written"),
];

fn not_yet(name: &str) -> bool {
    NOT_YET.iter().any(|(listed, _)| match listed.strip_suffix('*') {
        Some(prefix) => name.starts_with(prefix),
        None => name == *listed,
    })
}

/// The recorded follow-ups of workers that the tests below write.
const WORKER: [&str; 26] = [
    "worker_chain3_result1",
    "worker_chain3_result2",
    "worker_chain3_result3",
    "worker_chain3_step1",
    "worker_chain3_step2",
    "worker_chain3_step3",
    "worker_chain_fail_result1",
    "worker_chain_fail_result2",
    "worker_chain_fail_result3",
    "worker_chain_fail_result4",
    "worker_chain_immutable_step2",
    "worker_chain_link_step2",
    "worker_errback_immutable",
    "worker_errback_old",
    "worker_errback_unregistered_args",
    "worker_group_after_task_1",
    "worker_group_after_task_2",
    "worker_link_callback",
    "worker_link_callback_immutable",
    "worker_link_callback_options",
    "worker_link_chain_callback",
    "worker_link_two_callbacks_1",
    "worker_link_two_callbacks_2",
    "worker_spawned_subtask",
    "worker_stamped_chain_step2",
    "worker_stamped_link_callback",
];

fn folder() -> PathBuf {
    PathBuf::from(env!("CARGO_MANIFEST_DIR")).join("tests/fixtures/celery")
}

fn names(prefix: &str) -> Vec<String> {
    let mut names: Vec<_> = std::fs::read_dir(folder())
        .unwrap()
        .map(|entry| entry.unwrap().path().file_stem().unwrap().to_str().unwrap().to_owned())
        .filter(|name| name.starts_with(prefix))
        .collect();
    names.sort();
    assert!(!names.is_empty(), "no fixture {prefix}*");
    names
}

fn json(text: &str) -> Json {
    parse(text.as_bytes(), ParseLimits::default()).unwrap()
}

fn text(value: &Json, name: &str) -> Option<String> {
    value.get(name).and_then(Json::as_text).map(str::to_owned)
}

/// Reads one recorded message as the broker would deliver it.
fn load(name: &str) -> Publication {
    let file = json(&std::fs::read_to_string(folder().join(name).with_extension("json")).unwrap());
    let properties = file.get("properties").unwrap();
    let small = |name: &str| properties.get(name).and_then(Json::as_i64).map(|number| u8::try_from(number).unwrap());
    let Field::Table(headers) = field(file.get("headers").unwrap(), file.get("header_types")) else { panic!() };
    Publication {
        address: Address {
            exchange: text(&file, "exchange").unwrap(),
            routing_key: text(&file, "routing_key").unwrap(),
        },
        message: Message {
            properties: Properties {
                content_type: text(properties, "content_type"),
                content_encoding: text(properties, "content_encoding"),
                delivery_mode: small("delivery_mode"),
                priority: small("priority"),
                correlation_id: text(properties, "correlation_id"),
                reply_to: text(properties, "reply_to"),
                expiration: text(properties, "expiration"),
                ..Properties::default()
            },
            headers,
            body: base64::engine::general_purpose::STANDARD.decode(text(&file, "body_b64").unwrap()).unwrap().into(),
        },
    }
}

fn field(value: &Json, kind: Option<&Json>) -> Field {
    let inner = |place: usize| kind.and_then(Json::as_array).and_then(|kinds| kinds.get(place));
    match value {
        Json::Null => Field::Void,
        Json::Bool(value) => Field::Bool(*value),
        Json::Number(_) => value.as_i64().map_or_else(|| Field::Float(value.as_f64().unwrap()), Field::Int),
        Json::Text(_) if kind.and_then(Json::as_text) == Some("datetime") => Field::Timestamp(1_795_000_000),
        Json::Text(text) => Field::Text(text.clone()),
        Json::Array(items) => Field::List(items.iter().enumerate().map(|(at, item)| field(item, inner(at))).collect()),
        Json::Object(members) => Field::Table(
            members
                .iter()
                .map(|(name, value)| (name.clone(), field(value, kind.and_then(|kinds| kinds.get(name)))))
                .collect(),
        ),
    }
}

fn body(publication: &Publication) -> Json {
    parse(&publication.message.body, ParseLimits::default()).unwrap()
}

fn task(name: &str) -> TaskRequest {
    read(&load(name).message, &ReadOptions::default()).unwrap_or_else(|error| panic!("{name}: {error}"))
}

/// Creates a request as a producer would send it.
fn request(id: &str, parent: Option<&str>, root: Option<&str>, reply_to: &str, body: &str) -> TaskRequest {
    let optional = |text: Option<&str>| text.map_or(Field::Void, Field::from);
    let message = Message {
        properties: Properties {
            content_type: Some("application/json".to_owned()),
            correlation_id: Some(id.to_owned()),
            reply_to: Some(reply_to.to_owned()),
            ..Properties::default()
        },
        headers: [
            ("task", "files.store".into()),
            ("id", id.into()),
            ("parent_id", optional(parent)),
            ("root_id", optional(root)),
        ]
        .into_iter()
        .map(|(name, value)| (name.to_owned(), value))
        .collect(),
        body: body.to_owned().into(),
    };
    read(&message, &ReadOptions::default()).unwrap()
}

#[test]
fn every_fixture_has_a_case() {
    let listed: BTreeSet<&str> = WORKER.into_iter().collect();
    for name in names("") {
        // Tasks and results are walked by folder below, each file of them.
        let walked = ["task_", "result_", "control_", "event_"].iter().any(|prefix| name.starts_with(prefix));
        assert!(not_yet(&name) || walked || listed.contains(name.as_str()), "no case covers {name}");
    }
    for name in listed {
        assert!(folder().join(name).with_extension("json").exists(), "{name} is gone");
    }
}
