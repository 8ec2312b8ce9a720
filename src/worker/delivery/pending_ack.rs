//! What one finished command still owes to the broker before its delivery may be acknowledged.

use crate::broker::{AckToken, Inflow};
use crate::celery::message::Publication;
use crate::celery::reply::ReplyTo;
use crate::commands::Held;
use crate::worker::delivery::held::{HeldCommand, HeldCommands};
use crate::worker::delivery::returned::Returned;
use crate::worker::delivery::role::Role;
use crate::worker::events::Event;
use crate::worker::invalidations::Stale;
use crate::worker::journal::Digest;
use crate::worker::remote::UnrunTask;

/// What counts for something in memory; dropping it says that it is gone.
#[derive(Debug)]
pub(in crate::worker) enum Weight {
    /// On the budget.
    Held { bytes: Held },
    /// Of what was read ahead.
    Read { _bytes: Inflow },
}

/// Everything one delivery still owes.
#[derive(Debug)]
pub(in crate::worker) struct PendingAck {
    /// Settles the delivery; `None` for what is said in between (STARTED), and for what came back from its parking.
    pub(in crate::worker) ack_token: Option<AckToken>,
    /// What came back from its parking.
    pub(in crate::worker) returned: Option<Box<Returned>>,
    /// Task id.
    pub(in crate::worker) id: Option<String>,
    /// What the journal knows the command by.
    pub(in crate::worker) entry: Option<Digest>,
    /// Whom to tell when something is refused for good.
    pub(in crate::worker) reply_to: Option<ReplyTo>,
    /// To be confirmed first.
    pub(in crate::worker) first: Vec<(Role, Publication)>,
    /// To be confirmed after that.
    pub(in crate::worker) then: Vec<(Role, Publication)>,
    /// The metric events, all of one operation; they leave with the second.
    pub(in crate::worker) events: Vec<Event>,
    /// What is kept instead of follow-ups whose size the broker refuses: the answer stands then.
    pub(in crate::worker) spare: Option<Box<Publication>>,
    /// That is owed instead of them.
    pub(super) is_spare_owed: bool,
    /// The reply is out: another one would contradict it.
    pub(in crate::worker) replied: bool,
    /// Size of the reply, for the answer to its refusal.
    pub(in crate::worker) reply_bytes: usize,
    /// What counts for it until it owes nothing more.
    pub(in crate::worker) weights: Vec<Weight>,
    /// What monitors are told of a task that did not run.
    pub(in crate::worker) unrun: Option<Box<UnrunTask>>,
    /// What other workers are told before it leaves: whoever wrote it may have died before that.
    pub(in crate::worker) stale: Stale,
    /// How many of its publications the outbox has.
    pub(super) outstanding: usize,
    /// How many of these are to be confirmed first.
    pub(super) awaited: usize,
    /// How often it failed by a refusal: what was composed before is not sent any more.
    pub(super) refusals: u8,
    /// Keeps its slot since something was not taken.
    pub(super) stalled: Option<HeldCommand>,
}

impl PendingAck {
    /// Makes a pending acknowledgement that owes nothing yet.
    pub(in crate::worker) fn new(ack_token: Option<AckToken>, id: Option<String>) -> Self {
        Self {
            ack_token,
            returned: None,
            id,
            entry: None,
            reply_to: None,
            first: Vec::new(),
            then: Vec::new(),
            events: Vec::new(),
            spare: None,
            is_spare_owed: false,
            replied: false,
            reply_bytes: 0,
            weights: Vec::new(),
            unrun: None,
            stale: Stale::default(),
            outstanding: 0,
            awaited: 0,
            refusals: 0,
            stalled: None,
        }
    }

    /// Tells whether it is said in between, and of no use later.
    pub(super) const fn is_passing(&self) -> bool {
        self.ack_token.is_none() && self.returned.is_none()
    }

    /// Notes that something of it was not taken. Only a command keeps a slot.
    pub(super) fn stall(&mut self, held: &HeldCommands) {
        if self.ack_token.is_some() {
            self.stalled.get_or_insert_with(|| held.hold());
        }
    }

    /// Fails for want of what should have been confirmed first: owes nothing more but what that leaves owed. What is kept of a message
    /// that cannot be run stays owed whatever else is refused.
    pub(in crate::worker) fn fail(&mut self) {
        self.refusals = self.refusals.saturating_add(1);
        self.awaited = 0;
        for stage in [&mut self.first, &mut self.then] {
            stage.retain(|(role, _)| role.outlives_refusal());
        }
    }

    /// Tells whether nothing is owed any more.
    pub(super) const fn is_done(&self) -> bool {
        self.outstanding == 0 && self.first.is_empty() && self.then.is_empty() && self.events.is_empty()
    }
}
