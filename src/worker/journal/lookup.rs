//! What the journals of all workers on a folder say about a command.

use std::io;
use std::time::Duration;

use jiff::Timestamp;

use super::adopt::gate;
use super::identity::{Digest, Identity};
use super::ledger::{Ledger, take_one};
use super::record::{Counts, Finish, write};
use super::{Journal, record, segment};

/// How long after the end of a session a message may still be the second copy of one that it left, without the broker's
/// saying so: a node that is back in its cluster goes through what it missed. Later it is a new one.
const OPEN: Duration = Duration::from_secs(60);

/// What is known about a command that came again.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub(super) struct Recall {
    /// The recorded answer of a finished write or delete that this may be the second copy of: JSON text.
    pub(super) answer: Option<String>,
    /// When the command began that this is the answer to, in Unix microseconds.
    began: i64,
    /// When it was started by a worker that did not finish it.
    pub(super) started_at: Option<Timestamp>,
    /// In how many crashes of a worker it was running alone.
    pub(super) crashes: u32,
    /// It was running when a worker died: it must run alone.
    pub(super) suspect: bool,
    /// A living sibling runs it.
    pub(super) runs_elsewhere: bool,
    /// A living sibling has answered an equal one; whether its session holds will show.
    pub(super) unsure: bool,
    /// An equal command was answered and acknowledged without doubt, so this is another one.
    pub(super) another: bool,
}

impl Journal {
    /// Tells whether there are journals of the earlier version.
    pub(in crate::worker) fn has_earlier(&self) -> bool {
        self.earlier || self.siblings.values().any(|reader| reader.earlier)
    }

    /// Tells whether a message that the broker calls fresh may still be a second copy: a session that ended a moment ago
    /// answered it without sending the acknowledgement, or a worker that died a moment ago ran it.
    ///
    /// # Errors
    ///
    /// Whatever the file system answers.
    pub(super) fn is_open(&mut self, identity: &Identity) -> io::Result<bool> {
        if !self.seems_open(identity) {
            return Ok(false);
        }
        // A sibling may have seen to it since.
        self.follow()?;
        Ok(self.seems_open(identity))
    }

    fn seems_open(&self, identity: &Identity) -> bool {
        self.open_since.elapsed() < OPEN && self.ledgers().any(|ledger| ledger.is_open(identity.digest))
    }

    fn ledgers(&self) -> impl Iterator<Item = &Ledger> {
        std::iter::once(&self.ledger).chain(self.siblings.values().map(|reader| &reader.ledger))
    }

    /// Tells whether a sibling has begun to run this command since then, by what was last followed, and has not given it up:
    /// the broker gave it the delivery that we hold.
    pub(super) fn is_taken(&self, identity: &Identity, since: Timestamp) -> bool {
        let since = since.as_microsecond();
        names(identity).any(|digest| {
            // Who took a dead one over has its crashes.
            self.ledger.has_crashed(digest, since)
                || self.siblings.values().any(|reader| reader.ledger.has_begun(digest, since))
        })
    }

    /// Tells whether this worker has answered this command, in whatever session.
    pub(super) fn is_done(&self, identity: &Identity) -> bool {
        self.ledger.answer(identity.digest).is_some()
    }

    /// Looks a command that came again up, here and at all siblings. Where it is not redelivered, but somebody else may have
    /// begun it `since` then, only what they began later answers it.
    ///
    /// # Errors
    ///
    /// Whatever the file system answers.
    pub(super) fn recall(&mut self, identity: &Identity, since: Option<Timestamp>) -> io::Result<Recall> {
        self.follow()?;
        let runs = |reader: &segment::SegmentReader| {
            !reader.adopted && names(identity).any(|digest| reader.ledger.running.contains_key(&digest))
        };
        let answered = |reader: &segment::SegmentReader| {
            let live = |counts: Counts| counts.in_hand > 0 || counts.settled > 0;
            let mut answers = names(identity).filter_map(|digest| reader.ledger.answer(digest));
            !reader.adopted && answers.any(|answered| live(answered.counts))
        };
        if self.siblings.values().any(|reader| runs(reader) || answered(reader)) {
            // Whether it lives.
            let _gate = gate(&self.folder)?;
            self.follow()?;
            self.adopt()?;
        }
        let mut recall = Recall {
            runs_elsewhere: self.siblings.values().any(runs),
            unsure: self.siblings.values().any(answered),
            ..Recall::default()
        };
        for (ledger, digest) in self.ledgers().flat_map(|ledger| names(identity).map(move |digest| (ledger, digest))) {
            let crash = ledger.crashes.get(&digest);
            recall.crashes = recall.crashes.max(crash.map_or(0, |crash| crash.times));
            recall.suspect |= crash.is_some();
            let runs = [crash.map(|crash| crash.at), ledger.running.get(&digest).map(|run| run.at)];
            let started_at = runs.into_iter().flatten().min().and_then(|at| Timestamp::from_microsecond(at).ok());
            recall.started_at = [recall.started_at, started_at].into_iter().flatten().min();
            recall.another |= ledger.answer(digest).is_some_and(|answered| !answered.counts.may_return());
        }
        // An id alone is no identity: nobody is answered by it, but what it says of a danger holds.
        let bare = identity.earlier.filter(|_| identity.stamp.is_none());
        recall.suspect |= bare.is_some_and(|bare| self.died_earlier(bare));
        self.find_answer(identity, since, &mut recall)?;
        if recall.answer.is_none() && since.is_none() {
            // Its answer had to make room: that it ran is known, and what it did is told by the object.
            let answers = self.ledgers().flat_map(|ledger| names(identity).filter_map(|digest| ledger.answer(digest)));
            let lost = answers.filter(|answered| answered.counts.may_return()).map(|answered| answered.began).min();
            let lost = lost.and_then(|began| Timestamp::from_microsecond(began).ok());
            recall.started_at = [recall.started_at, lost].into_iter().flatten().min();
        }
        Ok(recall)
    }

