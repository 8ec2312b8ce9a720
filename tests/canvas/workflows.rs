//! Groups and chords that a worker starts, beside what a Python worker of Celery 5.7 published for the same messages.

use filestorage::celery::canvas::{AfterSuccess, CanvasOptions, after_success, check_member};
use filestorage::celery::message::{Field, Message, Properties, Publication};
use filestorage::celery::read::read;
use filestorage::celery::reply::Child;
use filestorage::celery::request::{ReadOptions, TaskRequest};
use jiff::Timestamp;
use serde_json::Value;

/// What was recorded: the message of the first task, which returned "R", and what its worker published.
const STARTED: &str = include_str!("../fixtures/workflows/started.json");

fn case(name: &str) -> Value {
    serde_json::from_str::<Value>(STARTED).unwrap()[name].clone()
}

fn request(sent: &Value) -> TaskRequest {
    let text = |name: &str| sent["headers"][name].as_str().map(|text| (name.to_owned(), Field::from(text)));
    let properties = Properties { content_type: Some("application/json".to_owned()), ..Properties::default() };
    let headers = ["task", "id", "root_id", "group"].into_iter().filter_map(text).collect();
    read(&Message { properties, headers, body: sent["body"].to_string().into() }, &ReadOptions::default()).unwrap()
}

fn options() -> CanvasOptions {
    CanvasOptions::new("filestorage", "w@h", 1 << 20, true)
}

fn started(request: &TaskRequest) -> AfterSuccess {
    let mut count = 0;
    let mut ids = || {
        count += 1;
        format!("new{count}")
    };
    after_success(request, "\"R\"", &options(), Timestamp::UNIX_EPOCH, &mut ids).unwrap()
}

/// Leaves out what is null, which means the same as what is absent.
fn without_nulls(value: &Value) -> Value {
    match value {
        Value::Array(items) => items.iter().map(without_nulls).collect(),
        Value::Object(members) => {
            let given = members.iter().filter(|(_, value)| !value.is_null());
            given.map(|(name, value)| (name.clone(), without_nulls(value))).collect()
        }
        other => other.clone(),
    }
}

fn same(ours: &Publication, theirs: &Value) {
    let headers = theirs["headers"].as_object().unwrap();
    for (name, value) in headers {
        let own = ours.message.headers.get(name);
        match value {
            Value::String(text) => assert_eq!(own, Some(&Field::from(text.as_str())), "{name}"),
            number => assert_eq!(own, Some(&Field::Int(number.as_i64().unwrap())), "{name}"),
        }
    }
    let body: Value = serde_json::from_slice(&ours.message.body).unwrap();
    assert_eq!(without_nulls(&body), without_nulls(&theirs["body"]));
}

#[test]
fn a_group_behind_a_task_is_started_as_celery_does() {
    let case = case("group");
    let after = started(&request(&case["sent"]));
    let theirs = case["out"].as_array().unwrap();
    assert_eq!(after.publications.len(), theirs.len());
    after.publications.iter().zip(theirs).for_each(|(ours, theirs)| same(ours, theirs));
    assert!(after.chords.is_empty());
    assert!(matches!(&after.children[..], [Child::Group { members, .. }] if members.len() == 2));
}

#[test]
fn a_chord_behind_a_task_is_started_as_celery_does() {
    let case = case("nested");
    let after = started(&request(&case["sent"]));
    let theirs = case["out"].as_array().unwrap();
    assert_eq!(after.publications.len(), theirs.len());
    after.publications.iter().zip(theirs).for_each(|(ours, theirs)| same(ours, theirs));
    let [header] = &after.chords[..] else { panic!("one chord: {:?}", after.chords) };
    assert_eq!(header.size as u64, case["size"].as_u64().unwrap());
    assert_eq!(header.group, theirs[0]["headers"]["group"].as_str().unwrap());
}

#[test]
fn a_group_is_a_body() {
    let case = case("groupbody");
    let mut request = request(&case["sent"]);
    assert_eq!(check_member(&request), Ok(()));
    let chord = request.chord.take().unwrap();
    let part = filestorage::celery::chord::Part::of(
        &request,
        &chord,
        &filestorage::celery::reply::State::Success { result: "\"R\"", children: &[] },
    );
    let joined = filestorage::celery::chord::HeaderResult::Results("[\"R\"]".to_owned());
    let never = |_: &_, _: &_| unreachable!("nothing failed");
    let ended = part.unwrap().ended(joined, &options(), &never, Timestamp::UNIX_EPOCH);
    let theirs = case["out"].as_array().unwrap();
    assert_eq!(ended.publications.len(), theirs.len());
    for (ours, theirs) in ended.publications.iter().zip(theirs) {
        let body: Value = serde_json::from_slice(&ours.message.body).unwrap();
        assert_eq!(body[0], theirs["body"][0]);
        for name in ["id", "group", "root_id", "parent_id"] {
            // A group that is a body is a group of its own here, and the last header's in Celery.
            if name != "group" {
                assert_eq!(ours.message.headers.text(name), theirs["headers"][name].as_str(), "{name}");
            }
        }
    }
}

