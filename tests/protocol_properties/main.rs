//! Property tests of the protocol: decoding reverses encoding, and no message makes the reader panic.

#![allow(clippy::unwrap_used)]

use filestorage::celery::canvas::{self, CanvasOptions};
use filestorage::celery::error::Exception;
use filestorage::celery::message::{Field, Headers, Message, Origin, Properties};
use filestorage::celery::read::read;
use filestorage::celery::reply::{Extended, ReplyOptions, ReplyTo, State, reply, reply_to};
use filestorage::celery::request::{ReadOptions, TaskRequest, peek};
use filestorage::celery::{Death, dead, park};
use filestorage::json::{Json, ParseLimits, parse};
use jiff::Timestamp;
use proptest::collection::vec;
use proptest::option;
use proptest::prelude::*;

/// Generates any JSON value, as Python writes it.
fn any_json() -> impl Strategy<Value = Json> {
    let leaf = prop_oneof![
        Just(Json::Null),
        any::<bool>().prop_map(Json::Bool),
        any::<i64>().prop_map(Json::from),
        any::<f64>().prop_filter_map("finite", |n| n.is_finite().then(|| Json::Number(format!("{n:?}").into()))),
        "-?[1-9][0-9]{20,40}".prop_map(|digits| Json::Number(digits.into())),
        Just(Json::Number("NaN".into())),
        any::<String>().prop_map(Json::Text),
    ];
    leaf.prop_recursive(4, 32, 5, |inner| {
        prop_oneof![
            vec(inner.clone(), 0..5).prop_map(Json::Array),
            proptest::collection::btree_map(any::<String>(), inner, 0..5)
                .prop_map(|members| Json::Object(members.into_iter().collect())),
        ]
    })
}

fn any_members() -> impl Strategy<Value = Vec<(String, Json)>> {
    proptest::collection::btree_map(any::<String>(), any_json(), 0..4).prop_map(|members| members.into_iter().collect())
}

/// Generates any header value.
fn any_field() -> impl Strategy<Value = Field> {
    let leaf = prop_oneof![
        Just(Field::Void),
        any::<bool>().prop_map(Field::Bool),
        any::<i64>().prop_map(Field::Int),
        any::<f64>().prop_map(Field::Float),
        any::<u64>().prop_map(Field::Timestamp),
        any::<String>().prop_map(Field::Text),
        Just(Field::from("2030-01-02T03:04:05+00:00")),
    ];
    leaf.prop_recursive(3, 12, 4, |inner| {
        prop_oneof![
            vec(inner.clone(), 0..4).prop_map(Field::List),
            vec((any::<String>(), inner), 0..4).prop_map(|fields| Field::Table(fields.into_iter().collect())),
        ]
    })
}

fn any_headers() -> impl Strategy<Value = Headers> {
    const NAMES: [&str; 21] = [
        "task",
        "id",
        "root_id",
        "parent_id",
        "group",
        "group_index",
        "retries",
        "eta",
        "expires",
        "timelimit",
        "ignore_result",
        "shadow",
        "stamped_headers",
        "stamps",
        "argsrepr",
        "compression",
        "metrics_reply_to",
        "replaced_task_nesting",
        "origin",
        "x-death",
        "CC",
    ];
    let name = prop_oneof![4 => proptest::sample::select(&NAMES[..]).prop_map(str::to_owned), 1 => any::<String>()];
    (option::weighted(0.8, "[a-z.]{1,8}"), option::weighted(0.8, ".{1,8}"), vec((name, any_field()), 0..12)).prop_map(
        |(task, id, fields)| {
            let mut headers = Headers::default();
            for (name, value) in fields {
                headers.set(name, value);
            }
            if let Some(task) = task {
                headers.set("task", task.into());
            }
            if let Some(id) = id {
                headers.set("id", id.into());
            }
            headers
        },
    )
}

