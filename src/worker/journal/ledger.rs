//! What the lines of one writer add up to.

use std::collections::HashMap;

use super::identity::Digest;
use super::record::{Counts, Finish, Record};

/// Where the line with an answer stands: segment, offset, length without newline.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) struct AnswerPlace {
    pub(super) segment: u64,
    pub(super) offset: u64,
    pub(super) length: usize,
    /// Among the segment's lines instead of in its file of answers: the earlier version wrote it.
    pub(super) in_line: bool,
}

/// Bytes that stand for a command in a segment beside its answer, about.
const LINES: u64 = 256;

/// How often a command was running *alone* when a worker died (0: others ran beside it), and when the first of those runs
/// began in Unix microseconds.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) struct Crash {
    pub(super) times: u32,
    pub(super) at: i64,
}

/// A command that was started and is not over.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) struct Run {
    /// When it began, in Unix microseconds.
    pub(super) at: i64,
    /// Nothing runs beside it.
    pub(super) alone: bool,
    /// Equal ones run beside one another.
    pub(super) runs: u32,
}

/// The newest answer that was given to a command, and how often it was.
#[derive(Clone, Copy, Debug)]
pub(super) struct Answered {
    pub(super) place: AnswerPlace,
    /// When the command began to run, in Unix microseconds.
    pub(super) began: i64,
    pub(super) counts: Counts,
}

impl Answered {
    /// Bytes that must be kept for it as long as it is in hand.
    const fn in_hand(&self) -> u64 {
        if self.counts.in_hand > 0 { self.place.length as u64 + LINES } else { 0 }
    }

    /// Bytes that are kept for it, if there is room, because an earlier session left it unacknowledged.
    const fn owed(&self) -> u64 {
        if self.counts.in_hand == 0 && self.counts.owed > 0 { self.place.length as u64 + LINES } else { 0 }
    }
}

/// The state of every command one writer wrote about, by the digests of their identities.
#[derive(Debug, Default)]
pub(super) struct Ledger {
    pub(super) running: HashMap<Digest, Run>,
    /// What was running when a worker died and is not over.
    pub(super) crashes: HashMap<Digest, Crash>,
    answers: HashMap<Digest, Answered>,
    /// Sum of what must be kept for answers in hand.
    in_hand: u64,
}

impl Ledger {
    /// Takes one line in, which stands at `place`.
    pub(super) fn fold(&mut self, record: &Record, line: AnswerPlace) {
        match *record {
            Record::Started { digest, at, alone, runs: None } => self.started(digest, at, alone),
            Record::Started { digest, at, alone, runs: Some(runs) } => {
                self.running.insert(digest, Run { at, alone, runs });
            }
            Record::Finished { digest, began, stands, how } => {
                let place = stands.map_or(line, |(offset, length)| AnswerPlace {
                    segment: line.segment,
                    offset,
                    length,
                    in_line: false,
                });
                match how {
                    Finish::Ran | Finish::Again => self.finished(digest, began, place),
                    Finish::Kept(counts) => self.keep(digest, began, place, counts),
                }
            }
            Record::Ended { digest } => self.ended(digest),
            Record::Settled { digest } => self.settled(digest),
            Record::Crashed { digest, times, at } => {
                self.crashes.insert(digest, Crash { times, at });
            }
            Record::Repeated { digest } => {
                self.take(digest);
                self.repeat(digest);
            }
            Record::Session => self.begin_session(),
            Record::Doubt => self.doubt(),
            Record::Closed => self.close_session(),
        }
    }

    pub(super) fn started(&mut self, digest: Digest, at: i64, alone: bool) {
        let run = self.running.entry(digest).or_insert(Run { at, alone, runs: 0 });
        run.runs += 1;
    }

    pub(super) fn finished(&mut self, digest: Digest, began: i64, place: AnswerPlace) {
        self.ended(digest);
        let before = self.answers.get(&digest).map(|answered| answered.counts).unwrap_or_default();
        self.keep(digest, began, place, Counts { in_hand: before.in_hand + 1, ..before });
    }

