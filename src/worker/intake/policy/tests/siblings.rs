//! What siblings on one journal were given as well.

use super::*;
use crate::worker::journal::{LONGEST_WAIT, SESSION_WAIT};

/// Asks about a task right before it begins. `late_since`: the broker was silent since then.
fn asked(task: &mut ReadyTask, late_since: Option<Timestamp>, table: &mut Table) -> Admission {
    table.policy.ask_again(task, late_since, &mut table.journal)
}

/// Does so, and returns its answer if it has one.
fn reconsidered(task: &mut ReadyTask, late_since: Option<Timestamp>, table: &mut Table) -> Option<Answer> {
    match asked(task, late_since, table) {
        Admission::Run { .. } | Admission::Wait => None,
        Admission::Answer(answer) => Some(*answer),
        Admission::Dead { crashes } => panic!("{crashes} crashes"),
    }
}

/// Begins to run the same id somewhere else, and ends it with this answer.
fn elsewhere(table: &Table, answer: Option<&Answer>) -> Journal {
    let mut sibling = Journal::open(table._folder.path(), "sibling@h", 256 << 20, WallClock::default()).unwrap();
    let identity = Identity::of(&store(), false);
    sibling.started(&identity, false);
    if let Some(answer) = answer {
        sibling.finished(identity.digest, &answer.write(None).unwrap());
    }
    sibling.commit().unwrap();
    sibling
}

#[test]
fn what_a_sibling_began_during_a_silence_is_redelivered_though_the_broker_could_not_say_so() {
    let mut table = Table::new();
    let silent = Timestamp::now();
    let mut task = table.ready(store(), false);
    let answer = table.answer(&task, Ok("{\"n\":1}".into()));
    assert!(reconsidered(&mut task, Some(silent), &mut table).is_none());
    assert!(task.redelivered.is_none(), "nobody else has it");

    let running = elsewhere(&table, None);
    table.journal.follow().unwrap();
    assert!(reconsidered(&mut task, None, &mut table).is_none());
    assert!(task.redelivered.is_none(), "without a silence it is nobody's but ours");
    assert!(reconsidered(&mut task, Some(Timestamp::now()), &mut table).is_none());
    assert!(task.redelivered.is_none(), "what was begun before the silence was another message under this id");
    assert!(matches!(asked(&mut task, Some(silent), &mut table), Admission::Wait));
    task.waits_since = Instant::now().checked_sub(LONGEST_WAIT);
    assert!(reconsidered(&mut task, Some(silent), &mut table).is_none());
    let redelivered = task.redelivered.as_ref().expect("a sibling runs it");
    assert!(redelivered.started_at.is_some_and(|at| at >= silent), "{redelivered:?}");
    drop(running);

    let mut finished = elsewhere(&table, Some(&answer));
    table.journal.follow().unwrap();
    let mut task = table.ready(store(), false);
    assert_eq!(reconsidered(&mut task, Some(silent), &mut table).unwrap().write(None), answer.write(None));
    finished.settled(Identity::of(&store(), false).digest);
    finished.close_session();
    finished.commit().unwrap();
    drop(finished);

    table.run(&store(), &answer);
    let silent = Timestamp::now();
    let _running = elsewhere(&table, None);
    table.journal.follow().unwrap();
    let mut task = table.ready(store(), false);
    task.waits_since = Instant::now().checked_sub(LONGEST_WAIT);
    assert!(reconsidered(&mut task, Some(silent), &mut table).is_none(), "that was another message's answer");
    assert!(task.redelivered.is_some());
    assert!(reconsidered(&mut task, None, &mut table).is_none(), "nor is it when that is looked at again");
    let other = table.answer(&task, Ok("{\"n\":2}".into()));
    let _finished = elsewhere(&table, Some(&other));
    assert_eq!(
        reconsidered(&mut task, None, &mut table).unwrap().write(None),
        other.write(None),
        "the later one counts"
    );
}

/// The same message as a broker hands it out that stamps what comes in.
fn stamped(age: i64) -> Message {
    let mut message = store();
    let stamp = Timestamp::now().as_millisecond() - age;
    message.headers.set("timestamp_in_ms", Field::Int(stamp));
    message
}

#[test]
fn an_old_message_with_a_stamp_is_known_again_and_another_under_its_id_is_not() {
    let mut table = Table::new();
    let message = stamped(60_000);
    let mut task = table.ready(message.clone(), false);
    let answer = table.answer(&task, Ok("{\"n\":1}".into()));
    let mut sibling = Journal::open(table._folder.path(), "sibling@h", 256 << 20, WallClock::default()).unwrap();
    sibling.started(&task.context.identity, false);
    sibling.finished(task.context.identity.digest, &answer.write(None).unwrap());
    sibling.settled(task.context.identity.digest);
    sibling.commit().unwrap();
    table.journal.follow().unwrap();
    assert_eq!(reconsidered(&mut task, None, &mut table).unwrap().write(None), answer.write(None));

    let mut twin = message;
    twin.body = task_message("filestorage.store", &json!([["k", "another value"], {}, {}])).body;
    for message in [stamped(50_000), twin, store()] {
        let mut other = table.ready(message, false);
        assert!(reconsidered(&mut other, Some(Timestamp::UNIX_EPOCH), &mut table).is_none());
        assert!(other.redelivered.is_none(), "a fresh message always runs, whatever its id");
    }
}

