//! Whose cached values are dropped everywhere before an answer leaves.

use super::*;
use crate::commands::Key;

fn k() -> Stale {
    keys(&["k"])
}

fn keys(names: &[&str]) -> Stale {
    Stale::Keys(names.iter().map(|name| Key::parse(name).unwrap()).collect())
}

fn answer() -> Answer {
    Answer { outcome: Outcome::Success("{}".into()), event: None, more: Vec::new() }
}

#[test]
fn an_answer_from_the_journal_tells_its_keys_again() {
    let mut table = Table::new();
    table.run(&store(), &answer());
    table.journal.begin_session();
    match table.decide(store(), true) {
        Decision::Ended(pending, CommandOutcome::Replayed) => assert_eq!(pending.stale, k()),
        other => panic!("{other:?}"),
    }
}

#[test]
fn a_command_that_comes_again_tells_its_keys_whatever_it_finds() {
    let mut table = Table::new();
    assert!(table.ready(store(), false).stale().is_none(), "its own write tells them");
    assert_eq!(table.ready(store(), true).stale(), k());
    let read = task_message("filestorage.retrieve", &json!([["k"], {}, {}]));
    assert!(table.ready(read, true).stale().is_none());
    let export = task_message("filestorage.retrieve", &json!([["k"], {"destination": "s3://bucket/key"}, {}]));
    assert_eq!(table.ready(export, true).stale(), Stale::All, "it may write to the own bucket");
    let session_loop = task_message("filestorage.move", &json!([["k", "l"], {}, {}]));
    assert_eq!(table.ready(session_loop, true).stale(), keys(&["k", "l"]));
    let copy = task_message("filestorage.copy", &json!([["l", "k"], {}, {}]));
    assert_eq!(table.ready(copy, true).stale(), k());
    let several = task_message("filestorage.delete_many", &json!([[["k", "l"]], {}, {}]));
    assert_eq!(table.ready(several, true).stale(), keys(&["k", "l"]));
    let several = task_message("filestorage.store_many", &json!([[[["k", "v"], ["l", "w"]]], {}, {}]));
    assert_eq!(table.ready(several, true).stale(), keys(&["k", "l"]));
    let clear = task_message("filestorage.clear_cache", &json!([[], {}, {}]));
    assert_eq!(table.ready(clear, true).stale(), Stale::All);
}

#[test]
fn a_large_answer_from_the_journal_tells_its_keys_again() {
    let mut table = Table::new();
    let message = store();
    table.run(&message, &answer());
    let opened = table.policy.reader.open(&message, &Origin::default());
    let mut task = table.ready(task_message("filestorage.store", &json!([["k", "w"], {}, {}])), true);
    task.work = Work::Reading;
    match table.policy.unseal(task, opened, &message, &Origin::default(), Some(&KnownEnd::Answered(Box::new(answer()))))
    {
        Decision::Ended(pending, CommandOutcome::Replayed) => assert_eq!(pending.stale, k()),
        other => panic!("{other:?}"),
    }
}

#[test]
fn a_large_export_that_was_read_may_have_changed_all() {
    let mut table = Table::new();
    let message = task_message("filestorage.retrieve", &json!([["k"], {"destination": "s3://bucket/key"}, {}]));
    for answer in [Some(answer()), None] {
        let opened = table.policy.reader.open(&message, &Origin::default());
        let mut task = table.ready(store(), true);
        task.work = Work::Reading;
        match table.policy.unseal(
            task,
            opened,
            &message,
            &Origin::default(),
            answer.map(|answer| KnownEnd::Answered(Box::new(answer))).as_ref(),
        ) {
            Decision::Ended(pending, CommandOutcome::Replayed) => assert_eq!(pending.stale, Stale::All),
            Decision::Run(task) => assert_eq!(task.stale(), Stale::All),
            other => panic!("{other:?}"),
        }
    }
}
