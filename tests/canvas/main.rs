//! Tests of follow-ups without a recording: nested chains, groups of chains, routes, times.

#![allow(clippy::unwrap_used)]

mod workflows;

use filestorage::celery::canvas::{
    AfterFailure, AfterSuccess, CanvasOptions, Unsupported, after_failure, after_success, may_outgrow,
};
use filestorage::celery::error::Exception;
use filestorage::celery::message::{Address, Field, Message, Properties, Publication};
use filestorage::celery::read::read;
use filestorage::celery::reply::{Child, ReplyOptions, ReplyTo, State, reply, reply_to};
use filestorage::celery::request::{ReadOptions, TaskRequest};
use filestorage::json::{Json, ParseLimits, parse};
use jiff::Timestamp;

fn parent(embed: &str) -> TaskRequest {
    let message = Message {
        properties: Properties {
            content_type: Some("application/json".to_owned()),
            reply_to: Some("client".to_owned()),
            ..Properties::default()
        },
        headers: [("task", "t.first"), ("id", "parent"), ("root_id", "root")]
            .map(|(name, value)| (name.to_owned(), Field::from(value)))
            .into_iter()
            .collect(),
        body: format!("[[], {{}}, {embed}]").into(),
    };
    read(&message, &ReadOptions::default()).unwrap()
}

fn counting() -> impl FnMut() -> String {
    let mut count = 0;
    move || {
        count += 1;
        format!("new{count}")
    }
}

fn options() -> CanvasOptions {
    CanvasOptions {
        default_queue: "filestorage".to_owned(),
        origin: "w@h".to_owned(),
        reply_to: "own".to_owned(),
        max_bytes: 1 << 20,
        joins_chords: false,
        inherits_priority: false,
    }
}

fn success(embed: &str) -> Result<AfterSuccess, Unsupported> {
    after_success(&parent(embed), "1", &options(), Timestamp::UNIX_EPOCH, &mut counting())
}

fn failure(request: &TaskRequest) -> AfterFailure {
    let replies = ReplyOptions { worker: "w@h".to_owned(), pid: 1, persistent: true };
    let error = Exception::value_error("x");
    let answer = |to: &ReplyTo| reply_to(to, &State::Failure(&error), None, &replies, Timestamp::UNIX_EPOCH);
    after_failure(request, &options(), &answer, Timestamp::UNIX_EPOCH, &mut counting())
}

fn body(publication: &Publication) -> Json {
    parse(&publication.message.body, ParseLimits::default()).unwrap()
}

fn chain_of(publication: &Publication) -> Vec<(String, String)> {
    let body = body(publication);
    let text = |step: &Json, name: &str| step.get(name).and_then(Json::as_text).unwrap_or_default().to_owned();
    let chain = body.as_array().unwrap()[2].get("chain").unwrap().as_array().unwrap().to_vec();
    chain.iter().map(|step| (text(step, "task"), text(step.get("options").unwrap(), "task_id"))).collect()
}

/// A chain of chains: b, then (c, d), then e; the chain itself has links, a route and an id.
const NESTED: &str = r#"{"task": "celery.chain", "args": ["pre"], "kwargs": {"tasks": [
    {"task": "b", "args": ["own"]},
    {"task": "celery.chain", "subtask_type": "chain", "kwargs": {"tasks": [{"task": "c"}, {"task": "d"}]}},
    {"task": "e", "options": {"link": {"task": "mine"}}}
    ]}, "options": {"task_id": "whole", "queue": "fast", "link": [{"task": "linked"}], "link_error": {"task": "err"}},
    "subtask_type": "chain", "immutable": false}"#;

