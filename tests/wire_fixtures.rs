//! Every message recorded from a real Celery: tasks are read, results and follow-ups are written the same.

#![allow(clippy::unwrap_used)]

use std::collections::BTreeSet;
use std::path::PathBuf;

use base64::Engine as _;
use filestorage::celery::canvas::{self, CanvasOptions};
use filestorage::celery::error::Exception;
use filestorage::celery::message::{Address, Field, Headers, Message, Origin, Properties, Publication};
use filestorage::celery::reply::{Child, Extended, ReplyOptions, Revocation, State, reply};
use filestorage::celery::request::{Fault, ReadOptions, TaskRequest, read};
use filestorage::json::{Json, Limits, parse};
use jiff::Timestamp;

/// Serializers that are refused: the task is answered with `ContentDisallowed`.
const REFUSED: [&str; 4] = ["task_v2_msgpack", "task_v2_msgpack_gzip", "task_v2_pickle", "task_v2_yaml"];

/// Recorded messages this program does not write or read yet, with the reason.
const NOT_YET: [(&str, &str); 5] = [
    ("control_", "remote control"),
    ("event_", "task and worker events"),
    ("worker_retry_", "republishing for a retry; the messages are read"),
    ("result_custom_state", "states of one's own are only for Python tasks"),
    ("result_failure_pickle", "results are written in JSON only"),
];

/// Results in a serializer other than JSON, beside the pickled one above.
const OTHER_SERIALIZER: [&str; 2] = ["result_started_msgpack_persistent", "result_success_msgpack_persistent"];

/// Recorded workers' follow-ups and the cases below that write them.
const WORKER: [&str; 24] = [
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
    "worker_stamped_chain_step2",
];
const WORKER_MORE: [&str; 2] = ["worker_stamped_link_callback", "worker_spawned_subtask"];

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
    parse(text.as_bytes(), Limits::default()).unwrap()
}

fn text(value: &Json, name: &str) -> Option<String> {
    value.get(name).and_then(Json::as_text).map(str::to_owned)
}

/// Reads one recorded message as the broker would hand it over.
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
    parse(&publication.message.body, Limits::default()).unwrap()
}

fn task(name: &str) -> TaskRequest {
    read(&load(name).message, &ReadOptions::default()).unwrap_or_else(|error| panic!("{name}: {error}"))
}

/// Makes a request as a producer would send it.
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
    let listed: BTreeSet<&str> = WORKER.into_iter().chain(WORKER_MORE).collect();
    for name in names("") {
        let not_yet = NOT_YET.iter().any(|(prefix, _)| name.starts_with(prefix));
        // Tasks and results are walked by folder below, each file of them.
        let walked = name.starts_with("task_") || name.starts_with("result_");
        assert!(not_yet || walked || listed.contains(name.as_str()), "no case covers {name}");
    }
    for name in listed {
        assert!(folder().join(name).with_extension("json").exists(), "{name} is gone");
    }
}

