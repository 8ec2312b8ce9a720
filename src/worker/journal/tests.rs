use super::lookup::Recall;
use super::*;
use crate::celery::message::{Headers, Message};
use jiff::Timestamp;

mod bounds;
mod takeover;

/// The identity of a command with this id and body.
fn with_body(id: &str, body: &str) -> Identity {
    let headers: Headers =
        [("id", id), ("task", "t")].map(|(name, value)| (name.to_owned(), value.into())).into_iter().collect();
    Identity::of(&Message { headers, body: body.to_owned().into(), ..Message::default() }, true)
}

fn named(id: &str) -> Identity {
    with_body(id, "body")
}

impl Journal {
    fn start(&mut self, id: &str) {
        self.started(&named(id), false);
    }

    fn finish(&mut self, id: &str, answer: &str) {
        self.finished(named(id).digest, answer);
    }

    fn end(&mut self, id: &str) {
        self.ended(named(id).digest);
    }

    fn settle(&mut self, id: &str) {
        self.settled(named(id).digest);
    }

    /// Starts, finishes and settles.
    fn done(&mut self, id: &str, answer: &str) {
        self.start(id);
        self.finish(id, answer);
        self.settle(id);
        self.commit().unwrap();
    }

    fn known(&mut self, id: &str) -> Recall {
        self.recall(&named(id), None).unwrap()
    }

    fn told(&mut self, id: &str) -> Option<String> {
        self.known(id).answer
    }

    fn seems_a_copy(&mut self, id: &str) -> bool {
        self.is_open(&named(id)).unwrap()
    }

    fn taken(&self, id: &str, since: Timestamp) -> bool {
        self.is_taken(&named(id), since)
    }
}