#[test]
fn a_chain_inside_a_chain_runs_before_the_rest() {
    let after =
        success(&format!(r#"{{"chain": [{{"task": "z", "options": {{"task_id": "z"}}}}, {NESTED}]}}"#)).unwrap();
    let [step] = after.publications.as_slice() else { panic!() };
    assert_eq!(step.message.headers.text("task"), Some("b"));
    assert_eq!(step.address, Address::queue("fast"));
    assert_eq!(body(step).as_array().unwrap()[0].compact(), r#"[1,"own"]"#);
    let id = |task: &str, id: &str| (task.to_owned(), id.to_owned());
    // In reverse: z comes last of all, and the chain's own id is its last task's.
    assert_eq!(chain_of(step), [id("z", "z"), id("e", "whole"), id("d", "new3"), id("c", "new2")]);
    let whole = body(step);
    let embed = &whole.as_array().unwrap()[2];
    assert_eq!(embed.get("errbacks").unwrap().compact(), r#"[{"task":"err"}]"#);
    let last = &embed.get("chain").unwrap().as_array().unwrap()[1];
    let options = last.get("options").unwrap();
    assert_eq!(options.get("link").unwrap().compact(), r#"[{"task":"mine"},{"task":"linked"}]"#);
    assert_eq!(options.get("link_error").unwrap().compact(), r#"[{"task":"err"}]"#);
    assert_eq!(options.get("queue"), None);
    assert_eq!(options.get("root_id"), Some(&"root".into()));
    assert_eq!(after.children, [Child::Task("new1".to_owned())]);
}

#[test]
fn a_chain_s_own_arguments_say_nothing_as_in_celery() {
    let chain = NESTED.replace(r#""immutable": false"#, r#""immutable": true"#);
    let after = success(&format!(r#"{{"callbacks": [{chain}]}}"#)).unwrap();
    assert_eq!(body(&after.publications[0]).as_array().unwrap()[0].compact(), r#"[1,"own"]"#);
}

#[test]
fn a_chain_among_several_callbacks_is_one_member() {
    let after = success(&format!(
        r#"{{"callbacks": [{{"task": "a"}}, {NESTED}, {{"task": "celery.chain", "subtask_type": "chain", "kwargs": {{}}}}]}}"#
    ))
    .unwrap();
    let [a, b] = after.publications.as_slice() else { panic!() };
    assert_eq!(
        (a.message.headers.text("group"), a.message.headers.get("group_index")),
        (Some("new1"), Some(&Field::Int(0)))
    );
    // Of a chain, the end is the group's member.
    assert_eq!((b.message.headers.text("group"), b.message.headers.get("group_index")), (None, Some(&Field::Void)));
    let tail = body(b).as_array().unwrap()[2].get("chain").unwrap().as_array().unwrap()[0].clone();
    assert_eq!(tail.get("options").unwrap().get("group_id"), Some(&"new1".into()));
    assert_eq!(tail.get("options").unwrap().get("group_index"), Some(&1.into()));
    let replies = ReplyOptions { worker: "w@h".to_owned(), pid: 1, persistent: true };
    let state = State::Success { result: "1", children: &after.children };
    let reply = reply(&parent("null"), &state, None, &replies, Timestamp::UNIX_EPOCH).unwrap();
    assert_eq!(
        body(&reply).get("children").unwrap().compact(),
        concat!(
            r#"[[["new1",null],[[["new2",null],null],"#,
            r#"[["whole",[["new5",[["new4",[["new3",null],null]],null]],null]],null]]]]"#
        )
    );
}

#[test]
fn callbacks_come_before_the_next_step() {
    let after = success(r#"{"callbacks": [{"task": "c"}], "chain": [{"task": "s"}]}"#).unwrap();
    let tasks: Vec<_> = after.publications.iter().map(|sent| sent.message.headers.text("task").unwrap()).collect();
    assert_eq!(tasks, ["c", "s"]);
    assert_eq!(after.children, [Child::Task("new1".to_owned()), Child::Task("new2".to_owned())]);
    assert_eq!(success("null").unwrap(), AfterSuccess::default());
}

#[test]
fn chords_are_refused_where_they_would_start() {
    let chord = r#"{"task": "celery.chord", "subtask_type": "chord", "kwargs": {"header": [{"task": "h"}], "body": {"task": "b"}}}"#;
    let of = |kind: &str| {
        format!(r#"{{"task": "celery.{kind}", "subtask_type": "{kind}", "kwargs": {{"tasks": [{chord}]}}}}"#)
    };
    for (first, words) in [
        (chord.to_owned(), "followed by a chord"),
        (of("chain"), "followed by a chord"),
        (of("group"), "group whose members"),
    ] {
        for embed in [format!(r#"{{"chain": [{first}]}}"#), format!(r#"{{"callbacks": [{{"task": "a"}}, {first}]}}"#)] {
            assert!(success(&embed).unwrap_err().to_string().contains(words), "{embed}");
        }
        // Behind the next step somebody else may be able to start it.
        let later = success(&format!(r#"{{"chain": [{first}, {{"task": "s"}}]}}"#)).unwrap();
        assert!(chain_of(&later.publications[0])[0].0.starts_with("celery."));
    }
    assert!(success(r#"{"chord": {"task": "x"}}"#).unwrap_err().to_string().contains("member of a chord"));
}

fn sent(options: &str) -> Publication {
    let after = success(&format!(r#"{{"callbacks": [{{"task": "a", "options": {options}}}]}}"#)).unwrap();
    after.publications.into_iter().next().unwrap()
}

#[test]
fn signatures_choose_their_route() {
    let address = |exchange: &str, key: &str| Address { exchange: exchange.to_owned(), routing_key: key.to_owned() };
    for (options, route) in [
        ("{}", address("", "filestorage")),
        (r#"{"queue": "q"}"#, address("", "q")),
        (r#"{"queue": null}"#, address("", "filestorage")),
        (r#"{"routing_key": "k"}"#, address("", "filestorage")),
        (r#"{"exchange": "x", "routing_key": "k"}"#, address("x", "k")),
        (r#"{"exchange": "x", "queue": "q"}"#, address("", "q")),
    ] {
        assert_eq!(sent(options).address, route, "{options}");
    }
}

#[test]
fn signatures_choose_their_times_and_properties() {
    let typed = sent(r#"{"eta": {"__type__": "datetime", "__value__": "2030-01-02T03:04:05+05:30"}}"#);
    assert_eq!(typed.message.headers.text("eta"), Some("2030-01-02T03:04:05+05:30"));
    let expiring = sent(r#"{"expires": "1970-01-01T00:00:01.5"}"#);
    assert_eq!(expiring.message.headers.text("expires"), Some("1970-01-01T00:00:01.5"));
    assert_eq!(expiring.message.properties.expiration.as_deref(), Some("1500"));
    assert_eq!(sent(r#"{"expires": -5}"#).message.properties.expiration.as_deref(), Some("0"));
    let plain = sent("{}").message;
    assert_eq!((plain.properties.priority, plain.properties.delivery_mode), (Some(0), Some(2)));
    assert_eq!(plain.properties.reply_to.as_deref(), Some("own"));
    let chosen = sent(
        r#"{"priority": 900, "delivery_mode": 1, "reply_to": "r", "time_limit": 30, "soft_time_limit": 1.5,
        "shadow": "s", "retries": 2, "headers": {"x": {"y": [1, null, true, 1.5]}, "lang": "rs"}, "add_to_parent": true}"#,
    )
    .message;
    assert_eq!((chosen.properties.priority, chosen.properties.delivery_mode), (Some(255), Some(1)));
    assert_eq!(chosen.properties.reply_to.as_deref(), Some("r"));
    let named = sent(
        r#"{"message_id": "m-1", "app_id": "app", "type": "kind", "timestamp": 1790000000, "correlation_id": "c", "user_id": "u"}"#,
    )
    .message;
    assert_eq!(named.properties.message_id.as_deref(), Some("m-1"));
    assert_eq!(named.properties.app_id.as_deref(), Some("app"));
    assert_eq!(named.properties.kind.as_deref(), Some("kind"));
    assert_eq!(named.properties.timestamp, Some(1_790_000_000));
    assert_eq!(named.properties.correlation_id.as_deref(), Some("c"));
    assert_eq!(named.properties.user_id, None, "the broker refuses another user than the connection's");
    for timestamp in [
        r#"{"__type__": "datetime", "__value__": "2026-09-21T14:13:20+00:00"}"#,
        r#""2026-09-21T16:13:20+02:00""#,
        "1790000000.9",
    ] {
        let sent = sent(&format!(r#"{{"timestamp": {timestamp}}}"#));
        assert_eq!(sent.message.properties.timestamp, Some(1_790_000_000), "{timestamp}");
    }
    for never in [r#"{"expires": "9999-12-31T23:59:59.999999-14:00"}"#, r#"{"expires": 1e9}"#, r#"{"expiration": 5e6}"#]
    {
        let sent = sent(never).message.properties;
        assert_eq!(sent.expiration, None, "a broker refuses more than {} ms: {never}", u32::MAX);
    }
    assert_eq!(sent(r#"{"expiration": 1.5}"#).message.properties.expiration.as_deref(), Some("1500"));
    assert_eq!(chosen.headers.get("timelimit"), Some(&Field::List(vec![Field::Int(30), Field::Float(1.5)])));
    assert_eq!((chosen.headers.text("shadow"), chosen.headers.text("lang")), (Some("s"), Some("rs")));
    assert_eq!(chosen.headers.get("retries"), Some(&Field::Int(2)));
    let list = Field::List(vec![Field::Int(1), Field::Void, Field::Bool(true), Field::Float(1.5)]);
    assert_eq!(chosen.headers.get("x"), Some(&Field::Table([("y".to_owned(), list)].into_iter().collect())));
    assert_eq!(chosen.headers.get("add_to_parent"), None);
}

#[test]
fn what_a_signature_shows_instead_of_its_arguments_is_kept() {
    let shown = sent(r#"{"argsrepr": "(secret)", "kwargsrepr": "{}", "origin": "somebody"}"#).message.headers;
    let [args, kwargs, origin] = ["argsrepr", "kwargsrepr", "origin"].map(|name| shown.text(name));
    assert_eq!((args, kwargs, origin), (Some("(secret)"), Some("{}"), Some("somebody")));
    let alone = success(r#"{"callbacks": [{"task": "a", "options": {"add_to_parent": false}}]}"#).unwrap();
    assert_eq!((alone.publications.len(), alone.children.len()), (1, 0));
}

#[test]
fn a_priority_is_inherited_where_that_is_wanted() {
    let mut request = parent(
        r#"{"callbacks": [{"task": "a", "options": {"priority": 2}}, {"task": "b"}], "chain": [{"task": "c"}],
        "errbacks": [{"task": "d", "options": {"priority": 2}}, {"task": "e"}]}"#,
    );
    request.priority = Some(7);
    for (inherits_priority, expected) in [(false, [2, 0, 0, 2, 0]), (true, [7, 7, 7, 2, 0])] {
        let options = CanvasOptions { inherits_priority, ..options() };
        let after = after_success(&request, "1", &options, Timestamp::UNIX_EPOCH, &mut counting()).unwrap();
        let answer = |_: &ReplyTo| Publication { address: Address::queue("q"), message: Message::default() };
        let failed = after_failure(&request, &options, &answer, Timestamp::UNIX_EPOCH, &mut counting());
        let sent = after.publications.iter().chain(&failed.publications);
        assert_eq!(sent.map(|sent| sent.message.properties.priority.unwrap()).collect::<Vec<_>>(), expected);
    }
}

#[test]
fn an_empty_group_is_nothing() {
    let group = r#"{"task": "celery.group", "subtask_type": "group", "kwargs": {"tasks": []}}"#;
    assert_eq!(success(&format!(r#"{{"chain": [{group}]}}"#)).unwrap(), AfterSuccess::default());
}

#[test]
fn a_failure_reaches_all_who_wait() {
    let member = |id: &str| format!(r#"{{"task": "m", "options": {{"task_id": "{id}", "reply_to": "client"}}}}"#);
    let mut request = parent(&format!(
        r#"{{"chain": [
            {{"task": "celery.group", "subtask_type": "group", "kwargs": {{"tasks": [{}, {}]}}, "options": {{"task_id": "g"}}}},
            {{"task": "celery.chord", "subtask_type": "chord", "kwargs": {{"header": [{}], "body": {}}}}},
            {{"task": "nobody waits"}},
            {}]}}"#,
        member("m1"),
        member("m2"),
        member("h"),
        member("body"),
        member("s")
    ));
    let told = |request: &TaskRequest| -> Vec<String> {
        let bodies = failure(request).answers.iter().map(body).collect::<Vec<_>>();
        assert!(bodies.iter().all(|body| body.get("status") == Some(&"FAILURE".into())));
        bodies.iter().map(|body| body.get("task_id").unwrap().as_text().unwrap().to_owned()).collect()
    };
    assert_eq!(told(&request), ["m1", "m2", "h", "body", "s"]);
    request.ignore_result = true;
    assert!(told(&request).is_empty());
}

#[test]
fn errbacks_that_can_be_sent_are_sent() {
    let request = parent(&format!(
        r#"{{"errbacks": [{{"task": "celery.chord", "subtask_type": "chord", "kwargs": {{"header": [], "body": {{"task": "c"}}}}}}, {{"task": "e"}},
            {{"task": "celery.group", "subtask_type": "group", "kwargs": {{"tasks": [{{"task": "m"}}, {{"task": "n"}}]}}}}, {NESTED}]}}"#
    ));
    let after = failure(&request);
    assert!(after.unsupported.is_some());
    let tasks: Vec<_> = after.publications.iter().map(|sent| sent.message.headers.text("task").unwrap()).collect();
    assert_eq!(tasks, ["e", "m", "n", "b"]);
    let places: Vec<_> = after.publications.iter().map(|sent| sent.message.headers.get("group_index")).collect();
    assert_eq!(places[..3], [0, 1, 2].map(Field::Int).each_ref().map(Some));
    assert_eq!(body(&after.publications[3]).as_array().unwrap()[0].compact(), r#"["parent","own"]"#);
}

#[test]
fn a_message_full_of_tasks_is_not_multiplied() {
    let many = |task: &str| {
        let one = |n: usize| format!(r#"{{"task": "{task}", "options": {{"task_id": "{n}", "reply_to": "client"}}}}"#);
        (0..5_000).map(one).collect::<Vec<_>>().join(",")
    };
    for embed in ["callbacks", "chain"].map(|name| format!(r#"{{"{name}": [{}]}}"#, many("t"))) {
        let refused = success(&embed).unwrap_err();
        assert!(refused.to_string().contains("1000 is the most"), "{refused}");
    }
    let steps = failure(&parent(&format!(r#"{{"chain": [{}]}}"#, many("t"))));
    assert_eq!(steps.answers.len(), 1_000);
    assert_eq!(steps.answers[0].message.properties.correlation_id.as_deref(), Some("0"), "the last step is told");
    let errbacks = failure(&parent(&format!(r#"{{"errbacks": [{}]}}"#, many("t"))));
    assert_eq!(errbacks.publications, []);
    assert!(errbacks.unsupported.unwrap().to_string().contains("5000 errbacks"));
}

/// A chain with an errback of this size, which holds steps and another such chain.
fn growing(steps: usize, bytes: usize, immutable: bool) -> String {
    let step = format!(r#"{{"task":"t.step","args":[1],"immutable":{immutable},"subtask_type":null,"options":{{}}}}"#);
    let chain = |tasks: &str| {
        let errback = format!(r#"{{"task":"t.e","args":["{}"],"options":{{}}}}"#, "x".repeat(bytes));
        format!(
            r#"{{"task":"celery.chain","kwargs":{{"tasks":[{tasks}]}},"options":{{"link_error":[{errback}]}},"subtask_type":"chain"}}"#
        )
    };
    let steps = vec![step; steps].join(",");
    chain(&format!("{steps},{}", chain(&steps)))
}

#[test]
fn what_would_grow_beyond_the_bound_is_not_made() {
    for embed in [
        format!(r#"{{"callbacks":[{}]}}"#, growing(200, 10_000, false)),
        format!(r#"{{"chain":[{}]}}"#, growing(200, 10_000, true)),
    ] {
        let after = success(&embed).unwrap();
        assert!(after.publications.is_empty() && after.children.is_empty());
        let why = after.withheld.unwrap().to_string();
        assert!(why.contains("t.first") && why.contains("1048576"), "{why}");
    }
    let after = failure(&parent(&format!(r#"{{"errbacks":[{}]}}"#, growing(200, 10_000, false))));
    assert!(after.publications.is_empty() && after.withheld.is_some());
}

#[test]
fn what_is_made_is_never_larger_than_was_told() {
    for (steps, bytes) in [(1, 0), (1, 1000), (20, 500), (50, 10)] {
        for embed in [
            format!(r#"{{"callbacks":[{0},{0}]}}"#, growing(steps, bytes, false)),
            format!(r#"{{"chain":[{0},{0}]}}"#, growing(steps, bytes, false)),
            format!(r#"{{"errbacks":[{0}]}}"#, growing(steps, bytes, true)),
        ] {
            let request = parent(&embed);
            let (sent, failed) = (success(&embed).unwrap(), failure(&request));
            assert!(sent.withheld.is_none() && failed.withheld.is_none());
            let size = |made: &[Publication]| {
                made.iter().map(|one| one.message.body.len() + one.message.header_frame()).sum::<usize>()
            };
            let made = size(&sent.publications).max(size(&failed.publications));
            assert!(made > bytes && may_outgrow(&request, 1, made - 1), "{steps} steps, {bytes} bytes: {made}");
            assert!(!may_outgrow(&request, 1, 8 * made + 1_000_000));
        }
    }
}

#[test]
fn the_deepest_message_fits_into_a_small_stack() {
    // Each takes three levels, and a message has 640.
    let nested = |around: fn(&str) -> String| {
        (0..200).fold(r#"{"task":"t.last","args":[1],"options":{}}"#.to_owned(), |inside, _| around(&inside))
    };
    let chains = nested(|inside| {
        format!(r#"{{"task":"celery.chain","subtask_type":"chain","kwargs":{{"tasks":[{inside}]}},"options":{{}}}}"#)
    });
    let links = nested(|inside| format!(r#"{{"task":"t.step","options":{{"link":[{inside}]}}}}"#));
    let work = move || {
        for (inside, task) in [(&chains, "t.last"), (&links, "t.step")] {
            let request = parent(&format!(r#"{{"errbacks":[{inside}]}}"#));
            assert_eq!(failure(&request).publications.len(), 1);
            for name in ["callbacks", "chain"] {
                let after = success(&format!(r#"{{"{name}":[{inside}]}}"#)).unwrap();
                assert_eq!(after.publications[0].message.headers.text("task"), Some(task));
            }
        }
    };
    // Half of what the worker's threads have.
    std::thread::Builder::new().stack_size(1 << 20).spawn(work).unwrap().join().unwrap();
}