#[test]
fn every_task_is_read() {
    for name in names("task_").into_iter().chain(names("worker_retry_")).chain(["worker_spawned_subtask".to_owned()]) {
        let publication = load(&name);
        let message = &publication.message;
        let outcome = read(message, &ReadOptions::default());
        if REFUSED.contains(&name.as_str()) {
            let error = outcome.unwrap_err();
            assert_eq!(error.what, Fault::ContentDisallowed, "{name}");
            assert_eq!(error.exception().exc_type(), "ContentDisallowed");
            assert_eq!(error.exception().exc_module(), "kombu.exceptions");
            let reply = error.reply.unwrap();
            assert_eq!(Some(&reply.task_id), message.properties.correlation_id.as_ref());
            assert_eq!(Some(&reply.queue), message.properties.reply_to.as_ref());
            continue;
        }
        let request = outcome.unwrap_or_else(|error| panic!("{name}: {error}"));
        assert_eq!(Some(&request.id), message.properties.correlation_id.as_ref(), "{name}");
        assert_eq!(request.correlation_id, request.id);
        assert_eq!(request.reply_to, message.properties.reply_to, "{name}");
        if message.headers.get("compression").is_some() {
            assert!(request.argsrepr.unwrap().starts_with("('a.txt',"), "{name}");
            assert_eq!(request.args, [Json::from("a.txt")], "{name}");
            assert_eq!(request.kwargs, [("data".to_owned(), Json::from("hello ".repeat(50)))], "{name}");
            continue;
        }
        let body = body(&publication);
        let (args, kwargs, embed) = if name.starts_with("task_v1") {
            assert_eq!(request.protocol, 1);
            assert_eq!(text(&body, "task"), Some(request.task), "{name}");
            (body.get("args").unwrap(), body.get("kwargs").unwrap(), &body)
        } else {
            assert_eq!(request.protocol, 2);
            assert_eq!(message.headers.text("task"), Some(request.task.as_str()), "{name}");
            assert_eq!(message.headers.text("root_id"), request.root_id.as_deref(), "{name}");
            assert_eq!(message.headers.text("origin"), request.origin.as_deref(), "{name}");
            let [args, kwargs, embed] = body.as_array().unwrap() else { panic!("{name}") };
            (args, kwargs, embed)
        };
        assert_eq!(request.args, args.as_array().unwrap(), "{name}");
        assert_eq!(request.kwargs, kwargs.as_object().unwrap(), "{name}");
        for (part, signatures) in
            [("callbacks", &request.callbacks), ("errbacks", &request.errbacks), ("chain", &request.chain)]
        {
            let recorded = embed.get(part).and_then(Json::as_array).unwrap_or_default();
            assert_eq!(signatures.len(), recorded.len(), "{name} {part}");
            for (signature, recorded) in signatures.iter().zip(recorded) {
                assert_eq!(Some(&signature.task), text(recorded, "task").as_ref());
                assert_eq!(signature.options, recorded.get("options").unwrap().as_object().unwrap());
            }
        }
    }
}

#[test]
fn tasks_say_what_they_were_sent_with() {
    let at = |text: &str| Some(text.parse::<Timestamp>().unwrap());
    assert_eq!(task("task_v2_eta").eta, at("2030-01-01T21:34:05Z"));
    assert_eq!(task("task_v2_eta_naive").eta, at("2030-01-02T03:04:05Z"));
    assert_eq!(task("task_v2_expires_seconds").expires, at("2026-11-22T06:12:59.589414Z"));
    assert_eq!(task("task_v1_countdown_expires").eta, at("2026-11-22T06:12:44.152573Z"));
    assert_eq!(task("task_v1_countdown_expires").expires, at("2026-11-22T06:13:14.152573Z"));
    let limits = task("task_v2_time_limits");
    assert_eq!(limits.time_limit.unwrap().as_secs(), 30);
    assert_eq!(limits.soft_time_limit.unwrap().as_secs(), 20);
    let limits = task("task_v2_time_limits_float");
    assert_eq!(limits.time_limit.unwrap().as_millis(), 2500);
    assert_eq!(limits.soft_time_limit.unwrap().as_millis(), 1500);
    assert!(task("task_v2_ignore_result").ignore_result);
    assert!(task("task_v2_ignore_result").reply_address().is_none());
    assert!(!task("task_v2_send_task").ignore_result);
    assert_eq!(task("task_v2_shadow").shadow.unwrap(), "files.store[shadow]");
    let stamped = task("task_v2_stamped");
    assert_eq!(stamped.stamped_headers, ["tenant", "trace"]);
    assert_eq!(stamped.stamps.text("tenant"), Some("acme"));
    for (name, index) in [("task_v2_group3_1", 0), ("task_v2_group3_3", 2), ("task_v1_group2_2", 1)] {
        assert_eq!(task(name).group_index, Some(index));
        assert!(task(name).group.is_some());
    }
    assert_eq!(task("worker_retry_republish").retries, 1);
    assert_eq!(task("task_v2_chain3").chain.last().unwrap().args, [Json::from("-2")]);
}

fn options(persistent: bool) -> ReplyOptions {
    ReplyOptions { worker: "worker@host1".to_owned(), pid: 5059, persistent }
}

