//! Whether a delivery may run: the one place that decides it, from what the broker says and what the journals know.
//!
//! The question is asked twice: when a message is read, and right before its command begins. What the first answer found out is
//! kept in the delivery's [`History`] and counts for the second.

use std::time::Duration;

use jiff::Timestamp;
use tokio::time::Instant;

use super::Journal;
use super::identity::Identity;
use super::lookup::Recall;
use crate::commands::Redelivered;
use crate::worker::execution::answer::Answer;

/// A stamped message of this age, in milliseconds, may have been handed out before without the broker's saying so: a cluster takes
/// longer to give a node up.
const OLD: i64 = 1000;
/// How old the view of siblings' journals may be. Two that begin the same command within that time both run it.
const FOLLOW: Duration = Duration::from_millis(20);
/// How long the end of a run elsewhere is waited for: who lost its session has given up by then what it ran. What takes longer is
/// run here as well.
pub(in crate::worker) const LONGEST_WAIT: Duration = Duration::from_secs(15);
/// How long it is waited for whether the session holds in which a living sibling answered an equal command: who lost its session
/// knows it at once, and from a silence before the broker gives anything to others.
pub(in crate::worker) const SESSION_WAIT: Duration = Duration::from_secs(2);

/// The question whether a delivery may run.
#[derive(Debug)]
pub(in crate::worker) struct Question<'q> {
    pub(in crate::worker) identity: &'q Identity,
    /// What the log calls it.
    pub(in crate::worker) task_id: &'q str,
    /// What is known of the delivery; the answer adds to it.
    pub(in crate::worker) history: &'q mut History,
    /// Since when the broker was silent, if it may have given this delivery to somebody else meanwhile without saying so.
    pub(in crate::worker) late_since: Option<Timestamp>,
    /// How long the command has waited for the end of a run elsewhere; `None` where nothing begins yet, or two runs do no harm.
    pub(in crate::worker) waited: Option<Duration>,
    /// In how many crashes of a worker a command may have been running alone.
    pub(in crate::worker) max_crashes: u32,
    pub(in crate::worker) now: Timestamp,
}

/// Whether a delivery may run.
#[derive(Debug)]
pub(in crate::worker) enum Admission {
    /// It may. `redelivered` is what the command is told of its first try.
    Run { redelivered: Option<Redelivered> },
    /// It has run: this is its answer.
    Answer(Box<Answer>),
    /// Somebody else runs it or has just answered an equal one, and two runs would give two answers: the question is to be asked
    /// again soon.
    Wait,
    /// It was running alone in so many crashes of a worker that it is not run again.
    Dead { crashes: u32 },
}

/// How a delivery came.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Provenance {
    /// The broker calls it fresh, and the journals were not asked yet.
    Fresh,
    /// It is fresh, by the journals as well when it was read.
    Once,
    /// It may have run before: the broker says so, or the journals, or somebody else was given it unsaid.
    Again {
        /// Since when somebody else may have begun it unsaid: what is older is no answer to it.
        since: Option<Timestamp>,
    },
}

/// What is known of one delivery, from one question to the next.
#[derive(Clone, Copy, Debug)]
pub(in crate::worker) struct History {
    origin: Provenance,
    is_suspect: bool,
}

impl History {
    /// Begins with what the broker says of a delivery.
    pub(in crate::worker) const fn new(redelivered: bool) -> Self {
        let origin = if redelivered { Provenance::Again { since: None } } else { Provenance::Fresh };
        Self { origin, is_suspect: false }
    }

    /// Tells whether the delivery came again, or may have.
    pub(in crate::worker) const fn came_again(&self) -> bool {
        matches!(self.origin, Provenance::Again { .. })
    }

    /// Tells whether the command was running when a worker died: it must run alone.
    pub(in crate::worker) const fn is_suspect(&self) -> bool {
        self.is_suspect
    }
}

