use super::*;

fn open(folder: &Path) -> Journal {
    Journal::open(folder, "test@host").unwrap()
}

/// Ends a worker as kill -9 does: the lock goes, nothing more is written.
fn kill(mut journal: Journal) {
    journal.commit().unwrap();
    drop(journal);
}

#[test]
fn an_answer_outlives_its_worker_and_is_read_by_siblings() {
    let folder = tempfile::tempdir().unwrap();
    let mut first = open(folder.path());
    let mut sibling = open(folder.path());
    first.started("a");
    first.finished("a", r#"{"x":1}"#);
    assert_eq!(first.recall("a").unwrap().answer.as_deref(), Some(r#"{"x":1}"#), "before the commit");
    first.commit().unwrap();
    assert_eq!(first.recall("a").unwrap().answer.as_deref(), Some(r#"{"x":1}"#), "after the commit");
    assert_eq!(sibling.recall("a").unwrap().answer.as_deref(), Some(r#"{"x":1}"#));
    kill(first);
    let mut later = open(folder.path());
    let recall = later.recall("a").unwrap();
    assert_eq!((recall.answer.as_deref(), recall.crashes), (Some(r#"{"x":1}"#), 0));
}

#[test]
fn only_what_ran_counts_as_crashed() {
    let folder = tempfile::tempdir().unwrap();
    for expected in 1..=3 {
        let mut journal = open(folder.path());
        assert_eq!(journal.recall("poison").unwrap().crashes, expected - 1);
        assert_eq!(journal.recall("prefetched").unwrap().crashes, 0);
        journal.started("innocent");
        journal.ended("innocent");
        journal.started("poison");
        kill(journal);
        let mut journal = open(folder.path());
        let recall = journal.recall("poison").unwrap();
        assert_eq!(recall.crashes, expected);
        assert!(recall.started_at.is_some());
        assert_eq!(journal.recall("innocent").unwrap(), Recall::default());
        kill(journal);
    }
    let mut journal = open(folder.path());
    journal.started("poison");
    journal.finished("poison", "{}");
    assert_eq!(journal.recall("poison").unwrap().crashes, 0, "a finished command is no suspect");
}

#[test]
fn a_living_sibling_has_not_crashed() {
    let folder = tempfile::tempdir().unwrap();
    let mut first = open(folder.path());
    first.started("a");
    first.commit().unwrap();
    let mut second = open(folder.path());
    assert_eq!(second.recall("a").unwrap().crashes, 0);
    assert!(!second.is_open("a").unwrap(), "what a living worker does is its own business");
    kill(first);
}

#[test]
fn an_id_is_taken_while_a_sibling_runs_it_and_once_it_is_answered() {
    let folder = tempfile::tempdir().unwrap();
    let (mut own, mut sibling) = (open(folder.path()), open(folder.path()));
    let since = Timestamp::now();
    own.started("own");
    for id in ["runs", "answered", "read"] {
        sibling.started(id);
    }
    sibling.finished("answered", "{}");
    sibling.settled("answered");
    sibling.ended("read");
    own.follow().unwrap();
    assert!(!own.is_taken("runs", since), "not written yet");
    sibling.commit().unwrap();
    own.follow().unwrap();
    let later = Timestamp::now();
    for (id, taken) in [("runs", true), ("answered", true), ("read", false), ("own", false), ("unknown", false)] {
        assert_eq!(own.is_taken(id, since), taken, "{id}");
        assert!(!own.is_taken(id, later), "{id}: begun before");
    }
    kill(sibling);
    let third = open(folder.path());
    for worker in [&mut own, &mut open(folder.path())] {
        worker.follow().unwrap();
        assert!(worker.is_taken("answered", since), "an answer outlives its worker");
        assert!(worker.is_taken("runs", since), "it may have come far");
        assert!(!worker.is_taken("runs", later));
    }
    assert!(third.is_taken("runs", since), "who took it over knows");
}

#[test]
fn what_a_sibling_did_during_a_silence_is_known_however_much_it_did_since() {
    let folder = tempfile::tempdir().unwrap();
    let (mut own, mut sibling) = (open(folder.path()), open(folder.path()));
    sibling.segment_bytes = 1_000;
    let since = Timestamp::now();
    for id in ["settled", "open"] {
        sibling.started(id);
        sibling.finished(id, "{}");
    }
    sibling.settled("settled");
    for other in 0..100 {
        sibling.started(&other.to_string());
        sibling.finished(&other.to_string(), "{}");
        sibling.settled(&other.to_string());
        sibling.commit().unwrap();
    }
    assert!(sibling.number > 3, "{}", sibling.number);
    own.follow().unwrap();
    assert!(own.is_taken("settled", since) && own.is_taken("open", since));
    assert_eq!(own.recall("settled").unwrap().answer.as_deref(), Some("{}"));
    sibling.keep_segment = Duration::ZERO;
    while own.is_taken("settled", since) {
        sibling.started("more");
        sibling.ended("more");
        sibling.commit().unwrap();
        own.follow().unwrap();
    }
    assert!(own.is_taken("open", since), "what is carried on keeps its beginning");
}

#[test]
fn only_an_earlier_session_s_unsettled_ids_are_open() {
    let folder = tempfile::tempdir().unwrap();
    let mut first = open(folder.path());
    first.started("a");
    first.finished("a", "{}");
    assert!(!first.is_open("a").unwrap(), "a fresh message always runs, whatever its id");
    first.begin_session();
    assert!(first.is_open("a").unwrap(), "the acknowledgement was never sent");
    first.settled("a");
    assert!(!first.is_open("a").unwrap());
    first.started("b");
    first.finished("b", "{}");
    first.started("ran");
    kill(first);
    let mut second = open(folder.path());
    assert!(!second.is_open("a").unwrap());
    assert!(second.is_open("b").unwrap());
    assert!(second.is_open("ran").unwrap());
    second.started("b");
    second.finished("b", "{}");
    second.settled("b");
    assert!(!second.is_open("b").unwrap(), "what this worker knows is later than what the dead one left");
}

#[test]
fn rotation_keeps_what_is_open_and_bounds_the_folder() {
    let folder = tempfile::tempdir().unwrap();
    let mut journal = open(folder.path());
    journal.segment_bytes = 4096;
    journal.keep_segment = Duration::ZERO;
    let mut sibling = open(folder.path());
    journal.started("running");
    journal.started("open");
    journal.finished("open", r#"{"kept":true}"#);
    for number in 0..500 {
        let id = format!("id-{number}");
        journal.started(&id);
        journal.finished(&id, r#"{"result":"something of a size"}"#);
        journal.settled(&id);
        journal.commit().unwrap();
        if number % 100 == 0 {
            sibling.follow().unwrap();
        }
    }
    assert!(journal.number > 5);
    let files = fs::read_dir(folder.path()).unwrap().count();
    assert!(files <= 7, "{files} files: two segments and a lock each, the gate");
    for journal in [&mut journal, &mut sibling] {
        assert_eq!(journal.recall("open").unwrap().answer.as_deref(), Some(r#"{"kept":true}"#));
        assert!(journal.recall("running").unwrap().started_at.is_some());
        assert_eq!(journal.recall("id-0").unwrap().answer, None, "long settled");
        assert_eq!(journal.recall("id-499").unwrap().answer.as_deref(), Some(r#"{"result":"something of a size"}"#));
    }
    kill(journal);
    assert_eq!(open(folder.path()).recall("running").unwrap().crashes, 1);
}

#[test]
fn torn_and_foreign_files_are_passed_over() {
    let folder = tempfile::tempdir().unwrap();
    let mut first = open(folder.path());
    first.started("a");
    first.finished("a", "{}");
    first.commit().unwrap();
    let path = segment::path(folder.path(), &first.writer, 0);
    kill(first);
    let mut bytes = fs::read(&path).unwrap();
    bytes.extend_from_slice(b"\0\0\0garbage\n{\"finished\":\"b\",\"answ");
    fs::write(&path, bytes).unwrap();
    fs::write(folder.path().join("README"), "hello").unwrap();
    fs::write(folder.path().join("x.y.log"), "hello").unwrap();
    let mut second = open(folder.path());
    assert_eq!(second.recall("a").unwrap().answer.as_deref(), Some("{}"));
    assert_eq!(second.recall("b").unwrap(), Recall::default());
}

#[test]
fn adopted_files_are_swept_after_their_time() {
    let folder = tempfile::tempdir().unwrap();
    let first = open(folder.path());
    let writer = first.writer.clone();
    kill(first);
    drop(open(folder.path()));
    let adopted = folder.path().join(format!("{writer}.adopted"));
    assert!(adopted.exists());
    File::open(&adopted).unwrap().set_modified(SystemTime::now() - 2 * KEEP_ADOPTED).unwrap();
    drop(open(folder.path()));
    assert!(!adopted.exists());
    assert!(!segment::path(folder.path(), &writer, 0).exists());
}

#[test]
fn a_dead_worker_s_answer_is_given_again_once_and_then_the_id_is_free() {
    let folder = tempfile::tempdir().unwrap();
    let mut first = open(folder.path());
    first.started("cfg");
    first.finished("cfg", "{}");
    kill(first);
    let mut second = open(folder.path());
    let mut third = open(folder.path());
    assert!(second.is_open("cfg").unwrap() && third.is_open("cfg").unwrap());
    assert_eq!(second.recall("cfg").unwrap().answer.as_deref(), Some("{}"));
    second.settled("cfg");
    second.commit().unwrap();
    assert!(!second.is_open("cfg").unwrap(), "a fresh message under this id runs");
    assert!(!third.is_open("cfg").unwrap(), "at every worker");
    kill(second);
    assert!(!open(folder.path()).is_open("cfg").unwrap(), "and after the next death");
}

#[test]
fn a_settled_id_is_no_suspect_in_whatever_way_it_ended() {
    let folder = tempfile::tempdir().unwrap();
    let mut first = open(folder.path());
    first.started("x");
    kill(first);
    let mut second = open(folder.path());
    assert_eq!(second.recall("x").unwrap().crashes, 1);
    let mut third = open(folder.path());
    third.settled("x");
    third.commit().unwrap();
    assert_eq!(second.recall("x").unwrap().crashes, 0, "a sibling saw to it");
    assert!(!second.is_open("x").unwrap());
}

#[test]
fn crashes_add_up_across_siblings() {
    let folder = tempfile::tempdir().unwrap();
    let mut living = open(folder.path());
    let mut first = open(folder.path());
    first.started("x");
    kill(first);
    assert_eq!(living.recall("x").unwrap().crashes, 1, "the living one took it over");
    let mut second = open(folder.path());
    second.started("x");
    kill(second);
    assert_eq!(open(folder.path()).recall("x").unwrap().crashes, 2, "whoever counted before");
}

#[test]
fn a_rotation_that_failed_is_made_up_for() {
    let folder = tempfile::tempdir().unwrap();
    let mut journal = open(folder.path());
    journal.segment_bytes = 10;
    let in_the_way = folder.path().join(format!("{}.1.new", journal.writer));
    fs::create_dir(&in_the_way).unwrap();
    journal.started("a");
    assert!(journal.commit().is_err());
    fs::remove_dir(&in_the_way).unwrap();
    journal.finished("a", "{}");
    journal.commit().unwrap();
    assert!(journal.number > 0);
    assert_eq!(open(folder.path()).recall("a").unwrap().answer.as_deref(), Some("{}"));
}
