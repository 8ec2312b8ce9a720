//! Whose cached values are dropped everywhere before an answer leaves.

use super::*;
use crate::commands::Key;

fn k() -> Stale {
    Stale::Keys([Key::parse("k").unwrap()].into())
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
        Decision::End(parcel, CommandOutcome::Replayed) => assert_eq!(parcel.stale, k()),
        other => panic!("{other:?}"),
    }
}

#[test]
fn a_command_that_comes_again_tells_its_keys_whatever_it_finds() {
    let mut table = Table::new();
    assert!(table.job(store(), false).stale().is_none(), "its own write tells them");
    assert_eq!(table.job(store(), true).stale(), k());
    let read = task("filestorage.retrieve", &json!([["k"], {}, {}]));
    assert!(table.job(read, true).stale().is_none());
    let clear = task("filestorage.clear_cache", &json!([[], {}, {}]));
    assert_eq!(table.job(clear, true).stale(), Stale::All);
}

#[test]
fn a_large_answer_from_the_journal_tells_its_keys_again() {
    let mut table = Table::new();
    let message = store();
    table.run(&message, &answer());
    let opened = table.desk.reader.open(&message, &Origin::default());
    let mut job = table.job(task("filestorage.store", &json!([["k", "w"], {}, {}])), true);
    job.work = Work::Reading;
    match table.desk.unseal(job, opened, &message, &Origin::default(), Some(&answer())) {
        Decision::End(parcel, CommandOutcome::Replayed) => assert_eq!(parcel.stale, k()),
        other => panic!("{other:?}"),
    }
}