impl Journal {
    /// Decides whether a delivery may run. What it may be the second copy of is looked up here and at all siblings; a fresh message
    /// always runs, whatever its id.
    ///
    /// A journal that cannot be read counts as one that knows nothing, which a redelivered write copes with.
    pub(in crate::worker) fn admit(&mut self, question: Question<'_>) -> Admission {
        let Question { identity, task_id, history, late_since, waited, max_crashes, now } = question;
        let unreadable = |error| tracing::error!(task_id, %error, "journal cannot be read");
        history.origin = match history.origin {
            // Still a second copy, perhaps, of one that an earlier session left.
            Provenance::Fresh if self.is_open(identity).map_err(unreadable).unwrap_or_default() => {
                Provenance::Again { since: None }
            }
            Provenance::Once => self.look_for_takers(identity, doubt(identity.stamp, late_since, now)),
            Provenance::Fresh => Provenance::Once,
            again @ Provenance::Again { .. } => again,
        };
        let Provenance::Again { since } = history.origin else {
            let twin =
                if identity.may_be_doubled { self.recall(identity, None).map_err(unreadable).ok() } else { None };
            return twin.map_or(Admission::Run { redelivered: None }, |recall| {
                self.admit_delayed(identity, task_id, waited, &recall)
            });
        };
        let recall = self.recall(identity, since).map_err(unreadable).unwrap_or_default();
        history.is_suspect |= recall.suspect;
        if let Some(answer) = recall.answer.as_deref().and_then(Answer::read) {
            tracing::info!(task_id, "answered again from the journal");
            self.answered_again(identity, &recall);
            return Admission::Answer(Box::new(answer));
        }
        if recall.crashes >= max_crashes {
            return Admission::Dead { crashes: recall.crashes };
        }
        if let Some(waited) = waited {
            if recall.runs_elsewhere && waited < LONGEST_WAIT || recall.unsure && waited < SESSION_WAIT {
                return Admission::Wait;
            }
            if recall.runs_elsewhere {
                tracing::warn!(task_id, "another worker still runs this command; it is run here as well");
            }
        }
        // Where an equal one was answered and acknowledged without doubt, this is another, and what the object says was written by
        // the first.
        let is_told = recall.started_at.is_some() || !recall.another;
        Admission::Run { redelivered: is_told.then_some(Redelivered { started_at: recall.started_at }) }
    }

    /// Decides about a command from a delay queue, of which there may be two, whatever became of the other.
    fn admit_delayed(
        &mut self,
        identity: &Identity,
        task_id: &str,
        waited: Option<Duration>,
        recall: &Recall,
    ) -> Admission {
        if let Some(answer) = recall.answer.as_deref().and_then(Answer::read) {
            tracing::info!(task_id, "delayed twice; answered again from the journal");
            self.answered_again(identity, recall);
            return Admission::Answer(Box::new(answer));
        }
        match waited {
            Some(waited) if recall.runs_elsewhere && waited < LONGEST_WAIT => Admission::Wait,
            _ => Admission::Run { redelivered: None },
        }
    }

    /// Tells how a delivery came that somebody else may have begun since then, if anybody may. Of a message with a stamp every run
    /// counts, since only a message with the same id, stamp and body has its entry in the journal.
    fn look_for_takers(&mut self, identity: &Identity, since: Option<Timestamp>) -> Provenance {
        let Some(since) = since else { return Provenance::Once };
        self.follow_at_times();
        let is_taken = self.is_taken(identity, since) || identity.stamp.is_some() && self.is_done(identity);
        if is_taken { Provenance::Again { since: Some(since) } } else { Provenance::Once }
    }

    /// Takes in what siblings did, unless it was just done: with a backlog it would be done for each command.
    fn follow_at_times(&mut self) {
        if self.followed.is_some_and(|followed| followed.elapsed() < FOLLOW) {
            return;
        }
        self.followed = Some(Instant::now());
        if let Err(error) = self.follow() {
            tracing::error!(%error, "the journals of other workers cannot be read");
        }
    }
}

