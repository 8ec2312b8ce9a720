//! One test for each row of the settlement table, without a broker.

use serde_json::{Value, json};

use super::*;
use crate::broker::{AckToken, Inflow};
use crate::broker::{Confirmation, PublishError, QueueType};
use crate::celery::message::Address;
use crate::celery::message::{Field, Headers, Properties, Publication};
use crate::commands::Spool;
use crate::worker::delivery::destinations::{Destinations, Fault};
use crate::worker::delivery::outbox::{DeliveryReport, Outbox};
use crate::worker::delivery::refusal;
use crate::worker::delivery::role::Role;
use crate::worker::events;
use crate::worker::execution::scheduler;

mod keys;
mod siblings;
mod stale;

pub(in crate::worker::intake) struct Table {
    pub(in crate::worker::intake) policy: Policy,
    pub(in crate::worker::intake) journal: Journal,
    _folder: tempfile::TempDir,
}

impl Table {
    pub(in crate::worker::intake) fn new() -> Self {
        let folder = tempfile::tempdir().unwrap();
        let options = WorkerOptions {
            task_events: false,
            message_max_retries: 3,
            remote_control: true,
            shown: crate::worker::ShownSettings::default(),
            node: "w@h".into(),
            commands: CommandTable::default(),
            queues: vec!["q".into()],
            default_queue: "q".into(),
            queue_type: QueueType::Classic,
            concurrency: 4,
            prefetch_multiplier: 1,
            accept_content: vec!["json".into()],
            results: std::sync::Arc::new(crate::results::Rpc::new("w@h", true)),
            result_extended: false,
            inherit_parent_priority: false,
            track_started: false,
            time_limit: None,
            soft_time_limit: None,
            events: true,
            events_max_batch: 256,
            max_reply_bytes: 1000,
            max_in_flight_bytes: 256 << 20,
            max_crashes: 3,
            dead_max_messages: None,
            grace: Duration::from_secs(1),
            journal_max_bytes: 256 << 20,
            parked_max_bytes: 1 << 20,
            parked_max_age: Duration::from_secs(60),
            journal: folder.path().to_owned(),
            spool: Spool::new(folder.path()),
            is_shared: false,
            announcer: crate::worker::Announcer::new("s".into()),
            clock: WallClock::default(),
        };
        let journal = Journal::open(folder.path(), "w@h", 256 << 20, WallClock::default()).unwrap();
        Self { policy: Policy::new(&options, 131_072), journal, _folder: folder }
    }

    fn decide(&mut self, message: Message, redelivered: bool) -> Decision {
        let origin = Origin { queue: "q".into(), routing_key: "q".into(), redelivered, ..Origin::default() };
        self.policy.decide(
            Delivery { message, origin, ack_token: AckToken::stray(), inflow: Inflow::default() },
            &mut self.journal,
        )
    }

    /// Decides about a message that must end at once.
    fn end(&mut self, message: Message, redelivered: bool) -> (Vec<Publication>, CommandOutcome) {
        match self.decide(message, redelivered) {
            Decision::Ended(pending, outcome) => (flatten(*pending), outcome),
            other => panic!("not an end: {other:?}"),
        }
    }

    pub(in crate::worker::intake) fn ready(&mut self, message: Message, redelivered: bool) -> ReadyTask {
        match self.decide(message, redelivered) {
            Decision::Run(task) => *task,
            other => panic!("not a job: {other:?}"),
        }
    }

    /// Notes a run of this message and its answer as another session or worker does.
    pub(in crate::worker::intake) fn run(&mut self, message: &Message, answer: &Answer) {
        let identity = Identity::of(message, false);
        self.journal.started(&identity, false);
        self.journal.finished(identity.digest, &answer.write(None).unwrap());
    }

