//! Which deliveries of a channel are unfinished, and so how far one acknowledgement may reach.

use std::collections::VecDeque;

/// One acknowledgement to send.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) struct Ack {
    pub(super) tag: u64,
    /// Covers every earlier tag too.
    pub(super) multiple: bool,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Mark {
    /// Not finished: being run, waiting its turn, or still on its way to us.
    Open,
    /// Finished since the last acknowledgement.
    Finished,
    /// Acknowledged on its own, because an earlier one was still open.
    Settled,
}

/// The tags of one channel from the oldest unsettled on; the broker counts them from 1 without gaps.
#[derive(Debug)]
pub(super) struct AckTracker {
    /// The tag of the first mark; everything below is settled.
    oldest: u64,
    marks: VecDeque<Mark>,
}

impl AckTracker {
    pub(super) const fn new() -> Self {
        Self { oldest: 1, marks: VecDeque::new() }
    }

    /// Marks tags as finished and returns what to acknowledge: all below the oldest open one by one `multiple`, those
    /// beyond it singly, so that a slow command does not keep the prefetch full of finished ones.
    pub(super) fn finish(&mut self, tags: &[u64]) -> Vec<Ack> {
        for tag in tags {
            self.mark(*tag);
        }
        let mut acks = Vec::new();
        let mut reach = None;
        while let Some(mark) = self.marks.front() {
            match mark {
                Mark::Open => break,
                // The broker refuses a `multiple` up to a tag that is settled already.
                Mark::Finished => reach = Some((self.oldest, reach.is_some())),
                Mark::Settled => {}
            }
            self.marks.pop_front();
            self.oldest += 1;
        }
        if let Some((tag, multiple)) = reach {
            acks.push(Ack { tag, multiple });
        }
        // Only what was finished just now can be neither open nor settled.
        for tag in tags {
            if let Some(mark @ Mark::Finished) = self.place(*tag) {
                *mark = Mark::Settled;
                acks.push(Ack { tag: *tag, multiple: false });
            }
        }
        acks
    }

    /// Notes that a tag was settled otherwise than by an acknowledgement; no acknowledgement names it any more.
    pub(super) fn settled(&mut self, tag: u64) {
        self.mark(tag);
        if let Some(mark) = self.place(tag) {
            *mark = Mark::Settled;
        }
    }

    fn mark(&mut self, tag: u64) {
        let Some(place) = tag.checked_sub(self.oldest).and_then(|place| usize::try_from(place).ok()) else { return };
        if place >= self.marks.len() {
            self.marks.resize(place + 1, Mark::Open);
        }
        if let Some(mark @ Mark::Open) = self.marks.get_mut(place) {
            *mark = Mark::Finished;
        }
    }

    fn place(&mut self, tag: u64) -> Option<&mut Mark> {
        let place = usize::try_from(tag.checked_sub(self.oldest)?).ok()?;
        self.marks.get_mut(place)
    }
}

#[cfg(test)]
mod tests {
    use std::collections::BTreeSet;

    use proptest::prelude::*;

    use super::*;

    fn multiple(tag: u64) -> Ack {
        Ack { tag, multiple: true }
    }

    fn single(tag: u64) -> Ack {
        Ack { tag, multiple: false }
    }

    #[test]
    fn what_was_given_back_is_never_acknowledged() {
        let mut tracker = AckTracker::new();
        tracker.settled(2);
        assert_eq!(tracker.finish(&[1]), [Ack { tag: 1, multiple: false }]);
        tracker.settled(4);
        assert_eq!(tracker.finish(&[5]), [single(5)]);
        assert_eq!(tracker.finish(&[3]), [single(3)]);
        assert_eq!(tracker.finish(&[6]), [single(6)]);
    }

    #[test]
    fn a_slow_one_in_the_middle_parts_multiple_from_single() {
        let mut ledger = AckTracker::new();
        assert_eq!(ledger.finish(&[1, 2, 3, 5, 6]), [multiple(3), single(5), single(6)]);
        assert_eq!(ledger.finish(&[8]), [single(8)]);
        assert_eq!(ledger.finish(&[4]), [single(4)]);
        assert_eq!(ledger.finish(&[7, 9]), [multiple(9)]);
    }

    #[test]
    fn a_tag_that_was_not_handed_out_yet_is_open() {
        let mut ledger = AckTracker::new();
        assert_eq!(ledger.finish(&[3]), [single(3)]);
        assert_eq!(ledger.finish(&[2, 1]), [multiple(2)]);
        assert_eq!(ledger.finish(&[4]), [single(4)]);
    }

    proptest! {
        /// Plays the broker: a `multiple` settles all below, and every tag named must be unsettled.
        #[test]
        fn every_tag_is_settled_once_and_none_before_it_is_finished(
            order in Just((1..=60_u64).collect::<Vec<_>>()).prop_shuffle(),
            sizes in proptest::collection::vec(1..9_usize, 60),
        ) {
            let mut ledger = AckTracker::new();
            let mut unsettled: BTreeSet<u64> = (1..=60).collect();
            let mut finished = BTreeSet::new();
            let mut rest = &order[..];
            for size in sizes {
                let (batch, later) = rest.split_at(size.min(rest.len()));
                rest = later;
                finished.extend(batch.iter().copied());
                for ack in ledger.finish(batch) {
                    prop_assert!(unsettled.contains(&ack.tag));
                    let covered: Vec<u64> = match ack.multiple {
                        true => unsettled.range(..=ack.tag).copied().collect(),
                        false => vec![ack.tag],
                    };
                    for tag in covered {
                        prop_assert!(finished.contains(&tag));
                        unsettled.remove(&tag);
                    }
                }
                prop_assert_eq!(unsettled.len(), 60 - finished.len());
            }
        }
    }
}