fn open(folder: &Path) -> Journal {
    Journal::open(folder, "test@host", 256 << 20, WallClock::default()).unwrap()
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
    first.start("a");
    first.finish("a", r#"{"x":1}"#);
    assert_eq!(first.told("a"), None, "as long as the session holds, an equal one is another");
    first.begin_session();
    assert_eq!(first.told("a").as_deref(), Some(r#"{"x":1}"#), "before the commit");
    first.commit().unwrap();
    assert_eq!(first.told("a").as_deref(), Some(r#"{"x":1}"#), "after the commit");
    assert_eq!(sibling.told("a").as_deref(), Some(r#"{"x":1}"#));
    kill(first);
    let mut later = open(folder.path());
    let recall = later.known("a");
    assert_eq!((recall.answer.as_deref(), recall.crashes), (Some(r#"{"x":1}"#), 0));
}

#[test]
fn only_what_ran_counts_as_crashed() {
    let folder = tempfile::tempdir().unwrap();
    for expected in 1..=3 {
        let mut journal = open(folder.path());
        assert_eq!(journal.known("poison").crashes, expected - 1);
        assert_eq!(journal.known("prefetched").crashes, 0);
        journal.start("innocent");
        journal.end("innocent");
        journal.start("poison");
        kill(journal);
        let mut journal = open(folder.path());
        let recall = journal.known("poison");
        assert_eq!(recall.crashes, expected);
        assert!(recall.started_at.is_some());
        assert_eq!(journal.known("innocent"), Recall::default());
        kill(journal);
    }
    let mut journal = open(folder.path());
    journal.start("poison");
    journal.finish("poison", "{}");
    assert_eq!(journal.known("poison").crashes, 0, "a finished command is no suspect");
}

#[test]
fn a_living_sibling_has_not_crashed() {
    let folder = tempfile::tempdir().unwrap();
    let mut first = open(folder.path());
    first.start("a");
    first.commit().unwrap();
    let mut second = open(folder.path());
    assert_eq!(second.known("a").crashes, 0);
    assert!(!second.seems_a_copy("a"), "what a living worker does is its own business");
    kill(first);
}

#[test]
fn an_id_is_taken_while_a_sibling_runs_it_and_once_it_is_answered() {
    let folder = tempfile::tempdir().unwrap();
    let (mut own, mut sibling) = (open(folder.path()), open(folder.path()));
    let since = Timestamp::now();
    own.start("own");
    for id in ["runs", "answered", "read"] {
        sibling.start(id);
    }
    sibling.finish("answered", "{}");
    sibling.settle("answered");
    sibling.end("read");
    own.follow().unwrap();
    assert!(!own.taken("runs", since), "not written yet");
    sibling.commit().unwrap();
    own.follow().unwrap();
    let later = Timestamp::now();
    for (id, taken) in [("runs", true), ("answered", true), ("read", false), ("own", false), ("unknown", false)] {
        assert_eq!(own.taken(id, since), taken, "{id}");
        assert!(!own.taken(id, later), "{id}: begun before");
    }
    kill(sibling);
    let third = open(folder.path());
    for worker in [&mut own, &mut open(folder.path())] {
        worker.follow().unwrap();
        assert!(worker.taken("answered", since), "an answer outlives its worker");
        assert!(worker.taken("runs", since), "it may have come far");
        assert!(!worker.taken("runs", later));
    }
    assert!(third.taken("runs", since), "who took it over knows");
}

#[test]
fn what_a_sibling_did_during_a_silence_is_known_however_much_it_did_since() {
    let folder = tempfile::tempdir().unwrap();
    let (mut own, mut sibling) = (open(folder.path()), open(folder.path()));
    sibling.segment_bytes = 1_000;
    let since = Timestamp::now();
    for id in ["settled", "open"] {
        sibling.start(id);
        sibling.finish(id, "{}");
    }
    sibling.settle("settled");
    for other in 0..100 {
        sibling.start(&other.to_string());
        sibling.finish(&other.to_string(), "{}");
        sibling.settle(&other.to_string());
        sibling.commit().unwrap();
    }
    assert!(sibling.number > 3, "{}", sibling.number);
    own.follow().unwrap();
    assert!(own.taken("settled", since) && own.taken("open", since));
    let settled = own.recall(&named("settled"), Some(since)).unwrap();
    assert_eq!(settled.answer.as_deref(), Some("{}"));
    sibling.keep_segment = Duration::ZERO;
    while own.taken("settled", since) {
        sibling.start("more");
        sibling.end("more");
        sibling.commit().unwrap();
        own.follow().unwrap();
    }
    assert!(own.taken("open", since), "what is carried on keeps its beginning");
}

#[test]
fn only_an_earlier_session_s_unsettled_ids_are_open() {
    let folder = tempfile::tempdir().unwrap();
    let mut first = open(folder.path());
    first.start("a");
    first.finish("a", "{}");
    assert!(!first.seems_a_copy("a"), "a fresh message always runs, whatever its id");
    first.begin_session();
    assert!(first.seems_a_copy("a"), "the acknowledgement was never sent");
    let recall = first.known("a");
    first.answered_again(&named("a"), &recall);
    first.settle("a");
    assert!(!first.seems_a_copy("a"));
    first.start("b");
    first.finish("b", "{}");
    first.start("ran");
    kill(first);
    let mut second = open(folder.path());
    assert!(!second.seems_a_copy("a"));
    assert!(second.seems_a_copy("b"));
    assert!(second.seems_a_copy("ran"));
    let recall = second.known("b");
    second.answered_again(&named("b"), &recall);
    assert!(!second.seems_a_copy("b"), "it has come");
}

#[test]
fn torn_and_foreign_files_are_passed_over() {
    let folder = tempfile::tempdir().unwrap();
    let mut first = open(folder.path());
    first.start("a");
    first.finish("a", "{}");
    first.commit().unwrap();
    let path = segment::path(folder.path(), &first.writer, 0);
    kill(first);
    let mut bytes = fs::read(&path).unwrap();
    bytes.extend_from_slice(b"\0\0\0garbage\n{\"finished\":\"b\",\"answ");
    fs::write(&path, bytes).unwrap();
    fs::write(folder.path().join("README"), "hello").unwrap();
    fs::write(folder.path().join("x.y.log"), "hello").unwrap();
    let mut second = open(folder.path());
    assert_eq!(second.told("a").as_deref(), Some("{}"));
    assert_eq!(second.known("b"), Recall::default());
}

#[test]
fn a_dead_writer_s_files_go_once_what_is_needed_of_them_is_written_elsewhere() {
    let folder = tempfile::tempdir().unwrap();
    let mut first = open(folder.path());
    first.start("open");
    first.finish("open", r#"{"n":1}"#);
    first.done("doubtful", r#"{"n":2}"#);
    first.start("ran");
    kill(first);
    for _ in 0..3 {
        // Each takes over from the one before.
        let mut next = open(folder.path());
        let files = fs::read_dir(folder.path()).unwrap().count();
        assert_eq!(files, 4, "a segment's two files and a lock of its own, and the gate");
        assert_eq!(next.told("open").as_deref(), Some(r#"{"n":1}"#));
        assert_eq!(next.told("doubtful").as_deref(), Some(r#"{"n":2}"#));
        assert_eq!(next.known("ran").crashes, 1);
        kill(next);
    }
}

#[test]
fn what_the_earlier_version_took_over_is_swept_after_an_hour() {
    let folder = tempfile::tempdir().unwrap();
    let (adopted, log) = (folder.path().join("x.adopted"), segment::path(folder.path(), "x", 0));
    fs::write(&adopted, "").unwrap();
    fs::write(&log, "").unwrap();
    for (minutes, is_kept) in [(0, true), (59, true), (61, false)] {
        let modified = std::time::SystemTime::now() - Duration::from_secs(minutes * 60);
        File::open(&adopted).unwrap().set_modified(modified).unwrap();
        drop(open(folder.path()));
        assert_eq!((adopted.exists(), log.exists()), (is_kept, is_kept), "{minutes}");
    }
}

#[test]
fn a_death_counts_only_while_a_command_ran_alone_and_makes_suspects_of_several() {
    let folder = tempfile::tempdir().unwrap();
    let mut first = open(folder.path());
    ["a", "b"].into_iter().for_each(|id| first.start(id));
    kill(first);
    for expected in 0..3 {
        let mut journal = open(folder.path());
        for id in ["a", "b"] {
            let recall = journal.known(id);
            assert!(recall.suspect && recall.started_at.is_some(), "{id}");
            assert_eq!(recall.crashes, if id == "a" { expected } else { 0 }, "{id}");
        }
        journal.started(&named("a"), true);
        kill(journal);
    }
    let mut journal = open(folder.path());
    journal.settle("a");
    assert!(!journal.known("a").suspect && journal.known("b").suspect);
    journal.start("b");
    journal.end("b");
    assert!(!journal.known("b").suspect, "it lived through it");
}

/// Ends a session as the broker's word does, or without it.
fn end_session(mut journal: Journal, clean: bool) {
    if clean {
        journal.close_session();
    }
    kill(journal);
}

#[test]
fn what_was_settled_answers_nothing_later_unless_its_session_ended_uncleanly() {
    for clean in [true, false] {
        for elsewhere in [false, true] {
            let folder = tempfile::tempdir().unwrap();
            let mut first = open(folder.path());
            first.begin_session();
            first.done("nightly", "1");
            assert_eq!(first.told("nightly"), None, "the session holds");
            let mut next = if elsewhere {
                end_session(first, clean);
                open(folder.path())
            } else {
                if clean {
                    first.close_session();
                }
                first
            };
            next.begin_session();
            assert!(!next.seems_a_copy("nightly"), "what is fresh runs");
            let recall = next.known("nightly");
            assert_eq!(recall.answer.as_deref(), if clean { None } else { Some("1") }, "{elsewhere}");
            assert_eq!(recall.another, clean);
            let other = next.recall(&with_body("nightly", "another"), None).unwrap();
            assert_eq!(other, Recall::default(), "another body is another command");
            if clean {
                continue;
            }
            // Once it has come again, the next equal one is another, whatever is settled when.
            next.answered_again(&named("nightly"), &recall);
            assert_eq!(next.told("nightly"), None);
            next.settle("nightly");
            assert_eq!(next.told("nightly"), None);
            next.commit().unwrap();
            let mut sibling = open(folder.path());
            assert!(sibling.known("nightly").answer.is_none() && sibling.known("nightly").unsure);
            end_session(next, false);
            assert_eq!(sibling.told("nightly").as_deref(), Some("1"), "that session left doubt again");
        }
    }
}

#[test]
fn each_of_several_equal_ones_is_answered_again_as_often_as_it_was_answered() {
    let folder = tempfile::tempdir().unwrap();
    let mut first = open(folder.path());
    for answer in ["1", "2"] {
        first.done("twin", answer);
    }
    first.start("twin");
    first.finish("twin", "3");
    kill(first);
    let mut next = open(folder.path());
    for _ in 0..3 {
        let recall = next.known("twin");
        assert_eq!(recall.answer.as_deref(), Some("3"), "the newest");
        next.answered_again(&named("twin"), &recall);
    }
    assert_eq!(next.told("twin"), None);
    kill(next);
    assert!(open(folder.path()).told("twin").is_some(), "none was acknowledged");
}

#[test]
fn a_delivery_that_was_given_back_is_answered_once_where_it_comes_again() {
    let folder = tempfile::tempdir().unwrap();
    for comes_to_sibling in [false, true] {
        let (mut own, mut sibling) = (open(folder.path()), open(folder.path()));
        let id = format!("back {comes_to_sibling}");
        own.start(&id);
        own.finish(&id, "1");
        assert_eq!(own.told(&id), None, "it is in hand");
        own.given_back(named(&id).digest).unwrap();
        own.given_back(named("other").digest).unwrap();
        own.commit().unwrap();
        let receiver = if comes_to_sibling { &mut sibling } else { &mut own };
        let recall = receiver.known(&id);
        assert_eq!(recall.answer.as_deref(), Some("1"));
        receiver.answered_again(&named(&id), &recall);
        receiver.commit().unwrap();
        assert_eq!((own.told(&id), sibling.told(&id)), (None, None), "another equal one is another");
    }
}

#[test]
fn a_silence_makes_doubtful_what_was_settled_before_it() {
    let folder = tempfile::tempdir().unwrap();
    let (mut own, mut sibling) = (open(folder.path()), open(folder.path()));
    own.done("before", "1");
    own.doubt();
    own.done("after", "2");
    for journal in [&mut own, &mut sibling] {
        assert_eq!(journal.told("before").as_deref(), Some("1"));
        assert_eq!(journal.told("after"), None);
    }
    assert!(sibling.known("after").unsure && !sibling.known("never").unsure);
    own.close_session();
    own.commit().unwrap();
    assert!(!sibling.known("after").unsure, "the broker has it");
    assert_eq!(sibling.told("before").as_deref(), Some("1"));
}

#[test]
fn what_a_lost_queue_had_handed_out_may_come_again() {
    let folder = tempfile::tempdir().unwrap();
    let (mut own, mut sibling) = (open(folder.path()), open(folder.path()));
    own.done("settled", "1");
    own.start("in hand");
    own.finish("in hand", "2");
    own.start("runs");
    own.start("fails");
    own.queue_lost();
    own.finish("runs", "3");
    own.end("fails");
    // Their acknowledgements reach nobody.
    own.settle("in hand");
    own.settle("runs");
    own.done("later", "4");
    own.open_since = Instant::now().checked_sub(Duration::from_secs(61)).unwrap();
    assert!(!own.seems_a_copy("runs"));
    own.queue_found();
    assert!(own.seems_a_copy("runs"), "it may be what the queue hands out again as if it were fresh");
    own.commit().unwrap();
    for journal in [&mut own, &mut sibling] {
        let told = ["settled", "in hand", "runs", "fails", "later"].map(|id| journal.told(id));
        assert_eq!(told.each_ref().map(Option::as_deref), [Some("1"), Some("2"), Some("3"), None, None]);
    }
}

#[test]
fn a_moment_after_its_end_what_a_session_left_is_another_message_when_it_is_fresh() {
    let folder = tempfile::tempdir().unwrap();
    let mut first = open(folder.path());
    first.start("a");
    first.finish("a", "1");
    kill(first);
    let mut next = open(folder.path());
    assert!(next.seems_a_copy("a"));
    next.open_since = Instant::now().checked_sub(Duration::from_secs(61)).unwrap();
    assert!(!next.seems_a_copy("a"));
    assert_eq!(next.told("a").as_deref(), Some("1"), "redelivered it is known for ever");
}

#[test]
fn a_thousand_commands_under_one_id_are_told_apart() {
    let folder = tempfile::tempdir().unwrap();
    let mut first = open(folder.path());
    let all: Vec<Identity> = (0..1000).map(|number| with_body("nightly", &number.to_string())).collect();
    for (number, identity) in all.iter().enumerate().filter(|(number, _)| number % 2 == 0) {
        first.started(identity, false);
        first.finished(identity.digest, &number.to_string());
        first.settled(identity.digest);
    }
    kill(first);
    let mut next = open(folder.path());
    for (number, identity) in all.iter().enumerate() {
        let answer = next.recall(identity, None).unwrap().answer;
        assert_eq!(answer, (number % 2 == 0).then(|| number.to_string()));
    }
}

/// Files of the earlier version, written by it: `nightly` answered and settled, `open` answered, `poison` running and once
/// crashed, and the stamped `nightly`, answered.
fn with_earlier(folder: &Path) {
    let fixtures = Path::new(env!("CARGO_MANIFEST_DIR")).join("tests/fixtures/journal-format-1");
    for file in fs::read_dir(fixtures).unwrap() {
        let file = file.unwrap();
        fs::copy(file.path(), folder.join(file.file_name())).unwrap();
    }
}

#[test]
fn journals_of_the_earlier_version_are_taken_over_and_answer_nobody_by_an_id_alone() {
    let folder = tempfile::tempdir().unwrap();
    with_earlier(folder.path());
    for _ in 0..3 {
        let mut journal = open(folder.path());
        assert!(journal.has_earlier());
        for id in ["nightly", "open"] {
            assert_eq!(journal.told(id), None, "{id}: a body is not part of what was written");
            assert!(!journal.seems_a_copy(id), "{id}");
        }
        let poison = journal.known("poison");
        assert!(poison.suspect, "it runs alone from now on");
        assert_eq!((poison.crashes, poison.started_at), (0, None), "perhaps it was another under this id");
        let stamped = |body: &str| {
            let mut message = Message { body: body.to_owned().into(), ..Message::default() };
            message.headers.set("id", "nightly".into());
            message.headers.set("timestamp_in_ms", crate::celery::message::Field::Int(1_700_000_000_000));
            Identity::of(&message, true)
        };
        let recall = journal.recall(&stamped("123456789"), None).unwrap();
        assert_eq!(recall.answer.as_deref(), Some(r#"{"result":{"n":3},"event":null}"#), "stamp and checksum tell it");
        assert_eq!(journal.recall(&stamped("another"), None).unwrap().answer, None);
        kill(journal);
    }
    let mut journal = open(folder.path());
    journal.started(&named("poison"), true);
    journal.end("poison");
    assert!(!journal.known("poison").suspect, "it lived through it");
    kill(journal);
    assert!(!open(folder.path()).known("poison").suspect);
}

#[test]
fn a_dead_worker_s_answer_is_given_again_once_and_then_the_id_is_free() {
    let folder = tempfile::tempdir().unwrap();
    let mut first = open(folder.path());
    first.start("cfg");
    first.finish("cfg", "{}");
    kill(first);
    let mut second = open(folder.path());
    let mut third = open(folder.path());
    assert!(second.seems_a_copy("cfg") && third.seems_a_copy("cfg"));
    let recall = second.known("cfg");
    assert_eq!(recall.answer.as_deref(), Some("{}"));
    second.answered_again(&named("cfg"), &recall);
    second.settle("cfg");
    second.commit().unwrap();
    assert!(!second.seems_a_copy("cfg"), "a fresh message under this id runs");
    assert!(!third.seems_a_copy("cfg"), "at every worker");
    kill(second);
    assert!(!open(folder.path()).seems_a_copy("cfg"), "and after the next death");
}

#[test]
fn a_settled_id_is_no_suspect_in_whatever_way_it_ended() {
    let folder = tempfile::tempdir().unwrap();
    let mut first = open(folder.path());
    first.start("x");
    kill(first);
    let mut second = open(folder.path());
    assert_eq!(second.known("x").crashes, 1);
    let mut third = open(folder.path());
    third.settle("x");
    third.commit().unwrap();
    assert_eq!(second.known("x").crashes, 0, "a sibling saw to it");
    assert!(!second.seems_a_copy("x"));
}

#[test]
fn crashes_add_up_across_siblings() {
    let folder = tempfile::tempdir().unwrap();
    let mut living = open(folder.path());
    let mut first = open(folder.path());
    first.start("x");
    kill(first);
    assert_eq!(living.known("x").crashes, 1, "the living one took it over");
    let mut second = open(folder.path());
    second.start("x");
    kill(second);
    assert_eq!(open(folder.path()).known("x").crashes, 2, "whoever counted before");
}

#[test]
fn a_rotation_that_failed_is_made_up_for() {
    let folder = tempfile::tempdir().unwrap();
    let mut journal = open(folder.path());
    journal.segment_bytes = 10;
    let in_the_way = folder.path().join(format!("{}.1.new", journal.writer));
    fs::create_dir(&in_the_way).unwrap();
    journal.start("a");
    assert!(journal.commit().is_err());
    fs::remove_dir(&in_the_way).unwrap();
    journal.finish("a", "{}");
    journal.commit().unwrap();
    assert!(journal.number > 0);
    kill(journal);
    assert_eq!(open(folder.path()).told("a").as_deref(), Some("{}"));
}