    /// Notes that a worker died while a task was running alone.
    fn crash(&mut self, task: &ReadyTask) {
        let folder = self._folder.path().to_owned();
        self.journal.started(&task.context.identity, true);
        self.journal.commit().unwrap();
        self.journal = Journal::open(&folder, "other", 256 << 20, WallClock::default()).unwrap();
        // The one before was dropped only now: its death is seen by the next.
        self.journal = Journal::open(&folder, "next", 256 << 20, WallClock::default()).unwrap();
    }

    /// Composes the answer of a task that ended at once.
    pub(in crate::worker::intake) fn answer(&self, task: &ReadyTask, result: Result<String, Exception>) -> Answer {
        self.policy.settlement.answer(task.definition, &task.context, result, vec![Facts::default()], Duration::ZERO)
    }

    fn answered(&self, task: ReadyTask, result: Result<String, Exception>) -> Vec<Publication> {
        let answer = self.policy.settlement.answer(
            task.definition,
            &task.context,
            result,
            vec![Facts::default()],
            Duration::from_secs(1),
        );
        flatten(self.policy.settlement.close(task.context, &TaskEnd::Answered(&answer)))
    }
}

/// An outbox with one command, and what is known of addresses.
#[derive(Default)]
struct Post {
    outbox: Outbox,
    destinations: Destinations,
}

impl Post {
    fn of(pending: PendingAck) -> Self {
        let mut post = Self::default();
        post.outbox.push(pending);
        post
    }

    /// Sends the next batch, and returns what was sent and what the broker's words leave to be done.
    fn send(
        &mut self,
        answer: impl Fn(usize, &Publication) -> Result<Confirmation, PublishError>,
    ) -> (Vec<Publication>, DeliveryReport) {
        self.send_joined(10, answer)
    }

    /// The same with so many events in a message.
    fn send_joined(
        &mut self,
        events: usize,
        answer: impl Fn(usize, &Publication) -> Result<Confirmation, PublishError>,
    ) -> (Vec<Publication>, DeliveryReport) {
        self.outbox.divert(&self.destinations);
        let (batch, sent) = self.outbox.take(10, events);
        let answers = sent.iter().enumerate().map(|(place, sent)| answer(place, sent)).collect();
        let outcome = self.outbox.land(batch.landed(answers, true, false), &mut self.destinations, false);
        (sent, outcome)
    }

    /// Takes everything that is still sent, in order.
    fn flatten(&mut self) -> Vec<Publication> {
        let mut all = Vec::new();
        while self.outbox.has_next() {
            all.extend(self.send(|_, _| routed()).0);
        }
        assert!(!self.outbox.has_apart(), "it owes something and sends nothing");
        all
    }
}

fn routed() -> Result<Confirmation, PublishError> {
    Ok(Confirmation::Routed)
}

/// Everything a pending acknowledgement publishes, in order, its event included.
pub(in crate::worker::intake) fn flatten(pending: PendingAck) -> Vec<Publication> {
    Post::of(pending).flatten()
}

pub(in crate::worker::intake) fn task_message(name: &str, body: &Value) -> Message {
    let headers = [("task", name), ("id", "id-1")];
    Message {
        headers: headers.into_iter().map(|(key, value)| (key.to_owned(), Field::from(value))).collect::<Headers>(),
        properties: Properties {
            content_type: Some("application/json".into()),
            content_encoding: Some("utf-8".into()),
            correlation_id: Some("id-1".into()),
            reply_to: Some("replies".into()),
            ..Properties::default()
        },
        body: body.to_string().into(),
    }
}

pub(in crate::worker::intake) fn store() -> Message {
    task_message("filestorage.store", &json!([["k", "v"], {}, {}]))
}

fn body(publication: &Publication) -> Value {
    serde_json::from_slice(&publication.message.body).unwrap()
}

pub(in crate::worker::intake) fn routes(publications: &[Publication]) -> Vec<&str> {
    publications.iter().map(|publication| publication.address.routing_key.as_str()).collect()
}