#[test]
fn a_worker_knows_a_stamped_message_again_that_it_answered_itself() {
    let mut table = Table::new();
    let message = stamped(60_000);
    let mut task = table.ready(message.clone(), false);
    let answer = table.answer(&task, Ok("{\"n\":1}".into()));
    for message in [store(), message] {
        assert!(reconsidered(&mut task, None, &mut table).is_none(), "an answer to another message");
        table.run(&message, &answer);
        table.journal.settled(Identity::of(&message, false).digest);
    }
    assert_eq!(reconsidered(&mut task, None, &mut table).unwrap().write(None), answer.write(None));
}

#[test]
fn what_is_settled_under_a_stamp_is_settled_in_the_journal() {
    let mut table = Table::new();
    let task = table.ready(stamped(0), false);
    let (entry, answer) = (
        task.context.identity.digest,
        Answer { outcome: Outcome::Success("{}".into()), event: None, more: Vec::new() },
    );
    let pending = table.policy.settlement.close(task.context, &TaskEnd::Answered(&answer));
    assert_eq!((pending.id.as_deref(), pending.entry), (Some("id-1"), Some(entry)));
}

#[test]
fn what_is_redelivered_is_looked_up_again_before_it_runs() {
    let mut table = Table::new();
    let mut task = table.ready(store(), true);
    let answer = table.answer(&task, Ok("{\"n\":1}".into()));
    assert!(reconsidered(&mut task, None, &mut table).is_none());
    let mut sibling = elsewhere(&table, Some(&answer));
    assert!(matches!(asked(&mut task, None, &mut table), Admission::Wait), "whether its session holds will show");
    sibling.begin_session();
    sibling.commit().unwrap();
    assert_eq!(reconsidered(&mut task, None, &mut table).unwrap().write(None), answer.write(None));
}

#[test]
fn an_equal_command_that_a_living_sibling_answered_is_another_once_its_session_is_seen_to_hold() {
    let mut table = Table::new();
    let mut task = table.ready(store(), true);
    let _sibling =
        elsewhere(&table, Some(&Answer { outcome: Outcome::Success("1".into()), event: None, more: Vec::new() }));
    assert!(matches!(asked(&mut task, None, &mut table), Admission::Wait));
    task.waits_since = Instant::now().checked_sub(SESSION_WAIT);
    assert!(matches!(asked(&mut task, None, &mut table), Admission::Run { .. }));
    assert!(task.redelivered.is_none(), "what the object says was written by the other");
}

#[test]
fn another_body_under_one_id_is_another_command_in_all_that_comes_of_it() {
    let mut table = Table::new();
    let step =
        json!({"task": "next.task", "args": [], "kwargs": {}, "options": {}, "subtask_type": null, "immutable": true});
    let embed = json!({"callbacks": null, "errbacks": null, "chain": [step], "chord": null});
    let [monday, tuesday] =
        ["MONDAY", "TUESDAY"].map(|value| task_message("filestorage.store", &json!([["k", value], {}, embed])));
    let answer = Answer { outcome: Outcome::Success("1".into()), event: None, more: Vec::new() };
    table.run(&monday, &answer);
    table.journal.settled(Identity::of(&monday, false).digest);
    table.journal.begin_session();
    let task = table.ready(tuesday, true);
    assert_eq!(task.redelivered, Some(Redelivered { started_at: None }));
    let second = table.answered(task, Ok("2".into()));
    let (first, outcome) = table.end(monday, true);
    assert_eq!(outcome, CommandOutcome::Replayed);
    assert_eq!((body(&first[1])["result"].clone(), body(&second[1])["result"].clone()), (json!(1), json!(2)));
    let id = |sent: &[Publication]| sent[0].message.headers.text("id").unwrap().to_owned();
    assert_ne!(id(&first), id(&second), "the next steps are two tasks");
}

#[test]
fn a_write_that_a_sibling_runs_is_waited_for_and_a_read_is_not() {
    let mut table = Table::new();
    let mut write = table.ready(store(), true);
    let mut read = table.ready(task_message("filestorage.exists", &json!([["k"], {}, {}])), true);
    let mut sibling = elsewhere(&table, None);
    assert!(matches!(asked(&mut read, None, &mut table), Admission::Run { .. }));
    assert!(matches!(asked(&mut write, None, &mut table), Admission::Wait));
    assert!(matches!(asked(&mut write, None, &mut table), Admission::Wait));
    let identity = Identity::of(&store(), false);
    sibling.ended(identity.digest);
    sibling.commit().unwrap();
    assert!(matches!(asked(&mut write, None, &mut table), Admission::Run { .. }), "it was given up there");
    sibling.started(&identity, false);
    sibling.commit().unwrap();
    assert!(matches!(asked(&mut write, None, &mut table), Admission::Wait));
    write.waits_since = Instant::now().checked_sub(LONGEST_WAIT);
    assert!(matches!(asked(&mut write, None, &mut table), Admission::Run { .. }), "not for ever");
}
