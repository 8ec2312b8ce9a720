//! A worker at work on commands of several keys: their order, their answers and events, and what a lost session does to them.

use std::{
    collections::{BTreeMap, HashMap, HashSet},
    fs,
    path::Path,
    sync::Arc,
};

use filestorage::{
    broker::Connector,
    commands::{Budget, CommitGuard, Context, Engine, Key},
    json::Json,
    provider::BackendKind,
    storage::{Memory, Spool},
    telemetry::{Component, Metrics, Readiness},
    worker::{self, Announcer, Departure, Stop, WallClock, WorkerOptions},
};
use serde_json::{Value, json};
use tokio::{sync::watch, task::JoinHandle};

use super::{
    three_keys::{ADD, mixed, most_at_once, read, table},
    *,
};

/// The keys that all commands share.
const KEYS: usize = 12;

/// A worker on a virtual host of its own, and a client of it.
struct Site {
    node: &'static Node,
    vhost: String,
    engine: Engine,
    folder: tempfile::TempDir,
    client: Session,
    replies: (Deliveries, Settler),
    events: (Deliveries, Settler),
    stop: watch::Sender<Stop>,
    worker: JoinHandle<Departure>,
}

/// What came of a command.
#[derive(Debug, Default)]
struct Came {
    replies: Vec<Value>,
    events: Vec<Value>,
}

fn key(number: usize) -> Key {
    Key::parse(&format!("counter/{number}")).unwrap()
}

fn names(keys: &[usize]) -> Vec<String> {
    keys.iter().map(|number| key(*number).as_str().to_owned()).collect()
}

fn task(task: &str, id: &str, args: &Value, kwargs: &Value) -> Publication {
    let mut headers = Headers::default();
    headers.set("task", task.into());
    headers.set("id", id.into());
    let body = json!([args, kwargs, {"callbacks": null, "errbacks": null, "chain": null, "chord": null}]);
    let properties = Properties {
        content_type: Some("application/json".to_owned()),
        content_encoding: Some("utf-8".to_owned()),
        correlation_id: Some(id.to_owned()),
        reply_to: Some("replies".to_owned()),
        delivery_mode: Some(2),
        ..Properties::default()
    };
    Publication {
        address: Address::queue("work"),
        message: Message { properties, headers, body: body.to_string().into() },
    }
}

/// The name of the worker's connection; no other name contains it.
fn connection(vhost: &str) -> String {
    format!("<worker of {vhost}>")
}

impl Site {
    async fn start(node: &'static Node, vhost: String) -> Self {
        let folder = tempfile::tempdir().unwrap();
        let url = node.url_for("guest:guest", &vhost);
        let client = Session::open(&options(&url)).await.unwrap();
        let replies = consume(&client, "replies", 1000).await;
        client.topology().ensure_metrics(100_000).await.unwrap();
        let events = consume(&client, "filestorage.metrics", 1000).await;
        consume(&client, "work", 1).await.1.close().await.unwrap();
        let engine = Engine::new(Arc::new(Memory::new()), BackendKind::Local);
        let (stop, stopped) = watch::channel(Stop::No);
        let options = WorkerOptions {
            task_events: false,
            message_max_retries: 3,
            remote_control: true,
            shown: filestorage::worker::ShownSettings::default(),
            node: format!("worker@{vhost}"),
            commands: table(),
            queues: vec!["work".to_owned()],
            default_queue: "work".to_owned(),
            queue_type: QueueType::Classic,
            concurrency: 8,
            prefetch_multiplier: 32,
            accept_content: vec!["json".to_owned()],
            results: Arc::new(filestorage::results::Rpc::new(format!("worker@{vhost}"), false)),
            result_extended: false,
            inherit_parent_priority: false,
            track_started: false,
            time_limit: None,
            soft_time_limit: None,
            events: true,
            events_max_batch: 64,
            max_reply_bytes: 1 << 20,
            max_in_flight_bytes: 64 << 20,
            max_crashes: 3,
            dead_max_messages: None,
            grace: Duration::from_secs(10),
            journal_max_bytes: 64 << 20,
            parked_max_bytes: 1 << 20,
            parked_max_age: Duration::from_secs(60),
            journal: folder.path().join("journal"),
            spool: Spool::new(folder.path()),
            is_shared: false,
            announcer: Announcer::new("s".to_owned()),
            clock: WallClock::default(),
        };
        let broker = BrokerOptions { connection_name: connection(&vhost), ..super::options(&url) };
        let (broker, run) = (Connector::new(move || broker.clone()), engine.clone());
        let worker = tokio::spawn(async move {
            let readiness = Readiness::new(&[Component::Broker]);
            worker::run(options, &broker, run, Metrics::new(), readiness, stopped).await.unwrap()
        });
        Self { node, vhost, engine, folder, client, replies, events, stop, worker }
    }

