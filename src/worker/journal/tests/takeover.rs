//! Taking over what a dead worker left.

use super::*;

#[test]
fn a_takeover_that_fails_counts_the_crash_once() {
    for by_another in [false, true] {
        let folder = tempfile::tempdir().unwrap();
        let mut dead = open(folder.path());
        dead.started(&named("poison"), true);
        let mut journal = open(folder.path());
        kill(dead);
        journal.follow().unwrap();
        let full = File::options().write(true).open("/dev/full").unwrap();
        let file = journal.segment.swap_lines(full);
        for _ in 0..3 {
            journal.adopt().unwrap();
            journal.follow().unwrap();
            assert_eq!(journal.known("poison").crashes, 1);
        }
        journal.segment.swap_lines(file);
        journal.done("other", "{}");
        if !by_another {
            journal.adopt().unwrap();
            assert_eq!(journal.known("poison").crashes, 1);
        }
        kill(journal);
        assert_eq!(open(folder.path()).known("poison").crashes, 1, "taken over by another: {by_another}");
    }
}