/// Generates a signature, valid or invalid.
fn any_signature() -> impl Strategy<Value = Json> {
    const OPTIONS: [&str; 18] = [
        "task_id",
        "reply_to",
        "queue",
        "exchange",
        "routing_key",
        "priority",
        "countdown",
        "eta",
        "expires",
        "time_limit",
        "link",
        "link_error",
        "chain",
        "chord",
        "group_id",
        "headers",
        "stamped_headers",
        "delivery_mode",
    ];
    let value = prop_oneof![
        any_json(),
        any::<String>().prop_map(Json::Text),
        any::<i64>().prop_map(Json::from),
        Just(Json::from("2030-01-02T03:04:05")),
    ];
    let options = vec((proptest::sample::select(&OPTIONS[..]).prop_map(str::to_owned), value), 0..3);
    let leaf = (any::<String>(), vec(any_json(), 0..3), any_members(), options, any::<bool>()).prop_map(
        |(task, args, kwargs, options, immutable)| {
            Json::Object(vec![
                ("task".to_owned(), Json::Text(task)),
                ("args".to_owned(), Json::Array(args)),
                ("kwargs".to_owned(), Json::Object(kwargs)),
                ("options".to_owned(), Json::Object(options)),
                ("subtask_type".to_owned(), Json::Null),
                ("immutable".to_owned(), Json::Bool(immutable)),
            ])
        },
    );
    leaf.prop_recursive(3, 12, 3, |inner| {
        let kinds = proptest::sample::select(&["chain", "chain", "chain", "group", "chord"][..]);
        (vec(inner, 0..4), kinds).prop_map(|(tasks, kind)| {
            Json::Object(vec![
                ("task".to_owned(), Json::Text(format!("celery.{kind}"))),
                ("kwargs".to_owned(), Json::Object(vec![("tasks".to_owned(), Json::Array(tasks))])),
                ("options".to_owned(), Json::Object(vec![("task_id".to_owned(), "t".into())])),
                ("subtask_type".to_owned(), kind.into()),
            ])
        })
    })
}

fn message(headers: Headers, body: Vec<u8>) -> Message {
    Message {
        properties: Properties {
            content_type: Some("application/json".to_owned()),
            content_encoding: Some("utf-8".to_owned()),
            correlation_id: Some("c".to_owned()),
            reply_to: Some("r".to_owned()),
            ..Properties::default()
        },
        headers,
        body: body.into(),
    }
}