/// The chord [a, b] with the body c, with these options.
fn chord(options: &str) -> String {
    format!(
        r#"{{"task": "celery.chord", "subtask_type": "chord", "args": [], "options": {options}, "kwargs": {{
            "header": [{{"task": "a"}}, {{"task": "b", "args": [1], "immutable": true}}], "body": {{"task": "c"}}, "kwargs": {{}}}}}}"#
    )
}

fn parent(embed: &str) -> TaskRequest {
    let embed: Value = serde_json::from_str(embed).unwrap();
    let sent =
        serde_json::json!({"headers": {"task": "t", "id": "parent", "root_id": "root"}, "body": [[], {}, embed]});
    request(&sent)
}

#[test]
fn what_follows_a_chord_follows_its_body() {
    let embed = format!(r#"{{"chain": [{{"task": "e"}}, {}]}}"#, chord(r#"{"link": [{"task": "l"}]}"#));
    let after = started(&parent(&embed));
    let bodies: Vec<Value> =
        after.publications.iter().map(|sent| serde_json::from_slice(&sent.message.body).unwrap()).collect();
    assert_eq!((&bodies[0][0], &bodies[1][0]), (&serde_json::json!(["R"]), &serde_json::json!([1])));
    for body in &bodies {
        assert_eq!(body[2]["chain"], Value::Null);
        let chord = &body[2]["chord"];
        assert_eq!(chord["options"]["chain"][0]["task"], "e");
        assert_eq!(chord["options"]["link"][0]["task"], "l");
        assert_eq!(chord["options"]["group_id"], after.chords[0].group.as_str());
        assert!(chord["options"]["task_id"].is_string());
    }
}

#[test]
fn the_options_of_a_chord_are_those_of_its_header_and_body() {
    let options = r#"{"queue": "other", "countdown": 60, "priority": 5, "time_limit": 9, "group_id": "outer", "task_id": "id", "link": [{"task": "l"}]}"#;
    let after = started(&parent(&format!(r#"{{"callbacks": [{}]}}"#, chord(options))));
    assert_eq!(after.publications.len(), 2);
    for sent in &after.publications {
        let (message, body) = (&sent.message, serde_json::from_slice::<Value>(&sent.message.body).unwrap());
        assert_eq!(sent.address.routing_key, "other");
        assert!(message.headers.text("eta").is_some());
        assert_eq!(message.headers.text("group"), Some("id"));
        assert_eq!(message.properties.priority, Some(0));
        assert_eq!(body[2]["callbacks"], Value::Null);
        let theirs = serde_json::json!({"queue": "other", "time_limit": 9, "group_id": "outer", "task_id": "id", "root_id": "root",
            "link": [{"task": "l"}]});
        let mut ours = body[2]["chord"]["options"].clone();
        ours.as_object_mut().unwrap().remove("reply_to");
        assert_eq!(ours, theirs);
    }
}

#[test]
fn the_size_of_the_options_of_a_group_counts_in_each_member() {
    let large = "x".repeat(10_000);
    let members = vec![r#"{"task": "a"}"#; 20].join(",");
    for (name, inside) in [
        ("group", format!(r#""tasks": [{members}]"#)),
        ("chord", format!(r#""header": [{members}], "body": {{"task": "c"}}"#)),
    ] {
        let embed = format!(
            r#"{{"callbacks": [{{"task": "celery.{name}", "subtask_type": "{name}", "options": {{"headers": {{"h": "{large}"}}}}, "kwargs": {{{inside}}}}}]}}"#
        );
        let request = parent(&embed);
        let of = |sent: &filestorage::celery::message::Publication| {
            sent.message.body.len() + format!("{:?}", sent.message.headers).matches('x').count()
        };
        let bytes: usize = started(&request).publications.iter().map(of).sum();
        assert!(bytes >= 200_000, "{name}: {bytes}");
        assert!(filestorage::celery::canvas::may_outgrow(&request, 3, bytes), "{name}: {bytes}");
    }
}

#[test]
fn chords_and_tasks_in_links_are_started_beside_each_other() {
    let embed = format!(r#"{{"callbacks": [{{"task": "x"}}, {}, {{"task": "y"}}]}}"#, chord("{}"));
    let after = started(&parent(&embed));
    let tasks: Vec<_> = after.publications.iter().filter_map(|sent| sent.message.headers.text("task")).collect();
    assert_eq!(tasks, ["a", "b", "x", "y"]);
    assert_eq!((after.chords.len(), after.chords[0].size), (1, 2));
}

#[test]
fn a_header_that_cannot_be_counted_is_refused_before_the_run() {
    let inside = chord("{}");
    for embed in [
        format!(r#"{{"callbacks": [{{"task": "celery.chord", "subtask_type": "chord", "kwargs": {{"header": [{inside}], "body": {{"task": "c"}}}}}}]}}"#),
        r#"{"callbacks": [{"task": "celery.chord", "subtask_type": "chord", "kwargs": {"header": [], "body": {"task": "c"}}}]}"#.to_owned(),
    ] {
        let refused = check_member(&parent(&embed)).unwrap_err();
        assert_eq!(refused.exception().exc_type(), "NotImplementedError", "{embed}");
    }
    assert_eq!(check_member(&parent(&format!(r#"{{"callbacks": [{inside}]}}"#))), Ok(()));
}
