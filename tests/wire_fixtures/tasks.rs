//! Tests that recorded tasks are read.

use filestorage::celery::read::read;
use filestorage::celery::request::{Fault, ReadOptions};
use filestorage::json::Json;
use jiff::Timestamp;

use super::{body, load, names, task, text};

/// The refused serializers, whose tasks are answered with `ContentDisallowed`.
const REFUSED: [&str; 4] = ["task_v2_msgpack", "task_v2_msgpack_gzip", "task_v2_pickle", "task_v2_yaml"];

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
fn other_serializers_are_read_where_they_are_accepted() {
    let accept = ["json", "msgpack", "yaml"].map(str::to_owned).to_vec();
    let options = ReadOptions { accept, ..ReadOptions::default() };
    for name in REFUSED {
        let message = load(name).message;
        if name == "task_v2_pickle" {
            assert_eq!(read(&message, &options).unwrap_err().what, Fault::ContentDisallowed);
            continue;
        }
        let request = read(&message, &options).unwrap_or_else(|error| panic!("{name}: {error}"));
        let shown: Vec<_> = request.args.iter().filter_map(Json::as_text).map(|text| format!("'{text}'")).collect();
        let argsrepr = request.argsrepr.unwrap();
        assert!(!shown.is_empty() && shown.iter().all(|text| argsrepr.contains(text.as_str())), "{name}: {argsrepr}");
        assert_eq!(Some(&request.id), message.properties.correlation_id.as_ref(), "{name}");
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
