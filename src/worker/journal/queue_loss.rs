//! A consumed queue that goes away while its session lives: what came from it may come again.

use tokio::time::Instant;

use super::identity::Digest;
use super::record::write;
use super::{Answered, Journal};

impl Journal {
    /// Records that a consumed queue went away. Its node may hand out again all that it handed out before; an acknowledgement that
    /// is sent from now on reaches nobody.
    ///
    /// What came from other queues is not told apart: only an equal message that comes again is answered by it.
    pub(in super::super) fn queue_lost(&mut self) {
        write::doubt(&mut self.lines, self.clock.now().as_microsecond());
        self.ledger.doubt();
        let in_hand = self.ledger.answers().filter(|(_, Answered { counts, .. })| counts.in_hand > 0);
        let in_hand: Vec<_> = in_hand.map(|(digest, answered)| (digest, answered.counts.in_hand)).collect();
        for (digest, times) in in_hand {
            (0..times).for_each(|_| self.comes_again(digest));
        }
        self.returning.extend(self.ledger.running.keys());
    }

    /// Notes that a consumed queue is back: what it hands out again need not be marked as redelivered.
    pub(in super::super) fn queue_found(&mut self) {
        self.open_since = Instant::now();
    }

    /// Takes in the end of a command whose queue went away while it ran.
    pub(super) fn note_return(&mut self, digest: Digest) {
        if self.returning.remove(&digest) {
            self.comes_again(digest);
        }
    }

    fn comes_again(&mut self, digest: Digest) {
        if let Err(error) = self.given_back(digest) {
            tracing::error!(%error, "an answer cannot be read from the journal");
        }
    }
}