/// Writes the recorded result again from its parts.
fn rewrite(recorded: &Publication, name: &str) -> Publication {
    let body = body(recorded);
    let id = text(&body, "task_id").unwrap();
    let mut request =
        request(&id, text(&body, "parent_id").as_deref(), None, &recorded.address.routing_key, "[[],{},{}]");
    request.group = text(&body, "group_id");
    let extended = body.get("name").map(|task| {
        request.task = task.as_text().unwrap().to_owned();
        request.args = body.get("args").unwrap().as_array().unwrap().to_vec();
        request.kwargs = body.get("kwargs").unwrap().as_object().unwrap().to_vec();
        for stamp in body.get("stamped_headers").and_then(Json::as_array).unwrap_or_default() {
            let stamp = stamp.as_text().unwrap();
            request.stamped_headers.push(stamp.to_owned());
            request.stamps.set(stamp, text(&body, stamp).unwrap().into());
        }
        let origin = Origin { queue: "q".to_owned(), routing_key: "celery".to_owned(), ..Origin::default() };
        Extended::of(&request, &origin, "worker@host1")
    });
    let result = body.get("result").unwrap();
    let exception = result.get("exc_type").map(|kind| {
        let args = result.get("exc_message").unwrap().as_array().unwrap().to_vec();
        Exception::custom(text(result, "exc_module").unwrap(), kind.as_text().unwrap(), args)
    });
    let compact = result.compact();
    let children: Vec<_> = body.get("children").unwrap().as_array().unwrap().iter().map(child).collect();
    let state = match body.get("status").unwrap().as_text().unwrap() {
        "STARTED" => State::Started,
        "SUCCESS" => State::Success { result: &compact, children: &children },
        "FAILURE" => State::Failure(exception.as_ref().unwrap()),
        "RETRY" => State::Retry(exception.as_ref().unwrap()),
        "REVOKED" => State::Revoked(match exception.as_ref().unwrap().text().as_str() {
            "expired" => Revocation::Expired,
            "revoked" => Revocation::Revoked,
            "terminated" => Revocation::Terminated,
            other => panic!("{name}: {other}"),
        }),
        other => panic!("{name}: {other}"),
    };
    let now = text(&body, "date_done").map_or(Timestamp::UNIX_EPOCH, |done| done.parse().unwrap());
    let persistent = recorded.message.properties.delivery_mode == Some(2);
    reply(&request, &state, extended.as_ref(), &options(persistent), now).unwrap()
}

fn child(tuple: &Json) -> Child {
    let [result, members] = tuple.as_array().unwrap() else { panic!() };
    let id = result.as_array().unwrap()[0].as_text().unwrap().to_owned();
    match members.as_array() {
        None => Child::Task(id),
        Some(members) => Child::Group { id, members: members.iter().map(child).collect() },
    }
}

/// Compares two results field by field and in order, the frames of a traceback aside.
fn same_result(ours: &Publication, recorded: &Publication, name: &str) {
    let split = |publication: &Publication| {
        let Json::Object(mut members) = body(publication) else { panic!() };
        let traceback = members.iter_mut().find(|(name, _)| name == "traceback").unwrap();
        let traceback = std::mem::replace(&mut traceback.1, Json::Null);
        if name == "result_retry" {
            // Celery lists the retried task as its own child.
            members.retain(|(name, _)| name != "children");
        }
        (members, traceback.as_text().map(str::to_owned))
    };
    let ((our_fields, our_traceback), (fields, traceback)) = (split(ours), split(recorded));
    assert_eq!(our_fields, fields, "{name}");
    assert_eq!(ours.address, recorded.address, "{name}");
    assert_eq!(ours.message.properties, recorded.message.properties, "{name}");
    assert_eq!(ours.message.headers, recorded.message.headers, "{name}");
    assert_eq!(our_traceback.is_some(), traceback.is_some(), "{name}");
    let Some((ours, recorded)) = our_traceback.zip(traceback) else { return };
    assert!(ours.starts_with("Traceback (most recent call last):\n  File \""), "{name}: {ours}");
    // These lost a file name on their way through `exc.args`, or are wrapped in Celery's own `Retry`.
    let differs = ["result_failure_filenotfound", "result_retry", "result_retry_exhausted"];
    if !differs.contains(&name) {
        assert_eq!(ours.lines().last(), recorded.lines().last(), "{name}");
    }
}

#[test]
fn every_result_is_written_the_same() {
    for name in names("result_") {
        if NOT_YET.iter().any(|(not_yet, _)| name == *not_yet) {
            continue;
        }
        let recorded = load(&name);
        if OTHER_SERIALIZER.contains(&name.as_str()) {
            assert_ne!(recorded.message.properties.content_type.as_deref(), Some("application/json"));
            continue;
        }
        same_result(&rewrite(&recorded, &name), &recorded, &name);
    }
}

fn publishing(origin: &str) -> CanvasOptions {
    CanvasOptions { default_queue: "celery".to_owned(), origin: origin.to_owned() }
}