    pub(super) fn ended(&mut self, digest: Digest) {
        if let Some(run) = self.running.get_mut(&digest) {
            run.runs = run.runs.saturating_sub(1);
            if run.runs == 0 {
                self.running.remove(&digest);
            }
        }
        self.crashes.remove(&digest);
    }

    pub(super) fn settled(&mut self, digest: Digest) {
        // Acknowledged, in whatever way it ended: it is no suspect.
        self.crashes.remove(&digest);
        self.alter(digest, |Answered { counts, .. }| {
            if counts.in_hand > 0 {
                counts.in_hand -= 1;
                counts.settled += 1;
            }
        });
    }

    /// Changes what is known of an answer.
    fn alter(&mut self, digest: Digest, alter: impl FnOnce(&mut Answered)) {
        let Some(answered) = self.answers.get_mut(&digest) else { return };
        let before = answered.in_hand();
        alter(answered);
        self.in_hand = self.in_hand + answered.in_hand() - before;
    }

    /// Takes in that another writer saw this command to its end.
    pub(super) fn over_elsewhere(&mut self, digest: Digest) {
        self.crashes.remove(&digest);
    }

    /// Takes one of the answers whose command may return, because it has; tells whether there was one.
    pub(super) fn take(&mut self, digest: Digest) -> bool {
        let Some(Answered { counts, .. }) = self.answers.get_mut(&digest) else { return false };
        let from = if counts.owed > 0 { &mut counts.owed } else { &mut counts.doubtful };
        if *from == 0 {
            return false;
        }
        *from -= 1;
        true
    }

    /// Takes in that a known answer is given again.
    pub(super) fn repeat(&mut self, digest: Digest) {
        self.alter(digest, |answered| answered.counts.in_hand += 1);
    }

    /// Adds up what is known of an answer here and at another writer; the very same one is counted once.
    pub(super) fn joined(&self, digest: Digest, other: &Answered) -> Counts {
        let Some(known) = self.answers.get(&digest) else { return other.counts };
        let (own, other, same) = (known.counts, other.counts, known.began == other.began);
        let join = |own: u32, other: u32| if same { own.max(other) } else { own + other };
        Counts {
            in_hand: join(own.in_hand, other.in_hand),
            owed: join(own.owed, other.owed),
            settled: join(own.settled, other.settled),
            doubtful: join(own.doubtful, other.doubtful),
        }
    }

    /// Takes in an answer with all that is known of it.
    pub(super) fn keep(&mut self, digest: Digest, began: i64, place: AnswerPlace, counts: Counts) {
        let answered = Answered { place, began, counts };
        self.in_hand += answered.in_hand();
        if let Some(before) = self.answers.insert(digest, answered) {
            self.in_hand -= before.in_hand();
        }
    }

    /// Tells how many bytes must be kept for what runs, what is in hand and what crashed.
    pub(super) fn needed(&self) -> u64 {
        self.in_hand + LINES * (self.running.len() + self.crashes.len()) as u64
    }

    /// Gives up the oldest answers that an earlier session left unacknowledged, until those that are left need no more than so
    /// many bytes; returns how many.
    pub(super) fn give_up(&mut self, room: u64) -> usize {
        let mut owed: Vec<(i64, Digest, u64)> = self
            .answers()
            .filter(|(_, answered)| answered.owed() > 0)
            .map(|(digest, answered)| (answered.began, digest, answered.owed()))
            .collect();
        let mut sum: u64 = owed.iter().map(|(.., bytes)| bytes).sum();
        if sum <= room {
            return 0;
        }
        owed.sort_unstable();
        let mut given_up = 0;
        for (_, digest, bytes) in owed {
            if sum <= room {
                break;
            }
            sum -= bytes;
            given_up += 1;
            self.answers.remove(&digest);
        }
        given_up
    }

    /// Takes the answers out that are needed, and lets go of all else.
    pub(super) fn into_answers(self, is_needed: impl Fn(&Answered) -> bool) -> Vec<(Digest, Answered)> {
        self.answers.into_iter().filter(|(_, answered)| is_needed(answered)).collect()
    }

    /// Walks all answers.
    pub(super) fn answers(&self) -> impl Iterator<Item = (Digest, &Answered)> {
        self.answers.iter().map(|(digest, answered)| (*digest, answered))
    }

