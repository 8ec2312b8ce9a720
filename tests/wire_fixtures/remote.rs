//! Remote control and events: requests are read, answers and events are written as a Python worker writes them.

use filestorage::celery::control::{self, ControlReply, ControlReplyTo, RateLimit};
use filestorage::celery::event::{EventSource, Moment, TaskEvent, WorkerEvent, WorkerLoad};
use filestorage::celery::message::{Field, Publication};
use filestorage::json::Json;
use jiff::Timestamp;

use super::{body, json, load, names, not_yet, text};

/// Returns the name of the node in a recorded request.
fn node(request: &Json) -> String {
    let destination = request.get("destination").and_then(Json::as_array).and_then(|nodes| nodes.first());
    destination.and_then(Json::as_text).unwrap_or("worker@host1").to_owned()
}

#[test]
fn recorded_requests_are_read() {
    let mut read = 0;
    for name in names("control_").into_iter().filter(|name| name.ends_with("_request")) {
        let recorded = load(&name);
        let expected = body(&recorded);
        let request = control::read(&recorded.message, &node(&expected)).unwrap_or_else(|why| panic!("{name}: {why}"));
        if name.contains("nomatch") {
            assert_eq!(request, None, "{name}");
            continue;
        }
        let request = request.unwrap_or_else(|| panic!("{name} is for this node"));
        assert_eq!(Some(&*request.method), expected.get("method").and_then(Json::as_text), "{name}");
        let is_answered = expected.get("reply_to").is_some_and(|to| !to.is_null());
        assert_eq!(request.reply_to.is_some(), is_answered, "{name}");
        assert!(request.clock > 0, "{name}");
        read += 1;
    }
    assert!(read > 50, "{read}");
}

#[test]
fn recorded_answers_are_written() {
    let mut written = 0;
    for name in names("control_").into_iter().filter(|name| name.ends_with("_reply")) {
        let recorded = load(&name);
        let Json::Object(members) = body(&recorded) else { panic!("{name}") };
        let [(node, value)] = &members[..] else { panic!("{name} has one node") };
        let word = |word: &str| match value.as_object() {
            Some([(key, text)]) if key == word => text.as_text().map(str::to_owned),
            _ => None,
        };
        let reply = match (word("ok"), word("error")) {
            (Some(text), _) => ControlReply::Ok(text),
            (_, Some(text)) => ControlReply::Error(text),
            _ => ControlReply::Value(value.compact()),
        };
        let headers = &recorded.message.headers;
        let Some(Field::Int(clock)) = headers.get("clock") else { panic!("{name}") };
        let to =
            ControlReplyTo { address: recorded.address.clone(), ticket: headers.text("ticket").unwrap().to_owned() };
        let mut own = reply.publication(node, &to, u64::try_from(*clock).unwrap());
        assert_eq!(body(&own), body(&recorded), "{name}");
        own.message.body = recorded.message.body.clone();
        assert_eq!(own, recorded, "{name}");
        written += 1;
    }
    assert!(written > 50, "{written}");
}

fn number(event: &Json, name: &str) -> f64 {
    event.get(name).and_then(Json::as_f64).unwrap_or_else(|| panic!("{name} in {}", event.compact()))
}

fn source(event: &Json) -> EventSource {
    EventSource {
        hostname: text(event, "hostname").unwrap(),
        pid: number(event, "pid") as u32,
        utcoffset: number(event, "utcoffset"),
    }
}

fn moment(event: &Json) -> Moment {
    let microseconds = (number(event, "timestamp") * 1e6).round() as i64;
    Moment { clock: number(event, "clock") as u64, at: Timestamp::from_microsecond(microseconds).unwrap() }
}

/// Writes the event about a task that was recorded.
fn own_task_event(event: &Json) -> Json {
    let texts: Vec<Option<String>> =
        ["name", "args", "kwargs", "root_id", "parent_id", "result", "exception", "traceback"]
            .map(|name| text(event, name))
            .into();
    let [name, args, kwargs, root_id, parent_id, result, exception, traceback] = &texts[..] else { panic!() };
    let time = |name: &str| text(event, name).map(|text| text.parse::<Timestamp>().unwrap());
    let flag = |name: &str| event.get(name).and_then(Json::as_bool).unwrap();
    let as_str = |text: &Option<String>| text.clone().unwrap_or_default();
    let (name, args, kwargs) = (as_str(name), as_str(args), as_str(kwargs));
    let (result, exception) = (as_str(result), as_str(exception));
    let own = match text(event, "type").unwrap().as_str() {
        "task-received" => TaskEvent::Received {
            name: &name,
            args: &args,
            kwargs: &kwargs,
            root_id: root_id.as_deref(),
            parent_id: parent_id.as_deref(),
            retries: number(event, "retries") as u32,
            eta: time("eta"),
            expires: time("expires"),
        },
        "task-started" => TaskEvent::Started,
        "task-succeeded" => TaskEvent::Succeeded { result: &result, runtime: number(event, "runtime") },
        "task-failed" => TaskEvent::Failed { exception: &exception, traceback: traceback.as_deref() },
        "task-retried" => TaskEvent::Retried { exception: &exception, traceback: traceback.as_deref() },
        "task-rejected" => TaskEvent::Rejected { requeue: flag("requeue") },
        "task-revoked" => TaskEvent::Revoked {
            terminated: flag("terminated"),
            signum: event.get("signum").and_then(Json::as_i64).map(|signum| i32::try_from(signum).unwrap()),
            expired: flag("expired"),
        },
        other => panic!("{other}"),
    };
    json(&source(event).task(&text(event, "uuid").unwrap(), &own, moment(event)))
}