#[test]
fn success_answers_and_tells() {
    let mut table = Table::new();
    let mut message = store();
    message.headers.set("metrics_reply_to", Field::from("mine"));
    let task = table.ready(message, false);
    let sent = table.answered(task, Ok("{\"key\":\"k\"}".into()));
    assert_eq!(routes(&sent), ["replies", "mine", "store.succeeded"]);
    assert_eq!(body(&sent[0])["status"], "SUCCESS");
    assert_eq!(body(&sent[0])["result"], json!({"key": "k"}));
    assert_eq!(sent[2].address.exchange, events::EXCHANGE);
    assert_eq!(body(&sent[1])["id"], body(&sent[2])["id"]);
}

#[test]
fn follow_ups_leave_before_the_reply_and_keep_their_ids() {
    let mut table = Table::new();
    let step = json!({"task": "next.task", "args": [1], "kwargs": {}, "options": {}, "subtask_type": null, "immutable": false});
    let message = task_message(
        "filestorage.exists",
        &json!([["k"], {}, {"callbacks": [step], "errbacks": null, "chain": null, "chord": null}]),
    );
    let mut ids = Vec::new();
    for _ in 0..2 {
        let task = table.ready(message.clone(), false);
        let sent = table.answered(task, Ok("true".into()));
        assert_eq!(routes(&sent), ["q", "replies", "exists.succeeded"]);
        assert_eq!(body(&sent[0])[0], json!([true, 1]));
        ids.push(sent[0].message.headers.text("id").unwrap().to_owned());
        assert_eq!(body(&sent[1])["children"][0][0][0], ids[0].as_str());
    }
    assert_eq!(ids[0], ids[1], "a repeated answer repeats its children");
}

#[test]
fn what_a_producer_has_repeated_is_shortened() {
    let mut table = Table::new();
    let long = "é".repeat(100_000);
    let (sent, _) = table.end(task_message("filestorage.store", &json!([["k", "v"], {long: 1}, {}])), false);
    assert_eq!(routes(&sent), ["replies", "store.failed"]);
    for publication in &sent {
        assert!(publication.message.body.len() < 32_000, "{}", publication.message.body.len());
    }
    let text = body(&sent[0])["result"]["exc_message"][0].as_str().unwrap().to_owned();
    assert!(text.starts_with("store() got an unexpected keyword argument 'éé") && text.ends_with(" bytes)"), "{text}");
}

#[test]
fn failure_answers_with_the_exception() {
    let mut table = Table::new();
    let task = table.ready(store(), false);
    let sent = table.answered(task, Err(Exception::os_error(28, "No space left on device", "k")));
    assert_eq!(routes(&sent), ["replies", "store.failed"]);
    assert_eq!(body(&sent[0])["result"]["exc_message"], json!([28, "No space left on device", "k"]));
    assert_eq!(body(&sent[1])["data"]["error"]["type"], "OSError");
}

#[test]
fn what_moves_large_values_has_a_part_of_the_permits() {
    let mut table = Table::new();
    let mut share = |name: &str, kwargs: Value, size: u64| {
        let mut task = table.ready(task_message(name, &json!([[], kwargs, {}])), false);
        task.note_size(size);
        task.share
    };
    let value = || json!({"key": "k", "data": "v"});
    assert_eq!(share("filestorage.store", value(), LARGE - 1), Share::Small);
    assert_eq!(share("filestorage.store", value(), LARGE), Share::Large);
    let copy = json!({"source": "k", "destination": "l"});
    assert_eq!(share("filestorage.copy", copy, 0), Share::Large, "of any size");
    assert_eq!(share("filestorage.list_keys", json!({}), LARGE), Share::Scan, "it stays what it is");
}

#[test]
fn bad_arguments_never_run() {
    let mut table = Table::new();
    let (sent, outcome) = table.end(task_message("filestorage.store", &json!([["k"], {}, {}])), false);
    assert_eq!(outcome, CommandOutcome::Failed);
    assert_eq!(routes(&sent), ["replies", "store.failed"]);
    assert_eq!(body(&sent[0])["result"]["exc_type"], "TypeError");
}

