//! Tests that follow-ups are written as in the recordings.

use filestorage::celery::canvas::{self, CanvasOptions};
use filestorage::celery::error::Exception;
use filestorage::celery::message::{Field, Headers, Publication};
use filestorage::celery::reply::{ReplyTo, State, reply, reply_to};
use jiff::Timestamp;

use super::results::{child, options, rewrite, same_result};
use super::{body, load, request, task, text};

fn publishing(origin: &str) -> CanvasOptions {
    CanvasOptions {
        default_queue: "celery".to_owned(),
        origin: origin.to_owned(),
        reply_to: WORKERS_OWN_QUEUE.to_owned(),
        max_bytes: 1 << 20,
        joins_chords: false,
        inherits_priority: false,
    }
}

/// Returns the given ids, one after another.
fn ids(given: &[&str]) -> impl FnMut() -> String {
    let mut given: std::collections::VecDeque<String> = given.iter().map(|id| (*id).to_owned()).collect();
    move || given.pop_front().expect("more ids were asked for than were recorded")
}

/// The queue of the recorded worker itself, which Celery names in follow-ups without a reply queue.
const WORKERS_OWN_QUEUE: &str = "6bf7e25f-8140-30b8-adc0-e4bdb49f08b8";

fn same_task(ours: &Publication, name: &str) {
    let mut recorded = load(name);
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
    assert_eq!(body(ours).compact(), body(&recorded).compact(), "{name}");
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
        let answer = |to: &ReplyTo| reply_to(to, &State::Failure(&exception), None, &options(false), done(place));
        let after = canvas::after_failure(&failed, &publishing("x"), &answer, done(place), &mut ids(&[]));
        assert_eq!(after.answers.len(), 2);
        same_result(&after.answers[place - 2], &recorded[place], "worker_chain_fail_result");
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
            &publishing(headers.text("origin").unwrap()),
            &|to| unreachable!("no step waits: {to:?}"),
            Timestamp::now(),
            &mut ids(&[headers.text("group").unwrap(), headers.text("id").unwrap()]),
        );
        assert_eq!(after.unsupported, None);
        assert_eq!(after.publications.len(), 1);
        same_task(&after.publications[0], name);
    }
}

#[test]
fn a_group_behind_a_task_is_started() {
    assert_eq!(canvas::check(&task("task_v2_chain_then_group")), Ok(()));
    let names = ["worker_group_after_task_1", "worker_group_after_task_2"];
    let recorded = names.map(load);
    let headers = &recorded[0].message.headers;
    let member = |place: usize| {
        let properties = &recorded[place].message.properties;
        let [id, queue] = [&properties.correlation_id, &properties.reply_to].map(|text| text.as_deref().unwrap());
        format!(
            r#"{{"task": "files.append", "args": ["-g{}"], "kwargs": {{}}, "options": {{"task_id": "{id}", "reply_to": "{queue}",
            "group_index": {place}}}, "subtask_type": null, "immutable": false}}"#,
            place + 1
        )
    };
    let chain = format!(
        r#"[[], {{}}, {{"chain": [{{"task": "celery.group", "args": [], "kwargs": {{"tasks": [{}, {}]}}, "options": {{"task_id": "{}",
        "root_id": null, "parent_id": null}}, "subtask_type": "group", "immutable": false}}]}}]"#,
        member(0),
        member(1),
        headers.text("group").unwrap()
    );
    let parent = request(headers.text("parent_id").unwrap(), None, headers.text("root_id"), "client", &chain);
    let options = publishing(headers.text("origin").unwrap());
    let after = canvas::after_success(&parent, STORED_EMPTY, &options, Timestamp::now(), &mut ids(&[])).unwrap();
    assert_eq!(after.publications.len(), 2);
    after.publications.iter().zip(names).for_each(|(ours, name)| same_task(ours, name));
}
