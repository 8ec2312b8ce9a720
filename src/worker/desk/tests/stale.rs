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
    let export = task("filestorage.retrieve", &json!([["k"], {"destination": "s3://bucket/key"}, {}]));
    assert_eq!(table.job(export, true).stale(), Stale::All, "it may write to the own bucket");
    let shift = task("filestorage.move", &json!([["k", "l"], {}, {}]));
    assert_eq!(table.job(shift, true).stale(), keys(&["k", "l"]));
    let copy = task("filestorage.copy", &json!([["l", "k"], {}, {}]));
    assert_eq!(table.job(copy, true).stale(), k());
    let several = task("filestorage.delete_many", &json!([[["k", "l"]], {}, {}]));
    assert_eq!(table.job(several, true).stale(), keys(&["k", "l"]));
    let several = task("filestorage.store_many", &json!([[[["k", "v"], ["l", "w"]]], {}, {}]));
    assert_eq!(table.job(several, true).stale(), keys(&["k", "l"]));
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

#[test]
fn a_large_export_that_was_read_may_have_changed_all() {
    let mut table = Table::new();
    let message = task("filestorage.retrieve", &json!([["k"], {"destination": "s3://bucket/key"}, {}]));
    for answer in [Some(answer()), None] {
        let opened = table.desk.reader.open(&message, &Origin::default());
        let mut job = table.job(store(), true);
        job.work = Work::Reading;
        match table.desk.unseal(job, opened, &message, &Origin::default(), answer.as_ref()) {
            Decision::End(parcel, CommandOutcome::Replayed) => assert_eq!(parcel.stale, Stale::All),
            Decision::Run(job) => assert_eq!(job.stale(), Stale::All),
            other => panic!("{other:?}"),
        }
    }
}
