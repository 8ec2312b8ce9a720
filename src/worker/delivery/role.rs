//! What a publication is for; its role decides what it means when the broker did not take it.

use crate::celery::message::Address;
use crate::worker::events;
use crate::worker::own_queues::OwnQueue;

/// What a publication is for.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(in crate::worker) enum Role {
    /// Callback, errback or chain step: must arrive before the reply says so.
    FollowUp,
    /// The result.
    Reply,
    /// The failure of a task of the same chain that will not run any more, for whoever waits for that task.
    Rest,
    /// The event's copy for the queue the producer named.
    Notice,
    /// What counts the member of a chord, and lets the body follow the last one.
    Part,
    /// The copy in the dead-letter queue.
    Dead,
    /// The metric event.
    Event,
    /// The message itself, put aside until its eta.
    Delay,
}

impl Role {
    /// Tells whether it is an answer: it is no fault when nobody listens, and it is given up when its queue takes nothing for long.
    pub(super) const fn is_answer(self) -> bool {
        matches!(self, Self::Reply | Self::Rest | Self::Notice)
    }

    /// Tells whether the result backend sends it.
    pub(super) const fn is_result(self) -> bool {
        matches!(self, Self::Reply | Self::Rest | Self::Part)
    }

    /// Tells whether it stays owed when the command turns out to have failed because something else of it was refused.
    pub(super) const fn outlives_refusal(self) -> bool {
        matches!(self, Self::Rest | Self::Part | Self::Dead | Self::Event)
    }
}

/// Returns the queue of the worker's own that is behind an address.
pub(in crate::worker) fn own_queue(address: &Address) -> Option<OwnQueue> {
    if address.exchange == events::EXCHANGE {
        return Some(OwnQueue::Events);
    }
    (address.exchange.is_empty() && address.routing_key == OwnQueue::Dead.name()).then_some(OwnQueue::Dead)
}