#[test]
fn what_cannot_be_run_is_answered_and_kept() {
    let mut table = Table::new();
    let (sent, outcome) = table.end(task_message("nope", &json!([[], {}, {}])), false);
    assert_eq!(outcome, CommandOutcome::DeadLettered);
    assert_eq!(routes(&sent), ["replies", DEAD_QUEUE]);
    assert_eq!(body(&sent[0])["result"]["exc_type"], "NotRegistered");
    assert_eq!(sent[1].message.headers.text("x-filestorage-dead-reason"), Some("not-registered"));

    let mut garbage = store();
    garbage.body = "{".into();
    let (sent, _) = table.end(garbage, false);
    assert_eq!(routes(&sent), ["replies", DEAD_QUEUE]);
    assert_eq!(body(&sent[0])["result"]["exc_type"], "DecodeError");

    let mut surrogate = store();
    surrogate.body = r#"[["k", "\ud800"], {}, {}]"#.into();
    let (sent, _) = table.end(surrogate, false);
    assert_eq!(routes(&sent), ["replies"], "the caller was told; no dead copy");
    assert_eq!(body(&sent[0])["result"]["exc_type"], "ValueError");
}

#[test]
fn a_chord_inside_is_not_implemented() {
    let mut table = Table::new();
    let plain = json!({"task": "filestorage.exists"});
    let chord = json!({"task": "celery.chord", "kwargs": {"header": [plain], "body": plain}, "subtask_type": "chord"});
    let (sent, _) = table.end(task_message("filestorage.exists", &json!([["k"], {}, {"chain": [chord]}])), false);
    assert_eq!(routes(&sent), ["replies", DEAD_QUEUE]);
    assert_eq!(body(&sent[0])["result"]["exc_type"], "NotImplementedError");
}

#[test]
fn expired_is_revoked() {
    let mut table = Table::new();
    let mut message = store();
    message.headers.set("expires", Field::from("2020-01-01T00:00:00+00:00"));
    let (sent, outcome) = table.end(message, false);
    assert_eq!(outcome, CommandOutcome::Revoked);
    assert_eq!(routes(&sent), ["replies"]);
    assert_eq!(body(&sent[0])["status"], "REVOKED");
}

#[test]
fn a_future_eta_is_delayed() {
    let mut table = Table::new();
    let mut message = store();
    message.headers.set("eta", Field::from("2999-01-01T00:00:00+00:00"));
    assert!(matches!(table.decide(message, false), Decision::Delay(..)));
}

#[test]
fn a_redelivered_finished_write_is_answered_again() {
    let mut table = Table::new();
    let task = table.ready(store(), false);
    let answer = table.answer(&task, Ok("{\"n\":1}".into()));
    table.run(&store(), &answer);
    let fresh = table.ready(store(), false);
    assert!(fresh.redelivered.is_none(), "a fresh message always runs, whatever its id");
    table.journal.begin_session();
    let (sent, outcome) = table.end(store(), true);
    assert_eq!(outcome, CommandOutcome::Replayed);
    assert_eq!(routes(&sent), ["replies", "store.succeeded"]);
    assert_eq!(body(&sent[0])["result"], json!({"n": 1}));
    table.journal.begin_session();
    let (_, outcome) = table.end(store(), false);
    assert_eq!(outcome, CommandOutcome::Replayed, "its acknowledgement was never sent");
    let next = table.ready(store(), false);
    assert!(next.redelivered.is_none(), "the next message under the id runs");
}

#[test]
fn a_command_that_crashed_too_often_is_given_up() {
    let mut table = Table::new();
    for crash in 0..3 {
        let task = table.ready(store(), true);
        assert_eq!(scheduler::Schedulable::is_suspect(&task), crash >= 1, "{crash}");
        table.crash(&task);
    }
    let (sent, _) = table.end(store(), true);
    assert_eq!(routes(&sent), ["replies", DEAD_QUEUE]);
    assert_eq!(body(&sent[0])["result"]["exc_type"], "WorkerLostError");
}

