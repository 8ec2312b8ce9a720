//! What counts on the budget, and that small commands go on whatever counts.

use serde_json::{Value, json};

use super::*;
use crate::broker::{AckToken, Inflow};
use crate::celery::message::{Field, Origin};
use crate::commands::Facts;
use crate::worker::execution::answer::{Answer, Outcome};
use crate::worker::execution::scheduler::{Schedulable as _, Share};
use crate::worker::execution::settlement::TaskEnd;
use crate::worker::intake::policy::LARGE;
use crate::worker::intake::policy::tests::{Table, flatten, store, task_message};

const TOTAL: u64 = 64 << 20;

struct Site {
    table: Table,
    budget: Budget,
    intake: Intake,
    _folder: tempfile::TempDir,
}

impl Site {
    fn new() -> Self {
        let (budget, folder) = (Budget::new(TOTAL), tempfile::tempdir().unwrap());
        let intake = Intake::new(&budget, &Spool::new(folder.path()));
        Self { table: Table::new(), budget, intake, _folder: folder }
    }

    fn receive(&mut self, message: Message, queue: &str) -> Option<Next> {
        self.intake.receive(delivery(message, queue), &self.table.policy, &mut self.table.journal).unwrap()
    }

    /// Takes in what must be scheduled.
    fn scheduled(&mut self, message: Message, queue: &str) -> Box<ReadyTask> {
        scheduled(self.receive(message, queue))
    }

    /// Composes the end of a command with this result.
    fn answered(&mut self, message: Message, result: &str, facts: &[Facts]) -> PendingAck {
        let task = self.table.ready(message, false);
        let (policy, length) = (&self.table.policy, std::time::Duration::ZERO);
        let answer =
            policy.settlement.answer(task.definition, &task.context, Ok(result.to_owned()), facts.to_vec(), length);
        policy.settlement.close(task.context, &TaskEnd::Answered(&answer))
    }
}

fn delivery(message: Message, queue: &str) -> Delivery {
    let origin = Origin { queue: queue.to_owned(), routing_key: queue.to_owned(), ..Origin::default() };
    Delivery { message, origin, ack_token: AckToken::stray(), inflow: Inflow::default() }
}

fn scheduled(next: Option<Next>) -> Box<ReadyTask> {
    match next {
        Some(Next::Schedule(task)) => task,
        other => panic!("{other:?}"),
    }
}