    /// Runs `rabbitmqctl` beside the worker.
    async fn ctl(&self, arguments: Vec<String>) -> String {
        let node = self.node;
        let run = move || node.ctl(&arguments.iter().map(String::as_str).collect::<Vec<_>>());
        tokio::task::spawn_blocking(run).await.unwrap()
    }

    /// Finds what the broker calls the worker's connection.
    async fn pid(&self) -> String {
        let name = connection(&self.vhost);
        loop {
            let list = self.ctl(["list_connections", "pid", "client_properties"].map(str::to_owned).into()).await;
            if let Some(line) = list.lines().find(|line| line.contains(&name)) {
                return line.split_whitespace().next().unwrap().to_owned();
            }
        }
    }

    /// Ends a connection as an operator does.
    async fn cut(&self, pid: String) {
        self.ctl(vec!["close_connection".to_owned(), pid, "a test".to_owned()]).await;
    }

    /// Takes in replies and events until all of these commands have a reply and so many events, and then a little longer.
    async fn gather(&mut self, wanted: &HashMap<String, usize>, came: &mut HashMap<String, Came>) {
        let lacks = |came: &HashMap<String, Came>| {
            wanted.iter().any(|(id, events)| {
                came.get(id).is_none_or(|came| came.replies.is_empty() || came.events.len() < *events)
            })
        };
        let mut more = true;
        while more {
            let patience = if lacks(came) { PATIENCE } else { Duration::from_millis(300) };
            let (replies, events) = (&mut self.replies, &mut self.events);
            let (batch, settler) = tokio::select! {
                batch = replies.0.next() => (batch.unwrap(), &replies.1),
                batch = events.0.next() => (batch.unwrap(), &events.1),
                () = tokio::time::sleep(patience) => {
                    assert!(!lacks(came), "an answer or an event is missing");
                    more = false;
                    continue;
                }
            };
            let mut ack_tokens = Vec::new();
            for Delivery { message, origin, ack_token, .. } in batch {
                let body: Value = serde_json::from_slice(&message.body).unwrap();
                if origin.queue == "replies" {
                    let id = message.properties.correlation_id.clone().unwrap();
                    came.entry(id).or_default().replies.push(body);
                } else {
                    let all = if let Value::Array(all) = body { all } else { vec![body] };
                    for event in all {
                        let id = event["data"]["task_id"].as_str().unwrap().to_owned();
                        came.entry(id).or_default().events.push(event);
                    }
                }
                ack_tokens.push(ack_token);
            }
            settler.settle(ack_tokens).unwrap();
        }
    }

    async fn values(&self) -> Vec<i64> {
        let mut values = Vec::new();
        for number in 0..KEYS {
            values.push(read(&self.engine, &key(number)).await.unwrap());
        }
        values
    }

    /// Stops the worker and returns what its journal says.
    async fn stop(self) -> Entries {
        self.stop.send(Stop::Warm).unwrap();
        assert_eq!(tokio::time::timeout(PATIENCE, self.worker).await.unwrap().unwrap(), Departure::Orderly);
        Entries::read(&self.folder.path().join("journal"))
    }
}

/// The lines of a journal.
#[derive(Debug, Default)]
struct Entries {
    /// By task ids: what stands for the command.
    digests: HashMap<String, String>,
    /// How often each was started, and how often it was answered by a run of its own.
    counts: HashMap<String, (usize, usize)>,
    sessions: usize,
}