#[test]
fn a_large_command_that_crashed_too_often_is_read_once_for_what_follows_it() {
    let mut table = Table::new();
    let link = json!({"task": "e", "args": [], "kwargs": {}, "options": {"queue": "errors"}, "subtask_type": null});
    let body = json!([["k", "x".repeat(100_000)], {}, {"errbacks": [link]}]);
    let message = task_message("filestorage.store", &body);
    let unread = |table: &mut Table| {
        let origin = Origin { queue: "q".into(), routing_key: "q".into(), redelivered: true, ..Origin::default() };
        let outline = table.policy.reader.outline(&message).unwrap();
        let delivery =
            Delivery { message: message.clone(), origin, ack_token: AckToken::stray(), inflow: Inflow::default() };
        table.policy.judge(delivery, outline, &mut table.journal)
    };
    for _ in 0..3 {
        let Decision::Seal(task, _, _, None, _) = unread(&mut table) else { panic!() };
        table.crash(&task);
    }
    let Decision::Seal(task, message_to_read, origin, Some(end), _) = unread(&mut table) else { panic!() };
    assert!(scheduler::Schedulable::is_suspect(&*task), "it is read alone");
    table.crash(&task);
    let opened = table.policy.reader.open(&message_to_read, &origin);
    let Decision::Ended(pending, CommandOutcome::DeadLettered) =
        table.policy.unseal(*task, opened, &message_to_read, &origin, Some(&end))
    else {
        panic!()
    };
    assert_eq!(routes(&flatten(*pending)), ["replies", "errors", DEAD_QUEUE]);
    let Decision::Ended(pending, CommandOutcome::DeadLettered) = unread(&mut table) else { panic!() };
    assert_eq!(routes(&flatten(*pending)), ["replies", DEAD_QUEUE], "whoever died of the reading is the last one");
}

#[test]
fn an_answer_too_large_names_the_size_and_the_mend() {
    let mut table = Table::new();
    let task = table.ready(task_message("filestorage.retrieve", &json!([["k"], {}, {}])), false);
    let sent = table.answered(task, Ok(format!("\"{}\"", "x".repeat(2000))));
    let text = body(&sent[0])["result"]["exc_message"][0].as_str().unwrap().to_owned();
    assert!(text.contains("2002") && text.contains("offset"), "{text}");
}

#[test]
fn nobody_is_told_who_does_not_ask() {
    let mut table = Table::new();
    let mut message = store();
    message.properties.reply_to = None;
    let task = table.ready(message, false);
    let sent = table.answered(task, Ok("{}".into()));
    assert_eq!(routes(&sent), ["store.succeeded"]);
}

/// What a store owes that ended well.
fn stored(table: &mut Table) -> PendingAck {
    let task = table.ready(store(), false);
    let answer = table.answer(&task, Ok("{}".into()));
    table.policy.settlement.close(task.context, &TaskEnd::Answered(&answer))
}

fn refused(text: &str) -> Result<Confirmation, PublishError> {
    Err(PublishError::Refused { code: 406, text: text.into() })
}

#[test]
fn what_the_broker_refuses_becomes_the_command_s_failure() {
    let mut table = Table::new();
    let mut post = Post::of(stored(&mut table));
    let (sent, outcome) =
        post.send(|place, _| if place == 0 { refused("PRECONDITION_FAILED - too large") } else { routed() });
    assert_eq!(sent.len(), 2);
    let [(debt, words, _)] = <[_; 1]>::try_from(outcome.refused).unwrap();
    assert_eq!(debt.role, Role::Reply);
    post.outbox.mend(&debt, |pending| refusal::take(&table.policy.settlement, pending, &debt, &words));
    let sent = post.flatten();
    assert_eq!(routes(&sent), ["replies"], "the event was confirmed and is not told twice");
    assert_eq!(body(&sent[0])["result"]["exc_type"], "ValueError");
    assert_eq!(post.outbox.take_done().len(), 1);
}