/// Compares members, whose order says nothing.
fn assert_same(name: &str, own: &Json, recorded: &Json, except: &[&str]) {
    let members = |event: &Json| {
        let mut members = event.as_object().unwrap().to_vec();
        members.retain(|(member, _)| !except.contains(&member.as_str()));
        members.sort_by(|left, right| left.0.cmp(&right.0));
        members.into_iter().map(|(member, value)| (member, normal(&value))).collect::<Vec<_>>()
    };
    assert_eq!(members(own), members(recorded), "{name}");
}

/// Numbers are the same that Python reads as the same.
fn normal(value: &Json) -> String {
    match (value, value.as_f64()) {
        (Json::Number(_), Some(number)) => format!("{number:.4}"),
        (Json::Array(items), _) => items.iter().map(normal).collect::<Vec<_>>().join(","),
        _ => value.compact(),
    }
}

#[test]
fn recorded_events_are_written() {
    let mut written = 0;
    for name in names("event_").into_iter().filter(|name| !not_yet(name)) {
        let recorded = load(&name);
        let own: Publication = match body(&recorded) {
            Json::Array(events) => {
                let texts: Vec<String> = events
                    .iter()
                    .map(|event| {
                        let own = own_task_event(event);
                        assert_same(&name, &own, event, &[]);
                        own.compact()
                    })
                    .collect();
                source(&events[0]).tasks(&texts)
            }
            // A worker without an event loop sends one event alone, and we send it in an array.
            event if text(&event, "type").unwrap().starts_with("task-") => {
                assert_same(&name, &own_task_event(&event), &event, &[]);
                written += 1;
                continue;
            }
            event => {
                let kind = match text(&event, "type").unwrap().as_str() {
                    "worker-online" => WorkerEvent::Online,
                    "worker-heartbeat" => WorkerEvent::Heartbeat,
                    "worker-offline" => WorkerEvent::Offline,
                    other => panic!("{other}"),
                };
                let loads = event.get("loadavg").and_then(Json::as_array).unwrap();
                let load = WorkerLoad {
                    freq: number(&event, "freq"),
                    active: number(&event, "active") as usize,
                    processed: number(&event, "processed") as u64,
                    loadavg: [0, 1, 2].map(|place: usize| loads[place].as_f64().unwrap()),
                };
                let own = source(&event).worker(kind, &load, moment(&event));
                assert_same(&name, &body(&own), &event, &["sw_ident", "sw_ver"]);
                own
            }
        };
        assert_eq!(own.address, recorded.address, "{name}");
        assert_eq!(own.message.properties, recorded.message.properties, "{name}");
        assert_eq!(own.message.headers, recorded.message.headers, "{name}");
        written += 1;
    }
    assert!(written > 15, "{written}");
}

#[test]
fn rate_limits_are_read_as_celery_reads_them() {
    use std::time::Duration;
    let every = |seconds: f64| Ok(RateLimit::Every(Duration::from_secs_f64(seconds)));
    for (value, expected) in [
        ("\"10/m\"", every(6.0)),
        ("\"5/s\"", every(0.2)),
        ("\"2/h\"", every(1800.0)),
        ("5", every(0.2)),
        ("\"0.5\"", every(2.0)),
        ("0", Ok(RateLimit::None)),
        ("\"0/m\"", Ok(RateLimit::None)),
    ] {
        assert_eq!(RateLimit::read(Some(&json(value))), expected, "{value}");
    }
    assert_eq!(RateLimit::read(None), Ok(RateLimit::None));
    for value in ["\"10/d\"", "\"x/m\"", "-1", "\"\"", "[1]", "\"nan\"", "1e-30"] {
        assert!(RateLimit::read(Some(&json(value))).is_err(), "{value}");
    }
}