/// Hands out the given ids, one after the other.
fn ids(given: &[&str]) -> impl FnMut() -> String {
    let mut given: std::collections::VecDeque<String> = given.iter().map(|id| (*id).to_owned()).collect();
    move || given.pop_front().expect("more ids were asked for than were recorded")
}

/// Queue of the recorded worker itself: what it publishes for nobody answers there. We name no queue instead.
const WORKERS_OWN_QUEUE: &str = "6bf7e25f-8140-30b8-adc0-e4bdb49f08b8";

fn same_task(ours: &Publication, name: &str) {
    let mut recorded = load(name);
    let properties = &mut recorded.message.properties;
    if properties.reply_to.as_deref() == Some(WORKERS_OWN_QUEUE) {
        properties.reply_to = Some(String::new());
    }
    // The recorded worker knew the task and wrote its default.
    if recorded.message.headers.get("ignore_result") == Some(&Field::Bool(false)) {
        recorded.message.headers.set("ignore_result", Field::Void);
    }
    assert_eq!(ours.address, recorded.address, "{name}");
    assert_eq!(ours.message.properties, recorded.message.properties, "{name}");
    let sorted = |headers: &Headers| {
        let mut fields: Vec<_> = headers.iter().map(|(name, value)| (name.to_owned(), value.clone())).collect();
        fields.sort_by(|a, b| a.0.cmp(&b.0));
        fields
    };
    assert_eq!(sorted(&ours.message.headers), sorted(&recorded.message.headers), "{name}");
    let normal = |publication: &Publication| body(publication).compact().replace(WORKERS_OWN_QUEUE, "");
    assert_eq!(normal(ours), normal(&recorded), "{name}");
}

#[test]
fn a_chain_is_carried_on() {
    let results = ["worker_chain3_result1", "worker_chain3_result3", "worker_chain3_result2"].map(load);
    let steps = ["worker_chain3_step1", "worker_chain3_step2", "worker_chain3_step3"];
    for (place, name) in steps.iter().enumerate() {
        let request = task(name);
        let recorded = body(&results[place]);
        let result = recorded.get("result").unwrap().compact();
        let next = steps.get(place + 1).map(|next| (*next, load(next)));
        let origin = next.as_ref().and_then(|(_, next)| next.message.headers.text("origin")).unwrap_or_default();
        let after =
            canvas::after_success(&request, &result, &publishing(origin), Timestamp::now(), &mut ids(&[])).unwrap();
        assert_eq!(after.publications.len(), usize::from(next.is_some()));
        if let Some((next, _)) = next {
            same_task(&after.publications[0], next);
        }
        let done = text(&recorded, "date_done").unwrap().parse().unwrap();
        let state = State::Success { result: &result, children: &after.children };
        same_result(&reply(&request, &state, None, &options(false), done).unwrap(), &results[place], name);
    }
}

/// One recorded follow-up of a success: its file, the parent's embed, the result, ids to inject.
struct Case {
    files: &'static [&'static str],
    embed: &'static str,
    result: &'static str,
    ids: &'static [&'static str],
}

const STORED: &str = r#"{"key": "a.txt", "size": 5, "stored": true}"#;
const STORED_EMPTY: &str = r#"{"key": "a.txt", "size": 0, "stored": true}"#;

