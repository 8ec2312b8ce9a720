//! What bounds the folder: segments, and `journal_max_bytes`.

use super::*;

#[test]
fn rotation_keeps_what_is_open_and_bounds_the_folder() {
    let folder = tempfile::tempdir().unwrap();
    let mut journal = open(folder.path());
    journal.segment_bytes = 4096;
    journal.keep_segment = Duration::ZERO;
    let mut sibling = open(folder.path());
    journal.start("running");
    journal.start("open");
    journal.finish("open", r#"{"kept":true}"#);
    for number in 0..500 {
        let id = format!("id-{number}");
        journal.start(&id);
        journal.finish(&id, r#"{"result":"something of a size"}"#);
        journal.settle(&id);
        journal.commit().unwrap();
        if number % 100 == 0 {
            sibling.follow().unwrap();
        }
    }
    assert!(journal.number > 5);
    let files = fs::read_dir(folder.path()).unwrap().count();
    assert!(files <= 10, "{files} files: two segments of two files and a lock each, the gate");
    journal.doubt();
    journal.begin_session();
    journal.commit().unwrap();
    for journal in [&mut journal, &mut sibling] {
        assert_eq!(journal.told("open").as_deref(), Some(r#"{"kept":true}"#));
        assert!(journal.known("running").started_at.is_some());
        assert_eq!(journal.told("id-0"), None, "long settled");
        assert_eq!(journal.told("id-499").as_deref(), Some(r#"{"result":"something of a size"}"#));
    }
    kill(journal);
    assert_eq!(open(folder.path()).known("running").crashes, 1);
}

const MIB: u64 = 1024 * 1024;

fn small(folder: &Path) -> Journal {
    Journal::open(folder, "test@host", MIB, WallClock::default()).unwrap()
}

fn bytes_in(folder: &Path) -> u64 {
    fs::read_dir(folder).unwrap().map(|file| file.unwrap().metadata().unwrap().len()).sum()
}

/// An answer of a usual size.
fn receipt(number: u32) -> String {
    format!(r#"{{"n":{number},"pad":"{}"}}"#, "x".repeat(400))
}

#[test]
fn at_the_bound_the_oldest_answers_go_first_then_what_tells_of_them_and_never_what_is_open() {
    let folder = tempfile::tempdir().unwrap();
    let mut journal = small(folder.path());
    journal.begin_session();
    journal.start("runs");
    journal.start("open");
    journal.finish("open", &receipt(0));
    journal.ledger.crashes.insert(named("crashed").digest, ledger::Crash { times: 2, at: 5 });
    for number in 0..10_000 {
        journal.done(&number.to_string(), &receipt(number));
        assert!(number % 100 != 0 || bytes_in(folder.path()) <= MIB, "{number}: {}", bytes_in(folder.path()));
    }
    assert!(bytes_in(folder.path()) > MIB / 2, "the room is used");
    assert!(journal.older.iter().any(|old| old.answers == 0), "answers are gone whose lines are still there");
    for takes_over in [false, true] {
        if takes_over {
            kill(journal);
            journal = small(folder.path());
            assert!(bytes_in(folder.path()) <= MIB);
        }
        journal.begin_session();
        assert_eq!(journal.told("open"), Some(receipt(0)));
        assert_eq!(journal.told("9999"), Some(receipt(9999)));
        assert!(journal.known("runs").started_at.is_some());
        assert_eq!(journal.known("crashed").crashes, 2);
        assert_eq!(journal.known("0"), Recall::default(), "the oldest is forgotten");
        if !takes_over {
            let number = (0..10_000).find(|number| journal.known(&number.to_string()) != Recall::default()).unwrap();
            let recall = journal.known(&number.to_string());
            assert!(recall.answer.is_none() && recall.started_at.is_some(), "that it ran outlives its answer");
        }
    }
}

#[test]
fn what_must_be_kept_fills_the_journal_and_gives_room_when_it_is_settled() {
    let folder = tempfile::tempdir().unwrap();
    let mut journal = small(folder.path());
    let mut count = 0;
    while !journal.is_full() {
        journal.start(&count.to_string());
        journal.finish(&count.to_string(), &receipt(count));
        journal.commit().unwrap();
        count += 1;
    }
    assert!(count > 50, "{count}");
    assert!(bytes_in(folder.path()) <= MIB, "{}", bytes_in(folder.path()));
    (0..10).for_each(|number| journal.settle(&number.to_string()));
    assert!(!journal.is_full());
    // What one dead worker after the other owes has its own room, and the newest count.
    for number in 0..10 {
        kill(journal);
        journal = small(folder.path());
        assert!(!journal.is_full(), "what is owed comes again, and must be taken to be settled");
        for other in 0..150 {
            journal.start(&format!("{number}/{other}"));
            journal.finish(&format!("{number}/{other}"), &receipt(other));
            journal.commit().unwrap();
        }
        assert!(bytes_in(folder.path()) <= MIB, "{}", bytes_in(folder.path()));
    }
    kill(journal);
    let mut journal = small(folder.path());
    assert_eq!(journal.told("9/149"), Some(receipt(149)));
    assert_eq!(journal.told("0/0"), None);
}