impl Entries {
    fn read(folder: &Path) -> Self {
        let mut entries = Self::default();
        for file in fs::read_dir(folder).unwrap() {
            let path = file.unwrap().path();
            if path.extension().is_none_or(|end| end != "log") {
                continue;
            }
            for line in fs::read_to_string(path).unwrap().lines() {
                let line: Value = serde_json::from_str(line).unwrap();
                let text = |name: &str| line[name].as_str().map(str::to_owned);
                if let Some(digest) = text("start") {
                    entries.counts.entry(digest.clone()).or_default().0 += 1;
                    let known = entries.digests.insert(text("id").unwrap(), digest.clone());
                    assert!(known.is_none_or(|known| known == digest));
                } else if let Some(digest) = text("finish") {
                    assert!(line["again"].is_null() && line["counts"].is_null(), "{line}");
                    entries.counts.entry(digest).or_default().1 += 1;
                }
                entries.sessions += usize::from(!line["session"].is_null());
            }
        }
        entries
    }

    /// How often a command was started and answered.
    fn of(&self, id: &str) -> (usize, usize) {
        self.counts[&self.digests[id]]
    }

    /// The ids that the events of a command have, however often they are sent.
    fn event_ids(&self, id: &str, count: usize) -> HashSet<String> {
        let name = |number: usize| match number {
            0 => format!("{}/succeeded", self.digests[id]),
            number => format!("{}/succeeded/{number}", self.digests[id]),
        };
        let id = |number| uuid::Uuid::new_v5(&uuid::Uuid::NAMESPACE_OID, name(number).as_bytes()).to_string();
        (0..count).map(id).collect()
    }
}

/// Commands one after another, and what each must see and leave, were they run one by one in this order.
struct Script {
    random: u64,
    values: Vec<i64>,
    /// How long a command that writes three keys waits before it does.
    pause_ms: u64,
    /// By task ids: the answer, and how many events tell of it.
    expected: BTreeMap<String, (Option<Value>, usize)>,
}

impl Script {
    fn new(pause_ms: u64) -> Self {
        Self { random: 0x9e37_79b9_7f4a_7c15, values: vec![0; KEYS], pause_ms, expected: BTreeMap::new() }
    }

    fn draw(&mut self, below: usize) -> usize {
        self.random ^= self.random << 13;
        self.random ^= self.random >> 7;
        self.random ^= self.random << 17;
        (self.random % below as u64) as usize
    }

    fn three(&mut self) -> [usize; 3] {
        let first = self.draw(KEYS);
        let second = (first + 1 + self.draw(KEYS - 1)) % KEYS;
        loop {
            let third = self.draw(KEYS);
            if third != first && third != second {
                return [first, second, third];
            }
        }
    }

    /// Two commands of three keys for each of one.
    fn next(&mut self) -> Publication {
        let number = self.expected.len();
        let id = format!("command-{number}");
        let padding = if number % 50 == 7 { "x".repeat(70_000) } else { String::new() };
        let keys = self.three();
        let (publication, answer, events) = match number % 3 {
            0 => {
                self.values[keys[0]] = number as i64;
                let args = json!([names(&keys[..1])[0], number]);
                (task("filestorage.store", &id, &args, &json!({})), None, 1)
            }
            1 => {
                let before = keys.map(|key| self.values[key]);
                keys.iter().for_each(|key| self.values[*key] += number as i64);
                // Of a large one the keys stand behind what makes it large; more keys than a search gathers are found by reading it.
                let times = if number % 1000 == 4 { 40_000 } else { 1 };
                let kwargs = format!(
                    r#"{{"padding": "{padding}", "number": {number}, "before_ms": {}, "keys": {}}}"#,
                    self.pause_ms,
                    json!(vec![names(&keys); times].concat())
                );
                let mut publication = task("test.add", &id, &json!([]), &json!({}));
                publication.message.body = format!("[[], {kwargs}, {{}}]").into();
                (publication, Some(json!(before)), 3)
            }
            _ => {
                let [left, right, into] = keys;
                let (seen, names) = ([self.values[left], self.values[right]], names(&keys));
                self.values[into] = mixed(seen[0], seen[1], number as i64);
                let args = json!([names[0], names[1], names[2], number]);
                (task("test.mix", &id, &args, &json!({"padding": padding})), Some(json!(seen)), 3)
            }
        };
        self.expected.insert(id, (answer, events));
        publication
    }

    fn wanted(&self) -> HashMap<String, usize> {
        self.expected.iter().map(|(id, (_, events))| (id.clone(), *events)).collect()
    }