#[test]
fn follow_ups_are_celery_s() {
    let cases = [
        Case {
            files: &["worker_chain_immutable_step2"],
            embed: r#"{"chain": [
                {"task": "files.append", "args": ["-3"], "kwargs": {}, "options": {"task_id":
                "cb5531f6-cc44-4ab9-90a3-e0ce755ab871", "reply_to": "81f11b10-753f-35d5-9c18-a318b28b9dc1"},
                "subtask_type": null, "immutable": false},
                {"task": "files.notify_immutable", "args": ["x"], "kwargs": {}, "options": {"task_id":
                "e6e0f219-c7ce-42c5-b0fe-8d78b6e58fff", "reply_to": "81f11b10-753f-35d5-9c18-a318b28b9dc1"},
                "subtask_type": null, "immutable": true}]}"#,
            result: STORED,
            ids: &[],
        },
        Case {
            files: &["worker_chain_link_step2"],
            embed: r#"{"chain": [{"task": "files.append", "args": ["-2"], "kwargs": {}, "options": {"task_id":
                "1341d544-86ad-4421-82d9-c1abb1f00032", "reply_to": "81f11b10-753f-35d5-9c18-a318b28b9dc1",
                "link": [{"task": "files.notify", "args": [], "kwargs": {"channel": "end"}, "options": {},
                "subtask_type": null, "immutable": false}]}, "subtask_type": null, "immutable": false}]}"#,
            result: STORED,
            ids: &[],
        },
        Case {
            files: &["worker_link_callback"],
            embed: r#"{"callbacks": [{"task": "files.notify", "args": [], "kwargs": {"channel": "ops"}, "options": {},
                "subtask_type": null, "immutable": false}]}"#,
            result: STORED,
            ids: &["77f000ef-26f6-4e0b-b415-91a7e778fc82"],
        },
        Case {
            files: &["worker_link_callback_immutable"],
            embed: r#"{"callbacks": [{"task": "files.notify_immutable", "args": ["ops"], "kwargs": {}, "options": {},
                "subtask_type": null, "immutable": true}]}"#,
            result: STORED,
            ids: &["73d57429-b975-4807-91d8-ff87214bdcf2"],
        },
        Case {
            files: &["worker_link_callback_options"],
            embed: r#"{"callbacks": [{"task": "files.notify", "args": [], "kwargs": {"channel": "a"}, "options":
                {"queue": "other", "priority": 3, "countdown": 5, "expires": 60, "headers": {"x": 1},
                "ignore_result": true}, "subtask_type": null, "immutable": false}]}"#,
            result: STORED,
            ids: &["329293e9-9d73-4be9-80f4-506be13e0cc1"],
        },
        Case {
            files: &["worker_link_chain_callback"],
            embed: r#"{"callbacks": [{"task": "celery.chain", "args": [], "kwargs": {"tasks": [
                {"task": "files.append", "args": ["-l1"], "kwargs": {}, "options": {}, "subtask_type": null,
                "immutable": false}, {"task": "files.append", "args": ["-l2"], "kwargs": {}, "options": {},
                "subtask_type": null, "immutable": false}]}, "options": {}, "subtask_type": "chain",
                "immutable": false}]}"#,
            result: STORED_EMPTY,
            ids: &["ae2115f1-a9a2-4565-b5d1-e69300bf0742", "fd7dcec0-e21e-4a1d-b987-bc0633a68cfb"],
        },
        Case {
            files: &["worker_link_two_callbacks_1", "worker_link_two_callbacks_2"],
            embed: r#"{"callbacks": [{"task": "files.notify", "args": [], "kwargs": {"channel": "a"}, "options": {},
                "subtask_type": null, "immutable": false}, {"task": "files.notify", "args": [], "kwargs": {"channel":
                "b"}, "options": {"priority": 3}, "subtask_type": null, "immutable": false}]}"#,
            result: STORED,
            ids: &[
                "51934b75-23f0-4f48-8bd1-1bc7d4b99c25",
                "65f1ee8d-8906-4bb9-a1c2-dc4703ce53b1",
                "40bfd8cb-e27b-415d-ad3a-0de1f1599ff7",
            ],
        },
        Case {
            files: &["worker_stamped_chain_step2"],
            embed: r#"{"chain": [{"task": "files.append", "args": ["-2"], "kwargs": {}, "options": {"stamped_headers":
                ["tenant"], "tenant": "acme", "task_id": "9816bdb9-6883-44c2-af93-6b985c7d3623", "reply_to":
                "81f11b10-753f-35d5-9c18-a318b28b9dc1"}, "subtask_type": null, "immutable": false}]}"#,
            result: STORED_EMPTY,
            ids: &[],
        },
        Case {
            files: &["worker_stamped_link_callback"],
            embed: r#"{"callbacks": [{"task": "files.notify", "args": [], "kwargs": {}, "options": {"stamped_headers":
                ["tenant"], "tenant": "acme"}, "subtask_type": null, "immutable": false}]}"#,
            result: STORED_EMPTY,
            ids: &["5816ef37-83de-4e23-a534-abbeba63c938"],
        },
    ];
    for case in cases {
        let recorded = load(case.files[0]);
        let headers = &recorded.message.headers;
        let id = headers.text("parent_id").unwrap();
        let parent = request(id, None, headers.text("root_id"), "client", &format!("[[],{{}},{}]", case.embed));
        // The recorded countdown of five seconds tells when the worker published.
        let now = headers.text("eta").map_or(Timestamp::UNIX_EPOCH, |eta| {
            eta.parse::<Timestamp>().unwrap() - jiff::SignedDuration::from_secs(5)
        });
        let options = publishing(headers.text("origin").unwrap());
        let mut ids = ids(case.ids);
        let after = canvas::after_success(&parent, case.result, &options, now, &mut ids).unwrap();
        assert_eq!(after.publications.len(), case.files.len());
        for (publication, file) in after.publications.iter().zip(case.files) {
            same_task(publication, file);
        }
        if case.files.len() == 2 {
            let recorded = load("result_success_children_group");
            let tuple = &body(&recorded).get("children").unwrap().as_array().unwrap()[0].clone();
            assert_eq!(after.children, [child(tuple)]);
        }
    }
}