    /// Finds the newest answer that this command may be the second copy for. A stamp tells it from all others; without one
    /// those count that were left unacknowledged or in doubt.
    fn find_answer(&self, identity: &Identity, since: Option<Timestamp>, recall: &mut Recall) -> io::Result<()> {
        let since = since.map(Timestamp::as_microsecond);
        let fits = |began: i64, counts: Counts, elsewhere: bool| match since {
            Some(since) => began >= since && (elsewhere || identity.stamp.is_some()),
            None => counts.may_return() || identity.stamp.is_some(),
        };
        let mut newest: Option<String> = None;
        for digest in names(identity) {
            for reader in self.siblings.values() {
                let Some(answered) = reader.ledger.answer(digest) else { continue };
                if fits(answered.began, answered.counts, true)
                    && (newest.is_none() || answered.began > recall.began)
                    && let Some(answer) = segment::answer_at(&self.folder, &reader.writer, answered.place, digest)?
                {
                    (newest, recall.began) = (Some(answer), answered.began);
                }
            }
            // Of equals our own.
            if let Some(answered) = self.ledger.answer(digest)
                && fits(answered.began, answered.counts, false)
                && (newest.is_none() || answered.began >= recall.began)
                && let Some(answer) = self.own_answer(digest)?
            {
                (newest, recall.began) = (Some(answer), answered.began);
            }
        }
        recall.answer = newest;
        Ok(())
    }

    pub(super) fn own_answer(&self, digest: Digest) -> io::Result<Option<String>> {
        let Some(place) = self.ledger.answer(digest).map(|answered| answered.place) else { return Ok(None) };
        if place.segment == self.number && place.offset >= self.segment.answers_length {
            let begin = usize::try_from(place.offset - self.segment.answers_length).unwrap_or(usize::MAX);
            let line = self.answers.get(begin..).and_then(|rest| rest.get(..place.length));
            return Ok(line.and_then(|line| record::answer_in(line, digest)).map(str::to_owned));
        }
        segment::answer_at(&self.folder, &self.writer, place, digest)
    }

    /// Records that a command is answered again with what was recalled: the next equal one is another.
    pub(super) fn answered_again(&mut self, identity: &Identity, recall: &Recall) {
        let digest = identity.digest;
        if self.ledger.take(digest) {
            write::repeated(&mut self.lines, digest);
            self.ledger.repeat(digest);
            return;
        }
        let Some(answer) = &recall.answer else { return };
        if self.ledger.answer(digest).is_some_and(|answered| answered.began >= recall.began) {
            // Known by its stamp, and settled without doubt.
            return;
        }
        for name in names(identity) {
            take_one(self.siblings.values_mut().map(|reader| &mut reader.ledger), name);
        }
        self.write_answer(digest, recall.began, answer, Finish::Again);
    }

    /// Tells whether a command of the earlier version with this name was running when a worker died.
    pub(super) fn died_earlier(&self, name: Digest) -> bool {
        self.ledgers().any(|ledger| ledger.crashes.contains_key(&name))
            || self.siblings.values().any(|reader| !reader.adopted && reader.ledger.running.contains_key(&name))
    }
}

/// Names a command by its digest; where it is stamped, also as the earlier version did, since stamp, id and checksum tell it
/// from others. An id alone does not.
fn names(identity: &Identity) -> impl Iterator<Item = Digest> {
    [Some(identity.digest), identity.earlier.filter(|_| identity.stamp.is_some())].into_iter().flatten()
}