    /// Checks answers and events; returns how many came more than once.
    fn check(&self, came: &HashMap<String, Came>, entries: &Entries) -> usize {
        let mut repeated = 0;
        for (id, (answer, events)) in &self.expected {
            let Came { replies, events: told } = &came[id];
            for reply in replies {
                assert_eq!(reply["status"], "SUCCESS", "{id}: {reply}");
                assert_eq!(reply["result"], replies[0]["result"], "{id} is answered in two ways");
                if let Some(answer) = answer {
                    assert_eq!(reply["result"], *answer, "{id} did not see what the commands before it left");
                }
            }
            let ids: HashSet<String> = told.iter().map(|event| event["id"].as_str().unwrap().to_owned()).collect();
            assert_eq!(ids, entries.event_ids(id, *events), "{id}");
            assert_eq!(entries.of(id).1, 1, "{id} has one answer in the journal");
            repeated += usize::from(replies.len() > 1);
        }
        assert_eq!(came.len(), self.expected.len());
        repeated
    }
}

#[test]
fn commands_of_one_and_three_keys_keep_each_key_s_order() {
    live(async |node, vhost| {
        let mut site = Site::start(node, vhost).await;
        let (mut script, mut came) = (Script::new(1), HashMap::new());
        publish(&site.client, (0..3000).map(|_| script.next()).collect()).await;
        site.gather(&script.wanted(), &mut came).await;
        assert_eq!(site.values().await, script.values);
        assert!(most_at_once() > 1, "they never ran beside each other");
        let entries = site.stop().await;
        assert_eq!(script.check(&came, &entries), 0, "each is answered once");
        for (id, (_, events)) in &script.expected {
            assert_eq!(came[id].events.len(), *events, "{id}");
            assert_eq!(entries.of(id), (1, 1), "{id}");
        }
    });
}

#[test]
fn lost_sessions_keep_each_key_s_order_and_one_answer_each() {
    live(async |node, vhost| {
        let mut site = Site::start(node, vhost).await;
        let (mut script, mut came) = (Script::new(20), HashMap::new());
        for _ in 0..3 {
            let pid = site.pid().await;
            let commands = (0..1000).map(|_| script.next()).collect();
            tokio::join!(publish(&site.client, commands), site.cut(pid));
            site.gather(&script.wanted(), &mut came).await;
        }
        assert_eq!(site.values().await, script.values);
        let entries = site.stop().await;
        let repeated = script.check(&came, &entries);
        let again = script.expected.keys().filter(|id| entries.of(id).0 > 1).count();
        eprintln!("{repeated} answered again, {again} begun again, {} sessions", entries.sessions);
        assert!(entries.sessions >= 4 && repeated + again > 0, "no session was lost in the midst of work");
    });
}

/// A session is lost between the first write of a command and the second.
#[test]
fn a_committed_command_writes_all_keys_and_answers_once() {
    live(async |node, vhost| {
        let mut site = Site::start(node, vhost).await;
        let kwargs = json!({"keys": names(&[0, 1, 2]), "number": 1, "between_ms": 1500});
        let pid = site.pid().await;
        publish(&site.client, vec![task("test.add", "held", &json!([]), &kwargs)]).await;
        while read(&site.engine, &key(0)).await.unwrap() == 0 {
            tokio::time::sleep(Duration::from_millis(10)).await;
        }
        site.cut(pid).await;
        assert_eq!(read(&site.engine, &key(2)).await.unwrap(), 0, "it was cut too late");
        let mut came = HashMap::new();
        site.gather(&HashMap::from([("held".to_owned(), 3)]), &mut came).await;
        assert_eq!(site.values().await[..4], [1, 1, 1, 0]);
        let entries = site.stop().await;
        assert_eq!(entries.of("held"), (1, 1), "one entry");
        let Came { replies, events } = &came["held"];
        assert_eq!((replies.len(), &replies[0]["result"]), (1, &json!([0, 0, 0])));
        let subjects: Vec<&str> = events.iter().map(|event| event["subject"].as_str().unwrap()).collect();
        assert_eq!(subjects, names(&[0, 1, 2]));
        let ids: HashSet<String> = events.iter().map(|event| event["id"].as_str().unwrap().to_owned()).collect();
        assert_eq!(ids, entries.event_ids("held", 3));
    });
}

