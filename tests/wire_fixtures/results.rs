//! Tests that results are written as in the recordings.

use filestorage::celery::Serializer;
use filestorage::celery::body::Limits;
use filestorage::celery::error::Exception;
use filestorage::celery::message::{Origin, Publication};
use filestorage::celery::reply::{Child, Extended, ReplyOptions, Revocation, State, reply, success};
use filestorage::json::Json;
use jiff::Timestamp;

use super::{body, load, names, not_yet, request, text};

pub(crate) fn options(persistent: bool) -> ReplyOptions {
    ReplyOptions { worker: "worker@host1".to_owned(), pid: 5059, persistent }
}

/// Writes the recorded result again from its parts.
pub(crate) fn rewrite(recorded: &Publication, name: &str) -> Publication {
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
    let mut options = options(persistent);
    if let Some(pid) = result.get("pid").and_then(Json::as_i64) {
        options.pid = pid.try_into().unwrap();
    }
    let publication = reply(&request, &state, extended.as_ref(), &options, now).unwrap();
    if matches!(state, State::Success { .. }) {
        let around = success(&request, compact.clone(), &children, extended.as_ref(), &options, now);
        assert_eq!(around.as_ref(), Some(&publication), "{name}");
    }
    publication
}

pub(crate) fn child(tuple: &Json) -> Child {
    let [result, members] = tuple.as_array().unwrap() else { panic!() };
    let id = result.as_array().unwrap()[0].as_text().unwrap().to_owned();
    match members.as_array() {
        None => Child::Task(id),
        Some(members) => Child::Group { id, members: members.iter().map(child).collect() },
    }
}

/// Compares two results field by field and in order, without the frames of tracebacks.
pub(crate) fn same_result(ours: &Publication, recorded: &Publication, name: &str) {
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

fn serializer(publication: &Publication) -> Option<Serializer> {
    Serializer::of_content_type(publication.message.properties.content_type.as_deref()?)
}

/// Returns a recorded result as the serializer `json` would have written it.
fn as_json(recorded: &Publication) -> Publication {
    let mut plain = recorded.clone();
    let text = filestorage::celery::body::decode(&recorded.message, &["json", "msgpack"], Limits::default()).unwrap();
    plain.message.body = text.into_owned().into();
    plain.message.properties.content_type = Some("application/json".to_owned());
    plain.message.properties.content_encoding = Some("utf-8".to_owned());
    plain
}

#[test]
fn every_result_is_written_the_same() {
    for name in names("result_") {
        if !not_yet(&name) {
            let recorded = load(&name);
            let plain = as_json(&recorded);
            let ours = rewrite(&plain, &name);
            same_result(&ours, &plain, &name);
            if let Some(serializer @ Serializer::Msgpack) = serializer(&recorded) {
                assert_eq!(serializer.encode(ours.message), recorded.message, "{name}");
            }
        }
    }
}
