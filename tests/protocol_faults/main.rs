//! Tests of messages that are not runnable tasks: the fault, the address of the answer, the dead copy.

#![allow(clippy::unwrap_used)]

use filestorage::celery::body;
use filestorage::celery::message::{Field, Message, Properties};
use filestorage::celery::read::read;
use filestorage::celery::request::{Fault, ReadOptions, Unreadable, peek};

fn message(headers: &[(&str, Field)], body: &str) -> Message {
    Message {
        properties: Properties {
            content_type: Some("application/json".to_owned()),
            correlation_id: Some("correlation".to_owned()),
            reply_to: Some("client".to_owned()),
            ..Properties::default()
        },
        headers: headers.iter().map(|(name, value)| ((*name).to_owned(), value.clone())).collect(),
        body: body.to_owned().into(),
    }
}

fn task(body: &str) -> Message {
    message(&[("task", "t.x".into()), ("id", "i".into())], body)
}

fn fault(message: &Message) -> Unreadable {
    read(message, &ReadOptions::default()).unwrap_err()
}

#[test]
fn task_and_id_are_enough() {
    for body in ["[[], {}, {}]", "[[], {}, null]", "[null, null, null]", r#"[[], {}, {"later": 1, "chain": null}]"#] {
        let mut message = task(body);
        message.properties = Properties { content_type: message.properties.content_type, ..Properties::default() };
        let request = read(&message, &ReadOptions::default()).unwrap();
        assert_eq!((request.task.as_str(), request.id.as_str()), ("t.x", "i"));
        assert_eq!(request.correlation_id, "i");
        assert!(request.reply_address().is_none());
    }
    let request = read(&message(&[], r#"{"task": "t.x", "id": "i"}"#), &ReadOptions::default()).unwrap();
    assert_eq!((request.protocol, request.correlation_id.as_str()), (1, "correlation"));
}

#[test]
fn void_and_odd_headers_are_absent() {
    let names = [
        "root_id",
        "parent_id",
        "group",
        "group_index",
        "retries",
        "timelimit",
        "ignore_result",
        "shadow",
        "stamped_headers",
        "stamps",
        "argsrepr",
        "kwargsrepr",
        "metrics_reply_to",
        "replaced_task_nesting",
        "origin",
    ];
    let plain = read(&task("[[], {}, {}]"), &ReadOptions::default()).unwrap();
    for odd in [Field::Void, Field::Float(-1.0), Field::Text(String::new()), Field::Int(-1)] {
        let mut message = task("[[], {}, {}]");
        for name in names {
            message.headers.set(name, odd.clone());
        }
        let mut request = read(&message, &ReadOptions::default()).unwrap();
        if odd == Field::Int(-1) {
            assert_eq!((request.group_index.take(), request.replaced_task_nesting), (Some(-1), -1));
            request.replaced_task_nesting = 0;
        }
        assert_eq!(request, plain, "{odd:?}");
    }
    let mut message = task("[[], {}, {}]");
    message.headers.set("timelimit", Field::List(vec![Field::Void, Field::Int(0)]));
    message.headers.set("metrics_reply_to", "events".into());
    let request = read(&message, &ReadOptions::default()).unwrap();
    assert_eq!((request.time_limit, request.soft_time_limit), (None, None));
    assert_eq!(request.metrics_reply_to.as_deref(), Some("events"));
}

#[test]
fn every_fault_has_its_name_and_its_remedy() {
    let with = |name: &str, value: Field| {
        let mut message = task("[[], {}, {}]");
        message.headers.set(name, value);
        message
    };
    let typed = |content_type: &str| {
        let mut message = task("[[], {}, {}]");
        message.properties.content_type = Some(content_type.to_owned());
        message
    };
    let cases = [
        (message(&[], "[1]"), Fault::NotATask, "send a task header"),
        (message(&[], r#"{"id": "i"}"#), Fault::NotATask, "send a task header"),
        (message(&[("task", Field::Void)], "[[], {}, {}]"), Fault::NotATask, "send the task's name"),
        (message(&[("task", "t.x".into())], "[[], {}, {}]"), Fault::MissingId, "task t.x has no id"),
        (message(&[("task", "t.x".into()), ("id", Field::Int(1))], "[[], {}, {}]"), Fault::MissingId, "send one"),
        (message(&[], r#"{"task": "t.x"}"#), Fault::MissingId, "task t.x has no id"),
        (
            message(&[("task", "t.x".into()), ("id", "é".repeat(513).into())], "[[], {}, {}]"),
            Fault::LongId,
            "1026 bytes",
        ),
        (message(&[], &format!(r#"{{"task": "t.x", "id": "{}"}}"#, "x".repeat(1025))), Fault::LongId, "1025 bytes"),
        (typed("application/x-python-serialize"), Fault::ContentDisallowed, "type pickle"),
        (typed("application/x-msgpack"), Fault::ContentDisallowed, "type msgpack"),
        (typed("application/x-yaml"), Fault::ContentDisallowed, "type yaml"),
        (typed("application/json; charset=utf-8"), Fault::ContentDisallowed, "send application/json"),
        (task(""), Fault::Decode, "send JSON in UTF-8"),
        (task("[[], {}, {}"), Fault::Decode, "send JSON in UTF-8"),
        (with("compression", "application/x-gzip".into()), Fault::Decode, "send it uncompressed"),
        (task(r#"[["\ud800"], {}, {}]"#), Fault::PythonOnlyJson, "surrogate"),
        (task(&format!("[[{}{}], {{}}, {{}}]", "[".repeat(700), "]".repeat(700))), Fault::PythonOnlyJson, "flatter"),
        (task("[[], {}]"), Fault::InvalidTask, "2 parts, not three"),
        (task("{}"), Fault::InvalidTask, "a dict as its body"),
        (task(r#"["ab", {}, {}]"#), Fault::InvalidTask, "a str as its args"),
        (task("[[], [1], {}]"), Fault::InvalidTask, "a list as its kwargs"),
        (task("[[], {}, [1]]"), Fault::InvalidTask, "a list as its embed"),
        (message(&[], r#"{"task": "t.x", "id": "i", "kwargs": 1}"#), Fault::InvalidTask, "task t.x has a int"),
        (message(&[], r#"{"task": "t.x", "id": "i", "eta": 1}"#), Fault::InvalidTask, "unreadable eta"),
        (with("eta", "tomorrow".into()), Fault::InvalidTask, "unreadable eta"),
        (with("eta", "".into()), Fault::InvalidTask, "unreadable eta"),
        (with("expires", Field::Int(60)), Fault::InvalidTask, "unreadable expires"),
        (task(r#"[[], {}, {"chain": 1}]"#), Fault::InvalidTask, "chain that is a int"),
        (task(r#"[[], {}, {"chain": ["t.y"]}]"#), Fault::InvalidTask, "chain that is a str, not a signature"),
        (task(r#"[[], {}, {"callbacks": [{}]}]"#), Fault::InvalidTask, "callbacks that has no task name"),
        (
            task(r#"[[], {}, {"errbacks": [{"task": "t", "args": {"a": 1}}]}]"#),
            Fault::InvalidTask,
            "a dict as its args",
        ),
        (task(r#"[[], {}, {"chain": [{"task": "t", "subtask_type": "x"}]}]"#), Fault::InvalidTask, "subtask_type"),
        (task(r#"[[], {}, {"chain": [{"task": "t", "options": {"eta": "x"}}]}]"#), Fault::InvalidTask, "option eta"),
        (task(r#"[[], {}, {"chain": [{"task": "t", "options": {"queue": 1}}]}]"#), Fault::InvalidTask, "option queue"),
        (
            task(r#"[[], {}, {"chain": [{"task": "t", "options": {"link": [{"task": "t", "args": 1}]}}]}]"#),
            Fault::InvalidTask,
            "an option link that has a int as its args",
        ),
        (
            task(r#"[[], {}, {"chain": [{"task": "c", "subtask_type": "chain", "kwargs": {"tasks": [1]}}]}]"#),
            Fault::InvalidTask,
            "a step that is a int",
        ),
    ];
    for (message, what, words) in cases {
        let error = fault(&message);
        assert_eq!(error.what, what, "{error}");
        assert!(error.to_string().contains(words), "{error}");
        let (kind, module) = match what {
            Fault::ContentDisallowed => ("ContentDisallowed", "kombu.exceptions"),
            Fault::PythonOnlyJson => ("ValueError", "builtins"),
            _ => ("DecodeError", "kombu.exceptions"),
        };
        let exception = error.exception();
        assert_eq!((exception.exc_type(), exception.exc_module()), (kind, module));
        assert_eq!(error.keeps_dead_copy(), what != Fault::PythonOnlyJson);
        let reply = error.reply.unwrap();
        assert_eq!((reply.queue.as_str(), reply.correlation_id.as_str()), ("client", "correlation"));
        assert!(["i", "correlation"].contains(&reply.task_id.as_str()));
    }
}

#[test]
fn nobody_is_told_who_did_not_ask() {
    let mut anonymous = task("");
    anonymous.properties.reply_to = Some(String::new());
    assert_eq!(fault(&anonymous).reply, None);
    let mut nameless = message(&[], "");
    nameless.properties.correlation_id = None;
    assert_eq!(fault(&nameless).reply, None);
    let mut ignored = task("");
    ignored.headers.set("ignore_result", Field::Bool(true));
    assert_eq!(fault(&ignored).reply, None);
    assert_eq!((peek(&ignored).id, peek(&ignored).task), (Some("i"), Some("t.x")));
    assert_eq!(peek(&nameless).id, None);
}

#[test]
fn a_protocol_1_fault_answers_the_id_in_the_body() {
    let mut message = message(&[], r#"{"task": "t.x", "id": "i", "args": 1, "group": "g"}"#);
    message.properties.correlation_id = None;
    let error = fault(&message);
    let reply = error.reply.unwrap();
    assert_eq!((reply.task_id.as_str(), reply.correlation_id.as_str()), ("i", "i"));
    assert_eq!((error.id.as_deref(), error.task.as_deref()), (Some("i"), Some("t.x")));
    assert_eq!(reply.group.as_deref(), Some("g"));
}

#[test]
fn nothing_larger_than_the_limit_is_read() {
    let options = ReadOptions { limits: body::Limits { max_body_bytes: 20, depth: 3 }, ..ReadOptions::default() };
    assert!(read(&task("[[], {}, {}]"), &options).is_ok());
    assert_eq!(read(&task("[[1, 2, 3, 4, 5], {}, {}]"), &options).unwrap_err().what, Fault::Decode);
    assert_eq!(read(&task("[[[[1]]], {}, {}]"), &options).unwrap_err().what, Fault::PythonOnlyJson);
}