/// A session is lost before the first write.
#[test]
fn an_uncommitted_command_writes_no_key_and_runs_again() {
    live(async |node, vhost| {
        let mut site = Site::start(node, vhost).await;
        let kwargs = json!({"keys": names(&[0, 1, 2]), "number": 1, "before_ms": 4000});
        let pid = site.pid().await;
        publish(&site.client, vec![task("test.add", "held", &json!([]), &kwargs)]).await;
        tokio::time::sleep(Duration::from_millis(500)).await;
        site.cut(pid).await;
        assert_eq!(read(&site.engine, &key(0)).await.unwrap(), 0, "it was cut too late");
        let mut came = HashMap::new();
        site.gather(&HashMap::from([("held".to_owned(), 3)]), &mut came).await;
        assert_eq!(site.values().await[..4], [1, 1, 1, 0], "the first run left nothing");
        assert_eq!((came["held"].replies.len(), came["held"].events.len()), (1, 3));
        assert_eq!(site.stop().await.of("held"), (2, 1));
    });
}

#[test]
fn a_time_limit_is_for_all_keys_or_none() {
    live(async |node, vhost| {
        let mut site = Site::start(node, vhost).await;
        let call = |id: &str, keys: &[usize], pause: &str| {
            let kwargs = json!({"keys": names(keys), "number": 1, pause: 400});
            let mut call = task("test.add", id, &json!([]), &kwargs);
            call.message.headers.set("timelimit", Field::List(vec![Field::Float(0.2), Field::Void]));
            call
        };
        publish(&site.client, vec![call("early", &[0, 1, 2], "before_ms"), call("late", &[3, 4, 5], "between_ms")])
            .await;
        let mut came = HashMap::new();
        let wanted = HashMap::from([("early".to_owned(), 3), ("late".to_owned(), 3)]);
        site.gather(&wanted, &mut came).await;
        assert_eq!(came["early"].replies[0]["result"]["exc_type"], "TimeLimitExceeded");
        assert_eq!(came["late"].replies[0]["status"], "SUCCESS");
        tokio::time::sleep(Duration::from_millis(500)).await;
        assert_eq!(site.values().await[..6], [0, 0, 0, 1, 1, 1]);
        let told = |id: &str| -> Vec<(Value, Value)> {
            came[id].events.iter().map(|event| (event["subject"].clone(), event["data"]["outcome"].clone())).collect()
        };
        let of = |keys: &[usize], outcome: &str| -> Vec<(Value, Value)> {
            names(keys).into_iter().map(|name| (name.into(), outcome.into())).collect()
        };
        assert_eq!(told("early"), of(&[0, 1, 2], "failed"), "each key is told of, though nothing was written");
        assert_eq!(told("late"), of(&[3, 4, 5], "succeeded"));
        site.stop().await;
    });
}

/// Without a broker: what the guard says is for all writes.
#[test]
fn an_abandoned_guard_stops_all_writes_a_committed_one_none() {
    run(async {
        let call = || {
            ADD.parse(
                vec![],
                vec![
                    ("keys".into(), Json::Array(vec!["a".into(), "b".into(), "c".into()])),
                    ("number".into(), 1.into()),
                ],
            )
        };
        let engine = Engine::new(Arc::new(Memory::new()), BackendKind::Local);
        let values = async || {
            let mut values = Vec::new();
            for name in ["a", "b", "c"] {
                values.push(read(&engine, &Key::parse(name).unwrap()).await.unwrap());
            }
            values
        };
        let guard = CommitGuard::default();
        assert!(guard.abandon());
        let context = |guard: &CommitGuard| Context {
            commit_guard: guard.clone(),
            budget: Some(Budget::new(1 << 20)),
            ..Context::default()
        };
        assert!(call().unwrap().run(&engine, context(&guard)).await.result.is_err());
        assert_eq!(values().await, [0, 0, 0]);
        let guard = CommitGuard::default();
        let command = call().unwrap();
        assert!(command.writes() && command.keys().len() == 3);
        let (finished, abandoned) = tokio::join!(command.run(&engine, context(&guard)), async {
            while values().await[0] == 0 {
                tokio::task::yield_now().await;
            }
            let before = values().await;
            (before, guard.abandon())
        });
        assert_eq!(abandoned, (vec![1, 0, 0], false), "the first write has decided for the others");
        assert_eq!(finished.result.unwrap(), "[0, 0, 0]");
        assert_eq!(finished.facts.len(), 3);
        assert_eq!(values().await, [1, 1, 1]);
    });
}