/// Passes a message through all functions that a worker calls; none may panic, and all output must be JSON.
fn exercise(message: &Message) {
    let origin = Origin::default();
    let replies = ReplyOptions { worker: "w@h".to_owned(), pid: 1, persistent: false };
    let publishing = CanvasOptions {
        default_queue: "q".to_owned(),
        origin: "w@h".to_owned(),
        reply_to: "own".to_owned(),
        max_bytes: 1 << 20,
        joins_chords: false,
        inherits_priority: false,
    };
    let mut count = 0;
    let mut new_id = || {
        count += 1;
        format!("id-{count}")
    };
    let looked = peek(message);
    let now = Timestamp::UNIX_EPOCH;
    let exception = match read(message, &ReadOptions::default()) {
        Ok(request) => {
            assert_eq!(looked.task, (request.protocol == 2).then_some(request.task.as_str()));
            let exception = Exception::value_error("x");
            let mut out = Vec::new();
            match canvas::after_success(&request, "[1]", &publishing, now, &mut new_id) {
                Ok(after) => {
                    let state = State::Success { result: "[1]", children: &after.children };
                    let extended = Extended::of(&request, &origin, "w@h");
                    out.extend(after.publications);
                    out.extend(reply(&request, &state, Some(&extended), &replies, now));
                }
                Err(unsupported) => assert_eq!(canvas::check(&request), Err(unsupported)),
            }
            let answer = |to: &ReplyTo| reply_to(to, &State::Failure(&exception), None, &replies, now);
            let after = canvas::after_failure(&request, &publishing, &answer, now, &mut new_id);
            out.extend(after.answers.into_iter().chain(after.publications));
            for publication in out {
                parse(&publication.message.body, ParseLimits { depth: 300, ..ParseLimits::default() }).unwrap();
            }
            exception
        }
        Err(unreadable) => unreadable.exception(),
    };
    let death = Death { reason: "test", exception: &exception, at: now, worker: "w@h" };
    assert_eq!(dead(message, &origin, &death, "dead", 131_072).message.body, message.body);
    assert_eq!(park(message).body, message.body);
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(400))]

    #[test]
    fn random_bytes_never_panic(headers in any_headers(), body: Vec<u8>) {
        exercise(&message(headers, body));
    }

    #[test]
    fn random_json_never_panics(headers in any_headers(), body in any_json()) {
        exercise(&message(headers, body.compact().into_bytes()));
    }

    #[test]
    fn random_signatures_never_panic(
        headers in any_headers(),
        callbacks in vec(any_signature(), 0..3),
        errbacks in vec(any_signature(), 0..3),
        chain in vec(any_signature(), 0..3),
    ) {
        let embed = Json::Object(vec![
            ("callbacks".to_owned(), Json::Array(callbacks)),
            ("errbacks".to_owned(), Json::Array(errbacks)),
            ("chain".to_owned(), Json::Array(chain)),
        ]);
        exercise(&message(headers, format!("[[],{{}},{}]", embed.compact()).into_bytes()));
    }

    #[test]
    fn what_a_producer_encodes_is_read(
        task in "[a-z]{1,8}(\\.[a-z]{1,8})?",
        id in "\\PC{1,40}",
        args in vec(any_json(), 0..4),
        kwargs in any_members(),
        seconds in option::of(0_i64..4_000_000_000),
        retries in 0_u32..100,
        reply_to in option::of("[a-z0-9-]{1,36}"),
        ascii: bool,
    ) {
        let eta = seconds.map(|seconds| Timestamp::from_second(seconds).unwrap());
        let write = |value: Json| if ascii { value.ascii() } else { value.compact() };
        let body = format!(
            "[{}, {}, {{}}]",
            write(Json::Array(args.clone())),
            write(Json::Object(kwargs.clone())),
        );
        let mut message = message(Headers::default(), body.into_bytes());
        message.properties.reply_to.clone_from(&reply_to);
        message.headers.set("task", task.as_str().into());
        message.headers.set("id", id.as_str().into());
        message.headers.set("retries", Field::Int(retries.into()));
        message.headers.set("eta", eta.map_or(Field::Void, |eta| eta.to_string().into()));
        let request = read(&message, &ReadOptions::default()).unwrap();
        prop_assert_eq!(&request.task, &task);
        prop_assert_eq!(&request.id, &id);
        prop_assert_eq!(&request.args, &args);
        prop_assert_eq!(&request.kwargs, &kwargs);
        prop_assert_eq!(request.eta, eta);
        prop_assert_eq!(request.retries, retries);
        prop_assert_eq!(&request.reply_to, &reply_to);

        // The same in protocol 1.
        let members = vec![
            ("task".to_owned(), Json::Text(task)),
            ("id".to_owned(), Json::Text(id)),
            ("args".to_owned(), Json::Array(args)),
            ("kwargs".to_owned(), Json::Object(kwargs)),
            ("retries".to_owned(), i64::from(retries).into()),
            ("eta".to_owned(), eta.map_or(Json::Null, |eta| eta.to_string().into())),
        ];
        message.headers = Headers::default();
        message.body = write(Json::Object(members)).into();
        let first = read(&message, &ReadOptions::default()).unwrap();
        prop_assert_eq!(TaskRequest { protocol: 2, ..first }, request);
    }

    #[test]
    fn what_a_step_is_composed_of_is_read(
        result in any_json(),
        args in vec(any_json(), 0..3),
        kwargs in any_members(),
        rest in vec(any_json(), 0..2),
        immutable: bool,
    ) {
        let step = |task: &str, args: &[Json]| Json::Object(vec![
            ("task".to_owned(), task.into()),
            ("args".to_owned(), Json::Array(args.to_vec())),
            ("kwargs".to_owned(), Json::Object(kwargs.clone())),
            ("options".to_owned(), Json::Object(vec![("task_id".to_owned(), task.into())])),
            ("subtask_type".to_owned(), Json::Null),
            ("immutable".to_owned(), Json::Bool(immutable)),
        ]);
        let embed = Json::Object(vec![("chain".to_owned(), Json::Array(vec![step("last", &rest), step("next", &args)]))]);
        let mut parent = message(Headers::default(), format!("[[], {{}}, {}]", embed.compact()).into_bytes());
        parent.headers.set("task", "first".into());
        parent.headers.set("id", "parent".into());
        let parent = read(&parent, &ReadOptions::default()).unwrap();
        let publishing = CanvasOptions { default_queue: "q".to_owned(), origin: "w@h".to_owned(), reply_to: "own".to_owned(), max_bytes: 1 << 20, joins_chords: false, inherits_priority: false };
        let mut no_id = || unreachable!("every step brings its id");
        let result_text = result.compact();
        let after = canvas::after_success(&parent, &result_text, &publishing, Timestamp::UNIX_EPOCH, &mut no_id).unwrap();
        let next = read(&after.publications[0].message, &ReadOptions::default()).unwrap();
        let mut expected = if immutable { Vec::new() } else { vec![result] };
        expected.extend(args);
        prop_assert_eq!(next.args, expected);
        prop_assert_eq!(next.kwargs, kwargs);
        prop_assert_eq!((next.task.as_str(), next.id.as_str()), ("next", "next"));
        prop_assert_eq!((next.root_id.as_deref(), next.parent_id.as_deref()), (Some("parent"), Some("parent")));
        prop_assert_eq!(&next.chain, &parent.chain[..1]);
    }
}