/// A store of so many bytes; `late`: what tells its key stands behind them.
fn store_of(bytes: usize, late: bool) -> Message {
    let data = "x".repeat(bytes);
    let body = if late {
        format!(r#"[[], {{"data": "{data}", "key": "k"}}, {{}}]"#)
    } else {
        json!([["k", data], {}, {}]).to_string()
    };
    Message { body: body.into(), ..store() }
}

fn callback(bytes: usize) -> Value {
    let args = ["y".repeat(bytes)];
    json!({"task": "next.task", "args": args, "kwargs": {}, "options": {}, "subtask_type": null, "immutable": false})
}

/// The bytes of everything that is published.
fn published(pending: PendingAck) -> u64 {
    flatten(pending).iter().map(|publication| publication.message.body.len() as u64).sum()
}

#[test]
fn all_that_a_command_owes_counts_until_it_is_confirmed() {
    let mut site = Site::new();
    let embed =
        json!({"callbacks": [callback(50_000), callback(60_000)], "errbacks": null, "chain": null, "chord": null});
    let with_callbacks = task_message("filestorage.exists", &json!([["k"], {}, embed]));
    let mut with_notices = store();
    with_notices.headers.set("metrics_reply_to", Field::from("mine"));
    let facts: Vec<Facts> = (0..300).map(|key| Facts { key: Some(format!("key-{key}")), ..Facts::default() }).collect();
    for (message, result, facts, least) in [
        (store(), "\"receipt\"", &facts[..1], 300),
        (with_callbacks, "true", &facts[..1], 110_000),
        (store(), "[]", &facts[..], 90_000),
        (with_notices, "[]", &facts[..], 180_000),
    ] {
        let bytes = published(site.answered(message.clone(), result, facts));
        assert!(bytes >= least, "{bytes}");
        let mut pending = site.answered(message, result, facts);
        site.intake.count(&mut pending);
        let held = site.budget.held();
        assert!(held >= bytes && held <= bytes + bytes / 10 + 100, "{held} for {bytes}");
        drop(pending);
        assert_eq!(site.budget.held(), 0);
    }
}

#[test]
fn a_dead_copy_counts() {
    let mut site = Site::new();
    let message = task_message("nope", &json!([["z".repeat(50_000)], {}, {}]));
    let Some(Next::Ended(mut pending, CommandOutcome::DeadLettered)) = site.receive(message, "q") else { panic!() };
    assert_eq!(site.budget.held(), 0, "what was read of it is gone");
    site.intake.count(&mut pending);
    let held = site.budget.held();
    assert!((50_000..60_000).contains(&held), "{held}");
    drop(pending);
    assert_eq!(site.budget.held(), 0);
}

#[test]
fn what_waits_for_its_eta_counts() {
    let mut site = Site::new();
    let mut message = store_of(50_000, false);
    message.headers.set("eta", Field::from("2999-01-01T00:00:00+00:00"));
    let length = message.body.len() as u64;
    let Some(Next::Delay(pending, ..)) = site.receive(message, "q") else { panic!() };
    assert_eq!(site.budget.held(), length);
    drop(pending);
    assert_eq!(site.budget.held(), 0);
}

#[test]
fn room_for_an_answer_covers_the_reply_and_nothing_else() {
    let mut site = Site::new();
    let held = |site: &Site, mut pending: PendingAck, room| {
        pending.weights.push(Weight::Held { bytes: site.budget.take(room) });
        site.intake.count(&mut pending);
        site.budget.held()
    };
    let result = format!("\"{}\"", "r".repeat(900));
    let plain =
        |site: &mut Site| site.answered(task_message("filestorage.exists", &json!([["k"], {}, {}])), &result, &[]);
    let embed = json!({"callbacks": [callback(10_000)], "errbacks": null, "chain": null, "chord": null});
    let events: u64 = plain(&mut site).events.iter().map(Event::bytes).sum();
    let pending = plain(&mut site);
    // The seconds that an event tells have more or fewer digits.
    assert!(held(&site, pending, 3_000) <= 3_000 + events + 100);
    let pending = plain(&mut site);
    let without = held(&site, pending, 100);
    assert!(without > 1_000 + events, "what the room does not cover counts beside it: {without}");
    let pending = site.answered(task_message("filestorage.exists", &json!([["k"], {}, embed])), &result, &[]);
    let with_callback = held(&site, pending, 3_000);
    assert!(with_callback > 3_000 + 10_000 + 900, "{with_callback}");
}

#[tokio::test]
async fn an_answer_that_waits_for_its_body_counts() {
    let mut site = Site::new();
    let message = store_of(2 * SMALL, false);
    let length = message.body.len() as u64;
    let answer =
        Answer { outcome: Outcome::Success(format!("\"{}\"", "r".repeat(5_000))), event: None, more: Vec::new() };
    site.table.run(&message, &answer);
    site.table.journal.begin_session();
    let task = site.scheduled(message, "q");
    let Work::Read(sealed) = &task.work else { panic!("{task:?}") };
    assert!(sealed.end.is_some());
    assert_eq!(site.budget.held(), length + 5_002);
    drop(task);
    assert_eq!(site.budget.held(), 0);
}

#[tokio::test]
async fn what_waits_in_a_line_counts_and_holds_up_no_other_queue() {
    let mut site = Site::new();
    let first = store_of(2 * SMALL, true);
    let length = first.body.len() as u64;
    let Some(Next::Search(searched)) = site.receive(first, "large") else { panic!() };
    assert!(site.receive(store_of(100, false), "large").is_none(), "it might be on the same key");
    let behind = store_of(100, false).body.len() as u64;
    assert_eq!(site.budget.held(), length + behind);
    let other = site.scheduled(store(), "small");
    drop(other);
    let keys = site.table.policy.reader.search(&searched.message);
    let all = site.intake.was_found(*searched, keys, &site.table.policy, &mut site.table.journal).unwrap();
    let [first, second] = <[Next; 2]>::try_from(all).unwrap().map(|next| scheduled(Some(next)));
    assert!(matches!(first.work, Work::Read(_)) && matches!(second.work, Work::Run(_)), "in their order");
    assert_eq!(site.budget.held(), length + second.held.as_ref().unwrap().bytes(), "nothing counts twice");
    drop((first, second));
    assert_eq!(site.budget.held(), 0);
    site.receive(store_of(2 * SMALL, true), "large");
    site.intake.clear();
    assert_eq!(site.budget.held(), 0);
}

#[tokio::test]
async fn small_commands_go_on_when_nothing_is_left_of_the_budget() {
    let mut site = Site::new();
    let all = site.budget.take(TOTAL);
    let mut small = site.scheduled(store_of(1_000, false), "q");
    assert!(matches!(small.work, Work::Run(_)));
    assert!(site.intake.readings.reserve(&mut small, &site.table.policy.reader), "it is read already");
    let mut large = site.scheduled(store_of(2 << 20, false), "q");
    assert!(!site.intake.readings.reserve(&mut large, &site.table.policy.reader));
    site.intake.readings.put_off(*large);
    let mut later = site.scheduled(store_of(1_000, false), "q");
    assert!(site.intake.readings.reserve(&mut later, &site.table.policy.reader), "it passes the large one");
    assert!(site.intake.readings.go_on(&site.table.policy.reader, false, |_| true).is_empty());
    drop(all);
    assert!(site.intake.readings.go_on(&site.table.policy.reader, false, |_| false).is_empty(), "without a permit");
    let admitted = site.intake.readings.go_on(&site.table.policy.reader, false, |_| true);
    assert_eq!(admitted.len(), 1);
    assert!(admitted[0].held.is_some() && site.intake.readings.waiting() == 0);
}

#[tokio::test]
async fn a_message_s_size_tells_its_share() {
    let mut site = Site::new();
    let most = usize::try_from(LARGE).unwrap();
    for (bytes, share) in [(10, Share::Small), (2 * SMALL, Share::Small), (most, Share::Large)] {
        assert_eq!(site.scheduled(store_of(bytes, false), "q").share(), share, "{bytes}");
    }
}