    /// Takes in that an answer stands somewhere else now.
    pub(super) fn moved(&mut self, digest: Digest, to: AnswerPlace) {
        self.alter(digest, |answered| answered.place = to);
    }

    /// Finds the newest answer to a command.
    pub(super) fn answer(&self, digest: Digest) -> Option<&Answered> {
        self.answers.get(&digest)
    }

    /// Tells whether the command began to run at this time (Unix microseconds) or later, and runs still, crashed or was
    /// answered.
    pub(super) fn has_begun(&self, digest: Digest, since: i64) -> bool {
        let running = self.running.get(&digest).map(|run| run.at);
        let answered = self.answers.get(&digest).map(|answered| answered.began);
        running.max(answered).is_some_and(|began| began >= since) || self.has_crashed(digest, since)
    }

    /// Tells whether the command was running when a worker died, and had begun at this time or later.
    pub(super) fn has_crashed(&self, digest: Digest, since: i64) -> bool {
        self.crashes.get(&digest).is_some_and(|crash| crash.at >= since)
    }

    fn has_died(&self, digest: Digest) -> bool {
        self.crashes.contains_key(&digest)
    }

    /// Tells whether a message with this identity may be the second copy of one from an earlier session, although the
    /// broker does not say so: it crashed a worker, or was answered without being acknowledged.
    pub(super) fn is_open(&self, digest: Digest) -> bool {
        self.has_died(digest) || self.answers.get(&digest).is_some_and(|answered| answered.counts.owed > 0)
    }

    /// Begins a session: unless the one before was closed, what it left is owed, and what it settled is in doubt.
    pub(super) fn begin_session(&mut self) {
        for Answered { counts, .. } in self.answers.values_mut() {
            let Counts { in_hand, owed, settled, doubtful } = *counts;
            *counts = Counts { in_hand: 0, owed: owed + in_hand, settled: 0, doubtful: doubtful + settled };
        }
        self.in_hand = 0;
    }

    /// Goes on with the session after a silence: what was settled until now is in doubt.
    pub(super) fn doubt(&mut self) {
        for Answered { counts, .. } in self.answers.values_mut() {
            counts.doubtful += std::mem::take(&mut counts.settled);
        }
    }

    /// Ends the session with the broker's word: what was settled in it is settled for good.
    pub(super) fn close_session(&mut self) {
        self.answers.values_mut().for_each(|answered| answered.counts.settled = 0);
    }

    /// Returns the answers whose acknowledgement is not known to be sent.
    pub(super) fn open_answers(&self) -> impl Iterator<Item = (Digest, &Answered)> {
        self.answers().filter(|(_, Answered { counts, .. })| counts.in_hand > 0 || counts.owed > 0)
    }

    /// Keeps the answers only: what ran and crashed is written down by whoever took this writer over.
    pub(super) fn retire(&mut self) {
        self.begin_session();
        self.running.clear();
        self.crashes.clear();
    }

    /// Drops what would stand beyond the end of a segment.
    pub(super) fn forget_at(&mut self, segment: u64, end: u64) {
        self.answers.retain(|_, Answered { place, .. }| place.segment != segment || place.offset < end);
        self.in_hand = self.answers.values().map(Answered::in_hand).sum();
    }

    /// Drops what stands in segments that no longer exist.
    pub(super) fn forget_before(&mut self, segment: u64) {
        self.answers.retain(|_, answered| answered.place.segment >= segment);
        self.in_hand = self.answers.values().map(Answered::in_hand).sum();
    }

    /// Begins a new segment of the same writer: what runs and what crashed stands at its head again.
    pub(super) fn with_answers_of(earlier: Self) -> Self {
        Self { running: HashMap::new(), crashes: HashMap::new(), ..earlier }
    }
}

/// Takes one answer whose command may return from the first ledger that has one.
pub(super) fn take_one<'l>(ledgers: impl Iterator<Item = &'l mut Ledger>, digest: Digest) {
    for ledger in ledgers {
        if ledger.take(digest) {
            return;
        }
    }
}
