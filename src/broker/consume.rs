//! Deliveries in, acknowledgements out.

use crate::celery::message::{Message, Origin};

use super::Result;

/// Deliveries handed over at once, at most.
pub const BATCH: usize = 256;

/// One message and the right to settle it.
#[derive(Debug)]
pub struct Delivery {
    /// The message.
    pub message: Message,
    /// How it came in.
    pub origin: Origin,
    /// Settles it.
    pub ticket: Ticket,
}

/// The right to settle one delivery, once; dropping it leaves the delivery with the broker, which hands it out again when
/// the channel ends.
#[derive(Debug)]
#[must_use = "a dropped ticket leaves its delivery unsettled"]
pub struct Ticket {
    pub(super) tag: u64,
    /// Which channel the tag belongs to; tags start over on every channel.
    pub(super) generation: u64,
}

/// Why no further delivery comes.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum End {
    /// [`Settler::stop`] or [`Settler::close`] was called.
    Stopped,
    /// The broker ended the consumer: the queue was deleted or its node went down. The session is lost with it.
    Cancelled {
        /// The queue.
        queue: String,
    },
    /// The session is lost, with the reason.
    Lost(String),
}

/// The deliveries of all consumed queues.
#[derive(Debug)]
pub struct Deliveries {}

impl Deliveries {
    /// Waits for a delivery and returns it with all that are ready by now, [`BATCH`] at most and at least one.
    ///
    /// # Errors
    /// The reason why there will be no other.
    pub async fn next(&mut self) -> std::result::Result<Vec<Delivery>, End> {
        todo!()
    }
}

/// Settles what [`Deliveries`] handed out; clones settle on the same channel.
#[derive(Clone, Debug)]
pub struct Settler {}

impl Settler {
    /// Acknowledges finished deliveries and returns how many: one `multiple` acknowledgement up to the oldest unfinished
    /// delivery, single ones beyond it. Does not wait: the acknowledgements are on their way when it returns. Tickets of
    /// another channel settle nothing.
    ///
    /// # Errors
    /// `Lost` when the channel is gone; the broker will deliver these again.
    pub fn settle(&self, tickets: Vec<Ticket>) -> Result<usize> {
        todo!()
    }

    /// Ends the consumers (`basic.cancel`); what was handed out can still be settled, the rest stays with the broker's
    /// channel until [`Settler::close`].
    ///
    /// # Errors
    /// `Lost`.
    pub async fn stop(&self) -> Result<()> {
        todo!()
    }

    /// Closes the consuming channel: the broker puts everything unsettled back in its place at once.
    ///
    /// # Errors
    /// `Lost`.
    pub async fn close(&self) -> Result<()> {
        todo!()
    }
}