/// Tells since when somebody else may have begun a fresh delivery although the broker does not say so. `late_since` is since when
/// the broker was silent, if it was.
fn doubt(stamp: Option<i64>, late_since: Option<Timestamp>, now: Timestamp) -> Option<Timestamp> {
    let Some(stamp) = stamp else { return late_since };
    let age = now.as_millisecond().saturating_sub(stamp);
    // One from the future tells that the clocks differ, and nothing of its age.
    (!(0..OLD).contains(&age) || late_since.is_some()).then_some(Timestamp::UNIX_EPOCH)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_has_just_come_in_was_handed_out_once() {
        let now = Timestamp::from_millisecond(1_700_000_000_000).unwrap();
        let (fresh, late) = (now.as_millisecond() - OLD + 1, Some(now));
        assert_eq!(doubt(None, None, now), None);
        assert_eq!(doubt(None, late, now), late, "since the silence");
        assert_eq!(doubt(Some(fresh), None, now), None);
        assert_eq!(doubt(Some(now.as_millisecond()), None, now), None);
        for (stamp, late) in [(fresh - 1, None), (now.as_millisecond() + 1, None), (fresh, late)] {
            assert_eq!(doubt(Some(stamp), late, now), Some(Timestamp::UNIX_EPOCH), "every run counts: {stamp}");
        }
    }

    fn asked(journal: &mut Journal, history: &mut History, late_since: Option<Timestamp>, crashes: u32) -> Admission {
        let message = crate::celery::message::Message::default();
        let (identity, now) = (Identity::of(&message, false), Timestamp::now());
        let (task_id, waited, max_crashes) = ("id", None, crashes);
        journal.admit(Question { identity: &identity, task_id, history, late_since, waited, max_crashes, now })
    }

    #[test]
    fn the_broker_s_word_outlives_a_silence() {
        let folder = tempfile::tempdir().unwrap();
        let mut journal = Journal::open(folder.path(), "w@h", 1 << 20, crate::worker::WallClock::default()).unwrap();
        let (mut fresh, mut again) = (History::new(false), History::new(true));
        for _ in 0..2 {
            for late_since in [None, Some(Timestamp::now())] {
                assert!(matches!(asked(&mut journal, &mut fresh, late_since, 3), Admission::Run { redelivered: None }));
                let Admission::Run { redelivered } = asked(&mut journal, &mut again, late_since, 3) else { panic!() };
                assert_eq!(redelivered, Some(Redelivered { started_at: None }));
            }
        }
        assert_eq!((fresh.origin, again.origin), (Provenance::Once, Provenance::Again { since: None }));
    }

    #[tokio::test(start_paused = true)]
    async fn the_view_of_siblings_is_twenty_milliseconds_old_at_most() {
        let folder = tempfile::tempdir().unwrap();
        let open = || Journal::open(folder.path(), "w@h", 1 << 20, crate::worker::WallClock::default()).unwrap();
        let (mut journal, mut sibling, mut history) = (open(), open(), History::new(false));
        let since = Some(Timestamp::now());
        drop(asked(&mut journal, &mut history, None, 3));
        drop(asked(&mut journal, &mut history, since, 3));
        sibling.started(&Identity::of(&crate::celery::message::Message::default(), false), false);
        sibling.commit().unwrap();
        for (milliseconds, is_seen) in [(19, false), (1, true)] {
            tokio::time::advance(Duration::from_millis(milliseconds)).await;
            drop(asked(&mut journal, &mut history, since, 3));
            assert_eq!(history.came_again(), is_seen, "{milliseconds}");
        }
    }

    #[test]
    fn crashes_end_a_delivery_whenever_it_is_asked_about() {
        let folder = tempfile::tempdir().unwrap();
        let open = || Journal::open(folder.path(), "w@h", 1 << 20, crate::worker::WallClock::default()).unwrap();
        let identity = Identity::of(&crate::celery::message::Message::default(), false);
        let (mut journal, mut history) = (open(), History::new(true));
        assert!(matches!(asked(&mut journal, &mut history, None, 1), Admission::Run { .. }));
        assert!(!history.is_suspect());
        let mut sibling = open();
        sibling.started(&identity, true);
        sibling.commit().unwrap();
        drop(sibling);
        assert!(matches!(asked(&mut journal, &mut history, None, 2), Admission::Run { .. }));
        assert!(history.is_suspect(), "it runs alone");
        assert!(matches!(asked(&mut journal, &mut history, None, 1), Admission::Dead { crashes: 1 }));
        journal.ended(identity.digest);
        assert!(matches!(asked(&mut journal, &mut history, None, 1), Admission::Run { .. }));
        assert!(history.is_suspect(), "what was once found out holds");
    }
}