#[test]
fn a_follow_up_whose_size_is_refused_leaves_the_answer_as_it_is_and_the_message_kept() {
    let mut table = Table::new();
    let step =
        json!({"task": "t.next", "args": ["x".repeat(17 << 20)], "kwargs": {}, "options": {}, "immutable": true});
    let task = table.ready(task_message("filestorage.exists", &json!([["k"], {}, {"chain": [step]}])), false);
    let answer = table.answer(&task, Ok("true".into()));
    let mut post = Post::of(table.policy.settlement.close(task.context, &TaskEnd::Answered(&answer)));
    let text = "PRECONDITION_FAILED - message size 17825792 is larger than configured max size 16777216";
    let (sent, outcome) = post.send(|_, _| refused(text));
    assert_eq!(routes(&sent), ["q"]);
    let [(debt, words, _)] = <[_; 1]>::try_from(outcome.refused).unwrap();
    post.outbox.mend(&debt, |pending| refusal::take(&table.policy.settlement, pending, &debt, &words));
    let sent = post.flatten();
    assert_eq!(routes(&sent), ["replies", DEAD_QUEUE, "exists.succeeded"]);
    assert_eq!(body(&sent[0])["status"], "SUCCESS");
    assert_eq!(sent[1].message.headers.text("x-filestorage-dead-reason"), Some("follow-ups-too-large"));
}

#[test]
fn a_publication_without_a_result_leaves_its_delivery_unsettled() {
    let mut table = Table::new();
    let mut post = Post::of(stored(&mut table));
    let (batch, sent) = post.outbox.take(10, 10);
    assert_eq!(sent.len(), 2);
    let outcome = post.outbox.land(batch.landed(vec![routed()], true, false), &mut post.destinations, false);
    assert!(outcome.lost.is_some() && post.outbox.take_done().is_empty());
}

#[test]
fn a_lost_publication_leaves_its_delivery_unsettled() {
    let mut table = Table::new();
    let mut post = Post::of(stored(&mut table));
    let lost = || Err(PublishError::Lost("gone".into()));
    let (_, outcome) = post.send(|place, _| if place == 0 { routed() } else { lost() });
    assert!(post.outbox.take_done().is_empty() && !post.outbox.has_next());
    assert_eq!(outcome.lost.as_deref(), Some("gone"));
}

#[tokio::test(start_paused = true)]
async fn a_returned_follow_up_and_event_are_seen_to() {
    let mut table = Table::new();
    let step = json!({"task": "next.task", "args": [], "kwargs": {}, "options": {"queue": "nowhere"}, "subtask_type": null, "immutable": true});
    let task = table.ready(task_message("filestorage.exists", &json!([["k"], {}, {"chain": [step]}])), false);
    let answer = table.answer(&task, Ok("true".into()));
    let mut post = Post::of(table.policy.settlement.close(task.context, &TaskEnd::Answered(&answer)));
    let returned = || Ok(Confirmation::Returned { code: 312, text: "NO_ROUTE".into() });
    let nowhere = Address::queue("nowhere");
    let (sent, _) = post.send(|_, _| returned());
    assert_eq!(routes(&sent), ["nowhere"]);
    assert_eq!(post.destinations.fault(&nowhere), Some(Fault::Missing));
    assert!(post.send(|_, _| routed()).0.is_empty(), "its queue is seen to first");
    post.destinations.close(&nowhere);
    assert_eq!(routes(&post.send(|_, _| routed()).0), ["nowhere"], "tried again once its queue is there");
    let (sent, _) = post.send(|_, _| returned());
    assert_eq!(routes(&sent), ["replies", "exists.succeeded"]);
    post.outbox.divert(&post.destinations);
    assert!(!post.outbox.has_next() && post.outbox.has_apart(), "an unheard event is looked into");
    let event = Address { exchange: events::EXCHANGE.into(), routing_key: "exists.succeeded".into() };
    assert_eq!(post.destinations.fault(&event), Some(Fault::Missing));
    assert!(post.outbox.take_done().is_empty(), "nor is its delivery settled before");
}