#[test]
fn a_failed_chain_tells_everybody() {
    let recorded = [1, 2, 3, 4].map(|place| load(&format!("worker_chain_fail_result{place}")));
    let first = body(&recorded[0]);
    same_result(&rewrite(&recorded[0], "worker_chain_fail_result1"), &recorded[0], "worker_chain_fail_result1");
    let id = |place: usize| text(&body(&recorded[place]), "task_id").unwrap();
    let step = |id: &str| {
        format!(
            r#"{{"task": "files.append", "args": [], "kwargs": {{}}, "options": {{"task_id": "{id}", "reply_to":
            "{}"}}, "subtask_type": null, "immutable": false}}"#,
            recorded[0].address.routing_key
        )
    };
    let failed = request(
        &id(1),
        text(&first, "task_id").as_deref(),
        None,
        &recorded[0].address.routing_key,
        &format!(r#"[[], {{}}, {{"chain": [{}, {}]}}]"#, step(&id(2)), step(&id(3))),
    );
    let exception = Exception::custom("builtins", "ValueError", vec!["bad value".into(), 42.into()]);
    let done = |place: usize| text(&body(&recorded[place]), "date_done").unwrap().parse().unwrap();
    let own = reply(&failed, &State::Failure(&exception), None, &options(false), done(1)).unwrap();
    same_result(&own, &recorded[1], "worker_chain_fail_result2");
    for place in [2, 3] {
        let after =
            canvas::after_failure(&failed, &exception, &publishing("x"), &options(false), done(place), &mut ids(&[]));
        assert_eq!(after.publications.len(), 2);
        same_result(&after.publications[place - 2], &recorded[place], "worker_chain_fail_result");
    }
}

#[test]
fn errbacks_are_celery_s() {
    for (name, errback) in [
        (
            "worker_errback_immutable",
            r#"{"task": "files.nosuch_errback", "args": ["extra"], "kwargs": {}, "options": {}, "subtask_type": null,
            "immutable": true}"#,
        ),
        (
            "worker_errback_old",
            r#"{"task": "files.on_error", "args": [], "kwargs": {}, "options": {}, "subtask_type": null,
            "immutable": false}"#,
        ),
        (
            "worker_errback_unregistered_args",
            r#"{"task": "files.nosuch_errback", "args": ["extra"], "kwargs": {"k": 1}, "options": {},
            "subtask_type": null, "immutable": false}"#,
        ),
    ] {
        let recorded = load(name);
        let headers = &recorded.message.headers;
        let body = format!(r#"[[], {{}}, {{"errbacks": [{errback}]}}]"#);
        let failed = request(headers.text("parent_id").unwrap(), None, headers.text("root_id"), "client", &body);
        let after = canvas::after_failure(
            &failed,
            &Exception::value_error("x"),
            &publishing(headers.text("origin").unwrap()),
            &options(false),
            Timestamp::now(),
            &mut ids(&[headers.text("group").unwrap(), headers.text("id").unwrap()]),
        );
        assert_eq!(after.unsupported, None);
        assert_eq!(after.publications.len(), 1);
        same_task(&after.publications[0], name);
    }
}

#[test]
fn a_group_behind_a_task_is_not_yet_started() {
    let parent = task("task_v2_chain_then_group");
    let unsupported = canvas::check(&parent).unwrap_err();
    let after = canvas::after_success(&parent, "1", &publishing("x"), Timestamp::now(), &mut ids(&[]));
    assert_eq!(after.unwrap_err(), unsupported);
    assert_eq!(unsupported.exception().exc_type(), "NotImplementedError");
    assert!(unsupported.to_string().contains("files.store is followed by a group"), "{unsupported}");
    // The members, once published by another worker, are ordinary tasks.
    for name in ["worker_group_after_task_1", "worker_group_after_task_2"] {
        assert_eq!(task(name).task, "files.append");
    }
}
